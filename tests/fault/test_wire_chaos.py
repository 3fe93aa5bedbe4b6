"""Clients that do everything at once, leave anywhere, and lose backends: what each is told stays true.

Every answer carries a mark of the client that asked, so an answer that reaches another client is noticed; every row
that a client was told is stored is there once, and no row that it was told is not.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.integration.test_wire_backends import LOST
from tests.support.messages import (
    COPY_DONE,
    SYNC,
    bind,
    close_statement,
    copy_data,
    copy_fail,
    execute,
    extended,
    parse,
    query,
)
from tests.support.postgres import TestInstances
from tests.support.proxy import Proxy
from tests.support.raw import Closed, Message, RawConnection, send_cancel
from tests.support.servers import Pair, Server
from tests.support.verified import assert_verified

CLIENTS = 12
STEPS = 80
CANCELED = "57014"


class Lost(Exception):
    """The client's connection, or its backend, is gone."""


class Client:
    """One client with its own random numbers; it reconnects when it is cut off, or cuts itself off."""

    def __init__(self, server: Server, name: int, seed: int) -> None:
        self.server = server
        self.name = name
        self.draw = random.Random(seed * 1000 + name)
        self.count = 0
        self.stored: set[str] = set()
        self.not_stored: set[str] = set()
        self.connection: RawConnection | None = None
        self.prepared: dict[str, str] = {}
        self.losses = 0

    def run(self) -> None:
        actions: list[Callable[[RawConnection], None]] = [
            self.ask_simply, self.ask_simply, self.ask_by_extended, self.ask_prepared, self.ask_prepared, self.pipeline,
            self.fail, self.store, self.store, self.copy, self.cancel, self.read_much, self.leave, self.keep_state,
        ]  # fmt: skip
        for _ in range(STEPS):
            try:
                if self.connection is None:
                    self.connection = self.server.connect()
                    self.prepared = {}
                self.draw.choice(actions)(self.connection)
            except (Lost, Closed, BrokenPipeError, ConnectionResetError):
                self.losses += 1
                self.drop()
        self.drop()

    def drop(self) -> None:
        if self.connection is not None:
            (self.connection.abort if self.draw.random() < 0.5 else self.connection.close)()
            self.connection = None

    def mark(self) -> str:
        self.count += 1
        return f"client {self.name} mark {self.count}"

    def hear(self, connection: RawConnection, *parts: bytes, allowed: frozenset[str] = frozenset()) -> list[Message]:
        """The answer to one segment; Lost when it reports a lost backend, a failed test for any other error."""
        connection.send(*parts)
        heard: list[Message] = []
        while not heard or heard[-1].kind != b"Z":
            heard.append(connection.read_message())
            if heard[-1].kind == b"E":
                code = heard[-1].fields["C"]
                if code in LOST:
                    raise Lost
                assert code in allowed, heard[-1].fields
        return heard

    def values(self, heard: list[Message]) -> list[str]:
        return [(message.values[0] or b"").decode() for message in heard if message.kind == b"D"]

    def ask_simply(self, connection: RawConnection) -> None:
        mark = self.mark()
        assert self.values(self.hear(connection, query(f"SELECT '{mark}'"))) == [mark]

    def ask_by_extended(self, connection: RawConnection) -> None:
        mark = self.mark()
        assert self.values(self.hear(connection, extended("SELECT $1::text", [mark.encode()]), SYNC)) == [mark]

    def ask_prepared(self, connection: RawConnection) -> None:
        name = f"s{self.draw.randrange(4)}"
        if name in self.prepared and self.draw.random() < 0.2:
            self.hear(connection, close_statement(name), SYNC)
            del self.prepared[name]
        if name not in self.prepared:
            mark = self.mark()
            self.hear(connection, parse(f"SELECT '{mark}' || $1::text", name), SYNC)
            self.prepared[name] = mark
        heard = self.hear(connection, bind([b" more"], name=name), execute(), SYNC)
        assert self.values(heard) == [f"{self.prepared[name]} more"]

    def pipeline(self, connection: RawConnection) -> None:
        marks = [self.mark() for _ in range(self.draw.randint(2, 8))]
        connection.send(*(extended("SELECT $1::text", [mark.encode()]) + SYNC for mark in marks))
        for mark in marks:
            assert self.values(self.hear(connection)) == [mark]

    def fail(self, connection: RawConnection) -> None:
        bad = "SELECT 1 / (length($1::text) - length($1))"
        parts = (extended(bad, [b"x"]), extended("SELECT 'skipped'"), SYNC)
        assert self.values(self.hear(connection, *parts, allowed=frozenset({"22012"}))) == []

    def store(self, connection: RawConnection) -> None:
        """A row in a transaction that is committed, rolled back, or left."""
        mark = self.mark()
        self.hear(connection, query("BEGIN"))
        self.hear(connection, query(f"INSERT INTO kept VALUES ('{mark}')"))
        end = self.draw.choice(["COMMIT", "COMMIT", "ROLLBACK", "leave"])
        if end == "leave":
            self.not_stored.add(mark)
            raise Lost
        self.hear(connection, query(end))
        (self.stored if end == "COMMIT" else self.not_stored).add(mark)

    def copy(self, connection: RawConnection) -> None:
        mark = self.mark()
        connection.send(query("COPY kept FROM STDIN"))
        first = connection.read_message()
        if first.kind == b"E":
            raise Lost
        connection.send(copy_data(f"{mark}\n".encode()))
        end = self.draw.choice(["done", "done", "fail", "leave"])
        if end == "leave":
            self.not_stored.add(mark)
            raise Lost
        heard = self.hear(connection, COPY_DONE if end == "done" else copy_fail("no"), allowed=frozenset({CANCELED}))
        (self.stored if heard[0].kind == b"C" else self.not_stored).add(mark)

    def cancel(self, connection: RawConnection) -> None:
        """Its own query, which answers or is canceled; the next answer is still its own."""
        mark = self.mark()
        connection.send(query(f"SELECT '{mark}', pg_sleep({self.draw.choice([0, 0.002, 0.02])})"))
        send_cancel(self.server.host, self.server.port, connection.pid, connection.secret)
        assert self.values(self.hear(connection, allowed=frozenset({CANCELED}))) in ([], [mark])
        self.ask_simply(connection)

    def read_much(self, connection: RawConnection) -> None:
        mark = self.mark()
        connection.send(query(f"SELECT '{mark}' || repeat('x', 2000) FROM generate_series(1, 2000)"))
        if self.draw.random() < 0.5:
            connection.read_message()
            raise Lost
        found = self.values(self.hear(connection))
        assert len(found) == 2000
        assert all(value.startswith(mark) for value in found)

    def leave(self, connection: RawConnection) -> None:
        connection.send(query(f"SELECT '{self.mark()}', pg_sleep(0.005)")[: self.draw.choice([3, 20, 1000])])
        raise Lost

    def keep_state(self, connection: RawConnection) -> None:
        """A setting, which pins; seen by nobody else, gone with the client."""
        # After DISCARD ALL, PostgreSQL still knows the name of a custom setting, with an empty value.
        before = self.hear(connection, query("SHOW my.owner"), allowed=frozenset({"42704"}))
        assert self.values(before) in ([], [""])
        self.hear(connection, query(f"SET my.owner = 'client {self.name}'"))
        for _ in range(3):
            assert self.values(self.hear(connection, query("SHOW my.owner"))) == [f"client {self.name}"]
        raise Lost


@pytest.fixture(scope="module")
def pair(test_instances: TestInstances, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    shards = test_instances.create(1)
    directory: Path = tmp_path_factory.mktemp("chaos")
    with Proxy(shards.dsns, directory, pool={"size": 5}, workers={"per_shard": 0}) as proxy:
        yield Pair(Server.of_dsn(shards.dsns[0]), proxy.server)
        assert_verified(proxy.configuration)
    test_instances.drop(shards)


@pytest.mark.parametrize("kills", [False, True], ids=["calm", "backends killed"])
@pytest.mark.parametrize("seed", range(3))
def test_what_every_client_was_told_is_true(pair: Pair, seed: int, kills: bool) -> None:
    pair.direct.run("DROP TABLE IF EXISTS kept", "CREATE TABLE kept (mark text)")
    clients = [Client(pair.proxied, number, seed) for number in range(CLIENTS)]
    done = threading.Event()
    killer = threading.Thread(target=kill_backends, args=(pair.direct, seed, done))
    if kills:
        killer.start()
    try:
        with ThreadPoolExecutor(CLIENTS) as executor:
            for _ in executor.map(Client.run, clients):
                pass
    finally:
        done.set()
        if kills:
            killer.join()
    with pair.proxied.connect() as last:
        last.rows("BEGIN")
        last.rows("LOCK TABLE kept")  # every transaction that was left has ended
        kept = [(row[0] or b"").decode() for row in last.rows("SELECT mark FROM kept")]
    told, told_not = set().union(*(c.stored for c in clients)), set().union(*(c.not_stored for c in clients))
    assert len(kept) == len(set(kept))
    assert told <= set(kept)
    assert not told_not & set(kept)
    assert sum(client.losses for client in clients) > 0


def kill_backends(direct: Server, seed: int, done: threading.Event) -> None:
    """End a random backend of the database now and then, and wait for its end, so that it meets nobody later."""
    draw = random.Random(seed)
    with direct.connect() as connection:
        while not done.wait(0.05):
            connection.rows(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = current_database()"
                f" AND pid <> pg_backend_pid() ORDER BY md5(pid::text || '{draw.random()}') LIMIT 1"
            )
