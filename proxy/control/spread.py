"""Spreads filled tables of the first shard over all shards: each unit (a reference table, or the tables of a group
that are new) in one transaction over all of them, so everybody sees the tables as they were, or as they will be.

    lock -> make the tables where they are not -> copy rows -> constraints, indexes, triggers -> delete what has gone
    -> keys, capture, claims (schema_shard) -> PREPARE on all but the first -> decision on the first -> COMMIT PREPARED

The tables are locked on the first shard until the end. Users' triggers do not fire for rows that move. Killed before
the decision, nothing has happened; behind it, `end_left` or any controller's recovery commits the rest. Either way
`apply` goes on where it was, because what is to be done is always read from the shards.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Sequence

import asyncpg

from foreshard._core.buckets import initial_map
from foreshard.proxy.catalog import Catalog, Table, TableKind
from foreshard.proxy.config import Config
from foreshard.proxy.control.commit_over import commit_over
from foreshard.proxy.control.connect import connected, control_dsn, described
from foreshard.proxy.control.derive import build_catalog, compare_shards
from foreshard.proxy.control.facts import Facts
from foreshard.proxy.control.introspect import Connection, introspect
from foreshard.proxy.control.opened import APPLY_LOCK, opened
from foreshard.proxy.control.pipe import pipe
from foreshard.proxy.control.recovery import Recovery
from foreshard.proxy.control.schema_barrier import take_barrier_with
from foreshard.proxy.control.schema_control import read_bucket_map, read_cluster
from foreshard.proxy.control.schema_shard import shard_steps
from foreshard.proxy.control.spread_facts import read_plain, shard_sql, without
from foreshard.proxy.control.spread_table import Structure, Unlike, read_structure
from foreshard.proxy.control.steps import find_lacking, run_steps
from foreshard.proxy.errors import ConfigError, ForeshardError, SqlError
from foreshard.proxy.routing.ddl import LOCK
from foreshard.proxy.triggers.capture import quote_name, quote_table
from foreshard.proxy.triggers.points import control_point

CHANNEL = "foreshard_schema"  # routers listen to it on the first shard
LOCK_SEED = 7  # of the hash that makes a lock of a name: no DDL through Foreshard meanwhile (proxy/wire/session.pyx)
POINTS = ("spread-prepared", "spread-decided", "spread-finished")
END_INTERVAL_S = 0.2  # between tries to end what a killed apply left; chosen, not measured
# Values are copied as text: binary forms hold type oids, which differ between servers.
SETTINGS = (
    "SET LOCAL DateStyle = 'ISO, YMD'; SET LOCAL IntervalStyle = 'postgres'; SET LOCAL bytea_output = 'hex'; "
    "SET LOCAL extra_float_digits = 1; SET LOCAL TimeZone = 'UTC'; SET LOCAL xmloption = 'content'; "
    "SET LOCAL row_security = off; SET LOCAL check_function_bodies = off"
)
CAN_PREPARE = "SELECT current_setting('max_prepared_transactions')::int > 0"
# What an `apply` that died has prepared keeps the lock of whoever plans or applies.
IS_LEFT = f"""
SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND pid IS NULL AND objid = {APPLY_LOCK}
               AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))
"""
USER_TRIGGERS = """
SELECT t.tgrelid::regclass::text AS relation, quote_ident(t.tgname) AS name, t.tgenabled::text AS enabled
FROM pg_trigger t
WHERE t.tgrelid IN (SELECT to_regclass($1) UNION SELECT relid FROM pg_partition_tree(to_regclass($1)))
  AND NOT t.tgisinternal AND t.tgenabled <> 'D'
"""
ENABLING = {"O": "ENABLE", "R": "ENABLE REPLICA", "A": "ENABLE ALWAYS"}


async def end_left(config: Config, left_out: Collection[str] = ()) -> None:
    """End what an `apply` that died has left prepared, as its decision says."""
    recovery = Recovery(config, lambda line: None)
    try:
        while await _is_left(config, left_out):
            await recovery.run_round()
            await asyncio.sleep(END_INTERVAL_S)
    finally:
        recovery.close()


async def _is_left(config: Config, left_out: Collection[str]) -> bool:
    for shard in config.shards if len(config.shards) > 1 else ():
        if shard.name in left_out:
            continue
        async with connected(f"shard {shard.name}", shard.dsn) as connection:
            if await connection.fetchval(IS_LEFT):
                return True
    return False


async def spread(config: Config, names: Sequence[str], say: Callable[[str], None]) -> None:
    """Spread these tables, the referenced ones first. ForeshardError when that cannot be; nothing has changed then."""
    async with contextlib.AsyncExitStack() as stack:
        shards = [
            (await stack.enter_async_context(opened(f"shard {shard.name}", shard.dsn))).connection
            for shard in config.shards
        ]
        spreading = await _Spreading.begin(config, shards, names)
        try:
            moved = await spreading.run()
        except asyncpg.PostgresError as error:
            listed = ", ".join(names)
            raise ForeshardError(f"spreading {listed}: {described(error)}; nothing was changed") from error
        try:
            await take_barrier_with(config, shards)
        except SqlError as error:
            told = "; ".join(part for part in (error.message, error.detail, error.hint) if part)
            raise ForeshardError(f"spreading {', '.join(names)}: {told} (nothing was changed)") from error
        await spreading.commit()
    for name in names:
        told = ", ".join(f"{count} to {config.shards[index].name}" for index, count in sorted(moved[name].items()))
        say(f"spread of {name}: {told or 'no rows had to move'}")


class _Spreading:
    """One unit on its way: a transaction on every shard."""

    def __init__(self, config: Config, catalog: Catalog, facts: list[Facts], shards: list[Connection]) -> None:
        self.config = config  # without the tables that stay plain for now
        self.catalog = catalog
        self.facts = facts
        self.shards = shards
        self.tables: list[Table] = []
        self.owners: list[int] = []
        self.cluster = ("", len(config.shards))  # as read_cluster has it
        self.moved: dict[str, dict[int, int]] = {}

    @classmethod
    async def begin(cls, config: Config, shards: list[Connection], names: Sequence[str]) -> _Spreading:
        """Lock the tables, and look at the shards as they are from then on."""
        for index, connection in enumerate(shards):
            if not await connection.fetchval(CAN_PREPARE):
                raise ConfigError(
                    [
                        f"{config.path}: shards[{index}]: spreading tables is one transaction over all shards, which "
                        "needs max_prepared_transactions > 0 there: set it, and restart that server"
                    ]
                )
            await connection.execute(SETTINGS)
            await connection.execute(f"SELECT pg_advisory_xact_lock(hashtextextended('{LOCK.decode()}', {LOCK_SEED}))")
        listed = ", ".join(".".join(map(quote_name, name.split(".", 1))) for name in names)
        await shards[0].execute(f"LOCK TABLE {listed} IN ACCESS EXCLUSIVE MODE")
        seen = without(config, await read_plain(shards[0], config) - set(names))
        facts = [
            await introspect(connection, seen, shard.name)
            for connection, shard in zip(shards, config.shards, strict=True)
        ]
        found = cls(seen, build_catalog(seen, facts[0]), facts, shards)
        found.tables = [found.catalog.tables[name] for name in names]
        async with connected("control database", control_dsn(config)) as control:
            cluster = await read_cluster(control)
            found.cluster = cluster or found.cluster
            found.owners = await read_bucket_map(control) if cluster else initial_map(len(config.shards))
        return found

    async def run(self) -> dict[str, dict[int, int]]:
        """Everything up to the commit; rows moved by table and shard."""
        made: dict[int, list[Structure]] = {index: [] for index in range(1, len(self.shards))}
        enabling: dict[int, list[str]] = {index: [] for index in range(len(self.shards))}
        for table in self.tables:
            await self._make(table, made, enabling)
            enabling[0] += await _quiet(self.shards[0], table)
        for table in self.tables:
            self.moved[table.qualified] = await self._copy(table)
        for index, structures in made.items():
            for step in (each for kind in range(2) for found in structures for each in _after(found, kind)):
                await self.shards[index].execute(step)
        for table in reversed(self.tables):
            await self._delete(table)
        for index, statements in enabling.items():
            for sql in statements:
                await self.shards[index].execute(sql)
        await self._complete()
        control_point("spread-moved")
        return self.moved

    async def _make(self, table: Table, made: dict[int, list[Structure]], enabling: dict[int, list[str]]) -> None:
        """The table on the shards that have none; where it is, its own triggers keep quiet."""
        lacking = [index for index in made if table.qualified not in self.facts[index].tables]
        for index in made.keys() - set(lacking):
            await self.shards[index].execute(f"LOCK TABLE {quote_table(table)} IN ACCESS EXCLUSIVE MODE")
            enabling[index] += await _quiet(self.shards[index], table)
        if not lacking:
            return
        try:
            structure = await read_structure(self.shards[0], quote_table(table))
        except Unlike as error:
            raise ForeshardError(f"{table.qualified}: not on every shard, and {error}") from None
        for index in lacking:
            for _, there, sql in structure.before_rows:
                if not await self.shards[index].fetchval(f"SELECT {there}"):
                    await self.shards[index].execute(sql)
            made[index].append(structure)

    async def _copy(self, table: Table) -> dict[int, int]:
        """Rows to the shards that are to have them; how many each was given."""
        sources = self.facts[0].tables[table.qualified].sources
        identities = {name for name, source in sources.items() if source.identity}
        columns = [column.name for column in table.columns if not column.is_generated or column.name in identities]
        listed = ", ".join(f"held.{quote_name(name)}" for name in columns)
        moved = {}
        for index in range(1, len(self.shards)):
            condition = f"{shard_sql(self.catalog, table, self.owners)} = {index}"
            if table.kind is TableKind.REFERENCE:
                if await self.shards[index].fetchval(f"SELECT EXISTS (SELECT FROM {quote_table(table)})"):
                    continue
                condition = "true"
            query = f"SELECT {listed} FROM {quote_table(table)} AS held WHERE {condition}"
            count = await pipe(self.shards[0], query, self.shards[index], (table.schema, table.name), columns)
            if count:
                moved[index] = count
        return moved

    async def _delete(self, table: Table) -> None:
        """What has been copied goes from the first shard; as many rows as were copied."""
        if table.kind is TableKind.REFERENCE:
            return
        condition = f"{shard_sql(self.catalog, table, self.owners)} <> 0"
        tag = await self.shards[0].execute(f"DELETE FROM {quote_table(table)} AS held WHERE {condition}")
        copied = sum(self.moved[table.qualified].values())
        if int(tag.split()[-1]) != copied:
            raise ForeshardError(f"{table.qualified}: {copied} rows were copied, {tag.split()[-1]} would go; not done")

    async def _complete(self) -> None:
        """Keys, capture and claims, as `apply` makes them for tables that are spread."""
        self.facts = [
            await introspect(connection, self.config, shard.name)
            for connection, shard in zip(self.shards, self.config.shards, strict=True)
        ]
        compare_shards(self.config, self.facts)
        for index, connection in enumerate(self.shards):
            steps = shard_steps(self.config, self.catalog, self.facts[index], index, self.cluster)
            await run_steps(connection, await find_lacking(connection, steps))

    async def commit(self) -> None:
        """On every shard, or on none; recovery ends what is left when this ends in between."""
        names = [shard.name for shard in self.config.shards]
        others = dict(zip(names[1:], self.shards[1:], strict=True))
        await commit_over(self.cluster[0], (names[0], self.shards[0]), others, POINTS, f"NOTIFY {CHANNEL}; ")


def _after(structure: Structure, kind: int) -> Sequence[str]:
    """What follows the rows: foreign keys and triggers when every table has its keys."""
    return (structure.after_rows, (*structure.foreign_keys, *structure.states))[kind]


async def _quiet(connection: Connection, table: Table) -> list[str]:
    """Keep the user's triggers from firing; the statements that enable them again."""
    name = quote_table(table)
    found = await connection.fetch(USER_TRIGGERS, name)
    if found:
        await connection.execute(f"ALTER TABLE {name} DISABLE TRIGGER USER")
    return [f"ALTER TABLE {row['relation']} {ENABLING[row['enabled']]} TRIGGER {row['name']}" for row in found]
