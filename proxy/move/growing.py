"""Takes a shard into a deployment that is being used.

    make: schema, our own objects, declared tables, all empty -> committed there; nobody knows of it
    copy: the rows of reference tables, in a transaction there; nobody waits
    join: routers hold statements back (schema_barrier), reference tables are locked, what has changed is copied again;
          that transaction and the list of shards are committed together

1. The new shard owns no bucket: until moves bring some, nothing is read or written there but reference tables.
2. Killed before the decision the deployment is as it was, and the same command goes on; behind it, it has the shard.
3. No schema changes meanwhile: the lock of DDL is held on every shard.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence

import asyncpg
import msgspec

from foreshard.proxy.catalog import Catalog, Table, TableKind
from foreshard.proxy.config import Config, ShardConfig
from foreshard.proxy.control.commit_over import commit_over
from foreshard.proxy.control.connect import connected, control_dsn, described
from foreshard.proxy.control.derive import build_catalog, compare_shards
from foreshard.proxy.control.facts import Facts
from foreshard.proxy.control.introspect import Connection, introspect
from foreshard.proxy.control.opened import APPLY_LOCK, Work, opened
from foreshard.proxy.control.pipe import pipe
from foreshard.proxy.control.plan import DATABASE_IDENTITY, run_schema_file
from foreshard.proxy.control.query_node import make_query_node, plan_query_node
from foreshard.proxy.control.schema_barrier import take_barrier_with
from foreshard.proxy.control.schema_control import read_cluster
from foreshard.proxy.control.schema_shard import shard_steps
from foreshard.proxy.control.spread import CAN_PREPARE, CHANNEL, LOCK_SEED, end_left
from foreshard.proxy.control.spread_facts import read_plain, without
from foreshard.proxy.control.spread_table import Unlike, read_structure
from foreshard.proxy.control.steps import find_lacking, record_steps, run_steps
from foreshard.proxy.errors import ConfigError, ForeshardError, SqlError
from foreshard.proxy.move.movable import Movable, of_table
from foreshard.proxy.move.rows import SETTINGS, moving_tables
from foreshard.proxy.routing.ddl import LOCK
from foreshard.proxy.triggers.capture import quote_name, quote_table
from foreshard.proxy.triggers.points import control_point

POINTS = ("shards-prepared", "shards-decided", "shards-finished")
LOCK_TIMEOUT = "200ms"  # of the last step, for reference tables: every statement of every client waits meanwhile
TRIES_MAX = 20
PAUSE_S = 0.5  # between tries; chosen, not measured
LOCK_DDL = f"SELECT pg_advisory_xact_lock(hashtextextended('{LOCK.decode()}', {LOCK_SEED}))"
HORIZON = "SELECT pg_snapshot_xmin(pg_current_snapshot())::text"
IDENTITY = "SELECT name, index, cluster FROM foreshard.shard_info"
TAKEN_IN = "SELECT name FROM foreshard.claim_set WHERE is_taken_in"
TELL_WHERE = "UPDATE foreshard.shard SET dsn = $2, weight = $3 WHERE index = $1"


class Copied(msgspec.Struct):
    """A reference table on the new shard: how many rows it had, and whose versions are not older than the horizon."""

    movable: Movable
    rows: int
    horizon: int


async def take_in(config: Config, shard: ShardConfig, say: Callable[[str], None]) -> Config:
    """Take the shard in; the configuration with it. ForeshardError when that cannot be: nothing has changed then."""
    wider = msgspec.structs.replace(config, shards=(*config.shards, shard))
    await _see_another(wider)
    await end_left(wider)
    async with contextlib.AsyncExitStack() as stack:
        works = [await stack.enter_async_context(opened(f"shard {each.name}", each.dsn)) for each in wider.shards]
        growing = await _Growing.begin(wider, works, say)
        await growing.make()
        try:
            await growing.copy()
            await growing.join()
        except asyncpg.PostgresError as error:
            raise ForeshardError(f"shard {shard.name}: {described(error)}; it was not taken in") from error
        finally:
            await growing.end()
    if len(config.shards) > 1:  # what it lacks keeps it from being asked: nothing moves to the new shard unseen
        await make_node(wider)
    return wider


async def _see_another(config: Config) -> None:
    """ConfigError when the new shard's database is another shard's."""
    identities = []
    for shard in config.shards:
        async with connected(f"shard {shard.name}", shard.dsn) as connection:
            identities.append(await connection.fetchval(DATABASE_IDENTITY))
    if identities[-1] in identities[:-1]:
        other = config.shards[identities.index(identities[-1])].name
        raise ConfigError([f"shard {config.shards[-1].name}: its database is that of shard {other}"])


async def make_node(config: Config) -> None:
    """Make the query node for these shards, where there is one."""
    first = config.shards[0]
    async with connected(f"shard {first.name}", first.dsn) as connection, connection.transaction():
        seen = without(config, await read_plain(connection, config))
        catalog = build_catalog(seen, await introspect(connection, seen, first.name))
        work, _ = await plan_query_node(seen, catalog, connection)
    if work is not None:
        await make_query_node(work, lambda line: None)


async def behind_barrier(
    config: Config,
    shards: Sequence[Connection],
    undone: Sequence[Connection],
    step: Callable[[], Awaitable[None]],
    say: Callable[[str], None],
) -> None:
    """Take the last step of a change of the list while no statement is under way, but some that began before.

    What is in the way (SqlError, or a lock that is not to be had) has it undone on the connections `undone`, and tried
    again; ForeshardError when that was in vain.
    """
    for left in range(TRIES_MAX - 1, -1, -1):
        for connection in undone:
            await connection.execute("SAVEPOINT turn")
        try:
            await take_barrier_with(config, shards)
            return await step()
        except (SqlError, asyncpg.LockNotAvailableError) as error:
            reason = error.message if isinstance(error, SqlError) else described(error)
            if not left:
                raise ForeshardError(f"the list of shards is as it was: {reason}") from error
            say(f"somebody is in the way, trying again: {reason}")
        for connection in undone:
            await connection.execute("ROLLBACK TO turn; RELEASE turn")
        await asyncio.sleep(PAUSE_S)


class _Growing:
    """One attempt: a transaction on every shard."""

    def __init__(self, config: Config, works: list[Work], cluster: tuple[str, int], say: Callable[[str], None]) -> None:
        self.config = config  # with the new shard, without tables that are not spread
        self.cluster = cluster
        self.index = len(works) - 1
        self.name = config.shards[-1].name
        self._works = works
        self._first, self._new = works[0].connection, works[-1].connection
        self._say = say
        self._catalog = Catalog()
        self._facts: list[Facts] = []
        self._copied: list[Copied] = []

    @classmethod
    async def begin(cls, config: Config, works: list[Work], say: Callable[[str], None]) -> _Growing:
        """See that the database can be a shard of this deployment, and hold everybody's DDL back."""
        async with connected("control database", control_dsn(config)) as control:
            cluster = await read_cluster(control)
        if cluster is None:
            raise ForeshardError(f"there is no deployment yet: run `foreshard apply -c {config.path}`")
        for work in works:
            if not await work.connection.fetchval(CAN_PREPARE):
                raise ConfigError(
                    [
                        f"{work.name}: transactions over several shards need max_prepared_transactions > 0 there: "
                        "set it, and restart that server"
                    ]
                )
            await work.connection.execute(LOCK_DDL)
        seen = without(config, await read_plain(works[0].connection, config))
        found = cls(seen, works, cluster, say)
        await found._check_identity()
        return found

    async def _check_identity(self) -> None:
        if not await self._new.fetchval("SELECT to_regclass('foreshard.shard_info') IS NOT NULL"):
            return
        row = await self._new.fetchrow(IDENTITY)
        if row is not None and (row["index"], row["cluster"]) != (self.index, self.cluster[0]):
            raise ConfigError(
                [
                    f"shard {self.name}: the database {self._works[-1].place} is or was shard {row['index']} "
                    f"({row['name']}) of {row['cluster']}: drop its schema foreshard and its tables, or take another"
                ]
            )

    # -- make ------------------------------------------------------------------------------------------------------

    async def make(self) -> None:
        """Everything but rows on the new shard, committed there."""
        self._facts = [
            await introspect(work.connection, self.config, shard.name)
            for work, shard in zip(self._works[:-1], self.config.shards, strict=False)
        ]
        self._catalog = build_catalog(self.config, self._facts[0])
        await self._see_applied()
        before = (await introspect(self._new, self.config, self.name)).tables
        await run_schema_file(self.config, self._works[-1])
        made = (await introspect(self._new, self.config, self.name)).tables.keys() - before.keys()
        for table in reversed(self._in_order()):
            if table.qualified in made:  # what the file fills it with the first shard has, or has changed since
                await self._new.execute(f"DELETE FROM {quote_table(table)}")
        bare = without(self.config, {*self._catalog.tables, *self._catalog.pending})
        nothing = Facts(shard=self.name, tables={}, foreign_keys=(), views={}, indexes={}, functions={})
        await self._run_steps(bare, Catalog(), nothing)
        await self._make_tables()
        facts = await introspect(self._new, self.config, self.name)
        compare_shards(self.config, [*self._facts, facts])
        await self._run_steps(self.config, self._catalog, facts)
        await record_steps(self._new, self._works[-1].already_run)
        taken = [row["name"] for row in await self._first.fetch(TAKEN_IN)]
        await self._new.execute("UPDATE foreshard.claim_set SET is_taken_in = true WHERE name = ANY ($1)", taken)
        await self._new.execute("COMMIT")
        control_point("shards-made")
        self._say(f"shard {self.name} has the {len(self._catalog.tables)} declared tables")

    async def _see_applied(self) -> None:
        """What the other shards lack has to be made first, by itself."""
        narrower = msgspec.structs.replace(self.config, shards=self.config.shards[:-1])
        catalog = build_catalog(narrower, self._facts[0])
        for index, (work, facts) in enumerate(zip(self._works[:-1], self._facts, strict=True)):
            steps = shard_steps(narrower, catalog, facts, index, self.cluster)
            lacking = await find_lacking(work.connection, steps)
            if lacking:
                raise ForeshardError(
                    f"{work.name} lacks {lacking[0].object}: run `foreshard apply -c {self.config.path}` first"
                )

    async def _run_steps(self, config: Config, catalog: Catalog, facts: Facts) -> None:
        steps = shard_steps(config, catalog, facts, self.index, self.cluster)
        await run_steps(self._new, await find_lacking(self._new, steps))

    async def _make_tables(self) -> None:
        """The declared tables, as the first shard has them; those that are there must be empty."""
        present = (await introspect(self._new, self.config, self.name)).tables
        structures = []
        for table in self._in_order():
            if table.qualified in present:
                if await self._new.fetchval(f"SELECT EXISTS (SELECT FROM {quote_table(table)})"):
                    raise ConfigError([f"shard {self.name}: {table.qualified} has rows there: empty it, or drop it"])
                continue
            try:
                structures.append(await read_structure(self._first, quote_table(table)))
            except Unlike as error:
                raise ForeshardError(f"{table.qualified}: not on shard {self.name}, and {error}") from None
            for _, there, sql in structures[-1].before_rows:
                if not await self._new.fetchval(f"SELECT {there}"):
                    await self._new.execute(sql)
        for structure in structures:
            for sql in structure.after_rows:
                await self._new.execute(sql)
        for structure in structures:
            for sql in (*structure.foreign_keys, *structure.states):
                await self._new.execute(sql)

    def _in_order(self) -> list[Table]:
        """Reference tables, then parents before children."""
        return [*self._references(), *moving_tables(self._catalog)]

    def _references(self) -> list[Table]:
        return [table for table in self._catalog.tables.values() if table.kind is TableKind.REFERENCE]

    # -- copy ------------------------------------------------------------------------------------------------------

    async def copy(self) -> None:
        """The rows of reference tables, as they are now."""
        await self._new.execute(
            f"BEGIN ISOLATION LEVEL READ COMMITTED; SELECT pg_advisory_xact_lock({APPLY_LOCK}); {SETTINGS}"
        )
        if not self._references():
            return
        source = await self._open_source()
        try:
            horizon = int(await source.fetchval(HORIZON))
            for table in self._references():
                movable = of_table(table, "true")
                rows = await self._copy(source, movable, table)
                self._copied.append(Copied(movable, rows, horizon))
        finally:
            await source.close()
        control_point("shards-copied")
        self._say(f"copied {sum(each.rows for each in self._copied):,} rows of {len(self._copied)} reference tables")

    async def _open_source(self) -> Connection:
        """Another session on the first shard, with a snapshot of its own."""
        source: Connection = await asyncpg.connect(self.config.shards[0].dsn, timeout=10, command_timeout=None)
        await source.execute(f"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; {SETTINGS}")
        return source

    async def _copy(self, source: Connection, movable: Movable, table: Table) -> int:
        """All rows, and see that they are the same."""
        columns = [column.name for column in table.columns if not column.is_generated]
        listed = ", ".join(f"held.{quote_name(name)}" for name in columns)
        query = f"SELECT {listed} FROM {movable.quoted} AS held"
        count = await pipe(source, query, self._new, (table.schema, table.name), columns)
        sql = f"SELECT count(*) AS rows, {movable.digest} AS digest FROM {movable.quoted} AS held"
        one, other = await asyncio.gather(source.fetchrow(sql), self._new.fetchrow(sql))
        if one != other:
            raise ForeshardError(
                f"{table.qualified}: what came to shard {self.name} is not what the first shard has: is the table "
                "defined alike on both?"
            )
        return count

    # -- join ------------------------------------------------------------------------------------------------------

    async def join(self) -> None:
        """The last of it, while no statement is under way; tried again where somebody's transaction is in the way."""
        if self.index == 1:
            await self._make_first_node()
        connections = [work.connection for work in self._works[:-1]]
        undone = (self._first, self._new)
        await behind_barrier(self.config, connections, undone, self._bring_changed, self._say)
        control_point("shards-locked")
        await self._complete()
        first = self.config.shards[0].name
        await commit_over(self.cluster[0], (first, self._first), {self.name: self._new}, POINTS, f"NOTIFY {CHANNEL}; ")
        self._say(f"shard {self.name} is one of the deployment")

    async def _make_first_node(self) -> None:
        """With one shard there was no query node: nobody asks it yet."""
        work, problem = await plan_query_node(self.config, self._catalog, self._first)
        if work is not None:
            await make_query_node(work, self._say)
        elif problem:
            self._say(problem)

    async def _bring_changed(self) -> None:
        """Reference tables that have changed since they were copied are copied again."""
        if not self._copied:
            return
        await self._first.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")
        listed = ", ".join(each.movable.quoted for each in self._copied)
        await self._first.execute(f"LOCK TABLE {listed} IN SHARE MODE")
        changed = [each for each in self._copied if await self._has_changed(each)]
        if not changed:
            return
        source = await self._open_source()
        try:
            for each in reversed(changed):
                await self._new.execute(f"DELETE FROM {each.movable.quoted}")
            for each in changed:
                await self._copy(source, each.movable, self._catalog.tables[each.movable.name])
        finally:
            await source.close()

    async def _has_changed(self, copied: Copied) -> bool:
        is_new = f"((held.xmin::text::bigint - {copied.horizon % 2**32} + {2**32}) % {2**32}) < {2**31}"
        sql = f"SELECT count(*) AS rows, count(*) FILTER (WHERE {is_new}) AS fresh FROM {copied.movable.quoted} AS held"
        row = await self._first.fetchrow(sql)
        return row is None or (row["rows"], row["fresh"]) != (copied.rows, 0)

    async def _complete(self) -> None:
        """What the first shard needs beside the new one: the list, and (the second shard) what reference tables do."""
        steps = shard_steps(self.config, self._catalog, self._facts[0], 0, self.cluster)
        await run_steps(self._first, await find_lacking(self._first, steps))
        new = self.config.shards[-1]
        await self._first.execute(TELL_WHERE, self.index, new.dsn, new.weight)

    async def end(self) -> None:
        """Nothing stays open."""
        for work in self._works:
            if not work.connection.is_closed() and work.connection.is_in_transaction():
                await work.connection.execute("ROLLBACK")
