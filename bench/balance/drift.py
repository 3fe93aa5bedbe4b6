"""Sticky load that drifts, on simulated shards under the real rebalancer: what it reaches, how many rows that moves.

200,000 roots with three children each on average lie in 4096 buckets by hash. Half of the writes go to roots by the
zipf distribution (0.99), half to any; after every 50,000 writes 5 % of the 2,000 hottest roots become cold, and others
hot. A write costs a log-normal amount that nothing about its root foretells (the balance bench's, capped), so what a
bucket will ask for is the count of its writes times what one is expected to cost: the signal `counts x predicted`.
Beside it the same rebalancer by what was measured, by rows, and a full recomputation (longest first) after every epoch.

The figure is max/mean over 16 shards of the demand of an epoch. A rebalancer decides ten times per epoch; moves take
no time.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench import Options
from bench.balance.workload import MU, SIGMA, ZIPF_THETA, Floats, Integers
from bench.report import table
from foreshard.proxy.rebalance import Limits, Loads, Rebalancer

SHARDS, BUCKETS = 16, 4096
CHILDREN = 3
ROUNDS = 10  # of the rebalancer per epoch
EPOCH_S = 60.0
HOT, REPLACED = 2_000, 0.05
COST_MAX = 300.0
SIGNALS = ("counts x predicted", "measured", "rows", "recomputed", "none")
STEADY = 5  # epochs before the state is called steady


@dataclass(frozen=True)
class Scale:
    """How much is simulated."""

    roots: int
    writes: int  # of an epoch
    epochs: int


@dataclass(frozen=True)
class Drift:
    """One signal on one seed, by epoch."""

    ratios: list[float]  # max/mean of the demand
    moved: list[float]  # rows moved in the epoch, as a share of all


class World:
    """The roots, and who asks for them."""

    def __init__(self, seed: int, scale: Scale) -> None:
        self._random = np.random.default_rng([seed, 16])
        self._scale = scale
        self._root_of_rank = self._random.permutation(scale.roots)
        self.bucket: Integers = self._random.integers(0, BUCKETS, scale.roots)
        rows = self._random.geometric(1 / (1 + CHILDREN), scale.roots)
        self.rows: Floats = np.bincount(self.bucket, weights=rows, minlength=BUCKETS)
        self.owner: Integers = self._random.permutation(np.arange(BUCKETS) % SHARDS)
        shares = 1 / np.arange(1, scale.roots + 1) ** ZIPF_THETA
        self._ranks = np.cumsum(shares / shares.sum())

    def write(self, count: int) -> tuple[Floats, Floats]:
        """So many writes: by bucket their count, and what they cost."""
        drawn = np.searchsorted(self._ranks, self._random.random(count // 2)).clip(0, self._scale.roots - 1)
        any_ = self._random.integers(0, self._scale.roots, count - count // 2)
        buckets = self.bucket[np.concatenate([self._root_of_rank[drawn], any_])]
        costs = np.minimum(self._random.lognormal(MU, SIGMA, count), COST_MAX)
        counts = np.bincount(buckets, minlength=BUCKETS).astype(float)
        return counts, np.bincount(buckets, weights=costs, minlength=BUCKETS)

    def drift(self) -> None:
        """Some of the hottest roots change places with cold ones."""
        hot = min(HOT, self._scale.roots // 10)
        count = round(hot * REPLACED)
        old = self._random.choice(hot, count, replace=False)
        new = self._random.choice(np.arange(hot, self._scale.roots), count, replace=False)
        ranks = self._root_of_rank
        ranks[old], ranks[new] = ranks[new].copy(), ranks[old].copy()


def run_signal(signal: str, seed: int, scale: Scale) -> Drift:
    """One signal, on the same world as the others with this seed."""
    world = World(seed, scale)
    rebalancer = Rebalancer(Limits(least=0.0))
    ratios, moved = [], []
    for epoch in range(scale.epochs):
        demand, carried = np.zeros(SHARDS), 0.0
        counts = np.zeros(BUCKETS)
        for number in range(ROUNDS):
            asked, cost = world.write(scale.writes // ROUNDS)
            counts += asked
            demand += np.bincount(world.owner, weights=asked, minlength=SHARDS)
            load = {"counts x predicted": asked, "measured": cost, "rows": world.rows}.get(signal)
            if load is not None:
                now_s = (epoch + (number + 1) / ROUNDS) * EPOCH_S
                carried += follow(rebalancer, world, asked, load, now_s)
        if signal == "recomputed":
            carried = recompute(world, counts)
        ratios.append(float(demand.max() / demand.mean()))
        moved.append(carried / float(world.rows.sum()))
        world.drift()
    return Drift(ratios, moved)


def follow(rebalancer: Rebalancer, world: World, asked: Floats, load: Floats, now_s: float) -> float:
    """One round: decide and move. Answers the rows moved."""
    weights = [1.0] * SHARDS
    loads = Loads(world.owner.copy(), world.rows, asked, load[:, None], EPOCH_S / ROUNDS, weights)
    decision = rebalancer.decide(loads, now_s)
    for move in decision.moves:
        world.owner[move.bucket] = move.target
    return float(decision.rows)


def recompute(world: World, counts: Floats) -> float:
    """Every bucket anew, the heaviest first to the lightest shard. Answers the rows moved."""
    owner, loads = world.owner.copy(), np.zeros(SHARDS)
    for bucket in np.argsort(-counts, kind="stable"):
        owner[bucket] = int(loads.argmin())
        loads[owner[bucket]] += counts[bucket]
    carried = float(world.rows[owner != world.owner].sum())
    world.owner = owner
    return carried


def run_drift(options: Options) -> dict[str, Any]:
    """`runs[signal]` is a list with one drift per seed."""
    scale = Scale(20_000, 10_000, 8) if options.small else Scale(200_000, 50_000, 30)
    seeds = [options.seed + number for number in range(2 if options.small else 5)]
    runs = {signal: [run_signal(signal, seed, scale) for seed in seeds] for signal in SIGNALS}
    return {
        "shards": SHARDS,
        "writes": scale.writes,
        "epochs": scale.epochs,
        "seeds": seeds,
        "runs": {signal: [vars(run) for run in found] for signal, found in runs.items()},
        "figures": {signal: summarize(found) for signal, found in runs.items()},
    }


def summarize(runs: list[Drift]) -> dict[str, float]:
    """Medians over the seeds: the first repair, and the steady state behind it."""

    def middle(values: list[float]) -> float:
        return statistics.median(values)

    return {
        "first": middle([run.ratios[0] for run in runs]),
        "first_rows": middle([run.moved[0] for run in runs]),
        "second": middle([run.ratios[1] for run in runs]),
        "steady": middle([statistics.fmean(run.ratios[STEADY:]) for run in runs]),
        "steady_worst": middle([max(run.ratios[STEADY:]) for run in runs]),
        "steady_rows": middle([statistics.fmean(run.moved[STEADY:]) for run in runs]),
    }


def print_drift(result: dict[str, Any]) -> None:
    """One line per signal."""
    print(
        f"\ndrift on {result['shards']} simulated shards: max/mean of the demand of {result['writes']} writes, and rows"
        f" moved; medians over seeds {result['seeds']}, steady from epoch {STEADY} to {result['epochs']}"
    )
    headings = ["moved by", "first epoch", "rows moved in it", "second", "steady", "worst epoch", "rows per epoch"]
    lines = [
        [
            signal,
            f"{found['first']:.2f}",
            f"{found['first_rows']:.2%}",
            f"{found['second']:.3f}",
            f"{found['steady']:.3f}",
            f"{found['steady_worst']:.2f}",
            f"{found['steady_rows']:.3%}",
        ]
        for signal, found in result["figures"].items()
    ]
    print(table(headings, lines))
