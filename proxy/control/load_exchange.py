"""How the proxies on one set of shards hear of each other's loads: a row of each in the control database.

1. One statement tells and hears. It runs each 100 ms, or 1000 rows, while there is something new, and as the heartbeat
   of the lease. A proxy that is alone has nobody to tell: it only beats.
2. A row whose lease has lapsed is not heard, and deleted by whoever comes. A proxy that stops takes its row with it.
3. The control database down: placement goes on with what is known. Once the lease has lapsed, this proxy is alone.
4. What is told counts from the beginning on: an exchange whose answer was lost is simply made again.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Iterator

from foreshard.proxy.config import Config
from foreshard.proxy.control.connect import control_dsn, described
from foreshard.proxy.control.introspect import Connection
from foreshard.proxy.control.retry import LOST, connect, pause
from foreshard.proxy.control.steps import Step, labelled_step
from foreshard.proxy.placement import SharedState
from foreshard.proxy.placement.others import Own, Told, let_go, own_load, take_over

EXCHANGE_INTERVAL_S = 0.1
EXCHANGE_ROWS = 1000  # placed in less time than that are told of sooner
EXCHANGE_INTERVAL_MIN_S = 0.02
LEASE_S = 6.0
BEAT_S = LEASE_S / 3
AGAIN_S = 1.0  # after a connection that was lost, or could not be made
ANSWER_TIMEOUT_S = 2.0  # a control database that takes longer is down for this time
LEAVE_TIMEOUT_S = 1.0
CHANNEL = "foreshard_load"

TABLE = """\
CREATE UNLOGGED TABLE IF NOT EXISTS foreshard.load (
  instance text PRIMARY KEY,
  shards text[] NOT NULL,
  measured double precision[] NOT NULL,
  pending double precision[] NOT NULL,
  rows double precision[] NOT NULL,
  told_at timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 50);
COMMENT ON TABLE foreshard.load IS
  'what each proxy knows of its shards'' loads, in seconds of a shard: measured cost, predicted cost pending, rows';
"""
# Who deletes waits for nobody: two that had both been away would wait for each other.
EXCHANGE = f"""
WITH told AS (
  INSERT INTO foreshard.load AS known (instance, shards, measured, pending, rows) VALUES ($1, $2, $3, $4, $5)
  ON CONFLICT (instance) DO UPDATE SET shards = excluded.shards, measured = excluded.measured,
    pending = excluded.pending, rows = excluded.rows, told_at = clock_timestamp()
  RETURNING CASE WHEN $6 THEN pg_notify('{CHANNEL}', $1)::text END
), forgotten AS (
  DELETE FROM foreshard.load WHERE instance IN (
    SELECT instance FROM foreshard.load
    WHERE instance <> $1 AND told_at < clock_timestamp() - make_interval(secs => {LEASE_S}) FOR UPDATE SKIP LOCKED)
)
SELECT shards, measured, pending, rows FROM foreshard.load
WHERE instance <> $1 AND told_at >= clock_timestamp() - make_interval(secs => {LEASE_S})
"""
LEAVE = "DELETE FROM foreshard.load WHERE instance = $1"


def load_table_steps() -> Iterator[Step]:
    """What the control database needs for it."""
    yield labelled_step("table foreshard.load", TABLE)


def instance_name(config: Config) -> str:
    """What tells one proxy of a deployment from the others, and is the same after a restart."""
    return f"{socket.gethostname()}:{config.listen_port}"


class LoadExchange:
    """Owns one connection to the control database and the others' part of shared state. Made by the controller."""

    def __init__(self, config: Config, state: SharedState, report: Callable[[str], None]) -> None:
        self.instance = instance_name(config)
        self.exchanges = 0
        self._state = state
        self._dsn = control_dsn(config)
        self._names = [shard.name for shard in config.shards]
        self._report = report
        self._trouble: str | None = None
        self._has_news = False  # from somebody else
        self._told: Told | None = None  # what the others know
        self._heard_s = -LEASE_S  # on the loop's clock
        let_go(state)  # who was there before this controller began is not known

    async def run(self, stopping: asyncio.Event) -> None:
        """Exchange until `stopping` is set, through any failure of the control database; then take the row away."""
        while not stopping.is_set():
            connection = None
            try:
                connection = await connect(self._dsn)
                await connection.add_listener(CHANNEL, self._hear)
                self._told = None
                await self._talk(connection, stopping)
                await self._leave(connection)
            except LOST as error:
                self._note_trouble(error)
            finally:
                if connection is not None:
                    connection.terminate()
            await pause(stopping, AGAIN_S)

    async def _talk(self, connection: Connection, stopping: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        while not stopping.is_set():
            own = own_load(self._state, self._names)
            interval_s = self._interval_s(own)
            is_new = own.told != self._told
            is_due = loop.time() >= self._heard_s + BEAT_S or self._told is None
            if is_due or self._has_news or (is_new and self._state.proxies > 1):
                await self._exchange(connection, own, is_new)
                self._heard_s = loop.time()
                self._note_end_of_trouble()
            await pause(stopping, interval_s)

    async def _exchange(self, connection: Connection, own: Own, is_new: bool) -> None:
        """Tell the others, in a way that they notice if it is new, and hear what they have told last."""
        self._has_news = False
        rows = await connection.fetch(EXCHANGE, self.instance, *own.told, is_new, timeout=ANSWER_TIMEOUT_S)
        take_over(self._state, own, [Told(*row) for row in rows], self._names, time.time())
        self._told = own.told
        self.exchanges += 1

    def _interval_s(self, own: Own) -> float:
        """Until as many rows will have been placed as may be, going by those that have been since the last time."""
        rows = 0.0 if self._told is None else sum(own.told.rows) - sum(self._told.rows)
        if rows <= EXCHANGE_ROWS:
            return EXCHANGE_INTERVAL_S
        return max(EXCHANGE_INTERVAL_S * EXCHANGE_ROWS / rows, EXCHANGE_INTERVAL_MIN_S)

    def _hear(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        self._has_news = self._has_news or payload != self.instance

    async def _leave(self, connection: Connection) -> None:
        """The others need not wait for the lease to lapse."""
        with contextlib.suppress(*LOST):
            async with asyncio.timeout(LEAVE_TIMEOUT_S), connection.transaction():
                await connection.execute(LEAVE, self.instance)
                await connection.execute("SELECT pg_notify($1, $2)", CHANNEL, self.instance)

    def _note_trouble(self, error: Exception) -> None:
        if self._state.proxies > 1 and asyncio.get_running_loop().time() > self._heard_s + LEASE_S:
            let_go(self._state)
        if self._trouble is None:
            self._trouble = described(error)
            self._report(f"loads of other proxies are not heard: {self._trouble}; placing by what is known")

    def _note_end_of_trouble(self) -> None:
        if self._trouble is not None:
            self._trouble = None
            self._report("loads of other proxies are heard again")
