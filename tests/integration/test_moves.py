"""Buckets move while clients work in them: nobody sees more than a pause, and what is open is waited for."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import msgspec
import psycopg
import pytest

from foreshard._core.buckets import bucket_of
from foreshard.proxy.control.fence import FREEZE_CHANNEL, IS_WAITING
from foreshard.proxy.control.moves import MOVE_LOCK
from foreshard.proxy.control.placing import Notice
from tests.support.messages import (
    SYNC,
    bind,
    copy_data,
    describe_statement,
    execute,
    extended,
    message,
    parse,
    query,
)
from tests.support.moving import MOVED_BY_HAND, SCHEMA, TABLES, MovingWorld
from tests.support.postgres import Shards, TestInstances
from tests.support.proxy import Proxy
from tests.support.raw import RawConnection, error_of, kinds, send_cancel
from tests.support.verified import assert_verified
from tests.support.waiting import wait_until

SHARD_COUNT = 3
RUN_MOVES = 24
PREPARED_NAME = "not one of ours"


@pytest.fixture(scope="module")
def shards(test_instances: TestInstances) -> Iterator[Shards]:
    made = test_instances.create(SHARD_COUNT)
    made.execute(SCHEMA)
    yield made
    test_instances.drop(made)


@pytest.fixture(scope="module")
def proxy(shards: Shards, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with Proxy(shards.dsns, tmp_path_factory.mktemp("moves"), tables=TABLES, **MOVED_BY_HAND) as proxy:
        yield proxy
    assert_verified(proxy.configuration)


@pytest.fixture
def world(shards: Shards, proxy: Proxy) -> MovingWorld:
    """Without clients of its own that run."""
    return MovingWorld(shards, [proxy], 0, 0)


@pytest.fixture
def client(proxy: Proxy) -> Iterator[RawConnection]:
    with proxy.server.connect() as connection:
        yield connection


@pytest.fixture
def row(client: RawConnection) -> tuple[int, int]:
    """A new document: its key and bucket."""
    key = int(client.value("INSERT INTO document (owner) VALUES (-1) RETURNING id") or 0)
    return key, bucket_of(key)


def place_of(shards: Shards, key: int) -> list[int]:
    """The shards that have the document."""
    sql = f"SELECT count(*) FROM document WHERE id = {key}"
    return [index for index in range(SHARD_COUNT) if shards.query(sql, on=index) != [(0,)]]


def is_held_up(world: MovingWorld) -> bool:
    """Whether the last move has found somebody in the way."""
    return "in the way" in str(world.states()[-1][5])


def test_clients_notice_nothing(shards: Shards, proxy: Proxy) -> None:
    world = MovingWorld(shards, [proxy], 6, 1)
    world.start()
    for _ in range(RUN_MOVES):
        world.plan(world.bucket())
        world.wait_moved()
    world.stop()
    world.check()
    assert {state[4] for state in world.states()} == {"done"}
    assert_verified(proxy.configuration)


def test_a_bucket_of_many_rows_is_copied_before(
    world: MovingWorld, shards: Shards, client: RawConnection, row: tuple[int, int]
) -> None:
    key, bucket = row
    client.rows(f"INSERT INTO symbol (document_id, name) SELECT {key}, n::text FROM generate_series(1, 6000) AS n")
    target = world.plan(bucket)
    for n in range(200):
        client.rows(f"UPDATE document SET n = {n} WHERE id = {key}")
        client.rows(f"DELETE FROM symbol WHERE document_id = {key} AND name = '{n + 1}'")
        client.rows(f"INSERT INTO symbol (document_id, name) VALUES ({key}, 'new {n}')")
    world.wait_moved()
    assert world.states()[-1][6] == "large"
    assert place_of(shards, key) == [target]
    assert client.value(f"SELECT count(*) FROM symbol WHERE document_id = {key}") == "6000"
    assert client.value(f"SELECT n FROM document WHERE id = {key}") == "199"
    found = shards.query(f"SELECT count(*) FROM symbol WHERE document_id = {key}", on=target)
    assert found == [(6000,)]


OPEN = {
    "insert": ["BEGIN", "INSERT INTO symbol (document_id, name) VALUES ({key}, 'open')"],
    "update": ["BEGIN", "UPDATE document SET n = 7 WHERE id = {key}"],
    "placed": ["BEGIN", "INSERT INTO symbol (document_id) SELECT id FROM document WHERE id = {key}"],
    "everything": ["BEGIN", "UPDATE document SET n = n + 1"],
    "repeatable": ["BEGIN ISOLATION LEVEL REPEATABLE READ", "SELECT count(*) FROM person"],
    "cursor": ["BEGIN", "DECLARE c CURSOR FOR SELECT id FROM document WHERE id = {key}"],
    "serializable": ["BEGIN ISOLATION LEVEL SERIALIZABLE", "SELECT n FROM person WHERE name = 'nobody'"],
    "characteristics": [
        "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL REPEATABLE READ",
        "BEGIN",
        "SELECT id FROM document WHERE id = {key}",
    ],
    "several": ["BEGIN", "SELECT id FROM document WHERE id = {key} FOR UPDATE"],
}


READING = ("repeatable", "cursor", "serializable", "characteristics")


@pytest.mark.parametrize("name", OPEN)
def test_a_transaction_that_has_the_bucket_open_is_waited_for(
    world: MovingWorld, shards: Shards, proxy: Proxy, row: tuple[int, int], name: str
) -> None:
    key, bucket = row
    with proxy.server.connect() as other:
        for sql in OPEN[name]:
            other.rows(sql.format(key=key))
        before = place_of(shards, key)
        target = world.plan(bucket)
        wait_until(lambda: is_held_up(world))
        assert place_of(shards, key) == before
        if name not in READING:
            other.rows(f"UPDATE document SET owner = -2 WHERE id = {key}")
        other.rows("COMMIT")
        world.wait_moved()
        assert place_of(shards, key) == [target]
        if name not in READING:
            assert other.value(f"SELECT owner FROM document WHERE id = {key}") == "-2"


def test_a_portal_with_rows_left_is_waited_for(
    world: MovingWorld, shards: Shards, proxy: Proxy, client: RawConnection, row: tuple[int, int]
) -> None:
    key, bucket = row
    client.rows(f"INSERT INTO symbol (document_id) SELECT {key} FROM generate_series(1, 5)")
    with proxy.server.connect() as other:
        other.rows("BEGIN")
        text = f"SELECT id FROM symbol WHERE document_id = {key}"
        answer = other.ask(parse(text), bind(), execute(rows_max=2), SYNC)
        assert kinds(answer) == "12DDsZ"
        target = world.plan(bucket)
        wait_until(lambda: is_held_up(world))
        assert kinds(other.ask(execute(rows_max=2), SYNC)) == "DDsZ"
        other.rows("COMMIT")
        world.wait_moved()
    assert place_of(shards, key) == [target]


@pytest.mark.parametrize(("source", "target"), [(0, 1), (1, 0)], ids=["twice", "missed"])
@pytest.mark.parametrize("sql", ["SELECT id FROM document", "SELECT id FROM document ORDER BY id"])
def test_a_portal_that_is_not_bound_on_all_of_its_shards_yet_is_waited_for(
    world: MovingWorld, shards: Shards, proxy: Proxy, client: RawConnection, source: int, target: int, sql: str
) -> None:
    """Its first shard's snapshot is that of the Bind, the others' that of the Execute, behind another Sync."""
    key = 0
    while not key or place_of(shards, key) != [source]:
        key = int(client.value("INSERT INTO document (owner) VALUES (-1) RETURNING id") or 0)
        client.rows("DISCARD ALL")  # the next row gets another bucket
    with proxy.server.connect() as other:
        other.rows("BEGIN")
        assert kinds(other.ask(parse(sql), bind(), SYNC)) == "12Z"
        world.plan(bucket_of(key), target)
        wait_until(lambda: world.states()[-1][4] == "done" or is_held_up(world))
        rows = [each.values[0] for each in other.ask(execute(), SYNC) if each.kind == b"D"]
        assert rows.count(str(key).encode()) == 1
        world.wait_moved()  # all of its snapshots are taken
        assert place_of(shards, key) == [target]
        other.rows("COMMIT")


@pytest.mark.parametrize("by_extended", [False, True], ids=["simple", "extended"])
@pytest.mark.parametrize("sql", ["SELECT n FROM document WHERE id = {key}", "SELECT count(*) FROM document"])
def test_an_idle_transaction_that_has_read_is_not_waited_for(
    world: MovingWorld, shards: Shards, proxy: Proxy, row: tuple[int, int], sql: str, by_extended: bool
) -> None:
    key, bucket = row
    with proxy.server.connect() as other:
        other.rows("BEGIN")
        text = sql.format(key=key)
        count = other.ask(extended(text), SYNC) if by_extended else other.query(text)
        target = world.plan(bucket)
        world.wait_moved()
        assert place_of(shards, key) == [target]
        again = other.ask(extended(text), SYNC) if by_extended else other.query(text)
        assert [each.values for each in again if each.kind == b"D"] == [
            each.values for each in count if each.kind == b"D"
        ]
        other.rows(f"UPDATE document SET n = 5 WHERE id = {key}")
        other.rows("COMMIT")
        assert other.value(f"SELECT n FROM document WHERE id = {key}") == "5"


def test_a_prepared_transaction_of_anybody_is_waited_for(
    world: MovingWorld, shards: Shards, row: tuple[int, int]
) -> None:
    key, bucket = row
    (source,) = place_of(shards, key)
    shards.execute(
        f"BEGIN; INSERT INTO symbol (document_id, name) VALUES ({key}, 'prepared'); "
        f"PREPARE TRANSACTION '{PREPARED_NAME}'",
        on=source,
    )
    target = world.plan(bucket)
    wait_until(lambda: "prepared" in str(world.states()[-1][5]))
    shards.execute(f"COMMIT PREPARED '{PREPARED_NAME}'", on=source)
    world.wait_moved()
    assert shards.query(f"SELECT name FROM symbol WHERE document_id = {key}", on=target) == [("prepared",)]


def test_a_connection_keeps_placing_rows_while_its_bucket_moves(
    world: MovingWorld, shards: Shards, client: RawConnection
) -> None:
    for _ in range(4):
        key = int(client.value("INSERT INTO document (owner) VALUES (-3) RETURNING id") or 0)
        world.plan(bucket_of(key))
        while str(world.states()[-1][4]) != "done":
            client.value("INSERT INTO document (owner) VALUES (-3) RETURNING id")
    world.wait_moved()
    owners = world.owners()
    for index in range(SHARD_COUNT):
        keys = shards.query("SELECT id FROM document WHERE owner = -3", on=index)
        assert all(owners[bucket_of(int(str(key)))] == index for (key,) in keys)


def test_a_move_that_cannot_be_made_says_why(world: MovingWorld, shards: Shards, row: tuple[int, int]) -> None:
    key, bucket = row
    (source,) = place_of(shards, key)
    target = (source + 1) % SHARD_COUNT
    shards.execute(f"INSERT INTO document (id, owner) VALUES ({key}, -9)", on=target)
    world.plan(bucket, target)
    world.wait_moved()
    state = world.states()[-1]
    assert state[4] == "failed"
    assert "1 rows of public.document that belong to bucket" in str(state[5])
    shards.execute(f"DELETE FROM document WHERE id = {key}", on=target)
    assert place_of(shards, key) == [source]


def test_statements_wait_no_longer_than_the_freeze(
    world: MovingWorld, proxy: Proxy, client: RawConnection, row: tuple[int, int]
) -> None:
    key, bucket = row
    with proxy.server.connect() as other:
        other.rows("BEGIN")
        other.rows(f"UPDATE document SET n = 1 WHERE id = {key}")
        world.plan(bucket)
        until_s = time.monotonic() + 1.5  # several attempts fall into it
        while time.monotonic() < until_s:
            assert client.value(f"SELECT n FROM document WHERE id = {key}") == "0"
            assert client.value("SELECT count(*) FROM person WHERE name = 'nobody'") == "0"
        other.rows("COMMIT")
        world.wait_moved()
    assert client.value(f"SELECT n FROM document WHERE id = {key}") == "1"


def test_a_statement_that_waits_for_a_move_can_be_cancelled(
    world: MovingWorld, shards: Shards, proxy: Proxy, row: tuple[int, int]
) -> None:
    key, bucket = row
    (source,) = place_of(shards, key)
    with (
        psycopg.connect(shards.shards[source].dsn) as holder,
        psycopg.connect(shards.shards[source].dsn, autocommit=True) as bell,
        proxy.server.connect() as waiting,
    ):
        # Whoever takes the router's lock keeps it from taking hold again, as a mover that does not end would.
        asking = threading.Thread(target=holder.execute, args=(f"SELECT pg_advisory_xact_lock({MOVE_LOCK})",))
        asking.start()
        wait_until(lambda: bell.execute(IS_WAITING.replace("$1", "%s"), (holder.info.backend_pid,)).fetchone())
        bell.execute("SELECT pg_notify(%s, %s)", (FREEZE_CHANNEL, msgspec.json.encode(Notice(bucket, 0)).decode()))
        asking.join()
        waiting.send(query(f"SELECT n FROM document WHERE id = {key}"))
        time.sleep(0.3)
        send_cancel(proxy.server.host, proxy.server.port, waiting.pid, waiting.secret)
        assert error_of(waiting.read_until())["C"] == "57014"
        waiting.send(query(f"SELECT n FROM document WHERE id = {key}"))
        time.sleep(0.1)
        with proxy.server.connect() as other:
            assert other.value("SELECT count(*) FROM person WHERE name = 'nobody'") == "0"
        holder.rollback()
        assert kinds(waiting.read_until()) == "TDCZ"
    world.wait_moved()


def test_snapshots_that_a_describe_has_opened_are_waited_for(
    world: MovingWorld, shards: Shards, proxy: Proxy, row: tuple[int, int]
) -> None:
    key, bucket = row
    with proxy.server.connect() as other:
        other.rows("BEGIN ISOLATION LEVEL REPEATABLE READ")
        assert kinds(other.ask(parse(f"SELECT n FROM document WHERE id = {key}"), describe_statement(), SYNC)) == "1tTZ"
        target = world.plan(bucket)
        wait_until(lambda: is_held_up(world))
        assert kinds(other.ask(bind(), execute(), SYNC)) == "2DCZ"
        other.rows("COMMIT")
        world.wait_moved()
    assert place_of(shards, key) == [target]


def test_a_copy_that_is_under_way_is_waited_for(
    world: MovingWorld, shards: Shards, proxy: Proxy, row: tuple[int, int]
) -> None:
    key, bucket = row
    with proxy.server.connect() as other:
        other.send(parse("COPY symbol (document_id, name) FROM STDIN"), bind(), execute(), message(b"H"))
        assert kinds(other.read_until(b"G")) == "12G"
        target = world.plan(bucket)
        wait_until(lambda: is_held_up(world))
        other.send(copy_data(f"{key}\tcopied\n".encode()), message(b"c"), SYNC)
        assert kinds(other.read_until()) == "CZ"
        world.wait_moved()
    assert shards.query(f"SELECT name FROM symbol WHERE document_id = {key}", on=target) == [("copied",)]


def test_clients_whose_sessions_are_read_only_are_served(proxy: Proxy) -> None:
    with proxy.server.connect(options="-c default_transaction_read_only=on") as other:
        assert other.value("SELECT count(*) FROM person WHERE name = 'nobody'") == "0"


def test_a_bucket_that_changes_between_rounds_and_before_the_flip_is_moved_whole(
    world: MovingWorld, shards: Shards, proxy: Proxy, client: RawConnection, row: tuple[int, int]
) -> None:
    key, bucket = row
    client.rows(f"INSERT INTO symbol (document_id, name) SELECT {key}, n::text FROM generate_series(1, 3000) AS n")
    with proxy.server.connect() as other:
        other.rows("BEGIN")
        other.rows(f"DELETE FROM symbol WHERE document_id = {key} AND name = '1'")  # keeps the flip off
        target = world.plan(bucket)
        client.rows(f"DELETE FROM symbol WHERE document_id = {key} AND name = '2'")
        wait_until(lambda: is_held_up(world))
        client.rows(f"DELETE FROM symbol WHERE document_id = {key} AND name = '3'")
        client.rows(f"UPDATE symbol SET name = 'new' WHERE document_id = {key} AND name = '4'")
        other.rows("COMMIT")
    world.wait_moved()
    assert world.states()[-1][6] == "large"
    counts = "count(*), count(*) FILTER (WHERE name = 'new')"
    assert shards.query(f"SELECT {counts} FROM symbol WHERE document_id = {key}", on=target) == [(2997, 1)]


def test_a_bucket_that_is_elsewhere_by_now_is_not_waited_for(
    world: MovingWorld, shards: Shards, row: tuple[int, int]
) -> None:
    key, bucket = row
    (source,) = place_of(shards, key)
    wrong = (source + 1) % SHARD_COUNT
    shards.execute(
        f"INSERT INTO foreshard.move (bucket, source, target, reason) VALUES ({bucket}, {wrong}, {source}, 'test');"
        "NOTIFY foreshard_move",
        on=0,
    )
    wait_until(lambda: world.states()[-1][4] != "planned")
    world.wait_moved()
    assert place_of(shards, key) == [source]
    assert world.states()[-1][4] == "done"  # it is where it was to go
