"""Transactions, pinning, cancel and failures where several shards take part in one session."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.integration.test_wire_backends import hear_loss
from tests.support.messages import SYNC, bind, describe_portal, execute, extended, parse, query
from tests.support.postgres import Shards, TestInstances
from tests.support.proxy import Proxy, resident_bytes
from tests.support.raw import RawConnection, error_of, kinds, send_cancel
from tests.support.servers import Server
from tests.support.statements import SCHEMA, TABLES
from tests.support.waiting import wait_until

ROWS_PER_SHARD = 20
REFUSED = "0A000"
NOT_BUILT = "PREPARE document AS SELECT id FROM document"
MEGABYTE = 1 << 20
OPEN_TRANSACTIONS = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'"


class Deployment(NamedTuple):
    """A proxy over three shards, and documents on each of them."""

    proxy: Proxy
    shards: Shards
    keys: list[list[int]]  # per shard

    @property
    def server(self) -> Server:
        return self.proxy.server

    def shard(self, index: int) -> Server:
        return Server.of_dsn(self.shards.dsns[index])

    def all_keys(self) -> list[int]:
        return sorted(key for keys in self.keys for key in keys)


@pytest.fixture(scope="module")
def deployment(test_instances: TestInstances, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    shards = test_instances.create(3)
    shards.execute(SCHEMA)
    sections = {"pool": {"size": 4}, "workers": {"per_shard": 0}}
    with Proxy(shards.dsns, tmp_path_factory.mktemp("shards"), tables=TABLES, **sections) as proxy:
        keys: list[list[int]] = [[], [], []]
        with proxy.server.connect() as connection:
            while min(map(len, keys)) < ROWS_PER_SHARD:
                connection.rows("INSERT INTO document (title, score) VALUES ('untouched', 5)")
                for index in range(3):
                    found = shards.query("SELECT id FROM document ORDER BY id", on=index)
                    keys[index] = [int(str(row[0])) for row in found]
        yield Deployment(proxy, shards, keys)
    test_instances.drop(shards)


@pytest.fixture
def client(deployment: Deployment) -> Iterator[RawConnection]:
    """A client; afterwards every row is as it was."""
    with deployment.server.connect() as connection:
        yield connection
    with deployment.server.connect() as connection:
        assert sorted(read_keys(connection)) == deployment.all_keys()
        assert connection.rows("SELECT id FROM document WHERE title <> 'untouched'") == []


def read_keys(connection: RawConnection) -> list[int]:
    return [int(row[0] or 0) for row in connection.rows("SELECT id FROM document")]


def touch(key: int) -> str:
    return f"UPDATE document SET title = 'touched' WHERE id = {key}"


def test_rows_of_all_shards_come_in_one_result(deployment: Deployment, client: RawConnection) -> None:
    for data in (query("SELECT id FROM document"), extended("SELECT id FROM document") + SYNC):
        heard = client.ask(data)
        assert kinds(heard).count("T") == 1
        assert kinds(heard).count("C") == 1
        assert heard[-2].body == b"SELECT %d\0" % len(deployment.all_keys())
        assert sorted(int(message.values[0] or 0) for message in heard if message.kind == b"D") == deployment.all_keys()


@pytest.mark.parametrize("limit", [1, 3, 7, 1000])
def test_a_portal_over_all_shards_is_read_in_portions(
    deployment: Deployment, client: RawConnection, limit: int
) -> None:
    client.rows("BEGIN")
    client.ask(parse("SELECT id FROM document", "s"), bind(name="s", portal="p"), describe_portal("p"), SYNC)
    found: list[int] = []
    while True:
        heard = client.ask(execute("p", limit), SYNC)
        rows = [int(message.values[0] or 0) for message in heard if message.kind == b"D"]
        assert len(rows) <= limit
        found += rows
        if "s" not in kinds(heard):
            break
    assert sorted(found) == deployment.all_keys()
    client.rows("COMMIT")


def test_a_transaction_reads_everywhere_and_writes_on_one_shard(deployment: Deployment, client: RawConnection) -> None:
    one, two, three = (keys[0] for keys in deployment.keys)
    client.rows("BEGIN")
    for key in (one, two, three):
        assert len(client.rows(f"SELECT * FROM document WHERE id = {key}")) == 1
    client.rows(touch(two))
    assert client.rows("SELECT id FROM document WHERE title = 'touched'") == [[str(two).encode()]]
    client.rows(touch(deployment.keys[1][1]))
    client.rows("ROLLBACK")


@pytest.mark.parametrize("by_extended", [False, True], ids=["simple", "extended"])
def test_a_refused_statement_fails_its_transaction_and_nothing_is_lost(
    deployment: Deployment, client: RawConnection, by_extended: bool
) -> None:
    client.rows("BEGIN")
    client.rows(touch(deployment.keys[0][0]))
    answer = client.ask(*((extended(NOT_BUILT), SYNC) if by_extended else (query(NOT_BUILT),)))
    error = error_of(answer)
    assert error["C"] == REFUSED
    assert error["H"]
    assert answer[-1].body == b"E"
    assert error_of(client.query("SELECT 1"))["C"] == "25P02"
    assert client.query("COMMIT")[0].body == b"ROLLBACK\0"


def test_a_refused_write_is_undone_by_its_savepoint(deployment: Deployment, client: RawConnection) -> None:
    client.rows("BEGIN")
    client.rows(touch(deployment.keys[0][0]))
    client.rows("SAVEPOINT s")
    client.rows(touch(deployment.keys[2][0]))
    assert error_of(client.query(NOT_BUILT))["C"] == REFUSED
    assert client.query("ROLLBACK TO s")[-1].body == b"T"
    assert len(client.rows("SELECT id FROM document WHERE title = 'touched'")) == 1
    client.rows(touch(deployment.keys[0][1]))
    assert len(client.rows("SELECT id FROM document WHERE title = 'touched'")) == 2
    client.rows("ROLLBACK")


def test_savepoints_reach_shards_that_join_later(deployment: Deployment, client: RawConnection) -> None:
    client.rows("BEGIN")
    client.rows("SAVEPOINT early")
    client.rows(f"SELECT 1 FROM document WHERE id = {deployment.keys[0][0]}")
    client.rows("SAVEPOINT later")
    client.rows(touch(deployment.keys[1][0]))
    client.rows("ROLLBACK TO later")
    assert client.rows("SELECT id FROM document WHERE title = 'touched'") == []
    client.rows(touch(deployment.keys[1][1]))
    client.rows("ROLLBACK TO early")
    assert client.rows("SELECT id FROM document WHERE title = 'touched'") == []
    assert error_of(client.query("ROLLBACK TO later"))["C"] == "3B001"
    client.rows("ROLLBACK")


def test_a_failed_statement_on_one_shard_fails_the_transaction_on_all(
    deployment: Deployment, client: RawConnection
) -> None:
    client.rows("BEGIN")
    client.rows(touch(deployment.keys[0][0]))
    assert error_of(client.query(f"SELECT 1/0 FROM document WHERE id = {deployment.keys[1][0]}"))["C"] == "22012"
    assert error_of(client.query(f"SELECT 1 FROM document WHERE id = {deployment.keys[0][0]}"))["C"] == "25P02"
    assert client.query("COMMIT")[0].body == b"ROLLBACK\0"


def test_isolation_and_read_only_hold_on_every_shard(deployment: Deployment, client: RawConnection) -> None:
    client.rows("BEGIN READ ONLY")
    for keys in deployment.keys:
        assert len(client.rows(f"SELECT 1 FROM document WHERE id = {keys[0]}")) == 1
    assert error_of(client.query(touch(deployment.keys[2][0])))["C"] == "25006"
    client.rows("ROLLBACK")


def test_an_error_on_one_shard_ends_a_read_of_all(deployment: Deployment, client: RawConnection) -> None:
    for keys in deployment.keys:
        sql = f"SELECT 1 / (id - {keys[-1]}) FROM document"
        for data in (query(sql), extended(sql) + SYNC):
            heard = client.ask(data)
            assert error_of(heard)["C"] == "22012"
            assert "C" not in kinds(heard)
            assert heard[-1].body == b"I"
        assert sorted(read_keys(client)) == deployment.all_keys()


def test_a_read_of_all_shards_is_canceled_on_all(deployment: Deployment, client: RawConnection) -> None:
    watchers = [deployment.shard(index).connect() for index in range(3)]
    client.send(query("SELECT pg_sleep(60) FROM document /* wait on all */"))
    sleeping = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND query LIKE '%wait on all%'"
    wait_until(lambda: any(watcher.value(sleeping) == "1" for watcher in watchers))
    send_cancel(deployment.server.host, deployment.server.port, client.pid, client.secret)
    assert error_of(client.read_until())["C"] == "57014"
    for watcher in watchers:
        wait_until(lambda watcher=watcher: watcher.value(sleeping) == "0")
        watcher.close()
    assert sorted(read_keys(client)) == deployment.all_keys()


@pytest.mark.parametrize("killed", range(3))
def test_a_shard_lost_in_a_transaction_rolls_back_the_others(deployment: Deployment, killed: int) -> None:
    with deployment.server.connect() as client:
        client.rows("BEGIN")
        client.rows(touch(deployment.keys[0][0]))
        assert len(client.rows("SELECT id FROM document WHERE title = 'touched'")) == 1  # all three take part
        with deployment.shard(killed).connect() as direct:
            direct.rows(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
                " WHERE datname = current_database() AND state = 'idle in transaction'"
            )
        client.try_send(query("SELECT id FROM document"), query("COMMIT"))
        hear_loss(client)
    with deployment.server.connect() as client:
        wait_until(lambda: client.rows("SELECT id FROM document WHERE title = 'touched'") == [])
        assert sorted(read_keys(client)) == deployment.all_keys()
    for index in range(3):
        with deployment.shard(index).connect() as direct:
            wait_until(lambda direct=direct: direct.value(OPEN_TRANSACTIONS) == "0")


def test_a_client_that_leaves_in_a_transaction_over_shards_leaves_none_open(deployment: Deployment) -> None:
    for abort in (False, True):
        client = deployment.server.connect()
        client.rows("BEGIN")
        client.rows(touch(deployment.keys[1][0]))
        read_keys(client)
        (client.abort if abort else client.close)()
        for index in range(3):
            with deployment.shard(index).connect() as direct:
                wait_until(lambda direct=direct: direct.value(OPEN_TRANSACTIONS) == "0")


def test_a_setting_holds_on_every_shard_or_is_refused(deployment: Deployment, client: RawConnection) -> None:
    answer = client.query("SET extra_float_digits = -15")
    if "E" in kinds(answer):
        assert error_of(answer)["C"] == REFUSED
        return
    for keys in deployment.keys:
        assert client.value(f"SELECT (score / 3.0)::float8 FROM document WHERE id = {keys[0]}") == "2"
    client.rows("RESET extra_float_digits")
    for keys in deployment.keys:
        assert client.value(f"SELECT (score / 3.0)::float8 FROM document WHERE id = {keys[0]}").startswith("1.666666")


def test_a_local_setting_holds_on_every_shard_or_is_refused(deployment: Deployment, client: RawConnection) -> None:
    client.rows("BEGIN")
    answer = client.query("SET LOCAL extra_float_digits = -15")
    if "E" not in kinds(answer):
        for keys in deployment.keys:
            assert client.value(f"SELECT (score / 3.0)::float8 FROM document WHERE id = {keys[0]}") == "2"
    client.query("ROLLBACK")
    for keys in deployment.keys:
        assert client.value(f"SELECT (score / 3.0)::float8 FROM document WHERE id = {keys[0]}").startswith("1.666666")


def test_a_pipeline_over_several_shards_answers_in_order(deployment: Deployment, client: RawConnection) -> None:
    keys = [key for row in zip(*deployment.keys, strict=False) for key in row]
    client.send(*(extended("SELECT $1::bigint, id FROM document WHERE id = $1", [b"%d" % key]) + SYNC for key in keys))
    for key in keys:
        (row,) = [message.values for message in client.read_until() if message.kind == b"D"]
        assert row == [b"%d" % key, b"%d" % key]


def test_one_segment_over_several_shards_answers_in_order(deployment: Deployment, client: RawConnection) -> None:
    keys = [key for row in zip(*deployment.keys, strict=False) for key in row]
    client.send(*(extended("SELECT id FROM document WHERE id = $1", [b"%d" % key]) for key in keys), SYNC)
    rows = [message.values[0] for message in client.read_until() if message.kind == b"D"]
    assert rows == [b"%d" % key for key in keys]


def test_a_refused_statement_in_a_segment_undoes_the_writes_before_it(
    deployment: Deployment, client: RawConnection
) -> None:
    one, two = deployment.keys[0][0], deployment.keys[1][0]
    heard = client.ask(extended(touch(one)), extended(touch(two)), extended(NOT_BUILT), extended("SELECT 1"), SYNC)
    assert error_of(heard)["C"] == REFUSED
    assert heard[-1].body == b"I"
    assert client.rows("SELECT id FROM document WHERE title = 'touched'") == []


@pytest.mark.parametrize("stopped", range(3))
def test_a_slow_reader_of_all_shards_takes_bounded_memory(deployment: Deployment, stopped: int) -> None:
    def resident() -> int:
        return sum(resident_bytes(pid) for pid in deployment.proxy.router_pids())

    before = resident()
    server = deployment.server
    with RawConnection(server.host, server.port, receive_buffer_bytes=8192) as client:
        client.start(server.user, server.database)
        client.send(query("SELECT repeat('x', 1000000), id FROM document /* large */"))
        for _ in range(stopped * 10 + 1):
            client.read_message()
        with deployment.server.connect() as other:
            assert len(other.rows(f"SELECT 1 FROM document WHERE id = {deployment.keys[0][0]}")) == 1
        assert resident() - before < 24 * MEGABYTE
        rows = [message for message in client.read_until() if message.kind == b"D"]
        assert len(rows) >= 3 * ROWS_PER_SHARD - stopped * 10 - 1


def test_a_stopped_shard_does_not_stop_the_others(deployment: Deployment) -> None:
    with deployment.server.connect() as client, deployment.server.connect() as other:
        client.rows("BEGIN")
        key = deployment.keys[1][0]
        pid = int(client.value(f"SELECT pg_backend_pid() FROM document WHERE id = {key}"))
        os.kill(pid, signal.SIGSTOP)
        try:
            client.send(query(f"SELECT 1 FROM document WHERE id = {key}"))
            for keys in (deployment.keys[0], deployment.keys[2]):
                assert len(other.rows(f"SELECT 1 FROM document WHERE id = {keys[0]}")) == 1
        finally:
            os.kill(pid, signal.SIGCONT)
        assert kinds(client.read_until()) == "TDCZ"
        client.rows("COMMIT")


def test_new_rows_of_one_transaction_land_on_one_shard(deployment: Deployment, client: RawConnection) -> None:
    client.rows("BEGIN")
    keys = [int(client.value(f"INSERT INTO document (title) VALUES ('new {n}') RETURNING id")) for n in range(5)]
    client.rows(f"INSERT INTO symbol (document_id, name) VALUES ({keys[0]}, 'child')")
    for key in keys:
        assert len(client.rows(f"SELECT 1 FROM document WHERE id = {key}")) == 1
    client.rows("ROLLBACK")
    assert client.rows(f"SELECT id FROM document WHERE id IN ({', '.join(map(str, keys))})") == []


def test_new_rows_follow_the_shard_that_the_transaction_writes(deployment: Deployment, client: RawConnection) -> None:
    for index in range(3):
        client.rows("BEGIN")
        client.rows(touch(deployment.keys[index][0]))
        key = int(client.value("INSERT INTO document (title) VALUES ('follower') RETURNING id"))
        client.rows(touch(key))
        both = (key, deployment.keys[index][0])
        assert len({client.value(f"SELECT pg_backend_pid() FROM document WHERE id = {each}") for each in both}) == 1
        client.rows("ROLLBACK")
