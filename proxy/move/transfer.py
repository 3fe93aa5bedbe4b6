"""One bucket from one shard to another: all that is in it, and who owns it, in one distributed transaction.

    begin -> [copy -> catch up ...] -> flip -> commit          abandon at any time before the decision: nothing happened

The target's transaction is opened first and decides. A large bucket is copied into it while writers go on (the rows
are invisible until the end), then the changes since, round by round; the flip, for which writers of the bucket have to
wait, brings the last of them. A small bucket has the flip alone.

1. What has changed since a round began is told by row versions: their xmin is not older than everything that ran then.
   Subtransactions, and frozen rows that look young, make that too much, never too little. Rows that have gone are told
   by their keys, when count or hash say that there are any.
2. The source's part takes MOVE_LOCK of the source, and has it until it has ended: nobody who may have written there by
   the map goes on before he knows (control/moves).
3. Rows leave only if as many, of the same hash, have come. Nothing of the bucket may be on the target before.
   Claims at home in the bucket, and notes of rows away in it, go like rows of users' tables (move/movable).
4. Users' triggers, ours and foreign keys keep quiet (session_replication_role); so no function is called.
5. Writers wait for every message that goes to and fro while MOVE_LOCK is held: what can be asked, made or prepared
   before is, and what one message can do is not done by two.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Awaitable
from typing import Any

import asyncpg
import msgspec
from asyncpg.prepared_stmt import PreparedStatement

from foreshard.proxy.catalog import Catalog
from foreshard.proxy.control.commit_over import Commitment
from foreshard.proxy.control.introspect import Connection
from foreshard.proxy.control.pipe import pipe
from foreshard.proxy.control.placing import FREEZE_S, Notice
from foreshard.proxy.errors import ForeshardError
from foreshard.proxy.move.census import Census, census_sql, changed_sql, read_census
from foreshard.proxy.move.events import carry_events
from foreshard.proxy.move.movable import NOT_AS_MANY, PORTABLE_OIDS, Movable, give_up_sql, movables
from foreshard.proxy.move.quiet import quieten
from foreshard.proxy.move.rows import SETTINGS, moving_tables
from foreshard.proxy.move.sequences import raise_behind, raise_early, sequence_names
from foreshard.proxy.triggers.capture import quote_name
from foreshard.proxy.triggers.points import control_point

POINTS = ("move-prepared", "move-decided", "move-finished")
ROUNDS_MAX = 10
ROWS_COUNTED = 2000  # of each table, before the copy
CAUGHT_UP_ROWS = 200  # a round with fewer leaves little enough to the flip; chosen, not measured
# Of each table: the columns that are copied, their types, and how many unique indexes there are.
COPIED = "attrelid = to_regclass(asked.name) AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attnum"
LAYOUT = f"""
SELECT ARRAY(SELECT attname::text FROM pg_attribute WHERE {COPIED}) AS columns,
  ARRAY(SELECT atttypid::bigint FROM pg_attribute WHERE {COPIED}) AS types,
  (SELECT count(*)::integer FROM pg_index WHERE indrelid = to_regclass(asked.name) AND indisunique) AS uniques
FROM unnest($1::text[]) WITH ORDINALITY AS asked(name, place) ORDER BY place
"""
# Few rows that have changed are looked up in a table by its key: nobody has counted them, so a plan may read it all.
LOOKED_UP_MAX = 10_000
LOOK_UP = "SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off; "
LOOK_UP_NO_MORE = "SET LOCAL enable_hashjoin = DEFAULT; SET LOCAL enable_mergejoin = DEFAULT"
BEGIN = f"BEGIN ISOLATION LEVEL READ COMMITTED; {SETTINGS}"  # each statement sees what was committed before it
BEGIN_SNAPSHOT = f"BEGIN ISOLATION LEVEL REPEATABLE READ; {SETTINGS}"
TAKE_OVER = """
UPDATE foreshard.owned_buckets SET buckets = set_bit(buckets, $1, 1), arrivals = arrivals + 1
WHERE get_bit(buckets, $1) = 0
"""


class Busy(Exception):
    """The flip has met somebody's lock, and nothing has happened: it can be tried again."""


class End(msgspec.Struct, frozen=True):
    """One of the two shards, and connections to it that are this transfer's alone."""

    name: str
    index: int
    connection: Connection
    bell: Connection  # another one, to call with while the first waits


class Moved(msgspec.Struct):
    """What has been moved so far."""

    rows: int = 0  # claims and notes among them
    events: int = 0
    rounds: int = 0  # of copying, before the flip
    held_s: float = 0.0  # how long the source's lock was held, or asked for, by the flip that has happened


class Transfer:
    """One attempt at one move. The caller owns the connections and sees to it that nobody begins to use the bucket
    between `flip` and the end of `commit`."""

    def __init__(
        self,
        catalog: Catalog,
        cluster: str,
        bucket: int,
        source: End,
        target: End,
        sequences: list[str] | None = None,
    ) -> None:
        """`sequences` are those of an earlier transfer between the two with the same catalog."""
        self.catalog = catalog
        self.bucket = bucket
        self.moved = Moved()
        self.sequences = sequences  # behind the tables, of both
        self._cluster = cluster
        self._source, self._target = source.connection, target.connection
        self._source_name, self._target_name = source.name, target.name
        self._bell, self._target_index = source.bell, target.index
        self._tables = movables(catalog, bucket)
        self._columns: dict[str, list[str]] = {}
        self._uniques: dict[str, int] = {}  # indexes
        self._portable: set[str] = set()  # tables whose values are copied in binary form
        self._staged: set[str] = set()  # tables that have a stage on the target
        self._locked_s = 0.0
        self._commitment: Commitment | None = None  # once the source has prepared
        self._is_copied = False  # and has been compared
        self._here = Census()  # as the source was when the transfer, or the last round, began
        self._since: dict[str, int] = {}  # by table: rows with older versions are on the target already

    # -- steps ---------------------------------------------------------------------------------------------------

    async def begin(self) -> None:
        """Open the target's transaction, see that nothing is in the way, and bring sequences near."""
        if self.sequences is None:
            self.sequences = await sequence_names(self.catalog, self._source, self._target)
        await together(self._source.execute(BEGIN_SNAPSHOT), self._target.execute(BEGIN))
        asked = census_sql(self._tables, self.bucket, sequences=self.sequences, rows_max=ROWS_COUNTED)
        names = [table.quoted for table in self._tables]
        (ours, self._here), (theirs, there) = await together(
            *(_ask_both(end, LAYOUT, names, asked) for end in (self._source, self._target))
        )
        for table, source, target in zip(self._tables, ours, theirs, strict=True):
            self._columns[table.name], self._uniques[table.name] = source["columns"], target["uniques"]
            types, others = (dict(zip(end["columns"], end["types"], strict=True)) for end in (source, target))
            if types == others and PORTABLE_OIDS.issuperset(types.values()):
                self._portable.add(table.name)
        self._check_owners(self._here, there)
        await raise_early(self._here.last, there.last, self._target)
        for name, strays in there.rows.items():
            if strays:
                raise ForeshardError(
                    f"shard {self._target_name} has {strays} rows of {name} that belong to bucket "
                    f"{self.bucket} of {self._source_name}: `foreshard verify` tells which; the bucket stays"
                )
        control_point("move-begun")

    @property
    def row_count(self) -> int:
        """Rows of the bucket on the source when the transfer began, by which the way of the move is chosen; of each
        table no more than ROWS_COUNTED.
        """
        return self._here.total

    async def copy(self) -> None:
        """Copy the rows as they were when the transfer began, then what has changed since, until little is left;
        writers go on.
        """
        self.moved.rows = await self._pipe_all([table for table in self._tables if self._here.rows[table.name]])
        self._since = dict.fromkeys(self._here.rows, self._here.horizon)
        control_point("move-copied")
        await self.catch_up()

    async def catch_up(self) -> None:
        """What has changed since the last round, until a round brings little; see then that all that was copied is the
        same, before anybody has to wait for it: rows need only be counted in the flip, which brings newer versions.
        """
        for number in range(ROUNDS_MAX):
            come = await self._look_again()
            for table in self._tables:
                if self._here.changed[table.name]:
                    await self._bring(table, come)
            self.moved.rounds += 1
            is_last = sum(self._here.changed.values()) < CAUGHT_UP_ROWS or number == ROUNDS_MAX - 1
            if is_last and come is not None:
                await self._verify(self._here, come)
            self._since = dict.fromkeys(self._here.rows, self._here.horizon)
            if is_last:
                break
        await self._source.execute("ROLLBACK")
        control_point("move-caught-up")

    async def flip(self, patience_s: float = FREEZE_S) -> None:
        """Take what is left, and ownership; the source's part is prepared then, the target's is open.

        Busy when somebody is in the way: the target's part is then as it was before, and may be caught up and flipped
        again. Routers give transactions that have the bucket open so long to end.
        """
        copied = self.moved.rows
        look_here, look_there = await self._prepare_flip()
        staged = set(self._staged)
        self._locked_s = time.monotonic()
        try:
            await quieten(self._source, self._bell, Notice(self.bucket, self._target_index, patience_s), BEGIN)
            control_point("move-locked")
            if self._is_copied:
                held = await self._take_changed(look_here, look_there)
            else:
                held = await self._take_all(look_here, look_there)
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError) as error:
            await self._let_go()
            await self._end(self._source, self._bell)
            await self._target.execute("ROLLBACK TO flip; RELEASE flip")
            self.moved.rows, self._staged = copied, staged
            raise Busy(str(error)) from error
        except asyncpg.PostgresError as error:
            if error.sqlstate == NOT_AS_MANY:
                raise ForeshardError(f"shard {self._source_name}: {error}; not done") from error
            raise
        self.moved.rows = held.total

    async def _prepare(self, held: Census) -> None:
        """Have the rows leave the source, which promises that they will have left."""
        control_point("move-taken")
        target, others = (self._target_name, self._target), {self._source_name: self._source}
        self._commitment = Commitment(self._cluster, target, others, POINTS)
        leave = give_up_sql(self._tables, held.rows, self.bucket)
        await self._commitment.prepare({self._source_name: f"{leave}; "})

    async def commit(self) -> None:
        """On both shards, or on none."""
        assert self._commitment is not None
        await self._commitment.decide()
        self.moved.held_s = time.monotonic() - self._locked_s
        await self._end(self._bell)

    async def abandon(self) -> None:
        """Nothing has happened, if `commit` was not called."""
        await self._let_go()
        await self._end(self._source, self._target, self._bell)

    async def _let_go(self) -> None:
        """The source has promised nothing, unless it has been decided."""
        if self._commitment is not None:
            await self._commitment.undo()

    async def _end(self, *connections: Connection) -> None:
        for connection in connections:
            if not connection.is_closed() and connection.is_in_transaction():
                await connection.execute("ROLLBACK")

    # -- the flip ------------------------------------------------------------------------------------------------

    async def _prepare_flip(self) -> tuple[PreparedStatement, PreparedStatement]:
        """All that can be done before the lock is asked for; what is asked of the source and the target behind it."""
        if self._is_copied:
            await self._make_stages([table for table in self._tables if self._here.rows[table.name]])
        asks = functools.partial(
            census_sql, self._tables, self.bucket, sequences=self.sequences or (), has_digests=not self._is_copied
        )
        here, there = asks(since=self._since or None, has_events=True), asks()
        await together(
            self._source.execute(f"ROLLBACK; {BEGIN}" if self._source.is_in_transaction() else BEGIN),
            self._target.execute("SAVEPOINT flip"),
        )
        looking = self._source if self._is_copied else self._bell  # while the source copies
        look_here, look_there = await together(looking.prepare(here), self._target.prepare(there))
        if await self._target.execute(TAKE_OVER, self.bucket) != "UPDATE 1":
            raise ForeshardError(f"bucket {self.bucket} is of shard {self._target_name} already")
        return look_here, look_there

    async def _take_changed(self, look_here: PreparedStatement, look_there: PreparedStatement) -> Census:
        """What has changed since the last round; what the source has, which is now what the target has."""
        held: Census
        held, come = await together(_ask(look_here), _ask(look_there))
        self._check_source(held)
        await raise_behind(held.last, come.last, self._target)
        await self._take_events(held)
        rows = dict(come.rows)
        for table in reversed(self._tables):
            if held.changed[table.name]:
                rows[table.name] += await self._bring(table)
        if rows != held.rows:
            for table in reversed(self._tables):
                if held.rows[table.name] != rows[table.name]:
                    await self._drop_gone(table)
            self._compare(held, await _ask(look_there))
        await self._prepare(held)
        return held

    async def _take_all(self, look_here: PreparedStatement, look_there: PreparedStatement) -> Census:
        """All of a bucket that was not copied before; what the source had, and has no more."""
        known = [table for table in reversed(self._tables) if self._here.rows[table.name]]
        held: Census
        come: Census
        held, _ = await together(_ask(look_here), self._pipe_all(known))
        self._check_source(held)
        await self._pipe_all([table for table in self._tables if held.rows[table.name] and table not in known])
        await self._take_events(held)
        come, _ = await together(_ask(look_there), self._prepare(held))  # which can be undone
        self._compare(held, come)
        await raise_behind(held.last, come.last, self._target)
        return held

    async def _take_events(self, held: Census) -> None:
        tables = [table for table in moving_tables(self.catalog) if table.qualified in held.told]
        self.moved.events = await carry_events(self.catalog, tables, self.bucket, self._source, self._target)

    # -- rows ----------------------------------------------------------------------------------------------------

    async def _look_again(self) -> Census | None:
        """What has changed on the source since the last round; what the target has, until that was compared."""
        has_digests = not self._is_copied
        asked = census_sql(self._tables, self.bucket, since=self._since, has_digests=has_digests)
        if not has_digests:
            self._here = await _begin_and_ask(self._source, BEGIN_SNAPSHOT, asked)
            return None
        there = census_sql(self._tables, self.bucket, has_digests=True)
        come: Census
        self._here, come = await together(
            _begin_and_ask(self._source, BEGIN_SNAPSHOT, asked), _fetch(self._target, there)
        )
        return come

    async def _verify(self, held: Census, come: Census) -> None:
        """See that what was copied is the same as in the snapshot of the source that is open."""
        gone = [table for table in self._tables if not held.is_alike(come, table.name)]
        if gone:
            for table in reversed(gone):
                await self._drop_gone(table)
            come.update(await _fetch(self._target, census_sql(gone, self.bucket, has_digests=True)))
        self._compare(held, come)
        self._is_copied = True

    def _compare(self, held: Census, come: Census) -> None:
        """See that the target has what the source has."""
        for name, rows in held.rows.items():
            if not held.is_alike(come, name):
                raise ForeshardError(
                    f"{name}: bucket {self.bucket} has {rows} rows on {self._source_name}, {come.rows[name]} came "
                    f"to {self._target_name}, or not the same: is the table defined alike on both? The bucket stays"
                )

    def _rows_sql(self, table: Movable) -> str:
        listed = ", ".join(f"held.{quote_name(name)}" for name in self._columns[table.name])
        return f"SELECT {listed} FROM {table.quoted} AS held WHERE ({table.condition})"

    async def _pipe(self, query: str, table: Movable, into: tuple[str, str] | None = None) -> int:
        place = into or (table.schema, table.table)
        columns, is_binary = self._columns[table.name], table.name in self._portable
        return await pipe(self._source, query, self._target, place, columns, is_binary=is_binary)

    async def _pipe_all(self, tables: list[Movable]) -> int:
        """All rows of these tables."""
        return sum([await self._pipe(self._rows_sql(table), table) for table in tables])

    def _stage(self, table: Movable) -> str:
        return f"foreshard_changed_{self._tables.index(table)}"

    async def _make_stages(self, tables: list[Movable]) -> None:
        """Where rows of these tables come first that have changed."""
        missing = [table for table in tables if table.name not in self._staged]
        if missing:
            await self._target.execute(
                "; ".join(
                    f"CREATE TEMP TABLE IF NOT EXISTS {self._stage(table)} (LIKE {table.quoted}) ON COMMIT DROP"
                    for table in missing
                )
            )
            self._staged.update(table.name for table in missing)

    async def _bring(self, table: Movable, come: Census | None = None) -> int:
        """Rows with versions since the last round, in place of those that the target has; how many more it has then.

        `come` is what the target had, if that is to be kept up to date.
        """
        stage = self._stage(table)
        await self._make_stages([table])
        query = f"{self._rows_sql(table)} AND {changed_sql(self._since[table.name])}"
        count = await self._pipe(query, table, ("pg_temp", stage))
        look_up = LOOK_UP if count <= LOOKED_UP_MAX else ""
        names = ", ".join(map(quote_name, self._columns[table.name]))
        same = " AND ".join(f"held.{key} = changed.{key}" for key in map(quote_name, table.row_key))
        staged = f"SELECT count(*) AS rows, {table.digest} AS digest FROM pg_temp.{stage} AS changed "
        staged += f"JOIN {table.quoted} AS held ON {same}"
        if come is not None:
            await self._target.execute(look_up + "SELECT")
            before = await self._target.fetchrow(staged)
        replaced = await self._target.execute(
            f"{look_up}DELETE FROM {table.quoted} AS held USING pg_temp.{stage} AS changed WHERE {same}"
        )
        gone = 0
        if self._uniques[table.name] > 1:  # what has gone may have had a value that others have now
            await self._target.execute(LOOK_UP_NO_MORE)
            gone = await self._drop_gone(table)
        insert = f"INSERT INTO {table.quoted} ({names}) OVERRIDING SYSTEM VALUE SELECT {names} FROM pg_temp.{stage}"
        clear = f"DELETE FROM pg_temp.{stage}; {LOOK_UP_NO_MORE}"
        if come is None:
            await self._target.execute(f"{insert}; {clear}")
        else:
            await self._target.execute(insert)
            if gone:
                come.update(await _fetch(self._target, census_sql([table], self.bucket, has_digests=True)))
            else:
                come.exchange(table.name, before, await self._target.fetchrow(staged))
            await self._target.execute(clear)
        return count - int(replaced.split()[-1]) - gone

    async def _drop_gone(self, table: Movable) -> int:
        """Rows that were copied and have been deleted since; how many there were."""
        keys = ", ".join(map(quote_name, table.row_key))
        stage = f"foreshard_kept_{self._tables.index(table)}"
        await self._target.execute(
            f"DROP TABLE IF EXISTS pg_temp.{stage}; "
            f"CREATE TEMP TABLE {stage} ON COMMIT DROP AS SELECT {keys} FROM {table.quoted} WHERE false"
        )
        query = f"SELECT {keys} FROM {table.quoted} AS held WHERE {table.condition}"
        await pipe(self._source, query, self._target, ("pg_temp", stage), table.row_key)
        same = " AND ".join(f"kept.{key} = held.{key}" for key in map(quote_name, table.row_key))
        dropped = await self._target.execute(
            f"DELETE FROM {table.quoted} AS held WHERE ({table.condition}) "
            f"AND NOT EXISTS (SELECT FROM pg_temp.{stage} AS kept WHERE {same})"
        )
        return int(dropped.split()[-1])

    def _check_source(self, held: Census) -> None:
        if not held.is_owner:
            raise ForeshardError(f"bucket {self.bucket} is not of shard {self._source_name} any more")

    def _check_owners(self, here: Census, there: Census) -> None:
        self._check_source(here)
        if there.is_owner:
            raise ForeshardError(f"bucket {self.bucket} is of shard {self._target_name} already")


async def together(*asked: Awaitable[Any]) -> list[Any]:
    """What all of them answer; the first error, when all have ended: their connections are of use again."""
    found = await asyncio.gather(*asked, return_exceptions=True)
    for answer in found:
        if isinstance(answer, BaseException):
            raise answer
    return found


async def _ask(look: PreparedStatement) -> Census:
    return read_census(await look.fetch())


async def _fetch(connection: Connection, sql: str) -> Census:
    return read_census(await connection.fetch(sql))


async def _begin_and_ask(connection: Connection, begin: str, sql: str) -> Census:
    """Begin a transaction, in place of one that is open."""
    await connection.execute(f"ROLLBACK; {begin}" if connection.is_in_transaction() else begin)
    return await _fetch(connection, sql)


async def _ask_both(
    connection: Connection, sql: str, names: list[str], census: str
) -> tuple[list[asyncpg.Record], Census]:
    return await connection.fetch(sql, names), await _fetch(connection, census)
