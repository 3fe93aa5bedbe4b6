"""Two shards whose buckets move from the first to the second: tables of every kind, and what lies where."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import asyncpg
import psycopg

from foreshard._core.buckets import initial_map
from foreshard.proxy.catalog import Catalog
from foreshard.proxy.config import Config, ShardConfig, TableConfig, TriggerConfig
from foreshard.proxy.control import read_catalog, read_two_phase
from foreshard.proxy.control.key_sql import bucket_of_row
from foreshard.proxy.move import Transfer
from foreshard.proxy.move.rows import in_bucket
from foreshard.proxy.move.transfer import End
from tests.support.deployment import apply_now, make_config
from tests.support.postgres import Shards, TestInstances

OWNERS = initial_map(2)
BUCKETS = [bucket for bucket, owner in enumerate(OWNERS) if owner == 0][:6]  # of the first shard: one for each test
SCHEMA = """
CREATE TABLE document (id bigserial PRIMARY KEY, path text NOT NULL, body text,
  size integer GENERATED ALWAYS AS (length(body)) STORED, number integer GENERATED ALWAYS AS IDENTITY);
CREATE TABLE symbol (id bigserial PRIMARY KEY, document_id bigint NOT NULL REFERENCES document ON DELETE CASCADE,
  name text, UNIQUE (document_id, name) DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE place (id bigserial PRIMARY KEY, symbol_id bigint NOT NULL REFERENCES symbol ON DELETE CASCADE, line int);
CREATE TABLE person (name text PRIMARY KEY, born date, photo bytea);
CREATE TABLE visit (person text NOT NULL REFERENCES person, day date, note text, PRIMARY KEY (person, day));
CREATE TABLE seat (hall text, number int, holder numeric, PRIMARY KEY (hall, number));
"""
TABLES = (
    TableConfig(name="document", key="id"),
    TableConfig(name="symbol", key="id"),
    TableConfig(name="place", key="id"),
    TableConfig(name="person", key="name"),
    TableConfig(name="visit", key=("person", "day"), parent="person", via="person"),
    TableConfig(name="seat", key=("hall", "number")),
)
NAMES = ("document", "symbol", "place", "person", "visit", "seat")
FUNCTIONS = (
    TriggerConfig(name="first", table="document", on=("insert", "update", "delete"), function="functions:first"),
    TriggerConfig(name="second", table="document", on=("insert", "update"), function="functions:second"),
    TriggerConfig(name="third", table="symbol", on=("insert", "delete"), function="functions:third"),
)
FILL = """
SET foreshard.bucket = {bucket};
INSERT INTO document (path, body)
  SELECT 'path {bucket} ' || n, repeat(md5(n::text), n) FROM generate_series(1, 200) AS n;
INSERT INTO symbol (document_id, name) SELECT id, 'a' || id FROM document
  WHERE foreshard.bucket_of(id) = {bucket} AND size % 3 <> 0;
INSERT INTO place (symbol_id, line) SELECT id, n FROM symbol, generate_series(1, 2) AS n
  WHERE foreshard.bucket_of(document_id) = {bucket};
INSERT INTO seat SELECT hall, number, number / 7.0 FROM (
  SELECT 'hall ' || n AS hall, n AS number FROM generate_series(1, 40000) AS n) AS made WHERE {seat} = {bucket};
INSERT INTO person SELECT name, '0044-03-15 BC', decode(md5(name), 'hex') FROM (
  SELECT 'person ' || n AS name FROM generate_series(1, 40000) AS n) AS made
  WHERE foreshard.bucket_of(name) = {bucket};
INSERT INTO visit SELECT name, day::date, E'tab\\t and \\\\N' FROM person,
  generate_series('2026-01-01'::timestamp, '2026-01-05', '1 day') AS day WHERE foreshard.bucket_of(name) = {bucket};
"""


@contextlib.contextmanager
def move_world(instances: TestInstances, folder: Path) -> Iterator[Config]:
    """Two shards with rows in each of BUCKETS, all on the first."""
    shards = instances.create(2)
    config = describe(shards, folder)
    apply_now(config)
    seat = bucket_of_row(asyncio.run(read_catalog(config)).tables["public.seat"], "made")
    for bucket in BUCKETS:
        shards.execute(FILL.format(bucket=bucket, seat=seat), on=0)
    yield config
    instances.drop(shards)


def describe(shards: Shards, folder: Path) -> Config:
    """The configuration over these shards."""
    return make_config(shards, folder, schema=SCHEMA, tables=TABLES, triggers=FUNCTIONS)


def rows_of(config: Config, shard: int, bucket: int, known: Catalog | None = None) -> dict[str, list[str]]:
    """All rows of the bucket on a shard, by table, as they print."""
    catalog = known or asyncio.run(read_catalog(config))
    found = {}
    with psycopg.connect(config.shards[shard].dsn) as connection:
        for name in NAMES:
            condition = in_bucket(catalog, catalog.tables[f"public.{name}"], "held", bucket)
            sql = f"SELECT held::text FROM {name} AS held WHERE {condition} ORDER BY 1"
            found[name] = [row[0] for row in connection.execute(sql.encode())]
    return found


def ask(config: Config, shard: int, sql: str) -> list[tuple[object, ...]]:
    """The rows that SQL gives on a shard."""
    with psycopg.connect(config.shards[shard].dsn, autocommit=True) as connection:
        cursor = connection.execute(sql.encode())
        return cursor.fetchall() if cursor.description else []


def owners(config: Config, bucket: int) -> list[object]:
    """Which shards say that the bucket is theirs."""
    asked = f"SELECT get_bit(buckets, {bucket}) FROM foreshard.owned_buckets"
    return [ask(config, shard, asked)[0][0] for shard in (0, 1)]


Script = Callable[[Transfer], Awaitable[None]]


def run(config: Config, bucket: int, script: Script, source: int = 0, target: int | None = None) -> Transfer:
    """Carry out the script with a transfer of the bucket from that shard to the other (of two)."""

    async def work() -> Transfer:
        goal = 1 - source if target is None else target
        ends = [
            End(shard.name, index, await asyncpg.connect(shard.dsn), await asyncpg.connect(shard.dsn))
            for index, shard in enumerate(config.shards)
        ]
        cluster = (await read_two_phase(config)).cluster
        transfer = Transfer(await read_catalog(config), cluster, bucket, ends[source], ends[goal])
        try:
            await script(transfer)
        finally:
            await transfer.abandon()
            for end in ends:
                await end.connection.close()
                await end.bell.close()
        return transfer

    return asyncio.run(work())


async def small(transfer: Transfer) -> None:
    """The small way."""
    await transfer.begin()
    await transfer.flip()
    await transfer.commit()


async def large(transfer: Transfer) -> None:
    """The large way."""
    await transfer.begin()
    await transfer.copy()
    await transfer.flip()
    await transfer.commit()


def main() -> None:
    """Move a bucket the large way, in a process that tests kill: FOLDER DSN DSN BUCKET SOURCE."""
    folder, *dsns, bucket, source = sys.argv[1:]
    shards = tuple(ShardConfig(name=f"s{index}", dsn=dsn) for index, dsn in enumerate(dsns))
    run(describe(Shards(shards), Path(folder)), int(bucket), large, int(source))


if __name__ == "__main__":
    main()
