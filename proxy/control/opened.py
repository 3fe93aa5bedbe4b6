"""One database with a transaction open, for whoever plans or applies: its lock, its limits, what is lacking."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from foreshard.proxy.control.connect import connected, shown_dsn
from foreshard.proxy.control.facts import Facts
from foreshard.proxy.control.introspect import Connection
from foreshard.proxy.control.steps import Step

LOCK_TIMEOUT = "10s"  # apply waits this long for a table that is in use, then gives up without a change
APPLY_LOCK = 0x666F7265  # advisory lock of whoever plans or applies on a database; the bytes of "fore"


@dataclass
class Work:
    """One database: what it lacks, and (while the transaction is open) the connection to make it through."""

    name: str  # "control database" or "shard s0"
    place: str
    connection: Connection
    lacking: list[Step] = field(default_factory=list)
    already_run: list[Step] = field(default_factory=list)  # lacking too, but run by planning: the user's schema file
    facts: Facts | None = None

    @property
    def all_lacking(self) -> list[Step]:
        return [*self.already_run, *self.lacking]


@contextlib.asynccontextmanager
async def opened(name: str, dsn: str) -> AsyncIterator[Work]:
    """A database with a transaction open, rolled back at the end unless the caller has ended it."""
    async with connected(name, dsn) as connection:
        await connection.execute(
            f"BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'; "
            f"SET LOCAL client_min_messages = warning; SELECT pg_advisory_xact_lock({APPLY_LOCK})"
        )
        try:
            yield Work(name, shown_dsn(dsn), connection)
        finally:
            if connection.is_in_transaction():
                await connection.execute("ROLLBACK")
