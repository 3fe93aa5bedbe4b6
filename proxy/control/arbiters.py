"""The SQL of ON CONFLICT on columns that are unique over all shards: where the row is that the new one may meet.

`foreshard.meets(name, key)` looks for the row itself, on the shards of groups that are placed by cost: there a claim
names the bucket of the root's key, and the row may be away from that.

`foreshard.arbitrate(name, key, home)` is asked on the home of a claim and, for what the transaction at hand has written
but not settled, on each of its shards that owes claims. It answers with the bucket of the row; RELEASED when this
transaction gives the value up; NULL when there is none, and then nobody else can claim it before the transaction ends.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from foreshard._core.buckets import BUCKET_COUNT, HOME_SEED
from foreshard._core.typed_keys import HASH_SQL, TYPE_NAMES, KeyType
from foreshard.proxy.catalog.model import key_family
from foreshard.proxy.control.away import safe_options
from foreshard.proxy.control.key_sql import function_step
from foreshard.proxy.control.steps import Step

RELEASED = -2  # the answer for a value that this transaction gives up; proxy/wire/arbiter.pyx knows it, too

ARBITRATE = """\
CREATE OR REPLACE FUNCTION foreshard.arbitrate(name text, key {type}, home integer) RETURNS integer
LANGUAGE plpgsql VOLATILE {safe} AS $body$
-- The claim is locked: its row does not go before this transaction ends, so a statement that is sent to it meets it.
DECLARE
  value text := key::text;
  found_bucket integer;
  is_released boolean;
BEGIN
  SELECT due.is_drop, due.bucket INTO is_released, found_bucket FROM foreshard.claim_pending AS due
  WHERE due.xid = pg_current_xact_id_if_assigned() AND due.name = arbitrate.name AND due.key = value
  ORDER BY due.is_drop LIMIT 1;
  IF FOUND THEN
    RETURN CASE WHEN is_released THEN {released} ELSE {pending} + found_bucket END;
  END IF;
  IF NOT foreshard.owns(home) THEN
    RETURN NULL;
  END IF;
  IF home <> {home} THEN
    RAISE EXCEPTION 'Foreshard does not support ON CONFLICT on a value that looks like a generated key'
      USING ERRCODE = 'feature_not_supported', DETAIL = format('%s = %s', name, value),
            HINT = 'Look for the row first.';
  END IF;
  LOOP
    INSERT INTO foreshard.claim VALUES (home, name, value, -1) ON CONFLICT DO NOTHING;
    IF FOUND THEN
      DELETE FROM foreshard.claim AS held
      WHERE held.home = arbitrate.home AND held.name = arbitrate.name AND held.key = value;
      RETURN NULL;
    END IF;
    SELECT held.bucket INTO found_bucket FROM foreshard.claim AS held
    WHERE held.home = arbitrate.home AND held.name = arbitrate.name AND held.key = value FOR SHARE;
    IF FOUND THEN
      EXIT;
    END IF;
  END LOOP;
  IF NOT EXISTS (
    SELECT FROM foreshard.claim_set AS known JOIN pg_index x ON x.indrelid = to_regclass(known.relation)
    WHERE known.name = arbitrate.name AND x.indisunique AND x.indnkeyatts = cardinality(known.columns)
      AND NOT EXISTS (
        SELECT FROM generate_series(0, x.indnkeyatts - 1) AS at JOIN pg_attribute a
        ON a.attrelid = x.indrelid AND a.attnum = x.indkey[at]
        WHERE a.attname::text <> ALL (known.columns)
      )
  ) THEN
    RETURN NULL;  -- no index: where the row is, nothing would be met
  END IF;
  RETURN found_bucket;
END
$body$;
GRANT EXECUTE ON FUNCTION foreshard.arbitrate(text, {type}, integer) TO PUBLIC;
"""


MEETS = """\
CREATE OR REPLACE FUNCTION foreshard.meets(name text, key {type}) RETURNS boolean
LANGUAGE plpgsql STABLE {safe} AS $body$
-- Whether a row with the claimed value is on this shard.
DECLARE
  known foreshard.claim_set;
  found boolean;
BEGIN
  SELECT * INTO known FROM foreshard.claim_set AS held WHERE held.name = meets.name;
  EXECUTE (
    SELECT format('SELECT EXISTS (SELECT FROM %s WHERE %s)', known.relation, string_agg(
      format('%I = ({value})::%s', part.name, {place}format_type(a.atttypid, NULL)), ' AND '))
    FROM unnest(known.columns) WITH ORDINALITY AS part(name, place)
    JOIN pg_attribute a ON a.attrelid = to_regclass(known.relation) AND a.attname = part.name
  ) INTO found USING key;
  RETURN found;
END
$body$;
GRANT EXECUTE ON FUNCTION foreshard.meets(text, {type}) TO PUBLIC;
"""


def home_of_key(key_type: KeyType) -> str:
    """The home of a claimed value, as an SQL expression over `key`."""
    found = re.sub(r"\bseed\b", str(HOME_SEED), HASH_SQL[key_family(key_type)])
    return f"({found} & {BUCKET_COUNT - 1})::integer"


def arbiter_steps() -> Iterator[Step]:
    """The function for each type that a claimed column may have, and for values of several columns."""
    for known in HASH_SQL:
        key_type = KeyType(known)
        words = {
            "type": TYPE_NAMES[key_type],
            "safe": safe_options(key_type),
            "home": home_of_key(key_type),
            "released": RELEASED,
            "pending": BUCKET_COUNT,
        }
        yield function_step(f"foreshard.arbitrate(text, {TYPE_NAMES[key_type]}, integer)", ARBITRATE.format_map(words))
        words |= {"value": "$1", "place": ""}
        yield function_step(f"foreshard.meets(text, {TYPE_NAMES[key_type]})", MEETS.format_map(words))
    words = {"type": "text[]", "safe": safe_options(KeyType.TYPE_TEXT), "home": "home"}
    words |= {"released": RELEASED, "pending": BUCKET_COUNT}
    yield function_step("foreshard.arbitrate(text, text[], integer)", ARBITRATE.format_map(words))
    words |= {"value": "$1[%s]", "place": "part.place, "}
    yield function_step("foreshard.meets(text, text[])", MEETS.format_map(words))
