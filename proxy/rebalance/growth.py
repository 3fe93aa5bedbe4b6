"""Which buckets a new shard takes, and where those of a shard go that is emptied. Pure: no clock, no I/O.

A shard that was added takes at most one bucket of `shards`, so that adding one never moves more than hashing would have
to: first the hottest that bring it to its share of the demand, then those that bring it to its share of the rows, then
such as nobody uses, in which new rows will be placed. Buckets come from the shard that is fullest then.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from foreshard.proxy.rebalance.loads import Bools, Floats, Integers

SLACK = 1.05  # of its share, that buckets may bring which are taken for their number only

Planned = tuple[int, int, int]  # bucket, source, target


class _Shares:
    """What each shard has, of one thing: a share of all."""

    def __init__(self, owner: Integers, amounts: Floats, weights: Floats) -> None:
        total = float(amounts.sum())
        self.of_bucket: Floats = amounts / total if total > 0 else np.zeros(len(amounts))
        self.fair: Floats = weights / weights.sum()
        self.held = np.bincount(owner, weights=self.of_bucket, minlength=len(weights)).astype(np.float64)

    def move(self, planned: Planned) -> None:
        bucket, source, target = planned
        self.held[source] -= self.of_bucket[bucket]
        self.held[target] += self.of_bucket[bucket]

    def fullness(self) -> Floats:
        """What each shard has to what it should have; one that should have nothing is the fullest."""
        with np.errstate(divide="ignore", invalid="ignore"):
            found: Floats = np.where(self.fair > 0, self.held / self.fair, np.inf)
        return found


def fill(
    owner: Integers, demand: Floats, rows: Floats, weights: Sequence[float], new: int, staying: Collection[int] = ()
) -> list[Planned]:
    """Moves that fill the shard `new`, in the order in which they are worth making.

    `owner` says where buckets will be when the moves under way are done; those that are `staying` are left where they
    are. All three arrays are by bucket.
    """
    weighed = np.asarray(weights, dtype=float)
    placed = np.array(owner, dtype=np.int64)
    free: Bools = (placed != new) & (weighed[placed] > 0)
    free[list(staying)] = False
    left = len(placed) // int(np.count_nonzero(weighed)) - int(np.count_nonzero(placed == new))
    by_demand, by_rows = _Shares(placed, demand, weighed), _Shares(placed, rows, weighed)
    by_count = _Shares(placed, np.ones(len(placed)), weighed)
    moves: list[Planned] = []

    def take(shares: _Shares, order: Floats, fits: Bools) -> bool:
        """Move the first bucket in that order which fits, from the fullest shard that has one."""
        for source in np.argsort(-shares.fullness(), kind="stable"):
            found = np.flatnonzero(free & fits & (placed == source))
            if len(found) and shares.fullness()[source] > shares.fullness()[new]:
                bucket = int(found[np.argmin(order[found])])
                moves.append((bucket, int(source), new))
                placed[bucket], free[bucket] = new, False
                for each in (by_demand, by_rows, by_count):
                    each.move(moves[-1])
                return True
        return False

    def room(shares: _Shares, slack: float = 1.0) -> Bools:
        found: Bools = shares.of_bucket <= shares.fair[new] * slack - shares.held[new]
        return found

    for shares, other in ((by_demand, by_demand), (by_rows, by_demand)):
        while left > 0:
            used: Bools = shares.of_bucket > 0
            if not take(shares, -shares.of_bucket, used & room(shares) & room(other, SLACK)):
                break
            left -= 1
    while left > 0 and by_count.held[new] < by_count.fair[new]:
        if not take(by_count, by_rows.of_bucket + by_demand.of_bucket, room(by_rows, SLACK) & room(by_demand, SLACK)):
            break
        left -= 1
    return moves


def empty(
    owner: Integers, demand: Floats, rows: Floats, weights: Sequence[float], leaving: int, staying: Collection[int] = ()
) -> list[Planned]:
    """Moves that empty the shard `leaving`, the hottest buckets first, each to the shard that is least full then.

    ValueError where there is no shard with a weight to take them.
    """
    weighed = np.asarray(weights, dtype=float).copy()
    weighed[leaving] = 0.0
    if not weighed.any():
        raise ValueError("no other shard may take buckets")
    placed = np.array(owner, dtype=np.int64)
    shares = [_Shares(placed, amounts, weighed) for amounts in (demand, rows, np.ones(len(placed)))]
    found = [int(bucket) for bucket in np.flatnonzero(placed == leaving) if int(bucket) not in staying]
    moves = []
    for bucket in sorted(found, key=lambda bucket: (-demand[bucket], -rows[bucket], bucket)):
        used = next((each for each in shares if each.of_bucket[bucket] > 0), shares[-1])
        target = int(np.argmin(used.fullness()))
        moves.append((bucket, leaving, target))
        for each in shares:
            each.move(moves[-1])
    return moves
