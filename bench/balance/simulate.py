"""Simulated shards under the real placer: who gets which row, and how even that is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bench.balance.predictions import DELAY_EVENTS
from bench.balance.workload import INSERT, Floats, Workload
from foreshard.proxy.placement import (
    Placer,
    SharedState,
    indivisible_bound,
    longest_first,
    max_over_mean,
)


@dataclass(frozen=True)
class Outcome:
    """One policy on one workload."""

    max_over_mean: float  # of executed cost
    rows_max_over_mean: float  # of root rows, preloaded ones included


def run_policy(workload: Workload, predicted: Floats, policy: str, shard_count: int) -> Outcome:
    """Place every event; its measured cost arrives DELAY_EVENTS later and settles what was predicted.

    Preloaded roots lie where a hash put them.
    """
    state = SharedState.private(shard_count)
    placer = Placer(state, policy, 1.05, workload.seed)
    before = Placer(state, "key-hash", 1.05, workload.seed)
    shard_of = [before.place_known(0.0) for _ in range(workload.preloaded)]
    place, charge, add_measured = placer.place_known, placer.charge_known, state.add_measured
    costs, executed = predicted.tolist(), workload.executed.tolist()
    roots = workload.root.tolist()
    taken: list[int] = []
    for now, kind in enumerate(workload.kind.tolist()):
        if kind == INSERT:
            shard = place(costs[now])
            shard_of.append(shard)
        else:
            shard = shard_of[roots[now]]
            charge(shard, costs[now])
        taken.append(shard)
        if now >= DELAY_EVENTS:
            past = now - DELAY_EVENTS
            add_measured(taken[past], executed[past], costs[past])
    loads = np.bincount(taken, weights=workload.executed, minlength=shard_count)
    rows = np.bincount(shard_of, minlength=shard_count)
    return Outcome(max_over_mean(loads.tolist()), max_over_mean(rows.tolist()))


def run_oracles(workload: Workload, shard_count: int) -> dict[str, float]:
    """What knowing every cost beforehand could reach, and what nothing can beat."""
    groups = workload.groups.tolist()
    return {
        "offline LPT": max_over_mean(longest_first(groups, shard_count)),
        "indivisible bound": indivisible_bound(groups, shard_count),
    }
