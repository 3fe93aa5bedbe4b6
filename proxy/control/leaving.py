"""What an old shard is asked when a row leaves it under a new key: foreshard.may_leave, called by the row's DELETE.

The row is deleted there and inserted on its new shard, so foreign keys to it would do what they do at a DELETE. Where
that is something else than an UPDATE of the key would do, the function looks for rows that refer to it first.
"""

from __future__ import annotations

from collections.abc import Iterator

from foreshard.proxy.control.key_sql import function_step
from foreshard.proxy.control.steps import Step

MAY_LEAVE = """\
CREATE OR REPLACE FUNCTION foreshard.may_leave(gone anyelement, columns integer) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
-- Called by RETURNING of the DELETE: the row is deleted, so nobody can refer to it any more, and what foreign keys do
-- about it comes afterwards. Volatile: each query sees what has been committed by then.
DECLARE
  relation oid := (SELECT typrelid FROM pg_type WHERE oid = pg_typeof(gone));
  held record;
  is_found boolean;
  shown text;
BEGIN
  IF columns <> (SELECT count(*) FROM pg_attribute WHERE attrelid = relation AND attnum > 0 AND NOT attisdropped) THEN
    RAISE EXCEPTION 'the columns of "%" have changed', relation::regclass
      USING ERRCODE = 'serialization_failure', HINT = 'Run the transaction again.';
  END IF;
  FOR held IN
    SELECT c.conname, c.confupdtype, n.nspname, t.relname, p.relname AS parent,
           format('%I.%I', n.nspname, t.relname) AS child,
           string_agg(format('child.%I = ($1).%I', own.attname, theirs.attname), ' AND ' ORDER BY k.place) AS ties,
           string_agg(theirs.attname, ', ' ORDER BY k.place) AS names,
           string_agg(format('($1).%I::text', theirs.attname), ', ' ORDER BY k.place) AS values
    FROM pg_constraint c
    JOIN pg_class t ON t.oid = c.conrelid JOIN pg_namespace n ON n.oid = t.relnamespace
    JOIN pg_class p ON p.oid = c.confrelid
    CROSS JOIN unnest(c.conkey, c.confkey) WITH ORDINALITY AS k(own, theirs, place)
    JOIN pg_attribute own ON own.attrelid = c.conrelid AND own.attnum = k.own
    JOIN pg_attribute theirs ON theirs.attrelid = c.confrelid AND theirs.attnum = k.theirs
    WHERE c.contype = 'f' AND c.confrelid = relation
      AND (c.confdeltype NOT IN ('a', 'r') OR c.confupdtype NOT IN ('a', 'r'))
    GROUP BY c.oid, c.conname, c.confupdtype, n.nspname, t.relname, p.relname
    ORDER BY c.conname
  LOOP
    EXECUTE format('SELECT EXISTS (SELECT FROM %s AS child WHERE %s), concat_ws('', '', %s)',
                   held.child, held.ties, held.values) INTO is_found, shown USING gone;
    IF is_found AND held.confupdtype NOT IN ('a', 'r') THEN
      RAISE EXCEPTION 'Foreshard does not support changing a key that rows of "%" follow to another shard', held.relname
        USING ERRCODE = 'feature_not_supported',
              DETAIL = format('Foreign key %s would change them as well.', held.conname),
              HINT = 'Insert a row with the new key, let the others refer to that, and delete the old one.';
    ELSIF is_found THEN
      RAISE EXCEPTION 'update or delete on table "%" violates foreign key constraint "%" on table "%"',
                      held.parent, held.conname, held.relname
        USING ERRCODE = 'foreign_key_violation', SCHEMA = held.nspname, TABLE = held.relname,
              CONSTRAINT = held.conname,
              DETAIL = format('Key (%s)=(%s) is still referenced from table "%s".', held.names, shown, held.relname);
    END IF;
  END LOOP;
  RETURN true;
END
$body$;
GRANT EXECUTE ON FUNCTION foreshard.may_leave(anyelement, integer) TO PUBLIC;
"""


def leaving_steps() -> Iterator[Step]:
    """What every shard needs for rows that leave it."""
    yield function_step("foreshard.may_leave(anyelement, integer)", MAY_LEAVE)
