"""Three shards with tables whose keys clients give and whose rows are placed by cost, next to one PostgreSQL.

Policy least-loaded and a function that each INSERT fires send new rows to each shard in turn: two of three away from
the home of their key.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import psycopg

from tests.support.postgres import Shards, TestInstances
from tests.support.proxy import Proxy
from tests.support.servers import Pair, Server

SHARD_COUNT = 3
PENDING = "SELECT * FROM foreshard.claim_pending"
PREPARED = "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()"


class AwayWorld(NamedTuple):
    """The twins, and the names of the roots and of their keys."""

    sides: Pair
    shards: Shards
    proxy: Proxy
    roots: tuple[str, ...]

    def connect(self) -> psycopg.Connection:
        return psycopg.connect(self.sides.proxied.dsn, autocommit=True)

    def connect_direct(self) -> psycopg.Connection:
        return psycopg.connect(self.sides.direct.dsn, autocommit=True)

    def away_count(self, root: str) -> int:
        """Rows of a root that are away from home."""
        name = f"public.{root}.id"
        sql = f"SELECT count(*) FROM foreshard.away WHERE name = '{name}'"
        return sum(int(str(self.shards.query(sql, on=shard)[0][0])) for shard in range(SHARD_COUNT))

    def check(self) -> None:
        """Each row has one claim, at its home, that names its bucket, of the shard it is on; nothing else is there."""
        with contextlib.ExitStack() as stack:
            self._check([stack.enter_context(psycopg.connect(dsn, autocommit=True)) for dsn in self.shards.dsns])

    def _check(self, shards: list[psycopg.Connection]) -> None:
        owners = [owner for (owner,) in ask(shards[0], "SELECT shard FROM foreshard.bucket_map ORDER BY bucket")]
        for root in self.roots:
            name = f"public.{root}.id"
            rows: dict[object, tuple[object, object]] = {}
            claims: dict[object, object] = {}
            for shard in range(SHARD_COUNT):
                sql = f"SELECT id::text, foreshard.bucket_of(id), foreshard.bucket_where('{name}', id) FROM {root}"
                for key, home, bucket in ask(shards[shard], sql):
                    assert key not in rows, (root, key, "is on two shards")
                    assert owners[int(str(bucket))] == shard, (root, key, bucket, shard)
                    rows[key] = home, bucket
                sql = f"SELECT key, bucket FROM foreshard.claim WHERE name = '{name}'"
                for key, bucket in ask(shards[shard], sql):
                    assert key not in claims, (root, key, "is claimed twice")
                    claims[key] = bucket
                    if key in rows:
                        assert owners[int(str(rows[key][0]))] == shard, (root, key, "is claimed at another home")
                noted = ask(shards[shard], f"SELECT key FROM foreshard.away WHERE name = '{name}'")
                assert {key for (key,) in noted} <= set(rows), (root, shard)
            assert claims == {key: bucket for key, (_, bucket) in rows.items()}, root
        for shard in range(SHARD_COUNT):
            assert ask(shards[shard], PENDING) == []
            assert ask(shards[shard], PREPARED) == []


def ask(connection: psycopg.Connection, sql: str) -> list[tuple[object, ...]]:
    """Rows of one query."""
    return connection.execute(sql.encode()).fetchall()


@contextlib.contextmanager
def away_world(
    instances: TestInstances,
    folder: Path,
    schema: str,
    roots: tuple[str, ...],
    children: Mapping[str, str],
    policy: str = "least-loaded",
    **sections: Any,
) -> Iterator[AwayWorld]:
    """Roots with key `id`, and children with key `id` of the parents that `children` names."""
    shards, reference = instances.create(SHARD_COUNT), instances.create(1)
    shards.execute(schema)
    reference.execute(schema)
    tables: dict[str, Any] = {root: {"key": "id", "placement": "cost"} for root in roots}
    tables |= {child: {"key": "id", "parent": parent} for child, parent in children.items()}
    triggers = {
        f"count_{root}": {
            "table": root, "on": ["insert"], "function": "functions:count", "profile": {"cpu": "5ms"}
        }
        for root in roots
    }  # fmt: skip
    sections = {"workers": {"per_shard": 0}, "placement": {"policy": policy}, **sections}
    with Proxy(shards.dsns, folder, tables=tables, triggers=triggers, **sections) as proxy:
        yield AwayWorld(Pair(Server.of_dsn(reference.dsns[0]), proxy.server), shards, proxy, roots)
    instances.drop(shards)
    instances.drop(reference)
