"""One bucket from one shard to another, with every kind of table, while others write; the shards themselves tell."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from foreshard.proxy.config import Config
from foreshard.proxy.control.moves import MOVE_LOCK
from foreshard.proxy.errors import ForeshardError
from foreshard.proxy.move import Transfer
from foreshard.proxy.move.transfer import Busy
from tests.support.move_world import BUCKETS, ask, move_world, owners, rows_of, run, small
from tests.support.postgres import TestInstances


@pytest.fixture(scope="module")
def config(test_instances: TestInstances, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Config]:
    """Two shards; each test moves a bucket of its own."""
    with move_world(test_instances, tmp_path_factory.mktemp("move")) as config:
        yield config


def test_a_bucket_moves_whole_and_alone(config: Config) -> None:
    bucket, other = BUCKETS[0], BUCKETS[1]
    before, beside = rows_of(config, 0, bucket), rows_of(config, 0, other)
    assert all(before.values())
    transfer = run(config, bucket, small)
    assert rows_of(config, 1, bucket) == before
    assert not any(rows_of(config, 0, bucket).values())
    assert rows_of(config, 0, other) == beside
    assert owners(config, bucket) == [0, 1]
    assert owners(config, other) == [1, 0]
    assert transfer.moved.rows == sum(map(len, before.values()))


def test_keys_made_later_are_new_ones(config: Config) -> None:
    counters = "SELECT last_value FROM {name}"
    for name in ("document_id_seq", "symbol_id_seq", "place_id_seq", "document_number_seq"):
        first, second = (ask(config, shard, counters.format(name=name))[0][0] for shard in (0, 1))
        assert int(str(second)) >= int(str(first)), name
    bucket = BUCKETS[0]
    ask(config, 1, f"SET foreshard.bucket = {bucket}; INSERT INTO document (path) VALUES ('made later')")
    assert ask(config, 1, "SELECT foreshard.bucket_of(id) FROM document WHERE path = 'made later'") == [(bucket,)]


def test_events_and_dead_letters_go_along_in_order_and_under_their_ids(config: Config) -> None:
    bucket = BUCKETS[1]
    document = f"SELECT min(id) FROM document WHERE foreshard.bucket_of(id) = {bucket}"
    ask(config, 0, f"UPDATE document SET body = 'changed' WHERE id = ({document})")
    symbol = f"SELECT max(id) FROM symbol WHERE foreshard.bucket_of(document_id) = {bucket}"
    ask(config, 0, f"DELETE FROM symbol WHERE id = ({symbol})")
    ask(
        config, 0,
        f"WITH buried AS (DELETE FROM foreshard.outbox WHERE function = 'second' AND row_key = ({document})::text "
        "AND operation = 'insert' RETURNING *) "
        "INSERT INTO foreshard.dead_letter (lane, lsn, xid, ordinal, function, operation, table_name, row_key, new, "
        "volume, depth, captured_at, attempt, error) SELECT lane, lsn, xid, ordinal, function, operation, table_name, "
        "row_key, '{}', volume, depth, captured_at, 20, 'failed' FROM buried",
    )  # fmt: skip
    ask(config, 0, "UPDATE foreshard.dead_letter SET new = jsonb_build_object('id', row_key::bigint)")
    listed = (
        "SELECT row_key, function, operation, coalesce(e.old, kept.old) ->> 'body', volume, depth, captured_at, "
        "coalesce(e.new, kept.new) ->> 'path', coalesce(origin, lsn || '-' || xid || '-' || ordinal) "
        "FROM foreshard.outbox AS e LEFT JOIN "
        "foreshard.outbox_image AS kept USING (lane, lsn, xid, image) WHERE row_key = ANY ('{keys}') "
        "ORDER BY row_key, lsn, xid, ordinal"
    )
    keys = [str(row[0]) for row in ask(
        config, 0, f"SELECT row_key FROM foreshard.outbox WHERE foreshard.bucket_of(row_key::bigint) = {bucket}"
    )]  # fmt: skip
    asked = listed.replace("{keys}", "{" + ",".join(set(keys)) + "}")
    before, there = ask(config, 0, asked), ask(config, 1, "SELECT count(*) FROM foreshard.outbox")[0][0]
    images = ask(config, 0, "SELECT count(*) FROM foreshard.outbox_image")[0][0]
    transfer = run(config, bucket, small)
    assert ask(config, 1, asked) == before
    assert ask(config, 0, asked) == []
    assert transfer.moved.events == len(before) + 1
    assert ask(config, 1, "SELECT count(*) FROM foreshard.outbox")[0][0] == int(str(there)) + len(before)
    assert int(str(ask(config, 0, "SELECT count(*) FROM foreshard.outbox_image")[0][0])) < int(str(images))
    dead = "SELECT function, operation, attempt FROM foreshard.dead_letter"
    assert ask(config, 1, dead) == [("second", "insert", 20)]
    assert ask(config, 0, "SELECT count(*) FROM foreshard.dead_letter") == [(0,)]


def test_what_changes_while_a_bucket_is_copied_arrives(config: Config) -> None:
    bucket = BUCKETS[2]
    own = f"foreshard.bucket_of(id) = {bucket}"
    changes = f"""
        BEGIN;
        UPDATE document SET body = 'new' WHERE {own} AND size % 5 = 0;
        SAVEPOINT one; INSERT INTO document (path) VALUES ('later'); RELEASE one;
        SAVEPOINT two; DELETE FROM document WHERE {own} AND size % 7 = 1; ROLLBACK TO two;
        DELETE FROM document WHERE {own} AND size % 11 = 1;
        UPDATE person SET photo = NULL WHERE foreshard.bucket_of(name) = {bucket};
        UPDATE visit SET day = day + 100 WHERE foreshard.bucket_of(person) = {bucket} AND day < '2026-01-03';
        COMMIT;
    """
    running = psycopg.connect(config.shards[0].dsn)
    running.execute(f"SET foreshard.bucket = {bucket}; INSERT INTO document (path) VALUES ('held')".encode())

    async def script(transfer: Transfer) -> None:
        await transfer.begin()
        await transfer.copy()
        ask(config, 0, f"SET foreshard.bucket = {bucket}; {changes}")
        running.commit()  # it had begun before the copy
        ask(config, 0, f"DELETE FROM person WHERE foreshard.bucket_of(name) = {bucket} AND name LIKE '%7'")
        before.update(rows_of(config, 0, bucket, transfer.catalog))
        await transfer.flip()
        await transfer.commit()

    before: dict[str, list[str]] = {}
    with running:
        ask(config, 0, f"DELETE FROM visit WHERE foreshard.bucket_of(person) = {bucket} AND person LIKE '%7'")
        run(config, bucket, script)
    assert rows_of(config, 1, bucket) == before
    assert any("held" in row for row in before["document"])
    assert not any(rows_of(config, 0, bucket).values())


def test_a_row_that_somebody_has_locked_makes_the_flip_give_way(config: Config) -> None:
    bucket = BUCKETS[3]
    before = rows_of(config, 0, bucket)

    async def script(transfer: Transfer) -> None:
        await transfer.begin()
        await transfer.flip()

    with psycopg.connect(config.shards[0].dsn) as holder:
        holder.execute(f"SELECT FROM symbol WHERE foreshard.bucket_of(document_id) = {bucket} FOR SHARE".encode())
        with pytest.raises(Busy):
            run(config, bucket, script)
    assert rows_of(config, 0, bucket) == before
    assert owners(config, bucket) == [1, 0]
    run(config, bucket, small)
    assert rows_of(config, 1, bucket) == before


def test_what_was_copied_is_kept_when_the_flip_has_given_way(config: Config) -> None:
    bucket = BUCKETS[4]
    place = f"foreshard.bucket_of(symbol_id) = {bucket}"
    ask(config, 0, f"SET foreshard.bucket = {bucket}; INSERT INTO document (path) VALUES ('one more')")

    async def script(transfer: Transfer) -> None:
        await transfer.begin()
        await transfer.copy()
        with psycopg.connect(config.shards[0].dsn) as holder:
            holder.execute(f"UPDATE place SET line = 1 + line WHERE {place}".encode())
            with pytest.raises(Busy):
                await transfer.flip()
        await transfer.catch_up()
        before.update(rows_of(config, 0, bucket, transfer.catalog))
        await transfer.flip()
        await transfer.commit()

    before: dict[str, list[str]] = {}
    transfer = run(config, bucket, script)
    assert rows_of(config, 1, bucket) == before
    assert transfer.moved.rows == sum(map(len, before.values()))
    assert owners(config, bucket) == [0, 1]


def test_a_router_that_has_not_let_go_makes_the_flip_give_way(config: Config) -> None:
    with psycopg.connect(config.shards[0].dsn) as holder:
        holder.execute(f"SELECT pg_advisory_lock_shared({MOVE_LOCK})")
        with pytest.raises(Busy):
            run(config, BUCKETS[5], small)
    assert owners(config, BUCKETS[5]) == [1, 0]


def test_rows_that_are_on_the_target_already_keep_the_bucket_where_it_is(config: Config) -> None:
    bucket = BUCKETS[5]
    name = str(ask(config, 0, f"SELECT min(name) FROM person WHERE foreshard.bucket_of(name) = {bucket}")[0][0])
    ask(config, 1, f"INSERT INTO person (name) VALUES ('{name}')")
    with pytest.raises(ForeshardError, match=r"shard s1 has 1 rows of public\.person that belong to bucket"):
        run(config, bucket, small)
    ask(config, 1, f"DELETE FROM person WHERE name = '{name}'")
    assert owners(config, bucket) == [1, 0]


def test_triggers_of_users_hear_nothing(config: Config) -> None:
    bucket = BUCKETS[5]
    for shard in (0, 1):
        ask(
            config, shard,
            "CREATE TABLE heard (what text); CREATE FUNCTION hear() RETURNS trigger LANGUAGE plpgsql AS "
            "$$BEGIN INSERT INTO heard VALUES (TG_OP); RETURN NULL; END$$; "
            "CREATE TRIGGER hear AFTER INSERT OR DELETE ON person FOR EACH ROW EXECUTE FUNCTION hear()",
        )  # fmt: skip
    before = rows_of(config, 0, bucket)
    run(config, bucket, small)
    assert rows_of(config, 1, bucket) == before
    assert [ask(config, shard, "SELECT count(*) FROM heard") for shard in (0, 1)] == [[(0,)], [(0,)]]
