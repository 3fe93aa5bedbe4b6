"""Starts Foreshard over given shards, waits until it answers, stops it and looks for leftovers."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import yaml

from foreshard.proxy.config import load_config
from foreshard.proxy.control import apply as apply_schema
from tests.support.raw import Closed
from tests.support.servers import Server
from tests.support.waiting import wait_until

START_DEADLINE_S = 30.0
STOP_DEADLINE_S = 20.0
ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Proxy:
    """A running `foreshard serve` and its children. Made by a fixture or bench, ended by `stop` or the `with` block."""

    def __init__(
        self,
        shards: Sequence[str],
        directory: Path,
        *,
        tables: Mapping[str, Any] | None = None,
        command: str = "serve",
        apply: bool = True,
        environment: Mapping[str, str] | None = None,
        **sections: Any,
    ) -> None:
        """Write the configuration for `shards` (DSNs); `sections` are more of its top-level keys."""
        first = Server.of_dsn(shards[0])
        self.server = Server("127.0.0.1", free_port(), first.user, first.database)
        self.directory = directory
        self.command = command
        self.environment = {**os.environ, **(environment or {})}
        self.configuration = directory / "foreshard.yaml"
        self.log = directory / "serve.log"
        self.process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)
        content = {
            "listen": f"{self.server.host}:{self.server.port}",
            "run_directory": str(directory / "run"),
            "shards": [{"name": f"s{index}", "dsn": dsn} for index, dsn in enumerate(shards)],
            **({"tables": dict(tables)} if tables else {}),
            **sections,
        }
        self.configuration.write_text(yaml.safe_dump(content, sort_keys=False))
        if apply:
            with ThreadPoolExecutor(1) as thread:  # a test may have an event loop of its own
                thread.submit(asyncio.run, apply_schema(load_config(self.configuration))).result()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def run_command(self, *words: str) -> str:
        """Output of another subcommand on this configuration, which must succeed."""
        command = [sys.executable, "-m", "foreshard.proxy", words[0], "-c", str(self.configuration), *words[1:]]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=START_DEADLINE_S, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self) -> Self:
        command = [sys.executable, "-m", "foreshard.proxy", self.command, "-c", str(self.configuration)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=self.environment
            )
        try:
            wait_until(self._answers, START_DEADLINE_S)
        except BaseException as error:
            error.add_note(self.log_text())
            self.stop()
            raise
        return self

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log_text()
        try:
            with self.server.connect() as connection:
                return connection.value("select 1") == "1"
        except (OSError, Closed, AssertionError):
            return False

    def log_text(self) -> str:
        """The end of what the processes said."""
        logs = [self.log, *sorted((self.directory / "run").glob("*.log"))]
        return "\n".join(f"{log.name}:\n{log.read_text(errors='replace')[-4000:]}" for log in logs if log.exists())

    def pids(self) -> list[int]:
        """The supervisor and all that descend from it."""
        assert self.process is not None
        return [self.process.pid, *descendants(self.process.pid)]

    def router_pids(self) -> list[int]:
        """The processes that relay."""
        return [pid for pid in self.pids() if self.command == "router" or b"\0router\0" in command_line(pid)]

    def wait_for_end(self) -> int:
        """The exit code of a process that ends by itself; negative for a signal."""
        assert self.process is not None
        status = self.process.wait(STOP_DEADLINE_S)
        self.process = None
        return status

    def stop(self) -> None:
        """SIGTERM, wait, and fail when a process is left over."""
        if self.process is None:
            return
        started = {pid: start_time(pid) for pid in self.pids()}
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        left = [pid for pid, started_at in started.items() if started_at and start_time(pid) == started_at]
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        status, self.process = self.process.returncode, None
        assert not left, f"processes left over: {left}"
        assert status in (0, -signal.SIGTERM, 128 + signal.SIGTERM), f"exit code {status}\n{self.log_text()}"


def _stat_fields(pid: int) -> list[str]:
    """/proc/PID/stat after the command's name; empty when there is no such process, or only its exit status."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return []
    return [] if fields[0] == "Z" else fields


def start_time(pid: int) -> str | None:
    """When the process started, in ticks: tells it from a later one with the same id. None when it is gone."""
    fields = _stat_fields(pid)
    return fields[19] if fields else None


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def descendants(pid: int) -> list[int]:
    """Every process below `pid`, by parent links."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat_fields(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, queue = [], [pid]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def resident_bytes(pid: int) -> int:
    """Physical memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def cpu_seconds(pid: int) -> float:
    """CPU time of a process, all threads, to the nanosecond where the kernel keeps schedstat."""
    tasks = Path(f"/proc/{pid}/task")
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks.iterdir()) / 1e9
