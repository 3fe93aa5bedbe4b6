"""Clients that go on while buckets move under them, and remember what they were told."""

from __future__ import annotations

import random
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg

from foreshard._core.buckets import bucket_of
from tests.support.messages import SYNC, extended
from tests.support.postgres import Shards, TestInstances
from tests.support.proxy import Proxy
from tests.support.raw import Closed, Message, RawConnection, error_of, kinds
from tests.support.waiting import wait_until

SCHEMA = """
CREATE TABLE document (id bigserial PRIMARY KEY, owner integer NOT NULL, n integer NOT NULL DEFAULT 0);
CREATE TABLE symbol (id bigserial PRIMARY KEY, document_id bigint NOT NULL REFERENCES document ON DELETE CASCADE,
  name text);
CREATE TABLE person (name text PRIMARY KEY, owner integer NOT NULL, n integer NOT NULL DEFAULT 0);
"""
TABLES = {"document": {"key": "id"}, "symbol": {"key": "id"}, "person": {"key": "name"}}
MOVED_BY_HAND: dict[str, Any] = {"workers": {"per_shard": 0}, "rebalance": {"automatic": False}}
# Of a database that grows: rows that are there before, and a reference table.
OLD = """
CREATE TABLE country (code text PRIMARY KEY, name text NOT NULL);
INSERT INTO country SELECT 'c' || n, 'country ' || n FROM generate_series(1, 50) AS n;
INSERT INTO document (owner, n) SELECT -1, n FROM generate_series(1, 100) AS n;
"""
GROWING = {**TABLES, "country": {"reference": True}}
OPEN = "state IN ('planned', 'copying', 'flipping')"
STATES = "SELECT id, bucket, source, target, state, coalesce(problem, ''), way, pause_s FROM foreshard.move ORDER BY id"
COUNT_OPEN = f"SELECT count(*) FROM foreshard.move WHERE {OPEN}"
MOVE_DEADLINE_S = 60.0
RESTARTED = re.compile(rb"(\w+)[-\w]* (?:killed by|exited with)[^\n]*starting it again")


class Unknown(Exception):
    """The connection broke: nobody knows whether the statement has happened."""


@dataclass
class Thing:
    """A row, and what was done to it: `n` certainly, `maybe` perhaps."""

    where: str
    n: int = 0
    maybe: int = 0
    symbols: int = 0
    maybe_symbols: int = 0


@dataclass
class Mover:
    """One client; its rows are nobody else's."""

    proxy: Proxy
    number: int
    draw: random.Random
    documents: dict[str, Thing] = field(default_factory=dict)
    persons: dict[str, Thing] = field(default_factory=dict)
    errors: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    acts: int = 0
    breaks: int = 0
    cuts: int = 0  # of these, not by the end of the run
    connection: RawConnection | None = None

    def run(self, stopping: threading.Event) -> None:
        deeds = [
            self.insert_document, self.insert_person, self.update, self.update, self.update, self.insert_symbols,
            self.read, self.read, self.count,
        ]  # fmt: skip
        while not stopping.is_set():
            began_s = time.monotonic()
            try:
                self.connection = self.connection or self.enter()
                self.draw.choice(deeds)()
            except (Unknown, Closed, OSError):
                self.leave()
                stopping.wait(0.05)
            else:
                self.slowest_s = max(self.slowest_s, time.monotonic() - began_s)
            self.acts += 1
        self.cuts = self.breaks
        self.leave()

    def enter(self) -> RawConnection:
        """A connection; Unknown while there is none to be had."""
        try:
            return self.proxy.server.connect()
        except AssertionError as error:  # told that a shard is down
            raise Unknown from error

    def leave(self) -> None:
        """Its connection is of no use any more."""
        if self.connection is not None:
            self.breaks += 1
            self.connection.close()
        self.connection = None

    # -- deeds ---------------------------------------------------------------------------------------------------

    def say(self, sql: str) -> list[Message]:
        """The answer to one statement, in either protocol."""
        assert self.connection is not None
        try:
            if self.draw.random() < 0.5:
                answer = self.connection.query(sql)
            else:
                answer = self.connection.ask(extended(sql), SYNC)
        except (Closed, OSError) as error:
            raise Unknown from error
        if "E" in kinds(answer):
            self.errors[f"{error_of(answer)['C']} {error_of(answer)['M']}"] += 1
            raise Unknown
        return answer

    def ask(self, sql: str) -> list[list[str]]:
        """Rows of a query."""
        return [[(value or b"").decode() for value in each.values] for each in self.say(sql) if each.kind == b"D"]

    def insert_document(self) -> None:
        ((key,),) = self.ask(f"INSERT INTO document (owner) VALUES ({self.number}) RETURNING id")
        self.documents[key] = Thing(f"document WHERE id = {key}")

    def insert_person(self) -> None:
        name = f"p{self.number}-{len(self.persons)}"
        thing = self.persons[name] = Thing(f"person WHERE name = '{name}'", n=-1, maybe=1)
        self.say(f"INSERT INTO person (name, owner) VALUES ('{name}', {self.number})")
        thing.n, thing.maybe = 0, 0

    def pick(self) -> Thing | None:
        """One of its rows that is certainly there."""
        some = [thing for thing in (*self.documents.values(), *self.persons.values()) if thing.n >= 0]
        return self.draw.choice(some) if some else None

    def update(self) -> None:
        thing = self.pick()
        if thing is None:
            return
        table, _, condition = thing.where.partition(" ")
        thing.maybe += 1
        rows = self.ask(f"UPDATE {table} SET n = n + 1 {condition} RETURNING n")
        thing.maybe -= 1
        thing.n += 1
        if len(rows) != 1 or not thing.n <= int(rows[0][0]) <= thing.n + thing.maybe:
            self.wrong.append(f"update of {thing} returned {rows}")

    def insert_symbols(self) -> None:
        if not self.documents:
            return
        key = self.draw.choice(list(self.documents))
        thing = self.documents[key]
        thing.maybe_symbols += 2
        try:
            for sql in ("BEGIN", *[f"INSERT INTO symbol (document_id) VALUES ({key})"] * 2, "COMMIT"):
                self.say(sql)
        except Unknown:
            self.leave()
            raise
        thing.maybe_symbols -= 2
        thing.symbols += 2

    def read(self) -> None:
        thing = self.pick()
        if thing is None:
            return
        rows = self.ask(f"SELECT n FROM {thing.where}")
        if len(rows) != 1 or not thing.n <= int(rows[0][0]) <= thing.n + thing.maybe:
            self.wrong.append(f"read of {thing} gave {rows}")

    def count(self) -> None:
        """A read of all shards: no row is missed, none is there twice."""
        ((count, total),) = self.ask(f"SELECT count(*), coalesce(sum(n), 0) FROM document WHERE owner = {self.number}")
        known, least, most = self.sums()
        unknown = self.breaks  # an INSERT whose key nobody has heard
        if not known <= int(count) <= known + unknown or not least <= int(total) <= most:
            self.wrong.append(f"{count} documents of {known}, n {total} of {least} to {most}")

    def sums(self) -> tuple[int, int, int]:
        """How many documents it knows, and bounds of the sum of their n."""
        things = self.documents.values()
        least = sum(thing.n for thing in things)
        return len(things), least, least + sum(thing.maybe for thing in things)


def moving_shards(instances: TestInstances, count: int, more: str = "") -> Iterator[Shards]:
    """Databases that lose nothing when their server is killed; `more` is SQL."""
    made = instances.create(count)
    made.execute(SCHEMA + more)
    name = made.shards[0].dsn.rpartition("/")[2]
    made.execute(f"ALTER DATABASE {name} SET synchronous_commit = on")  # what a crash of a shard loses otherwise
    yield made
    instances.drop(made)


class MovingWorld:
    """Clients of some proxies over the same shards, and moves."""

    def __init__(self, shards: Shards, proxies: Sequence[Proxy], clients: int, seed: int, control: int = 0) -> None:
        """`control` is the one of the shards' servers whose database is the control database."""
        self.shards = shards
        self.control = control
        self.proxies = proxies
        self.draw = random.Random(seed)
        self.asked: set[int] = set()
        self.before = len(self.states())  # moves of other tests on these shards
        self.lost = self.doubled = 0  # rows, as `check` has found
        self.log_sizes = [proxy.log.stat().st_size for proxy in proxies]
        self.clients = [
            Mover(proxies[number % len(proxies)], seed * 100 + number, random.Random(seed * 100 + number))
            for number in range(clients)
        ]
        self.stopping = threading.Event()
        self.threads = [threading.Thread(target=client.run, args=(self.stopping,)) for client in self.clients]

    def start(self) -> None:
        for thread in self.threads:
            thread.start()
        wait_until(lambda: all(client.documents and client.persons for client in self.clients))

    def stop(self) -> None:
        """The clients leave; what they have seen must be true."""
        self.stopping.set()
        for thread in self.threads:
            thread.join()

    def owners(self) -> dict[int, int]:
        rows = self.shards.query("SELECT bucket, shard FROM foreshard.bucket_map", on=self.control)
        return {int(str(bucket)): int(str(shard)) for bucket, shard in rows}

    def bucket(self) -> int:
        """The bucket of some row of a client's, that was not asked for before."""
        while True:
            client = self.draw.choice(self.clients)
            bucket = bucket_of(int(self.draw.choice(list(client.documents))))
            if bucket not in self.asked:
                self.asked.add(bucket)
                return bucket

    def key_in(self, bucket: int) -> int:
        """A client's document in the bucket."""
        keys = [int(key) for client in self.clients for key in client.documents if bucket_of(int(key)) == bucket]
        return keys[0]

    def note_symbols(self, key: int, count: int) -> None:
        """Somebody else has given the document so many symbols."""
        (thing,) = [client.documents[str(key)] for client in self.clients if str(key) in client.documents]
        thing.symbols += count

    def has_document(self, index: int, key: int) -> bool:
        return self.shards.query(f"SELECT count(*) FROM document WHERE id = {key}", on=index) == [(1,)]

    def plan(self, bucket: int, target: int | None = None, shard_count: int = 0) -> int:
        """Plan a move; the target."""
        source = self.owners()[bucket]
        count = shard_count or len(self.shards.shards)
        goal = (source + self.draw.randrange(1, count)) % count if target is None else target
        self.shards.execute(
            f"INSERT INTO foreshard.move (bucket, source, target, reason) VALUES ({bucket}, {source}, {goal}, 'test');"
            "NOTIFY foreshard_move",
            on=self.control,
        )
        return goal

    def wait_moved(self, deadline_s: float = MOVE_DEADLINE_S) -> None:
        """Until nothing is planned or under way."""
        wait_until(lambda: self.shards.query(COUNT_OPEN, on=self.control) == [(0,)], deadline_s)

    def states(self) -> list[tuple[object, ...]]:
        return self.shards.query(STATES, on=self.control)

    def new_states(self) -> list[tuple[object, ...]]:
        """Of the moves since this world was made."""
        return self.states()[self.before :]

    def restarted(self) -> list[str]:
        """Kinds of the processes that supervisors have started again since then."""
        logs = [proxy.log.read_bytes()[size:] for proxy, size in zip(self.proxies, self.log_sizes, strict=True)]
        return sorted({name.decode() for log in logs for name in RESTARTED.findall(log)})

    def check(self, may_break: bool = False) -> None:
        """What clients were told, against the shards' rows."""
        for client in self.clients:
            assert not client.wrong, client.wrong[:5]
            if not may_break:
                assert not client.errors, client.errors
                assert client.breaks == 1  # the end of the run
        counts, values, symbols = self._read_rows()
        self.doubled = sum(count > 1 for count in counts.values())
        for client in self.clients:
            for key, thing in (*client.documents.items(), *client.persons.items()):
                if thing.n < 0:
                    continue  # an INSERT that nobody knows the outcome of
                self.lost += key not in values
        assert not self.doubled, [key for key, count in counts.items() if count > 1]
        for client in self.clients:
            for key, thing in (*client.documents.items(), *client.persons.items()):
                if thing.n < 0:
                    continue
                assert key in values, f"{thing} is lost"
                assert thing.n <= values[key] <= thing.n + thing.maybe, (thing, values[key])
                assert thing.symbols <= symbols[key] <= thing.symbols + thing.maybe_symbols, (thing, symbols[key])

    def _read_rows(self) -> tuple[Counter[str], dict[str, int], Counter[str]]:
        """By key, over all shards: how often it is there, its n, and how many symbols it has."""
        counts: Counter[str] = Counter()
        symbols: Counter[str] = Counter()
        values: dict[str, int] = {}
        for shard in self.shards.shards:
            with psycopg.connect(shard.dsn, autocommit=True) as connection:
                for key, n in connection.execute(
                    "SELECT id::text, n FROM document UNION ALL SELECT name, n FROM person"
                ):
                    counts[key] += 1
                    values[key] = n
                for (key,) in connection.execute("SELECT document_id::text FROM symbol"):
                    symbols[key] += 1
        return counts, values, symbols
