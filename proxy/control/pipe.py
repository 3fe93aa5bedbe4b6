"""COPY between two shards: the rows of a query on one into a table of the other, as they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextvars import ContextVar
from typing import Literal

from foreshard.proxy.control.introspect import Connection
from foreshard.proxy.errors import ForeshardError

CHUNKS_MAX = 8  # in memory


class Meter:
    """Counts what is piped."""

    bytes = 0


METER: ContextVar[Meter | None] = ContextVar("METER", default=None)  # of whoever wants to know


class _Broken(Exception):
    """The source failed: its own error says how."""


async def pipe(
    source: Connection,
    query: str,
    target: Connection,
    table: tuple[str, str],
    columns: Sequence[str],
    *,
    is_binary: bool = False,
) -> int:
    """The rows of a query into (schema, table); how many there were.

    The query may be a DELETE ... RETURNING. Values are copied as text: binary forms hold type oids, which differ
    between servers; what text means is up to the two sessions' settings. `is_binary` is for callers who know that all
    columns have the same types on both, and none whose binary form depends on the server. Whichever end fails, its
    error is raised.
    """
    form: Literal["binary", "text"] = "binary" if is_binary else "text"
    chunks: asyncio.Queue[bytes | None] = asyncio.Queue(CHUNKS_MAX)
    is_broken = False
    meter = METER.get()

    async def take(chunk: bytes) -> None:
        if meter is not None:
            meter.bytes += len(chunk)
        await chunks.put(chunk)

    async def read() -> str:
        nonlocal is_broken
        try:
            return str(await source.copy_from_query(query, output=take, format=form))
        except BaseException:
            is_broken = True
            while chunks.full():
                chunks.get_nowait()
            raise
        finally:
            await chunks.put(None)

    async def given() -> AsyncIterator[bytes]:
        while (chunk := await chunks.get()) is not None:
            yield chunk
        if is_broken:
            raise _Broken

    reading = asyncio.create_task(read())
    try:
        written = await target.copy_to_table(
            table[1], schema_name=table[0], columns=list(columns), source=given(), format=form
        )
    except BaseException as error:
        reading.cancel()
        (outcome,) = await asyncio.gather(reading, return_exceptions=True)
        if isinstance(error, _Broken) and isinstance(outcome, Exception):
            raise outcome from None
        if isinstance(error, RuntimeError) and target.is_closed():  # uvloop's, where the driver writes CopyFail
            raise ConnectionResetError("closed in the middle of a COPY") from error
        raise
    if await reading != written:
        raise ForeshardError(f"{'.'.join(table)}: {await reading} was read, {written} written")
    return int(written.split()[-1])
