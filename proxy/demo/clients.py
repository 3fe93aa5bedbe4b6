"""The demo's clients: ordinary drivers, used the ways programs use them.

A client that loses its connection connects again and asks which rows of the interrupted insert are there: the outcome
of a statement that was under way is unknown, as with any PostgreSQL server that goes away.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import asyncpg
import psycopg

from foreshard.proxy.demo.corpus import Document
from foreshard.proxy.errors import ForeshardError

INSERT = "INSERT INTO document (path, language, body) VALUES ($1, $2, $3) RETURNING id"
UPDATE = "UPDATE document SET body = $2, revision = revision + 1 WHERE id = $1"
READ = "SELECT path FROM document WHERE id = $1"
RECONNECT_S = 30.0
RECONNECT_POLL_S = 0.1
LOSSES_MAX = 20  # of one insert; more is no restart but a proxy that cannot serve
LOST = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.OperatorInterventionError,
    psycopg.OperationalError,
)


def insert_of(rows: int, placeholder: str = "$") -> str:
    """One INSERT of several rows; placeholders $1, $2 ... or %s."""
    marks = [f"${index + 1}" if placeholder == "$" else "%s" for index in range(rows * 3)]
    values = ", ".join(f"({', '.join(marks[row * 3 : row * 3 + 3])})" for row in range(rows))
    return f"INSERT INTO document (path, language, body) VALUES {values} RETURNING id"


def arguments_of(documents: Sequence[Document]) -> list[str]:
    """The values of `insert_of`, in order."""
    return [value for document in documents for value in (document.path, document.language, document.body)]


class Client(ABC):
    """One connection through the proxy, opened again when it is lost. Made and closed by the load."""

    name: str

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.reconnects = 0

    async def open(self) -> None:
        """Connect; keeps trying for a while, since a proxy that died is started again."""
        deadline_s = asyncio.get_running_loop().time() + RECONNECT_S
        while True:
            try:
                await self._connect()
                return
            except LOST as error:
                if asyncio.get_running_loop().time() > deadline_s:
                    raise ForeshardError(f"cannot connect to the proxy: {error}") from error
                await asyncio.sleep(RECONNECT_POLL_S)

    async def insert(self, documents: Sequence[Document], one_transaction: bool) -> dict[str, int]:
        """Insert the documents, in one statement or one by one in one transaction; their ids by path."""
        missing = list(documents)
        found: dict[str, int] = {}
        losses = 0
        while missing:
            try:
                ids = await (self._insert_in_transaction(missing) if one_transaction else self._insert_rows(missing))
                return found | dict(zip((document.path for document in missing), ids, strict=True))
            except LOST:
                losses += 1
                if losses > LOSSES_MAX:
                    raise
                self.reconnects += 1
                await self.open()
                found |= await self._find([document.path for document in missing])
                missing = [document for document in missing if document.path not in found]
        return found

    async def update(self, key: int, body: str) -> None:
        """Change one document's body; not repeated when the connection is lost, since it may have happened."""
        try:
            await self._update(key, body)
        except LOST:
            self.reconnects += 1
            await self.open()

    async def read(self, key: int) -> list[str]:
        """The paths of the rows with this key: one, if all is well."""
        try:
            return await self._read(key)
        except LOST:
            self.reconnects += 1
            await self.open()
            return await self._read(key)

    @abstractmethod
    async def close(self) -> None: ...

    @abstractmethod
    async def _connect(self) -> None: ...

    @abstractmethod
    async def _insert_rows(self, documents: Sequence[Document]) -> list[int]: ...

    @abstractmethod
    async def _insert_in_transaction(self, documents: Sequence[Document]) -> list[int]: ...

    @abstractmethod
    async def _find(self, paths: list[str]) -> dict[str, int]: ...

    @abstractmethod
    async def _update(self, key: int, body: str) -> None: ...

    @abstractmethod
    async def _read(self, key: int) -> list[str]: ...


class AsyncpgClient(Client):
    """asyncpg: extended protocol, binary parameters, prepared statements."""

    name = "asyncpg"
    _connection: asyncpg.Connection[asyncpg.Record]

    async def _connect(self) -> None:
        self._connection = await asyncpg.connect(self.dsn)
        self._insert = await self._connection.prepare(INSERT)
        self._change = await self._connection.prepare(UPDATE)
        self._lookup = await self._connection.prepare(READ)

    async def close(self) -> None:
        await self._connection.close()

    async def _insert_rows(self, documents: Sequence[Document]) -> list[int]:
        if len(documents) == 1:
            return [await self._insert.fetchval(*arguments_of(documents))]
        rows = await self._connection.fetch(insert_of(len(documents)), *arguments_of(documents))
        return [row[0] for row in rows]

    async def _insert_in_transaction(self, documents: Sequence[Document]) -> list[int]:
        async with self._connection.transaction():
            return [await self._insert.fetchval(*arguments_of([document])) for document in documents]

    async def _find(self, paths: list[str]) -> dict[str, int]:
        rows = await self._connection.fetch("SELECT path, id FROM document WHERE path = ANY($1)", paths)
        return {row[0]: row[1] for row in rows}

    async def _update(self, key: int, body: str) -> None:
        await self._change.fetch(key, body)

    async def _read(self, key: int) -> list[str]:
        return [row[0] for row in await self._lookup.fetch(key)]


class PsycopgClient(Client):
    """psycopg 3: the extended protocol with text parameters, or the simple one with literals in the SQL."""

    _connection: psycopg.AsyncConnection[Any]

    def __init__(self, dsn: str, simple: bool) -> None:
        super().__init__(dsn)
        self.name = "psycopg, simple protocol" if simple else "psycopg"
        self._cursor_class: type[psycopg.AsyncCursor[Any]] = (
            psycopg.AsyncClientCursor if simple else psycopg.AsyncCursor
        )

    async def _connect(self) -> None:
        self._connection = await psycopg.AsyncConnection.connect(
            self.dsn, autocommit=True, cursor_factory=self._cursor_class
        )

    async def close(self) -> None:
        await self._connection.close()

    async def _insert_rows(self, documents: Sequence[Document]) -> list[int]:
        cursor = await self._connection.execute(insert_of(len(documents), "%").encode(), arguments_of(documents))
        return [int(str(row[0])) for row in await cursor.fetchall()]

    async def _insert_in_transaction(self, documents: Sequence[Document]) -> list[int]:
        async with self._connection.transaction():
            return [key for document in documents for key in await self._insert_rows([document])]

    async def _find(self, paths: list[str]) -> dict[str, int]:
        cursor = await self._connection.execute("SELECT path, id FROM document WHERE path = ANY(%s)", [paths])
        return {str(row[0]): int(str(row[1])) for row in await cursor.fetchall()}

    async def _update(self, key: int, body: str) -> None:
        await self._connection.execute(
            "UPDATE document SET body = %s, revision = revision + 1 WHERE id = %s", [body, key]
        )

    async def _read(self, key: int) -> list[str]:
        cursor = await self._connection.execute("SELECT path FROM document WHERE id = %s", [key])
        return [str(row[0]) for row in await cursor.fetchall()]
