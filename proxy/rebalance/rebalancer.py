"""The rebalancer: round after round told the loads, it decides which buckets move. Pure: no clock, no I/O.

1. It looks at shards as they will be when the moves under way are done, so it never answers one overload twice.
2. Loads are smoothed over rounds; nothing begins before a shard has been above `start` for `rounds_min` of them, and
   what has begun ends below `goal`: between the two nothing moves.
3. What moves carry is bounded over time, however many rounds there are. A bucket that was moved rests for
   `cooldown_s`, whoever would gain.
4. While something is not certain (`Loads.frozen`) nothing moves, and the count of rounds begins anew.
5. A shard without weight is emptied first, of everything, at the same budget; cooldowns do not keep it.
"""

from __future__ import annotations

import numpy as np

from foreshard.proxy.rebalance.decision import Decision, Verdict
from foreshard.proxy.rebalance.limits import Limits
from foreshard.proxy.rebalance.loads import Bools, Floats, Loads, dominant, ratios, shard_loads
from foreshard.proxy.rebalance.search import Move, Search


class Rebalancer:
    """Keeps what one round must know of those before. `decide` once per round."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.smoothed: Floats | None = None
        self._over = 0  # rounds in a row in which a shard was above the threshold
        self._moved_s: dict[int, float] = {}  # when buckets were told to move
        self._spent: list[tuple[float, int]] = []  # when, and how many rows were told to move

    def decide(self, loads: Loads, now_s: float) -> Decision:
        """The moves of this round. `now_s` is any clock that goes on."""
        demand = self._smooth(loads)
        weights = np.asarray(loads.weights, dtype=float)
        placed = loads.placed
        by_shard = shard_loads(placed, demand, len(weights))
        resource = dominant(by_shard, weights)
        used = ratios(by_shard[:, resource], weights)
        before = float(used[weights > 0].max())
        if loads.frozen:
            self._over = 0
            return Decision(Verdict.FROZEN, before, before, resource=resource, detail=loads.frozen)
        movable = self._movable(loads, now_s)
        prices = self._prices(loads)
        search = Search(placed, demand, resource, loads.rows, prices, weights, self.limits)
        rows_max = self._rows_left(loads, now_s)
        moves = self._drain(loads, search, rows_max)
        if moves:
            return self._decided(Verdict.DRAINING, before, search, moves, now_s)
        if (by_shard[:, resource] < self.limits.least * weights).all():
            self._over = 0
            return Decision(Verdict.IDLE, before, before, resource=resource)
        self._over = self._over + 1 if before > self.limits.start else 0
        if not self._over:
            return Decision(Verdict.EVEN, before, before, resource=resource)
        if self._over < self.limits.rounds_min:
            return Decision(Verdict.WAITING, before, before, resource=resource)
        moves = search.run(movable, rows_max)
        if moves:
            return self._decided(Verdict.MOVING, before, search, moves, now_s)
        return self._stuck(loads, by_shard, resource, before)

    def hurry(self) -> None:
        """Somebody asks for it: the next round that finds a shard above the threshold relieves it."""
        self._over = self.limits.rounds_min - 1

    # -- what is known ---------------------------------------------------------------------------------------------

    def _smooth(self, loads: Loads) -> Floats:
        """Load per second, the newest round weighted by `smoothing`."""
        found = loads.load / loads.seconds
        if self.smoothed is None or self.smoothed.shape != found.shape:
            self.smoothed = found
        else:
            self.smoothed = self.smoothed + self.limits.smoothing * (found - self.smoothed)
        return self.smoothed

    def _movable(self, loads: Loads, now_s: float) -> Bools:
        self._moved_s = {
            bucket: then for bucket, then in self._moved_s.items() if now_s - then < self.limits.cooldown_s
        }
        movable = np.ones(len(loads.owner), dtype=bool)
        movable[[*self._moved_s, *loads.moving]] = False
        return movable

    def _prices(self, loads: Loads) -> Floats:
        """Rows that the move of each bucket copies, those that are written meanwhile included; at least one."""
        rewritten = loads.writes / loads.seconds * loads.rows / self.limits.copy_rows_per_s
        prices: Floats = np.maximum(loads.rows + rewritten, 1.0)
        return prices

    def _rows_left(self, loads: Loads, now_s: float) -> float:
        """How many rows the moves of this round may carry."""
        self._spent = [(then, rows) for then, rows in self._spent if now_s - then < self.limits.budget_s]
        allowed = max(self.limits.rows_share * float(loads.rows.sum()), self.limits.rows_least)
        return allowed - sum(rows for _, rows in self._spent)

    # -- what follows ----------------------------------------------------------------------------------------------

    def _drain(self, loads: Loads, search: Search, rows_max: float) -> list[Move]:
        """Buckets of shards without weight, the hottest first, each to the shard that is emptiest then."""
        weights = search.weights
        leaving = np.flatnonzero(weights[search.owner] <= 0)
        leaving = np.array([bucket for bucket in leaving if int(bucket) not in loads.moving], dtype=np.int64)
        moves: list[Move] = []
        left = rows_max
        counts = np.bincount(search.owner, minlength=len(weights)).astype(float)
        for bucket in leaving[np.argsort(-search.load[leaving, search.resource], kind="stable")]:
            rows = float(loads.rows[bucket])
            if rows > left and (moves or self._spent):
                continue
            now = ratios(search.by_shard[:, search.resource], weights)
            # Buckets that nobody uses make no shard fuller: they go where the fewest are.
            order = np.lexsort((counts / np.where(weights > 0, weights, 1.0), np.where(weights > 0, now, np.inf)))
            target = int(order[0])
            source = int(search.owner[bucket])
            moves.append(Move(int(bucket), source, target, int(rows), 0.0, float(search.prices[bucket])))
            search.move(moves[-1])
            counts[source] -= 1
            counts[target] += 1
            left -= rows
        return moves

    def _decided(self, verdict: Verdict, before: float, search: Search, moves: list[Move], now_s: float) -> Decision:
        self._moved_s |= {move.bucket: now_s for move in moves}
        self._spent.append((now_s, sum(move.rows for move in moves)))
        used = ratios(search.by_shard[:, search.resource], search.weights)
        after = float(used[search.weights > 0].max())
        if after <= self.limits.goal:
            self._over = 0
        return Decision(verdict, before, after, moves, search.resource)

    def _stuck(self, loads: Loads, by_shard: Floats, resource: int, before: float) -> Decision:
        mean = float(by_shard[:, resource].sum()) / float(np.count_nonzero(np.asarray(loads.weights)))
        group = loads.heaviest_group / loads.seconds
        if mean and group > mean:
            detail = f"the heaviest group asks for {group / mean:.2f} times what a shard has on average"
            return Decision(Verdict.INDIVISIBLE, before, before, resource=resource, detail=detail)
        return Decision(Verdict.STUCK, before, before, resource=resource)
