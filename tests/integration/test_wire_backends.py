"""Backends that die: their clients hear an error, everyone else nothing; new backends take their place."""

from __future__ import annotations

import pytest

from tests.integration.test_wire_pooling import backend_pids
from tests.support.messages import COPY_DONE, SYNC, bind, copy_data, execute, extended, parse, query
from tests.support.raw import Closed, Message, RawConnection, kinds
from tests.support.servers import Pair
from tests.support.waiting import wait_until

ADMIN_SHUTDOWN = "57P01"
# What a client may hear of a lost backend: the server's own farewell, or the proxy's report of a lost connection.
LOST = {ADMIN_SHUTDOWN, "08006", "08003", "57P02"}


def terminate(pair: Pair, pid: str) -> None:
    """End one backend and wait until it is gone."""
    with pair.direct.connect() as direct:
        direct.rows(f"SELECT pg_terminate_backend({pid}, 10000)")


def terminate_all(pair: Pair) -> None:
    """End every backend of the database but the one that asks."""
    with pair.direct.connect() as direct:
        direct.rows(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


def hear_loss(connection: RawConnection, *, must_be_told: bool = True) -> list[Message]:
    """Messages up to the close, or up to the ReadyForQuery after an error."""
    heard: list[Message] = []
    while not heard or heard[-1].kind != b"Z":
        try:
            heard.append(connection.read_message())
        except Closed:
            break
    assert {message.fields["C"] for message in heard if message.kind == b"E"} <= LOST
    assert "E" in kinds(heard) or not must_be_told
    return heard


def test_backends_killed_in_the_pool_are_replaced_without_a_client_noticing(small_pair: Pair) -> None:
    with small_pair.proxied.connect() as client:
        for _ in range(3):
            before = backend_pids(small_pair.proxied)
            terminate_all(small_pair)
            assert client.value("SELECT 1") == "1"
            assert not before & backend_pids(small_pair.proxied)


def test_prepared_statements_outlive_the_backends_that_knew_them(small_pair: Pair) -> None:
    with small_pair.proxied.connect() as client:
        client.ask(parse("SELECT 'kept', $1::int", "s"), SYNC)
        for turn in range(3):
            heard = client.ask(bind([b"%d" % turn], name="s"), execute(), SYNC)
            assert kinds(heard) == "2DCZ"
            assert heard[1].values == [b"kept", b"%d" % turn]
            terminate_all(small_pair)


@pytest.mark.parametrize("waiting", [False, True], ids=["before the next statement", "during a statement"])
def test_a_backend_killed_in_a_transaction_is_reported_to_its_client_alone(small_pair: Pair, waiting: bool) -> None:
    small_pair.direct.run("DROP TABLE IF EXISTS lost", "CREATE TABLE lost (a integer)")
    with small_pair.proxied.connect() as client, small_pair.proxied.connect() as other:
        other.rows("BEGIN")
        client.rows("BEGIN")
        client.rows("INSERT INTO lost VALUES (1)")
        pid = client.value("SELECT pg_backend_pid()")
        if waiting:
            client.send(query("SELECT pg_sleep(60)"))
            with small_pair.direct.connect() as direct:
                state = f"SELECT count(*) FROM pg_stat_activity WHERE pid = {pid} AND state = 'active'"
                wait_until(lambda: direct.value(state) == "1")
        terminate(small_pair, pid)
        if not waiting:
            client.try_send(query("INSERT INTO lost VALUES (2)"), query("COMMIT"))
        hear_loss(client)
        assert other.value("SELECT count(*) FROM lost") == "0"
        other.rows("COMMIT")
    assert len(backend_pids(small_pair.proxied)) == 2


def test_a_client_never_continues_a_lost_transaction_as_if_it_lived(small_pair: Pair) -> None:
    """After the loss either the connection is closed, or nothing is stored until a new BEGIN."""
    small_pair.direct.run("DROP TABLE IF EXISTS lost", "CREATE TABLE lost (a integer)")
    with small_pair.proxied.connect() as client:
        client.rows("BEGIN")
        client.rows("INSERT INTO lost VALUES (1)")
        terminate(small_pair, client.value("SELECT pg_backend_pid()"))
        client.try_send(query("INSERT INTO lost VALUES (2)"))
        client.try_send(query("COMMIT"))
        hear_loss(client)
    with small_pair.direct.connect() as direct:
        assert direct.value("SELECT count(*) FROM lost") == "0"


def test_a_backend_killed_during_a_result_ends_it_before_its_end(small_pair: Pair) -> None:
    """In the middle of a row nothing can be said any more: an error or the close, and no CommandComplete."""
    with small_pair.proxied.connect() as client:
        client.send(query("SELECT pg_backend_pid(), repeat('x', 1000) FROM generate_series(1, 1000000)"))
        heard = client.read_until(b"D")
        pid = heard[-1].values[0].decode()  # type: ignore[union-attr]
        terminate(small_pair, pid)
        assert "C" not in kinds(hear_loss(client, must_be_told=False))


def test_a_backend_killed_during_a_copy_in_ends_it_with_an_error(small_pair: Pair) -> None:
    small_pair.direct.run("DROP TABLE IF EXISTS lost", "CREATE TABLE lost (a integer)")
    with small_pair.proxied.connect() as client:
        client.rows("BEGIN")
        pid = client.value("SELECT pg_backend_pid()")
        client.send(query("COPY lost FROM STDIN"))
        client.read_until(b"G")
        client.send(copy_data(b"1\n"))
        terminate(small_pair, pid)
        client.try_send(copy_data(b"2\n"), COPY_DONE)
        hear_loss(client)
    with small_pair.direct.connect() as direct:
        assert direct.value("SELECT count(*) FROM lost") == "0"


def test_a_pinned_client_whose_backend_dies_hears_of_it(small_pair: Pair) -> None:
    """Its session state is gone: going on with another backend would answer wrongly."""
    with small_pair.proxied.connect() as client:
        if "E" in kinds(client.query("SET work_mem = '9MB'")):
            return
        terminate(small_pair, client.value("SELECT pg_backend_pid()"))
        client.try_send(query("SHOW work_mem"))
        hear_loss(client)


def test_queries_in_flight_when_all_backends_die_are_answered_or_reported(small_pair: Pair) -> None:
    clients = [small_pair.proxied.connect() for _ in range(20)]
    for client in clients:
        client.send(extended("SELECT pg_sleep(0.02), 'done'"), SYNC)
    terminate_all(small_pair)
    for client in clients:
        heard: list[Message] = []
        while not heard or heard[-1].kind not in b"ZE":
            try:
                heard.append(client.read_message())
            except Closed:
                break
        assert heard[-1].kind == b"Z" or heard[-1].fields["C"] in LOST
        client.close()
    with small_pair.proxied.connect() as client:
        assert client.value("SELECT 1") == "1"
