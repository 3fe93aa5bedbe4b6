"""Lets a shard go that has no bucket any more: behind the barrier that changes of the schema have, so that nobody goes
on to read or write it without knowing.

The last shard's place is free then. Where another one goes, the last shard takes its place: routers that have known the
shards by their old places end their clients' connections, and begin anew (`Router.follow_shards`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import asyncpg
import msgspec

from foreshard._core.two_phase import gid_prefix
from foreshard.proxy.catalog import Catalog
from foreshard.proxy.config import Config
from foreshard.proxy.control.commit_over import commit_over
from foreshard.proxy.control.connect import connected, control_dsn, described
from foreshard.proxy.control.derive import build_catalog
from foreshard.proxy.control.introspect import Connection, introspect
from foreshard.proxy.control.opened import Work, opened
from foreshard.proxy.control.plan import IS_PREPARED
from foreshard.proxy.control.schema_control import read_cluster
from foreshard.proxy.control.schema_shard import shard_steps
from foreshard.proxy.control.shard_list import BUCKET_COUNT_SQL
from foreshard.proxy.control.spread import CHANNEL, end_left
from foreshard.proxy.control.spread_facts import read_plain, without
from foreshard.proxy.control.steps import find_lacking, run_steps
from foreshard.proxy.errors import ForeshardError, SqlError
from foreshard.proxy.move.growing import LOCK_DDL, POINTS, behind_barrier, make_node
from foreshard.proxy.move.rows import moving_tables
from foreshard.proxy.triggers.capture import quote_table
from foreshard.proxy.triggers.points import control_point

# Of Foreshard's own: what stands for rows, or for what has to be done for them.
LEFT_TABLES = ("foreshard.claim", "foreshard.away", "foreshard.outbox", "foreshard.dead_letter")
UNDER_WAY = """
SELECT count(*) FROM foreshard.move WHERE state IN ('planned', 'copying', 'flipping') AND $1 IN (source, target)
"""
FORGET = "DELETE FROM foreshard.shard WHERE index = $1"
TAKE_PLACE = "UPDATE foreshard.shard SET index = $2 WHERE index = $1"
# From the first arrival on `apply` leaves it alone what a shard owns.
KEEP_BUCKETS = "UPDATE foreshard.owned_buckets SET arrivals = arrivals + 1"
GONE = "UPDATE foreshard.move SET source = CASE source WHEN $1 THEN -1 ELSE source END, "\
    "target = CASE target WHEN $1 THEN -2 ELSE target END WHERE $1 IN (source, target)"  # fmt: skip
RENUMBERED = "UPDATE foreshard.move SET source = CASE source WHEN $1 THEN $2 ELSE source END, "\
    "target = CASE target WHEN $1 THEN $2 ELSE target END WHERE $1 IN (source, target)"  # fmt: skip


async def let_go(config: Config, index: int, say: Callable[[str], None]) -> Config:
    """Let the shard of this index go; the configuration without it. ForeshardError when that cannot be."""
    names = [shard.name for shard in config.shards]
    await end_left(config)
    async with contextlib.AsyncExitStack() as stack:
        works = [await stack.enter_async_context(opened(f"shard {each.name}", each.dsn)) for each in config.shards]
        for work in works:
            await work.connection.execute(LOCK_DDL)
        async with connected("control database", control_dsn(config)) as control:
            cluster = await read_cluster(control)
            under_way = await control.fetchval(UNDER_WAY, index)
        if cluster is None or under_way:
            raise ForeshardError(f"shard {names[index]}: {under_way} moves from or to it are not done: SHOW MOVES")
        leaving = _Leaving(config, works, index, cluster)
        await leaving.see_empty()
        try:
            await leaving.take_barrier(say)
            narrower = await leaving.commit()
        except asyncpg.PostgresError as error:
            raise ForeshardError(f"shard {names[index]}: {described(error)}; it is still there") from error
    if config.control is not None:  # killed before, whoever leads next sees to the map
        async with connected("control database", config.control) as control, control.transaction():
            await renumber(control, index, len(names) - 1)
    await make_node(narrower)
    with contextlib.suppress(ForeshardError):  # it is to be nobody's, whoever has it
        async with connected(f"shard {names[index]}", config.shards[index].dsn) as connection:
            await connection.execute("UPDATE foreshard.shard_info SET index = -1")
    say(f"shard {names[index]} is none of the deployment any more; its database can go")
    return narrower


async def renumber(control: Connection, gone: int, last: int) -> None:
    """What the control database says of shards by their places."""
    await control.execute(GONE, gone)
    if gone != last:
        await control.execute(RENUMBERED, last, gone)
        await control.execute("UPDATE foreshard.bucket_map SET shard = $2 WHERE shard = $1", last, gone)


class _Leaving:
    """One attempt: a transaction on every shard."""

    def __init__(self, config: Config, works: list[Work], index: int, cluster: tuple[str, int]) -> None:
        self.config = config
        self.index = index
        self.cluster = cluster
        self.last = len(works) - 1
        self.name = config.shards[index].name
        self._works = works
        self._first = works[0].connection
        self._catalog = Catalog()

    async def see_empty(self) -> None:
        """ForeshardError where the shard has anything that would be lost with it."""
        self.config = without(self.config, await read_plain(self._first, self.config))
        facts = await introspect(self._first, self.config, self.config.shards[0].name)
        self._catalog = build_catalog(self.config, facts)
        connection = self._works[self.index].connection
        buckets = await connection.fetchval(BUCKET_COUNT_SQL)
        if buckets:
            raise ForeshardError(
                f"shard {self.name} has {buckets} buckets: `foreshard shards drain {self.name}` moves them away"
            )
        names = [*(quote_table(table) for table in moving_tables(self._catalog)), *LEFT_TABLES]
        for name in names:
            if await connection.fetchval(f"SELECT EXISTS (SELECT FROM {name})"):
                raise ForeshardError(
                    f"shard {self.name} has rows in {name}, although it owns no bucket: `foreshard verify` tells which"
                )

    async def take_barrier(self, say: Callable[[str], None]) -> None:
        """No statement is under way, but some that began before, and nothing is prepared on the shard."""
        connections = [work.connection for work in self._works]
        await behind_barrier(self.config, connections, [self._first], self._see_ended, say)
        control_point("shards-locked")

    async def _see_ended(self) -> None:
        if await self._works[self.index].connection.fetchval(IS_PREPARED, gid_prefix(self.cluster[0])):
            raise SqlError("55000", f"transactions are prepared on shard {self.name} (SHOW TWO_PHASE)")

    async def commit(self) -> Config:
        """Change the list, on the first shard and on the one that takes the place."""
        shards = list(self.config.shards)
        others = {}
        await self._first.execute(FORGET, self.index)
        if self.index != self.last:
            shards[self.index] = shards[self.last]
            await self._first.execute(TAKE_PLACE, self.last, self.index)
        narrower = msgspec.structs.replace(self.config, shards=tuple(shards[:-1]))
        await self._run_steps(narrower, 0)
        if self.index != self.last:
            moved = self._works[self.last]
            await moved.connection.execute(KEEP_BUCKETS)
            await self._run_steps(narrower, self.index, self.last)
            others = {shards[self.index].name: moved.connection}
        if self.config.control is None:
            await renumber(self._first, self.index, self.last)
        first = self.config.shards[0].name
        await commit_over(self.cluster[0], (first, self._first), others, POINTS, f"NOTIFY {CHANNEL}; ")
        return narrower

    async def _run_steps(self, config: Config, index: int, place: int | None = None) -> None:
        """What the shard, which is at `place` still, needs at `index`."""
        connection = self._works[index if place is None else place].connection
        facts = await introspect(connection, config, config.shards[index].name)
        steps = shard_steps(config, self._catalog, facts, index, self.cluster)
        await run_steps(connection, await find_lacking(connection, steps))
