"""The demo's load: documents inserted once, in the ways programs insert, beside updates of those that are there."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import msgspec

from foreshard.proxy.demo.clients import AsyncpgClient, Client, PsycopgClient
from foreshard.proxy.demo.corpus import Document

ASYNCPG_CLIENTS = 4
# (share of units, client, rows of a unit, in one transaction)
WAYS: tuple[tuple[int, str, int, bool], ...] = (
    (60, "asyncpg", 1, False),
    (8, "asyncpg", 4, True),
    (8, "asyncpg", 3, False),
    (12, "psycopg", 1, False),
    (2, "psycopg", 3, True),
    (10, "psycopg, simple protocol", 1, False),
)

OnRows = Callable[[dict[str, int]], None]
Wait = Callable[[], Awaitable[None]]


class Unit(msgspec.Struct, frozen=True):
    """Documents that one client inserts together."""

    client: str
    documents: tuple[Document, ...]
    one_transaction: bool


def split_units(documents: Sequence[Document], seed: int) -> list[Unit]:
    """Divide the documents among the ways of inserting, seeded."""
    source = random.Random(seed)
    units = []
    start = 0
    while start < len(documents):
        _, client, rows, one_transaction = source.choices(WAYS, [way[0] for way in WAYS])[0]
        units.append(Unit(client, tuple(documents[start : start + rows]), one_transaction))
        start += rows
    return units


@contextlib.asynccontextmanager
async def open_clients(dsn: str) -> AsyncIterator[list[Client]]:
    """Connected clients of every kind, closed at the end."""
    clients: list[Client] = [AsyncpgClient(dsn) for _ in range(ASYNCPG_CLIENTS)]
    clients += [PsycopgClient(dsn, simple=False), PsycopgClient(dsn, simple=True)]
    opened: list[Client] = []
    try:
        for client in clients:
            await client.open()
            opened.append(client)
        yield clients
    finally:
        for client in opened:
            await client.close()


class Updates:
    """Updates to send: `change` names the next (key, body), `on_done` hears of each that was sent."""

    def __init__(self, count: int, change: Callable[[], tuple[int, str]], on_done: Callable[[], None]) -> None:
        self.left = count
        self.change = change
        self.on_done = on_done


async def write_all(
    clients: Sequence[Client], units: Sequence[Unit], on_rows: OnRows, updates: Updates, pace: Wait
) -> None:
    """Run every unit on a client of its kind and every update on any, mixed evenly; each after `pace`.

    `on_rows` hears ids by path as they are acknowledged.
    """
    source = random.Random(len(units))
    waiting: dict[str, list[Unit]] = {client.name: [] for client in clients}
    for unit in reversed(units):
        waiting[unit.client].append(unit)

    async def work(client: Client) -> None:
        mine = waiting[client.name]
        while mine or updates.left:
            await pace()
            units_left = sum(map(len, waiting.values()))
            if mine and source.random() * (units_left + updates.left) < units_left:
                unit = mine.pop()
                on_rows(await client.insert(unit.documents, unit.one_transaction))
            elif updates.left:
                updates.left -= 1
                await client.update(*updates.change())
                updates.on_done()

    await on_each(clients, work)


async def read_all(clients: Sequence[Client], paths: dict[int, str], on_done: Callable[[], None]) -> int:
    """Look every key up by itself; how many answered with exactly their row."""
    waiting = list(paths.items())
    found = 0

    async def work(client: Client) -> None:
        nonlocal found
        while waiting:
            key, path = waiting.pop()
            is_found = await client.read(key) == [path]
            found += is_found
            on_done()

    await on_each(clients, work)
    return found


async def on_each(clients: Sequence[Client], work: Callable[[Client], Awaitable[None]]) -> None:
    """Work on all clients at once; the first failure ends the others and is raised as it is."""
    tasks = [asyncio.ensure_future(work(client)) for client in clients]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
