"""Plan and apply on real shards: idempotent, atomic per shard, and refusing what would scatter rows wrongly."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import psycopg
import pytest

from foreshard._core.buckets import bucket_of, initial_map
from foreshard.proxy.config import Config, TableConfig
from foreshard.proxy.control import apply, is_applied, list_lacking, read_catalog, read_owners
from foreshard.proxy.errors import ConfigError, ForeshardError
from tests.support.deployment import INDEX_DOCUMENT, SCHEMA, TABLES, apply_now, make_config, make_demo_config
from tests.support.postgres import Shards

REGISTERED = (
    "SELECT tgname::text FROM pg_trigger WHERE tgname LIKE 'foreshard%' AND tgrelid = 'document'::regclass ORDER BY 1"
)


def lacking(config: Config) -> list[str]:
    return asyncio.run(list_lacking(config))


def refusal(config: Config) -> str:
    """What plan says of a configuration that cannot be."""
    with pytest.raises(ConfigError) as raised:
        lacking(config)
    return str(raised.value).replace(str(config.path), "f.yaml")


def test_apply_makes_everything_and_nothing_the_second_time(three_shards: Shards, tmp_path: Path) -> None:
    config = make_demo_config(three_shards, tmp_path)
    assert not asyncio.run(is_applied(config))
    count = len(lacking(config))
    assert count > 50
    said: list[str] = []
    assert asyncio.run(apply(config, said.append)) == count
    assert [line.split(" (")[0] for line in said] == [
        "[1/4] shard s0, control database", "[2/4] shard s1", "[3/4] shard s2", "[4/4] query node"
    ]  # fmt: skip
    assert lacking(config) == []
    assert asyncio.run(is_applied(config))
    assert apply_now(config) == 0


def test_plan_changes_nothing(one_shard: Shards, tmp_path: Path) -> None:
    config = make_demo_config(one_shard, tmp_path)
    before = lacking(config)
    assert lacking(config) == before
    assert one_shard.query("SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace") == [(0,)]
    assert one_shard.query("SELECT to_regnamespace('foreshard')::text") == [(None,)]


def test_every_shard_knows_its_name_index_and_cluster(three_shards: Shards, tmp_path: Path) -> None:
    apply_now(make_demo_config(three_shards, tmp_path))
    (cluster,) = three_shards.query("SELECT name, epoch, shards FROM foreshard.cluster")
    assert cluster[1:] == (1, 3)
    for index in range(3):
        assert three_shards.query("SELECT name, index, cluster FROM foreshard.shard_info", on=index) == [
            (f"s{index}", index, cluster[0])
        ]


def test_the_bucket_map_is_the_jump_hash_of_the_buckets(three_shards: Shards, tmp_path: Path) -> None:
    config = make_demo_config(three_shards, tmp_path)
    apply_now(config)
    assert asyncio.run(read_owners(config)) == initial_map(3)
    assert three_shards.query("SELECT to_regclass('foreshard.bucket_map')::text", on=1) == [(None,)]


def test_the_control_database_may_be_one_of_its_own(three_shards: Shards, tmp_path: Path) -> None:
    two = Shards(three_shards.shards[:2])
    config = make_demo_config(two, tmp_path, control=three_shards.dsns[2])
    apply_now(config)
    assert lacking(config) == []
    assert asyncio.run(read_owners(config)) == initial_map(2)
    assert three_shards.query("SELECT to_regclass('foreshard.outbox')::text", on=2) == [(None,)]


def test_the_control_database_may_be_another_shard_under_another_name(three_shards: Shards, tmp_path: Path) -> None:
    config = make_demo_config(three_shards, tmp_path, control=three_shards.dsns[1] + "?application_name=control")
    apply_now(config)
    assert lacking(config) == []
    assert three_shards.query("SELECT shards FROM foreshard.cluster", on=1) == [(3,)]


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        ("DROP FUNCTION foreshard.bucket_of(bigint)", "function foreshard.bucket_of(bigint)"),
        ("ALTER TABLE document ALTER id DROP DEFAULT", "generated key of public.document"),
        ("DROP TRIGGER foreshard_fill_key ON symbol", "generated key of public.symbol"),
        ("DROP TRIGGER foreshard_capture_insert ON document", "capture trigger for insert on public.document"),
        ("DROP TRIGGER foreshard_capture_truncate ON document", "refusal of truncate on public.document"),
        ("ALTER SEQUENCE document_id_seq CACHE 10", "sequence settings of public.document"),
        ("DROP TABLE foreshard.dead_letter", "table foreshard.dead_letter"),
        ("DELETE FROM foreshard.applied WHERE object = 'function foreshard.next_key'", "function foreshard.next_key"),
    ],
)
def test_what_was_damaged_by_hand_is_lacking_and_repaired(
    one_shard: Shards, tmp_path: Path, damage: str, named: str
) -> None:
    config = make_demo_config(one_shard, tmp_path)
    apply_now(config)
    one_shard.execute(damage)
    assert [line.partition(": ")[2] for line in lacking(config)] == [named]
    assert apply_now(config) == 1
    assert lacking(config) == []


def test_a_new_function_changes_its_capture_triggers_only(one_shard: Shards, tmp_path: Path) -> None:
    config = make_demo_config(one_shard, tmp_path, triggers=())
    apply_now(config)
    assert one_shard.query(REGISTERED) == []
    config = msgspec.structs.replace(config, triggers=(INDEX_DOCUMENT,))
    assert all("public.document" in line for line in lacking(config))
    apply_now(config)
    assert one_shard.query(REGISTERED) == [
        ("foreshard_capture_insert",), ("foreshard_capture_truncate",), ("foreshard_capture_update",)
    ]  # fmt: skip


def test_a_removed_function_takes_its_capture_triggers_with_it(one_shard: Shards, tmp_path: Path) -> None:
    config = make_demo_config(one_shard, tmp_path)
    apply_now(config)
    config = msgspec.structs.replace(config, triggers=())
    apply_now(config)
    assert one_shard.query(REGISTERED) == []
    assert lacking(config) == []


def test_a_changed_schema_file_is_run_again(one_shard: Shards, tmp_path: Path) -> None:
    config = make_demo_config(one_shard, tmp_path)
    apply_now(config)
    assert config.schema is not None
    config.schema.write_text(SCHEMA + "ALTER TABLE document ADD COLUMN IF NOT EXISTS size integer;")
    assert lacking(config) == ["shard s0, control database: schema file"]
    apply_now(config)
    assert "size" in [column.name for column in asyncio.run(read_catalog(config)).tables["public.document"].columns]
    assert lacking(config) == []


def test_an_error_in_the_schema_file_names_it_and_changes_nothing(three_shards: Shards, tmp_path: Path) -> None:
    config = make_config(three_shards, tmp_path, schema="CREATE TABLE a (id int); CREATE TABEL b ()")
    with pytest.raises(
        ForeshardError, match=r"schema\.sql: shard s0: syntax error at or near \"TABEL\" \(SQLSTATE 42601\)"
    ):
        apply_now(config)
    assert three_shards.query("SELECT to_regclass('a')::text") == [(None,)]


def test_a_schema_file_may_not_end_the_transaction_unseen(one_shard: Shards, tmp_path: Path) -> None:
    text = "CREATE TABLE a (id int GENERATED ALWAYS AS (1) VIRTUAL); COMMIT"  # newer syntax than the parser's
    if one_shard.query("SELECT current_setting('server_version_num')::int < 180000") == [(True,)]:
        text = "CREATE PROCEDURE p() LANGUAGE plpgsql AS 'BEGIN COMMIT; END'; CALL p()"
    with pytest.raises(ForeshardError, match=r"ended the transaction|invalid transaction termination"):
        lacking(make_config(one_shard, tmp_path, schema=text))


def test_a_schema_file_may_set_its_search_path(one_shard: Shards, tmp_path: Path) -> None:
    config = make_config(one_shard, tmp_path, schema="CREATE SCHEMA IF NOT EXISTS other; SET search_path = other;"
                         "CREATE TABLE IF NOT EXISTS a (id bigserial PRIMARY KEY)",
                         tables=(TableConfig(name="other.a", key="id"),))  # fmt: skip
    apply_now(config)
    assert lacking(config) == []
    assert list(asyncio.run(read_catalog(config)).tables) == ["other.a"]


def test_another_number_of_shards_than_the_map_has_is_refused(three_shards: Shards, tmp_path: Path) -> None:
    apply_now(make_demo_config(Shards(three_shards.shards[:2]), tmp_path))
    message = refusal(make_demo_config(three_shards, tmp_path))
    assert "the deployment has 2 shards, the configuration 3" in message
    assert "`foreshard shards` adds and removes them" in message


def test_shards_in_another_order_are_refused(three_shards: Shards, tmp_path: Path) -> None:
    first, second, third = three_shards.shards
    apply_now(make_demo_config(three_shards, tmp_path, control=first.dsn))
    message = refusal(make_demo_config(Shards((first, third, second)), tmp_path, control=first.dsn))
    assert "is shard 2 (s2) of the cluster, not 1" in message


def test_a_shard_of_another_cluster_is_refused(three_shards: Shards, tmp_path: Path) -> None:
    first, second, _ = three_shards.shards
    apply_now(make_demo_config(Shards((first,)), tmp_path))
    message = refusal(make_demo_config(Shards((second, first)), tmp_path))
    assert "belongs to the cluster cluster-" in message


def test_a_renamed_shard_is_renamed(one_shard: Shards, tmp_path: Path) -> None:
    apply_now(make_demo_config(one_shard, tmp_path))
    renamed = Shards((msgspec.structs.replace(one_shard.shards[0], name="first"),))
    config = make_demo_config(renamed, tmp_path)
    assert lacking(config) == [
        "shard first, control database: row of foreshard.shard_info",
        "shard first, control database: rows of foreshard.shard",
    ]
    apply_now(config)
    assert one_shard.query("SELECT name FROM foreshard.shard_info") == [("first",)]


def test_an_existing_database_becomes_the_only_shard_with_its_rows(one_shard: Shards, tmp_path: Path) -> None:
    one_shard.execute(SCHEMA + "INSERT INTO document (path) SELECT 'old' FROM generate_series(1, 100)")
    config = make_demo_config(one_shard, tmp_path)
    apply_now(config)
    assert one_shard.query("SELECT min(id), max(id), count(*) FROM document") == [(1, 100, 100)]
    assert lacking(config) == []


def test_old_rows_of_other_shards_buckets_are_refused_where_no_plain_table_has_them(
    three_shards: Shards, tmp_path: Path
) -> None:
    three_shards.execute(SCHEMA, on=0)
    three_shards.execute(SCHEMA + "INSERT INTO document (path) SELECT 'old' FROM generate_series(1, 100)", on=1)
    three_shards.execute(SCHEMA, on=2)
    message = refusal(make_demo_config(three_shards, tmp_path))
    assert "shard s1 has" in message
    assert "that belong to other shards by their id" in message


@pytest.mark.parametrize(("key", "is_refused"), [(2**52 - 1, False), (2**52, True), (2**53 - 1, True), (2**53, False)])
def test_old_keys_in_the_range_of_generated_ones_are_refused(
    one_shard: Shards, tmp_path: Path, key: int, is_refused: bool
) -> None:
    one_shard.execute(SCHEMA + f"INSERT INTO document (id, path) VALUES ({key}, 'old')")
    config = make_demo_config(one_shard, tmp_path)
    if is_refused:
        assert "has 1 rows with keys from 4503599627370496 to 9007199254740991" in refusal(config)
    else:
        apply_now(config)


def test_old_child_keys_in_the_range_of_generated_ones_are_refused(one_shard: Shards, tmp_path: Path) -> None:
    one_shard.execute(SCHEMA + f"INSERT INTO document VALUES (1, 'p'); INSERT INTO symbol VALUES ({2**52}, 1)")
    assert "tables.public.symbol: shard s0 has 1 rows with keys from" in refusal(make_demo_config(one_shard, tmp_path))


def test_old_children_lie_where_their_parents_belong_and_not_where_their_own_keys_say(
    three_shards: Shards, tmp_path: Path
) -> None:
    owners = initial_map(3)
    three_shards.execute(SCHEMA)
    for parent in range(1, 20):
        rows = f"INSERT INTO document VALUES ({parent}, 'p'); INSERT INTO symbol VALUES ({parent + 100}, {parent})"
        three_shards.execute(rows, on=owners[bucket_of(parent)])
    config = make_demo_config(three_shards, tmp_path)
    apply_now(config)
    assert lacking(config) == []


def test_generated_keys_are_no_reason_to_refuse_later(one_shard: Shards, tmp_path: Path) -> None:
    config = make_demo_config(one_shard, tmp_path)
    apply_now(config)
    one_shard.execute("SET foreshard.bucket = '1'; INSERT INTO document (path) VALUES ('p')")
    assert lacking(config) == []


def test_a_sharded_table_that_is_no_longer_declared_is_refused(one_shard: Shards, tmp_path: Path) -> None:
    apply_now(make_demo_config(one_shard, tmp_path))
    one_shard.execute("ALTER TABLE symbol DROP CONSTRAINT symbol_document_id_fkey")
    message = refusal(make_demo_config(one_shard, tmp_path, tables=TABLES[1:2], triggers=()))
    assert "public.document on shard s0 is sharded, but no longer declared" in message


def test_a_table_in_use_makes_apply_give_up_without_a_change(
    one_shard: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("foreshard.proxy.control.opened.LOCK_TIMEOUT", "50ms")
    one_shard.execute(SCHEMA)
    config = make_demo_config(one_shard, tmp_path)
    with psycopg.connect(one_shard.dsns[0]) as busy:
        busy.execute("LOCK TABLE document IN ACCESS SHARE MODE")
        with pytest.raises(ForeshardError, match=r"lock timeout \(SQLSTATE 55P03\); nothing was changed there"):
            apply_now(config)
    assert one_shard.query("SELECT to_regnamespace('foreshard')::text") == [(None,)]
    apply_now(config)
    assert lacking(config) == []


def test_partitions_get_their_triggers_when_they_are_added(one_shard: Shards, tmp_path: Path) -> None:
    config = make_demo_config(one_shard, tmp_path)
    assert config.schema is not None
    config.schema.write_text(
        "CREATE TABLE IF NOT EXISTS language (code text PRIMARY KEY);"
        "CREATE TABLE IF NOT EXISTS document (id bigserial PRIMARY KEY, path text, body text) PARTITION BY HASH (id);"
        "CREATE TABLE IF NOT EXISTS document_0 PARTITION OF document FOR VALUES WITH (MODULUS 2, REMAINDER 0);"
        "CREATE TABLE IF NOT EXISTS symbol (id bigserial PRIMARY KEY, document_id bigint REFERENCES document);"
    )
    apply_now(config)
    assert lacking(config) == []
    one_shard.execute("CREATE TABLE document_1 PARTITION OF document FOR VALUES WITH (MODULUS 2, REMAINDER 1)")
    assert lacking(config) == ["shard s0, control database: capture triggers on partitions of public.document"]
    apply_now(config)
    assert lacking(config) == []
    views = asyncio.run(read_catalog(config)).views
    assert views["public.document_0"] == views["public.document_1"] == "public.document"
    assert views["public.document_pkey"] == "public.document"


def test_a_shard_that_cannot_be_reached_is_named(one_shard: Shards, tmp_path: Path) -> None:
    dsn = "postgresql://app:hidden@127.0.0.1:1/app"
    config = make_demo_config(Shards((msgspec.structs.replace(one_shard.shards[0], dsn=dsn),)), tmp_path)
    with pytest.raises(ForeshardError, match=r"^shard s0 \(127\.0\.0\.1:1/app\): cannot connect: ") as raised:
        lacking(config)
    assert "hidden" not in str(raised.value)
