"""What one slow or greedy client costs the router: bounded memory, and nobody else's time."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tests.integration.conftest import running_pair
from tests.support.messages import SYNC, bind, copy_data, execute, extended, parse, query
from tests.support.postgres import TestInstances
from tests.support.proxy import Proxy, resident_bytes
from tests.support.raw import RawConnection
from tests.support.servers import Pair
from tests.support.waiting import wait_until

MEGABYTE = 1 << 20
ROWS, ROW_BYTES = 100_000, 1000  # 100 MB
# Chosen: far below what is sent, far above what one connection's buffers and the allocator's habits take.
GROWTH_MAX = 24 * MEGABYTE
BIG = f"SELECT repeat('x', {ROW_BYTES}) FROM generate_series(1, {ROWS}) /* big */"


@pytest.fixture(scope="module")
def served(test_instances: TestInstances, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Pair, Proxy]]:
    """A proxy of its own, so that its memory is these tests' doing."""
    yield from running_pair(test_instances, tmp_path_factory.mktemp("memory"))


def resident(proxy: Proxy) -> int:
    return sum(resident_bytes(pid) for pid in proxy.router_pids())


def slow_client(pair: Pair) -> RawConnection:
    server = pair.proxied
    client = RawConnection(server.host, server.port, receive_buffer_bytes=8192)
    assert client.start(server.user, server.database)[-1].kind == b"Z"
    return client


def wait_backend_waits(pair: Pair, event: str, marker: str) -> None:
    """Until the backend that runs the marked statement waits for its client: the way between is full, or empty."""
    sql = f"SELECT count(*) FROM pg_stat_activity WHERE wait_event = '{event}' AND query LIKE '%{marker}%'"
    with pair.direct.connect() as direct:
        wait_until(lambda: direct.value(sql) != "0", 60)


@pytest.mark.parametrize("by_extended", [False, True], ids=["simple", "extended"])
def test_a_slow_reader_of_a_large_result_takes_bounded_memory(served: tuple[Pair, Proxy], by_extended: bool) -> None:
    pair, proxy = served
    before = resident(proxy)
    with slow_client(pair) as client:
        client.send(extended(BIG) + SYNC if by_extended else query(BIG))
        wait_backend_waits(pair, "ClientWrite", "big")
        with pair.proxied.connect() as other:
            assert other.value("SELECT 1") == "1"
        assert resident(proxy) - before < GROWTH_MAX
        rows = sum(message.kind == b"D" for message in client.read_until())
        assert rows == ROWS
    assert resident(proxy) - before < GROWTH_MAX


def test_many_slow_readers_take_bounded_memory_each(served: tuple[Pair, Proxy]) -> None:
    pair, proxy = served
    before = resident(proxy)
    clients = [slow_client(pair) for _ in range(8)]
    for client in clients:
        client.send(query(BIG))
    for client in clients:
        client.read_until(b"T")
    wait_backend_waits(pair, "ClientWrite", "big")
    assert resident(proxy) - before < 8 * 4 * MEGABYTE
    for client in clients:
        client.abort()


def test_a_sender_faster_than_its_backend_takes_bounded_memory(served: tuple[Pair, Proxy]) -> None:
    """COPY data for a backend that is stopped stays with the client once the way is full."""
    pair, proxy = served
    pair.direct.run("DROP TABLE IF EXISTS taken", "CREATE TABLE taken (a text)")
    before = resident(proxy)
    row = copy_data(b"y" * 100_000 + b"\n")
    with pair.proxied.connect() as client:
        client.rows("BEGIN")
        pid = int(client.value("SELECT pg_backend_pid()"))
        client.send(query("COPY taken FROM STDIN"))
        client.read_until(b"G")
        os.kill(pid, signal.SIGSTOP)
        try:
            client.socket.settimeout(1.0)
            with pytest.raises(TimeoutError):
                client.socket.sendall(row * 1000)  # 100 MB
            assert resident(proxy) - before < GROWTH_MAX
            with pair.proxied.connect() as other:
                assert other.value("SELECT 1") == "1"
        finally:
            client.abort()
            os.kill(pid, signal.SIGCONT)
    with pair.direct.connect() as direct:
        wait_until(lambda: direct.value("SELECT count(*) FROM pg_locks WHERE relation = 'taken'::regclass") == "0")
        assert direct.value("SELECT count(*) FROM taken") == "0"


def test_large_messages_leave_no_memory_behind(served: tuple[Pair, Proxy]) -> None:
    pair, proxy = served
    before = resident(proxy)
    value = b"z" * (10 * MEGABYTE)
    with pair.proxied.connect() as client:
        for _ in range(5):
            assert client.ask(extended("SELECT length($1), $1", [value], types=[25]), SYNC)[3].values[1] == value
    with pair.proxied.connect() as client:
        client.value("SELECT 1")
    assert resident(proxy) - before < GROWTH_MAX


def test_answers_not_read_do_not_pile_up_while_more_is_asked(served: tuple[Pair, Proxy]) -> None:
    """A client that pipelines without reading is stopped by its own full socket, sooner or later."""
    pair, proxy = served
    before = resident(proxy)
    with slow_client(pair) as client:
        client.ask(parse("SELECT repeat('w', 100000)", "s"), SYNC)
        client.socket.settimeout(0.5)
        sent = 0
        ask = bind(name="s") + execute() + SYNC
        try:
            for _ in range(2000):  # 200 MB of answers
                client.socket.sendall(ask)
                sent += 1
        except TimeoutError:
            pass
        wait_until(lambda: resident(proxy) - before < GROWTH_MAX)
        for _ in range(50):
            with pair.proxied.connect() as other:
                assert other.value("SELECT 1") == "1"
        assert resident(proxy) - before < GROWTH_MAX


def test_statements_never_seen_again_do_not_pile_up(served: tuple[Pair, Proxy]) -> None:
    """Ten times more distinct statements than the cache holds, each with a text of its own."""
    pair, proxy = served
    with pair.proxied.connect() as client:

        def ask(numbers: range) -> None:
            for number in numbers:
                client.send(query(f"SELECT 1 AS column_{number}_{'c' * 40}"))
            for _ in numbers:
                client.read_until()

        for start in range(0, 20_000, 500):
            ask(range(start, start + 500))
        before = resident(proxy)
        for start in range(20_000, 40_000, 500):
            ask(range(start, start + 500))
        assert resident(proxy) - before < GROWTH_MAX
