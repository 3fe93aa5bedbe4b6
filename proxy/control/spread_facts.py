"""Which declared tables are still plain ones of the first shard, and what it takes to spread them over the shards.

A declared table is *spread* from the moment on that `foreshard.applied` of the first shard says so. Until then, when it
is there at all, everybody treats it as a plain table: the configuration is read as if it did not declare it
(`without`). So a proxy may serve before, while and after `apply` spreads it.
"""

from __future__ import annotations

import graphlib
import re
from collections.abc import Collection, Iterable, Sequence

import msgspec

from foreshard._core.buckets import PLACED_FLAG
from foreshard._core.typed_keys import KeyType
from foreshard.proxy.catalog import Catalog, Table, TableKind
from foreshard.proxy.config import Config, qualified
from foreshard.proxy.control.facts import Facts
from foreshard.proxy.control.introspect import Connection
from foreshard.proxy.control.key_sql import (
    UUID_NAMES_BUCKET,
    bucket_index_object,
    bucket_of_row,
    bucket_of_steps,
    bucket_sql,
    chained_bucket_sql,
)
from foreshard.proxy.control.lineage import bucket_of_child, looks_further
from foreshard.proxy.control.steps import SCHEMA, Step
from foreshard.proxy.triggers.capture import quote_name, quote_table, quote_text

HAS_APPLIED = "SELECT to_regclass('foreshard.applied') IS NOT NULL AS is_there"
# Declared tables that are there although nothing says that they are spread.
PLAIN = """
SELECT name FROM unnest($1::text[]) AS name
WHERE EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
              WHERE c.relkind IN ('r', 'p') AND n.nspname || '.' || c.relname = name)
  AND NOT EXISTS (SELECT FROM foreshard.applied WHERE object = 'spread of ' || name)
"""


class Moving(msgspec.Struct, frozen=True, kw_only=True):
    """One table to be spread: how many rows of the first shard, and bytes, each shard will be given."""

    table: Table
    rows: dict[int, int]
    bytes: dict[int, int]
    lacking: tuple[int, ...] = ()  # shards that have no such table yet

    @property
    def object(self) -> str:
        """How `plan` names it."""
        return f"rows of {self.table.qualified}"


class Unit(msgspec.Struct, frozen=True, kw_only=True):
    """Tables that are spread in one transaction: a reference table, or a group. Referenced tables come first."""

    movings: tuple[Moving, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(moving.table.qualified for moving in self.movings)


def spread_step(table: Table) -> Step:
    """What says that the table is spread: recorded in the transaction that makes it so."""
    name = quote_table(table)
    return Step(
        f"spread of {table.qualified}", f"SELECT {quote_text(name)}::regclass; -- its rows are where they belong\n"
    )


def without(config: Config, names: Collection[str]) -> Config:
    """The configuration as if it did not declare these tables; triggers keep their places."""
    if not names:
        return config
    left = tuple(table for table in config.tables if qualified(table.name) not in names)
    return msgspec.structs.replace(config, tables=left)


async def read_plain(connection: Connection, config: Config) -> set[str]:
    """Declared tables that are not spread yet, as the first shard knows; nothing where there is no other shard."""
    if len(config.shards) == 1 or not config.tables or not await connection.fetchval(HAS_APPLIED):
        return set()
    rows = await connection.fetch(PLAIN, [qualified(table.name) for table in config.tables])
    return {row["name"] for row in rows}


async def find_movings(
    config: Config,
    catalog: Catalog,
    applied: Collection[str],
    shards: Sequence[tuple[Connection, Facts]],
    owners: Sequence[int],
) -> tuple[list[Moving], list[str]]:
    """The tables that have to be spread, and problems that keep them from it."""
    if len(config.shards) == 1:
        return [], []
    found: dict[str, Moving] = {}
    problems: list[str] = []
    await _make_buckets(shards[0][0])
    try:
        unmarked = _unmarked(catalog, applied)
        for table in unmarked:
            lacking = tuple(
                index for index, (_, facts) in enumerate(shards) if table.qualified not in facts.tables
            )  # fmt: skip
            if table.kind is TableKind.REFERENCE:
                moving, problem = await _reference(table, shards, lacking)
            else:
                old = [each for each in catalog.tables.values() if each not in unmarked]
                moving, problem = await _sharded(catalog, table, shards[0][0], owners, (lacking, old))
            problems += [f"{config.path}: tables.{table.qualified}: {problem}"] if problem else []
            if moving is not None:
                found[table.qualified] = moving
    finally:
        await shards[0][0].execute("ROLLBACK TO spread; RELEASE spread")
    moved = [moving for moving in found.values() if moving.lacking or any(index for index in moving.rows)]
    names = {moving.table.qualified for moving in moved}
    while True:  # what lives with a table that is not there is not there either
        below = [
            moving for name, moving in found.items()
            if name not in names and moving.table.parent in names
        ]  # fmt: skip
        if not below:
            break
        names |= {moving.table.qualified for moving in below}
    return [found[name] for name in found if name in names], problems


def _unmarked(catalog: Catalog, applied: Collection[str]) -> list[Table]:
    """Tables of which nothing says that they are spread."""
    return [
        table
        for name, table in catalog.tables.items()
        if not {
            f"spread of {name}",
            f"generated key of {name}",
            bucket_index_object(table),
            f"outcome trigger for insert on {name}",
        }.intersection(applied)
    ]


def units_of(catalog: Catalog, facts: Facts, movings: Iterable[Moving]) -> list[Unit]:
    """What is spread together, in order: reference tables, then groups; each after what it references."""
    known = {moving.table.qualified: moving for moving in movings}
    graph = {name: _references(facts, moving.table, known) for name, moving in known.items()}
    try:
        order = list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError:
        order = list(known)
    units: dict[str, list[Moving]] = {}
    for name in sorted(order, key=lambda each: known[each].table.kind is not TableKind.REFERENCE):
        table = known[name].table
        group = name if table.kind is TableKind.REFERENCE else catalog.root_of(table).qualified
        units.setdefault(group, []).append(known[name])
    return [Unit(movings=tuple(unit)) for unit in units.values()]


def _references(facts: Facts, table: Table, known: Collection[str]) -> set[str]:
    targets = {key.target for key in facts.foreign_keys if key.table == table.qualified}
    return {name for name in {*targets, table.parent} if name in known and name != table.qualified and name is not None}


async def _make_buckets(connection: Connection) -> None:
    """What counts buckets, behind a savepoint: on a shard that was never applied it is not there yet."""
    await connection.execute("SAVEPOINT spread")
    if not await connection.fetchval("SELECT to_regprocedure('foreshard.bucket_of(bigint)') IS NOT NULL"):
        await connection.execute(SCHEMA.sql)
        for step in bucket_of_steps():
            await connection.execute(step.sql)


async def _reference(
    table: Table, shards: Sequence[tuple[Connection, Facts]], lacking: tuple[int, ...]
) -> tuple[Moving | None, str]:
    sql = f"SELECT count(*) AS rows, coalesce(sum(pg_column_size(held)), 0) AS bytes FROM {quote_table(table)} AS held"
    first, *others = [
        await connection.fetchrow(sql) if index not in lacking else None
        for index, (connection, _) in enumerate(shards)
    ]  # fmt: skip
    assert first is not None
    empty = [index for index, row in enumerate(others, 1) if row is None or not row["rows"]]
    if not lacking and not (first["rows"] and empty):
        return None, ""
    for index, row in enumerate(others, 1):
        if index not in empty:
            assert row is not None
            problem = (
                f"shard {shards[index][1].shard} has {row['rows']} rows of its own: empty it there, or on the first"
            )
            return None, problem
    return Moving(
        table=table,
        rows={index: first["rows"] for index in empty if first["rows"]},
        bytes={index: first["bytes"] for index in empty if first["rows"]},
        lacking=lacking,
    ), ""


async def _sharded(
    catalog: Catalog,
    table: Table,
    connection: Connection,
    owners: Sequence[int],
    place: tuple[tuple[int, ...], list[Table]],
) -> tuple[Moving | None, str]:
    lacking, old = place
    shard = shard_sql(catalog, table, owners)
    rows = await connection.fetch(
        f"SELECT {shard} AS shard, count(*) AS rows, sum(pg_column_size(held)) AS bytes, "
        f"count(*) FILTER (WHERE {is_placed_sql(table)}) AS placed FROM {quote_table(table)} AS held GROUP BY 1"
    )
    homeless = sum(row["rows"] for row in rows if row["shard"] is None)
    if homeless:
        columns = ", ".join(table.routing_columns)
        return None, f"{homeless} rows have no {columns}, which says where a row lives: give them one, or delete them"
    placed = sum(row["placed"] for row in rows)
    if placed and lacking:
        return None, f"{placed} rows have keys that Foreshard keeps for those it generates: give those rows other keys"
    if placed:
        return None, ""  # refused with its reason where rows are checked
    root = catalog.root_of(table)
    parent = catalog.tables.get(table.parent or "")
    if parent in old and rows and (root.by_cost or looks_further(catalog, table)):
        problem = f"its rows would have to follow those of {parent.qualified}, which are spread already and do not all "
        return None, f"{problem}say where they are by their keys: empty it, and insert them through Foreshard"
    return Moving(
        table=table,
        rows={row["shard"]: row["rows"] for row in rows},
        bytes={row["shard"]: int(row["bytes"]) for row in rows},
        lacking=lacking,
    ), ""


def is_placed_sql(table: Table) -> str:
    """An SQL condition over `held`: its key is one that only Foreshard makes."""
    # A root's uuid of version 8 may be the client's: it names its bucket all the same. A child's would name another.
    own_key = f"held.{quote_name(table.key)}"
    if table.type_of(table.key) is KeyType.TYPE_INT8:
        return f"{own_key} >= {PLACED_FLAG} AND {own_key} < {2 * PLACED_FLAG}"
    if table.type_of(table.key) is KeyType.TYPE_UUID and table.kind is TableKind.CHILD:
        return UUID_NAMES_BUCKET.replace("key", own_key)
    return "false"


def own_bucket_sql(table: Table) -> str:
    """The bucket that the routing columns of `held` name, without foreshard.bucket_of, which may not be there yet."""
    if len(table.routing_columns) > 1:
        return chained_bucket_sql(table, table.routing_columns, "held")
    key_type = table.type_of(table.routing_column)
    assert key_type is not None
    held = f"held.{quote_name(table.routing_column)}"
    return re.sub(r"\bkey\b", lambda match: held, bucket_sql(key_type))


def shard_sql(catalog: Catalog, table: Table, owners: Sequence[int]) -> str:
    """The shard that a row `held` of a table that is not spread yet belongs to; NULL where nothing says it."""
    listed = ",".join(map(str, owners))
    bucket = bucket_of_row(table, "held")
    if table.kind is TableKind.CHILD and looks_further(catalog, table):
        bucket = bucket_of_child(_at_home(catalog), table, "held")
    return f"('{{{listed}}}'::integer[])[1 + {bucket}]"


def _at_home(catalog: Catalog) -> Catalog:
    """The catalog with every row at home, as rows are that Foreshard has not placed."""
    tables = {name: msgspec.structs.replace(table, by_cost=False) for name, table in catalog.tables.items()}
    return msgspec.structs.replace(catalog, tables=tables)
