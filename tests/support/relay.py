"""A TCP relay that stands in front of a PostgreSQL and spoils what goes through: resets, delays, silence.

It runs in a thread with an event loop of its own. What it is told holds for connections that are there and for later
ones; `close` resets whatever is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections.abc import Callable
from typing import Self
from urllib.parse import urlsplit, urlunsplit

CHUNK_BYTES = 65536
RESET_AFTER_BYTES_MAX = 300  # a few messages of the protocol
NO_LINGER = struct.pack("ii", 1, 0)  # close is a reset then


class Relay:
    """Listens on a port of its own, and connects to `dsn`'s for each client that comes."""

    def __init__(self, dsn: str, seed: int = 0) -> None:
        parts = urlsplit(dsn)
        self.resets = 0  # connections that were cut
        self._target = (parts.hostname or "127.0.0.1", parts.port or 5432)
        self._draw = random.Random(seed)
        self._delay_s = 0.0
        self._links: set[_Link] = set()
        self._loop = asyncio.new_event_loop()
        self._is_open = asyncio.Event()
        self._is_open.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        user, port = parts.netloc.rpartition("@")[0], self._listener.getsockname()[1]
        self.dsn = urlunsplit(parts._replace(netloc=f"{user}@127.0.0.1:{port}"))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- faults --------------------------------------------------------------------------------------------------

    def delay(self, seconds: float) -> None:
        """Bytes arrive so much later, each way; 0 ends it."""
        self._do(lambda: setattr(self, "_delay_s", seconds))

    def silence(self) -> None:
        """Nothing goes through any more, no byte and no end of a connection; new connections are taken, and wait."""
        self._do(self._is_open.clear)

    def go_on(self) -> None:
        """End a silence: what was held is delivered."""
        self._do(self._is_open.set)

    def reset_all(self) -> None:
        """Cut every connection now; what was held is lost."""
        self._do(lambda: [link.reset() for link in list(self._links)])

    def reset_soon(self, share: float = 1.0) -> None:
        """Cut some of the connections: each after a random number of further bytes, wherever that is in a message."""
        self._do(lambda: [link.arm() for link in list(self._links) if self._draw.random() < share])

    def count(self) -> int:
        """Connections that are there."""
        return len(self._links)

    def close(self) -> None:
        """Reset what is there, and take no more."""
        if self._thread.is_alive():
            self._do(self._loop.stop)
            self._thread.join()

    def _do(self, deed: Callable[[], object]) -> None:
        done = threading.Event()

        def do() -> None:
            deed()
            done.set()

        self._loop.call_soon_threadsafe(do)
        assert done.wait(10)

    # -- in its thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        accepting = self._loop.create_task(self._accept())
        self._loop.run_forever()
        self._listener.close()
        for link in list(self._links):
            link.reset()
        accepting.cancel()
        self._loop.run_until_complete(self._wait_for_ends())
        self._loop.close()

    async def _wait_for_ends(self) -> None:
        own = asyncio.current_task()
        await asyncio.gather(*(task for task in asyncio.all_tasks() if task is not own), return_exceptions=True)

    async def _accept(self) -> None:
        while True:
            near, _ = await self._loop.sock_accept(self._listener)
            link = _Link(self, near)
            self._links.add(link)
            link.task = self._loop.create_task(link.run())

    async def _hold(self) -> None:
        """Until there is no silence, and as long as bytes are delayed."""
        await self._is_open.wait()
        if self._delay_s:
            await asyncio.sleep(self._delay_s)  # the fault itself
            await self._is_open.wait()


class _Link:
    """One connection through the relay: two sockets."""

    def __init__(self, relay: Relay, near: socket.socket) -> None:
        self.task: asyncio.Task[None] | None = None
        self._relay = relay
        self._near = near
        self._far = socket.socket()
        self._left: int | None = None  # bytes until it is cut

    def arm(self) -> None:
        self._left = self._relay._draw.randrange(RESET_AFTER_BYTES_MAX)

    def reset(self) -> None:
        """Both sides hear that the connection is gone."""
        if self.task is not None:
            self.task.cancel()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        pumps: list[asyncio.Task[None]] = []
        is_whole = False
        try:
            for end in (self._near, self._far):
                end.setblocking(False)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._relay._hold()
            await loop.sock_connect(self._far, self._relay._target)
            ways = ((self._near, self._far), (self._far, self._near))
            pumps = [loop.create_task(self._pump(*way)) for way in ways]
            await asyncio.gather(*pumps)
            is_whole = True
        except (OSError, asyncio.CancelledError):
            self._relay.resets += 1
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            self._relay._links.discard(self)
            for end in (self._near, self._far):
                if not is_whole:
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
                end.close()

    async def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        """Bytes one way, until their end."""
        loop = asyncio.get_running_loop()
        while data := await self._receive(source):
            if self._left is not None:
                self._left -= len(data)
                if self._left < 0:
                    await loop.sock_sendall(sink, data[: self._left])
                    raise ConnectionResetError
            await loop.sock_sendall(sink, data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    async def _receive(self, source: socket.socket) -> bytes:
        """What comes next, or the error that does, when it may go through."""
        try:
            return await asyncio.get_running_loop().sock_recv(source, CHUNK_BYTES)
        finally:
            await self._relay._hold()
