"""The SQL of claims: values that are unique over all shards (ARCHITECTURE.md, "Claims").

A claim set is one column, or several, of one sharded table (claim_sets.py). Its name is `schema.table.column[,column]`,
the key of a row its values as text, its home the bucket that their hash names, its bucket the row's own. The claims of
one home are one range of the table's index, and move with that bucket.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from foreshard.proxy.control.key_sql import function_step
from foreshard.proxy.control.steps import Step, labelled_step

SAFE = "SECURITY DEFINER SET search_path = pg_catalog, pg_temp"

CLAIM = """\
DO $old$
BEGIN
  IF to_regclass('foreshard.claim') IS NOT NULL AND NOT EXISTS (
    SELECT FROM pg_attribute WHERE attrelid = to_regclass('foreshard.claim') AND attname = 'home' AND NOT attisdropped
  ) THEN
    RAISE EXCEPTION 'foreshard.claim has no column home: an earlier version of Foreshard made this deployment'
      USING ERRCODE = 'object_not_in_prerequisite_state',
            HINT = 'There is no way to convert it. Make the deployment anew, and load its rows through Foreshard.';
  END IF;
END
$old$;
CREATE TABLE IF NOT EXISTS foreshard.claim (
  home integer NOT NULL,
  name text NOT NULL,
  key text NOT NULL,
  bucket integer NOT NULL,
  CONSTRAINT claim_is_unique PRIMARY KEY (home, name, key)
);
COMMENT ON TABLE foreshard.claim IS 'values of unique columns whose home is here, and the buckets of their rows';
"""

CLAIM_SET = """\
CREATE TABLE IF NOT EXISTS foreshard.claim_set (
  name text PRIMARY KEY,
  relation text NOT NULL,
  columns text[] NOT NULL,
  is_taken_in boolean NOT NULL DEFAULT false
);
COMMENT ON TABLE foreshard.claim_set IS
  'unique columns, and whether the rows that this shard had before have their claims';
"""

CLAIM_REFUSE = f"""\
CREATE OR REPLACE FUNCTION foreshard.claim_refuse(name text, key text) RETURNS void
LANGUAGE plpgsql STABLE {SAFE} AS $body$
-- Say that a value is taken, in the words of a unique index on its columns.
DECLARE
  held foreshard.claim_set;
  found text;
BEGIN
  SELECT * INTO held FROM foreshard.claim_set AS known WHERE known.name = claim_refuse.name;
  SELECT i.relname INTO found FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid
  WHERE x.indrelid = to_regclass(held.relation) AND x.indisunique AND held.columns = ARRAY(
    SELECT a.attname::text FROM unnest(x.indkey::int2[]) WITH ORDINALITY AS k(number, place)
    JOIN pg_attribute a ON a.attrelid = x.indrelid AND a.attnum = k.number
    WHERE k.place <= x.indnkeyatts ORDER BY k.place)
  ORDER BY i.relname LIMIT 1;
  RAISE EXCEPTION 'duplicate key value violates unique constraint "%"', coalesce(found, claim_refuse.name)
    USING ERRCODE = 'unique_violation', CONSTRAINT = coalesce(found, claim_refuse.name),
          SCHEMA = coalesce((SELECT n.nspname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                             WHERE c.oid = to_regclass(held.relation)), 'foreshard'),
          TABLE = coalesce((SELECT c.relname::text FROM pg_class c WHERE c.oid = to_regclass(held.relation)), 'claim'),
          DETAIL = pg_catalog.format(
            'Key (%s)=(%s) already exists.', array_to_string(held.columns, ', '),
            CASE WHEN cardinality(held.columns) > 1 THEN array_to_string(claim_refuse.key::text[], ', ')
                 ELSE claim_refuse.key END);
END
$body$;
"""

CLAIM_PENDING = """\
CREATE UNLOGGED TABLE IF NOT EXISTS foreshard.claim_pending (
  xid xid8 NOT NULL DEFAULT pg_current_xact_id(), -- of whoever owes it: nobody else's rows are looked through
  name text NOT NULL,
  key text NOT NULL,
  home integer NOT NULL,
  bucket integer NOT NULL,
  is_drop boolean NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX IF NOT EXISTS claim_pending_of ON foreshard.claim_pending (xid, name, key);
COMMENT ON TABLE foreshard.claim_pending IS 'what open transactions have to claim on other shards; no row survives one';
CREATE OR REPLACE FUNCTION foreshard.claim_check_settled() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
BEGIN
  IF EXISTS (SELECT FROM foreshard.claim_pending AS due
             WHERE due.xid = NEW.xid AND due.name = NEW.name AND due.key = NEW.key AND due.is_drop = NEW.is_drop) THEN
    IF foreshard.owns(NEW.home) THEN
      PERFORM foreshard.claim_drop(due.name, due.key, due.home, due.bucket) FROM foreshard.claim_pending AS due
      WHERE due.xid = NEW.xid AND due.name = NEW.name AND due.key = NEW.key AND due.is_drop;
      DELETE FROM foreshard.claim_pending AS due
      WHERE due.xid = NEW.xid AND due.name = NEW.name AND due.key = NEW.key AND (due.is_drop OR NOT NEW.is_drop);
      IF NOT NEW.is_drop THEN
        PERFORM foreshard.claim_take(NEW.name, NEW.key, NEW.home, NEW.bucket);
      END IF;
      RETURN NULL;
    END IF;
    RAISE EXCEPTION 'the claim of % on "%" was not %',
      NEW.name, NEW.key, CASE WHEN NEW.is_drop THEN 'released' ELSE 'taken' END
      USING ERRCODE = 'object_not_in_prerequisite_state',
            DETAIL = pg_catalog.format('Another shard keeps it: that of bucket %s.', NEW.home),
            HINT = 'Write through Foreshard, which settles claims on other shards at the end of a transaction. '
              'SET CONSTRAINTS ALL IMMEDIATE does not let it: name the constraints in place of ALL.';
  END IF;
  RETURN NULL;
END
$body$;
DO $trigger$
BEGIN
  IF NOT EXISTS (SELECT FROM pg_trigger
                 WHERE tgrelid = 'foreshard.claim_pending'::regclass AND tgname = 'claim_settled') THEN
    CREATE CONSTRAINT TRIGGER claim_settled AFTER INSERT ON foreshard.claim_pending DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION foreshard.claim_check_settled();
  END IF;
END
$trigger$;
"""

OWNED = """\
CREATE TABLE IF NOT EXISTS foreshard.owned_buckets (
  is_only_row boolean PRIMARY KEY DEFAULT true CHECK (is_only_row),
  buckets bit(4096) NOT NULL,
  moves bigint NOT NULL DEFAULT 0,
  arrivals bigint NOT NULL DEFAULT 0
);
ALTER TABLE foreshard.owned_buckets ADD COLUMN IF NOT EXISTS moves bigint NOT NULL DEFAULT 0;
ALTER TABLE foreshard.owned_buckets ADD COLUMN IF NOT EXISTS arrivals bigint NOT NULL DEFAULT 0;
COMMENT ON TABLE foreshard.owned_buckets IS
  'bit n: this shard owns bucket n; moves, arrivals: how many buckets have left it, and have come to it';
"""

OWNS = f"""\
CREATE OR REPLACE FUNCTION foreshard.owns(bucket integer) RETURNS boolean LANGUAGE sql STABLE {SAFE} AS $body$
  SELECT get_bit(buckets, bucket) = 1 FROM foreshard.owned_buckets
$body$;
GRANT EXECUTE ON FUNCTION foreshard.owns(integer) TO PUBLIC;
"""

CLAIM_TAKE = f"""\
CREATE OR REPLACE FUNCTION foreshard.claim_take(name text, key text, home integer, bucket integer) RETURNS void
LANGUAGE plpgsql VOLATILE {SAFE} AS $body$
-- Claim a value for a row of `bucket`, which is on another shard. Waits for whoever is claiming it; 23505 when taken.
BEGIN
  IF NOT foreshard.owns(home) THEN
    RAISE EXCEPTION 'bucket % is not of this shard', home USING ERRCODE = 'object_not_in_prerequisite_state';
  END IF;
  INSERT INTO foreshard.claim (home, name, key, bucket)
  VALUES (claim_take.home, claim_take.name, claim_take.key, claim_take.bucket);
EXCEPTION WHEN unique_violation THEN
  PERFORM foreshard.claim_refuse(claim_take.name, claim_take.key);
END
$body$;
GRANT EXECUTE ON FUNCTION foreshard.claim_take(text, text, integer, integer) TO PUBLIC;
"""

CLAIM_DROP = f"""\
CREATE OR REPLACE FUNCTION foreshard.claim_drop(name text, key text, home integer, bucket integer) RETURNS void
LANGUAGE plpgsql VOLATILE {SAFE} AS $body$
-- Release a claim of a row of `bucket`. The row was seen committed, its claim's commit may still be under way: the
-- INSERT waits for it.
BEGIN
  IF NOT foreshard.owns(home) THEN
    RAISE EXCEPTION 'bucket % is not of this shard', home USING ERRCODE = 'object_not_in_prerequisite_state';
  END IF;
  INSERT INTO foreshard.claim AS held (home, name, key, bucket)
  VALUES (claim_drop.home, claim_drop.name, claim_drop.key, claim_drop.bucket)
  ON CONFLICT ON CONSTRAINT claim_is_unique DO UPDATE SET bucket = held.bucket;
  DELETE FROM foreshard.claim AS held
  WHERE held.home = claim_drop.home AND held.name = claim_drop.name AND held.key = claim_drop.key
    AND held.bucket = claim_drop.bucket;
END
$body$;
GRANT EXECUTE ON FUNCTION foreshard.claim_drop(text, text, integer, integer) TO PUBLIC;
"""

CLAIMS_DUE = f"""\
CREATE OR REPLACE FUNCTION foreshard.claims_due() RETURNS TABLE (home integer, command text)
LANGUAGE sql VOLATILE {SAFE} AS $body$
-- What this transaction owes other shards: commands for the shard of each home. Whoever asks must run them.
  WITH due AS (
    DELETE FROM foreshard.claim_pending AS pending WHERE pending.xid = pg_current_xact_id_if_assigned() RETURNING *
  )
  SELECT due.home,
         format('SELECT foreshard.%s(%L, %L, %s, %s)', CASE WHEN due.is_drop THEN 'claim_drop' ELSE 'claim_take' END,
                due.name, due.key, due.home, due.bucket)
  FROM due ORDER BY due.is_drop DESC, due.name, due.key
$body$;
GRANT EXECUTE ON FUNCTION foreshard.claims_due() TO PUBLIC;
"""

CLAIMS_FORGET = f"""\
CREATE OR REPLACE FUNCTION foreshard.claims_forget(relation text) RETURNS void
LANGUAGE plpgsql VOLATILE {SAFE} AS $body$
-- The claims kept here for a table that is no more. To be called on every shard, in the transaction of its DROP.
BEGIN
  IF to_regclass(claims_forget.relation) IS NULL THEN
    DELETE FROM foreshard.claim AS held USING foreshard.claim_set AS known
    WHERE held.name = known.name AND known.relation = claims_forget.relation;
    DELETE FROM foreshard.claim_set AS known WHERE known.relation = claims_forget.relation;
  END IF;
END
$body$;
"""

CLAIMS_OWED = "FSC01"  # SQLSTATE of claims_none(): the router asks for them then
CLAIMS_NONE = f"""\
CREATE OR REPLACE FUNCTION foreshard.claims_none() RETURNS void LANGUAGE plpgsql STABLE {SAFE} AS $body$
-- Fails when this transaction owes other shards something. In front of COMMIT it saves asking.
BEGIN
  IF EXISTS (SELECT FROM foreshard.claim_pending AS due WHERE due.xid = pg_current_xact_id_if_assigned()) THEN
    RAISE EXCEPTION 'claims are owed' USING ERRCODE = '{CLAIMS_OWED}';
  END IF;
END
$body$;
GRANT EXECUTE ON FUNCTION foreshard.claims_none() TO PUBLIC;
"""

CLAIM_ROW = """\
CREATE OR REPLACE FUNCTION foreshard.claim_row(name text, key text, home integer, bucket integer) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $body$
-- For the triggers: claim here, or note that another shard has to. A claim that is there may be released by the same
-- transaction through another shard: that is known at its end.
BEGIN
  IF EXISTS (SELECT FROM foreshard.owned_buckets AS owned WHERE get_bit(owned.buckets, claim_row.home) = 1)
     AND NOT EXISTS (
       SELECT FROM foreshard.claim AS held
       WHERE held.home = claim_row.home AND held.name = claim_row.name AND held.key = claim_row.key
     ) THEN
    INSERT INTO foreshard.claim VALUES (home, name, key, bucket);
    RETURN;
  END IF;
  DELETE FROM foreshard.claim_pending AS due
  WHERE due.xid = pg_current_xact_id() AND due.name = claim_row.name AND due.key = claim_row.key
    AND due.is_drop AND due.bucket = claim_row.bucket;
  IF NOT FOUND THEN
    INSERT INTO foreshard.claim_pending (name, key, home, bucket, is_drop) VALUES (name, key, home, bucket, false);
  END IF;
END
$body$;
CREATE OR REPLACE FUNCTION foreshard.release_row(name text, key text, home integer, bucket integer) RETURNS void
LANGUAGE plpgsql VOLATILE AS $body$
BEGIN
  DELETE FROM foreshard.claim_pending AS due
  WHERE due.xid = pg_current_xact_id() AND due.name = release_row.name AND due.key = release_row.key
    AND NOT due.is_drop AND due.bucket = release_row.bucket;
  IF FOUND THEN
    RETURN;
  END IF;
  IF EXISTS (SELECT FROM foreshard.owned_buckets AS owned WHERE get_bit(owned.buckets, release_row.home) = 1) THEN
    DELETE FROM foreshard.claim AS held
    WHERE held.home = release_row.home AND held.name = release_row.name AND held.key = release_row.key
      AND held.bucket = release_row.bucket;
  END IF;
  IF NOT FOUND THEN -- elsewhere; or not claimed yet: a user's trigger writes the row before its own change is claimed
    INSERT INTO foreshard.claim_pending (name, key, home, bucket, is_drop) VALUES (name, key, home, bucket, true);
  END IF;
END
$body$;
REVOKE EXECUTE ON FUNCTION foreshard.claim_row(text, text, integer, integer) FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION foreshard.release_row(text, text, integer, integer) FROM PUBLIC;
"""


def claim_steps(owners: Sequence[int], index: int) -> Iterator[Step]:
    """What every shard needs for claims, whether it has tables with such columns or not; `owners`: before any move."""
    yield labelled_step("table foreshard.claim", CLAIM)
    yield labelled_step("table foreshard.claim_set", CLAIM_SET)
    yield labelled_step("table foreshard.claim_pending", CLAIM_PENDING)
    yield labelled_step("table foreshard.owned_buckets", OWNED)
    bits = "".join("1" if owner == index else "0" for owner in owners)
    yield Step(
        "row of foreshard.owned_buckets",
        f"INSERT INTO foreshard.owned_buckets AS owned (buckets) VALUES (B'{bits}')\n"
        "ON CONFLICT (is_only_row) DO UPDATE SET buckets = excluded.buckets\n"
        "WHERE owned.moves = 0 AND owned.arrivals = 0; -- from the first move on, moves write it\n",
    )
    yield function_step("foreshard.owns(integer)", OWNS)
    yield function_step("foreshard.claim_refuse(text, text)", CLAIM_REFUSE)
    yield function_step("foreshard.claim_take(text, text, integer, integer)", CLAIM_TAKE)
    yield function_step("foreshard.claim_drop(text, text, integer, integer)", CLAIM_DROP)
    yield function_step("foreshard.claims_due()", CLAIMS_DUE)
    yield function_step("foreshard.claims_none()", CLAIMS_NONE)
    yield function_step("foreshard.claims_forget(text)", CLAIMS_FORGET)
    yield function_step("foreshard.claim_row(text, text, integer, integer)", CLAIM_ROW)
