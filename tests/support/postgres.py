"""Real PostgreSQL shards for tests: one cluster of instances per test process, a fresh database per test.

The instances end with the test process, however it ends: a small shell waits for the end of its standard input, which
only we hold open, and then stops them.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg

from foreshard.proxy.config import ShardConfig
from foreshard.proxy.embedded import EmbeddedCluster
from tests.support.proxy import descendants
from tests.support.waiting import wait_until_gone

INSTANCES = 3
MEMORY_BYTES_FREE_MIN = 2 * 2**30


def scratch_folder() -> str | None:
    """Where data directories of tests go: memory when there is enough of it, else (None) the temporary folder."""
    memory = Path("/dev/shm")
    if os.access(memory, os.W_OK) and shutil.disk_usage(memory).free >= MEMORY_BYTES_FREE_MIN:
        return str(memory)
    return None


@contextlib.contextmanager
def open_folder(purpose: str) -> Iterator[Path]:
    """A folder for embedded shards: PostgreSQL's account can enter it, unlike pytest's own temporary folders.

    Below a folder that it cannot enter, embedded shards lie in /var/lib when root runs them, and would stay there.
    """
    with tempfile.TemporaryDirectory(prefix=f"foreshard-{purpose}-", dir=scratch_folder()) as name:
        Path(name).chmod(0o755)
        yield Path(name)


@dataclass(frozen=True)
class Shards:
    """Fresh databases of one test, one per shard, as the configuration would name them."""

    shards: tuple[ShardConfig, ...]

    @property
    def dsns(self) -> list[str]:
        return [shard.dsn for shard in self.shards]

    def execute(self, sql: str, *, on: int | None = None) -> None:
        """Run SQL, several statements if need be, on one shard or on all."""
        for index, dsn in enumerate(self.dsns):
            if on in (None, index):
                with psycopg.connect(dsn, autocommit=True) as connection:
                    connection.execute(sql)

    def query(self, sql: str, *, on: int = 0) -> list[tuple[object, ...]]:
        """Rows of one query on one shard."""
        with psycopg.connect(self.dsns[on], autocommit=True) as connection:
            return connection.execute(sql).fetchall()


class TestInstances:
    """The instances of one test process and the databases made on them."""

    __test__ = False

    def __init__(self, count: int = INSTANCES) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="foreshard-test-", dir=scratch_folder()))
        self.folder.chmod(0o755)  # another user runs PostgreSQL when we are root
        self._cluster = EmbeddedCluster(self.folder / "data", count, durable=False)
        self._numbers = itertools.count()
        self._servers = self._cluster.start()
        self._reaper = self._start_reaper()

    def create(self, count: int) -> Shards:
        """Fresh databases on the first `count` instances."""
        name = f"test_{next(self._numbers)}"
        chosen = self._servers[:count]
        for server in chosen:
            _execute(server.dsn, f"CREATE DATABASE {name}")
        return Shards(tuple(ShardConfig(name=s.name, dsn=s.dsn.rpartition("/")[0] + f"/{name}") for s in chosen))

    def drop(self, made: Shards) -> None:
        """Drop what `create` made, clients and prepared transactions in it or not."""
        for shard in made.shards:
            base, _, name = shard.dsn.rpartition("/")
            with psycopg.connect(shard.dsn, autocommit=True) as connection:
                for (gid,) in connection.execute(
                    "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()"
                ).fetchall():
                    connection.execute(f"ROLLBACK PREPARED '{gid}'")
            _execute(f"{base}/app", f"DROP DATABASE IF EXISTS {name}_foreshard_query WITH (FORCE)")
            _execute(f"{base}/app", f"DROP DATABASE {name} WITH (FORCE)")

    def crash(self, index: int) -> None:
        """Kill one instance's processes, postmaster first, and start it again, which recovers from its log."""
        pid = self._cluster.pids()[f"s{index}"]
        os.kill(pid, signal.SIGSTOP)  # no more children from now on
        family = [pid, *descendants(pid)]
        for each in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)
        wait_until_gone(*family)
        self._cluster.start()
        self._reaper.kill()  # it knows the old pid
        self._reaper.communicate()
        self._reaper = self._start_reaper()

    def close(self) -> None:
        """Stop the instances and remove their data."""
        try:
            self._cluster.stop(immediate=True)
        finally:
            assert self._reaper.stdin is not None
            self._reaper.stdin.close()
            self._reaper.wait()
            shutil.rmtree(self.folder, ignore_errors=True)

    def _start_reaper(self) -> subprocess.Popen[bytes]:
        # A pid is killed only while it still names its instance, so a later process with that number is safe.
        script = f"""
            trap '' INT TERM
            cat >/dev/null
            for pid in {" ".join(map(str, self._cluster.pids().values()))}; do
                is_ours() {{ grep -qa {shlex.quote(str(self.folder))} /proc/$pid/cmdline 2>/dev/null; }}
                is_ours && kill -QUIT $pid
                while is_ours; do sleep 0.05; done
            done
            rm -rf {shlex.quote(str(self.folder))}
        """
        return subprocess.Popen(["sh", "-c", script], stdin=subprocess.PIPE, start_new_session=True)


def _execute(dsn: str, sql: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(sql)
