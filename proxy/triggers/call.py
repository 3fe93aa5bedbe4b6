"""Calling one trigger function for one event: decode, call, measure, judge.

Everything that a function can do wrong ends here as a Failure, except what takes the process or the connection with it:
the supervisor sees the first, and a lost connection is no fault of the event (ConnectionLost).
"""

from __future__ import annotations

import asyncio
import time
import traceback
from typing import Any

import asyncpg

from foreshard._core.features import features_of_row
from foreshard.proxy.config import Config, qualified
from foreshard.proxy.triggers.event import AsyncEvent, Effects, Event, FunctionMisuse
from foreshard.proxy.triggers.functions import Functions
from foreshard.proxy.triggers.measure import Meter, Usage
from foreshard.proxy.triggers.outbox import RESET_PLANNING, Entry, Failure, Handled
from foreshard.proxy.triggers.points import control_point
from foreshard.proxy.triggers.rows import Images
from foreshard.proxy.triggers.slot import Call, CallSlot

DEPTH_MAX = 8  # a write at depth n + 1 is caused by a function called at depth n
ERROR_CHARACTERS_MAX = 20_000
BACKOFF_S_MAX = 3600.0
UNREGISTERED_ATTEMPTS_MAX = 20  # hosts may learn of a new function at different times
PLACED_KEY_MIN = 1 << 52
LOCK_WAIT_MS = 100  # well below PostgreSQL's deadlock_timeout of one second
CONFLICTS = (asyncpg.TransactionRollbackError, asyncpg.LockNotAvailableError)


class ConnectionLost(Exception):
    """The connection ended under a call; nothing is known of the event's fate, nothing of it has happened."""


class TransactionEnded(Exception):
    """A function found a way to end the transaction of its batch, for all that is done to keep it from that."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.error)
        self.failure = failure


class Conflict(Exception):
    """The call met a lock or a conflict while its batch held effects of others; it runs again in a batch of its own."""


class BatchContext:
    """What the calls of one batch share: the connection, and whether a savepoint of an earlier event is still set."""

    def __init__(self, connection: asyncpg.Connection[Any], backend: tuple[int, str], shard: str) -> None:
        self.connection = connection
        self.backend_pid, self.backend_started = backend
        self.shard = shard
        self.read_s = time.monotonic()  # when the events were read
        self.has_planning = False  # whether RESET_PLANNING was sent
        self.has_savepoint = False
        self.has_effects = False
        self.has_settings = False


class Caller:
    """Calls functions one at a time. Owns the meter; made once per executor."""

    def __init__(self, config: Config, functions: Functions, slot: CallSlot, loop: asyncio.AbstractEventLoop) -> None:
        self._functions = functions
        self._slot = slot
        self._loop = loop
        self._meter = Meter()
        # A row may be away from its key's home: then another bucket of the shard serves for keys that it generates.
        self._has_away = any(table.placement == "cost" for table in config.tables)
        self._sharded = {qualified(table.name): table for table in config.tables if not table.reference}

    def call(self, entry: Entry, images: Images, batch: BatchContext) -> Handled | Failure:
        """Run the event's function once. Its effects stay in the open transaction when it succeeds, else are undone."""
        if entry.depth > DEPTH_MAX:
            message = f"depth {entry.depth}: trigger functions call each other without end (at most {DEPTH_MAX} deep)"
            return Failure(entry.id, entry.function, entry.attempt + 1, message, None)
        effects = Effects(batch.connection, self._preamble(entry, images, batch))
        queue_s = entry.queue_s + time.monotonic() - batch.read_s
        error: BaseException | None = None
        usage: Usage | None = None
        try:
            usage = self._run(entry, images, effects, batch)
        except BaseException as raised:  # sys.exit() in a function is its failure, not ours
            error = raised
        finally:
            self._slot.clear()
            effects.close()
        error = self._judge(entry, effects, usage, error, batch)
        batch.has_planning |= effects.is_open
        if error is not None:
            self._undo(effects, batch)
            if isinstance(effects.error or error, CONFLICTS) and batch.has_effects:
                raise Conflict from error
            return self.make_failure(entry.id, entry.function, entry.attempt + 1, _describe(error))
        assert usage is not None
        batch.has_savepoint |= effects.is_open
        batch.has_effects |= effects.is_open
        batch.has_settings |= effects.has_settings
        _, size, complexity, volume = features_of_row(images.row, entry.volume)
        return Handled(entry, size, complexity, volume, usage, queue_s)

    def make_failure(self, event: Any, function: str, attempt: int, error: str) -> Failure:
        """What comes of a failed attempt: a later one, or none."""
        trigger = self._functions.trigger(function)
        attempts_max = UNREGISTERED_ATTEMPTS_MAX if trigger is None else trigger.attempts_max
        backoff_s = 0.5 if trigger is None else trigger.backoff_s
        retry_after_s = None if attempt >= attempts_max else min(backoff_s * 2.0 ** (attempt - 1), BACKOFF_S_MAX)
        return Failure(event, function, attempt, error[-ERROR_CHARACTERS_MAX:].replace("\0", "\\0"), retry_after_s)

    def _run(self, entry: Entry, images: Images, effects: Effects, batch: BatchContext) -> Usage:
        """The call itself, between the meter's start and stop."""
        if not self._functions.is_loaded(entry.function):
            self._publish(entry, batch, self._meter.start())  # an import can hang, too
        function = self._functions.find(entry.function)
        event = self._make_event(entry, images, effects, function.is_async, batch.shard)
        self._publish(entry, batch, self._meter.start())
        control_point("call-started")
        if function.is_async:
            self._loop.run_until_complete(_run_async(function.call, event))
        else:
            function.call(event)
        control_point("call-returned")
        return self._meter.stop()

    def _publish(self, entry: Entry, batch: BatchContext, memory_bytes_before: int) -> None:
        """Tell the supervisor what runs from now on."""
        trigger = self._functions.trigger(entry.function)
        if trigger is None:
            return
        self._slot.publish(
            Call(
                event=entry.id,
                function=entry.function,
                attempt=entry.attempt + 1,
                started_s=time.monotonic(),
                timeout_s=trigger.timeout_s,
                memory_bytes_max=trigger.memory_bytes_max,
                memory_bytes_before=memory_bytes_before,
                backend_pid=batch.backend_pid,
                backend_started=batch.backend_started,
            )
        )

    def _make_event(
        self, entry: Entry, images: Images, effects: Effects, is_async: bool, shard: str
    ) -> Event | AsyncEvent:
        event: Event | AsyncEvent
        if is_async:
            event = AsyncEvent()
            event._turn = asyncio.Lock()
        else:
            event = Event()
            event._loop = self._loop
        event.id = entry.name
        event.function = entry.function
        event.table = entry.table_name
        event.operation = entry.operation
        event.key = images.reader.convert_key(entry.row_key)
        event.old = images.convert_old()
        event.new = images.convert_new()
        event.committed_at = entry.captured_at
        event.volume = entry.volume
        event.shard = shard
        event.attempt = entry.attempt + 1
        event.depth = entry.depth
        event._effects = effects
        return event

    def _preamble(self, entry: Entry, images: Images, batch: BatchContext) -> str:
        """Savepoint and settings of the event, ahead of its first statement."""
        release = "RELEASE SAVEPOINT foreshard_event; " if batch.has_savepoint else ""
        bucket = self._bucket(entry, images)
        setting = f"SET LOCAL foreshard.bucket TO {'DEFAULT' if bucket is None else bucket}"
        if bucket is not None and self._has_away:
            setting = f"SELECT set_config('foreshard.bucket', foreshard.bucket_near({bucket})::text, true)"
        # Holding locks of earlier events, a worker gives way before PostgreSQL makes a client the victim of a deadlock.
        waiting = f"; SET LOCAL lock_timeout = {LOCK_WAIT_MS}" if batch.has_effects else ""
        planning = "" if batch.has_planning else RESET_PLANNING
        return (
            f"{release}{planning}SAVEPOINT foreshard_event; SET LOCAL foreshard.depth = '{entry.depth + 1}'; "
            f"{setting}{waiting}"
        )

    def _bucket(self, entry: Entry, images: Images) -> int | None:
        """The bucket that the event's row lives in; None when its key does not tell or its table is not sharded."""
        table = self._sharded.get(entry.table_name)
        if table is None:
            return None
        columns = table.key_columns
        if table.via_columns and not (len(columns) == 1 and images.reader.names_bucket(images.row, columns[0])):
            columns = table.via_columns
        if len(columns) == 1:
            return images.reader.bucket_of(images.row, columns[0])
        # Without a declared `via` it may be a child's key, which says nothing as a whole.
        return images.reader.home_of(images.row, columns) if table.via_columns else None

    def _judge(
        self,
        entry: Entry,
        effects: Effects,
        usage: Usage | None,
        error: BaseException | None,
        batch: BatchContext,
    ) -> BaseException | None:
        """Why the call failed, None when it did not. Raises ConnectionLost or TransactionEnded."""
        if batch.connection.is_closed():
            raise ConnectionLost from error
        if not batch.connection.is_in_transaction():
            message = "the function ended the worker's transaction"
            raise TransactionEnded(self.make_failure(entry.id, entry.function, entry.attempt + 1, message))
        if error is not None:
            return error
        if effects.error is not None:
            # Its effects are gone already; the event must not be counted as handled.
            misuse = FunctionMisuse("the function went on after a failed statement, which undoes all its effects")
            misuse.__cause__ = effects.error
            return misuse
        trigger = self._functions.find(entry.function).trigger
        peak = None if usage is None else usage.memory_bytes_peak
        if trigger.memory_bytes_max is not None and peak is not None and peak > trigger.memory_bytes_max:
            return MemoryError(f"used {peak} bytes of memory, its limit is {trigger.memory_bytes_max}")
        return None

    def _undo(self, effects: Effects, batch: BatchContext) -> None:
        """Undo the statements of a failed call. The savepoint of the event before it was released by ours."""
        if not effects.is_open:
            return
        undo = "ROLLBACK TO SAVEPOINT foreshard_event; RELEASE SAVEPOINT foreshard_event"
        self._loop.run_until_complete(batch.connection.execute(undo))
        batch.has_savepoint = False


async def _run_async(function: Any, event: Any) -> None:
    """Run an asynchronous function; tasks it left behind end with it."""
    try:
        await function(event)
    finally:
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


def _describe(error: BaseException) -> str:
    """The traceback as the function's author wants it: without our frames."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    return "".join(traceback.format_exception(type(error), error, trace)).strip()
