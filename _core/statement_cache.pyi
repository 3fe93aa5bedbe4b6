from collections.abc import Callable

from foreshard._core.template import Template

class StatementCache:
    size_bytes: int
    hit_count: int
    miss_count: int
    eviction_count: int
    catalog_version: int
    def __init__(
        self,
        planner: Callable[[bytes], Template],
        entries_max: int = 10_000,
        bytes_max: int = 33_554_432,
        seed: int = 0,
    ) -> None: ...
    def __len__(self) -> int: ...
    def lookup(self, sql: bytes) -> Template: ...
    def invalidate(self, planner: Callable[[bytes], Template], catalog_version: int) -> None: ...
