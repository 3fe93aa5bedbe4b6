"""One shard as the controller sees it: measurements out, loads settled, up or down.

1. Measurements are deleted and committed before they are counted: each counts at most once. A controller killed
   between the two loses that batch (at most BATCH_MAX measurements of each shard), never counts one twice.
2. A shard that cannot be reached is down for placement until it can; it is tried again with growing delays, and only
   the changes between up and down are reported.
3. A feed ends between two batches, not inside one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from foreshard.proxy.config import ShardConfig
from foreshard.proxy.control.connect import described
from foreshard.proxy.control.introspect import Connection
from foreshard.proxy.control.learning import Learning, Measurement, Waiting
from foreshard.proxy.control.retry import BACKOFF_FIRST_S, BACKOFF_MAX_S, LOST, connect, pause
from foreshard.proxy.errors import ForeshardError

BATCH_MAX = 2000
POLL_INTERVAL_S = 0.1
SETTLE_INTERVAL_S = 1.0
SETTLE_SHARE = 0.02  # of the time may go into counting the outbox

TAKE = """\
DELETE FROM foreshard.measurement
WHERE ctid = ANY (ARRAY(SELECT ctid FROM foreshard.measurement LIMIT $1 FOR UPDATE SKIP LOCKED))
RETURNING function, operation, table_name, row_key, size, complexity, volume, cpu_s, memory_byte_s, io_bytes,
  network_bytes, wall_s, queue_s, finished_at
"""
COUNT_WAITING = """\
SELECT function, operation, count(*), avg(size)::double precision, avg(volume)::double precision
FROM foreshard.outbox GROUP BY function, operation
"""
IS_IDLE = "SELECT NOT EXISTS (SELECT FROM foreshard.outbox) AND NOT EXISTS (SELECT FROM foreshard.measurement)"


class ShardFeed:
    """Owns one connection to one shard. Made by the controller; runs until that stops."""

    def __init__(
        self,
        index: int,
        shard: ShardConfig,
        learning: Learning,
        report: Callable[[str], None],
        check: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`check` is asked before the shard is first called up: one that was down when Foreshard started."""
        self.index = index
        self.shard = shard
        self._learning = learning
        self._report = report
        self._check = check
        self._trouble: str | None = None  # what was reported and is not over yet
        self._backoff_s = BACKOFF_FIRST_S
        self._settled: tuple[float, float] | None = None  # what had been placed when nothing waited any more
        self._settle_at_s = 0.0

    async def run(self, stopping: asyncio.Event) -> None:
        """Take measurements until `stopping` is set, through lost connections and shards that are down."""
        while not stopping.is_set():
            connection = None
            try:
                connection = await connect(self.shard.dsn)
                if self._check is not None:
                    await self._check()
                    self._check = None
                self._learning.set_up(self.index, True)
                while not stopping.is_set():
                    await self.take(connection)
                    self._note_end_of_trouble()
                    await pause(stopping, POLL_INTERVAL_S)
            except LOST as error:
                self._note_trouble(error, is_down=connection is None or self._check is not None)
            except ForeshardError as error:  # it is not what it has to be
                self._trouble = self._trouble if self._trouble == described(error) else None
                self._note_trouble(error, is_down=True)
            finally:
                if connection is not None:
                    connection.terminate()
            await pause(stopping, self._backoff_s)
            self._backoff_s = min(self._backoff_s * 2, BACKOFF_MAX_S)

    async def take(self, connection: Connection) -> int:
        """Take and count what has been measured; settle when due. Answers the number of measurements."""
        taken = 0
        while True:
            rows = await connection.fetch(TAKE, BATCH_MAX)
            if rows:
                rows.sort(key=lambda row: row["finished_at"])
                self._learning.learn(self.index, [Measurement(*row[:-1]) for row in map(tuple, rows)])
                taken += len(rows)
            if len(rows) < BATCH_MAX:
                break
        now_s = asyncio.get_running_loop().time()
        if now_s >= self._settle_at_s:
            await self._count_waiting(connection, now_s)
        elif taken == 0:
            await self._settle_if_idle(connection)
        return taken

    async def _settle_if_idle(self, connection: Connection) -> None:
        """With nothing waiting, nothing that had been placed before is pending."""
        placed = self._placed()
        if placed != self._settled and await connection.fetchval(IS_IDLE):
            self._learning.settle(self.index, placed[0], ())
            self._settled = placed

    async def _count_waiting(self, connection: Connection, now_s: float) -> None:
        """Settle by what waits: a placed write may have fired nothing, so what is placed alone would only grow."""
        placed = self._placed()
        if placed == self._settled:
            return
        waiting = [Waiting(*row) for row in map(tuple, await connection.fetch(COUNT_WAITING))]
        self._learning.settle(self.index, placed[0], waiting)
        self._settled = placed if not waiting else None
        spent_s = asyncio.get_running_loop().time() - now_s
        self._settle_at_s = now_s + max(SETTLE_INTERVAL_S, spent_s / SETTLE_SHARE)

    def _placed(self) -> tuple[float, float]:
        """What this proxy placed, and what others say is pending: either changes what may wait."""
        load = self._learning.state.shard(self.index)
        return load.placed, load.others_pending

    def _note_trouble(self, error: Exception, is_down: bool) -> None:
        if is_down:
            self._learning.set_up(self.index, False)
        if self._trouble is None:
            self._trouble = described(error)
            effect = "no new rows are placed there; " if is_down else ""
            self._report(f"shard {self.shard.name}: {self._trouble}; {effect}trying again")

    def _note_end_of_trouble(self) -> None:
        self._backoff_s = BACKOFF_FIRST_S
        if self._trouble is not None:
            self._trouble = None
            self._report(f"shard {self.shard.name}: works again")
