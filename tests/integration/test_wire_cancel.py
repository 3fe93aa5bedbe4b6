"""Cancel requests reach the query they mean, and no other."""

from __future__ import annotations

from tests.support import messages
from tests.support.raw import RawConnection, error_of, kinds, send_cancel
from tests.support.servers import Pair, Server
from tests.support.waiting import wait_until

LONG = "SELECT pg_sleep(60)"
QUERY_CANCELED = "57014"


def wait_running(watcher: RawConnection, marker: str) -> None:
    """Until a backend runs a query that contains the marker."""
    sql = (
        "SELECT count(*) FROM pg_stat_activity"
        f" WHERE state = 'active' AND query LIKE '%{marker}%' AND pid <> pg_backend_pid()"
    )
    wait_until(lambda: watcher.value(sql) != "0")


def cancel(server: Server, connection: RawConnection) -> None:
    send_cancel(server.host, server.port, connection.pid, connection.secret)


def test_a_running_query_is_canceled_and_the_session_goes_on(pair: Pair) -> None:
    with pair.direct.connect() as watcher:
        for server in pair:
            with server.connect() as client:
                client.send(messages.query(f"{LONG} /* cancel me */"))
                wait_running(watcher, "cancel me")
                cancel(server, client)
                heard = client.read_until()
                assert error_of(heard)["C"] == QUERY_CANCELED
                assert heard[-1].body == b"I"
                assert client.value("SELECT 1") == "1"


def test_a_query_in_a_transaction_is_canceled_and_fails_the_transaction(pair: Pair) -> None:
    with pair.direct.connect() as watcher, pair.proxied.connect() as client:
        client.rows("BEGIN")
        client.send(messages.extended(f"{LONG} /* cancel in transaction */"), messages.SYNC)
        wait_running(watcher, "cancel in transaction")
        cancel(pair.proxied, client)
        heard = client.read_until()
        assert error_of(heard)["C"] == QUERY_CANCELED
        assert heard[-1].body == b"E"
        assert client.query("ROLLBACK")[-1].body == b"I"


def test_a_cancel_with_a_wrong_secret_changes_nothing(pair: Pair) -> None:
    with pair.direct.connect() as watcher, pair.proxied.connect() as client:
        client.send(messages.query("SELECT pg_sleep(0.5) /* wrong secret */"))
        wait_running(watcher, "wrong secret")
        wrong = bytes(byte ^ 1 for byte in client.secret)
        send_cancel(pair.proxied.host, pair.proxied.port, client.pid, wrong)
        send_cancel(pair.proxied.host, pair.proxied.port, client.pid ^ 1, client.secret)
        assert kinds(client.read_until()) == "TDCZ"


def test_a_cancel_of_an_idle_client_does_not_hit_another_clients_query(small_pair: Pair) -> None:
    with small_pair.direct.connect() as watcher, small_pair.proxied.connect() as idle:
        idle.value("SELECT 1")
        busy = [small_pair.proxied.connect() for _ in range(2)]
        for client in busy:  # both backends, so one of them served the idle client last
            client.send(messages.query("SELECT pg_sleep(0.5) /* not yours */"))
        wait_running(watcher, "not yours")
        for _ in range(5):
            cancel(small_pair.proxied, idle)
        for client in busy:
            assert kinds(client.read_until()) == "TDCZ"
            client.close()


def test_a_waiting_client_can_be_canceled_or_served(small_pair: Pair) -> None:
    """Its query has not reached a backend: a cancel ends the wait or does nothing, and the session stays in step."""
    holders = [small_pair.proxied.connect() for _ in range(2)]
    for holder in holders:
        holder.rows("BEGIN")
        holder.rows("SELECT 1")
    with small_pair.proxied.connect() as waiting:
        waiting.send(messages.query("SELECT 'served'"))
        cancel(small_pair.proxied, waiting)
        for holder in holders:
            holder.rows("COMMIT")
            holder.close()
        heard = waiting.read_until()
        assert kinds(heard) == "TDCZ" or error_of(heard)["C"] == QUERY_CANCELED
        assert waiting.value("SELECT 2") == "2"


def test_a_client_that_leaves_during_its_query_frees_the_backend(small_pair: Pair) -> None:
    with small_pair.direct.connect() as watcher:
        for _ in range(4):
            client = small_pair.proxied.connect()
            client.send(messages.query(f"{LONG} /* left alone */"))
            wait_running(watcher, "left alone")
            client.close()
        with small_pair.proxied.connect() as client:
            assert client.value("SELECT 1") == "1"


def test_many_cancels_at_random_times_keep_every_session_in_step(pair: Pair) -> None:
    with pair.proxied.connect() as client:
        for index in range(100):
            client.send(messages.query(f"SELECT {index}, pg_sleep(0.001)"))
            if index % 3:
                cancel(pair.proxied, client)
            heard = client.read_until()
            if kinds(heard) == "TDCZ":
                assert heard[1].values[0] == b"%d" % index
            else:
                assert error_of(heard)["C"] == QUERY_CANCELED
