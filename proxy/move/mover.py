"""Carries out one planned move: writes each step down before it takes it, tries again, and says what came of it.

    planned --> copying --> flipping --> done
       ^           |           |-----> (killed) --settle: the shards know--> done, or planned
       +--Busy, a shard lost---+

1. Nothing is left behind before the decision of the flip: whoever dies, the shards roll back, and it is planned again.
2. A flip that finds somebody in the way has not happened; routers that are silent are fenced, on every shard.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

import asyncpg

from foreshard.proxy.catalog import Catalog
from foreshard.proxy.config import Config
from foreshard.proxy.control.connect import described
from foreshard.proxy.control.fence import FENCE_AT_NODE
from foreshard.proxy.control.introspect import Connection
from foreshard.proxy.control.move_store import Figures, Planned
from foreshard.proxy.control.moves import MOVE_LOCK
from foreshard.proxy.control.pipe import METER, Meter
from foreshard.proxy.control.placing import FREEZE_S
from foreshard.proxy.control.query_node import query_node_dsn
from foreshard.proxy.control.retry import LOST, connect
from foreshard.proxy.errors import ForeshardError
from foreshard.proxy.move.census import OWNS
from foreshard.proxy.move.rows import SESSION
from foreshard.proxy.move.transfer import Busy, End, Transfer
from foreshard.proxy.triggers.points import control_point

SMALL_ROWS = 1000  # a bucket with more is copied before its writers are asked to wait
LEASE_S = 5.0  # a router that is not heard of for so long is taken for stopped
PATIENCE_DOUBLED_MAX = 3  # times: a move that was put off as often freezes its bucket for 0.4 s, rather than never move
FLIPS_MAX = {"small": 8, "large": 60}  # a copy is not thrown away soon
PAUSE_FIRST_S = 0.05  # after a flip that found somebody in the way; doubled each time
PAUSE_MAX_S = 0.5
SETTINGS = {"application_name": "foreshard mover", **SESSION}  # a transfer sets them, too: then they change nothing
SILENT = "SELECT foreshard.silent_routers(make_interval(secs => $1))"


class Steps(Protocol):
    """Who is told of a step before it is taken."""

    async def note_flipping(self, figures: Figures) -> None: ...
    async def note_problem(self, problem: str) -> None: ...


class Mover:
    """Moves buckets between the shards of one configuration. Owns connections, which `close` ends."""

    def __init__(self, config: Config, cluster: str, report: Callable[[str], None]) -> None:
        self.config = config
        self.cluster = cluster
        self.is_committing = False  # to be left alone for some milliseconds
        self._report = report
        self._kept: dict[int, list[Connection]] = defaultdict(list)  # by shard
        self._catalog: Catalog | None = None  # that of the sequences
        self._sequences: dict[tuple[int, int], list[str]] = {}  # by source and target

    async def move(self, catalog: Catalog, planned: Planned, steps: Steps) -> Figures:
        """Make one move. Busy, or one of LOST: it has not happened, or (after note_flipping) `settle` tells.

        ForeshardError where it cannot be made at all.
        """
        async with self._ends(planned) as (source, target):
            if catalog is not self._catalog:
                self._catalog, self._sequences = catalog, {}
            known = self._sequences.get((planned.source, planned.target))
            transfer = Transfer(catalog, self.cluster, planned.bucket, source, target, known)
            figures, meter = Figures(), Meter()
            METER.set(meter)
            try:
                await transfer.begin()
                self._sequences[planned.source, planned.target] = transfer.sequences or []
                if transfer.row_count > SMALL_ROWS:
                    figures.way = "large"
                    await transfer.copy()
                figures.rows, figures.rounds = transfer.moved.rows, transfer.moved.rounds
                await steps.note_flipping(figures)
                control_point("move-noted")
                await self._flip(transfer, source, planned, figures, steps)
                self.is_committing = True
                await transfer.commit()
            finally:
                self.is_committing = False
                with contextlib.suppress(*LOST):
                    await transfer.abandon()
            moved = transfer.moved
            figures.rows, figures.events, figures.rounds = moved.rows, moved.events, moved.rounds
            figures.pause_s, figures.bytes = moved.held_s, meter.bytes
            return figures

    async def _flip(self, transfer: Transfer, source: End, planned: Planned, figures: Figures, steps: Steps) -> None:
        """Flip, as often as somebody is in the way; with more patience, the oftener it was put off."""
        patience_s = FREEZE_S * 2 ** min(planned.tries, PATIENCE_DOUBLED_MAX)
        pause_s = PAUSE_FIRST_S
        left = FLIPS_MAX[figures.way]
        while True:
            try:
                return await transfer.flip(patience_s)
            except Busy as error:
                left -= 1
                if not left:
                    raise
                await steps.note_problem(why(error))
                await self._fence_silent(source.bell)
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.5))
            pause_s = min(2 * pause_s, PAUSE_MAX_S)
            if figures.way == "large":
                await transfer.catch_up()

    async def _fence_silent(self, bell: Connection) -> None:
        """End what routers have that do not answer any more, on every shard: what they know may not be true soon."""
        silent = await bell.fetchval(SILENT, LEASE_S)
        if not silent:
            return
        self._report(f"routers {', '.join(map(str, silent))} do not answer: their sessions are ended on every shard")
        places = [(shard.dsn, "SELECT foreshard.fence($1)") for shard in self.config.shards]
        node = query_node_dsn(self.config)
        if node is not None:
            places.append((node, FENCE_AT_NODE))
        for dsn, sql in places:
            connection = await connect(dsn, SETTINGS)
            try:
                await connection.fetch(sql, silent)
            finally:
                await connection.close()
            control_point("move-fenced")

    async def settle(self, planned: Planned) -> bool:
        """Whether a move that somebody has begun has happened. Waits until that is certain; LOST when it cannot be."""
        async with (
            self._ends(planned) as (source, target),
            source.connection.transaction(isolation="read_committed"),
        ):
            await source.connection.execute(f"SELECT pg_advisory_xact_lock_shared({MOVE_LOCK})")
            if await source.connection.fetchval(OWNS, planned.bucket):
                return False
            if await target.connection.fetchval(OWNS, planned.bucket):
                return True
        raise ForeshardError(
            f"bucket {planned.bucket} is neither of shard {source.name} nor of {target.name}: `foreshard verify` tells"
        )

    @contextlib.asynccontextmanager
    async def _ends(self, planned: Planned) -> AsyncIterator[tuple[End, End]]:
        if max(planned.source, planned.target) >= len(self.config.shards):
            raise Busy("the list of shards has changed: this balancer begins anew any moment")
        opened: list[tuple[int, Connection]] = []
        try:
            ends = []
            for index in (planned.source, planned.target):
                for _ in range(2):
                    opened.append((index, await self._connection(index)))
                ends.append(End(self.config.shards[index].name, index, opened[-2][1], opened[-1][1]))
            yield ends[0], ends[1]
        except BaseException:
            for _, connection in opened:
                connection.terminate()
            raise
        for index, connection in opened:
            self._kept[index].append(connection)

    async def _connection(self, index: int) -> Connection:
        """One that a move before has left, if there is any."""
        while self._kept[index]:
            connection = self._kept[index].pop()
            if not connection.is_closed() and not connection.is_in_transaction():
                return connection
            connection.terminate()
        return await connect(self.config.shards[index].dsn, SETTINGS)

    async def ask(self, index: int, sql: str) -> Any:
        """The value that a query has on a shard."""
        connection = await self._connection(index)
        try:
            return await connection.fetchval(sql)
        finally:
            self._kept[index].append(connection)

    def close(self) -> None:
        """Give every connection up."""
        for connections in self._kept.values():
            for connection in connections:
                connection.terminate()
        self._kept.clear()


def why(error: Exception) -> str:
    """What is written down of a failure."""
    if isinstance(error, Busy):
        return f"somebody is in the way: {error}"
    return described(error) if isinstance(error, asyncpg.PostgresError) else str(error) or type(error).__name__
