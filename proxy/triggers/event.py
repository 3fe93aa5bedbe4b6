"""What a trigger function is called with: the change, and a connection to the shard that it happened on.

    def index_document(event: Event) -> None:
        event.execute("INSERT INTO symbol (document_id, name) VALUES ($1, $2)", event.key, "main")

    async def notify(event: AsyncEvent) -> None:
        rows = await event.fetch("SELECT ...", event.key)

Statements of the event run in the transaction that removes the event from the outbox, between a savepoint and the end
of the call: either the call returns and its effects commit with the removal, once, or it raises and they are undone.
So a function may not begin, end or set back a transaction, and a failed statement fails the call even when the function
catches the error: PostgreSQL has refused the rest of the transaction by then.
"""

from __future__ import annotations

import asyncio
import datetime
import re
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import asyncpg

from foreshard.proxy.errors import ForeshardError

T = TypeVar("T")
SKIPPED = re.compile(r"(?:[\s;]|--[^\n]*(?:\n|\Z))*")  # what may stand before a statement, besides block comments
COMMENT_EDGES = re.compile(r"/\*|\*/")
WORDS = re.compile(r"(\w+)(?:\s+(\w+))?")
TRANSACTION_WORDS = frozenset(
    ("begin", "start", "commit", "end", "rollback", "abort", "savepoint", "release", "prepare", "discard", "reset")
)


class FunctionMisuse(ForeshardError):
    """A trigger function asked for what its event cannot give."""


class Effects:
    """The statements of one call, on the worker's connection. Made by the executor, which closes it after the call.

    `preamble` sets the savepoint and the event's settings; it is sent with the first statement, so a function that asks
    for nothing costs nothing.
    """

    def __init__(self, connection: asyncpg.Connection[Any], preamble: str) -> None:
        self.is_open = False  # whether the savepoint was set
        self.error: BaseException | None = None  # of a statement; the transaction is refused from then on
        self.has_settings = False  # SET LOCAL was used, which lasts until the transaction ends
        self._connection = connection
        self._preamble = preamble
        self._is_closed = False

    def close(self) -> None:
        """The call is over; a function that kept its event hears so."""
        self._is_closed = True

    async def fetch(self, sql: str, args: Sequence[object]) -> list[asyncpg.Record]:
        """Run one statement and give its rows."""
        await self._prepare(sql)
        try:
            return await self._connection.fetch(sql, *args)
        except BaseException as error:
            self.error = error
            raise

    async def executemany(self, sql: str, rows: Iterable[Sequence[object]]) -> None:
        """Run one statement for each row of arguments."""
        await self._prepare(sql)
        try:
            await self._connection.executemany(sql, rows)
        except BaseException as error:
            self.error = error
            raise

    async def _prepare(self, sql: str) -> None:
        if self._is_closed:
            raise FunctionMisuse("the event was used after its function had returned")
        self._refuse_transaction_words(sql)
        if not self.is_open:
            self.is_open = True
            await self._connection.execute(self._preamble)

    def _refuse_transaction_words(self, sql: str) -> None:
        found = WORDS.match(sql, find_statement(sql))
        first, second = (word.lower() if word else "" for word in found.groups()) if found else ("", "")
        if first == "set":
            self.has_settings = True
        if first in TRANSACTION_WORDS or (first == "set" and second != "local"):
            raise FunctionMisuse(
                f"a trigger function may not run {first.upper()}: its effects belong to the worker's transaction"
            )


def find_statement(sql: str) -> int:
    """Where the first word of the statement stands, behind comments (which nest) and empty statements."""
    place = 0
    while True:
        skipped = SKIPPED.match(sql, place)
        place = skipped.end() if skipped else place
        if not sql.startswith("/*", place):
            return place
        depth = 0
        for edge in COMMENT_EDGES.finditer(sql, place):
            depth += 1 if edge.group() == "/*" else -1
            place = edge.end()
            if depth == 0:
                break
        else:
            return len(sql)


class _Change:
    """The fields of an event, the same for both kinds of function."""

    __slots__ = (
        "_effects",
        "attempt",
        "committed_at",
        "depth",
        "function",
        "id",
        "key",
        "new",
        "old",
        "operation",
        "shard",
        "table",
        "volume",
    )

    id: str  # the same in every attempt: a key for effects elsewhere that must happen once
    function: str  # the name it is registered under
    table: str  # schema.name
    operation: str  # insert, update or delete
    key: Any  # of the row
    old: Mapping[str, Any] | None  # None for insert
    new: Mapping[str, Any] | None  # None for delete
    committed_at: datetime.datetime  # when the statement ran, by the shard's clock; it has committed since
    volume: int  # rows of the statement
    shard: str  # name of the shard
    attempt: int  # 1: the first
    depth: int  # 0: a client's write; n + 1: a write of a function called at depth n
    _effects: Effects

    def __repr__(self) -> str:
        return f"<event {self.id}: {self.operation} of {self.table} {self.key!r}, attempt {self.attempt}>"


class Event(_Change):
    """What `def f(event)` is called with."""

    __slots__ = ("_loop",)

    _loop: asyncio.AbstractEventLoop

    def execute(self, sql: str, *args: object) -> None:
        """Run one statement in the event's transaction; parameters are $1, $2, ..."""
        self._run(self._effects.fetch(sql, args))

    def executemany(self, sql: str, rows: Iterable[Sequence[object]]) -> None:
        """Run one statement for each row of arguments; much faster than a call for each."""
        self._run(self._effects.executemany(sql, rows))

    def fetch(self, sql: str, *args: object) -> list[asyncpg.Record]:
        """The rows of one statement."""
        return self._run(self._effects.fetch(sql, args))

    def fetchrow(self, sql: str, *args: object) -> asyncpg.Record | None:
        """The first row of one statement, None when it has none."""
        rows = self._run(self._effects.fetch(sql, args))
        return rows[0] if rows else None

    def fetchval(self, sql: str, *args: object) -> Any:
        """The first value of the first row, None when there is none."""
        rows = self._run(self._effects.fetch(sql, args))
        return rows[0][0] if rows else None

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(work)


class AsyncEvent(_Change):
    """What `async def f(event)` is called with. Statements of one event run one after the other."""

    __slots__ = ("_turn",)

    _turn: asyncio.Lock

    async def execute(self, sql: str, *args: object) -> None:
        """Run one statement in the event's transaction; parameters are $1, $2, ..."""
        async with self._turn:
            await self._effects.fetch(sql, args)

    async def executemany(self, sql: str, rows: Iterable[Sequence[object]]) -> None:
        """Run one statement for each row of arguments; much faster than a call for each."""
        async with self._turn:
            await self._effects.executemany(sql, rows)

    async def fetch(self, sql: str, *args: object) -> list[asyncpg.Record]:
        """The rows of one statement."""
        async with self._turn:
            return await self._effects.fetch(sql, args)

    async def fetchrow(self, sql: str, *args: object) -> asyncpg.Record | None:
        """The first row of one statement, None when it has none."""
        rows = await self.fetch(sql, *args)
        return rows[0] if rows else None

    async def fetchval(self, sql: str, *args: object) -> Any:
        """The first value of the first row, None when there is none."""
        rows = await self.fetch(sql, *args)
        return rows[0][0] if rows else None
