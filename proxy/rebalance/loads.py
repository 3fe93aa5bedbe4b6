"""What a rebalancer is told: who owns what, how much was asked of every bucket, and what is under way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Loads:
    """One round. Arrays are by bucket; `load` is buckets x resources, in seconds of a shard of weight 1.

    `load` is the demand of the round: how often each function and statement ran times what it is expected to cost, not
    what it happened to cost: of costs as uneven as those of functions, a round's sum says little about the next one.
    """

    owner: Integers  # shard of each bucket
    rows: Floats
    writes: Floats  # rows written in the round
    load: Floats
    seconds: float  # how long the round was
    weights: Sequence[float]  # of the shards; 0: takes nothing, and what it has leaves
    moving: Mapping[int, int] = field(default_factory=dict)  # bucket -> target of moves that have begun
    heaviest_group: float = 0.0  # load of the heaviest root with its rows: what no move can divide
    frozen: str = ""  # why nothing is known for certain: metrics that are stale, profiles that drift; empty: it is

    def __post_init__(self) -> None:
        count = len(self.owner)
        if not len(self.rows) == len(self.writes) == len(self.load) == count or self.load.ndim != 2:
            raise ValueError("rows, writes and load must have an entry for each bucket, load one column per resource")
        if count and not 0 <= int(self.owner.min()) <= int(self.owner.max()) < len(self.weights):
            raise ValueError("a bucket is owned by a shard that has no weight")
        if self.seconds <= 0 or min(self.weights, default=0) < 0 or not any(self.weights):
            raise ValueError("a round has a length, weights are not negative, and some shard has one")

    @property
    def placed(self) -> Integers:
        """The owners as they will be when the moves that have begun are done."""
        placed = self.owner.copy()
        for bucket, target in self.moving.items():
            placed[bucket] = target
        return placed


def shard_loads(owner: Integers, load: Floats, shard_count: int) -> Floats:
    """shards x resources: what is asked of each shard."""
    found = np.zeros((shard_count, load.shape[1]))
    np.add.at(found, owner, load)
    return found


def ratios(by_shard: Floats, weights: Floats) -> Floats:
    """Each shard's load over what its weight entitles it to, 1 = even; infinite for load without weight."""
    entitled = weights / weights.sum() * by_shard.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(entitled > 0, by_shard / entitled, np.where(by_shard > 0, np.inf, 1.0))


def dominant(by_shard: Floats, weights: Floats) -> int:
    """The resource of which some shard uses most of what it has: that one is evened out."""
    usable = np.where(weights > 0, weights, np.inf)
    return int(np.argmax((by_shard / usable[:, None]).max(axis=0))) if by_shard.size else 0
