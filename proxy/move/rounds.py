"""Rounds of the rebalancer: what proxies were asked since the last one, and what follows from it.

Demand is counted, not measured: how often statements read and wrote in a bucket times what that is taken to cost, and
what the functions of the writes were predicted to cost. So a shard that is too slow to answer does not look idle.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from foreshard._core.buckets import BUCKET_COUNT
from foreshard._core.shared import SharedState
from foreshard.proxy.catalog import Catalog
from foreshard.proxy.config import Config
from foreshard.proxy.control.balance_store import Told
from foreshard.proxy.move.sizes import Floats, count_rows
from foreshard.proxy.profiles import profile_keys
from foreshard.proxy.rebalance import Decision, Limits, Loads, Rebalancer

ROUND_S = 6.0
SIZES_S = 300.0  # for so long rows are not counted again
SILENT_S = 3 * ROUND_S  # a proxy that has told nothing for so long has stopped, or is cut off
RESOURCES = ("cpu", "memory", "io", "network")
# What a shard spends on a statement beside its functions: seconds of CPU, byte-seconds, bytes read and written, bytes
# sent. Chosen, not measured: PostgreSQL takes some tens of microseconds for a point read, and logs what is written.
READ_COST = np.array([60e-6, 0.0, 0.0, 200.0])
ROW_COST = np.array([120e-6, 0.0, 500.0, 200.0])


class Rounds:
    """Keeps what one round must know of those before."""

    def __init__(self, config: Config, **changes: Any) -> None:
        """`changes` are of the limits that the configuration sets."""
        self.config = config
        chosen = config.rebalance
        limits = Limits(
            start=chosen.start, goal=chosen.goal, rows_share=chosen.rows_per_minute, cooldown_s=chosen.cooldown_s
        )
        self.rebalancer = Rebalancer(dataclasses.replace(limits, **changes))
        self.sizes: Floats = np.zeros(BUCKET_COUNT)
        self._sized_s = -np.inf
        self._before: dict[str, Told] = {}
        self._then_s = 0.0

    async def run(
        self, catalog: Catalog, told: list[Told], owners: list[int], moving: Mapping[int, int], now_s: float
    ) -> Decision | None:
        """One round, at `now_s` of a clock that goes on; None when it is the first that hears of a proxy."""
        before, self._before = self._before, {each.instance: each for each in told}
        seconds, self._then_s = now_s - self._then_s, now_s
        if not before:
            return None
        reads, rows, costs = self._since(before, told)
        if now_s - self._sized_s > SIZES_S:
            self.sizes = await count_rows(self.config, catalog)
            self._sized_s = now_s
        loads = Loads(
            owner=np.array(owners, dtype=np.int64),
            rows=self.sizes,
            writes=rows,
            load=load_of(self.config, reads, rows, costs),
            seconds=max(seconds, 0.001),
            weights=[shard.share for shard in self.config.shards],
            moving=moving,
            frozen=self._why_frozen(told),
        )
        return self.rebalancer.decide(loads, now_s)

    def hurry(self) -> None:
        """The next round need not wait for others that say the same."""
        self.rebalancer.hurry()

    def _since(self, before: Mapping[str, Told], told: list[Told]) -> tuple[Floats, Floats, Floats]:
        """What was asked since the round before; of a proxy that began anew, since then."""
        reads, rows = np.zeros(BUCKET_COUNT), np.zeros(BUCKET_COUNT)
        costs = np.zeros((BUCKET_COUNT, len(RESOURCES)))
        for each in told:
            last = before.get(each.instance)
            if last is None:
                continue  # how long it has counted is not known
            if (each.reads >= last.reads).all() and (each.rows >= last.rows).all():
                reads += each.reads - last.reads
                rows += each.rows - last.rows
                costs += each.costs - last.costs
            else:
                reads, rows, costs = reads + each.reads, rows + each.rows, costs + each.costs
        return reads, rows, costs

    def _why_frozen(self, told: list[Told]) -> str:
        silent = [each.instance for each in told if each.age_s > SILENT_S]
        if silent:
            return f"{', '.join(silent)} has told nothing for {max(each.age_s for each in told):.0f} s"
        degraded = sorted({name for each in told if each.degraded for name in each.degraded.split(", ")})
        if degraded:
            return f"what {', '.join(degraded)} will cost cannot be predicted now"
        return ""


def load_of(config: Config, reads: Floats, rows: Floats, costs: Floats) -> Floats:
    """What statements and functions ask of a shard, in seconds of one: buckets x resources."""
    placement = config.placement
    capacities = [
        placement.cpu_s_per_s, placement.memory_bytes, placement.io_bytes_per_s, placement.network_bytes_per_s,
    ]  # fmt: skip
    found: Floats = (costs + reads[:, None] * READ_COST + rows[:, None] * ROW_COST) / np.array(capacities)
    return found


def demand_of(config: Config, told: list[Told]) -> Floats:
    """What each bucket was asked for since the proxies began, of the resource that is asked for most."""
    found = np.zeros((BUCKET_COUNT, len(RESOURCES)))
    for each in told:
        found += load_of(config, each.reads, each.rows, each.costs)
    most: Floats = found[:, int(found.sum(axis=0).argmax())]
    return most


def own_demand(config: Config, state: SharedState, instance: str) -> Told:
    """What this proxy has counted."""
    reads, rows, costs = state.demand()
    degraded = [
        f"{key.function} on {key.operation}"
        for index, key in enumerate(profile_keys(config))
        if state.profile(index).degraded
    ]
    return Told(instance, reads.astype(float), rows.astype(float), costs, ", ".join(degraded))
