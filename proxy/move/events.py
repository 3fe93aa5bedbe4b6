"""Events of a bucket's rows that wait for their functions, and dead letters: they go where the rows go.

An event keeps its id (`origin`) and gets a place behind everything that the target has captured so far: what changes
the row there later comes after it. Its images come with it, whole.
"""

from __future__ import annotations

from foreshard.proxy.catalog import Catalog, Table
from foreshard.proxy.control.introspect import Connection
from foreshard.proxy.control.pipe import pipe
from foreshard.proxy.move.rows import in_bucket
from foreshard.proxy.triggers.capture import quote_table, quote_text
from foreshard.proxy.triggers.outbox import UNUSED_IMAGES

STAGE = "foreshard_events"
COLUMNS = (
    "lane", "lsn", "xid", "ordinal", "function", "operation", "table_name", "row_key", "old", "new", "volume", "depth",
    "captured_at", "attempt", "not_before", "error", "size", "origin", "failed_at",
)  # fmt: skip
MAKE_STAGE = f"""\
CREATE TEMP TABLE {STAGE} ON COMMIT DROP AS
SELECT {", ".join(name for name in COLUMNS if name != "failed_at")}, NULL::timestamptz AS failed_at
FROM foreshard.outbox WHERE false
"""
ORIGIN = "coalesce({row}.origin, {row}.lsn || '-' || {row}.xid || '-' || {row}.ordinal)"
# Old and new as the event's functions are to see them, wherever they are kept.
TAKE_EVENTS = f"""\
WITH found AS MATERIALIZED (
  SELECT e.ctid AS place, coalesce(e.old, kept.old) AS whole_old, coalesce(e.new, kept.new) AS whole_new
  FROM foreshard.outbox AS e LEFT JOIN foreshard.outbox_image AS kept
    ON kept.lane = e.lane AND kept.lsn = e.lsn AND kept.xid = e.xid AND kept.image = e.image
  CROSS JOIN LATERAL jsonb_populate_record(NULL::{{table}}, coalesce(e.new, kept.new, e.old, kept.old)) AS held
  WHERE e.table_name = {{name}} AND ({{condition}})
), removed AS (
  DELETE FROM foreshard.outbox AS e USING found WHERE e.ctid = found.place
  RETURNING e.ctid, e.*, found.whole_old, found.whole_new
), {UNUSED_IMAGES}
SELECT lane, lsn, xid, ordinal, function, operation, table_name, row_key, whole_old, whole_new, volume, depth,
       captured_at, attempt, not_before, error, size, {ORIGIN.format(row="removed")}, NULL::timestamptz
FROM removed
"""
TAKE_DEAD_LETTERS = f"""\
DELETE FROM foreshard.dead_letter AS e
WHERE e.table_name = {{name}} AND EXISTS (
  SELECT FROM jsonb_populate_record(NULL::{{table}}, coalesce(e.new, e.old)) AS held WHERE {{condition}})
RETURNING lane, lsn, xid, ordinal, function, operation, table_name, row_key, old, new, volume, depth,
          captured_at, attempt, NULL::timestamptz, error, NULL::integer, {ORIGIN.format(row="e")}, failed_at
"""
# One place in the target's order for all of them, and among them that of the source.
GIVE = f"""\
WITH numbered AS (
  SELECT *, pg_current_wal_insert_lsn() AS here, (row_number() OVER (ORDER BY lsn, xid, ordinal))::integer AS turn
  FROM {STAGE}
), waiting AS (
  INSERT INTO foreshard.outbox (lane, lsn, xid, ordinal, function, operation, table_name, row_key, old, new, volume,
                                depth, captured_at, attempt, not_before, error, size, origin)
  SELECT lane, here, pg_current_xact_id(), turn, function, operation, table_name, row_key, old, new, volume,
         depth, captured_at, attempt, not_before, error, size, origin
  FROM numbered WHERE failed_at IS NULL
)
INSERT INTO foreshard.dead_letter (lane, lsn, xid, ordinal, function, operation, table_name, row_key, old, new, volume,
                                   depth, captured_at, attempt, error, failed_at, origin)
SELECT lane, here, pg_current_xact_id(), turn, function, operation, table_name, row_key, old, new, volume,
       depth, captured_at, attempt, error, failed_at, origin
FROM numbered WHERE failed_at IS NOT NULL
"""


async def carry_events(
    catalog: Catalog, tables: list[Table], bucket: int, source: Connection, target: Connection
) -> int:
    """Take the events of the bucket's rows, which are still there, from the source to the target; how many.

    The tables are those that have any.
    """
    if not tables:
        return 0
    await target.execute(MAKE_STAGE)
    count = 0
    for table in tables:
        words = {
            "table": quote_table(table),
            "name": quote_text(table.qualified),
            "condition": in_bucket(catalog, table, "held", bucket),
        }
        for sql in (TAKE_EVENTS, TAKE_DEAD_LETTERS):
            count += await pipe(source, sql.format(**words), target, ("pg_temp", STAGE), COLUMNS)
    if count:
        await target.execute(GIVE)
    return count
