"""The worker's statements on the outbox of one shard.

1. A lane is held by a transaction-level advisory lock, taken in a statement before the one that reads the lane's
   events: whoever reads has seen what the previous holder committed. It ends with the batch, however that ends.
2. Within a lane events are read in order; a waiting event (not_before in the future) hides the later events of the
   same function and row, and nothing else.
3. Removal says which events it removed. A batch that removed anything but what it handled is rolled back, so that
   effects stay exactly once even where the advisory lock was not honoured.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

import asyncpg
import msgspec

from foreshard.proxy.triggers.capture import LANES
from foreshard.proxy.triggers.measure import Usage
from foreshard.proxy.triggers.slot import EventId

LANE_LOCK_CLASS = 1718579813  # first half of the advisory key, "foreshard" in ASCII as far as it fits
EVENT_COLUMNS = (
    "lane, lsn, xid, ordinal, function, operation, table_name, row_key, old, new, volume, depth, captured_at, origin"
)
MATCH = "lane = $1 AND lsn = $2::text::pg_lsn AND xid = $3::text::xid8 AND ordinal = $4"

# A queue is empty when it is analysed and long when it matters, so its statements are planned without statistics: in
# order of the index (10,000 events waiting: read of 32 from 8 lanes 1.3 ms without this, 0.2 ms with it).
BEGIN = (
    "BEGIN; SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; SET LOCAL enable_sort = off; "
    "SET LOCAL plan_cache_mode = force_generic_plan"
)
# Ahead of the first statement of a trigger function: it is planned as everywhere else.
RESET_PLANNING = (
    "SET LOCAL enable_seqscan TO DEFAULT; SET LOCAL enable_bitmapscan TO DEFAULT; SET LOCAL enable_sort TO DEFAULT; "
    "SET LOCAL plan_cache_mode TO DEFAULT; "
)

TAKE_LANES = """\
WITH RECURSIVE ahead(lane) AS (
  (SELECT o.lane FROM foreshard.outbox AS o WHERE o.lane >= $1 ORDER BY o.lane LIMIT 1)
  UNION ALL
  SELECT later.lane FROM ahead CROSS JOIN LATERAL
    (SELECT o.lane FROM foreshard.outbox AS o WHERE o.lane > ahead.lane ORDER BY o.lane LIMIT 1) AS later
), behind(lane) AS (
  (SELECT o.lane FROM foreshard.outbox AS o WHERE o.lane < $1 ORDER BY o.lane LIMIT 1)
  UNION ALL
  SELECT later.lane FROM behind CROSS JOIN LATERAL
    (SELECT o.lane FROM foreshard.outbox AS o WHERE o.lane > behind.lane AND o.lane < $1
     ORDER BY o.lane LIMIT 1) AS later
)
SELECT lane, (SELECT moves FROM foreshard.owned_buckets) AS moves
FROM (SELECT lane FROM ahead UNION ALL SELECT lane FROM behind) AS found
WHERE pg_try_advisory_xact_lock($3, lane) LIMIT $2
"""

READ_EVENTS = """\
SELECT picked.ctid, picked.lane, picked.lsn::text, picked.xid::text, picked.ordinal, picked.function, picked.operation,
       picked.table_name, picked.row_key, coalesce(picked.old, kept.old)::text AS old,
       coalesce(picked.new, kept.new)::text AS new, picked.volume, picked.depth, picked.captured_at, picked.attempt,
       picked.origin, extract(epoch FROM clock_timestamp() - picked.captured_at)::double precision AS queue_s
FROM (
  SELECT o.* FROM unnest($1::smallint[]) AS held(lane) CROSS JOIN LATERAL (
    SELECT e.ctid, e.* FROM foreshard.outbox AS e
    WHERE e.lane = held.lane AND (e.not_before IS NULL OR e.not_before <= statement_timestamp())
      AND e.function <> ALL ($3::text[]) AND NOT EXISTS (
        SELECT FROM foreshard.outbox AS waiting
        WHERE waiting.lane = held.lane AND waiting.row_key = e.row_key AND waiting.table_name = e.table_name
          AND waiting.function = e.function AND waiting.not_before > statement_timestamp())
    ORDER BY e.lsn, e.xid, e.ordinal LIMIT $2
  ) AS o ORDER BY o.lsn, o.xid, o.ordinal LIMIT $2
) AS picked
LEFT JOIN foreshard.outbox_image AS kept
  ON kept.lane = picked.lane AND kept.lsn = picked.lsn AND kept.xid = picked.xid AND kept.image = picked.image
ORDER BY picked.lsn, picked.xid, picked.ordinal
"""

NEXT_RETRY = """\
SELECT extract(epoch FROM min(not_before) - statement_timestamp())::double precision
FROM foreshard.outbox WHERE not_before IS NOT NULL
"""

# An image goes with the last of its events; all of them are in one lane, which is held. A statement does not see its
# own deletions, so those are named.
UNUSED_IMAGES = """\
unused AS (
  DELETE FROM foreshard.outbox_image AS kept USING (SELECT DISTINCT lane, lsn, xid, image FROM removed) AS used
  WHERE kept.lane = used.lane AND kept.lsn = used.lsn AND kept.xid = used.xid AND kept.image = used.image
    AND NOT EXISTS (
      SELECT FROM foreshard.outbox AS other
      WHERE other.lane = kept.lane AND other.lsn = kept.lsn AND other.xid = kept.xid AND other.image = kept.image
        AND other.ordinal >= kept.image AND other.ordinal < kept.image + kept.events
        AND NOT EXISTS (SELECT FROM removed AS own WHERE own.ctid = other.ctid))
)"""

REMOVE_EVENTS = f"""\
WITH removed AS (
  DELETE FROM foreshard.outbox WHERE ctid = ANY($1::tid[]) RETURNING ctid, lane, lsn, xid, ordinal, image
), {UNUSED_IMAGES}, measured AS (
  INSERT INTO foreshard.measurement (function, operation, table_name, row_key, size, complexity, volume, cpu_s,
    memory_byte_s, io_bytes, network_bytes, wall_s, queue_s, attempt)
  SELECT * FROM unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::float8[], $7::float8[], $8::float8[],
    $9::float8[], $10::float8[], $11::float8[], $12::float8[], $13::float8[], $14::float8[], $15::integer[])
)
SELECT lane, lsn::text, xid::text, ordinal FROM removed
"""

RECORD_FAILURE = f"""\
UPDATE foreshard.outbox
SET attempt = $5, not_before = clock_timestamp() + make_interval(secs => $6), error = $7
WHERE {MATCH} AND attempt = $5 - 1
"""

BURY_EVENT = f"""\
WITH removed AS (DELETE FROM foreshard.outbox WHERE {MATCH} AND attempt = $5 - 1 RETURNING ctid, *), {UNUSED_IMAGES}
INSERT INTO foreshard.dead_letter ({EVENT_COLUMNS}, attempt, error)
SELECT lane, lsn, xid, ordinal, function, operation, table_name, row_key, coalesce(removed.old, kept.old),
       coalesce(removed.new, kept.new), volume, depth, captured_at, origin, $5, $6
FROM removed LEFT JOIN foreshard.outbox_image AS kept USING (lane, lsn, xid, image)
"""

STILL_PLACED = "SELECT foreshard.still_placed($1)"
LOCK_LANE = "SELECT pg_advisory_xact_lock($1, $2)"

TABLE_TYPES = """\
SELECT a.attname, coalesce(base.typname, t.typname) AS type_name,
       array_position(k.indkey::int2[], a.attnum) AS key_place
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
JOIN pg_catalog.pg_type AS t ON t.oid = a.atttypid
LEFT JOIN pg_catalog.pg_type AS base ON base.oid = nullif(t.typbasetype, 0)
LEFT JOIN pg_catalog.pg_index AS k ON k.indrelid = c.oid AND k.indisprimary
WHERE n.nspname || '.' || c.relname = $1
ORDER BY a.attnum
"""

END_BACKEND = """\
SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE pid = $1 AND backend_start::text = $2
"""


class Entry(msgspec.Struct):
    """One event as the outbox holds it."""

    place: Any  # ctid
    id: EventId
    function: str
    operation: str
    table_name: str
    row_key: str
    old: str | None
    new: str | None
    volume: int
    depth: int
    captured_at: datetime.datetime
    attempt: int  # failed so far
    queue_s: float  # from capture to the read, by the shard's clock
    origin: str | None = None  # its id, where it has come from another shard with its row

    @property
    def name(self) -> str:
        """What functions know the event by, wherever it is handled."""
        return self.origin or str(self.id)

    @property
    def order_key(self) -> tuple[str, str, str]:
        """What a failure blocks: later events with the same order key."""
        return (self.function, self.table_name, self.row_key)


class Handled(msgspec.Struct):
    """A call that succeeded: its event, features and usage."""

    entry: Entry
    size: float
    complexity: float
    volume: float
    usage: Usage
    queue_s: float


class Failure(msgspec.Struct):
    """A call that failed: its event's id, which attempt it was, and what comes of it."""

    event: EventId
    function: str
    attempt: int
    error: str
    retry_after_s: float | None  # None: no more attempts


class Outbox:
    """The outbox of one shard over one connection. The caller owns the transaction."""

    def __init__(self, connection: asyncpg.Connection[Any]) -> None:
        self._connection = connection
        self._moves = 0  # buckets that had left the shard when the lanes were taken

    async def take_lanes(self, start: int, count: int) -> list[int]:
        """Lock up to `count` lanes that have events and that nobody holds, from lane `start` on and around."""
        rows = await self._connection.fetch(TAKE_LANES, start % LANES, count, LANE_LOCK_CLASS)
        self._moves = rows[0]["moves"] if rows else 0
        return [row["lane"] for row in rows]

    async def is_still_placed(self) -> bool:
        """Whether no bucket has left the shard since the lanes were taken, and none will before the transaction ends.

        Rows that the batch has written here would stay behind.
        """
        return bool(await self._connection.fetchval(STILL_PLACED, self._moves))

    async def read_events(self, lanes: Sequence[int], count: int, paused: Sequence[str] = ()) -> list[Entry]:
        """The first events of the held lanes that may run now, in order; none of paused functions."""
        rows = await self._connection.fetch(READ_EVENTS, lanes, count, paused)
        return [_make_entry(row) for row in rows]

    async def next_retry_s(self) -> float | None:
        """Seconds until the first waiting event may run, below zero when it may; None when none waits."""
        seconds: float | None = await self._connection.fetchval(NEXT_RETRY)
        return seconds

    async def remove(self, handled: Sequence[Handled]) -> bool:
        """Remove handled events and record their measurements; whether exactly these were still there."""
        rows = await self._connection.fetch(
            REMOVE_EVENTS,
            [h.entry.place for h in handled],
            [h.entry.function for h in handled],
            [h.entry.operation for h in handled],
            [h.entry.table_name for h in handled],
            [h.entry.row_key for h in handled],
            [h.size for h in handled],
            [h.complexity for h in handled],
            [h.volume for h in handled],
            [h.usage.cpu_s for h in handled],
            [h.usage.memory_byte_s for h in handled],
            [h.usage.io_bytes for h in handled],
            [h.usage.network_bytes for h in handled],
            [h.usage.wall_s for h in handled],
            [h.queue_s for h in handled],
            [h.entry.attempt + 1 for h in handled],
        )
        return {EventId(*row) for row in rows} == {h.entry.id for h in handled}

    async def record_alone(self, failure: Failure) -> None:
        """Record a failure in a transaction of its own."""
        async with self._connection.transaction():
            await self._connection.fetch(LOCK_LANE, LANE_LOCK_CLASS, failure.event.lane)
            await self.record(failure)

    async def record(self, failure: Failure) -> None:
        """Let the event wait for its next attempt, or bury it; nothing when someone recorded this attempt already.

        The lane is held.
        """
        event = failure.event
        key = (event.lane, event.lsn, event.xid, event.ordinal, failure.attempt)
        if failure.retry_after_s is None:
            await self._connection.execute(BURY_EVENT, *key, failure.error)
        else:
            await self._connection.execute(RECORD_FAILURE, *key, failure.retry_after_s, failure.error)

    async def paused_functions(self) -> list[str]:
        """Names of the functions whose events wait for `foreshard triggers resume`."""
        return [row[0] for row in await self._connection.fetch("SELECT function FROM foreshard.paused_function")]

    async def table_types(self, table_name: str) -> tuple[dict[str, str], tuple[str, ...]]:
        """Type names of a table's columns, and the columns of its primary key in their order."""
        rows = await self._connection.fetch(TABLE_TYPES, table_name)
        places = {row["key_place"]: row["attname"] for row in rows if row["key_place"] is not None}
        return {row["attname"]: row["type_name"] for row in rows}, tuple(places[place] for place in sorted(places))

    async def end_backend(self, pid: int, started: str) -> None:
        """End the backend of an executor that is gone, and wait for its end: then its transaction is over."""
        await self._connection.fetch(END_BACKEND, pid, started)


def _make_entry(row: asyncpg.Record) -> Entry:
    return Entry(
        place=row["ctid"],
        id=EventId(row["lane"], row["lsn"], row["xid"], row["ordinal"]),
        function=row["function"],
        operation=row["operation"],
        table_name=row["table_name"],
        row_key=row["row_key"],
        old=row["old"],
        new=row["new"],
        volume=row["volume"],
        depth=row["depth"],
        captured_at=row["captured_at"],
        attempt=row["attempt"],
        queue_s=row["queue_s"],
        origin=row["origin"],
    )
