"""How the controller holds on to databases: connections with limits on time, lost without ceremony, made again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from types import MappingProxyType

import asyncpg

from foreshard.proxy.control.introspect import Connection

CONNECT_TIMEOUT_S = 5.0
COMMAND_TIMEOUT_S = 60.0
BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 5.0
END_AGAIN_S = 0.1
# What a server that is down, going down, or not ready for us raises; anything else is a mistake of ours. The driver
# calls it an error of its own when a session is ended between two messages of one command.
LOST = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, TimeoutError)


async def connect(dsn: str, settings: Mapping[str, str] = MappingProxyType({})) -> Connection:
    """A connection that gives up on a silent server."""
    connection: Connection = await asyncpg.connect(
        dsn,
        timeout=CONNECT_TIMEOUT_S,
        command_timeout=COMMAND_TIMEOUT_S,
        server_settings={"application_name": "foreshard controller", **settings},
    )
    return connection


async def end_tasks() -> None:
    """End every other task of the loop, however often it takes.

    The driver waits by asyncio.wait_for, which (before Python 3.12) loses a cancellation that comes with its result: a
    task that goes round for ever would then never end, and the process with it.
    """
    own = asyncio.current_task()
    while left := [task for task in asyncio.all_tasks() if task is not own]:
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=END_AGAIN_S)


async def pause(stopping: asyncio.Event, seconds: float) -> None:
    """Sleep, at most until `stopping` is set."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stopping.wait()
