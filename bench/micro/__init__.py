"""Nanoseconds per call of the hot path's kernels, from loops inside compiled code.

Each round runs every kernel once, so that a slow moment of the machine hits all alike; the figure is the median over
the rounds, in CPU time of the thread, so that other processes of the machine count little. `call` is the baseline: a
call into another compiled module that mixes one word.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from bench import Options
from bench.micro.routes import routes
from bench.report import table
from foreshard._core import loops
from foreshard._core.placement import Placer
from foreshard._core.shared import SharedState

PROFILES = 3
SHARDS = 16
Kernel = Callable[[int], object]


def make_placer(shard_count: int, profiles: int, policy: str = "bounded") -> Placer:
    """A placer over published models and shards that carry some load."""
    state = SharedState.private(shard_count, profiles)
    for index in range(profiles):
        weights = [[1e-3, 1e-6 * (index + 1), 1e-5, 0], [1e5, 100, 0, 0], [1e4, 2, 0, 0], [0, 0, 0, 0]]
        state.set_profile(index, weights, [1e-4, 1e3, 1e2, 0], [30, 1e12, 1e12, 0], [0.01, 1e6, 1e5, 0], 1000, 1)
    state.set_capacities([1.0, 1e9, 200e6, 100e6])
    for shard in range(shard_count):
        state.add_measured(shard, 100.0 + shard % 3)
    return Placer(state, policy, 1.05, 1)


def kernels() -> dict[str, tuple[Kernel, float | None]]:
    """Name -> (loop over so many calls, bar in nanoseconds)."""
    placer, placer_64 = make_placer(SHARDS, PROFILES), make_placer(64, PROFILES)
    return {
        "call": (loops.loop_call, None),
        "jump hash, 64 shards": (lambda count: loops.loop_jump_hash(count, 64), 50),
        "bucket of key": (loops.loop_bucket_of_key, None),
        "next bucket, 16 shards": (lambda count: loops.loop_next_bucket(placer, 3, count), None),
        "predict + place, 3 functions, 16 shards": (lambda count: loops.loop_place(placer, PROFILES, count), 1000),
        "predict + place, 3 functions, 64 shards": (lambda count: loops.loop_place(placer_64, PROFILES, count), None),
        **routes(),
    }


def run(options: Options) -> dict[str, Any]:
    """Measure, print, answer figures in nanoseconds per call."""
    rounds, calls = (5, 2_000) if options.small else (101, 20_000)
    measured = kernels()
    times: dict[str, list[float]] = {name: [] for name in measured}
    for _ in range(rounds):
        for name, (kernel, _) in measured.items():
            started = time.thread_time_ns()
            kernel(calls)
            times[name].append((time.thread_time_ns() - started) / calls)
    baseline = statistics.median(times["call"])
    found = {
        name: {
            "median_ns": statistics.median(times[name]),
            "least_ns": min(times[name]),
            "most_ns": max(times[name]),
            "ratio_to_call": statistics.median(times[name]) / baseline,
            "bar_ns": bar,
        }
        for name, (_, bar) in measured.items()
    }
    single = time_single_calls(2_000 if options.small else 200_000)
    lines = [
        [name, each["median_ns"], each["least_ns"], each["most_ns"], each["ratio_to_call"], each["bar_ns"]]
        for name, each in found.items()
    ]
    print(f"{rounds} rounds of {calls} calls each, interleaved, CPU time")
    print(table(["ns per call", "median", "least", "most", "x call", "bar"], lines))
    print(
        "predict + place, each call timed, clock subtracted: "
        + ", ".join(f"{name} {value:.0f} ns" for name, value in single.items())
    )
    return {"rounds": rounds, "calls": calls, "kernels": found, "place_single_ns": single}


def time_single_calls(calls: int) -> dict[str, float]:
    """Percentiles of single calls, less the median cost of reading the clock."""
    placer = make_placer(SHARDS, PROFILES)
    clock = float(np.median(loops.time_clock(calls)))
    times = loops.time_place(placer, PROFILES, calls)
    return {f"p{share}": float(np.percentile(times, share)) - clock for share in (50, 99, 99.9)}
