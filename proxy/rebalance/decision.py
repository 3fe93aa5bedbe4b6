"""What a round of the rebalancer comes to: the moves, and why these or none."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from foreshard.proxy.rebalance.search import Move


class Verdict(Enum):
    """Why there are moves, or none."""

    IDLE = "no shard has much to do"
    EVEN = "no shard is above the threshold"
    WAITING = "a shard is above the threshold, not for long enough yet"
    FROZEN = "what is known is not certain"
    MOVING = "shards are evened out"
    DRAINING = "a shard without weight is emptied"
    INDIVISIBLE = "the heaviest group alone is more than a shard's share: no move makes that less"
    STUCK = "no move that is allowed now would make the fullest shard less full"


@dataclass(frozen=True)
class Decision:
    """`before` and `after` are the fullest shard's ratio, 1 = even; `moves` in the order in which they help most."""

    verdict: Verdict
    before: float
    after: float
    moves: list[Move] = field(default_factory=list)
    resource: int = 0  # that was evened out
    detail: str = ""

    @property
    def rows(self) -> int:
        """What the moves carry."""
        return sum(move.rows for move in self.moves)
