"""Keeps a router's catalog true: what others have changed is read anew.

A change through Foreshard notifies all routers in its own transaction, on the first shard. What was changed on the
shards directly is noticed by the same look that follows the query node: once a second, by a query that costs little
while nothing changes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import asyncpg
import msgspec

from foreshard.proxy.catalog import Catalog
from foreshard.proxy.config import Config
from foreshard.proxy.control.connect import connected
from foreshard.proxy.control.derive import derive_catalog
from foreshard.proxy.control.introspect import Connection, introspect
from foreshard.proxy.control.names import NAMES, local_names
from foreshard.proxy.control.query_watch import LOOK_INTERVAL_S, STATE
from foreshard.proxy.control.retry import LOST, connect
from foreshard.proxy.control.schema_barrier import CHANGE_CHANNEL, HOLD, Traffic, called, give_way, resume
from foreshard.proxy.control.schema_change import CHANNEL
from foreshard.proxy.control.shard_list import LIST, as_list, follow
from foreshard.proxy.control.spread_facts import read_plain, without
from foreshard.proxy.routing.ddl import LOCK
from foreshard.proxy.triggers.capture import quote_text
from foreshard.proxy.triggers.points import control_point

LOCK_SEED = 7  # of the hash that makes a lock of a name (proxy/wire/session.pyx)
TRY_LOCK = f"SELECT pg_try_advisory_xact_lock_shared(hashtextextended('{LOCK.decode()}', {LOCK_SEED}))"
LOCK_TIMEOUT = "200ms"  # of a look, for a table that somebody changes
LOOK_AGAIN_S = 0.1  # behind a lock, or a connection that broke: nothing tells when to try; chosen, not measured
FAILURES_MAX = 10


async def read_names(config: Config) -> tuple[frozenset[str] | None, bool]:
    """The names that only the first shard has, and whether all shards were there to be asked.

    No names (None) while a change is under way anywhere, prepared ones included.
    """
    found, is_whole = [], True
    for shard in config.shards:
        try:
            connection = await connect(shard.dsn)
        except LOST:
            if shard is config.shards[0]:
                raise
            is_whole = False  # nothing is changed everywhere without it
            continue
        try:
            async with connection.transaction():
                if not await connection.fetchval(TRY_LOCK):
                    return None, is_whole
                found.append(await connection.fetchval(NAMES))
        finally:
            await connection.close()
    return local_names(found), is_whole


class SchemaWatch:
    """Looks at the first shard for one router, and tells it of every other catalog. Owns one connection."""

    def __init__(
        self, config: Config, catalog: Catalog, tell: Callable[[Catalog], None], traffic: Traffic | None = None
    ) -> None:
        self.config = config
        self.catalog = catalog
        self._tell = tell
        self._traffic = traffic
        self._changes: list[str] = []  # announced, and not given way to yet
        self._is_held = False
        self._has_looked = False
        self._failures = 0  # looks that have failed, one after the other
        self._state = ""
        self._news = asyncio.Event()
        self._connection: Connection | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            self._news.clear()
            try:
                await self._follow_changes()
                await self.look()
                self._release()
            except asyncpg.LockNotAvailableError:
                await asyncio.sleep(LOOK_AGAIN_S)  # and give way, if a change asks for it: it may be that one
                self._news.set()
                continue
            except LOST:
                await self._lose()
            try:
                async with asyncio.timeout(LOOK_INTERVAL_S):
                    await self._news.wait()
            except TimeoutError:
                continue

    def doubt(self) -> None:
        """Something may have changed: look at once."""
        self._state = ""
        self._news.set()

    def announce(self, statement: str) -> None:
        """Tell all routers, this one too, of a change that is about to be committed here."""
        task = asyncio.get_running_loop().create_task(self._run_statement(statement))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run_statement(self, statement: str) -> None:
        async with connected(f"shard {self.config.shards[0].name}", self.config.shards[0].dsn) as connection:
            await connection.execute(statement)

    async def _follow_changes(self) -> None:
        """Give way to the change that is announced: what is committed is read before anything is planned again."""
        if self._traffic is None or not self._changes or self._connection is None:
            return
        payload, self._changes = self._changes[-1], []
        self._hold()
        if await give_way(self.config, self._traffic, payload):
            await resume(self._connection)
        self._state = ""

    def _hold(self) -> None:
        """Plan nothing by what is known now."""
        if self._traffic is not None:
            self._is_held = True
            self._traffic.hold_statements()

    def _release(self) -> None:
        """Plan again, by what was just read."""
        self._failures = 0
        if self._is_held and self._traffic is not None and not self._changes:
            self._is_held = False
            self._traffic.release_statements()

    async def _lose(self) -> None:
        """The connection is gone, and with it what keeps changes from being committed: plan nothing meanwhile.

        Where there can be no other the shard is down, and nothing can be changed without it.
        """
        is_down = self._connection is None or self._failures > FAILURES_MAX
        self.close()
        if is_down:
            return self._release()
        self._failures += 1
        self._hold()
        self._news.set()
        await asyncio.sleep(LOOK_AGAIN_S)

    def close(self) -> None:
        """Give the connection up."""
        if self._connection is not None:
            self._connection.terminate()
        self._connection = None
        self._state = ""  # what was notified meanwhile is not heard

    async def look(self) -> None:
        """Look once, and tell of a catalog that is not the one known."""
        connection = self._connection
        if connection is None:
            connection = self._connection = await connect(self.config.shards[0].dsn)
            await connection.add_listener(CHANNEL, self._on_notified)
            if self._traffic is not None:
                await connection.add_listener(CHANGE_CHANNEL, self._on_change)
                await connection.execute(f"SET application_name = {quote_text(called(self.config))}")
                await connection.execute(HOLD)
        listed = as_list(await connection.fetch(LIST))
        state = f"{await connection.fetchval(STATE)} {listed}"
        if state == self._state:
            return
        if self._has_looked:
            control_point("schema-noticed")
        self._has_looked = True
        self._follow_shards(follow(self.config, listed))
        known = self.catalog
        # Nobody commits another one as long as this connection holds its lock (schema_barrier).
        async with connection.transaction():
            await connection.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")
            config = without(self.config, await read_plain(connection, self.config))
            facts = await introspect(connection, config, config.shards[0].name)
        found = derive_catalog(config, facts, known.version)
        local, is_whole = await read_names(self.config)
        if known is not self.catalog:
            return  # changed by this router's own client meanwhile: look again
        self._state = state if local is not None and is_whole else ""  # else: look again
        local = known.local if local is None else local
        found = msgspec.structs.replace(found, local=local, query_node=known.query_node)
        if found != known:
            self.catalog = found
            self._tell(found)

    def _follow_shards(self, config: Config) -> None:
        if config.shards != self.config.shards:
            self.config = config
            if self._traffic is not None:
                self._traffic.follow_shards(config)

    def _on_notified(self, *_: object) -> None:
        self.doubt()

    def _on_change(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        self._changes.append(str(payload))
        self._news.set()
