"""One embedded shard with a captured table, and real workers on it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import asyncpg

from foreshard.proxy.config import load_config
from foreshard.proxy.control import apply
from foreshard.proxy.embedded import EmbeddedCluster

POLL_S = 0.005


def cpu_s(pid: int) -> float:
    """CPU seconds of a process's first thread so far: all there is in executors of such functions, and in backends."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) * 1e-9


class Worker:
    """One `foreshard worker` of the bench."""

    def __init__(self, config: Path, run_directory: Path) -> None:
        words = [sys.executable, "-m", "foreshard.proxy", "worker", "-c", str(config)]
        with (config.parent / "worker.log").open("a") as log:
            self.process = subprocess.Popen(words, stdout=log, stderr=log)
        self.wake_path = run_directory / f"wake-0-{self.process.pid}.sock"

    def pids(self) -> list[int]:
        """Supervisor and executor."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [self.process.pid, *map(int, children)]


class World:
    """The shard, its configuration and functions. A context manager: the instance ends with the block."""

    def __init__(self, folder: Path) -> None:
        folder.chmod(0o755)  # another user runs PostgreSQL when we are root
        self._folder = folder
        self._cluster = EmbeddedCluster(folder / "data", 1)
        self._dsn = ""

    def __enter__(self) -> Self:
        self._dsn = self._cluster.start()[0].dsn
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cluster.stop()

    async def connect(self) -> asyncpg.Connection[Any]:
        """A client of the shard."""
        return await asyncpg.connect(self._dsn)

    async def reset(self, source: str, functions: int) -> None:
        """An empty table with so many functions registered for its inserts, all of them `f` of the source."""
        (self._folder / "functions.py").write_text(source)
        names = [f"f{number}" for number in range(functions)]
        lines = [f"  {name}: {{table: document, on: [insert], function: 'functions:f'}}" for name in names]
        path = self._folder / "foreshard.yaml"
        path.write_text(
            f"shards: [{{name: s0, dsn: '{self._dsn}'}}]\nrun_directory: run\ntables: {{document: {{key: id}}}}\n"
            + ("triggers:\n" + "\n".join(lines) + "\n" if lines else "")
        )
        connection = await self.connect()
        try:
            await connection.execute(
                "DROP SCHEMA IF EXISTS foreshard CASCADE;"
                "DROP TABLE IF EXISTS document, effect;"
                "CREATE TABLE document (id bigint PRIMARY KEY, body text);"
                "CREATE TABLE effect (key bigint, at double precision)"
            )
        finally:
            await connection.close()
        await apply(load_config(path))

    @contextlib.asynccontextmanager
    async def workers(self, count: int) -> AsyncIterator[list[Worker]]:
        """Workers that end with the block."""
        running = [Worker(self._folder / "foreshard.yaml", self._folder / "run") for _ in range(count)]
        try:
            yield running
        finally:
            for worker in running:
                worker.process.send_signal(signal.SIGTERM)
            for worker in running:
                worker.process.wait(30)

    async def worker_backends(self, count: int) -> list[int]:
        """Backends of the workers, once all are connected."""
        connection = await self.connect()
        try:
            while True:
                rows = await connection.fetch(
                    "SELECT pid FROM pg_stat_activity WHERE application_name = 'foreshard worker'"
                )
                if len(rows) >= count:
                    return [row["pid"] for row in rows]
                await asyncio.sleep(POLL_S)
        finally:
            await connection.close()
