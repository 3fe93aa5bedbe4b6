"""A shard with captured tables, a module of trigger functions, and real workers on it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psycopg
import yaml

from foreshard.proxy.catalog import Table, TableKind
from foreshard.proxy.config import Config, load_config
from foreshard.proxy.triggers.capture import capture_sql
from tests.support.deployment import apply_now
from tests.support.postgres import Shards

DEADLINE_S = 60.0
POLL_S = 0.01

SCHEMA = """
CREATE TABLE document (id bigint PRIMARY KEY, path text, body text);
CREATE TABLE effect (id bigserial, event text, function text, operation text, key bigint, value text, attempt int);
"""


class TriggerWorld:
    """One shard, its configuration file and functions module, and the workers that a test starts."""

    def __init__(self, folder: Path, shards: Shards, functions: str, triggers: Mapping[str, Mapping[str, Any]]) -> None:
        self.folder = folder
        self.shards = shards
        self.dsn = shards.dsns[0]
        self.workers: list[subprocess.Popen[str]] = []
        (folder / "functions.py").write_text(textwrap.dedent(functions))
        self.path = folder / "foreshard.yaml"
        self.path.write_text(yaml.safe_dump(self._document(triggers)))
        self.config: Config = load_config(self.path)
        shards.execute(SCHEMA, on=0)
        apply_now(self.config)

    def capture(self) -> None:
        """Install the capture triggers of the table `document`."""
        table = Table(schema="public", name="document", kind=TableKind.ROOT, key="id", key_type="bigint")
        for _, sql in capture_sql(table, self.config.triggers):
            self.shards.execute(sql, on=0)

    def execute(self, sql: str) -> None:
        self.shards.execute(sql, on=0)

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        return self.shards.query(sql)

    def connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.dsn)

    def start_worker(self, *, crash_at: str = "") -> subprocess.Popen[str]:
        """Start `foreshard worker` in a process of its own."""
        log = (self.folder / f"worker-{len(self.workers)}.log").open("w")
        with log:
            worker = subprocess.Popen(
                [sys.executable, "-m", "foreshard.proxy", "worker", "-c", str(self.path), "--shard", "s0"],
                stdout=log,
                stderr=log,
                text=True,
                env=os.environ | {"FORESHARD_CRASH_AT": crash_at},
                start_new_session=True,
            )
        self.workers.append(worker)
        return worker

    def stop_worker(self, worker: subprocess.Popen[str]) -> int:
        """Ask a worker to end; its exit code."""
        worker.send_signal(signal.SIGTERM)
        return worker.wait(DEADLINE_S)

    def executor_pid(self, worker: subprocess.Popen[str]) -> int:
        """The executor of a worker, once it has been forked."""
        children = Path(f"/proc/{worker.pid}/task/{worker.pid}/children")
        self.wait_for(lambda: bool(children.read_text().split()), "an executor")
        return int(children.read_text().split()[0])

    def wait_for(self, condition: Any, what: str) -> None:
        """Wait until the condition holds; fails with the workers' logs."""
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain for {what}\n{self.logs()}"
            time.sleep(POLL_S)

    def wait_for_rows(self, sql: str, expected: list[tuple[Any, ...]]) -> None:
        """Wait until a query answers with these rows."""
        deadline = time.monotonic() + DEADLINE_S
        while (found := self.query(sql)) != expected:
            assert time.monotonic() < deadline, f"{sql}: {found}, expected {expected}\n{self.logs()}"
            time.sleep(POLL_S)

    def wait_drained(self) -> None:
        """Wait until the outbox is empty."""
        self.wait_for_rows("SELECT count(*) FROM foreshard.outbox", [(0,)])

    def logs(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("worker-*.log")))

    def close(self) -> None:
        """Kill every worker that still runs."""
        for worker in self.workers:
            with contextlib.suppress(ProcessLookupError):
                worker.kill()
            worker.wait()

    def _document(self, triggers: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        defaults = {"table": "document", "on": ["insert"], "backoff": "10ms"}
        return {
            "listen": "127.0.0.1:25300",
            "shards": [{"name": "s0", "dsn": self.dsn}],
            "run_directory": str(self.folder / "run"),
            "tables": {"document": {"key": "id"}},
            "triggers": {
                name: defaults | {"function": f"functions:{name}"} | dict(trigger) for name, trigger in triggers.items()
            },
            "workers": {"poll_interval": "50ms"},
        }


@contextlib.contextmanager
def trigger_world(
    folder: Path, shards: Shards, functions: str, triggers: Mapping[str, Mapping[str, Any]]
) -> Iterator[TriggerWorld]:
    """A world whose workers end with the block."""
    world = TriggerWorld(folder, shards, functions, triggers)
    try:
        yield world
    finally:
        world.close()
