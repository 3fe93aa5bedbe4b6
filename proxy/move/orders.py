"""What operators order: buckets that fill a shard, or leave one, planned all at once, and how far that has come.

Everything is in the control database: the balancers of running proxies make the moves, whoever ordered them may go and
come back. `foreshard rebalance --pause` holds them up.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import asyncpg
import msgspec
import numpy as np

from foreshard.proxy.config import Config
from foreshard.proxy.control.balance_store import read_orders, read_told
from foreshard.proxy.control.connect import connected, control_dsn
from foreshard.proxy.control.introspect import Connection
from foreshard.proxy.control.move_store import plan_moves, targets
from foreshard.proxy.control.plan import read_catalog
from foreshard.proxy.control.schema_control import read_bucket_map
from foreshard.proxy.control.shard_list import BUCKET_COUNT_SQL
from foreshard.proxy.errors import ForeshardError
from foreshard.proxy.move.balancer import LEADER_LOCK
from foreshard.proxy.move.rounds import demand_of
from foreshard.proxy.move.sizes import Floats, count_rows
from foreshard.proxy.rebalance import empty, fill
from foreshard.proxy.rebalance.loads import Integers
from foreshard.proxy.triggers.points import control_point

FORGET_S = 3600.0
LOOK_INTERVAL_S = 0.5  # for people to read; chosen, not measured
IS_LED = f"""
SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND classid = 0 AND objid = {LEADER_LOCK}
  AND objsubid = 1 AND granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))
"""
PROGRESS = """
SELECT count(*) FILTER (WHERE state IN ('planned', 'copying', 'flipping')) AS left,
       count(*) FILTER (WHERE state = 'done') AS done, count(*) FILTER (WHERE state = 'failed') AS failed,
       coalesce(sum(rows) FILTER (WHERE state = 'done'), 0)::bigint AS rows,
       coalesce(sum(bytes) FILTER (WHERE state = 'done'), 0)::bigint AS bytes,
       max(problem) FILTER (WHERE state <> 'done') AS problem
FROM foreshard.move WHERE reason = $1 AND id > $2
"""
BEFORE = """
SELECT coalesce(min(id) - 1, (SELECT coalesce(max(id), 0) FROM foreshard.move)) FROM foreshard.move
WHERE reason = $1 AND state IN ('planned', 'copying', 'flipping')
"""
CANCEL = "UPDATE foreshard.move SET state = 'cancelled', ended_at = now() WHERE reason = $1 AND state = 'planned'"


class Progress(msgspec.Struct, frozen=True):
    """How far an order has come."""

    left: int
    done: int
    failed: int
    rows: int
    bytes: int
    problem: str | None
    is_paused: bool
    is_led: bool  # there is a balancer that makes moves
    seconds: float

    @property
    def total(self) -> int:
        return self.left + self.done + self.failed


async def order_fill(config: Config, index: int, buckets_max: int | None = None) -> int:
    """Plan what the shard takes; how many moves are new."""
    async with connected("control database", control_dsn(config)) as connection:
        owners, moving, demand, rows = await _look(config, connection)
        weights = [shard.share for shard in config.shards]
        moves = fill(owners, demand, rows, weights, index, moving)
        return await _plan(connection, moves[:buckets_max], filling(config.shards[index].name))


async def order_empty(config: Config, index: int) -> int:
    """Plan where all that the shard has goes; how many moves are new."""
    async with connected("control database", control_dsn(config)) as connection:
        owners, moving, demand, rows = await _look(config, connection)
        weights = [shard.share for shard in config.shards]
        moves = empty(owners, demand, rows, weights, index, moving)
        return await _plan(connection, moves, emptying(config.shards[index].name))


async def cancel(config: Config, reason: str) -> None:
    """Make none of the moves that are planned for it."""
    async with connected("control database", control_dsn(config)) as connection:
        await connection.execute(CANCEL, reason)


async def watch(config: Config, reason: str, tell: Callable[[Progress], None]) -> Progress:
    """Tell of the moves of an order until none is left."""
    async with connected("control database", control_dsn(config)) as connection:
        before = await connection.fetchval(BEFORE, reason)
        began_s = time.monotonic()
        while True:
            found = await _progress(connection, reason, before, time.monotonic() - began_s)
            tell(found)
            if not found.left:
                return found
            await asyncio.sleep(LOOK_INTERVAL_S)


async def count_buckets(config: Config, index: int) -> int:
    """How many the shard itself says that it has."""
    shard = config.shards[index]
    async with connected(f"shard {shard.name}", shard.dsn) as connection:
        return int(await connection.fetchval(BUCKET_COUNT_SQL) or 0)


def filling(name: str) -> str:
    """The reason of moves to a new shard."""
    return f"shards add {name}"


def emptying(name: str) -> str:
    """The reason of moves away from a shard that is drained."""
    return f"shards drain {name}"


async def _look(config: Config, connection: Connection) -> tuple[Integers, set[int], Floats, Floats]:
    """Owners when the moves under way are done, buckets that are moving, and demand and rows of each."""
    try:
        owners = np.array(await read_bucket_map(connection), dtype=np.int64)
        moving = await targets(connection)
        owners[list(moving)] = list(moving.values())
        demand = demand_of(config, await read_told(connection, FORGET_S))
        rows = await count_rows(config, await read_catalog(config))
    except asyncpg.PostgresError as error:
        raise ForeshardError(f"cannot look at what buckets have: {error}") from error
    return owners, set(moving), demand, rows


async def _plan(connection: Connection, moves: list[tuple[int, int, int]], reason: str) -> int:
    count = await plan_moves(connection, [(*move, None) for move in moves], reason)
    control_point("shards-planned")
    return count


async def _progress(connection: Connection, reason: str, before: int, seconds: float) -> Progress:
    row = await connection.fetchrow(PROGRESS, reason, before)
    assert row is not None
    is_paused = (await read_orders(connection)).is_paused
    return Progress(**dict(row), is_paused=is_paused, is_led=await connection.fetchval(IS_LED), seconds=seconds)
