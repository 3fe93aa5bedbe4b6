"""Reference tables: the first shard computes the rows that a write makes, the others are given those rows.

1. Whatever a statement says (defaults, now(), sequences, sub-selects, triggers of the user's own), it runs on the first
   shard, once. Statement-level triggers there note what became of which rows, whoever's statement it was, in a setting
   that ends with the transaction: nothing is left behind by those who write on that shard directly.
2. Rows travel as PostgreSQL prints them, with every setting that matters to that fixed, and are read back by their
   table's own row type: any type arrives as it was.
3. A changed row is found by its old primary key; without a primary key by all of its values, as many as there were.
4. Afterwards the row must be there as it was sent: shards that have drifted apart are told (XX001), not papered over.
5. The user's triggers fire on the first shard only; on the others they are set to fire for replication.
"""

from __future__ import annotations

from collections.abc import Iterator

from foreshard.proxy.catalog import Table
from foreshard.proxy.control.inside import ask
from foreshard.proxy.control.steps import Step, labelled_step
from foreshard.proxy.triggers.capture import quote_table, quote_text

SETTING = "foreshard.outcome"
PAYLOAD_BYTES_MAX = 128 * 1024 * 1024  # below what a jsonb holds; chosen, not measured
LOCK_SEED = 7  # of the hash that makes a lock of a name (proxy/wire/session.pyx)
DEPTH_MAX = 16  # of foreign keys among reference tables that are changed together
PRINTED = {
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "extra_float_digits": "3",
    "bytea_output": "hex",
    "xmlbinary": "base64",
    "lc_monetary": "C",
}
EVENTS = {
    "insert": "NEW TABLE AS new_rows",
    "update": "OLD TABLE AS old_rows NEW TABLE AS new_rows",
    "delete": "OLD TABLE AS old_rows",
}
TAKE = f"SELECT current_setting('{SETTING}', true), set_config('{SETTING}', '', true)"

# A function with a SET clause would take its own set_config back, so the settings are set and restored by hand.
_names = ", ".join(quote_text(name) for name in PRINTED)
_values = ", ".join(quote_text(value) for value in PRINTED.values())
KEEP = f"""\
CREATE OR REPLACE FUNCTION foreshard.keep_outcome() RETURNS trigger LANGUAGE plpgsql AS $body$
-- Note which rows a statement has changed, and into what.
DECLARE
  names text[] := ARRAY[{_names}];
  printed text[] := ARRAY[{_values}];
  before text[];
  old_texts text[];
  new_texts text[];
  kept text := coalesce(pg_catalog.current_setting('{SETTING}', true), '');
BEGIN
  SELECT pg_catalog.array_agg(pg_catalog.current_setting(name) ORDER BY place) INTO before
  FROM unnest(names) WITH ORDINALITY AS named(name, place);
  PERFORM pg_catalog.set_config(name, value, true) FROM unnest(names, printed) AS named(name, value);
  IF TG_OP <> 'INSERT' THEN
    EXECUTE 'SELECT pg_catalog.array_agg(foreshard_row::text) FROM old_rows AS foreshard_row' INTO old_texts;
  END IF;
  IF TG_OP <> 'DELETE' THEN
    EXECUTE 'SELECT pg_catalog.array_agg(foreshard_row::text) FROM new_rows AS foreshard_row' INTO new_texts;
  END IF;
  PERFORM pg_catalog.set_config(name, value, true) FROM unnest(names, before) AS named(name, value);
  IF coalesce(old_texts, new_texts) IS NULL THEN
    RETURN NULL;
  END IF;
  kept := kept || pg_catalog.jsonb_build_object(
    'table', pg_catalog.format('%I.%I', TG_TABLE_SCHEMA, TG_TABLE_NAME), 'operation', pg_catalog.lower(TG_OP),
    'old', old_texts, 'new', new_texts) || E'\\n';
  IF pg_catalog.octet_length(kept) > {PAYLOAD_BYTES_MAX} THEN
    RAISE EXCEPTION 'the statement changes too many rows of the reference table "%"', TG_TABLE_NAME
      USING ERRCODE = 'program_limit_exceeded', HINT = 'Write fewer rows at a time.';
  END IF;
  PERFORM pg_catalog.set_config('{SETTING}', kept, true);
  RETURN NULL;
END
$body$;
GRANT EXECUTE ON FUNCTION foreshard.keep_outcome() TO PUBLIC;
"""

_settings = "\n".join(f"SET {name} = {quote_text(value)}" for name, value in PRINTED.items())
PUT = f"""\
CREATE OR REPLACE FUNCTION foreshard.put_outcome(outcome text) RETURNS void LANGUAGE plpgsql
{_settings} AS $body$
-- Do to the rows here what a statement has done on the first shard, with the rights of whoever wrote there. Of several
-- tables, those that others refer to come first, but for deletes, which are in their order: children before parents.
DECLARE
  changes jsonb[] := ARRAY(SELECT line::jsonb FROM regexp_split_to_table(outcome, E'\\n') AS line WHERE line <> '');
  tables text[] := ARRAY(SELECT DISTINCT each->>'table' FROM unnest(changes) AS each);
  change jsonb;
BEGIN
  -- Whoever has written one of them before may have committed on the first shard only: wait for it here, too.
  PERFORM pg_advisory_xact_lock(hashtextextended(name, {LOCK_SEED}))
  FROM (SELECT name FROM unnest(tables) AS name ORDER BY name) AS sorted;
  FOR change IN
    WITH RECURSIVE below(relation, depth) AS (
      SELECT name::regclass::oid, 0 FROM unnest(tables) AS name
      UNION
      SELECT conrelid, depth + 1 FROM below JOIN pg_constraint ON confrelid = relation AND contype = 'f'
      WHERE conrelid <> confrelid AND depth < {DEPTH_MAX}
    )
    SELECT each FROM unnest(changes) WITH ORDINALITY AS given(each, place)
    ORDER BY cardinality(tables) > 1 AND each->>'operation' = 'delete',
             CASE WHEN cardinality(tables) > 1 AND each->>'operation' <> 'delete'
               THEN (SELECT max(depth) FROM below WHERE relation = (each->>'table')::regclass) END, place
  LOOP
    PERFORM foreshard.put_change(change->>'table', change->>'operation',
      ARRAY(SELECT jsonb_array_elements_text(nullif(change->'old', 'null'))),
      ARRAY(SELECT jsonb_array_elements_text(nullif(change->'new', 'null'))),
      cardinality(changes) = 1 OR (cardinality(tables) = 1 AND change->>'operation' = 'update'));
  END LOOP;
END
$body$;
GRANT EXECUTE ON FUNCTION foreshard.put_outcome(text) TO PUBLIC;
"""

PUT_CHANGE = """\
CREATE OR REPLACE FUNCTION foreshard.put_change(
  relation text, operation text, old_texts text[], new_texts text[], is_strict boolean
) RETURNS void LANGUAGE plpgsql AS $body$
-- One statement's change of one table.
DECLARE
  keys text[] := ARRAY(
    SELECT quote_ident(a.attname) FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid
      AND a.attnum = ANY(i.indkey::int2[])
    WHERE i.indrelid = relation::regclass AND i.indisprimary ORDER BY a.attnum);
  columns text[] := ARRAY(
    SELECT quote_ident(attname) FROM pg_attribute WHERE attrelid = relation::regclass AND attnum > 0
      AND NOT attisdropped AND attgenerated = '' ORDER BY attnum);
  given text := format(
    '(SELECT place, o::%1$s AS old, n::%1$s AS new, o AS old_text, n AS new_text,
             row_number() OVER (PARTITION BY o ORDER BY place) AS turn
      FROM unnest($1, $2) WITH ORDINALITY AS each(o, n, place)) AS given', relation);
  found text;
  changed text[];
  sql text;
  done bigint;
BEGIN
  -- The row of the table that a given one was: by key, or the turn-th of those that print the same.
  found := array_to_string(
    ARRAY(SELECT format('foreshard_target.%1$s = (given.old).%1$s', name) FROM unnest(keys) AS name), ' AND ');
  IF keys = '{}' THEN
    found := format(
      'foreshard_target.ctid = (
         SELECT same.at FROM (
           SELECT foreshard_row.ctid AS at, row_number() OVER () AS turn
           FROM %s AS foreshard_row WHERE foreshard_row::text = given.old_text
         ) AS same WHERE same.turn = given.turn)', relation);
  END IF;
  IF operation = 'insert' THEN
    sql := format('INSERT INTO %s (%s) OVERRIDING SYSTEM VALUE SELECT %s FROM %s ORDER BY place', relation,
      array_to_string(columns, ', '),
      array_to_string(ARRAY(SELECT format('(given.new).%s', name) FROM unnest(columns) AS name), ', '), given);
  ELSIF operation = 'delete' THEN
    sql := format('DELETE FROM %s AS foreshard_target USING %s WHERE %s', relation, given, found);
  ELSE
    EXECUTE format(
      'SELECT array_agg(name) FROM (SELECT unnest(ARRAY[%s]) AS name FROM %s) AS each WHERE name IS NOT NULL',
      array_to_string(ARRAY(SELECT format(
        'CASE WHEN bool_or((given.old).%1$s::text IS DISTINCT FROM (given.new).%1$s::text) THEN %2$L END', name, name)
        FROM unnest(columns) AS name), ', '), given) INTO changed USING old_texts, new_texts;
    IF changed IS NULL THEN
      RETURN;
    END IF;
    sql := format('UPDATE %s AS foreshard_target SET %s FROM %s WHERE %s', relation,
      array_to_string(ARRAY(SELECT format('%1$s = (given.new).%1$s', name) FROM unnest(changed) AS name), ', '),
      given, found);
  END IF;
  EXECUTE sql USING old_texts, new_texts;
  GET DIAGNOSTICS done = ROW_COUNT;
  -- What followed from another change, by a foreign key, is done here already.
  IF done <> greatest(cardinality(old_texts), cardinality(new_texts)) AND is_strict THEN
    RAISE EXCEPTION 'the shards do not have the same rows of the reference table "%"', relation
      USING ERRCODE = 'data_corrupted', HINT = '`foreshard verify` tells which rows differ.',
            DETAIL = format('The first shard has changed %s rows, this one %s.',
                            greatest(cardinality(old_texts), cardinality(new_texts)), done);
  END IF;
END
$body$;
GRANT EXECUTE ON FUNCTION foreshard.put_change(text, text, text[], text[], boolean) TO PUBLIC;
"""


def outcome_steps(tables: list[Table], index: int, shard_count: int) -> Iterator[Step]:
    """What the shard of this index needs for the reference tables; nothing where there is no other shard."""
    if shard_count == 1 or not tables:
        return
    if index == 0:
        yield labelled_step("function foreshard.keep_outcome", KEEP)
        for table in tables:
            for event, referencing in EVENTS.items():
                trigger = f"foreshard_outcome_{event}"
                yield Step(
                    f"outcome trigger for {event} on {table.qualified}",
                    f"CREATE OR REPLACE TRIGGER {trigger} AFTER {event.upper()} ON {quote_table(table)}\n"
                    f"REFERENCING {referencing} FOR EACH STATEMENT EXECUTE FUNCTION foreshard.keep_outcome();\n",
                    f"EXISTS (SELECT FROM pg_trigger WHERE tgrelid = to_regclass({quote_text(quote_table(table))}) "
                    f"AND tgname = '{trigger}' AND tgenabled <> 'D')",
                )
        return
    yield labelled_step("function foreshard.put_change", PUT_CHANGE)
    yield labelled_step("function foreshard.put_outcome", PUT)
    for table in tables:
        yield _quiet_step(table)


def _quiet_step(table: Table) -> Step:
    """The user's own triggers have fired on the first shard."""
    loud = (
        f"tgrelid = to_regclass({quote_text(quote_table(table))}) AND NOT tgisinternal "
        "AND tgname NOT LIKE 'foreshard\\_%' AND tgenabled IN ('O', 'A')"
    )
    return Step(
        f"user's triggers on {table.qualified}",
        f"""\
DO $quiet$
DECLARE
  loud name;
BEGIN
  FOR loud IN SELECT tgname FROM pg_trigger WHERE {loud} LOOP
    EXECUTE format('ALTER TABLE %s ENABLE REPLICA TRIGGER %I', {quote_text(quote_table(table))}, loud);
  END LOOP;
END
$quiet$;
""",
        f"NOT EXISTS (SELECT FROM pg_trigger WHERE {loud})",
    )


async def copy_outcome(shard_count: int) -> None:
    """Give the other shards what the statement at hand has changed on the first one. SqlError when they differ."""
    [[(outcome, _)]] = await ask([(0, TAKE.encode(), False)])
    if outcome:
        sql = f"SELECT foreshard.put_outcome({quote_text(outcome)})".encode()
        await ask([(shard, sql, True) for shard in range(1, shard_count)])
