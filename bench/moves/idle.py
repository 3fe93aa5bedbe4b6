"""What it costs that buckets could move, while none does: instructions of the router, counted by valgrind.

    python -m bench.moves.idle        needs valgrind (of the system's packages); about a minute

Time is too noisy for a bar of 2 %, and instructions are the same in every run. They are those in user space: a router
spends more than half of its time in the kernel, where moves cost nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import uvloop
import yaml

from foreshard.proxy.config import load_config
from foreshard.proxy.control import apply
from foreshard.proxy.errors import ForeshardError
from foreshard.proxy.placement import attach_state
from foreshard.proxy.router import serve
from tests.support.messages import SYNC, extended
from tests.support.postgres import Shards, TestInstances
from tests.support.proxy import ROOT, free_port
from tests.support.raw import RawConnection
from tests.support.servers import Server

SCHEMA = "CREATE TABLE document (id bigserial PRIMARY KEY, n integer NOT NULL DEFAULT 0)"
STATEMENTS = 400
START_DEADLINE_S = 120.0
# Functions that are there for moves and the rebalancer alone.
FOR_MOVES = re.compile(
    r"Freezing_|count_work|spread_demand|can_take|has_bucket|SharedState_count_statement|SharedState_add_demand"
)
LINE = re.compile(r"^\s*([\d,]+) \(.*?\)\s+\S*?:(\S+)")


def main() -> int:
    """Count, and print the shares."""
    if len(sys.argv) > 1:
        return run_router(Path(sys.argv[1]))
    if shutil.which("valgrind") is None:
        raise ForeshardError("valgrind is not installed")
    instances = TestInstances(2)
    try:
        shards = instances.create(2)
        shards.execute(SCHEMA)
        with tempfile.TemporaryDirectory() as folder:
            count(shards, Path(folder))
    finally:
        instances.close()
    return 0


def run_router(configuration: Path) -> int:
    """A router without its supervisor, in this process."""
    config = load_config(configuration)
    config.run_directory.mkdir(parents=True, exist_ok=True)
    attach_state(config)
    return uvloop.run(serve(config))


def count(shards: Shards, folder: Path) -> None:
    """Three kinds of statements of one client."""
    port, configuration = free_port(), folder / "foreshard.yaml"
    content = {
        "listen": f"127.0.0.1:{port}", "run_directory": str(folder / "run"), "query_node": "off",
        "shards": [{"name": f"s{index}", "dsn": dsn} for index, dsn in enumerate(shards.dsns)],
        "tables": {"document": {"key": "id"}},
    }  # fmt: skip
    configuration.write_text(yaml.safe_dump(content))
    asyncio.run(apply(load_config(configuration)))
    first = Server.of_dsn(shards.dsns[0])
    with valgrind(configuration, folder) as pid:
        client = connect(Server("127.0.0.1", port, first.user, first.database))
        rows = [client.query("INSERT INTO document DEFAULT VALUES RETURNING id") for _ in range(50)]
        keys = [str(value.values[0], "ascii") for row in rows for value in row if value.kind == b"D"]
        kinds: dict[str, Callable[[int], object]] = {
            "update by key": lambda i: client.ask(
                extended(f"UPDATE document SET n = n + 1 WHERE id = {keys[i % len(keys)]}"), SYNC
            ),
            "insert": lambda i: client.query("INSERT INTO document (n) VALUES (1)"),
            "read by key": lambda i: client.query(f"SELECT n FROM document WHERE id = {keys[i % len(keys)]}"),
        }
        for number, (what, run) in enumerate(kinds.items(), 1):
            for turn in range(20):
                run(turn)
            for word in ("-i on", "-z"):
                control(pid, word)
            for turn in range(STATEMENTS):
                run(turn)
            for word in ("-i off", "--dump"):
                control(pid, word)
            tell(what, folder / f"counted.{number}")
        client.close()


def connect(server: Server) -> RawConnection:
    """A client of the router, which takes its time to start."""
    deadline_s = time.monotonic() + START_DEADLINE_S
    while True:
        try:
            return server.connect()
        except (OSError, AssertionError):
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.5)


@contextlib.contextmanager
def valgrind(configuration: Path, folder: Path) -> Iterator[int]:
    """A router that counts when it is told to."""
    command = [
        "valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={folder / 'counted'}",
        sys.executable, "-m", "bench.moves.idle", str(configuration),
    ]  # fmt: skip
    with (folder / "valgrind.log").open("wb") as log:
        router = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
    try:
        yield router.pid
    finally:
        router.send_signal(signal.SIGTERM)
        router.wait(60)


def control(pid: int, words: str) -> None:
    """Have the router count, begin anew, stop, or write down."""
    subprocess.run(["callgrind_control", *words.split(), str(pid)], check=True, capture_output=True)


def tell(what: str, file: Path) -> None:
    """Instructions of one statement, and how many of them are for moves."""
    command = ["callgrind_annotate", "--threshold=100", "--show-percs=yes", str(file)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = [LINE.match(line) for line in printed.splitlines()]
    counts = [(int(match[1].replace(",", "")), match[2]) for match in found if match is not None]
    total = next(int(line.split()[1]) for line in file.read_text().splitlines() if line.startswith("totals:"))
    moves = sum(number for number, name in counts if FOR_MOVES.search(name))
    share = f"{100 * moves / total:.2f} %"
    print(f"{what}: {total / STATEMENTS:.0f} instructions, {moves / STATEMENTS:.0f} of them for moves: {share}")


if __name__ == "__main__":
    sys.exit(main())
