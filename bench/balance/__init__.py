"""How even shards are under each placement policy, beside the offline oracle and the indivisible bound.

Simulated shards, real kernels: predictions by the real learner (and with made-up errors), placement by the real placer.
The figure is max/mean of the cost executed on the shards over the whole run, median and worst over the seeds. Then the
same streams, made cheap, on four real shards with everything real (real.py). And sticky load that drifts, which no
placement can foresee, under the real rebalancer: simulated (drift.py), and on four real shards (drifting.py).
"""

from __future__ import annotations

import statistics
from typing import Any

from bench import Options
from bench.balance import plots
from bench.balance.drift import print_drift, run_drift
from bench.balance.drifting import print_drifting, run_drifting
from bench.balance.predictions import KINDS, predict_costs
from bench.balance.real import print_real, run_real
from bench.balance.simulate import run_oracles, run_policy
from bench.balance.workload import MIXES, Workload, make_workload
from bench.report import table
from foreshard.proxy.placement import POLICIES

ORACLES = ("offline LPT", "indivisible bound")
ERROR_MIXES = ("B", "E")  # on which made-up prediction errors are tried
ERROR_SHARDS = 16


def run(options: Options) -> dict[str, Any]:
    """Simulate, run on real shards, print, plot."""
    result = run_simulated(options)
    print_tables(result)
    result["drift"] = run_drift(options)
    print_drift(result["drift"])
    result["drifting"] = run_drifting(options)
    print_drifting(result["drifting"])
    result["failures"] = result["drifting"]["failures"]
    result["real"] = run_real(options)
    print_real(result["real"])
    result["figures"] = plots.draw(result, options.out)
    return result


def run_simulated(options: Options) -> dict[str, Any]:
    """All mixes and policies; `values[mix][shards][policy]` is a list with one max/mean per seed."""
    events, preloaded = (4_000, 400) if options.small else (200_000, 20_000)
    seeds = [options.seed + i for i in range(2 if options.small else 5)]
    shard_counts = [4, 16] if options.small else [4, 16, 64]
    values: dict[str, Any] = {
        mix: {str(count): {name: [] for name in (*POLICIES, *ORACLES)} for count in shard_counts} for mix in MIXES
    }
    rows: dict[str, dict[str, list[float]]] = {mix: {policy: [] for policy in POLICIES} for mix in MIXES}
    errors: dict[str, Any] = {mix: {kind: {policy: [] for policy in POLICIES} for kind in KINDS} for mix in ERROR_MIXES}
    for mix in MIXES:
        for seed in seeds:
            workload = make_workload(mix, seed, events, preloaded)
            predicted = predict_costs(workload, "learned")
            for count in shard_counts:
                found = values[mix][str(count)]
                for policy in POLICIES:
                    outcome = run_policy(workload, predicted, policy, count)
                    found[policy].append(outcome.max_over_mean)
                    if count == ERROR_SHARDS:
                        rows[mix][policy].append(outcome.rows_max_over_mean)
                for name, value in run_oracles(workload, count).items():
                    found[name].append(value)
            if mix in ERROR_MIXES:
                add_errors(workload, errors[mix])
    return {
        "events": events,
        "preloaded": preloaded,
        "seeds": seeds,
        "shards": shard_counts,
        "values": values,
        "rows": rows,
        "errors": errors,
    }


def add_errors(workload: Workload, found: dict[str, dict[str, list[float]]]) -> None:
    """Add one seed's figures for every kind of prediction."""
    for kind in KINDS:
        told = predict_costs(workload, kind)
        for policy in POLICIES:
            found[kind][policy].append(run_policy(workload, told, policy, ERROR_SHARDS).max_over_mean)


def summary(values: list[float]) -> str:
    """Median over the seeds, and the worst."""
    return f"{statistics.median(values):.2f} ({max(values):.2f})"


def print_tables(result: dict[str, Any]) -> None:
    """Median and worst for every mix, policy and number of shards; then rows and prediction errors."""
    print(f"{result['events']} events after {result['preloaded']} roots, seeds {result['seeds']}, predictions learned")
    print("max/mean of executed cost: median (worst) over the seeds")
    names = (*POLICIES, *ORACLES)
    for count in result["shards"]:
        lines = [[name, *(summary(result["values"][mix][str(count)][name]) for mix in MIXES)] for name in names]
        print(f"\n{table([f'{count} shards', *MIXES], lines)}")
    lines = [[policy, *(summary(result["rows"][mix][policy]) for mix in MIXES)] for policy in POLICIES]
    print(f"\n{table([f'root rows, {ERROR_SHARDS} shards', *MIXES], lines)}")
    for mix in ERROR_MIXES:
        lines = [[policy, *(summary(result["errors"][mix][kind][policy]) for kind in KINDS)] for policy in POLICIES]
        print(f"\n{table([f'mix {mix}, {ERROR_SHARDS} shards, predictions', *KINDS], lines)}")
