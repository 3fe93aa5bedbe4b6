"""Moves planned one after the other, each with the probe aimed at a row of its bucket; COPY of the same rows beside."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

import asyncpg

from bench.moves.world import Size
from foreshard.proxy.catalog import Catalog
from foreshard.proxy.config import Config
from foreshard.proxy.control.move_store import plan_moves
from foreshard.proxy.control.pipe import pipe
from foreshard.proxy.move.movable import movables
from foreshard.proxy.move.rows import SETTINGS

OWNERS = "SELECT bucket, shard FROM foreshard.bucket_map"
STATE = """
SELECT state, way, rows, rounds, tries, pause_s, problem, extract(epoch FROM begun_at)::float8 AS begun_s,
  extract(epoch FROM ended_at)::float8 AS ended_s
FROM foreshard.move WHERE bucket = $1 ORDER BY id DESC LIMIT 1
"""
ENDED = ("done", "failed", "cancelled")
MOVE_DEADLINE_S = 60.0
POLL_S = 0.02
REST_S = 0.03  # the probe writes undisturbed before and after each move
SCRATCH = "bench_scratch"


@dataclass(frozen=True)
class Made:
    """One move, as the control database has it."""

    bucket: int
    size: Size
    source: int
    target: int
    state: str
    way: str
    rows: int
    rounds: int
    tries: int
    pause_s: float
    problem: str
    begun_s: float  # seconds since the epoch
    ended_s: float


@dataclass(frozen=True)
class Copied:
    """Rows of a bucket, through COPY to another table on another shard."""

    bucket: int
    rows: int
    took_s: float


class Driver:
    """Plans moves and waits for them. Owns a connection to the control database between `open` and `close`."""

    def __init__(self, config: Config, catalog: Catalog, aim: Callable[[int], Awaitable[None]], seed: int) -> None:
        self.moves: list[Made] = []
        self._config = config
        self._catalog = catalog
        self._aim = aim
        self._draw = random.Random(seed)
        self._owners: dict[int, int] = {}
        self._control: asyncpg.Connection

    async def open(self) -> None:
        """Learn who owns what, and make the tables for COPY."""
        self._control = await asyncpg.connect(self._config.shards[0].dsn)
        self._owners = {row["bucket"]: row["shard"] for row in await self._control.fetch(OWNERS)}
        likes = [
            f"CREATE TABLE {SCRATCH}.{name} (LIKE public.{name} INCLUDING ALL)"
            for name in (table.name for table in self._catalog.tables.values())
        ]
        await self._everywhere(f"CREATE SCHEMA {SCRATCH}; {'; '.join(likes)}")

    async def close(self) -> None:
        """Leave nothing but what has moved."""
        await self._control.close()
        await self._everywhere(f"DROP SCHEMA {SCRATCH} CASCADE")

    async def _everywhere(self, sql: str) -> None:
        for shard in self._config.shards:
            connection = await asyncpg.connect(shard.dsn)
            await connection.execute(sql)
            await connection.close()

    async def move(self, bucket: int, size: Size, key: int) -> Made:
        """Move a bucket to another shard while the probe writes to the row `key` of it."""
        source = self._owners[bucket]
        target = (source + self._draw.randrange(1, len(self._config.shards))) % len(self._config.shards)
        await self._aim(key)
        await asyncio.sleep(REST_S)
        assert await plan_moves(self._control, [(bucket, source, target, None)], "bench") == 1
        deadline_s = time.monotonic() + MOVE_DEADLINE_S
        while (row := (await self._control.fetch(STATE, bucket))[0])["state"] not in ENDED:
            assert time.monotonic() < deadline_s, f"bucket {bucket} does not move: {dict(row)}"
            await asyncio.sleep(POLL_S)
        await asyncio.sleep(REST_S)
        values = {**row, "problem": row["problem"] or "", "way": row["way"] or "", "pause_s": row["pause_s"] or 0.0}
        made = Made(bucket=bucket, size=size, source=source, target=target, **values)
        if made.state == "done":
            self._owners[bucket] = target
        self.moves.append(made)
        return made

    async def copy(self, bucket: int) -> Copied:
        """COPY the rows of a bucket to another shard, in one transaction, into tables that nobody uses."""
        source = self._owners[bucket]
        target = (source + self._draw.randrange(1, len(self._config.shards))) % len(self._config.shards)
        async with AsyncExitStack() as stack:
            ends = []
            for index in (source, target):
                ends.append(await asyncpg.connect(self._config.shards[index].dsn))
                stack.push_async_callback(ends[-1].close)
            began = time.perf_counter()
            rows = 0
            for end in ends:
                await end.execute(f"BEGIN; {SETTINGS}")
            for table in movables(self._catalog, bucket):
                if table.schema != "public":
                    continue  # claims and notes: there are none
                query = f"SELECT {', '.join(table.columns)} FROM {table.quoted} AS held WHERE ({table.condition})"
                rows += await pipe(ends[0], query, ends[1], (SCRATCH, table.table), table.columns)
            for end in ends:
                await end.execute("COMMIT")
            took_s = time.perf_counter() - began
            await ends[1].execute("; ".join(f"TRUNCATE {SCRATCH}.{name}" for name in ("entry", "account")))
        return Copied(bucket, rows, took_s)
