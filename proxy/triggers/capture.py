"""The SQL of capture: how a committed change of a registered table becomes rows of foreshard.outbox.

Pure text: `plan` shows it and `apply` runs it (proxy/control). Every piece may be run again.

1. A statement-level AFTER trigger with transition tables writes the events of one statement with one INSERT ... SELECT,
   in the writer's own transaction, whoever the writer is. Under session_replication_role = replica nothing fires.
2. An UPDATE pairs old and new rows by key; a row whose key changed is a delete of one key and an insert of another.
3. Events of one row are in order of (lsn, ordinal): lsn is the WAL insert position when the trigger ran, and whoever
   changes a row later has waited for the earlier writer's WAL. A sequence would show in the client's lastval().
   xid only makes the order total: two transactions may read one position.
4. Whether a listed column changed is asked of its bytes (`*<>`): no type lacks that operator, and no `=` that calls
   different values equal (citext, box) hides a change.
5. A change that calls several functions keeps its images once, in foreshard.outbox_image, until the last function is
   done: large values are compressed and written once, not once per function (three functions, texts of 28 kB: an
   INSERT takes 2.0 ms instead of 2.8 to 3.6 ms, 0.8 ms without capture).
6. The trigger functions run as their owner with a fixed search_path, so a writer needs no privilege on the outbox and
   no object of the writer's can step in between.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from foreshard.proxy.catalog import Table
from foreshard.proxy.config import TriggerConfig

LANES = 64  # events of one row share a lane; fixed for ever, the outbox stores it
OPERATIONS = ("insert", "update", "delete")
DEPTH_SETTING = "foreshard.depth"

QUEUE_STORAGE = (
    "autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0, "
    "autovacuum_vacuum_insert_scale_factor = 0.5, autovacuum_analyze_scale_factor = 0.5"
)

OUTBOX_TABLE = f"""\
CREATE TABLE IF NOT EXISTS foreshard.outbox (
  lane smallint NOT NULL CHECK (lane BETWEEN 0 AND {LANES - 1}),
  lsn pg_lsn NOT NULL,
  xid xid8 NOT NULL,
  ordinal integer NOT NULL,
  function text NOT NULL,
  operation text NOT NULL CHECK (operation IN ('insert', 'update', 'delete')),
  table_name text NOT NULL,
  row_key text NOT NULL,
  old jsonb,
  new jsonb,
  volume integer NOT NULL,
  depth smallint NOT NULL,
  captured_at timestamptz NOT NULL,
  attempt integer NOT NULL DEFAULT 0,
  not_before timestamptz,
  error text,
  image integer,
  size integer,
  origin text,
  PRIMARY KEY (lane, lsn, xid, ordinal)
) WITH ({QUEUE_STORAGE});
ALTER TABLE foreshard.outbox ADD COLUMN IF NOT EXISTS origin text;
CREATE INDEX IF NOT EXISTS outbox_waiting ON foreshard.outbox (lane, row_key) WHERE not_before IS NOT NULL;
CREATE INDEX IF NOT EXISTS outbox_retry ON foreshard.outbox (not_before) WHERE not_before IS NOT NULL;
COMMENT ON TABLE foreshard.outbox IS 'events not yet handled: one row per change and trigger function';
COMMENT ON COLUMN foreshard.outbox.image IS 'NULL: old and new are here; else the number of their row in outbox_image';
COMMENT ON COLUMN foreshard.outbox.size IS 'bytes of the row, by which the cost of what waits is predicted';
COMMENT ON COLUMN foreshard.outbox.origin IS
  'the id of an event that has come from another shard with its row; lsn, xid and ordinal give its place here';
COMMENT ON COLUMN foreshard.outbox.attempt IS 'failed attempts so far';
COMMENT ON COLUMN foreshard.outbox.not_before IS 'the next attempt waits until then; NULL: has not failed';
"""

IMAGE_TABLE = f"""\
CREATE TABLE IF NOT EXISTS foreshard.outbox_image (
  lane smallint NOT NULL,
  lsn pg_lsn NOT NULL,
  xid xid8 NOT NULL,
  image integer NOT NULL,
  events integer NOT NULL,
  old jsonb,
  new jsonb,
  PRIMARY KEY (lane, lsn, xid, image)
) WITH ({QUEUE_STORAGE});
COMMENT ON TABLE foreshard.outbox_image IS
  'images of changes that call several functions; their ordinals are those from `image` on, `events` of them';
"""

DEAD_LETTER_TABLE = """\
CREATE TABLE IF NOT EXISTS foreshard.dead_letter (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  lane smallint NOT NULL,
  lsn pg_lsn NOT NULL,
  xid xid8 NOT NULL,
  ordinal integer NOT NULL,
  function text NOT NULL,
  operation text NOT NULL,
  table_name text NOT NULL,
  row_key text NOT NULL,
  old jsonb,
  new jsonb,
  volume integer NOT NULL,
  depth smallint NOT NULL,
  captured_at timestamptz NOT NULL,
  attempt integer NOT NULL,
  error text NOT NULL,
  failed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  origin text
);
ALTER TABLE foreshard.dead_letter ADD COLUMN IF NOT EXISTS origin text;
COMMENT ON TABLE foreshard.dead_letter IS 'events whose last attempt failed; foreshard triggers replay puts them back';
"""

MEASUREMENT_TABLE = """\
CREATE TABLE IF NOT EXISTS foreshard.measurement (
  function text NOT NULL,
  operation text NOT NULL,
  table_name text NOT NULL,
  row_key text NOT NULL,
  size double precision NOT NULL,
  complexity double precision NOT NULL,
  volume double precision NOT NULL,
  cpu_s double precision,
  memory_byte_s double precision,
  io_bytes double precision,
  network_bytes double precision,
  wall_s double precision NOT NULL,
  queue_s double precision NOT NULL,
  attempt integer NOT NULL,
  finished_at timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0);
COMMENT ON TABLE foreshard.measurement IS
  'one row per handled event until the controller takes it; NULL where the platform cannot measure';
"""

PAUSED_TABLE = """\
CREATE TABLE IF NOT EXISTS foreshard.paused_function (
  function text PRIMARY KEY,
  paused_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE foreshard.paused_function IS 'functions whose events wait: foreshard triggers pause and resume';
"""

REFUSE_TRUNCATE_FUNCTION = """\
CREATE OR REPLACE FUNCTION foreshard.refuse_truncate() RETURNS trigger LANGUAGE plpgsql AS $body$
BEGIN
  RAISE EXCEPTION 'TRUNCATE of "%" is refused: its trigger functions would miss the deleted rows', TG_TABLE_NAME
    USING ERRCODE = 'feature_not_supported', HINT = 'Use DELETE.';
END
$body$;
"""

CAPTURE_PARTITIONS_FUNCTION = """\
CREATE OR REPLACE FUNCTION foreshard.capture_partitions(root regclass) RETURNS void LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $body$
-- Give every partition of a captured table the capture triggers of its root: a statement-level trigger fires only for
-- the table that the statement names.
DECLARE
  missing record;
BEGIN
  FOR missing IN
    SELECT leaf.relid, own.tgname,
           replace(pg_get_triggerdef(own.oid), ' ON ' || own_name.text || ' ', ' ON ' || leaf_name.text || ' ') AS made
    FROM pg_partition_tree(root) AS leaf
    CROSS JOIN pg_trigger AS own
    CROSS JOIN LATERAL (SELECT root::text) AS own_name(text)
    CROSS JOIN LATERAL (SELECT leaf.relid::text) AS leaf_name(text)
    WHERE leaf.relid <> root AND own.tgrelid = root AND own.tgname LIKE 'foreshard\\_capture\\_%'
    ORDER BY leaf.relid, own.tgname
  LOOP
    EXECUTE regexp_replace(missing.made, '^CREATE TRIGGER', 'CREATE OR REPLACE TRIGGER');
  END LOOP;
  FOR missing IN
    SELECT leaf.relid, stray.tgname
    FROM pg_partition_tree(root) AS leaf JOIN pg_trigger AS stray ON stray.tgrelid = leaf.relid
    WHERE leaf.relid <> root AND stray.tgname LIKE 'foreshard\\_capture\\_%'
      AND NOT EXISTS (SELECT FROM pg_trigger AS own WHERE own.tgrelid = root AND own.tgname = stray.tgname)
  LOOP
    EXECUTE format('DROP TRIGGER %I ON %s', missing.tgname, missing.relid::regclass);
  END LOOP;
END
$body$;
"""


def outbox_sql() -> list[tuple[str, str]]:
    """What every shard needs whichever functions are registered: (object name, SQL), in order. Needs the schema."""
    return [
        ("table foreshard.outbox", OUTBOX_TABLE),
        ("table foreshard.outbox_image", IMAGE_TABLE),
        ("table foreshard.dead_letter", DEAD_LETTER_TABLE),
        ("table foreshard.measurement", MEASUREMENT_TABLE),
        ("table foreshard.paused_function", PAUSED_TABLE),
        ("function foreshard.refuse_truncate", REFUSE_TRUNCATE_FUNCTION),
        ("function foreshard.capture_partitions", CAPTURE_PARTITIONS_FUNCTION),
    ]


def capture_sql(table: Table, triggers: Sequence[TriggerConfig]) -> list[tuple[str, str]]:
    """The capture triggers of one table for the functions registered on it: (object name, SQL), in order.

    With no functions the SQL removes what an earlier configuration asked for. The table needs a key.
    """
    if triggers and not table.row_key:
        raise ValueError(f"{table.qualified} has no key, so no trigger function can be registered on it")
    made = [_operation_sql(table, triggers, operation) for operation in OPERATIONS]
    made.append(_truncate_sql(table, bool(triggers)))
    made.append((f"capture triggers on partitions of {table.qualified}", _partitions_sql(table)))
    return made


def capture_function_name(table: Table, operation: str) -> str:
    """Name of a capture trigger's function: readable, unique per table and below PostgreSQL's 63 bytes."""
    digest = hashlib.md5(table.qualified.encode(), usedforsecurity=False).hexdigest()[:8]
    readable = "".join(letter for letter in table.name if letter.isascii() and (letter.isalnum() or letter == "_"))
    return f"capture_{operation}_{readable[:36]}_{digest}"


def quote_name(name: str) -> str:
    """An SQL identifier, always quoted."""
    return '"' + name.replace('"', '""') + '"'


def quote_text(text: str) -> str:
    """An SQL string literal."""
    escaped = text.replace("'", "''").replace("\\", "\\\\")
    return f"E'{escaped}'" if "\\" in text else f"'{escaped}'"


def quote_table(table: Table) -> str:
    """The table's name with its schema, quoted."""
    return f"{quote_name(table.schema)}.{quote_name(table.name)}"


def _operation_sql(table: Table, triggers: Sequence[TriggerConfig], operation: str) -> tuple[str, str]:
    """Function and trigger for one operation, or their removal when no function can be called by it."""
    # An update may change a key, which is a delete and an insert: every function makes the update trigger necessary.
    needed = bool(triggers) if operation == "update" else any(operation in trigger.on for trigger in triggers)
    function = f"foreshard.{quote_name(capture_function_name(table, operation))}"
    trigger = quote_name(f"foreshard_capture_{operation}")
    label = f"capture trigger for {operation} on {table.qualified}"
    if not needed:
        return label, (
            f"DROP TRIGGER IF EXISTS {trigger} ON {quote_table(table)};\n"
            f"{_partitions_sql(table)}DROP FUNCTION IF EXISTS {function}();\n"
        )
    body = _update_body(table, triggers) if operation == "update" else _whole_body(table, triggers, operation)
    referencing = {
        "insert": "NEW TABLE AS new_rows",
        "update": "OLD TABLE AS old_rows NEW TABLE AS new_rows",
        "delete": "OLD TABLE AS old_rows",
    }[operation]
    return label, (
        f"CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER\n"
        f"SET search_path = pg_catalog, pg_temp AS $capture$\n{body}$capture$;\n"
        f"CREATE OR REPLACE TRIGGER {trigger} AFTER {operation.upper()} ON {quote_table(table)}\n"
        f"REFERENCING {referencing} FOR EACH STATEMENT EXECUTE FUNCTION {function}();\n"
    )


def _whole_body(table: Table, triggers: Sequence[TriggerConfig], operation: str) -> str:
    """Capture of INSERT or DELETE: every row of the statement, for every function of the operation."""
    functions = _text_array(trigger.name for trigger in triggers if operation in trigger.on)
    is_insert = operation == "insert"
    image = f"""\
    SELECT {_key_text(table, "foreshard_row")} AS row_key, '{operation}' AS operation,
           {functions} AS functions, count(*) OVER () AS volume,
           {"NULL::jsonb" if is_insert else "to_jsonb(foreshard_row)"} AS old_image,
           {"to_jsonb(foreshard_row)" if is_insert else "NULL::jsonb"} AS new_image,
           pg_column_size(foreshard_row) AS size
    FROM {"new_rows" if is_insert else "old_rows"} AS foreshard_row
"""
    return _body(table, "", image)


def _update_body(table: Table, triggers: Sequence[TriggerConfig]) -> str:
    """Capture of UPDATE: old and new rows paired by key, each with the functions it calls."""
    old_key, new_key = _key_or_null(table, "foreshard_old"), _key_or_null(table, "foreshard_new")
    same = " AND ".join(
        f"foreshard_old.{quote_name(name)} = foreshard_new.{quote_name(name)}" for name in table.row_key
    )
    updating = [trigger for trigger in triggers if "update" in trigger.on]
    # Functions often list the same columns, and comparing large values reads them whole: each list is compared once.
    lists = list(dict.fromkeys(trigger.columns for trigger in updating if trigger.columns))
    compared = "".join(f",\n             {_changed(columns)} AS changed_{n}" for n, columns in enumerate(lists))
    updated = ",\n".join(
        f"             CASE WHEN {f'changed_{lists.index(trigger.columns)}' if trigger.columns else 'true'} "
        f"THEN {quote_text(trigger.name)} END"
        for trigger in updating
    )
    pair = f"""\
  pair AS MATERIALIZED (
    SELECT old_row, new_row, coalesce(new_key::text, old_key::text) AS row_key,
           CASE WHEN old_key IS NULL THEN 'insert' WHEN new_key IS NULL THEN 'delete' ELSE 'update' END AS operation,
           CASE WHEN old_key IS NULL THEN {_text_array(trigger.name for trigger in triggers if "insert" in trigger.on)}
           WHEN new_key IS NULL THEN {_text_array(trigger.name for trigger in triggers if "delete" in trigger.on)}
           ELSE array_remove(ARRAY[
{updated}
           ]::text[], NULL) END AS functions,
           count(new_key) OVER () AS volume
    FROM (
      SELECT foreshard_old AS old_row, foreshard_new AS new_row, {old_key} AS old_key,
             {new_key} AS new_key{compared}
      FROM old_rows AS foreshard_old FULL JOIN new_rows AS foreshard_new
           ON {same} OFFSET 0
    ) AS compared
  ),
"""
    image = """\
    SELECT row_key, operation, functions, volume,
           pg_column_size(CASE WHEN operation = 'delete' THEN old_row ELSE new_row END) AS size,
           CASE WHEN operation <> 'insert' THEN to_jsonb(old_row) END AS old_image,
           CASE WHEN operation <> 'delete' THEN to_jsonb(new_row) END AS new_image
    FROM pair WHERE functions <> '{}'
"""
    return _body(table, pair, image)


def _key_text(table: Table, row: str) -> str:
    """The key of a row as one text: a column's own, or a JSON array of several columns'."""
    texts = [f"{row}.{quote_name(name)}::text" for name in table.row_key]
    return texts[0] if len(texts) == 1 else f"jsonb_build_array({', '.join(texts)})::text"


def _key_or_null(table: Table, row: str) -> str:
    """The key, or its text when it has several columns; NULL where there is no such row."""
    first = f"{row}.{quote_name(table.row_key[0])}"
    return first if len(table.row_key) == 1 else f"CASE WHEN {first} IS NOT NULL THEN {_key_text(table, row)} END"


def _body(table: Table, before: str, image: str) -> str:
    """The trigger function around the query that yields row_key, operation, functions, images and volume."""
    return f"""\
DECLARE
  captured_lsn pg_lsn := pg_current_wal_insert_lsn();
BEGIN
  WITH
{before}  change AS (
{image}  ), numbered AS MATERIALIZED (
    SELECT *, cardinality(functions) AS events, (hashtextextended(row_key, 0) & {LANES - 1})::smallint AS lane,
           sum(cardinality(functions)) OVER (ROWS UNBOUNDED PRECEDING) - cardinality(functions) + 1 AS first_ordinal
    FROM change
  ), kept AS (
    INSERT INTO foreshard.outbox_image (lane, lsn, xid, image, events, old, new)
    SELECT lane, captured_lsn, pg_current_xact_id(), first_ordinal, events, old_image, new_image
    FROM numbered WHERE events > 1
  )
  INSERT INTO foreshard.outbox (lane, lsn, xid, ordinal, function, operation, table_name, row_key, old, new, image,
                                volume, size, depth, captured_at)
  SELECT lane, captured_lsn, pg_current_xact_id(), first_ordinal + called.number - 1, called.function, operation,
         {quote_text(table.qualified)}, row_key,
         CASE WHEN events = 1 THEN old_image END, CASE WHEN events = 1 THEN new_image END,
         CASE WHEN events > 1 THEN first_ordinal END, volume, size,
         coalesce(nullif(current_setting('{DEPTH_SETTING}', true), ''), '0')::smallint, clock_timestamp()
  FROM numbered CROSS JOIN LATERAL unnest(functions) WITH ORDINALITY AS called(function, number);
  RETURN NULL;
END
"""


def _changed(columns: Sequence[str]) -> str:
    """Whether the bytes of any of these columns changed (rule 4); of rows without a partner it says nothing of use."""
    old = ", ".join(f"foreshard_old.{quote_name(column)}" for column in columns)
    new = ", ".join(f"foreshard_new.{quote_name(column)}" for column in columns)
    return f"ROW({old})::record *<> ROW({new})::record"


def _truncate_sql(table: Table, is_captured: bool) -> tuple[str, str]:
    label = f"refusal of truncate on {table.qualified}"
    if not is_captured:
        return label, f"DROP TRIGGER IF EXISTS foreshard_capture_truncate ON {quote_table(table)};\n"
    return label, (
        f"CREATE OR REPLACE TRIGGER foreshard_capture_truncate BEFORE TRUNCATE ON {quote_table(table)}\n"
        "FOR EACH STATEMENT EXECUTE FUNCTION foreshard.refuse_truncate();\n"
    )


def _partitions_sql(table: Table) -> str:
    return (
        f"DO $partitions$ BEGIN PERFORM foreshard.capture_partitions({quote_text(quote_table(table))}::regclass); "
        "END $partitions$;\n"
    )


def _text_array(names: Iterable[str]) -> str:
    return "ARRAY[" + ", ".join(quote_text(name) for name in names) + "]::text[]"
