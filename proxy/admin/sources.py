"""What the console needs from the process it runs in, and how it asks the shards."""

from __future__ import annotations

from typing import Protocol, TypedDict

import msgspec

from foreshard.proxy.catalog import Catalog
from foreshard.proxy.config import Config
from foreshard.proxy.placement import SharedState


class PoolRow(TypedDict, total=False):
    """One pool: the backends of one (shard, database, user). Names are PgBouncer's where it has the thing."""

    shard: str
    database: str
    user: str
    cl_active: int  # clients that hold a backend of this pool
    cl_waiting: int  # clients that wait for one
    sv_active: int  # backends linked to a client
    sv_idle: int  # backends free for the next client
    sv_pinned: int  # backends tied to one session by its state
    sv_login: int  # backends still starting up
    maxwait_us: int  # how long the first waiting client has waited
    pool_mode: str
    parameters: str  # other start-up parameters of its clients: backends are shared among those that agree


class ClientRow(TypedDict, total=False):
    """One client connection."""

    user: str
    database: str
    state: str  # active, idle, waiting
    addr: str
    port: int
    connect_time: str  # "2026-11-22 15:04:05+00"
    request_time: str  # when it last sent something
    wait_us: int  # how long it has been waiting for a backend
    link: str  # the servers this client holds, by their `id`
    remote_pid: int  # process id this client was told (BackendKeyData)
    application_name: str
    prepared_statements: int
    pinned: str  # why the session is tied to its backend; empty when it is not


class ServerRow(TypedDict, total=False):
    """One backend connection."""

    shard: str
    user: str
    database: str
    state: str  # active, idle, pinned, login
    addr: str
    port: int
    connect_time: str
    request_time: str  # when it was last sent something
    link: str  # the client it serves
    remote_pid: int  # process id of the PostgreSQL backend
    prepared_statements: int
    bucket: int | None  # the setting foreshard.bucket as last confirmed


class ShardAnswer(msgspec.Struct, frozen=True):
    """Rows one shard answered, or why it did not."""

    shard: str
    rows: tuple[tuple[object, ...], ...] = ()
    error: str | None = None


class ConsoleSources(Protocol):
    """What the router lends the console. Dictionaries may lack keys: the console shows NULL."""

    @property
    def config(self) -> Config: ...

    @property
    def catalog(self) -> Catalog: ...

    @property
    def state(self) -> SharedState: ...

    def pools(self) -> list[PoolRow]: ...

    def clients(self) -> list[ClientRow]: ...

    def servers(self) -> list[ServerRow]: ...

    def placements(self) -> dict[str, int]:
        """How many INSERTs this router placed, by reason (`explain.REASONS`)."""
        ...

    async def ask_shards(self, sql: str) -> list[ShardAnswer]:
        """Run one SELECT on every shard; `asking.ask_shards` does it."""
        ...

    async def ask_control(self, sql: str) -> ShardAnswer:
        """Run one SELECT on the control database; `asking.ask_control` does it."""
        ...
