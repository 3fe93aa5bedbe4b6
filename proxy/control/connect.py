"""Connections of the control plane, and its errors in words: which database, and what it said."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import asyncpg

from foreshard.proxy.config import Config
from foreshard.proxy.control.introspect import Connection
from foreshard.proxy.errors import ForeshardError

CONNECT_TIMEOUT_S = 10.0


def control_dsn(config: Config) -> str:
    """Where the control database is."""
    return config.control or config.shards[0].dsn


def shown_dsn(dsn: str) -> str:
    """HOST:PORT/DATABASE, without user and password."""
    parts = urlsplit(dsn)
    return parts.netloc.rpartition("@")[2] + parts.path


@contextlib.asynccontextmanager
async def connected(name: str, dsn: str) -> AsyncIterator[Connection]:
    """A connection to the named database; whatever fails inside becomes a ForeshardError that names it."""
    place = f"{name} ({shown_dsn(dsn)})"
    try:
        connection: Connection = await asyncpg.connect(dsn, timeout=CONNECT_TIMEOUT_S, command_timeout=None)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise ForeshardError(f"{place}: cannot connect: {described(error)}") from error
    try:
        yield connection
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
        raise ForeshardError(f"{place}: {described(error)}") from error
    finally:
        connection.terminate() if connection.is_in_transaction() else await connection.close()


def described(error: Exception) -> str:
    """The error on one line, with the server's detail and hint."""
    if isinstance(error, asyncpg.PostgresError):
        parts = [str(error.args[0]) if error.args else type(error).__name__, error.detail, error.hint]
        return "; ".join(str(part) for part in parts if part) + f" (SQLSTATE {error.sqlstate})"
    return " ".join(str(error).split()) or type(error).__name__
