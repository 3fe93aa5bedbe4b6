"""Compares what configuration asks of the databases with what they have, and makes the difference.

`plan` and `apply` do the same work in one transaction per database, up to the point where `plan` rolls back: run the
user's schema file where it changed, introspect, derive the catalog (or refuse), find the steps that are lacking. So
nothing that `plan` says depends on a database that `apply` would see otherwise.

The control database is written before the shards: a shard that knows its cluster is in the cluster's map.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass, field

import asyncpg
import msgspec

from foreshard._core.buckets import PLACED_FLAG, initial_map
from foreshard._core.two_phase import gid_prefix
from foreshard.proxy.catalog import Catalog, Table, TableKind
from foreshard.proxy.config import Config, qualified
from foreshard.proxy.control.claim_intake import Intake, drop_claims, find_intakes, take_in
from foreshard.proxy.control.claim_sets import claim_names
from foreshard.proxy.control.connect import connected, control_dsn, described
from foreshard.proxy.control.derive import build_catalog, compare_shards, derive_catalog, held_by_one_shard
from foreshard.proxy.control.facts import Facts
from foreshard.proxy.control.introspect import Connection, introspect
from foreshard.proxy.control.key_sql import bucket_index_object
from foreshard.proxy.control.moves import buckets_stay
from foreshard.proxy.control.names import NAMES, local_names
from foreshard.proxy.control.opened import Work, opened
from foreshard.proxy.control.query_node import NodeWork, make_query_node, plan_query_node
from foreshard.proxy.control.schema_control import control_steps, new_cluster_name, read_bucket_map, read_cluster
from foreshard.proxy.control.schema_file import read_schema_file
from foreshard.proxy.control.schema_shard import key_object, shard_steps
from foreshard.proxy.control.shard_list import read_list
from foreshard.proxy.control.spread import end_left, spread
from foreshard.proxy.control.spread_facts import (
    Unit,
    find_movings,
    is_placed_sql,
    own_bucket_sql,
    read_plain,
    units_of,
    without,
)
from foreshard.proxy.control.spread_table import Unlike, read_structure
from foreshard.proxy.control.steps import Step, find_lacking, read_applied, record_steps, run_steps
from foreshard.proxy.errors import ConfigError, ForeshardError
from foreshard.proxy.triggers.capture import quote_table

SCHEMA_FILE = "schema file"
# One text per database: which server process serves it, and its name.
DATABASE_IDENTITY = "SELECT pg_postmaster_start_time()::text || ' ' || current_database()"
IS_PREPARED = """
SELECT EXISTS (SELECT FROM pg_prepared_xacts WHERE database = current_database() AND starts_with(gid, $1))
"""
# Whether the transaction that took the lock is still the one that is open.
HOLDS_LOCK = "SELECT EXISTS (SELECT FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory')"


@dataclass
class Plan:
    """What all databases lack, control database first, and the catalog they will have."""

    works: list[Work]
    catalog: Catalog
    notes: list[str]
    node: NodeWork | None = None
    intakes: list[Intake] = field(default_factory=list)  # claims of rows that are there already
    forgotten: list[str] = field(default_factory=list)  # claim sets that are no longer declared
    units: list[Unit] = field(default_factory=list)  # tables to be spread over the shards, behind all else

    @property
    def all_works(self) -> list[Work | NodeWork]:
        return [*self.works, *([self.node] if self.node else [])]

    @property
    def lacking_count(self) -> int:
        return sum(len(work.all_lacking) for work in self.all_works) + len(self.intakes) + len(self.spread_tables)

    @property
    def spread_tables(self) -> list[str]:
        """Tables that are plain ones until they have been spread."""
        return [name for unit in self.units for name in unit.names]


async def read_catalog(config: Config, version: int = 1) -> Catalog:
    """The catalog as the first shard has it now. ConfigError when it cannot be sharded as declared.

    Tables that are not spread yet are not in it: they are plain ones.
    """
    shard = config.shards[0]
    async with connected(f"shard {shard.name}", shard.dsn) as connection:
        config = without(config, await read_plain(connection, config))
        facts = await introspect(connection, config, shard.name)
    build_catalog(config, facts)
    names = []
    for each in config.shards:
        try:
            async with connected(f"shard {each.name}", each.dsn) as connection:
                names.append(await connection.fetchval(NAMES))
        except ForeshardError:
            if each is shard or each is config.shards[0]:
                raise  # of any other that is down nothing is known: what changes the schema asks it, and fails
    return msgspec.structs.replace(derive_catalog(config, facts, version), local=local_names(names))


async def read_owners(config: Config) -> list[int]:
    """The shard index that owns each bucket, from the control database."""
    async with connected("control database", control_dsn(config)) as connection:
        return await read_bucket_map(connection)


async def list_lacking(config: Config) -> list[str]:
    """One line for each object that a database lacks; empty when `apply` has been run for this configuration."""
    async with planned(config) as plan:
        steps = [f"{work.name}: {step.object}" for work in plan.all_works for step in work.all_lacking]
        steps += [f"all shards: {intake.object}" for intake in plan.intakes]
        return [*steps, *(f"all shards: {moving.object}" for unit in plan.units for moving in unit.movings)]


async def is_applied(config: Config, left_out: Collection[str] = ()) -> bool:
    """Whether control database and shards have what the configuration asks for. ConfigError when that cannot be.

    Shards that are `left_out` are not asked; the first one always is.

    The query node may lag behind: the controller keeps it current, and reads that it cannot answer are refused. Tables
    that have not been spread yet are served as the plain tables that they are.
    """
    async with planned(config, left_out) as plan:
        return not plan.intakes and not any(work.all_lacking for work in plan.works)


async def apply(config: Config, say: Callable[[str], None] = lambda line: None) -> int:
    """Make what is lacking, one transaction per database; the number of objects made. `say` hears of the progress.

    Tables are spread when all else is there, each unit in one transaction over all shards; then what these lack.
    """
    async with planned(config) as plan:
        await _apply_plan(config, plan, say)
    for unit in plan.units:
        async with buckets_stay(config):
            await spread(config, unit.names, say)
    if plan.units:
        async with planned(config) as rest:
            await _apply_plan(config, rest, say)
    return plan.lacking_count


async def _apply_plan(config: Config, plan: Plan, say: Callable[[str], None]) -> None:
    for number, work in enumerate(plan.all_works, 1):
        count = len(work.all_lacking)
        say(
            f"[{number}/{len(plan.all_works)}] {work.name} ({work.place}): "
            + (f"{count} objects" if count else "nothing")
        )
        try:
            await _carry_out(work, say)
        except asyncpg.PostgresError as error:
            raise ForeshardError(
                f"{work.name} ({work.place}): {described(error)}; nothing was changed there"
            ) from error
    if plan.forgotten:
        await drop_claims(config, plan.forgotten)
    if plan.intakes:
        async with buckets_stay(config):
            await take_in(config, plan.intakes, await read_owners(config), say)


async def _carry_out(work: Work | NodeWork, say: Callable[[str], None]) -> None:
    """Make what a database lacks, and commit."""
    if isinstance(work, NodeWork):
        return await make_query_node(work, say)
    await run_steps(work.connection, work.lacking)
    await record_steps(work.connection, work.already_run)
    await work.connection.execute("COMMIT")


@contextlib.asynccontextmanager
async def planned(config: Config, left_out: Collection[str] = ()) -> AsyncIterator[Plan]:
    """The plan, with a transaction open on every database; what the caller does not commit is rolled back.

    A plan with shards `left_out` tells what the others lack, and is not one to carry out.
    """
    asked = [(index, shard) for index, shard in enumerate(config.shards) if shard.name not in left_out]
    await end_left(config, left_out)
    async with contextlib.AsyncExitStack() as stack:
        shards = [await stack.enter_async_context(opened(f"shard {shard.name}", shard.dsn)) for _, shard in asked]
        for work, (_, shard) in zip(shards, asked, strict=True):
            await run_schema_file(config, work)
            work.facts = await introspect(work.connection, config, shard.name)
        whole = build_catalog(config, _facts(shards[0]))
        control = await _control_work(stack, config, shards)
        cluster = await _plan_control(config, control, shards[0].connection)
        owners = await _known_map(config, control)
        units = await _find_units(config, whole, shards, owners)
        declared, config = config, without(config, {name for unit in units for name in unit.names})
        compare_shards(declared, [_facts(work) for work in shards], {name for unit in units for name in unit.names})
        if config is not declared:
            for work, (_, shard) in zip(shards, asked, strict=True):
                work.facts = await introspect(work.connection, config, shard.name)
        catalog = build_catalog(config, _facts(shards[0]))
        for work, (index, _) in zip(shards, asked, strict=True):
            if await _check_identity(config, work, index, cluster[0]):
                await _check_names(config, index, shards, cluster[0])
            _check_stray(config, _facts(work))
            await _check_rows(config, catalog, work, index, owners)
            steps = shard_steps(config, catalog, _facts(work), index, cluster)
            known = {step.object for step in work.lacking}  # as control database it lacks some of them too
            lacking = await find_lacking(work.connection, steps)
            work.lacking += [step for step in lacking if step.object not in known]
        lacks = [(work.connection, {step.object for step in work.lacking}) for work in shards]
        node, problem = await plan_query_node(config, catalog, shards[0].connection)
        yield Plan(
            [control, *(work for work in shards if work is not control)],
            whole,
            [*_notes(config, catalog, _facts(shards[0])), *([problem] if problem else [])],
            node,
            await find_intakes(catalog, lacks),
            sorted({name for work in shards for name in _facts(work).claim_sets} - claim_names(catalog)),
            units,
        )


async def _known_map(config: Config, control: Work) -> list[int]:
    """The owners of the buckets: as they are, or as they will be first."""
    if await control.connection.fetchval("SELECT to_regclass('foreshard.bucket_map') IS NOT NULL"):
        return await read_bucket_map(control.connection)
    return initial_map(len(config.shards))


async def _find_units(config: Config, catalog: Catalog, shards: list[Work], owners: list[int]) -> list[Unit]:
    """The tables that are plain ones of the first shard still; refuses those that cannot be spread."""
    applied = await read_applied(shards[0].connection)
    seen = [(work.connection, _facts(work)) for work in shards]
    movings, problems = await find_movings(config, catalog, applied, seen, owners)
    for moving in movings:
        if moving.lacking:
            try:
                await read_structure(shards[0].connection, quote_table(moving.table))
            except Unlike as error:
                problems.append(f"{config.path}: tables.{moving.table.qualified}: not on every shard, and {error}")
    if problems:
        raise ConfigError(problems)
    return units_of(catalog, _facts(shards[0]), movings)


async def _control_work(stack: contextlib.AsyncExitStack, config: Config, shards: list[Work]) -> Work:
    """The shard that is the control database too, or a transaction on a database of its own.

    Never two transactions on one database: the second would not see what the first made, and wait for its locks.
    """
    found = shards[0]
    if config.control is not None:
        async with connected("control database", config.control) as connection:
            identity = await connection.fetchval(DATABASE_IDENTITY)
        same = [work for work in shards if await work.connection.fetchval(DATABASE_IDENTITY) == identity]
        if not same:
            return await stack.enter_async_context(opened("control database", config.control))
        found = same[0]
    found.name += ", control database"
    return found


async def run_schema_file(config: Config, work: Work) -> None:
    """Run the user's schema file when its text is not the one that was applied last."""
    if config.schema is None:
        return
    step = Step(SCHEMA_FILE, read_schema_file(config.schema))
    if (await read_applied(work.connection)).get(SCHEMA_FILE) == step.digest:
        return
    try:
        await work.connection.execute(step.sql)
    except asyncpg.PostgresError as error:
        raise ForeshardError(f"{config.schema}: {work.name}: {described(error)}") from error
    if not await work.connection.fetchval(HOLDS_LOCK):
        raise ConfigError([f"{config.schema}: ended the transaction that it ran in"])
    await work.connection.execute("RESET search_path; RESET ROLE")
    work.already_run.append(step)


async def _plan_control(config: Config, control: Work, first: Connection) -> tuple[str, int]:
    """Find what the control database lacks; the cluster. Refuses another number of shards than it has."""
    known = await read_cluster(control.connection)
    if known is not None:
        count = len(await read_list(first)) or known[1]
        if count != len(config.shards):
            raise ConfigError(
                [
                    f"{config.path}: shards: the deployment has {count} shards, the configuration "
                    f"{len(config.shards)}: rows lie where the bucket map says; restore the list of shards. "
                    "`foreshard shards` adds and removes them"
                ]
            )
    cluster = known or (new_cluster_name(), len(config.shards))
    control.lacking += await find_lacking(control.connection, control_steps(*cluster))
    return cluster


async def _check_identity(config: Config, work: Work, index: int, cluster: str) -> bool:
    """Refuse a database that is another shard, or one of another cluster; whether the shard has a new name."""
    if not await work.connection.fetchval("SELECT to_regclass('foreshard.shard_info') IS NOT NULL"):
        return False
    row = await work.connection.fetchrow("SELECT name, index, cluster FROM foreshard.shard_info")
    if row is None:
        return False
    place = f"{config.path}: shards[{index}]: the database {work.place}"
    if row["cluster"] != cluster:
        raise ConfigError(
            [
                f"{place} belongs to the cluster {row['cluster']}, the control database to {cluster}: "
                "check `dsn` and `control`"
            ]
        )
    if row["index"] != index:
        raise ConfigError(
            [
                f"{place} is shard {row['index']} ({row['name']}) of the cluster, not {index}: "
                "restore the order of `shards`"
            ]
        )
    return bool(row["name"] != config.shards[index].name)


async def _check_names(config: Config, index: int, shards: list[Work], cluster: str) -> None:
    """Refuse a new name for a shard while transactions are prepared that may name it by the old one."""
    for work in shards:
        if await work.connection.fetchval(IS_PREPARED, gid_prefix(cluster)):
            raise ConfigError(
                [
                    f"{config.path}: shards[{index}]: {config.shards[index].name} is a new name, and transactions over "
                    f"several shards are prepared on {work.place}, which may name it by the old one: restore that "
                    "until a controller has ended them (SHOW TWO_PHASE)"
                ]
            )


def _check_stray(config: Config, facts: Facts) -> None:
    """Refuse to leave a table whose keys are placed, but which is no longer declared."""
    for stray in facts.stray:
        placed = [source.default for source in stray.sources.values() if source.default.startswith("foreshard.")]
        if placed:
            raise ConfigError(
                [
                    f"{config.path}: tables: {stray.qualified} on shard {facts.shard} is sharded, but no longer "
                    "declared: its rows would be found on the first shard only; declare it again"
                ]
            )


async def _check_rows(config: Config, catalog: Catalog, work: Work, index: int, owners: list[int]) -> None:
    """Before a table is taken in: its rows must lie where their keys, or their parents', say."""
    applied = await read_applied(work.connection)
    for table in catalog.tables.values():
        if table.kind is TableKind.REFERENCE or key_object(table) in applied or bucket_index_object(table) in applied:
            continue
        row = await work.connection.fetchrow(_row_check(table), owners, index)
        assert row is not None
        place = f"{config.path}: tables.{table.qualified}: shard {config.shards[index].name} has {{}} rows"
        if row["placed"]:
            raise ConfigError(
                [
                    place.format(row["placed"])
                    + f" with keys from {PLACED_FLAG} to {2 * PLACED_FLAG - 1}, or uuids of version 8, which "
                    "Foreshard keeps for the keys it generates: give those rows other keys"
                ]
            )
        if row["misplaced"]:
            raise ConfigError(
                [
                    place.format(row["misplaced"])
                    + f" that belong to other shards by their {', '.join(table.routing_columns)}: "
                    "start with the database that holds them as the only shard"
                ]
            )


def _row_check(table: Table) -> str:
    return f"""
    SELECT count(*) FILTER (WHERE {is_placed_sql(table)}) AS placed,
           count(*) FILTER (WHERE ($1::int[])[1 + {own_bucket_sql(table)}] <> $2) AS misplaced
    FROM {quote_table(table)} AS held
    """


def _notes(config: Config, catalog: Catalog, facts: Facts) -> list[str]:
    """What an operator should know although nothing has to be made."""
    notes = []
    for name in catalog.pending:
        notes.append(f"there is no table {name} yet: CREATE TABLE through Foreshard shards it at once")
    for declared in config.tables:
        if qualified(declared.name) not in catalog.tables:
            continue
        table = catalog.tables[qualified(declared.name)]
        if table.parent and (declared.parent is None or declared.via is None):
            notes.append(
                f"{table.qualified} lives with {table.parent} via {', '.join(table.via_columns)}, by its foreign key"
            )
    notes += [f"before a second shard: {line}" for line in held_by_one_shard(config, facts)]
    for kind, readers in (("view or table", facts.views), ("function", facts.functions)):
        for name, read in sorted(readers.items()):
            notes.append(f"{kind} {name} reads {read}: statements that name it are refused")
    return notes


def _facts(work: Work) -> Facts:
    assert work.facts is not None
    return work.facts
