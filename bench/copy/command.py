"""The same rows copied through Foreshard over four shards and into one PostgreSQL, in turns; commits are durable.

The shards share the machine with that PostgreSQL: four of them have no more cores or disks than one, so a ratio says
what splitting and the distributed commit cost, not what four machines gain.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench import Options, report
from bench.copy.kinds import KINDS, PARENTS, SCHEMA, TABLES, Kind
from foreshard.proxy.embedded import EmbeddedCluster
from tests.support.messages import COPY_DONE, copy_data, query
from tests.support.proxy import Proxy
from tests.support.servers import Server

SHARDS = 4
CHUNK_BYTES = 65536  # of one CopyData, as drivers send it
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def run(options: Options) -> dict[str, Any]:
    """The whole benchmark; prints its table."""
    rows, rounds = (2_000, 1) if options.small else (100_000, 5)
    with tempfile.TemporaryDirectory(prefix="foreshard-bench-") as name:
        directory = Path(name)
        directory.chmod(0o755)  # PostgreSQL runs as another user when we are root
        cluster = EmbeddedCluster(directory / "data", SHARDS, durable=True)
        try:
            compared = compare([shard.dsn for shard in cluster.start()], directory, rows, rounds)
        finally:
            cluster.stop()
    print(
        report.table(
            ["copy", "one: rows/s", "Foreshard: rows/s", "router CPU us/row", "throughput, one / Foreshard"],
            [
                [made["kind"], *(round(made[side]["rows_per_s"]) for side in ("one", "foreshard")),
                 f"{made['router_cpu_us_per_row']:.2f}", made["shown"]]
                for made in compared
            ],
        )
    )  # fmt: skip
    print(
        f"{rows} rows per COPY, {SHARDS} shards and one PostgreSQL on one machine, fsync on, {rounds} rounds in turns:"
        " median (least-most)"
    )
    return {"rows": rows, "rounds": rounds, "kinds": compared}


def compare(dsns: list[str], directory: Path, rows: int, rounds: int) -> list[dict[str, Any]]:
    """All kinds, both sides."""
    Server.of_dsn(dsns[0]).run("CREATE DATABASE one")
    one = Server.of_dsn(dsns[0])._replace(database="one")
    one.run(*SCHEMA)
    shards = [Server.of_dsn(dsn) for dsn in dsns]
    for shard in shards:
        shard.run(*SCHEMA)
    with Proxy(dsns, directory / "sharded", tables=TABLES, workers={"per_shard": 0}) as proxy:
        for server in (one, proxy.server):
            copy(server, "COPY parent FROM STDIN", [copy_data(b"".join(b"%d\n" % n for n in range(1, PARENTS + 1)))])
        return [compare_kind(kind, one, shards, proxy, rows, rounds) for kind in KINDS]


def copy(server: Server, sql: str, messages: list[bytes]) -> float:
    """Seconds that a COPY takes, its commit included."""
    with server.connect() as connection:
        connection.send(query(sql))
        assert connection.read_until(b"GZ")[-1].kind == b"G"
        begun = time.perf_counter()
        for message in messages:
            connection.send(message)
        connection.send(COPY_DONE)
        answer = connection.read_until()
        taken = time.perf_counter() - begun
    assert answer[0].kind == b"C", answer
    return taken


def compare_kind(
    kind: Kind, one: Server, shards: list[Server], proxy: Proxy, rows: int, rounds: int
) -> dict[str, Any]:  # fmt: skip
    """One kind: medians of both sides, and the ratio of throughputs within the rounds."""
    data = kind.data(rows)
    messages = [copy_data(data[at : at + CHUNK_BYTES]) for at in range(0, len(data), CHUNK_BYTES)]
    router = proxy.router_pids()[0]
    found, cpu = [], []
    for _ in range(rounds):
        direct = copy(one, kind.sql, messages)
        before = cpu_s(router)
        through = copy(proxy.server, kind.sql, messages)
        cpu.append((cpu_s(router) - before) / rows * 1e6)
        found.append((direct, through))
        for server in (one, *shards):
            server.run(f"TRUNCATE {kind.table}", "CHECKPOINT")
    ratios = [through / direct for direct, through in found]
    return {
        "kind": kind.name,
        "bytes": len(data),
        "one": {"rows_per_s": rows / float(np.median([direct for direct, _ in found]))},
        "foreshard": {"rows_per_s": rows / float(np.median([through for _, through in found]))},
        "router_cpu_us_per_row": float(np.median(cpu)),
        "throughput_ratio": {"median": float(np.median(ratios)), "least": min(ratios), "most": max(ratios)},
        "shown": f"{np.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})",
    }


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has used, in user and system mode."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_S
