"""One database as a verification asks it: read-only, one question at a time, errors that name it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import asyncpg

from foreshard.proxy.control.connect import CONNECT_TIMEOUT_S, described, shown_dsn
from foreshard.proxy.control.introspect import Connection
from foreshard.proxy.errors import ForeshardError

FAILURES = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError)
# What was seen wrong is looked at again after these seconds: longer than commits of several shards take to arrive
# everywhere, and for a busy router to be scheduled. Chosen, not measured.
LOOK_AGAIN_S = (0.1, 0.4, 1.0, 2.0)
# Rows are compared as text, so every shard must print them alike. Row security must not hide rows: rather fail.
SETTINGS = {
    "application_name": "foreshard verify",
    "default_transaction_read_only": "on",
    "default_transaction_isolation": "read committed",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "row_security": "off",
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "lc_monetary": "C",
}

Suspect = TypeVar("Suspect")
Result = TypeVar("Result")


class ShardReader:
    """Owns a connection to one shard. Made by `opened`; ended by `close`."""

    def __init__(self, index: int, name: str, dsn: str, connection: Connection) -> None:
        self.index = index
        self.name = name
        self.place = f"shard {name}"
        self.connection = connection
        self._described = f"shard {name} ({shown_dsn(dsn)})"
        self._turn = asyncio.Lock()

    @classmethod
    async def opened(cls, index: int, name: str, dsn: str) -> ShardReader:
        """A reader that is connected; ForeshardError when that fails."""
        try:
            connection: Connection = await asyncpg.connect(
                dsn, timeout=CONNECT_TIMEOUT_S, command_timeout=None, server_settings=SETTINGS
            )
        except FAILURES as error:
            raise ForeshardError(f"shard {name} ({shown_dsn(dsn)}): cannot connect: {described(error)}") from error
        return cls(index, name, dsn, connection)

    async def rows(self, sql: str, *values: Any) -> list[Any]:
        """Rows of one query, in a snapshot of its own."""
        return list(await self.guarded(self.connection.fetch(sql, *values)))

    async def guarded(self, work: Coroutine[Any, Any, Result]) -> Result:
        """The result of work on the connection; what fails becomes a ForeshardError that names the shard."""
        async with self._turn:
            try:
                return await work
            except FAILURES as error:
                raise ForeshardError(f"{self._described}: {described(error)}") from error

    async def row(self, sql: str, *values: Any) -> Any:
        """The only row."""
        (row,) = await self.rows(sql, *values)
        return row

    async def value(self, sql: str, *values: Any) -> Any:
        """The only value."""
        return (await self.row(sql, *values))[0]

    def close(self) -> None:
        """Nothing is open that an orderly end would save."""
        self.connection.terminate()


async def confirmed(
    suspects: list[Suspect], look: Callable[[list[Suspect]], Awaitable[list[Suspect]]]
) -> list[Suspect]:
    """Those suspects that each of several later looks still finds wrong."""
    for wait_s in LOOK_AGAIN_S:
        if not suspects:
            break
        await asyncio.sleep(wait_s)
        suspects = await look(suspects)
    return suspects
