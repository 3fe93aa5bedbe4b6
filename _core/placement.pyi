from collections.abc import Sequence
from typing import Any

from foreshard._core.shared import SharedState

CANDIDATE_COUNT: int
BUCKET_ROWS_SHARE: int
REASONS: tuple[str, ...]

class Placer:
    state: SharedState
    policy_name: str
    frozen_bucket: int

    def __init__(
        self, state: SharedState, policy: str = "bounded", bound: float = 1.05, seed: int | None = None
    ) -> None: ...
    def explain(
        self,
        features: Sequence[float],
        profiles: Sequence[int],
        only_shard: int = -1,
        key_hash: int | None = None,
    ) -> dict[str, Any]: ...
    def reason_counts(self) -> dict[str, int]: ...
    def last_decision(self) -> dict[str, Any]: ...
    def place_row(
        self, features: Sequence[float], profiles: Sequence[int], only_shard: int = -1, key_hash: int | None = None
    ) -> int: ...
    def place_known(self, cost: float, rows: float = 1.0, key_hash: int | None = None, only_shard: int = -1) -> int: ...
    def charge_write(self, shard: int, features: Sequence[float], profiles: Sequence[int]) -> float: ...
    def charge_known(self, shard: int, cost: float) -> None: ...
    def take_bucket(self, shard: int) -> int: ...
    def cost_share(self) -> float: ...
