"""`foreshard serve` as a process of a test: its configuration, its children, and whether it left any."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import yaml

from foreshard.proxy.admin.simple_query import ask
from foreshard.proxy.errors import ForeshardError
from tests.support.waiting import is_running, wait_until, wait_until_gone

STOP_S = 60.0


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def command_line(pid: int) -> bytes:
    """The words of a process, each ended by NUL; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def descendants(pid: int) -> list[int]:
    """Every process below this one."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [found for child in children for found in (int(child), *descendants(int(child)))]


def run_command(word: str, path: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Run one subcommand to its end."""
    command = [sys.executable, "-m", "foreshard.proxy", word, "-c", str(path), *more]
    return subprocess.run(command, capture_output=True, text=True, check=False)


class Serving:
    """One configuration and the supervisor that runs it. `stop` (or the `with` block's end) fails on leftovers."""

    def __init__(self, folder: Path, dsns: Sequence[str] = (), **sections: Any) -> None:
        self.host, self.port = "127.0.0.1", free_port()
        self.path = folder / "foreshard.yaml"
        self.run_directory = folder / "run"
        self._log = folder / "serve.log"
        self._process: subprocess.Popen[str] | None = None
        content = {"listen": f"{self.host}:{self.port}", "run_directory": "run", **sections}
        if dsns:
            content["shards"] = [{"name": f"s{index}", "dsn": dsn} for index, dsn in enumerate(dsns)]
        self.path.write_text(yaml.safe_dump(content, sort_keys=False))

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Process id of the supervisor."""
        assert self._process is not None
        return self._process.pid

    def apply(self) -> Self:
        """Run `foreshard apply`, which must succeed."""
        done = run_command("apply", self.path)
        assert done.returncode == 0, done.stdout + done.stderr
        return self

    def start(self) -> Self:
        """Start and wait for the ready line."""
        command = [sys.executable, "-m", "foreshard.proxy", "serve", "-c", str(self.path)]
        with self._log.open("a") as log:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.startswith("foreshard: listening on"):
            self.kill()
            raise AssertionError(self.said())
        return self

    def child(self, word: str) -> int:
        """Process id of the first child that runs this subcommand; 0 when there is none."""
        found = [pid for pid in descendants(self.pid) if f"\0{word}\0".encode() in command_line(pid)]
        return found[0] if found else 0

    def answers(self, database: str = "foreshard", sql: str = "SHOW VERSION") -> bool:
        """True when a client is served."""
        try:
            return bool(ask(self.host, self.port, "app", database, sql).rows)
        except ForeshardError:
            return False

    def is_listening(self) -> bool:
        """True while new connections are taken."""
        try:
            with socket.create_connection((self.host, self.port)):
                return True
        except OSError:
            return False

    def said(self) -> str:
        """What supervisor and children said."""
        logs = [self._log, *sorted(self.run_directory.glob("*.log"))]
        return "\n".join(f"{log.name}:\n{log.read_text(errors='replace')[-3000:]}" for log in logs if log.exists())

    def kill(self, survivors: Iterable[int] = ()) -> None:
        """SIGKILL to the supervisor alone; returns when it and its children are gone, but for those that survive it."""
        assert self._process is not None
        pids = set(descendants(self.pid)) - {below for pid in survivors for below in (pid, *descendants(pid))}
        self._process.kill()
        self._process.communicate()
        wait_until_gone(*pids)
        self._process = None

    def signal(self, number: signal.Signals) -> None:
        """Send the supervisor a signal."""
        os.kill(self.pid, number)

    def stop(self) -> None:
        """SIGTERM; exit code 0 and no process left."""
        if self._process is None:
            return
        process, self._process = self._process, None
        pids = descendants(process.pid)
        process.send_signal(signal.SIGTERM)
        try:
            process.communicate(timeout=STOP_S)
        finally:
            process.kill()
        left = [pid for pid in pids if is_running(pid)]
        wait_until_gone(*pids)
        assert process.returncode == 0, self.said()
        assert left == [], f"left over at the supervisor's end: {left}"


def wait_for_child(serving: Serving, word: str, other_than: int) -> int:
    """Process id of a child once it is another one."""
    wait_until(lambda: serving.child(word) not in (0, other_than))
    return serving.child(word)
