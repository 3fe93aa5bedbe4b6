"""Deadlocks over real shards, between clients made by hand: found once they are there, and never before."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import msgspec
import pytest_asyncio

from foreshard._core.two_phase import make_gid, new_id
from foreshard.proxy.config import Config
from foreshard.proxy.control import apply
from foreshard.proxy.control.deadlock import DeadlockWatch
from foreshard.proxy.control.introspect import Connection
from foreshard.proxy.control.waits import Cycle, OpenTransaction
from tests.support.postgres import Shards

DEADLINE_S = 20.0
HAS_WAITED = """
SELECT EXISTS (SELECT FROM pg_locks WHERE pid = $1 AND NOT granted
  AND waitstart < clock_timestamp() - current_setting('deadlock_timeout')::interval)
"""
SCHEMA_SQL = "CREATE TABLE account (id int PRIMARY KEY, balance int); INSERT INTO account VALUES (1, 10), (2, 10)"


class Client:
    """One transaction, with a connection to each shard."""

    def __init__(self, number: int, config: Config) -> None:
        self.number = number
        self.commit_id = ""
        self.config = config
        self.connections: list[Connection] = []
        self.waiting: asyncio.Task[str] | None = None

    async def begin(self) -> Client:
        for shard in self.config.shards:
            self.connections.append(await asyncpg.connect(shard.dsn))
            await self.connections[-1].execute("BEGIN")
        return self

    async def lock(self, shard: int, row: int) -> str:
        """Change a row; waits for whoever has changed it."""
        return await self.connections[shard].execute(f"UPDATE account SET balance = balance WHERE id = {row}")

    async def wait_for(self, shard: int, row: int) -> None:
        """Begin to change a row that somebody has; returns when PostgreSQL itself has looked for a deadlock."""
        self.waiting = asyncio.create_task(self.lock(shard, row))
        pid = self.connections[shard].get_server_pid()
        observer = await asyncpg.connect(self.config.shards[shard].dsn)
        try:
            async with asyncio.timeout(DEADLINE_S):
                while not await observer.fetchval(HAS_WAITED, pid):
                    await asyncio.sleep(0.01)
        finally:
            await observer.close()

    def transaction(self) -> OpenTransaction:
        places = frozenset((index, c.get_server_pid()) for index, c in enumerate(self.connections))
        return OpenTransaction(self.number, places, self.commit_id)

    async def close(self) -> None:
        for connection in self.connections:
            connection.terminate()
        self.connections = []
        if self.waiting is not None:
            with contextlib.suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                await self.waiting


class World:
    """Clients, and the watch that hears of them; what it cancels is recorded, and cancelled where it waits."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.clients: list[Client] = []
        self.cancelled: list[tuple[int, Cycle]] = []
        self.watch = DeadlockWatch(config, lambda: [client.transaction() for client in self.clients], self.record)

    async def client(self) -> Client:
        self.clients.append(await Client(len(self.clients) + 1, self.config).begin())
        return self.clients[-1]

    def record(self, victim: OpenTransaction, cycle: Cycle) -> None:
        self.cancelled.append((victim.client, cycle))


@pytest_asyncio.fixture
async def world(three_shards: Shards, tmp_path: Path) -> AsyncIterator[World]:
    three_shards.execute(SCHEMA_SQL)
    config = Config(path=tmp_path / "f.yaml", run_directory=tmp_path / "run", shards=three_shards.shards)
    await apply(config)
    made = World(config)
    yield made
    for client in made.clients:
        await client.close()
    made.watch.close()


async def test_clients_that_lock_crosswise_are_found_and_the_youngest_named(world: World) -> None:
    first, second = await world.client(), await world.client()
    await first.lock(0, 1)
    await second.lock(1, 1)
    await first.wait_for(1, 1)
    assert await world.watch.look() == 0
    await second.wait_for(0, 1)
    assert await world.watch.look() == 1
    victim, cycle = world.cancelled[0]
    assert victim == 2
    assert cycle.shards == {0, 1}
    await second.close()
    assert await asyncio.wait_for(first.waiting, DEADLINE_S) == "UPDATE 1"  # type: ignore[arg-type]
    assert await world.watch.look() == 0


async def test_a_circle_of_three_over_three_shards_is_found(world: World) -> None:
    clients = [await world.client() for _ in range(3)]
    for index, client in enumerate(clients):
        await client.lock(index, 1)
    for index, client in enumerate(clients):
        await client.wait_for((index + 1) % 3, 1)
    assert await world.watch.look() == 1
    assert world.cancelled[0][0] == 3
    assert set(world.cancelled[0][1].nodes) == {1, 2, 3}


async def test_a_circle_through_a_prepared_part_is_found(world: World, three_shards: Shards) -> None:
    committing, other = await world.client(), await world.client()
    await committing.lock(0, 1)
    committing.commit_id = new_id()
    gid = make_gid("c", "s1", committing.commit_id, "s0")
    await committing.connections[0].execute(f"PREPARE TRANSACTION '{gid}'")
    await other.lock(1, 1)
    await other.wait_for(0, 1)
    await committing.wait_for(1, 1)  # as a deferred constraint of its COMMIT might
    try:
        assert await world.watch.look() == 1
    finally:
        three_shards.execute(f"ROLLBACK PREPARED '{gid}'", on=0)


async def test_a_shard_that_is_down_is_no_part_of_a_circle(world: World) -> None:
    first, second = await world.client(), await world.client()
    await first.lock(0, 1)
    await second.lock(1, 1)
    await first.wait_for(1, 1)
    await second.wait_for(0, 1)
    down = msgspec.structs.replace(world.config.shards[1], dsn="postgresql://app@127.0.0.1:1/app")
    config = msgspec.structs.replace(world.config, shards=(world.config.shards[0], down, world.config.shards[2]))
    watch = DeadlockWatch(config, lambda: [client.transaction() for client in world.clients], world.record)
    assert await watch.look() == 0
    watch.close()
