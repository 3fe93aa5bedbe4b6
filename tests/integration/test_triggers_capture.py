"""Capture triggers on a real shard: which changes become which events, whoever writes them."""

from __future__ import annotations

import threading
from typing import Any

import psycopg
import pytest

from foreshard.proxy.catalog import Table, TableKind
from foreshard.proxy.config import TriggerConfig
from foreshard.proxy.triggers.capture import capture_sql, outbox_sql
from tests.support.postgres import Shards

DOCUMENT = Table(schema="public", name="document", kind=TableKind.ROOT, key="id", key_type="bigint")
EVERY = ("insert", "update", "delete")


def trigger(name: str, *on: str, columns: tuple[str, ...] | None = None) -> TriggerConfig:
    return TriggerConfig(name=name, table="document", on=on, columns=columns, function="m:f")


def install(shards: Shards, *triggers: TriggerConfig, table: Table = DOCUMENT) -> None:
    for _, sql in capture_sql(table, triggers):
        shards.execute(sql)


def events(shards: Shards, columns: str = "function, operation, row_key") -> list[tuple[Any, ...]]:
    return shards.query(f"SELECT {columns} FROM foreshard.outbox ORDER BY lsn, xid, ordinal")


@pytest.fixture
def shard(one_shard: Shards) -> Shards:
    """A shard with an outbox and a table without capture triggers."""
    one_shard.execute("CREATE SCHEMA foreshard")
    for _, sql in outbox_sql():
        one_shard.execute(sql)
    one_shard.execute("CREATE TABLE document (id bigint PRIMARY KEY, path text, body text)")
    return one_shard


def test_everything_may_be_installed_twice_and_removed_twice(shard: Shards) -> None:
    for _ in range(2):
        for _, sql in outbox_sql():
            shard.execute(sql)
        install(shard, trigger("f", *EVERY))
    shard.execute("INSERT INTO document VALUES (1, 'a', 'b')")
    assert events(shard) == [("f", "insert", "1")]
    for _ in range(2):
        install(shard)
    assert shard.query("SELECT tgname FROM pg_trigger WHERE tgrelid = 'document'::regclass") == []
    assert shard.query("SELECT proname FROM pg_proc WHERE proname LIKE 'capture\\_%\\_document\\_%'") == []
    shard.execute("UPDATE document SET body = 'c'; TRUNCATE document")


def test_event_has_both_images_the_volume_and_the_lane_of_its_row(shard: Shards) -> None:
    install(shard, trigger("f", *EVERY))
    shard.execute("INSERT INTO document VALUES (1, 'a', 'x'), (2, 'b', 'y')")
    shard.execute("UPDATE document SET body = 'z' WHERE id = 2")
    shard.execute("DELETE FROM document WHERE id = 2")
    one, two = {"id": 1, "path": "a", "body": "x"}, {"id": 2, "path": "b", "body": "y"}
    assert events(shard, "operation, old, new, volume, depth, attempt") == [
        ("insert", None, one, 2, 0, 0),
        ("insert", None, two, 2, 0, 0),
        ("update", two, two | {"body": "z"}, 1, 0, 0),
        ("delete", two | {"body": "z"}, None, 1, 0, 0),
    ]
    lanes = shard.query(
        "SELECT DISTINCT row_key, lane = hashtextextended(row_key, 0) & 63 FROM foreshard.outbox ORDER BY 1"
    )
    assert lanes == [("1", True), ("2", True)]


def test_an_event_knows_the_size_of_its_row_however_the_row_is_stored(shard: Shards) -> None:
    install(shard, trigger("f", *EVERY))
    body = "(SELECT string_agg(md5(n::text), '') FROM generate_series(1, 3125) AS n)"  # 100,000 bytes, stored apart
    shard.execute(f"INSERT INTO document VALUES (1, 'a', {body}), (2, 'b', 'y')")
    shard.execute("UPDATE document SET path = 'b' WHERE id = 1")
    shard.execute("DELETE FROM document")
    sizes = events(shard, "row_key, size")
    assert [size for key, size in sizes if key == "1"] == [pytest.approx(100_000, rel=0.01)] * 3
    assert [size < 100 for key, size in sizes if key == "2"] == [True] * 2


def test_images_of_a_change_that_calls_several_functions_are_kept_once(shard: Shards) -> None:
    install(shard, trigger("a", "insert", "update"), trigger("b", "insert", "update"), trigger("c", "insert"))
    shard.execute("INSERT INTO document VALUES (1, 'p', 'x'), (2, 'p', 'y')")
    shard.execute("UPDATE document SET body = 'z' WHERE id = 2")
    assert events(shard, "ordinal, function, row_key, image, old, new") == [
        (1, "a", "1", 1, None, None),
        (2, "b", "1", 1, None, None),
        (3, "c", "1", 1, None, None),
        (4, "a", "2", 4, None, None),
        (5, "b", "2", 4, None, None),
        (6, "c", "2", 4, None, None),
        (1, "a", "2", 1, None, None),
        (2, "b", "2", 1, None, None),
    ]
    one, two = {"id": 1, "path": "p", "body": "x"}, {"id": 2, "path": "p", "body": "y"}
    assert shard.query("SELECT image, events, old, new FROM foreshard.outbox_image ORDER BY lsn, image") == [
        (1, 3, None, one),
        (4, 3, None, two),
        (1, 2, two, two | {"body": "z"}),
    ]


def test_only_registered_pairs_of_table_and_operation_are_captured(shard: Shards) -> None:
    install(
        shard, trigger("on_insert", "insert"), trigger("on_delete", "delete"), trigger("on_both", "insert", "delete")
    )
    shard.execute("INSERT INTO document VALUES (1, 'a', 'b')")
    shard.execute("UPDATE document SET body = 'c'")
    shard.execute("DELETE FROM document")
    assert events(shard) == [
        ("on_insert", "insert", "1"),
        ("on_both", "insert", "1"),
        ("on_delete", "delete", "1"),
        ("on_both", "delete", "1"),
    ]


def test_update_calls_a_function_only_when_a_listed_column_changed(shard: Shards) -> None:
    install(
        shard,
        trigger("body", "update", columns=("body",)),
        trigger("either", "insert", "update", columns=("path", "body")),
        trigger("any", "update"),
    )
    shard.execute("INSERT INTO document VALUES (1, 'a', NULL), (2, 'a', 'x')")
    shard.execute("DELETE FROM foreshard.outbox")
    shard.execute("UPDATE document SET body = 'x'")
    shard.execute("UPDATE document SET path = 'b' WHERE id = 1")
    shard.execute("UPDATE document SET path = path, body = body WHERE id = 1")
    found = events(shard, "function, row_key")
    assert sorted(found[:4]) == [("any", "1"), ("any", "2"), ("body", "1"), ("either", "1")]
    assert found[4:] == [("either", "1"), ("any", "1"), ("any", "1")]


def test_listed_columns_may_have_types_without_equality_or_with_a_lax_one(shard: Shards) -> None:
    shard.execute("ALTER TABLE document ADD data json, ADD place point, ADD area box")
    install(shard, trigger("f", "update", columns=("data", "place", "area")))
    shard.execute("INSERT INTO document VALUES (1, 'a', 'b', '{}', '(0,0)', '(0,0),(1,1)')")
    shard.execute("UPDATE document SET data = '{}', place = '(0,0)', area = '(0,0),(1,1)'")
    assert events(shard) == []
    shard.execute("UPDATE document SET area = '(2,2),(3,3)'")  # = compares the areas of boxes
    shard.execute("UPDATE document SET data = '{ }'")
    assert events(shard) == [("f", "update", "1")] * 2


def test_changed_key_is_a_delete_and_an_insert(shard: Shards) -> None:
    install(shard, trigger("ins", "insert"), trigger("upd", "update"), trigger("del", "delete"))
    shard.execute("INSERT INTO document VALUES (1, 'a', 'x'), (2, 'b', 'y')")
    shard.execute("DELETE FROM foreshard.outbox")
    shard.execute("UPDATE document SET id = id + 1 WHERE id = 2")
    assert sorted(events(shard, "function, operation, row_key, old ->> 'id', new ->> 'id'")) == [
        ("del", "delete", "2", "2", None),
        ("ins", "insert", "3", None, "3"),
    ]


def test_upsert_copy_merge_and_data_modifying_with_are_captured(shard: Shards) -> None:
    install(shard, trigger("f", *EVERY))
    shard.execute("INSERT INTO document VALUES (1, 'a', 'x')")
    shard.execute(
        "INSERT INTO document VALUES (1, 'a', 'y'), (2, 'b', 'y') ON CONFLICT (id) DO UPDATE SET body = excluded.body"
    )
    with psycopg.connect(shard.dsns[0]) as connection, connection.cursor() as cursor:
        with cursor.copy("COPY document FROM STDIN") as copy:
            copy.write_row((3, "c", "z"))
        connection.commit()
    shard.execute(
        "MERGE INTO document USING (VALUES (3), (4)) AS v(id) ON document.id = v.id "
        "WHEN MATCHED THEN DELETE WHEN NOT MATCHED THEN INSERT VALUES (v.id, 'd', 'm')"
    )
    shard.execute(
        "WITH gone AS (DELETE FROM document WHERE id = 4 RETURNING *) INSERT INTO document SELECT 5, path FROM gone"
    )
    assert sorted(events(shard)) == sorted(
        [("f", "insert", key) for key in "12345"]
        + [("f", "update", "1")]
        + [("f", "delete", "3"), ("f", "delete", "4")]
    )


def test_order_of_one_rows_events_is_the_order_of_its_changes_among_concurrent_writers(shard: Shards) -> None:
    install(shard, trigger("f", "insert", "update"))
    shard.execute("INSERT INTO document VALUES (1, '', '0'), (2, '', '0')")

    def write() -> None:
        with psycopg.connect(shard.dsns[0], autocommit=True) as connection:
            for _ in range(40):
                connection.execute("UPDATE document SET body = (body::int + 1)::text WHERE id = 1")

    writers = [threading.Thread(target=write) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    bodies = shard.query("SELECT new ->> 'body' FROM foreshard.outbox WHERE row_key = '1' ORDER BY lsn, ordinal")
    assert [int(body) for (body,) in bodies] == list(range(161))


def test_truncate_of_a_captured_table_is_refused(shard: Shards) -> None:
    install(shard, trigger("f", "insert"))
    with pytest.raises(psycopg.errors.FeatureNotSupported, match="its trigger functions would miss"):
        shard.execute("TRUNCATE document")


def test_replica_role_fires_nothing(shard: Shards) -> None:
    install(shard, trigger("f", *EVERY))
    shard.execute("SET session_replication_role = replica; INSERT INTO document VALUES (1); TRUNCATE document")
    assert events(shard) == []


def test_writer_without_rights_on_the_outbox_is_captured(shard: Shards) -> None:
    install(shard, trigger("f", "insert"))
    shard.execute(
        "DROP ROLE IF EXISTS triggers_writer; CREATE ROLE triggers_writer; GRANT INSERT ON document TO triggers_writer"
    )
    try:
        shard.execute("SET ROLE triggers_writer; INSERT INTO document VALUES (1)")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            shard.execute("SET ROLE triggers_writer; SELECT * FROM foreshard.outbox")
    finally:
        shard.execute("DROP OWNED BY triggers_writer; DROP ROLE triggers_writer")
    assert events(shard) == [("f", "insert", "1")]


def test_writers_search_path_does_not_change_what_the_capture_means(shard: Shards) -> None:
    install(shard, trigger("f", "insert", "update"))
    shard.execute(
        "CREATE SCHEMA evil;"
        "CREATE FUNCTION evil.to_jsonb(anyelement) RETURNS jsonb LANGUAGE sql AS 'SELECT NULL::jsonb';"
        "CREATE FUNCTION evil.hashtextextended(text, bigint) RETURNS bigint LANGUAGE sql AS 'SELECT 1';"
    )
    shard.execute("SET search_path = evil, pg_catalog; INSERT INTO public.document VALUES (1, 'a', 'b')")
    assert events(shard, "new ->> 'body', lane = hashtextextended(row_key, 0) & 63") == [("b", True)]


def test_lastval_of_the_client_is_its_own(shard: Shards) -> None:
    install(shard, trigger("f", *EVERY))
    with psycopg.connect(shard.dsns[0]) as connection:
        connection.execute("CREATE TEMPORARY TABLE own (id bigserial)")
        connection.execute("INSERT INTO own DEFAULT VALUES")
        before = connection.execute("SELECT lastval()").fetchone()
        connection.execute("INSERT INTO document VALUES (1)")
        connection.execute("UPDATE document SET body = 'x'")
        assert connection.execute("SELECT lastval()").fetchone() == before


def test_partitions_are_captured_through_the_root_and_directly(shard: Shards) -> None:
    shard.execute(
        "DROP TABLE document; CREATE TABLE document (id bigint PRIMARY KEY, body text) PARTITION BY RANGE (id);"
        "CREATE TABLE low PARTITION OF document FOR VALUES FROM (0) TO (100) PARTITION BY RANGE (id);"
        "CREATE TABLE lowest PARTITION OF low FOR VALUES FROM (0) TO (50);"
        "CREATE TABLE high PARTITION OF document FOR VALUES FROM (100) TO (200)"
    )
    install(shard, trigger("f", *EVERY))
    shard.execute("INSERT INTO document VALUES (1, 'root'), (101, 'root')")
    shard.execute(
        "INSERT INTO low VALUES (2, 'low'); INSERT INTO lowest VALUES (3, 'lowest'); INSERT INTO high VALUES (102)"
    )
    shard.execute("UPDATE high SET body = 'x' WHERE id = 101; DELETE FROM lowest WHERE id = 1")
    shard.execute("UPDATE document SET id = 103 WHERE id = 2")
    assert sorted(events(shard, "table_name, operation, row_key")) == sorted(
        [("public.document", "insert", key) for key in ("1", "2", "3", "101", "102", "103")]
        + [("public.document", "update", "101"), ("public.document", "delete", "1"), ("public.document", "delete", "2")]
    )
    with pytest.raises(psycopg.errors.FeatureNotSupported):
        shard.execute("TRUNCATE lowest")
    install(shard)
    assert shard.query("SELECT tgrelid::regclass::text FROM pg_trigger WHERE tgname LIKE 'foreshard%'") == []


def test_names_that_need_quotes_are_captured(shard: Shards) -> None:
    name = 'odd "name" with $ and \\ and %s'
    quoted = '"' + name.replace('"', '""') + '"'
    shard.execute(f'CREATE TABLE {quoted} ("Key" bigint PRIMARY KEY, "Old" text)')
    table = Table(schema="public", name=name, kind=TableKind.ROOT, key="Key", key_type="bigint")
    install(shard, trigger("it's", *EVERY, columns=("Old",)), table=table)
    shard.execute(f"INSERT INTO {quoted} VALUES (1, 'x')")
    shard.execute(f"UPDATE {quoted} SET \"Old\" = 'y'")
    assert events(shard, "function, operation, table_name") == [
        ("it's", operation, f"public.{name}") for operation in ("insert", "update")
    ]


def test_table_without_a_key_is_refused() -> None:
    table = Table(schema="public", name="language", kind=TableKind.REFERENCE, key="", key_type="")
    with pytest.raises(ValueError, match="has no key"):
        capture_sql(table, [trigger("f", "insert")])
    assert capture_sql(table, [])
