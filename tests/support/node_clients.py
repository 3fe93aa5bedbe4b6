"""Clients of the query node: transfers between accounts that keep their sum, and reads whose answers are known.

Accounts are placed by cost, holders live at the homes of their names, so joins of the two lie over all shards. What a
statement sees without a snapshot of all shards are their own moments: then only what transfers do not change is known.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from foreshard._core.buckets import bucket_of
from tests.support.messages import SYNC, extended
from tests.support.moving import Unknown
from tests.support.raw import Closed, RawConnection, error_of, kinds
from tests.support.servers import Server
from tests.support.waiting import wait_until

ACCOUNTS = 30
BALANCE = 100
TOTAL = ACCOUNTS * BALANCE
HELD = sum(range(ACCOUNTS))
SCHEMA = """
CREATE TABLE account (id bigserial PRIMARY KEY, number integer NOT NULL, balance bigint NOT NULL);
CREATE TABLE holder (name text PRIMARY KEY, number integer NOT NULL, n integer NOT NULL);
"""
TABLES = {"account": {"key": "id"}, "holder": {"key": "name"}}
JOIN = "SELECT sum(a.balance), count(*), sum(h.n) FROM account a JOIN holder h ON h.number = a.number"
WINDOW = (
    "SELECT running, place, number FROM (SELECT number, sum(balance) OVER (ORDER BY number) AS running, "
    "row_number() OVER (ORDER BY number) AS place FROM account) AS told ORDER BY number DESC LIMIT 1"
)
DISTINCT = (
    "SELECT sum(a.balance), count(DISTINCT a.number), count(DISTINCT h.name), sum(h.n) "
    "FROM account a CROSS JOIN holder h WHERE h.number % 3 = a.number % 3"
)
# The answers; first what transfers keep, if all shards are seen at one moment.
ANSWERS = {
    JOIN: [TOTAL, ACCOUNTS, HELD],
    WINDOW: [TOTAL, ACCOUNTS, ACCOUNTS - 1],
    DISTINCT: [TOTAL * ACCOUNTS // 3, ACCOUNTS, ACCOUNTS, HELD * ACCOUNTS // 3],
}
EACH = "SELECT a.number, a.balance, h.n FROM account a JOIN holder h ON h.number = a.number ORDER BY a.number"
BEGIN = "BEGIN ISOLATION LEVEL REPEATABLE READ"


def fill_accounts(server: Server) -> list[int]:
    """The rows; keys of the accounts."""
    with server.connect() as client:
        for number in range(ACCOUNTS):
            client.rows(f"INSERT INTO holder VALUES ('holder {number}', {number}, {number})")
        return [
            int(client.value(f"INSERT INTO account (number, balance) VALUES ({number}, {BALANCE}) RETURNING id"))
            for number in range(ACCOUNTS)
        ]


@dataclass
class NodeClient:
    """One client. It connects again when it has heard an error, and goes on."""

    server: Server
    draw: random.Random
    keys: list[int]
    errors: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    acts: int = 0
    cuts: int = 0
    connection: RawConnection | None = None

    def run(self, deed: Callable[[NodeClient], None], stopping: threading.Event) -> None:
        while not stopping.is_set():
            try:
                self.connection = self.connection or self.enter()
                deed(self)
            except (Unknown, Closed, OSError):
                self.cuts += 1
                self.leave()
                stopping.wait(0.05)
            else:
                self.acts += 1
        self.leave()

    def enter(self) -> RawConnection:
        try:
            return self.server.connect()
        except AssertionError as error:  # told that a shard is down
            raise Unknown from error

    def leave(self) -> None:
        if self.connection is not None:
            self.connection.close()
        self.connection = None

    def ask(self, sql: str) -> list[list[int]]:
        """The rows of a statement in either protocol."""
        assert self.connection is not None
        in_parts = self.draw.random() < 0.5
        answer = self.connection.ask(extended(sql), SYNC) if in_parts else self.connection.query(sql)
        if "E" in kinds(answer):
            self.errors[f"{error_of(answer)['C']} {error_of(answer)['M']}"] += 1
            raise Unknown
        return [[int(value or b"-1") for value in message.values] for message in answer if message.kind == b"D"]

    def see(self, sql: str, *, at_one_moment: bool) -> None:
        """Ask what has a known answer."""
        rows, known = self.ask(sql), ANSWERS[sql]
        if len(rows) != 1 or rows[0][1:] != known[1:] or (at_one_moment and rows[0] != known):
            self.wrong.append(f"{sql} gave {rows}, not {known}")


def transfer(client: NodeClient) -> None:
    """From one account to another: both, or none."""
    first, second = sorted(client.draw.sample(client.keys, 2))
    amount = client.draw.randrange(-20, 20)
    client.ask("BEGIN")
    client.ask(f"UPDATE account SET balance = balance - {amount} WHERE id = {first}")
    client.ask(f"UPDATE account SET balance = balance + {amount} WHERE id = {second}")
    client.ask("COMMIT")


def read_alone(client: NodeClient) -> None:
    """A statement by itself, which sees each shard at a moment of its own."""
    client.see(client.draw.choice(list(ANSWERS)), at_one_moment=False)


def read_at_one_moment(client: NodeClient) -> None:
    """Statements by themselves that see all shards at one moment each."""
    client.ask("SET foreshard.snapshot = on")
    for _ in range(5):
        client.see(client.draw.choice(list(ANSWERS)), at_one_moment=True)
    client.ask("RESET foreshard.snapshot")


def read_twice(client: NodeClient) -> None:
    """Statements of one transaction that all see the same moment."""
    client.ask(BEGIN)
    before = client.ask(EACH)
    client.see(client.draw.choice(list(ANSWERS)), at_one_moment=True)
    after = client.ask(EACH)
    client.ask("COMMIT")
    if before != after or sum(balance for _, balance, _ in before) != TOTAL or len(before) != ACCOUNTS:
        client.wrong.append(f"{before}, then {after}")


class NodeClients:
    """Some of each, in threads."""

    def __init__(self, server: Server, keys: list[int], seed: int, deeds: list[Callable[[NodeClient], None]]) -> None:
        self.keys = keys
        self.draw = random.Random(seed)
        self.clients = [NodeClient(server, random.Random(f"{seed} {number}"), keys) for number in range(len(deeds))]
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=client.run, args=(deed, self._stopping))
            for client, deed in zip(self.clients, deeds, strict=True)
        ]

    def buckets(self, count: int) -> list[int]:
        """Different buckets of some accounts."""
        return self.draw.sample(sorted({bucket_of(key) for key in self.keys}), count)

    @contextmanager
    def running(self) -> Iterator[None]:
        """They are at work meanwhile, and each has done something before the end."""
        for thread in self._threads:
            thread.start()
        try:
            wait_until(lambda: all(client.acts for client in self.clients))
            yield
            self.wait_for_acts()
        finally:
            self._stopping.set()
            for thread in self._threads:
                thread.join()

    def wait_for_acts(self) -> None:
        """Until each has succeeded once more."""
        before = [client.acts for client in self.clients]
        wait_until(lambda: all(client.acts > acts for client, acts in zip(self.clients, before, strict=True)))

    def check(self, *, may_break: bool) -> None:
        """Nothing wrong was answered."""
        for client in self.clients:
            assert not client.wrong, client.wrong[:3]
            assert may_break or not client.errors, client.errors
            assert may_break or not client.cuts, client.cuts
