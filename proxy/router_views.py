"""What the console shows of a router: its clients, their connections and the pools (SHOW CLIENTS, SERVERS, POOLS)."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from foreshard._core.placement import Placer
from foreshard.proxy.admin import ClientRow, PoolRow, ServerRow, ShardAnswer, ask_control, ask_shards
from foreshard.proxy.catalog import Catalog
from foreshard.proxy.config import Config
from foreshard.proxy.wire.backend import Backend
from foreshard.proxy.wire.frontend import Frontend
from foreshard.proxy.wire.pool import Hub, Pool

LOGIN = ("user", "database")  # start-up parameters that have a column of their own in SHOW POOLS


class RouterViews:
    """The sources of one router's console (proxy/admin/console.Sources)."""

    def __init__(
        self,
        config: Config,
        catalog: Catalog,
        hub: Hub,
        placer: Placer,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.config = config
        self.catalog = catalog
        self.hub = hub
        self.state = placer.state
        self.placer = placer
        self.loop = loop

    async def ask_shards(self, sql: str) -> list[ShardAnswer]:
        """Run one SELECT on every shard."""
        return await ask_shards(self.config, sql)

    async def ask_control(self, sql: str) -> ShardAnswer:
        """Run one SELECT on the control database."""
        return await ask_control(self.config, sql)

    def placements(self) -> dict[str, int]:
        """SHOW PLACEMENT's counts."""
        return self.placer.reason_counts()

    def pools(self) -> list[PoolRow]:
        """SHOW POOLS."""
        return [self._pool_row(pool) for pool in self.hub.pools.values()]

    def _pool_row(self, pool: Pool) -> PoolRow:
        parameters = dict(pool.parameters)
        owned = [backend for backend in pool.backends if backend.has_owner()]
        waited = [wait_s for _, wait_s in self._waits(pool)]
        return PoolRow(
            shard=self.hub.shard_names[pool.shard],
            database=parameters["database"],
            user=parameters["user"],
            cl_active=len({backend.owner_id() for backend in owned}),
            cl_waiting=len(waited),
            sv_active=sum(1 for backend in owned if not backend.is_tainted),
            sv_idle=len(pool.idle),
            sv_pinned=sum(1 for backend in owned if backend.is_tainted),
            sv_login=sum(1 for backend in pool.backends if backend.is_starting()),
            maxwait_us=int(max(waited, default=0.0) * 1e6),
            pool_mode="transaction",
            parameters=", ".join(f"{name}={value}" for name, value in parameters.items() if name not in LOGIN),
        )

    def clients(self) -> list[ClientRow]:
        """SHOW CLIENTS."""
        waited = {owner: wait_s for pool in self.hub.pools.values() for owner, wait_s in self._waits(pool)}
        return [self._client_row(session, waited.get(session, 0.0)) for session in self.hub.sessions.values()]

    def _waits(self, pool: Pool) -> list[tuple[Any, float]]:
        """Who waits for a backend of the pool, and for how many seconds so far."""
        limit = self.loop.time() + self.config.pool.wait_timeout_s
        return [(owner, max(limit - owner.wait_deadline, 0.0)) for owner in (*pool.waiters, *pool.joiners)]

    def _client_row(self, session: Frontend, wait_s: float) -> ClientRow:
        parameters = dict(session.parameters)
        host, port = (session.address[0], session.address[1]) if session.address else ("unix", 0)
        return ClientRow(
            user=parameters["user"],
            database=parameters["database"],
            state=session.state_name(),
            addr=host,
            port=port,
            connect_time=stamp(session.connected_time),
            request_time=self._stamp_of(session.received_at),
            wait_us=int(wait_s * 1e6),
            link=", ".join(str(backend.pid) for backend in session.links),
            remote_pid=session.pid,
            application_name=parameters.get("application_name", ""),
            prepared_statements=session.prepared_count(),
            pinned=session.pinned or "",
        )

    def _stamp_of(self, loop_time: float) -> str:
        """A time on the event loop's clock, as `stamp` prints it."""
        return stamp(time.time() - self.loop.time() + loop_time)

    def servers(self) -> list[ServerRow]:
        """SHOW SERVERS."""
        return [self._server_row(pool, backend) for pool in self.hub.pools.values() for backend in pool.backends]

    def _server_row(self, pool: Pool, backend: Backend) -> ServerRow:
        parameters = dict(pool.parameters)
        address = self.hub.addresses[pool.shard]
        state = "login" if backend.is_starting() else "idle"
        if backend.has_owner():
            state = "pinned" if backend.is_tainted else "active"
        return ServerRow(
            shard=self.hub.shard_names[pool.shard],
            user=parameters["user"],
            database=address.database,
            state=state,
            addr=address.host,
            port=address.port,
            connect_time=stamp(backend.connected_at),
            request_time=self._stamp_of(backend.sent_at),
            link=str(backend.owner_id() or ""),
            remote_pid=backend.pid,
            prepared_statements=backend.prepared_count(),
            bucket=backend.bucket if backend.bucket >= 0 else None,
        )


def stamp(seconds: float) -> str:
    """A time as PgBouncer prints it, in UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S+00", time.gmtime(seconds))
