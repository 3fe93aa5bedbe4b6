"""Holds the demo's clients back while trigger functions are far behind.

Left alone, the clients insert everything before a tenth of it has been worked on, and every row would be placed before
anything has been learned. A deployment in balance is never that far behind.
"""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Self

from foreshard.proxy.config import Config
from foreshard.proxy.demo.verify import read_outbox

WAITING_MAX = 300  # events; chosen, not measured: about a hundred documents
POLL_S = 0.2


class Pace:
    """Looks at the outbox while its `async with` block runs."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._open = asyncio.Event()
        self._open.set()
        self._looking: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._looking = asyncio.create_task(self._look())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._looking is not None
        self._looking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._looking

    async def wait(self) -> None:
        """Return once few events wait; raises what looking at the outbox raised."""
        await self._open.wait()
        if self._looking is not None and self._looking.done():
            self._looking.result()

    async def _look(self) -> None:
        try:
            while True:
                if (await read_outbox(self._config)).waiting < WAITING_MAX:
                    self._open.set()
                else:
                    self._open.clear()
                await asyncio.sleep(POLL_S)
        finally:
            self._open.set()
