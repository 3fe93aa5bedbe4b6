"""What each shard should have in schema foreshard, and on the declared tables.

A placed key is `2^52 | bucket << 40 | counter`. A root's key column has foreshard.next_key(sequence) as its default,
which reads the bucket from the setting foreshard.bucket; a child's key column has no default but a trigger that fills
NULL with a key of its parent's bucket. The counter comes from the column's own sequence, with CACHE 1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from foreshard._core.buckets import BUCKET_COUNT, COUNTER_BITS, PLACED_FLAG, initial_map
from foreshard._core.typed_keys import KeyType
from foreshard.proxy.catalog import Catalog, Table, TableKind
from foreshard.proxy.config import Config, qualified
from foreshard.proxy.control.arbiters import arbiter_steps
from foreshard.proxy.control.away import away_steps, away_table_steps
from foreshard.proxy.control.claim_sets import claim_set_steps, forget_steps
from foreshard.proxy.control.claims import claim_steps
from foreshard.proxy.control.facts import Facts
from foreshard.proxy.control.fence import fence_steps
from foreshard.proxy.control.key_sql import bucket_index_steps, bucket_of_steps, function_step
from foreshard.proxy.control.leaving import leaving_steps
from foreshard.proxy.control.lineage import bucket_of_child, looks_further
from foreshard.proxy.control.moves import move_steps
from foreshard.proxy.control.outcome import outcome_steps
from foreshard.proxy.control.place_guard import place_guard_steps, refuse_place_step
from foreshard.proxy.control.shard_list import shard_list_steps
from foreshard.proxy.control.spread_facts import spread_step
from foreshard.proxy.control.steps import ALWAYS, APPLIED, SCHEMA, Step, labelled_step
from foreshard.proxy.triggers.capture import (
    OPERATIONS,
    capture_sql,
    outbox_sql,
    quote_name,
    quote_table,
    quote_text,
)

COUNTER_MAX = (1 << COUNTER_BITS) - 1

SHARD_INFO = labelled_step(
    "table foreshard.shard_info",
    """\
CREATE TABLE IF NOT EXISTS foreshard.shard_info (
  name text NOT NULL,
  index integer NOT NULL,
  cluster text NOT NULL,
  is_only_row boolean PRIMARY KEY DEFAULT true CHECK (is_only_row)
);
COMMENT ON TABLE foreshard.shard_info IS 'which shard of which cluster this database is';
""",
)

DECISION = labelled_step(
    "table foreshard.decision",
    """\
CREATE TABLE IF NOT EXISTS foreshard.decision (
  id text PRIMARY KEY,
  outcome text NOT NULL CHECK (outcome IN ('commit', 'abort')),
  decided_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE foreshard.decision IS 'how transactions over several shards end whose commit point this shard is';
GRANT INSERT ON foreshard.decision TO PUBLIC; -- the row is written in the client's own transaction
""",
)

GATE = labelled_step(
    "table foreshard.gate",
    """\
CREATE TABLE IF NOT EXISTS foreshard.gate ();
COMMENT ON TABLE foreshard.gate IS 'locked by commits over several shards, and by who opens snapshots of all shards';
GRANT INSERT ON foreshard.gate TO PUBLIC; -- to lock it in ROW EXCLUSIVE mode, in the client's own transaction
""",
)

# Read by the query node, whose session on the shard so says what its snapshot is called.
SNAPSHOT = labelled_step(
    "view foreshard.snapshot",
    """\
CREATE OR REPLACE VIEW foreshard.snapshot AS SELECT pg_catalog.pg_export_snapshot() AS id;
GRANT SELECT ON foreshard.snapshot TO PUBLIC;
""",
)

_REFUSE_COUNTER = f"""\
  RAISE EXCEPTION 'sequence % has no counter left for a placed key', sequence
    USING ERRCODE = 'sequence_generator_limit_exceeded',
          DETAIL = pg_catalog.format('The counter is %s; a placed key holds 0 to {COUNTER_MAX}.', counter),
          HINT = 'Reset the sequence to a value in range that no key of this shard has yet.';
"""

NEXT_KEY = f"""\
CREATE OR REPLACE FUNCTION foreshard.next_key(sequence regclass) RETURNS bigint LANGUAGE plpgsql VOLATILE AS $body$
-- The next key of the bucket in setting foreshard.bucket, which the proxy keeps on each of its connections.
-- One condition decides the usual case: each statement of a function costs, and this one runs for every row.
DECLARE
  setting text := pg_catalog.current_setting('foreshard.bucket', true);
  counter bigint := pg_catalog.nextval(sequence);
BEGIN
  IF pg_catalog.translate(setting, '0123456789', '') = '' AND pg_catalog.length(setting) BETWEEN 1 AND 4
     AND setting::bigint < {BUCKET_COUNT} AND counter BETWEEN 0 AND {COUNTER_MAX} THEN
    RETURN {PLACED_FLAG} | (setting::bigint << {COUNTER_BITS}) | counter;
  END IF;
  IF setting IS NULL OR setting = '' THEN
    RAISE EXCEPTION 'no bucket is set for a generated key'
      USING ERRCODE = 'object_not_in_prerequisite_state',
            DETAIL = 'A generated key of a sharded table carries the bucket in setting foreshard.bucket.',
            HINT = 'Insert through Foreshard, which chooses the bucket, or SET foreshard.bucket to one of this shard.';
  END IF;
  IF counter BETWEEN 0 AND {COUNTER_MAX} THEN
    RAISE EXCEPTION 'setting foreshard.bucket is "%", which is no bucket', setting
      USING ERRCODE = 'invalid_parameter_value', HINT = 'Buckets are 0 to {BUCKET_COUNT - 1}.';
  END IF;
{_REFUSE_COUNTER}\
END
$body$;
GRANT EXECUTE ON FUNCTION foreshard.next_key(regclass) TO PUBLIC;
"""

CHILD_KEY = f"""\
CREATE OR REPLACE FUNCTION foreshard.child_key(bucket integer, sequence regclass) RETURNS bigint
LANGUAGE plpgsql VOLATILE AS $body$
-- The next key of the bucket that the parent's row is in.
DECLARE
  counter bigint := pg_catalog.nextval(sequence);
BEGIN
  IF bucket IS NOT NULL AND counter BETWEEN 0 AND {COUNTER_MAX} THEN
    RETURN {PLACED_FLAG} | (bucket::bigint << {COUNTER_BITS}) | counter;
  END IF;
  IF bucket IS NULL THEN
    RAISE EXCEPTION 'a child row without its parent''s key has no place'
      USING ERRCODE = 'not_null_violation', HINT = 'Give the column that references the parent a value.';
  END IF;
{_REFUSE_COUNTER}\
END
$body$;
GRANT EXECUTE ON FUNCTION foreshard.child_key(integer, regclass) TO PUBLIC;
"""


def shard_steps(config: Config, catalog: Catalog, facts: Facts, index: int, cluster: tuple[str, int]) -> list[Step]:
    """Everything that the shard of this index should have, in order; `cluster` as read_cluster has it."""
    name, first_count = cluster
    steps = [
        SCHEMA,
        APPLIED,
        SHARD_INFO,
        _identity(config.shards[index].name, index, name),
        *(shard_list_steps(config) if index == 0 else ()),
        DECISION,
        GATE,
        SNAPSHOT,
        *bucket_of_steps(),
        labelled_step("function foreshard.next_key", NEXT_KEY),
        function_step("foreshard.child_key(integer, regclass)", CHILD_KEY),
        *claim_steps(initial_map(first_count), index),
        *move_steps(),
        *fence_steps(),
        *away_steps(),
        *leaving_steps(),
        *arbiter_steps(),
        refuse_place_step(),
        *(labelled_step(name, sql) for name, sql in outbox_sql()),
    ]
    for name, table in catalog.tables.items():
        steps.append(spread_step(table))
        steps += _key_steps(catalog, table, facts)
        steps += bucket_index_steps(catalog, table)
        steps += away_table_steps(table, facts.tables[name])
        steps += place_guard_steps(table)
        for columns in table.unique:
            steps += claim_set_steps(catalog, table, columns)
        triggers = [trigger for trigger in config.triggers if qualified(trigger.table) == name]
        if triggers or facts.tables[name].captured:
            steps += [_capture_step(table, *piece) for piece in capture_sql(table, triggers)]
    references = [table for table in catalog.tables.values() if table.kind is TableKind.REFERENCE]
    steps += outcome_steps(references, index, len(config.shards))
    steps += forget_steps(facts.claim_sets, catalog)
    for stray in facts.stray:
        table = Table(schema=stray.schema, name=stray.name, kind=TableKind.REFERENCE, key="", key_type="")
        steps += [_capture_step(table, *piece) for piece in capture_sql(table, ())]
    return steps


def _identity(name: str, index: int, cluster: str) -> Step:
    row = f"{quote_text(name)}, {index}, {quote_text(cluster)}"
    return Step(
        "row of foreshard.shard_info",
        f"INSERT INTO foreshard.shard_info (name, index, cluster) VALUES ({row})\n"
        "ON CONFLICT (is_only_row) DO UPDATE SET name = excluded.name, index = excluded.index;\n",
    )


def _key_steps(catalog: Catalog, table: Table, facts: Facts) -> Iterator[Step]:
    """The generated key of a root or child table; nothing when clients supply it."""
    source = facts.tables[table.qualified].sources.get(table.key)
    if table.type_of(table.key) is KeyType.TYPE_UUID:
        if source is not None and table.kind is TableKind.ROOT:
            yield _root_step(table, "foreshard.next_uuid()")
        elif table.generates_key:
            yield _child_step(catalog, table, f"foreshard.child_uuid({bucket_of_child(catalog, table, 'NEW')})")
        return
    if source is None or not source.sequence:
        return
    if source.identity:
        yield _identity_step(table, source.sequence)
    yield _sequence_step(table, source.sequence)
    sequence = f"{quote_text(source.sequence)}::regclass"
    if table.kind is TableKind.ROOT:
        yield _root_step(table, f"foreshard.next_key({sequence})")
    else:
        yield _child_step(catalog, table, f"foreshard.child_key({bucket_of_child(catalog, table, 'NEW')}, {sequence})")


def _identity_step(table: Table, sequence: str) -> Step:
    """An identity column becomes a column with a sequence of the same name that goes on where the old one was."""
    column = f"{quote_table(table)}.{quote_name(table.key)}"
    return Step(
        f"sequence of {table.qualified}",
        f"""\
DO $identity$
DECLARE
  following bigint := nextval({quote_text(sequence)});
BEGIN
  ALTER TABLE {quote_table(table)} ALTER COLUMN {quote_name(table.key)} DROP IDENTITY;
  EXECUTE format('CREATE SEQUENCE {sequence.replace("%", "%%").replace("'", "''")} AS bigint START %s', following);
  ALTER SEQUENCE {sequence} OWNED BY {column};
  GRANT USAGE ON SEQUENCE {sequence} TO PUBLIC; -- as an identity, which asks for no privilege
END
$identity$;
""",
        ALWAYS,
    )


def _sequence_step(table: Table, sequence: str) -> Step:
    return Step(
        f"sequence settings of {table.qualified}",
        f"ALTER SEQUENCE {sequence} AS bigint CACHE 1 NO CYCLE;\n",
        f"coalesce((SELECT seqcache = 1 AND seqtypid = 'bigint'::regtype AND NOT seqcycle FROM pg_sequence "
        f"WHERE seqrelid = to_regclass({quote_text(sequence)})), false)",
    )


def _root_step(table: Table, default: str) -> Step:
    return Step(
        key_object(table),
        f"ALTER TABLE {quote_table(table)} ALTER COLUMN {quote_name(table.key)}\n  SET DEFAULT {default};\n",
        f"coalesce({_default_of(table)} LIKE '{default.partition('(')[0]}(%', false)",
    )


def _child_step(catalog: Catalog, table: Table, new_key: str) -> Step:
    digest = hashlib.md5(table.qualified.encode(), usedforsecurity=False).hexdigest()[:8]
    readable = "".join(letter for letter in table.name if letter.isascii() and (letter.isalnum() or letter == "_"))
    function = f"foreshard.{quote_name(f'fill_key_{readable[:36]}_{digest}')}"
    key = quote_name(table.key)
    # Whoever inserts need not be allowed to read the parent's rows, no more than for a foreign key.
    rights = " SECURITY DEFINER SET search_path = pg_catalog, pg_temp" if looks_further(catalog, table) else ""
    return Step(
        key_object(table),
        f"""\
CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql{rights} AS $body$
BEGIN
  NEW.{key} := {new_key};
  RETURN NEW;
END
$body$;
GRANT EXECUTE ON FUNCTION {function}() TO PUBLIC;
ALTER TABLE {quote_table(table)} ALTER COLUMN {key} DROP DEFAULT;
CREATE OR REPLACE TRIGGER foreshard_fill_key BEFORE INSERT ON {quote_table(table)}
FOR EACH ROW WHEN (NEW.{key} IS NULL) EXECUTE FUNCTION {function}();
""",
        f"{_default_of(table)} IS NULL AND {_has_trigger(table, 'foreshard_fill_key')}",
    )


def key_object(table: Table) -> str:
    """The step that makes the table's keys placed ones; absent from foreshard.applied until the table was taken in."""
    return f"generated key of {table.qualified}"


def _capture_step(table: Table, label: str, sql: str) -> Step:
    """A piece of capture SQL; whether its trigger is there can be seen."""
    for operation in (*OPERATIONS, "truncate"):
        if f" {operation} on " in label:
            present = _has_trigger(table, f"foreshard_capture_{operation}")
            return Step(label, sql, present if "CREATE OR REPLACE TRIGGER" in sql else f"NOT {present}")
    name = quote_text(quote_table(table))
    count = "(SELECT count(*) FROM pg_trigger WHERE tgrelid = {} AND tgname LIKE 'foreshard\\_capture\\_%')"
    own = count.format(f"to_regclass({name})")
    return Step(
        label,
        sql,
        f"NOT EXISTS (SELECT FROM pg_partition_tree(to_regclass({name})) AS leaf "
        f"WHERE leaf.relid <> to_regclass({name}) AND {count.format('leaf.relid')} <> {own})",
    )


def _default_of(table: Table) -> str:
    """The default of the key column, as an SQL expression."""
    name = quote_text(quote_table(table))
    return (
        "(SELECT pg_get_expr(d.adbin, d.adrelid) FROM pg_attrdef d JOIN pg_attribute a "
        "ON a.attrelid = d.adrelid AND a.attnum = d.adnum "
        f"WHERE d.adrelid = to_regclass({name}) AND a.attname = {quote_text(table.key)})"
    )


def _has_trigger(table: Table, name: str) -> str:
    return (
        f"EXISTS (SELECT FROM pg_trigger WHERE tgrelid = to_regclass({quote_text(quote_table(table))}) "
        f"AND tgname = {quote_text(name)})"
    )
