"""Keys that the shards generate: roots by the bucket that is set, children by their parent's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from foreshard._core.buckets import BUCKET_COUNT, bucket_of, make_placed_key
from foreshard.proxy.config import TableConfig
from tests.support.deployment import TABLES, apply_now, make_config, make_demo_config
from tests.support.postgres import Shards
from tests.support.verified import assert_verified

COUNTER_MAX = (1 << 40) - 1


@pytest.fixture
def connection(one_shard: Shards, tmp_path: Path) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    """A connection to a shard with the demo's tables."""
    apply_now(make_demo_config(one_shard, tmp_path))
    with psycopg.connect(one_shard.dsns[0], autocommit=True) as connection:
        yield connection


def insert_document(connection: psycopg.Connection[tuple[object, ...]], bucket: int | None) -> int:
    if bucket is not None:
        connection.execute(f"SET foreshard.bucket = '{bucket}'")
    return one(connection, "INSERT INTO document (path) VALUES ('p') RETURNING id")


def one(connection: psycopg.Connection[tuple[object, ...]], sql: str) -> int:
    row = connection.execute(sql).fetchone()
    assert row is not None
    return int(str(row[0]))


@pytest.mark.parametrize("bucket", [0, 1, 7, BUCKET_COUNT - 1])
def test_a_generated_root_key_carries_its_bucket(
    connection: psycopg.Connection[tuple[object, ...]], bucket: int
) -> None:
    first, second = insert_document(connection, bucket), insert_document(connection, bucket)
    assert [bucket_of(first), bucket_of(second)] == [bucket, bucket]
    assert [first, second] == [make_placed_key(bucket, 1), make_placed_key(bucket, 2)]


def test_every_row_of_a_statement_gets_its_key_of_the_bucket(
    connection: psycopg.Connection[tuple[object, ...]],
) -> None:
    connection.execute("SET foreshard.bucket = '99'")
    rows = connection.execute(
        "INSERT INTO document (path) SELECT 'p' FROM generate_series(1, 5) RETURNING id"
    ).fetchall()
    assert [row[0] for row in rows] == [make_placed_key(99, counter) for counter in range(1, 6)]


@pytest.mark.parametrize(
    "preparation", ["SELECT 1", "SET foreshard.bucket = ''", "SET foreshard.bucket = '5'; RESET ALL"]
)
def test_an_unset_bucket_is_an_error_that_says_what_to_do(
    connection: psycopg.Connection[tuple[object, ...]], preparation: str
) -> None:
    connection.execute(preparation)
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="no bucket is set") as raised:
        insert_document(connection, None)
    assert "through Foreshard" in str(raised.value.diag.message_hint)


@pytest.mark.parametrize("setting", ["4096", "-1", "x", "99999", "1.5", "0x1"])
def test_a_bucket_out_of_range_is_an_error(connection: psycopg.Connection[tuple[object, ...]], setting: str) -> None:
    connection.execute(f"SET foreshard.bucket = '{setting}'")
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="is no bucket") as raised:
        insert_document(connection, None)
    assert raised.value.diag.message_hint == "Buckets are 0 to 4095."


def test_the_last_counter_is_used_and_the_one_after_it_refused(
    connection: psycopg.Connection[tuple[object, ...]],
) -> None:
    connection.execute(f"SELECT setval('document_id_seq', {COUNTER_MAX - 1})")
    assert insert_document(connection, 3) == make_placed_key(3, COUNTER_MAX)
    with pytest.raises(psycopg.errors.SequenceGeneratorLimitExceeded, match="no counter left"):
        insert_document(connection, 3)


def test_a_rolled_back_bucket_does_not_stay(connection: psycopg.Connection[tuple[object, ...]]) -> None:
    insert_document(connection, 1)
    connection.execute("BEGIN")
    assert bucket_of(insert_document(connection, 2)) == 2
    connection.execute("ROLLBACK")
    assert bucket_of(insert_document(connection, None)) == 1


@pytest.mark.parametrize("parent_bucket", [0, 77, BUCKET_COUNT - 1])
def test_a_child_key_gets_its_parents_bucket(
    connection: psycopg.Connection[tuple[object, ...]], parent_bucket: int
) -> None:
    parent = insert_document(connection, parent_bucket)
    connection.execute("RESET foreshard.bucket")
    child = one(connection, f"INSERT INTO symbol (document_id, name) VALUES ({parent}, 'n') RETURNING id")
    assert child == make_placed_key(parent_bucket, 1)


def test_a_child_of_a_parent_with_a_client_supplied_key_gets_its_home_bucket(
    connection: psycopg.Connection[tuple[object, ...]],
) -> None:
    connection.execute("INSERT INTO document (id, path) VALUES (42, 'p')")
    child = one(connection, "INSERT INTO symbol (document_id) VALUES (42) RETURNING id")
    assert bucket_of(child) == bucket_of(42)


def test_an_explicit_child_key_is_kept(connection: psycopg.Connection[tuple[object, ...]]) -> None:
    parent = insert_document(connection, 5)
    assert one(connection, f"INSERT INTO symbol (id, document_id) VALUES (12, {parent}) RETURNING id") == 12


def test_a_child_without_its_parents_key_is_refused(connection: psycopg.Connection[tuple[object, ...]]) -> None:
    with pytest.raises(psycopg.errors.NotNullViolation, match="without its parent's key"):
        connection.execute("INSERT INTO symbol (name) VALUES ('n')")


def test_copy_generates_keys_too(connection: psycopg.Connection[tuple[object, ...]]) -> None:
    parent = insert_document(connection, 8)
    with connection.cursor() as cursor, cursor.copy("COPY symbol (document_id, name) FROM STDIN") as copy:
        copy.write_row((parent, "a"))
        copy.write_row((parent, "b"))
    keys = [row[0] for row in connection.execute("SELECT id FROM symbol ORDER BY id")]
    assert keys == [make_placed_key(8, 1), make_placed_key(8, 2)]


def test_an_ordinary_user_may_insert(connection: psycopg.Connection[tuple[object, ...]], one_shard: Shards) -> None:
    role = one_shard.dsns[0].rpartition("/")[2] + "_writer"
    connection.execute(f"CREATE ROLE {role} LOGIN")
    try:
        connection.execute(f"GRANT SELECT, INSERT, UPDATE ON document, symbol TO {role}")
        connection.execute(f"GRANT USAGE ON SEQUENCE document_id_seq, symbol_id_seq TO {role}")
        with psycopg.connect(one_shard.dsns[0].replace("//app@", f"//{role}@"), autocommit=True) as theirs:
            parent = insert_document(theirs, 9)
            assert bucket_of(one(theirs, f"INSERT INTO symbol (document_id) VALUES ({parent}) RETURNING id")) == 9
            assert one(theirs, f"SELECT foreshard.bucket_of({parent})") == 9
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                theirs.execute("SELECT * FROM foreshard.outbox")
        assert one(connection, "SELECT count(*) FROM foreshard.outbox WHERE table_name = 'public.document'") == 1
    finally:
        connection.execute(f"DROP OWNED BY {role}")
        connection.execute(f"DROP ROLE {role}")


def test_an_identity_by_default_becomes_a_sequence_that_goes_on(one_shard: Shards, tmp_path: Path) -> None:
    one_shard.execute(
        "CREATE TABLE document (id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, path text, body text,"
        ' language text); CREATE TABLE "Odd Name%" (id bigint);'
        "CREATE TABLE symbol (id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,"
        " document_id bigint REFERENCES document);"
        "INSERT INTO document (path) VALUES ('old'), ('old')"
    )
    config = make_demo_config(one_shard, tmp_path)
    apply_now(config)
    assert apply_now(config) == 0
    with psycopg.connect(one_shard.dsns[0], autocommit=True) as connection:
        assert insert_document(connection, 6) == make_placed_key(6, 3)
        assert one(connection, "INSERT INTO symbol (document_id) VALUES (1) RETURNING id") == make_placed_key(
            bucket_of(1), 1
        )
        assert one(connection, "SELECT count(*) FROM pg_depend d JOIN pg_class s ON s.oid = d.objid "
                               "WHERE s.relname = 'document_id_seq' AND d.deptype = 'a'") == 1  # fmt: skip


def test_a_cached_integer_sequence_becomes_a_bigint_one_without_cache(one_shard: Shards, tmp_path: Path) -> None:
    one_shard.execute(
        "CREATE TABLE document (id serial PRIMARY KEY, path text, body text, language text);"
        "ALTER TABLE document ALTER id TYPE bigint; ALTER SEQUENCE document_id_seq CACHE 50 CYCLE"
    )
    apply_now(make_demo_config(one_shard, tmp_path))
    assert one_shard.query(
        "SELECT seqtypid::regtype::text, seqcache, seqcycle FROM pg_sequence "
        "WHERE seqrelid = 'document_id_seq'::regclass"
    ) == [("bigint", 1, False)]


def test_the_bucket_in_sql_is_the_bucket_in_the_proxy(connection: psycopg.Connection[tuple[object, ...]]) -> None:
    keys = [0, 1, -1, 2**40, 2**52 - 1, 2**52, 2**53 - 1, 2**53, 2**63 - 1, -(2**63), *range(2, 200)]
    rows = connection.execute("SELECT k, foreshard.bucket_of(k) FROM unnest(%s::bigint[]) AS k", [keys]).fetchall()
    assert {row[0]: row[1] for row in rows} == {key: bucket_of(key) for key in keys}


def test_tables_whose_keys_clients_supply_are_left_as_they_are(one_shard: Shards, tmp_path: Path) -> None:
    config = make_config(one_shard, tmp_path, schema="CREATE TABLE IF NOT EXISTS document (id bigint PRIMARY KEY)",
                         tables=TABLES[:1])  # fmt: skip
    apply_now(config)
    with psycopg.connect(one_shard.dsns[0], autocommit=True) as connection:
        with pytest.raises(psycopg.errors.NotNullViolation):
            connection.execute("INSERT INTO document DEFAULT VALUES")
        connection.execute("INSERT INTO document VALUES (1)")


def test_a_grandchild_of_a_row_with_an_older_key_carries_the_roots_bucket(two_shards: Shards, tmp_path: Path) -> None:
    only = Shards(two_shards.shards[:1])
    only.execute(
        "CREATE TABLE a (id bigserial PRIMARY KEY);"
        "CREATE TABLE b (id bigserial PRIMARY KEY, a_id bigint REFERENCES a);"
        "CREATE TABLE c (id bigserial PRIMARY KEY, b_id bigint REFERENCES b);"
        "CREATE TABLE d (id bigserial PRIMARY KEY, c_id bigint REFERENCES c);"
        "INSERT INTO a VALUES (5); INSERT INTO b VALUES (6, 5); INSERT INTO c VALUES (7, 6)"
    )
    config = make_config(only, tmp_path, tables=tuple(TableConfig(name=name, key="id") for name in "abcd"))
    apply_now(config)
    only.execute(
        "INSERT INTO b (a_id) VALUES (5); INSERT INTO c (b_id) VALUES (6); INSERT INTO d (c_id) VALUES (7);"
        "INSERT INTO d (c_id) SELECT max(id) FROM c"
    )
    keys = [int(str(row[0])) for table in "bcd" for row in only.query(f"SELECT id FROM {table} WHERE id > 100")]
    assert len(keys) == 4
    assert {bucket_of(key) for key in keys} == {bucket_of(5)}
    assert_verified(config)
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        only.execute("INSERT INTO d (c_id) VALUES (8)")
