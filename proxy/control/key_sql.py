"""The SQL of keys: foreshard.bucket_of for every type, generated uuid keys, and the index that finds a bucket's rows.

`bucket_of` is immutable and must answer for ever what _core/typed_keys and _core/buckets compute: rows lie where they
say. It depends on no setting and on no collation.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence

from foreshard._core.buckets import BUCKET_COUNT, BUCKET_OF_SQL, HOME_SEED
from foreshard._core.typed_keys import HASH_SQL, TYPE_NAMES, KeyType
from foreshard.proxy.catalog import Catalog, Table, TableKind
from foreshard.proxy.catalog.model import key_family
from foreshard.proxy.control.steps import Step
from foreshard.proxy.triggers.capture import quote_name, quote_table, quote_text

_BYTES = "pg_catalog.uuid_send(key)"
UUID_NAMES_BUCKET = f"pg_catalog.get_byte({_BYTES}, 6) >> 4 = 8 AND pg_catalog.get_byte({_BYTES}, 8) >> 6 = 2"
_UUID_BUCKET = f"(pg_catalog.get_byte({_BYTES}, 0) << 4) | (pg_catalog.get_byte({_BYTES}, 1) >> 4)"
UUID_VERSION_8 = """\
pg_catalog.lpad(pg_catalog.to_hex(bucket), 3, '0') || pg_catalog.substr(random, 4, 11) || '8'
      || pg_catalog.substr(random, 16)"""

CHILD_UUID = f"""\
CREATE OR REPLACE FUNCTION foreshard.child_uuid(bucket integer) RETURNS uuid
LANGUAGE plpgsql VOLATILE PARALLEL SAFE AS $body$
-- A new uuid of version 8 with the bucket in its top 12 bits.
DECLARE
  random text := pg_catalog.gen_random_uuid()::text;
BEGIN
  IF bucket IS NULL THEN
    RAISE EXCEPTION 'a child row without its parent''s key has no place'
      USING ERRCODE = 'not_null_violation', HINT = 'Give the column that references the parent a value.';
  END IF;
  RETURN ({UUID_VERSION_8})::uuid;
END
$body$;
GRANT EXECUTE ON FUNCTION foreshard.child_uuid(integer) TO PUBLIC;
"""

NEXT_UUID = f"""\
CREATE OR REPLACE FUNCTION foreshard.next_uuid() RETURNS uuid LANGUAGE plpgsql VOLATILE AS $body$
-- A new uuid of the bucket in setting foreshard.bucket, which the proxy keeps on each of its connections.
DECLARE
  setting text := pg_catalog.current_setting('foreshard.bucket', true);
BEGIN
  IF pg_catalog.translate(setting, '0123456789', '') = '' AND pg_catalog.length(setting) BETWEEN 1 AND 4
     AND setting::integer < {BUCKET_COUNT} THEN
    RETURN foreshard.child_uuid(setting::integer);
  END IF;
  IF setting IS NULL OR setting = '' THEN
    RAISE EXCEPTION 'no bucket is set for a generated key'
      USING ERRCODE = 'object_not_in_prerequisite_state',
            DETAIL = 'A generated key of a sharded table carries the bucket in setting foreshard.bucket.',
            HINT = 'Insert through Foreshard, which chooses the bucket, or SET foreshard.bucket to one of this shard.';
  END IF;
  RAISE EXCEPTION 'setting foreshard.bucket is "%", which is no bucket', setting
    USING ERRCODE = 'invalid_parameter_value', HINT = 'Buckets are 0 to {BUCKET_COUNT - 1}.';
END
$body$;
GRANT EXECUTE ON FUNCTION foreshard.next_uuid() TO PUBLIC;
"""


def bucket_sql(key_type: KeyType) -> str:
    """The bucket of a key as an SQL expression over `key`."""
    if key_type <= KeyType.TYPE_INT2:
        return BUCKET_OF_SQL
    home = f"({HASH_SQL[key_type].replace('seed', str(HOME_SEED))} & {BUCKET_COUNT - 1})::int"
    if key_type is KeyType.TYPE_UUID:
        return f"CASE WHEN {UUID_NAMES_BUCKET} THEN {_UUID_BUCKET} ELSE {home} END"
    return home


def chained_bucket_sql(table: Table, columns: Sequence[str], row: str) -> str:
    """The home of several columns' values in `row`: each column's hash is the seed of the next one's."""
    found = str(HOME_SEED)
    for column in columns:
        key_type = table.type_of(column)
        assert key_type is not None
        words = {"key": f"{row}.{quote_name(column)}", "seed": found}
        parts = re.split(r"\b(key|seed)\b", HASH_SQL[key_family(key_type)])
        found = "".join(words.get(part, part) for part in parts)
    return f"({found} & {BUCKET_COUNT - 1})::integer"


def bucket_of_row(table: Table, row: str) -> str:
    """The bucket that the routing columns of `row` name, as an SQL expression."""
    if len(table.routing_columns) > 1:
        return chained_bucket_sql(table, table.routing_columns, row)
    return f"foreshard.bucket_of({row}.{quote_name(table.routing_column)})"


def inline_bucket_sql(table: Table, row: str) -> str:
    """The same without a call of `foreshard.bucket_of`, whose body is read under whatever search_path is set."""
    if len(table.routing_columns) > 1:
        return chained_bucket_sql(table, table.routing_columns, row)
    key_type = table.type_of(table.routing_column)
    assert key_type is not None
    column = f"{row}.{quote_name(table.routing_column)}"
    parts = re.split(r"\bkey\b", bucket_sql(key_type))
    return f"({column.join(parts)})"


def qualified_sql(expression: str) -> str:
    """An expression of this module with its operators qualified, so that no search_path gives them another meaning.

    Such operators are all of one rank, and of the left first: that reads these expressions as they are meant.
    """
    return re.sub(r" (>=|<<|>>|[<&|=-]) ", r" OPERATOR(pg_catalog.\1) ", expression).replace(
        " date '", " pg_catalog.date '"
    )


def bucket_of_steps() -> Iterator[Step]:
    """foreshard.bucket_of for each type, and what makes uuid keys."""
    for key_type in HASH_SQL:
        name = f"foreshard.bucket_of({TYPE_NAMES[key_type]})"
        argument = f"key {TYPE_NAMES[key_type]}"
        yield function_step(
            name,
            f"CREATE OR REPLACE FUNCTION foreshard.bucket_of({argument}) RETURNS integer\n"
            f"LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $body$\n  SELECT {qualified_sql(bucket_sql(KeyType(key_type)))}\n"
            f"$body$;\n"
            f"GRANT EXECUTE ON FUNCTION {name} TO PUBLIC;\n",
        )
    yield function_step("foreshard.child_uuid(integer)", CHILD_UUID)
    yield function_step("foreshard.next_uuid()", NEXT_UUID)


def function_step(name: str, sql: str) -> Step:
    """A step that makes a function; `name` has its argument types, for there may be several of one name."""
    return Step(f"function {name}", sql, f"to_regprocedure({quote_text(name)}) IS NOT NULL")


def has_home_keys(catalog: Catalog, table: Table) -> bool:
    """Whether clients give the keys of the table's group, so that its rows live in home buckets."""
    root = catalog.root_of(table)
    return table.is_sharded and root.type_of(root.key) is not KeyType.TYPE_INT8


def bucket_index_object(table: Table) -> str:
    """The step that makes the rows of a bucket findable; absent from foreshard.applied until the table was taken in."""
    return f"bucket index of {table.qualified}"


def bucket_index_steps(catalog: Catalog, table: Table) -> Iterator[Step]:
    """The index on the bucket of tables with home buckets."""
    if table.kind is TableKind.REFERENCE or not has_home_keys(catalog, table):
        return
    digest = hashlib.md5(table.qualified.encode(), usedforsecurity=False).hexdigest()[:8]
    name = quote_name(f"foreshard_bucket_{digest}")
    bucket = bucket_of_row(table, quote_name(table.name))
    yield Step(
        bucket_index_object(table),
        f"CREATE INDEX IF NOT EXISTS {name} ON {quote_table(table)} (({bucket}));\n",
        f"to_regclass({quote_text(f'{quote_name(table.schema)}.{name}')}) IS NOT NULL",
    )
