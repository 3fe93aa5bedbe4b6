"""How even shards are loaded, and how even they could be at best."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

HASH_DRAWS = 1000


@dataclass(frozen=True)
class Spread:
    """A figure over many draws: eight of ten lie between `low` and `high`."""

    median: float
    low: float
    high: float


def max_over_mean(loads: Sequence[float], weights: Sequence[float] | None = None) -> float:
    """Largest load per weight over the mean load per weight: 1.0 is perfectly even, and the answer without any load."""
    parts = weights if weights is not None else [1.0] * len(loads)
    total = sum(loads)
    if total <= 0:
        return 1.0
    return max(load / weight for load, weight in zip(loads, parts, strict=True)) * sum(parts) / total


def indivisible_bound(groups: Iterable[float], shard_count: int) -> float:
    """The least max/mean that any placement can reach when a row group's cost stays on one shard."""
    costs = list(groups)
    total = sum(costs)
    return max(1.0, max(costs) * shard_count / total) if total > 0 else 1.0


def longest_first(groups: Iterable[float], shard_count: int) -> list[float]:
    """Loads of the offline oracle: row groups, heaviest first, each to the lightest shard (Graham's LPT)."""
    loads = [0.0] * shard_count
    for cost in sorted(groups, reverse=True):
        heapq.heapreplace(loads, loads[0] + cost)
    return loads


def expected_by_hash(
    groups: Sequence[float], weights: Sequence[float], draws: int = HASH_DRAWS, seed: int = 1
) -> Spread:
    """max/mean when hashing puts row groups of these costs on shards: one stream's hash is one draw, lucky or not."""
    random = np.random.default_rng(seed)
    costs = np.asarray(groups, dtype=float)
    count = len(weights)
    found = [
        max_over_mean(np.bincount(random.integers(0, count, len(costs)), costs, count).tolist(), weights)
        for _ in range(draws)
    ]
    low, median, high = np.quantile(found, (0.1, 0.5, 0.9)).tolist()
    return Spread(median, low, high)
