"""Keeps a router's catalog true: what others have changed is read anew.

A change through Foreshard notifies all routers in its own transaction, on the first shard. What was changed on the
shards directly is noticed by the same look that follows the query node: once a second, by a query that costs little
while nothing changes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from foreshard.proxy.catalog import Catalog
from foreshard.proxy.config import Config
from foreshard.proxy.control.derive import derive_catalog
from foreshard.proxy.control.introspect import Connection, introspect
from foreshard.proxy.control.names import NAMES, local_names
from foreshard.proxy.control.query_watch import LOOK_INTERVAL_S, STATE
from foreshard.proxy.control.retry import LOST, connect
from foreshard.proxy.control.schema_change import CHANNEL
from foreshard.proxy.control.spread_facts import read_plain, without
from foreshard.proxy.routing.ddl import LOCK
from foreshard.proxy.triggers.points import control_point

LOCK_TIMEOUT = "2s"
LOCK_SEED = 7  # of the hash that makes a lock of a name (proxy/wire/session.pyx)


async def read_names(config: Config) -> frozenset[str]:
    """The names that only the first shard has, once no change is under way anywhere."""
    found = []
    for shard in config.shards:
        connection = await connect(shard.dsn)
        try:
            async with connection.transaction():
                await wait_for_changes(connection)
                found.append(await connection.fetchval(NAMES))
        finally:
            await connection.close()
    return local_names(found)


async def wait_for_changes(connection: Connection) -> None:
    """Let changes through Foreshard end on this shard, prepared ones too, and keep new ones away from the transaction.

    What takes longer than a look may is looked at by the next one.
    """
    await connection.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")
    await connection.execute(f"SELECT pg_advisory_xact_lock_shared(hashtextextended('{LOCK.decode()}', {LOCK_SEED}))")


class SchemaWatch:
    """Looks at the first shard for one router, and tells it of every other catalog. Owns one connection."""

    def __init__(self, config: Config, catalog: Catalog, tell: Callable[[Catalog], None]) -> None:
        self.config = config
        self.catalog = catalog
        self._tell = tell
        self._state = ""
        self._news = asyncio.Event()
        self._connection: Connection | None = None

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            try:
                await self.look()
            except LOST:
                self.close()
            self._news.clear()
            try:
                async with asyncio.timeout(LOOK_INTERVAL_S):
                    await self._news.wait()
            except TimeoutError:
                continue

    def doubt(self) -> None:
        """Something may have changed: look at once."""
        self._state = ""
        self._news.set()

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
        state = await connection.fetchval(STATE)
        if state == self._state:
            return
        control_point("schema-noticed")
        known = self.catalog
        async with connection.transaction():
            await wait_for_changes(connection)
            config = without(self.config, await read_plain(connection, self.config))
            facts = await introspect(connection, config, config.shards[0].name)
        found = derive_catalog(config, facts, known.version)
        local = await read_names(self.config)
        if known is not self.catalog:
            return  # changed by this router's own client meanwhile: look again
        self._state = state
        found = msgspec.structs.replace(found, local=local, query_node=known.query_node)
        if found != known:
            self.catalog = found
            self._tell(found)

    def _on_notified(self, *_: object) -> None:
        self.doubt()
