"""Three shards behind a proxy with a root, a child and a plain table, and what must hold once every client has left."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psycopg

from foreshard.proxy.admin.simple_query import ask
from tests.support.postgres import Shards, TestInstances
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.waiting import wait_until

SHARD_COUNT = 3
ROOTS = 60
SCHEMA = """
CREATE TABLE root (id bigserial PRIMARY KEY, tag text, n integer NOT NULL DEFAULT 0);
CREATE TABLE child (id bigserial PRIMARY KEY, root_id bigint NOT NULL REFERENCES root ON DELETE CASCADE, tag text);
CREATE TABLE plain (id bigserial PRIMARY KEY, tag text, n integer NOT NULL DEFAULT 0);
"""
TABLES = {"root": {"key": "id"}, "child": {"key": "id", "parent": "root", "via": "root_id"}}
PREPARED = "SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database()"
OPEN = """SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
  AND backend_type = 'client backend' AND (xact_start IS NOT NULL OR state LIKE 'idle in transaction%')"""


UNKNOWN = -1


def prepared_count(shards: Shards) -> int:
    """What is prepared on all shards; UNKNOWN while one is down."""
    try:
        return sum(int(str(shards.query(PREPARED, on=shard)[0][0])) for shard in range(SHARD_COUNT))
    except psycopg.OperationalError:  # one that was killed is not back yet
        return UNKNOWN


class Deployment(NamedTuple):
    """A running proxy, its shards, and for each shard the keys of root rows that it holds from the start."""

    proxy: Proxy
    shards: Shards
    keys: list[list[int]]

    @property
    def server(self) -> Server:
        return self.proxy.server

    @property
    def router_pid(self) -> int:
        return self.proxy.router_pids()[0]

    def pools(self) -> list[dict[str, str | None]]:
        """SHOW POOLS."""
        return self.show("POOLS")

    def show(self, what: str) -> list[dict[str, str | None]]:
        """The rows of a console command."""
        answer = ask(self.server.host, self.server.port, self.server.user, "foreshard", f"SHOW {what}")
        return [dict(zip(answer.columns, row, strict=True)) for row in answer.rows]

    def busy(self) -> list[dict[str, str | None]]:
        """Pools with a backend that is lent, or a client that waits."""
        return [
            row for row in self.pools() if any(row[name] != "0" for name in ("cl_active", "cl_waiting", "sv_active"))
        ]

    def has_come_to_rest(self) -> bool:
        """No client waits, no backend is lent, no transaction is open or prepared on any shard."""
        return not self.busy() and not any(
            int(str(self.shards.query(sql, on=shard)[0][0])) for shard in range(SHARD_COUNT) for sql in (OPEN, PREPARED)
        )

    def come_to_rest(self) -> None:
        """What must happen soon after every client has left."""
        wait_until(self.has_come_to_rest)

    def count(self, table: str, tag: str) -> int:
        """Rows with that tag, over all shards, asked directly."""
        sql = f"SELECT count(*) FROM {table} WHERE tag = '{tag}'"
        return sum(int(str(self.shards.query(sql, on=shard)[0][0])) for shard in range(SHARD_COUNT))


@contextlib.contextmanager
def deployment(
    instances: TestInstances, folder: Path, schema: str = "", tables: dict[str, Any] | None = None, **sections: Any
) -> Iterator[Deployment]:
    """A fresh deployment; `schema` and `tables` are more tables, `sections` more of the configuration."""
    shards = instances.create(SHARD_COUNT)
    shards.execute(SCHEMA + schema)
    try:
        declared = {**TABLES, **(tables or {})}
        with Proxy(shards.dsns, folder, tables=declared, **{"workers": {"per_shard": 0}, **sections}) as proxy:
            with proxy.server.connect() as client:
                for key in range(1, ROOTS + 1):
                    client.rows(f"INSERT INTO root (id, tag, n) VALUES ({key}, 'kept', {key})")
                client.rows(f"INSERT INTO plain (tag, n) SELECT 'kept', n FROM generate_series(1, {ROOTS}) AS n")
            shards.execute("CHECKPOINT")  # these rows outlive a crash
            keys = [
                [int(str(row[0])) for row in shards.query("SELECT id FROM root", on=shard)]
                for shard in range(SHARD_COUNT)
            ]
            yield Deployment(proxy, shards, keys)
    finally:
        instances.drop(shards)
