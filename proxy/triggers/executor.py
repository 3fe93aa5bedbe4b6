"""The executor: the process that runs trigger functions, over one connection to one shard.

    connect ──> take lanes ──> read events ──> call, call, ... ──> remove events + measurements ──> commit ─┐
       ^            │ none: wait for a wake datagram, a retry's time or the poll                            │
       └── backoff ─┴───────────────────────────────────────────────────────────────────────────────────────┘

1. A batch is one transaction: the effects of its calls, the removal of their events, their measurements. Killed at any
   instruction, either all of it happened or nothing did.
2. A batch ends after BATCH_S even if events are left, so that effects do not hold row locks for long.
3. The connection commits without waiting for the disk: what a crash of PostgreSQL takes back is the whole batch,
   events included, and it runs again.
4. A batch that failed as a whole (a deferred constraint, a conflict) is repeated event by event, so that the guilty
   event fails alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import select
import signal
import socket
import time
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

import asyncpg
import uvloop

from foreshard.proxy.config import Config, ShardConfig
from foreshard.proxy.triggers.call import BatchContext, Caller, Conflict, ConnectionLost, TransactionEnded
from foreshard.proxy.triggers.capture import LANES
from foreshard.proxy.triggers.functions import Functions
from foreshard.proxy.triggers.outbox import BEGIN, Entry, Failure, Handled, Outbox
from foreshard.proxy.triggers.points import control_point
from foreshard.proxy.triggers.rows import Images, RowReader, make_row_reader
from foreshard.proxy.triggers.slot import Call, CallSlot

T = TypeVar("T")
BATCH_S = 0.1  # chosen, not measured: how long effects may hold row locks before they commit
LANES_PER_BATCH = 8  # at first; grows while lanes are thin, shrinks while calls are slow
RECONNECT_S_MIN = 0.05
RECONNECT_S_MAX = 5.0
PAUSED_READ_S = 1.0  # how soon a pause or its end is noticed
READER_S_MAX = 10.0  # how soon an altered column type is noticed; an added column at once
CONNECT_TIMEOUT_S = 10.0
# client_connection_check_interval: a backend whose executor was killed ends even in the middle of a statement.
SETTINGS = (
    ("application_name", "foreshard worker"),
    ("synchronous_commit", "off"),
    ("jit", "off"),
    ("client_connection_check_interval", "1s"),
    ("default_transaction_isolation", "read committed"),  # a lane is read by a statement that began after its lock
    ("default_transaction_read_only", "off"),
    # A call may take as long as its own timeout allows, in the middle of a transaction.
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
    ("transaction_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    ("idle_session_timeout", "0"),
)
NOT_HERE = (asyncpg.InvalidParameterValueError, asyncpg.UndefinedObjectError)  # of a setting: version or platform

log = logging.getLogger("foreshard.worker")


class Executor:
    """Drains the outbox of one shard until it is told to stop. One per process; made after the fork."""

    def __init__(
        self, config: Config, shard: ShardConfig, slot: CallSlot, wake: socket.socket, parent_pid: int
    ) -> None:
        self._config = config
        self._shard = shard
        self._slot = slot
        self._wake = wake
        self._parent_pid = parent_pid
        self._loop = uvloop.new_event_loop()
        self._caller = Caller(config, Functions(config.triggers), slot, self._loop)
        # By table: the reader, when it was made, and the sets of columns that it was made for.
        self._readers: dict[str, tuple[RowReader | None, float, set[frozenset[str]]]] = {}
        self._is_stopping = False
        self._stop_pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._next_lane = random.randrange(LANES)
        self._lane_count = LANES_PER_BATCH
        self._single_batches = 0  # batches of one event still to run (rule 4)
        self._paused: list[str] = []
        self._backend = (0, "")  # pid and start of the backend: together they name it for ever

    def run(self, killed: tuple[Call, str] | None) -> int:
        """Run until SIGTERM; `killed` is the call, and what ended it, that took the previous executor with it."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_stop)
        asyncio.set_event_loop(self._loop)
        wait_s = RECONNECT_S_MIN
        while not self._is_stopping:
            try:
                with self._connected() as connection:
                    if killed is not None:
                        self._record_killed(connection, *killed)
                        killed = None
                    wait_s = RECONNECT_S_MIN
                    self._drain(connection)
            except ConnectionLost as lost:
                log.warning("shard %s: connection lost: %s", self._shard.name, lost.__cause__ or "closed")
            except asyncpg.UndefinedTableError as error:
                log.error("shard %s: %s: run `foreshard apply`", self._shard.name, error)
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
                log.warning("shard %s: %s: %s", self._shard.name, type(error).__name__, error)
            if not self._is_stopping:
                self._wait(wait_s, is_waked=False)
                wait_s = min(wait_s * 2, RECONNECT_S_MAX)
        return 0

    @contextlib.contextmanager
    def _connected(self) -> Iterator[asyncpg.Connection[Any]]:
        connection = self._await(asyncpg.connect(self._shard.dsn, timeout=CONNECT_TIMEOUT_S))
        try:
            for name, value in SETTINGS:
                with contextlib.suppress(*NOT_HERE):
                    self._await(connection.fetchval("SELECT set_config($1, $2, false)", name, value))
            started = "SELECT backend_start::text FROM pg_stat_activity WHERE pid = pg_backend_pid()"
            self._backend = (connection.get_server_pid(), self._await(connection.fetchval(started)) or "")
            self._readers.clear()
            control_point("executor-connected")
            yield connection
        finally:
            if self._is_stopping and not connection.is_closed():
                with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                    self._await(connection.close(timeout=1))
            connection.terminate()

    def _drain(self, connection: asyncpg.Connection[Any]) -> None:
        """Batch after batch; waits when nothing may run."""
        outbox = Outbox(connection)
        paused_read_s = -PAUSED_READ_S
        while not self._is_stopping:
            if time.monotonic() - paused_read_s > PAUSED_READ_S:
                self._paused = self._await(outbox.paused_functions())
                paused_read_s = time.monotonic()
            wait_s = self._run_batch(connection, outbox)
            if os.getppid() != self._parent_pid:
                log.warning("shard %s: the supervisor of this executor is gone", self._shard.name)
                self._is_stopping = True
            if wait_s is not None and not self._is_stopping:
                self._wait(wait_s)

    def _run_batch(self, connection: asyncpg.Connection[Any], outbox: Outbox) -> float | None:
        """One transaction; seconds to wait before the next one, None to go on at once."""
        is_single = self._single_batches > 0
        self._single_batches = max(self._single_batches - 1, 0)
        lane_count = 1 if is_single else self._lane_count
        count = 1 if is_single else self._config.workers.batch_events_max
        lanes, entries = self._await(self._begin(connection, outbox, lane_count, count))
        if not entries:
            return self._end_empty_batch(connection, outbox, len(lanes) < lane_count)
        is_complete = len(lanes) < lane_count and len(entries) < count
        batch = BatchContext(connection, self._backend, self._shard.name)
        handled, failures = self._call_all(batch, outbox, entries)
        if not self._finish(batch, outbox, handled, failures):
            return None
        self._adapt_lanes(count, len(entries), len(handled) + len(failures), len(lanes))
        # All there was is handled: whoever commits more sends a datagram, except our own effects.
        is_drained = is_complete and len(handled) == len(entries) and not batch.has_effects
        return self._idle_s(None) if is_drained else None

    async def _begin(
        self, connection: asyncpg.Connection[Any], outbox: Outbox, lane_count: int, count: int
    ) -> tuple[list[int], list[Entry]]:
        """Begin the transaction: lanes held, and their first events."""
        await connection.execute(BEGIN)
        lanes = await outbox.take_lanes(self._next_lane, lane_count)
        control_point("lanes-taken")
        if not lanes:
            return lanes, []
        self._next_lane = lanes[-1] + 1
        entries = await outbox.read_events(lanes, count, self._paused)
        control_point("batch-read")
        return lanes, entries

    def _end_empty_batch(self, connection: asyncpg.Connection[Any], outbox: Outbox, has_seen_all: bool) -> float | None:
        """Nothing in these lanes may run: look at more lanes, or wait when these were all."""
        self._single_batches = 0
        self._await(connection.execute("ROLLBACK"))
        if not has_seen_all:
            self._lane_count = min(self._lane_count * 2, LANES + 1)
            return None
        return self._idle_s(self._await(outbox.next_retry_s()))

    def _idle_s(self, retry_s: float | None) -> float:
        """How long to wait for a datagram. What may run by now is in lanes that others hold, or comes with the poll."""
        poll_s = self._config.workers.poll_interval_s
        return poll_s if retry_s is None or retry_s <= 0 else min(retry_s, poll_s)

    def _call_all(
        self, batch: BatchContext, outbox: Outbox, entries: list[Entry]
    ) -> tuple[list[Handled], list[Failure]]:
        """Call the functions of the events in order, as far as the batch's time allows."""
        handled: list[Handled] = []
        failures: list[Failure] = []
        blocked: set[tuple[str, str, str]] = set()
        for entry in entries:
            if entry.order_key in blocked:
                continue
            images = self._images(outbox, entry)
            try:
                outcome = self._caller.call(entry, images, batch)
            except Conflict:
                self._single_batches = 1
                self._next_lane = entry.id.lane
                break
            except TransactionEnded as ended:
                self._await(outbox.record_alone(ended.failure))
                log.error("shard %s: %s", self._shard.name, _describe(ended.failure))
                raise ConnectionLost from ended
            if isinstance(outcome, Handled):
                handled.append(outcome)
            else:
                failures.append(outcome)
                blocked.add(entry.order_key)
                log.warning("shard %s: %s", self._shard.name, _describe(outcome))
            if self._is_stopping or batch.has_settings or time.monotonic() - batch.read_s > BATCH_S:
                break
        return handled, failures

    def _finish(self, batch: BatchContext, outbox: Outbox, handled: list[Handled], failures: list[Failure]) -> bool:
        """Remove, record and commit; False when the batch had to be undone."""
        connection = batch.connection
        try:
            return self._await(self._commit(batch, outbox, handled, failures))
        except asyncpg.PostgresError as error:
            if connection.is_closed():
                raise
            if connection.is_in_transaction():
                self._await(connection.execute("ROLLBACK"))
            self._undone(outbox, handled, error)
            return False

    async def _commit(
        self, batch: BatchContext, outbox: Outbox, handled: list[Handled], failures: list[Failure]
    ) -> bool:
        """End the transaction; False when it had to be rolled back: events, or the place of rows, were gone."""
        connection = batch.connection
        if batch.has_effects and not await outbox.is_still_placed():
            log.info("shard %s: a bucket has left it meanwhile: batch undone", self._shard.name)
            await connection.execute("ROLLBACK")
            return False
        if handled and not await outbox.remove(handled):
            log.error("shard %s: events vanished from lanes held here: batch undone", self._shard.name)
            await connection.execute("ROLLBACK")
            return False
        for failure in failures:
            await outbox.record(failure)
        control_point("events-removed")
        await connection.execute("COMMIT")
        control_point("batch-committed")
        return True

    def _undone(self, outbox: Outbox, handled: list[Handled], error: asyncpg.PostgresError) -> None:
        """A batch failed as a whole: repeat its events one by one, or blame the only one."""
        if len(handled) == 1:
            entry = handled[0].entry
            text = f"its effects could not be committed: {type(error).__name__}: {error}"
            failure = self._caller.make_failure(entry.id, entry.function, entry.attempt + 1, text)
            self._await(outbox.record_alone(failure))
            log.warning("shard %s: %s of event %s: %s", self._shard.name, entry.function, entry.id, text)
        else:
            self._next_lane = handled[0].entry.id.lane if handled else self._next_lane
            self._single_batches = len(handled)

    def _adapt_lanes(self, count: int, read: int, done: int, lanes: int) -> None:
        """Hold as many lanes as fill a batch, and few while calls are slow, so that other workers find free ones."""
        if done < read or read == count:
            self._lane_count = max(lanes // 2, 1)
        else:
            self._lane_count = min(self._lane_count * 2, LANES + 1)

    def _images(self, outbox: Outbox, entry: Entry) -> Images:
        """The rows of the event. How its table's rows are read is asked of the shard, and again when that looks old."""
        reader, read_s, known = self._readers.get(entry.table_name, (None, 0.0, set()))
        if reader is not None and time.monotonic() - read_s < READER_S_MAX:
            images = Images.decode(reader, entry.old, entry.new)
            if images.columns in known:
                return images
        types, primary_key = self._await(outbox.table_types(entry.table_name))
        reader = make_row_reader(primary_key, types)
        images = Images.decode(reader, entry.old, entry.new)
        # An event older than a column lacks it for ever: what was asked about once is known.
        self._readers[entry.table_name] = (reader, time.monotonic(), {*known, frozenset(types), images.columns})
        return images

    def _record_killed(self, connection: asyncpg.Connection[Any], call: Call, reason: str) -> None:
        """Count the call that ended with the previous executor as a failed attempt."""
        outbox = Outbox(connection)
        self._await(outbox.end_backend(call.backend_pid, call.backend_started))
        failure = self._caller.make_failure(call.event, call.function, call.attempt, reason)
        self._await(outbox.record_alone(failure))
        control_point("failure-recorded")
        log.warning("shard %s: %s", self._shard.name, _describe(failure))

    def _wait(self, seconds: float, *, is_waked: bool = True) -> None:
        """Wait for a datagram, the order to stop, or the time."""
        poller = select.poll()
        poller.register(self._stop_pipe[0], select.POLLIN)
        if is_waked:
            poller.register(self._wake, select.POLLIN)
        poller.poll(seconds * 1000)
        with contextlib.suppress(BlockingIOError):
            while is_waked:
                self._wake.recv(64)

    def _on_stop(self, *_: object) -> None:
        self._is_stopping = True
        with contextlib.suppress(OSError):
            os.write(self._stop_pipe[1], b"\0")

    def _await(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(work)


def _describe(failure: Failure) -> str:
    """One line for the log."""
    last = failure.error.strip().splitlines()[-1] if failure.error.strip() else "failed"
    after = "dead letter" if failure.retry_after_s is None else f"again in {failure.retry_after_s:g} s"
    return f"{failure.function}, event {failure.event}, attempt {failure.attempt}: {last} ({after})"
