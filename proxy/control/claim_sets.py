"""The SQL of one claim set: triggers that claim and release the values of a table's unique columns.

The triggers go with rows, whoever writes them. Rows that are older than the triggers are claimed by claim_intake.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from foreshard._core.buckets import PLACED_FLAG
from foreshard._core.typed_keys import KeyType
from foreshard.proxy.catalog import Catalog, Table, TableKind
from foreshard.proxy.control.claims import SAFE
from foreshard.proxy.control.key_sql import (
    UUID_NAMES_BUCKET,
    bucket_of_row,
    chained_bucket_sql,
    inline_bucket_sql,
    qualified_sql,
)
from foreshard.proxy.control.lineage import bucket_of_child
from foreshard.proxy.control.steps import ALWAYS, Step
from foreshard.proxy.triggers.capture import quote_name, quote_table, quote_text

TRIGGER_PREFIX = "foreshard_claim_"
# Settings that decide how a value prints.
PRINTING = {"bytea_output": "hex", "DateStyle": "ISO, YMD", "TimeZone": "UTC"}
_PRINTS_ALIKE = (KeyType.TYPE_INT8, KeyType.TYPE_INT4, KeyType.TYPE_INT2, KeyType.TYPE_TEXT, KeyType.TYPE_UUID)
_EVENTS = ("insert", "update", "delete", "truncate", "guard")


def claim_name(table: Table, columns: Sequence[str]) -> str:
    """The name of a claim set, unique in the deployment."""
    return f"{table.qualified}.{','.join(columns)}"


def claim_names(catalog: Catalog) -> set[str]:
    """The names of all claim sets that are declared."""
    return {claim_name(table, columns) for table in catalog.tables.values() for columns in table.unique}


def claim_trigger(name: str) -> str:
    """What the triggers and the function of a claim set are called, less the event."""
    return f"{TRIGGER_PREFIX}{hashlib.md5(name.encode(), usedforsecurity=False).hexdigest()[:8]}"


def home_sql(table: Table, columns: Sequence[str], row: str) -> str:
    """The home of a row's values."""
    return chained_bucket_sql(table, columns, row)


def key_text_sql(columns: Sequence[str], row: str) -> str:
    """A row's values as one text; equal values are equal texts."""
    texts = [f"{row}.{quote_name(column)}::text" for column in columns]
    return texts[0] if len(texts) == 1 else f"ARRAY[{', '.join(texts)}]::text"


def is_claimed_sql(table: Table, columns: Sequence[str], row: str) -> str:
    """Whether a row's values are claimed: no NULL among them, and no placed key."""
    conditions = [f"{row}.{quote_name(column)} IS NOT NULL" for column in columns]
    if _is_child_key(table, columns):
        key = f"{row}.{quote_name(table.key)}"
        if table.type_of(table.key) is KeyType.TYPE_INT8:
            conditions = [f"NOT {key} BETWEEN {PLACED_FLAG} AND {2 * PLACED_FLAG - 1}"]
        elif table.type_of(table.key) is KeyType.TYPE_UUID:
            conditions = [f"NOT ({UUID_NAMES_BUCKET.replace('key', key)})"]
    return " AND ".join(conditions)


def _is_child_key(table: Table, columns: Sequence[str]) -> bool:
    """Whether the set is a child's own key, which is placed with its parent unless the client gives it."""
    return table.kind is TableKind.CHILD and tuple(columns) == (table.key,)


def claim_set_steps(catalog: Catalog, table: Table, columns: Sequence[str]) -> Iterator[Step]:
    """The triggers of one claim set."""
    name = claim_name(table, columns)
    trigger = claim_trigger(name)
    function = f"foreshard.{trigger}"
    old, new = is_claimed_sql(table, columns, "OLD"), is_claimed_sql(table, columns, "NEW")
    watched = dict.fromkeys((*columns, *table.routing_columns))
    changed = " OR ".join(f"OLD.{quote_name(column)} IS DISTINCT FROM NEW.{quote_name(column)}" for column in watched)
    on = f"ON {quote_table(table)} FOR EACH ROW WHEN"
    # A condition is read anew in each statement, which costs more than a call, unless few rows meet it.
    on_new = f"{on} ({new})" if _is_child_key(table, columns) else f"ON {quote_table(table)} FOR EACH ROW"
    run = f"EXECUTE FUNCTION {function}()"
    yield Step(
        f"claims of {name}",
        f"""\
{_row_sql(table, name, columns)}\
{_function_sql(table, columns, function)}\
{_insert_sql(table, columns, trigger)}\
CREATE OR REPLACE TRIGGER {trigger}_insert AFTER INSERT {on_new} EXECUTE FUNCTION {function}_insert();
CREATE OR REPLACE TRIGGER {trigger}_update AFTER UPDATE {on} ({changed}) {run};
CREATE OR REPLACE TRIGGER {trigger}_delete AFTER DELETE {on} ({old}) {run};
CREATE OR REPLACE TRIGGER {trigger}_truncate BEFORE TRUNCATE ON {quote_table(table)} {run};
{_guard_sql(catalog, table, columns, trigger)}\
""",
        f"(SELECT count(*) >= 4 FROM pg_trigger WHERE tgrelid = to_regclass({quote_text(quote_table(table))})"
        f" AND tgname LIKE {_like(trigger)})",
    )


def forget_steps(known: dict[str, str], catalog: Catalog) -> Iterator[Step]:
    """Take away the triggers of sets (name -> relation) that are no longer declared; their claims follow later."""
    declared = claim_names(catalog)
    for name, relation in known.items():
        if name in declared:
            continue
        trigger = claim_trigger(name)
        drops = "\n".join(f"    DROP TRIGGER IF EXISTS {trigger}_{event} ON {relation};" for event in _EVENTS)
        yield Step(
            f"no claims of {name}",
            f"""\
DO $forget$
BEGIN
  IF to_regclass({quote_text(relation)}) IS NOT NULL THEN
{drops}
  END IF;
END
$forget$;
DROP FUNCTION IF EXISTS foreshard.{trigger}();
DROP FUNCTION IF EXISTS foreshard.{trigger}_insert();
DROP FUNCTION IF EXISTS foreshard.{trigger}_guard();
DELETE FROM foreshard.claim_set WHERE name = {quote_text(name)};
DELETE FROM foreshard.applied WHERE object = {quote_text(f"claims of {name}")};
""",
            ALWAYS,
        )


def _like(trigger: str) -> str:
    escaped = trigger.replace("_", "\\_")
    return quote_text(f"{escaped}%")


def _row_sql(table: Table, name: str, columns: Sequence[str]) -> str:
    """The set's row; a table without the triggers is a new one, and claims that an older one left go."""
    listed = ", ".join(quote_text(column) for column in columns)
    relation = quote_text(quote_table(table))
    values = f"{quote_text(name)}, {relation}, ARRAY[{listed}], false"
    return f"""\
DO $set$
BEGIN
  IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = {relation}::regclass
                 AND tgname = {quote_text(f"{claim_trigger(name)}_insert")}) THEN
    DELETE FROM foreshard.claim WHERE name = {quote_text(name)};
    INSERT INTO foreshard.claim_set (name, relation, columns, is_taken_in) VALUES ({values})
    ON CONFLICT (name) DO UPDATE SET is_taken_in = false;
  END IF;
END
$set$;
"""


def _function_sql(table: Table, columns: Sequence[str], function: str) -> str:
    """The trigger function: what it is run for says whether there is an OLD or a NEW row."""
    name = quote_text(claim_name(table, columns))
    settings = "" if all(table.type_of(column) in _PRINTS_ALIKE for column in columns) else _printing_sql()

    def call(what: str, row: str) -> str:
        home, bucket = home_sql(table, columns, row), bucket_of_row(table, row)
        return f"foreshard.{what}({name}, {key_text_sql(columns, row)}, {home}, {bucket})"

    return f"""\
CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql {SAFE} {settings} AS $body$
BEGIN
  IF TG_OP = 'TRUNCATE' THEN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
      RAISE EXCEPTION 'TRUNCATE of a table with columns that are unique over all shards'
        USING ERRCODE = 'feature_not_supported', HINT = 'TRUNCATE it at READ COMMITTED.',
              DETAIL = 'An older snapshot does not show all claims of its rows.';
    END IF;
    PERFORM {call("release_row", "held")}
    FROM {quote_table(table)} AS held WHERE {is_claimed_sql(table, columns, "held")};
    RETURN NULL;
  END IF;
  IF TG_OP <> 'INSERT' AND {is_claimed_sql(table, columns, "OLD")} THEN
    PERFORM {call("release_row", "OLD")};
  END IF;
  IF TG_OP <> 'DELETE' AND {is_claimed_sql(table, columns, "NEW")} THEN
    PERFORM {call("claim_row", "NEW")};
  END IF;
  RETURN NULL;
END
$body$;
"""


def _insert_sql(table: Table, columns: Sequence[str], trigger: str) -> str:
    """The function for new rows, which most claims are: one statement where the value's home is here and it is free.

    A search_path of its own would take a fifth of an INSERT's time, so where no other setting is needed all names in
    it are qualified instead: it runs as its owner, whatever path the client has. A value that is there already may be
    released by the same transaction through another shard: `claim_row` notes it, and its end tells.
    """
    name = quote_text(claim_name(table, columns))
    types = {table.type_of(column) for column in (*columns, *table.routing_columns)}
    is_plain = types <= set(_PRINTS_ALIKE)
    settings = "SECURITY DEFINER" if is_plain else f"{SAFE} {_printing_sql()}"
    key = key_text_sql(columns, "NEW").replace("::text", "::pg_catalog.text")
    home, bucket = qualified_sql(home_sql(table, columns, "NEW")), qualified_sql(inline_bucket_sql(table, "NEW"))
    # Of a child's own key the trigger's condition has told.
    also = "" if _is_child_key(table, columns) else f" AND {is_claimed_sql(table, columns, 'NEW')}"
    return f"""\
CREATE OR REPLACE FUNCTION foreshard.{trigger}_insert() RETURNS trigger LANGUAGE plpgsql {settings} AS $body$
DECLARE
  home pg_catalog.int4 := {home};
BEGIN
  INSERT INTO foreshard.claim (home, name, key, bucket)
  SELECT home, {name}, {key}, {bucket} FROM foreshard.owned_buckets AS owned
  WHERE pg_catalog.get_bit(owned.buckets, home) OPERATOR(pg_catalog.=) 1{also}
  ON CONFLICT DO NOTHING;
  IF NOT FOUND{also} THEN
    PERFORM foreshard.claim_row({name}, {key}, home, {bucket});
  END IF;
  RETURN NULL;
END
$body$;
"""


def _printing_sql() -> str:
    return " ".join(f"SET {name} = {quote_text(value)}" for name, value in PRINTING.items())


def _guard_sql(catalog: Catalog, table: Table, columns: Sequence[str], trigger: str) -> str:
    """A child's explicit key may look like a placed one only if it names its parent's bucket."""
    if not _is_child_key(table, columns) or not table.is_placeable:
        return ""
    key = f"NEW.{quote_name(table.key)}"
    is_placed = f"NOT ({is_claimed_sql(table, columns, 'NEW')})"
    return f"""\
CREATE OR REPLACE FUNCTION foreshard.{trigger}_guard() RETURNS trigger LANGUAGE plpgsql {SAFE} AS $body$
BEGIN
  IF (foreshard.bucket_of({key}) <> {bucket_of_child(catalog, table, "NEW")}) THEN
    RAISE EXCEPTION 'the key of the new row names another bucket than its parent''s'
      USING ERRCODE = 'check_violation', HINT = 'Leave the key out, or give one that Foreshard does not generate.';
  END IF;
  RETURN NULL;
END
$body$;
CREATE OR REPLACE TRIGGER {trigger}_guard AFTER INSERT OR UPDATE ON {quote_table(table)} FOR EACH ROW
WHEN ({is_placed} AND foreshard.bucket_of({key}) <> {bucket_of_row(table, "NEW")})
EXECUTE FUNCTION foreshard.{trigger}_guard();
"""
