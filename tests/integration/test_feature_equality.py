"""What PostgreSQL sends in text, in binary and as an event's JSON counts the same."""

from __future__ import annotations

import json

import psycopg
import pytest

from foreshard._core.features import features_of_row, features_of_value, shape_of_type
from tests.support.postgres import Shards

VALUES = {
    "smallint": "-7",
    "integer": "123456",
    "bigint": "4503599627370497",
    "real": "1.5",
    "double precision": "0.1",
    "numeric(12,2)": "123456.78",
    "boolean": "true",
    "uuid": "'0198c5d4-7a52-8000-8000-000000000000'",
    "timestamp without time zone": "'2026-11-22 15:04:05.123456'",
    "timestamp with time zone": "'2026-11-22 15:04:05.123456+00'",
    "date": "'2026-11-22'",
    "bytea": r"'\x00ff10'",
    "text": "'it''s größer than \"this\" \\ 漢字'",
    "character varying(20)": "''",
    "json": """'{"a": [1, null, {"b": "x\\ny\\u00e4"}], "c": true}'""",
    "jsonb": """'{"a": [1, null, {"b": "x\\ny\\u00e4"}], "c": true, "d": 1e5}'""",
    "text[]": """ARRAY['a,b', NULL, 'c"d', '', 'null', ' e ']""",
    "integer[]": "ARRAY[[1, 2, 3], [4, NULL, 6]]",
    "bigint[]": "'{}'",
    "uuid[]": "ARRAY['0198c5d4-7a52-8000-8000-000000000000'::uuid]",
    "boolean[]": "ARRAY[true, false]",
}


@pytest.mark.parametrize("type_name", VALUES)
def test_a_value_counts_the_same_in_text_binary_and_json(one_shard: Shards, type_name: str) -> None:
    with psycopg.connect(one_shard.dsns[0], autocommit=True) as connection:
        connection.execute("SET timezone = 'UTC'")
        connection.execute(f"CREATE TABLE t (c {type_name})")
        connection.execute(f"INSERT INTO t VALUES ({VALUES[type_name]})")
        name, found = connection.execute(
            "SELECT format_type(atttypid, atttypmod), to_jsonb(t)::text FROM t, pg_attribute "
            "WHERE attrelid = 't'::regclass AND attname = 'c'"
        ).fetchone() or ("", "")
        expected = features_of_row(json.loads(found), 1)[1:3]
        for is_binary in (False, True):
            cursor = connection.cursor(binary=is_binary)
            cursor.execute("SELECT c FROM t")
            assert cursor.pgresult is not None
            raw = cursor.pgresult.get_value(0, 0)
            assert features_of_value(raw, shape_of_type(name), 1 if is_binary else 0) == expected, is_binary
