"""Clients that work at a steady rate in a process of their own, and remember what was acknowledged to them."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection as Pipe

import asyncpg
import uvloop

from bench.moves.world import BODY, Account

READ = "SELECT n FROM account WHERE id = $1"
UPDATE = "UPDATE account SET n = n + 1 WHERE id = $1 RETURNING n"
INSERT_ROOT = "INSERT INTO account (owner, body) VALUES ($1, $2) RETURNING id"
INSERT_ENTRY = "INSERT INTO entry (account_id, amount, body) VALUES ($1, 1, $2) RETURNING id"
COUNT = "SELECT count(*) AS count, coalesce(sum(n), 0)::bigint AS total FROM account WHERE owner = $1"
WEIGHTS = {"read": 45, "update": 25, "insert_root": 6, "insert_entry": 12, "transaction": 10, "count": 2}
ERRORS_KEPT = 20
POLL_S = 0.05
FAILURES = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError)
DEADLINE_S = 60.0  # of one statement
LATE_MAX_S = 1.0  # what has been due for longer is not done: else one phase would be another's burden


@dataclass
class Order:
    """What the process is to do."""

    dsn: str
    seed: int
    owned: list[dict[int, Account]]  # by client
    calibrate_s: float  # how long to do as much as is possible
    share: float  # of that, afterwards


@dataclass
class Done:
    """What all clients did and were told."""

    rate_most: float = 0.0  # statements per second without pacing; a transaction counts once
    rate: float = 0.0
    ended_s: list[float] = field(default_factory=list)  # seconds since the epoch, of what was paced
    took_s: list[float] = field(default_factory=list)
    since_due_s: list[float] = field(default_factory=list)
    deeds: list[str] = field(default_factory=list)
    owned: list[dict[int, Account]] = field(default_factory=list)
    entries: list[int] = field(default_factory=list)  # keys of acknowledged entries
    roots_unsure: int = 0
    error_count: int = 0
    errors: list[str] = field(default_factory=list)  # the first few


class Client:
    """One connection, which works on its own rows; made and ended by `work`."""

    def __init__(self, order: Order, number: int, done: Done) -> None:
        self._dsn = order.dsn
        self._number = number
        self._done = done
        self._draw = random.Random(order.seed * 1000 + number)
        self._accounts = order.owned[number]
        self._keys = list(self._accounts)
        self._unsure = 0
        self._connection: asyncpg.Connection | None = None
        self._deeds: dict[str, Callable[[asyncpg.Connection], Awaitable[None]]] = {
            name: getattr(self, f"_{name}") for name in WEIGHTS
        }

    async def act(self) -> str:
        """One thing, and its name; whatever fails is noted."""
        (name,) = self._draw.choices(list(WEIGHTS), list(WEIGHTS.values()))
        try:
            if self._connection is None or self._connection.is_closed():
                self._connection = await asyncpg.connect(self._dsn, command_timeout=DEADLINE_S)
            await self._deeds[name](self._connection)
        except FAILURES as error:
            self._wrong(name, f"{type(error).__name__} {getattr(error, 'sqlstate', '')} {error}")
            await self.leave()  # a transaction may be open
        return name

    async def leave(self) -> None:
        """Its connection is not needed any more."""
        if self._connection is not None:
            self._connection.terminate()
        self._connection = None

    def _wrong(self, name: str, what: str) -> None:
        self._done.error_count += 1
        if len(self._done.errors) < ERRORS_KEPT:
            self._done.errors.append(f"client {self._number}, {name}: {what}")

    def _pick(self) -> tuple[int, Account]:
        key = self._draw.choice(self._keys)
        return key, self._accounts[key]

    # -- deeds ---------------------------------------------------------------------------------------------------

    async def _read(self, connection: asyncpg.Connection) -> None:
        key, account = self._pick()
        n = await connection.fetchval(READ, key)
        if n is None or not account.n <= n <= account.n + account.unsure:
            self._wrong("read", f"account {key} has n {n}, {account} was acknowledged")

    async def _update(self, connection: asyncpg.Connection) -> None:
        key, account = self._pick()
        account.unsure += 1
        n = await connection.fetchval(UPDATE, key)
        account.unsure -= 1
        account.n += 1
        if n is None or not account.n <= n <= account.n + account.unsure:
            self._wrong("update", f"account {key} has n {n}, {account} was acknowledged")

    async def _insert_root(self, connection: asyncpg.Connection) -> None:
        self._unsure += 1
        self._done.roots_unsure += 1
        key = await connection.fetchval(INSERT_ROOT, self._number, BODY)
        self._done.roots_unsure -= 1
        self._unsure -= 1
        self._accounts[key] = Account()
        self._keys.append(key)

    async def _insert_entry(self, connection: asyncpg.Connection) -> None:
        key, account = self._pick()
        account.unsure += 1
        made = await connection.fetchval(INSERT_ENTRY, key, BODY)
        account.unsure -= 1
        account.entries += 1
        self._done.entries.append(made)

    async def _transaction(self, connection: asyncpg.Connection) -> None:
        key, account = self._pick()
        account.unsure += 1
        async with connection.transaction():
            await connection.fetchval(UPDATE, key)
            made = await connection.fetchval(INSERT_ENTRY, key, BODY)
        account.unsure -= 1
        account.n += 1
        account.entries += 1
        self._done.entries.append(made)

    async def _count(self, connection: asyncpg.Connection) -> None:
        (row,) = await connection.fetch(COUNT, self._number)
        known, least = len(self._accounts), sum(account.n for account in self._accounts.values())
        most = least + sum(account.unsure for account in self._accounts.values())
        if not known <= row["count"] <= known + self._unsure or not least <= row["total"] <= most:
            self._wrong("count", f"{row['count']} accounts of {known}, n {row['total']} of {least} to {most}")


async def work(order: Order, pipe: Pipe) -> Done:
    """Find out what can be done, say which part of it will be, and do that until the parent says so."""
    done = Done(owned=order.owned)
    clients = [Client(order, number, done) for number in range(len(order.owned))]
    until_s = time.monotonic() + order.calibrate_s
    counts = await asyncio.gather(*[_work_fast(client, until_s) for client in clients])
    done.rate_most = sum(counts) / order.calibrate_s
    done.rate = done.rate_most * order.share
    pipe.send(done.rate)
    stopping = asyncio.Event()
    interval_s = len(clients) / done.rate
    working = [
        asyncio.create_task(_work_paced(client, interval_s, number / done.rate, stopping, done))
        for number, client in enumerate(clients)
    ]
    while not pipe.poll():
        await asyncio.sleep(POLL_S)
    stopping.set()
    await asyncio.gather(*working)
    for client in clients:
        await client.leave()
    return done


async def _work_fast(client: Client, until_s: float) -> int:
    count = 0
    while time.monotonic() < until_s:
        await client.act()
        count += 1
    return count


async def _work_paced(client: Client, interval_s: float, first_s: float, stopping: asyncio.Event, done: Done) -> None:
    """One act per interval. Who was kept waiting is late for the next ones, and does what he missed, but not all."""
    due_s = time.monotonic() + first_s
    while not stopping.is_set():
        due_s = max(due_s, time.monotonic() - LATE_MAX_S)
        is_late = due_s < time.monotonic()
        if not is_late:
            await asyncio.sleep(due_s - time.monotonic())
        began_s = time.monotonic()
        done.deeds.append(await client.act())
        ended_s = time.monotonic()
        done.took_s.append(ended_s - began_s)
        done.since_due_s.append(ended_s - (due_s if is_late else began_s))  # a timer's lateness is not the proxy's
        done.ended_s.append(time.time())
        due_s += interval_s


def run_load(order: Order, pipe: Pipe) -> None:
    """The process: answers the rate, waits for a word, answers Done."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        pipe.send(runner.run(work(order, pipe)))
