from asyncio import AbstractEventLoop
from collections.abc import Iterable
from typing import Any

from foreshard._core.placement import Placer
from foreshard._core.shared import SharedState
from foreshard._core.statement_cache import StatementCache
from foreshard.proxy.config import Config
from foreshard.proxy.wire.backend import Backend, BackendHome
from foreshard.proxy.wire.endpoint import Reactor
from foreshard.proxy.wire.gate import Gate
from foreshard.proxy.wire.waker import Waker

def encode_startup(parameters: tuple[tuple[str, str], ...]) -> bytes: ...

class Hub:
    gate: Gate
    waker: Waker
    shard_count: int
    shard_names: list[str]
    addresses: list[Any]
    has_query_node: bool
    query_types: dict[int, int]
    unchecked: set[int]
    two_phase: bool
    statements: dict[bytes, Any]
    sessions: dict[tuple[int, bytes], Any]
    pools: dict[tuple[int, tuple[tuple[str, str], ...]], Pool]
    is_stopping: bool
    frozen_bucket: int
    enlist: bytes | None
    enlist_at_node: bytes | None
    away: set[int]
    def __init__(
        self,
        reactor: Reactor,
        loop: AbstractEventLoop,
        config: Config,
        cache: StatementCache,
        state: SharedState,
        placer: Placer,
        services: Any,
        addresses: list[Any],
        query_address: Any,
        is_sharded: bool,
        cluster: str,
        two_phase: bool,
    ) -> None: ...
    def follow_shards(self, config: Config, addresses: list[Any], query_address: Any) -> None: ...
    def run_housekeeping(self) -> None: ...
    def hold(self) -> None: ...
    def release(self) -> None: ...
    def hasten(self, is_hasty: bool) -> None: ...
    def freeze(self, bucket: int) -> list[Any]: ...
    def leave_bucket(self, shard: int) -> None: ...
    def thaw(self) -> None: ...
    def take_lost(self, shard: int) -> list[int]: ...
    def note_lost(self, shard: int, pids: Iterable[int]) -> None: ...
    def leave_shard(self, shard: int) -> None: ...
    def return_to_shard(self, shard: int) -> None: ...
    def uses_place(self, shard: int) -> bool: ...
    def retry_behind(self) -> None: ...
    def drain(self) -> None: ...

class Pool(BackendHome):
    shard: int
    parameters: tuple[tuple[str, str], ...]
    idle: list[Backend]
    backends: set[Backend]
    waiters: Any
    joiners: Any
    server_parameters: dict[str, str] | None
