"""Which buckets to move: the search of one round, without memory and without a clock.

The fullest shard gives to the emptiest, again and again, until no shard is above the goal. Among the buckets whose move
would bring a good part of what the best one would, the cheapest for what it brings is taken: many rows of a bucket that
is hardly used are not worth a move, one hot row is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from foreshard.proxy.rebalance.limits import Limits
from foreshard.proxy.rebalance.loads import Bools, Floats, Integers, ratios, shard_loads


@dataclass(frozen=True)
class Move:
    """One bucket from one shard to another."""

    bucket: int
    source: int
    target: int
    rows: int
    gain: float  # by how much the greater of the two shards' ratios falls
    price: float  # rows to copy, those that are written meanwhile included


class Search:
    """Evens out one resource. `load` is buckets x resources; `owner` is what it starts from, and is kept as it was."""

    def __init__(
        self,
        owner: Integers,
        load: Floats,
        resource: int,
        rows: Floats,
        prices: Floats,
        weights: Floats,
        limits: Limits,
    ) -> None:
        self.owner = owner.copy()
        self.load = load
        self.resource = resource
        self.rows = rows
        self.prices = prices
        self.weights = weights
        self.limits = limits
        self.by_shard = shard_loads(owner, load, len(weights))

    def run(self, movable: Bools, rows_max: float) -> list[Move]:
        """Moves in their order, which carry at most `rows_max` rows; `movable` is cleared of what moves.

        No other resource of the target may become fuller than the fullest shard is now of the one that is evened out.
        """
        moves: list[Move] = []
        left = rows_max
        closed = np.zeros(len(self.weights), dtype=bool)  # shards that nothing fits to leave
        highest = self._peak()
        while True:
            now = ratios(self.by_shard[:, self.resource], self.weights)
            open_ = np.where(closed | (self.weights <= 0), -np.inf, now)  # who has no weight is drained, not relieved
            source = int(np.argmax(open_))
            if open_[source] <= self.limits.goal:
                break
            move = self._best(source, now, movable, left, highest)
            if move is None:
                closed[source] = True
                continue
            self.move(move)
            movable[move.bucket] = False
            left -= move.rows
            moves.append(move)
        return moves

    def _peak(self) -> float:
        """The share of itself that the fullest shard uses of the resource at hand."""
        has_weight = self.weights > 0
        return float((self.by_shard[has_weight, self.resource] / self.weights[has_weight]).max(initial=0.0))

    def _best(self, source: int, now: Floats, movable: Bools, rows_max: float, highest: float) -> Move | None:
        """The move from `source` that brings most for its price; None: none brings anything."""
        buckets = np.flatnonzero((self.owner == source) & movable & (self.rows <= rows_max))
        buckets = buckets[self.load[buckets, self.resource] > 0]
        for target in np.argsort(now, kind="stable"):
            if now[target] >= min(now[source], 1.0) or self.weights[target] <= 0 or not len(buckets):
                return None
            gains = self._gains(buckets, source, int(target), now)
            gains[~self._fits(buckets, int(target), highest)] = 0.0
            best = float(gains.max(initial=0.0))
            if best > 0:
                worth = np.where(gains >= self.limits.worth * best, gains / self.prices[buckets], 0.0)
                chosen = int(np.lexsort((self.load[buckets, self.resource], -worth))[0])  # of equals, the lightest
                bucket = int(buckets[chosen])
                price = float(self.prices[bucket])
                return Move(bucket, source, int(target), int(self.rows[bucket]), float(gains[chosen]), price)
        return None

    def _gains(self, buckets: Integers, source: int, target: int, now: Floats) -> Floats:
        """By how much the greater ratio of the two shards falls."""
        unit = self.by_shard[:, self.resource].sum() / self.weights.sum()
        moved = self.load[buckets, self.resource] / unit
        there: Floats = now[target] + moved / self.weights[target]
        gains: Floats = now[source] - np.maximum(now[source] - moved / self.weights[source], there)
        return gains

    def _fits(self, buckets: Integers, target: int, highest: float) -> Bools:
        """Whether the target stays below the highest use of any resource."""
        after = (self.by_shard[target] + self.load[buckets]) / self.weights[target]
        after[:, self.resource] = 0.0
        fits: Bools = (after <= highest).all(axis=1)
        return fits

    def move(self, move: Move) -> None:
        """Count it as done."""
        self.by_shard[move.source] -= self.load[move.bucket]
        self.by_shard[move.target] += self.load[move.bucket]
        self.owner[move.bucket] = move.target
