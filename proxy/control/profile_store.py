"""The control database as the controller sees it: profiles are read at start, and kept later.

It is off the data path: while it is down, learning goes on and what is to be kept waits in memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from asyncpg import Record

from foreshard.proxy.control.connect import described
from foreshard.proxy.control.introspect import Connection
from foreshard.proxy.control.retry import BACKOFF_FIRST_S, BACKOFF_MAX_S, LOST, connect, pause
from foreshard.proxy.profiles import ProfileRow, decode_state
from foreshard.proxy.profiles.rows import SELECT_PROFILES, UPSERT_HISTORY, UPSERT_PROFILE


class ProfileStore:
    """Owns one connection to the control database. Made by the controller, closed by it."""

    def __init__(self, dsn: str, report: Callable[[str], None]) -> None:
        self._dsn = dsn
        self._report = report
        self._connection: Connection | None = None
        self.trouble: str | None = None

    async def load(self, stopping: asyncio.Event) -> list[ProfileRow] | None:
        """The profiles as they are kept. Waits for a database that is down; None when stopped."""
        backoff_s = BACKOFF_FIRST_S
        while not stopping.is_set():
            try:
                connection = await self._connected()
                profiles = [_row_of(record) for record in await connection.fetch(SELECT_PROFILES)]
                self._note_end_of_trouble()
                return profiles
            except LOST as error:
                self._note_trouble(error)
            await pause(stopping, backoff_s)
            backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)
        return None

    async def keep(self, rows: Sequence[ProfileRow], history: Sequence[ProfileRow]) -> bool:
        """Write profiles and versions in one transaction; False, and nothing written, when it could not be."""
        try:
            connection = await self._connected()
            async with connection.transaction():
                if history:
                    await connection.executemany(UPSERT_HISTORY, [row.history_values() for row in history])
                if rows:
                    await connection.executemany(UPSERT_PROFILE, [row.profile_values() for row in rows])
        except LOST as error:
            self._note_trouble(error)
            return False
        self._note_end_of_trouble()
        return True

    def close(self) -> None:
        """Drop the connection."""
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    async def _connected(self) -> Connection:
        if self._connection is None or self._connection.is_closed():
            self._connection = await connect(self._dsn)
        return self._connection

    def _note_trouble(self, error: Exception) -> None:
        self.close()
        if self.trouble is None:
            self.trouble = described(error)
            self._report(f"control database: {self.trouble}; trying again")

    def _note_end_of_trouble(self) -> None:
        if self.trouble is not None:
            self.trouble = None
            self._report("control database: works again")


def _row_of(record: Record) -> ProfileRow:
    values = dict(record)
    return ProfileRow(**{**values, "state": decode_state(values["state"])})
