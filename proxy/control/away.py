"""The SQL of keys placed by cost: rows that live away from the home bucket of their key (ARCHITECTURE.md, "Away rows").

Every key of such a table has one row `(home, name, key, bucket)` in foreshard.claim at its home, which says where its
row is, and whose unique index is the arbiter. A row away from home is noted in foreshard.away on its own shard, because
its bucket cannot be told from the key there. Both are kept by the table's triggers, whoever writes.

A row stays away from home when moves have brought its home, or its bucket, to the other's shard: its note stands, and
says which of that shard's buckets it moves with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from foreshard._core.typed_keys import HASH_SQL, TYPE_NAMES, KeyType
from foreshard.proxy.catalog import Catalog, Table
from foreshard.proxy.control.facts import TableFacts
from foreshard.proxy.control.key_sql import bucket_of_row, function_step
from foreshard.proxy.control.steps import Step, labelled_step
from foreshard.proxy.triggers.capture import quote_name, quote_table, quote_text

TRIGGER = "foreshard_away"
_SAFE = "SECURITY DEFINER SET search_path = pg_catalog, pg_temp"
# Settings that decide how a value prints, for the types that they concern.
_PRINTING = " SET bytea_output = 'hex' SET DateStyle = 'ISO, YMD' SET TimeZone = 'UTC'"
_PRINTS_ALIKE = (KeyType.TYPE_INT8, KeyType.TYPE_INT4, KeyType.TYPE_INT2, KeyType.TYPE_TEXT, KeyType.TYPE_UUID)

AWAY = """\
CREATE TABLE IF NOT EXISTS foreshard.away (
  name text NOT NULL,
  key text NOT NULL,
  bucket integer NOT NULL CHECK (bucket >= 0),
  PRIMARY KEY (name, key)
);
CREATE INDEX IF NOT EXISTS away_in_bucket ON foreshard.away (bucket, name);
COMMENT ON TABLE foreshard.away IS 'rows of this shard whose keys have other homes, and their buckets';
"""

BUCKET_NEAR = f"""\
CREATE OR REPLACE FUNCTION foreshard.bucket_near(bucket integer) RETURNS integer
LANGUAGE plpgsql STABLE {_SAFE} AS $body$
-- The bucket, or another one where it is not of this shard: any serves for a row that is here.
BEGIN
  IF foreshard.owns(bucket) THEN
    RETURN bucket;
  END IF;
  RETURN (SELECT position(B'1' IN buckets) - 1 FROM foreshard.owned_buckets);
END
$body$;
GRANT EXECUTE ON FUNCTION foreshard.bucket_near(integer) TO PUBLIC;
"""

BUCKET_HERE = f"""\
CREATE OR REPLACE FUNCTION foreshard.bucket_here() RETURNS integer LANGUAGE plpgsql STABLE {_SAFE} AS $body$
-- The bucket in setting foreshard.bucket, or another one of this shard.
DECLARE
  setting text := current_setting('foreshard.bucket', true);
BEGIN
  IF translate(setting, '0123456789', '') = '' AND length(setting) BETWEEN 1 AND 4 AND setting::integer < 4096 THEN
    RETURN foreshard.bucket_near(setting::integer);
  END IF;
  RETURN foreshard.bucket_near(0);
END
$body$;
REVOKE EXECUTE ON FUNCTION foreshard.bucket_here() FROM PUBLIC;
"""


CLAIMED_BUCKET = """\
CREATE OR REPLACE FUNCTION foreshard.claimed_bucket(name text, key {type}) RETURNS integer
LANGUAGE plpgsql STABLE {safe} AS $body$
-- The bucket of the row with this key, as its claim says; NULL when there is none.
BEGIN
  RETURN (SELECT held.bucket FROM foreshard.claim AS held
          WHERE held.home = foreshard.bucket_of(claimed_bucket.key) AND held.name = claimed_bucket.name
            AND held.key = claimed_bucket.key::text);
END
$body$;
GRANT EXECUTE ON FUNCTION foreshard.claimed_bucket(text, {type}) TO PUBLIC;
"""

RESERVE_KEY = """\
CREATE OR REPLACE FUNCTION foreshard.reserve_key(name text, key {type}, home integer) RETURNS integer
LANGUAGE plpgsql VOLATILE {safe} AS $body$
-- Keep others from claiming a free key until this transaction ends, and return NULL; or return the bucket of its row.
-- A row that is inserted and deleted again makes them wait at the unique index, and is gone with the transaction.
DECLARE
  found_bucket integer;
BEGIN
  IF NOT foreshard.owns(home) THEN
    RAISE EXCEPTION 'bucket % is not of this shard', home USING ERRCODE = 'object_not_in_prerequisite_state';
  END IF;
  LOOP
    INSERT INTO foreshard.claim VALUES (home, name, key::text, -1) ON CONFLICT DO NOTHING;
    IF FOUND THEN
      DELETE FROM foreshard.claim AS held
      WHERE held.home = reserve_key.home AND held.name = reserve_key.name AND held.key = reserve_key.key::text;
      RETURN NULL;
    END IF;
    SELECT held.bucket INTO found_bucket FROM foreshard.claim AS held
    WHERE held.home = reserve_key.home AND held.name = reserve_key.name AND held.key = reserve_key.key::text;
    IF FOUND THEN
      RETURN found_bucket;
    END IF;
  END LOOP;
END
$body$;
GRANT EXECUTE ON FUNCTION foreshard.reserve_key(text, {type}, integer) TO PUBLIC;
"""

OWN_BUCKET = """\
CREATE OR REPLACE FUNCTION foreshard.own_bucket(name text, key {type}) RETURNS integer
LANGUAGE plpgsql STABLE {safe} AS $body$
-- The bucket of the row with this key that the transaction at hand has made here, and whose claim is not settled.
BEGIN
  RETURN (SELECT due.bucket FROM foreshard.claim_pending AS due
          WHERE due.xid = pg_current_xact_id_if_assigned() AND due.name = own_bucket.name
            AND due.key = own_bucket.key::text AND NOT due.is_drop LIMIT 1);
END
$body$;
GRANT EXECUTE ON FUNCTION foreshard.own_bucket(text, {type}) TO PUBLIC;
"""

BUCKET_WHERE = """\
CREATE OR REPLACE FUNCTION foreshard.bucket_where(name text, key {type}) RETURNS integer
LANGUAGE plpgsql STABLE {safe} AS $body$
-- The bucket of a row of this shard: its home, unless it is away.
BEGIN
  RETURN coalesce((SELECT noted.bucket FROM foreshard.away AS noted
                   WHERE noted.name = bucket_where.name AND noted.key = bucket_where.key::text),
                  foreshard.bucket_of(key));
END
$body$;
GRANT EXECUTE ON FUNCTION foreshard.bucket_where(text, {type}) TO PUBLIC;
"""

# What is made for each key type: what its claim says, how a claim is reserved, where a row of this shard lives.
KEY_FUNCTIONS = {
    "foreshard.claimed_bucket(text, {type})": CLAIMED_BUCKET,
    "foreshard.own_bucket(text, {type})": OWN_BUCKET,
    "foreshard.reserve_key(text, {type}, integer)": RESERVE_KEY,
    "foreshard.bucket_where(text, {type})": BUCKET_WHERE,
}

TRIGGER_FUNCTION = """\
CREATE OR REPLACE FUNCTION {function} RETURNS trigger LANGUAGE plpgsql {safe} AS $body$
DECLARE
  home_bucket integer;
  place integer;
BEGIN
  IF TG_OP = 'TRUNCATE' THEN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
      RAISE EXCEPTION 'TRUNCATE of a table whose keys are placed by cost'
        USING ERRCODE = 'feature_not_supported', HINT = 'TRUNCATE it at READ COMMITTED.',
              DETAIL = 'An older snapshot does not show all claims of its rows.';
    END IF;
    PERFORM foreshard.release_row({name}, noted.key, foreshard.bucket_of(present.{key}), noted.bucket)
    FROM {rows} AS present JOIN foreshard.away AS noted ON noted.name = {name} AND noted.key = present.{key}::text;
    DELETE FROM foreshard.claim AS held USING {rows} AS present
    WHERE held.home = foreshard.bucket_of(present.{key}) AND held.name = {name} AND held.key = present.{key}::text
      AND NOT EXISTS (SELECT FROM foreshard.away AS noted WHERE noted.name = {name} AND noted.key = held.key);
    DELETE FROM foreshard.away AS noted WHERE noted.name = {name};
    RETURN NULL;
  END IF;
  IF TG_OP <> 'INSERT' THEN
    home_bucket := foreshard.bucket_of(OLD.{key});
    DELETE FROM foreshard.away AS noted WHERE noted.name = {name} AND noted.key = OLD.{key}::text
    RETURNING noted.bucket INTO place;
    IF FOUND THEN
      PERFORM foreshard.release_row({name}, OLD.{key}::text, home_bucket, place);
    ELSE
      DELETE FROM foreshard.claim AS held
      WHERE held.home = home_bucket AND held.name = {name} AND held.key = OLD.{key}::text;
      place := home_bucket;
    END IF;
  END IF;
  IF TG_OP <> 'DELETE'{still_there} THEN
    home_bucket := foreshard.bucket_of(NEW.{key});
    IF foreshard.owns(home_bucket) THEN
      INSERT INTO foreshard.claim VALUES (home_bucket, {name}, NEW.{key}::text, home_bucket) ON CONFLICT DO NOTHING;
      IF NOT FOUND THEN
        RAISE unique_violation USING
          MESSAGE = {message}, DETAIL = format('Key (%s)=(%s) already exists.', {key_text}, NEW.{key}),
          SCHEMA = {schema}, TABLE = {table}, CONSTRAINT = {constraint};
      END IF;
    ELSE
      place := foreshard.bucket_near(coalesce(place, foreshard.bucket_here()));
      INSERT INTO foreshard.away VALUES ({name}, NEW.{key}::text, place);
      PERFORM foreshard.claim_row({name}, NEW.{key}::text, home_bucket, place);
    END IF;
  END IF;
  RETURN NULL;
END
$body$;
"""


def away_steps() -> Iterator[Step]:
    """What every shard needs for rows away from home, whether it has such tables or not."""
    yield labelled_step("table foreshard.away", AWAY)
    yield function_step("foreshard.bucket_near(integer)", BUCKET_NEAR)
    yield function_step("foreshard.bucket_here()", BUCKET_HERE)
    for key_type in HASH_SQL:
        words = {"type": TYPE_NAMES[key_type], "safe": safe_options(KeyType(key_type))}
        for name, sql in KEY_FUNCTIONS.items():
            yield function_step(name.format(**words), sql.format(**words))


def away_table_steps(table: Table, facts: TableFacts) -> Iterator[Step]:
    """The triggers of a table whose keys are placed by cost, or their removal."""
    if table.by_cost:
        yield _triggers_step(table, facts)
    elif facts.away:
        yield _removal_step(table)


def bucket_of_root(table: Table, row: str) -> str:
    """The bucket of a root's row that is on the shard."""
    if not table.by_cost:
        return bucket_of_row(table, row)
    return f"foreshard.bucket_where({quote_text(table.claim)}, {row}.{quote_name(table.key)})"


def bucket_of_parent(catalog: Catalog, table: Table, row: str) -> str:
    """The bucket that a child's row shares with its parent, as its reference to that says."""
    claim = catalog.claim_of(table, table.via or "")
    if claim is None:
        return bucket_of_row(table, row)
    return f"foreshard.bucket_where({quote_text(claim)}, {row}.{quote_name(table.via or '')})"


def _function(table: Table) -> str:
    digest = hashlib.md5(table.qualified.encode(), usedforsecurity=False).hexdigest()[:8]
    return f"foreshard.{TRIGGER}_{digest}()"


def safe_options(key_type: KeyType) -> str:
    """The options of a function that turns keys into text."""
    return _SAFE if key_type in _PRINTS_ALIKE else _SAFE + _PRINTING


def _triggers_step(table: Table, facts: TableFacts) -> Step:
    key, rows, function = quote_name(table.key), quote_table(table), _function(table)
    constraint = _constraint(facts)
    # Triggers of users run before this one where their names say so, and may have taken the row away.
    still_there = f" AND EXISTS (SELECT FROM {rows} AS present WHERE present.{key} = NEW.{key})"
    body = TRIGGER_FUNCTION.format(
        still_there=still_there if table.has_triggers else "",
        function=function,
        safe=safe_options(table.type_of(table.key) or KeyType.TYPE_TEXT),
        name=quote_text(table.claim),
        rows=rows,
        key=key,
        key_text=quote_text(table.key),
        message=quote_text(f'duplicate key value violates unique constraint "{constraint}"'),
        schema=quote_text(table.schema),
        table=quote_text(table.name),
        constraint=quote_text(constraint),
    )
    on, run = f"ON {rows} FOR EACH ROW", f"EXECUTE FUNCTION {function}"
    return Step(
        f"keys of {table.qualified} placed by cost",
        f"""\
{_take_in_sql(table)}\
{body}\
CREATE OR REPLACE TRIGGER {TRIGGER}_insert AFTER INSERT {on} {run};
CREATE OR REPLACE TRIGGER {TRIGGER}_update AFTER UPDATE {on} WHEN (OLD.{key} IS DISTINCT FROM NEW.{key}) {run};
CREATE OR REPLACE TRIGGER {TRIGGER}_delete AFTER DELETE {on} {run};
CREATE OR REPLACE TRIGGER {TRIGGER}_truncate BEFORE TRUNCATE ON {rows} {run};
""",
        f"(SELECT count(*) = 4 FROM pg_trigger WHERE tgrelid = to_regclass({quote_text(rows)})"
        f" AND tgname LIKE {quote_text(TRIGGER.replace('_', chr(92) + '_') + chr(92) + '_%')})",
    )


def _constraint(facts: TableFacts) -> str:
    return next((index.name for index in facts.unique if index.is_primary), f"{facts.name}_pkey")


def _take_in_sql(table: Table) -> str:
    """Claims for the rows that are there, once: they are at home, as all rows were until now."""
    rows, key, name = quote_table(table), quote_name(table.key), quote_text(table.claim)
    return f"""\
LOCK TABLE {rows} IN SHARE ROW EXCLUSIVE MODE;
DO $take_in$
BEGIN
  IF EXISTS (SELECT FROM pg_trigger WHERE tgrelid = {quote_text(rows)}::regclass AND tgname = '{TRIGGER}_insert') THEN
    RETURN;
  END IF;
  DELETE FROM foreshard.claim WHERE name = {name};  -- a table of this name that has been dropped may have left some
  DELETE FROM foreshard.away WHERE name = {name};
  SET LOCAL bytea_output = 'hex';
  SET LOCAL DateStyle = 'ISO, YMD';
  SET LOCAL TimeZone = 'UTC';
  INSERT INTO foreshard.claim (home, name, key, bucket)
  SELECT foreshard.bucket_of(held.{key}), {name}, held.{key}::text, foreshard.bucket_of(held.{key}) FROM {rows} AS held;
END
$take_in$;
"""


def _removal_step(table: Table) -> Step:
    """Without `placement: cost` nobody looks for rows away from home, so there may be none."""
    rows, name = quote_table(table), quote_text(table.claim)
    shown = table.qualified.replace("%", "%%").replace("'", "''")
    events = ("insert", "update", "delete", "truncate")
    drops = "".join(f"DROP TRIGGER IF EXISTS {TRIGGER}_{what} ON {rows};\n" for what in events)
    return Step(
        f"removal of the keys of {table.qualified} placed by cost",
        f"""\
LOCK TABLE {rows} IN SHARE ROW EXCLUSIVE MODE;
DO $none_away$
BEGIN
  IF EXISTS (SELECT FROM foreshard.away WHERE name = {name}) THEN
    RAISE EXCEPTION 'rows of {shown} are away from home, where nobody would look for them with `placement: home`'
      USING HINT = 'Leave `placement: cost`, or delete the rows that foreshard.away names on each shard.';
  END IF;
END
$none_away$;
{drops}\
DROP FUNCTION IF EXISTS {_function(table)};
DELETE FROM foreshard.claim WHERE name = {name};
""",
        f"NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = to_regclass({quote_text(rows)})"
        f" AND tgname = '{TRIGGER}_insert')",
    )
