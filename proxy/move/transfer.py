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
"""

from __future__ import annotations

import asyncio
import time

import asyncpg
import msgspec

from foreshard.proxy.catalog import Catalog
from foreshard.proxy.control.commit_over import commit_over
from foreshard.proxy.control.introspect import Connection
from foreshard.proxy.control.pipe import pipe
from foreshard.proxy.control.placing import FREEZE_S, Notice
from foreshard.proxy.errors import ForeshardError
from foreshard.proxy.move.events import carry_events
from foreshard.proxy.move.movable import Movable, movables
from foreshard.proxy.move.quiet import quieten
from foreshard.proxy.move.rows import SETTINGS, moving_tables
from foreshard.proxy.move.sequences import raise_behind, raise_early, sequence_names
from foreshard.proxy.triggers.capture import quote_name
from foreshard.proxy.triggers.points import control_point

LOCK_TIMEOUT_MS = 50  # of a flip, for rows and locks that others have: writers of the bucket wait meanwhile
POINTS = ("move-prepared", "move-decided", "move-finished")
ROUNDS_MAX = 10
CAUGHT_UP_ROWS = 200  # a round with fewer leaves little enough to the flip; chosen, not measured
COLUMNS = """
SELECT attname::text FROM pg_attribute
WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attnum
"""
BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED"  # each statement sees what was committed before it
UNIQUES = "SELECT count(*)::integer FROM pg_index WHERE indrelid = to_regclass($1) AND indisunique"
BEGIN_SNAPSHOT = "BEGIN ISOLATION LEVEL REPEATABLE READ"
HORIZON = "SELECT pg_snapshot_xmin(pg_current_snapshot())::text"
OWNS = "SELECT get_bit(buckets, $1) = 1 FROM foreshard.owned_buckets"
GIVE_UP = "UPDATE foreshard.owned_buckets SET buckets = set_bit(buckets, $1, 0), moves = moves + 1"
TAKE_OVER = "UPDATE foreshard.owned_buckets SET buckets = set_bit(buckets, $1, 1), arrivals = arrivals + 1"


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

    def __init__(self, catalog: Catalog, cluster: str, bucket: int, source: End, target: End) -> None:
        self.catalog = catalog
        self.bucket = bucket
        self.moved = Moved()
        self._cluster = cluster
        self._source, self._target = source.connection, target.connection
        self._source_name, self._target_name = source.name, target.name
        self._bell, self._target_index = source.bell, target.index
        self._tables = movables(catalog, bucket)
        self._columns: dict[str, list[str]] = {}
        self._uniques: dict[str, int] = {}  # indexes
        self._locked_s = 0.0
        self._is_copied = False  # and has been compared
        self._sequences: list[str] = []  # of both
        self._since: dict[str, int] = {}  # by table: rows with older versions are on the target already

    # -- steps ---------------------------------------------------------------------------------------------------

    async def begin(self) -> None:
        """Open the target's transaction, see that nothing is in the way, and bring sequences near."""
        await self._check_owners()
        for table in self._tables:
            rows = await self._source.fetch(COLUMNS, table.quoted)
            self._columns[table.name] = [row["attname"] for row in rows]
            self._uniques[table.name] = await self._target.fetchval(UNIQUES, table.quoted)
        self._sequences = await sequence_names(self.catalog, self._source, self._target)
        await raise_early(self._sequences, self._source, self._target)
        await self._target.execute(f"{BEGIN}; {SETTINGS}")
        for name, (strays, _) in (await self._digests(self._target)).items():
            if strays:
                raise ForeshardError(
                    f"shard {self._target_name} has {strays} rows of {name} that belong to bucket "
                    f"{self.bucket} of {self._source_name}: `foreshard verify` tells which; the bucket stays"
                )
        control_point("move-begun")

    async def count_rows(self) -> int:
        """Rows of the bucket on the source, by which the way of the move is chosen."""
        await self._source.execute(f"{BEGIN}; {SETTINGS}")
        try:
            return sum(rows for rows, _ in (await self._digests(self._source)).values())
        finally:
            await self._source.execute("ROLLBACK")

    async def copy(self) -> None:
        """Copy the rows, then what has changed since, until little is left; writers go on."""
        for table in self._tables:
            self.moved.rows += await self._copy_table(table)
        control_point("move-copied")
        await self.catch_up()
        await self._verify()

    async def catch_up(self) -> None:
        """What has changed since the last round, until a round brings little."""
        for _ in range(ROUNDS_MAX):
            changed = sum([await self._catch_up(table) for table in self._tables])
            self.moved.rounds += 1
            if changed < CAUGHT_UP_ROWS:
                break
        control_point("move-caught-up")

    async def flip(self, patience_s: float = FREEZE_S) -> None:
        """Take what is left, and ownership; both transactions are open then.

        Busy when somebody is in the way: the target's part is then as it was before, and may be caught up and flipped
        again. Routers give transactions that have the bucket open so long to end.
        """
        copied = self.moved.rows
        await self._target.execute("SAVEPOINT flip")
        self._locked_s = time.monotonic()
        try:
            await self._source.execute(f"{BEGIN}; {SETTINGS}")
            await quieten(self._source, self._bell, Notice(self.bucket, self._target_index, patience_s))
            await self._source.execute(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}")
            control_point("move-locked")
            await self._check_owners()
            await raise_behind(self._sequences, self._source, self._target)
            self.moved.events = await carry_events(
                self.catalog, moving_tables(self.catalog), self.bucket, self._source, self._target
            )
            held = await self._digests(self._source, self._is_copied)
            for table in reversed(self._tables):
                if held[table.name][0] or table.name in self._since:
                    await self._take_rest(table)
            held = await self._compare()
            for table in reversed(self._tables):  # those that others are asked for go after these
                if held[table.name][0]:
                    await self._drop_rows(table, held[table.name][0])
            await self._source.execute(GIVE_UP, self.bucket)
            await self._target.execute(TAKE_OVER, self.bucket)
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError) as error:
            await self._source.execute("ROLLBACK")
            await self._target.execute("ROLLBACK TO flip; RELEASE flip")
            self.moved.rows = copied
            raise Busy(str(error)) from error
        control_point("move-taken")

    async def commit(self) -> None:
        """On both shards, or on none."""
        target = (self._target_name, self._target)
        await commit_over(self._cluster, target, {self._source_name: self._source}, POINTS)
        self.moved.held_s = time.monotonic() - self._locked_s

    async def abandon(self) -> None:
        """Nothing has happened."""
        for connection in (self._source, self._target):
            if not connection.is_closed() and connection.is_in_transaction():
                await connection.execute("ROLLBACK")

    # -- rows ----------------------------------------------------------------------------------------------------

    async def _verify(self) -> None:
        """See that what was copied is the same, before anybody has to wait for it: then rows need only be counted in
        the flip, for it brings every row with a newer version.
        """
        await self._source.execute(f"{BEGIN_SNAPSHOT}; {SETTINGS}")
        try:
            horizon = int(await self._source.fetchval(HORIZON))
            for table in self._tables:
                await self._bring(table, self._since[table.name])
            await self._compare()
        finally:
            if not self._source.is_closed():
                await self._source.execute("ROLLBACK")
        self._since = {table.name: horizon for table in self._tables}
        self._is_copied = True

    async def _both_digests(self, only_counts: bool) -> tuple[dict[str, tuple[int, str]], dict[str, tuple[int, str]]]:
        one, other = await asyncio.gather(
            self._digests(self._source, only_counts), self._digests(self._target, only_counts)
        )
        return one, other

    async def _digests(self, connection: Connection, only_counts: bool = False) -> dict[str, tuple[int, str]]:
        """Rows of the bucket, and what tells them from others, by table."""
        sql = " UNION ALL ".join(f"({table.count_sql if only_counts else table.digest_sql})" for table in self._tables)
        found = await connection.fetch(f"SELECT * FROM ({sql}) AS digests")
        return {row["name"]: (row["rows"], row["digest"]) for row in found}

    def _rows_sql(self, table: Movable) -> str:
        listed = ", ".join(f"held.{quote_name(name)}" for name in self._columns[table.name])
        return f"SELECT {listed} FROM {table.quoted} AS held WHERE ({table.condition})"

    async def _pipe(self, query: str, table: Movable, into: tuple[str, str] | None = None) -> int:
        place = into or (table.schema, table.table)
        return await pipe(self._source, query, self._target, place, self._columns[table.name])

    async def _copy_table(self, table: Movable) -> int:
        """All rows of the bucket."""
        async with self._snapshot(table):
            return await self._pipe(self._rows_sql(table), table)

    async def _catch_up(self, table: Movable) -> int:
        """What has changed since the table's last round."""
        since = self._since[table.name]
        async with self._snapshot(table):
            return await self._bring(table, since)

    async def _bring(self, table: Movable, since: int) -> int:
        """Rows with versions since then, in place of those that the target has."""
        stage = f"foreshard_changed_{self._tables.index(table)}"
        await self._target.execute(
            f"CREATE TEMP TABLE IF NOT EXISTS {stage} (LIKE {table.quoted}) ON COMMIT DROP; TRUNCATE pg_temp.{stage}"
        )
        is_new = f"((held.xmin::text::bigint - {since % 2**32} + {2**32}) % {2**32}) < {2**31}"
        count = await self._pipe(f"{self._rows_sql(table)} AND {is_new}", table, ("pg_temp", stage))
        if count:
            names = ", ".join(map(quote_name, self._columns[table.name]))
            same = " AND ".join(f"held.{key} = changed.{key}" for key in map(quote_name, table.row_key))
            await self._target.execute(
                f"DELETE FROM {table.quoted} AS held USING pg_temp.{stage} AS changed WHERE {same}"
            )
            if self._uniques[table.name] > 1:  # what has gone may have had a value that others have now
                await self._drop_gone(table)
            await self._target.execute(
                f"INSERT INTO {table.quoted} ({names}) OVERRIDING SYSTEM VALUE SELECT {names} FROM pg_temp.{stage}"
            )
        return count

    def _snapshot(self, table: Movable) -> _Round:
        return _Round(self._source, self._since, table.name)

    async def _take_rest(self, table: Movable) -> None:
        """What the target still lacks: all rows, or those changed since the last round; and none that has gone."""
        if table.name not in self._since:
            self.moved.rows += await self._pipe(self._rows_sql(table), table)
            return
        await self._bring(table, self._since[table.name])

    async def _compare(self) -> dict[str, tuple[int, str]]:
        """See that the target has what the source has: that."""
        held, come = await self._both_digests(self._is_copied)
        if held != come:
            for table in reversed(self._tables):
                if held[table.name] != come[table.name]:
                    await self._drop_gone(table)
            held, come = await self._both_digests(self._is_copied)
        for name, (rows, digest) in held.items():
            if come[name] != (rows, digest):
                raise ForeshardError(
                    f"{name}: bucket {self.bucket} has {rows} rows on {self._source_name}, {come[name][0]} came "
                    f"to {self._target_name}, or not the same: is the table defined alike on both? The bucket stays"
                )
        return held

    async def _drop_rows(self, table: Movable, rows: int) -> None:
        """The rows leave the source, which the target has now."""
        tag = await self._source.execute(f"DELETE FROM {table.quoted} AS held WHERE {table.condition}")
        if int(tag.split()[-1]) != rows:
            raise ForeshardError(f"{table.name}: {rows} rows counted, {tag.split()[-1]} would go; not done")

    async def _drop_gone(self, table: Movable) -> None:
        """Rows that were copied and have been deleted since."""
        keys = ", ".join(map(quote_name, table.row_key))
        stage = f"foreshard_kept_{self._tables.index(table)}"
        await self._target.execute(
            f"DROP TABLE IF EXISTS pg_temp.{stage}; "
            f"CREATE TEMP TABLE {stage} ON COMMIT DROP AS SELECT {keys} FROM {table.quoted} WHERE false"
        )
        query = f"SELECT {keys} FROM {table.quoted} AS held WHERE {table.condition}"
        await pipe(self._source, query, self._target, ("pg_temp", stage), table.row_key)
        same = " AND ".join(f"kept.{key} = held.{key}" for key in map(quote_name, table.row_key))
        await self._target.execute(
            f"DELETE FROM {table.quoted} AS held WHERE ({table.condition}) "
            f"AND NOT EXISTS (SELECT FROM pg_temp.{stage} AS kept WHERE {same})"
        )

    async def _check_owners(self) -> None:
        if not await self._source.fetchval(OWNS, self.bucket):
            raise ForeshardError(f"bucket {self.bucket} is not of shard {self._source_name} any more")
        if await self._target.fetchval(OWNS, self.bucket):
            raise ForeshardError(f"bucket {self.bucket} is of shard {self._target_name} already")


class _Round:
    """A transaction on the source for one round of one table; what changes from then on is for the next."""

    def __init__(self, source: Connection, since: dict[str, int], name: str) -> None:
        self._source = source
        self._since = since
        self._name = name
        self._horizon = 0

    async def __aenter__(self) -> None:
        await self._source.execute(f"{BEGIN}; {SETTINGS}")
        self._horizon = int(await self._source.fetchval(HORIZON))

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        if not self._source.is_closed():
            await self._source.execute("ROLLBACK")
        if error is None:
            self._since[self._name] = self._horizon
