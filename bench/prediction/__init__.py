"""How far predicted cost is from the noise-free cost: a bake-off of predictors on a stationary synthetic world.

Each call is predicted before it is measured. Errors are against the noise-free cost: q-error = max(predicted / true,
true / predicted), WAPE = sum of absolute errors over the sum of true costs. Steady state is the second half of the
calls, cold the first 2000. The bars are those of the design for a stationary world.
"""

from __future__ import annotations

import itertools
import statistics
from typing import Any

import numpy as np

from bench import Options
from bench.prediction import plots
from bench.prediction.contestants import CONTESTANTS, Field, Ours
from bench.prediction.world import FUNCTIONS, Events, Floats, make_events
from bench.report import table

BARS = {"q_median": 1.10, "q_p95": 1.5, "wape": 0.10}
PHASES = ("steady", "cold")
NAMES = {"q_median": "q median", "q_p95": "q p95", "wape": "WAPE"}


def run(options: Options) -> dict[str, Any]:
    """Run all contestants on all seeds, print, plot."""
    count, cold = (3_000, 500) if options.small else (200_000, 2_000)
    seeds = [options.seed + index for index in range(2 if options.small else 5)]
    worlds = [run_world(seed, count, cold) for seed in seeds]
    result: dict[str, Any] = {
        "functions": FUNCTIONS,
        "events": count,
        "cold_events": cold,
        "seeds": seeds,
        "bars": BARS,
        "errors": {
            name: {phase: _columns([world["errors"][name][phase] for world in worlds]) for phase in PHASES}
            for name in CONTESTANTS
        },
        "kinds": {
            kind: _columns([world["kinds"][kind] for world in worlds if kind in world["kinds"]])
            for kind in ("linear", "n log n", "quadratic")
        },
        "coverage": [world["coverage"] for world in worlds],
        "resets": [world["resets"] for world in worlds],
        "degraded": [world["degraded"] for world in worlds],
    }
    result["met"] = {
        key: statistics.median(result["errors"]["ours"]["steady"][key]) <= bar for key, bar in BARS.items()
    }
    print_tables(result)
    result["figures"] = [
        plots.draw_errors(result, options.out / "prediction-errors.png"),
        plots.draw_learning(worlds[0]["curves"], seeds[0], options.out / "prediction-learning.png"),
    ]
    return result


def run_world(seed: int, count: int, cold: int) -> dict[str, Any]:
    """All contestants on one world."""
    events = make_events(seed, count)
    steady = np.arange(count) >= count // 2
    kinds = np.asarray(events.kinds)[events.function]
    predicted = {name: run_contestant(name, events) for name in CONTESTANTS}
    bounds, field = run_ours_with_bounds(events)
    learners = [each.learner for each in field.each if isinstance(each, Ours)]
    return {
        "errors": {
            name: {
                "steady": summarize(values[steady], events.cost[steady]),
                "cold": summarize(values[:cold], events.cost[:cold]),
            }
            for name, values in predicted.items()
        },
        "kinds": {
            kind: summarize(predicted["ours"][own], events.cost[own])
            for kind in sorted(set(events.kinds))
            if (own := steady & (kinds == kind)).any()
        },
        "coverage": float(np.mean(events.measured[steady] <= bounds[steady])),
        "resets": sum(learner.resets() for learner in learners),
        "degraded": sum(learner.degraded for learner in learners),
        "curves": {name: learning_curve(events, values) for name, values in predicted.items()},
    }


def run_contestant(name: str, events: Events) -> Floats:
    """Prediction of every call before it is measured."""
    field = Field(CONTESTANTS[name], len(events.kinds))
    predicted = np.empty(len(events.cost))
    calls = zip(events.function.tolist(), events.features.tolist(), events.measured.tolist(), strict=True)
    for index, (function, x, measured) in enumerate(calls):
        predicted[index] = field.predict(function, x)
        field.update(function, x, measured)
    return predicted


def run_ours_with_bounds(events: Events) -> tuple[Floats, Field]:
    """The 95 % upper bound of every call before it is measured."""
    field = Field(Ours, len(events.kinds))
    bounds = np.empty(len(events.cost))
    calls = zip(events.function.tolist(), events.features.tolist(), events.measured.tolist(), strict=True)
    for index, (function, x, measured) in enumerate(calls):
        each = field.each[function]
        assert isinstance(each, Ours)
        bounds[index] = each.learner.upper_bound(x)
        field.update(function, x, measured)
    return bounds, field


def q_errors(predicted: Floats, true: Floats) -> Floats:
    """How many times too high or too low each prediction is."""
    quotient: Floats = predicted / true
    return np.maximum(quotient, 1 / quotient)


def summarize(predicted: Floats, true: Floats) -> dict[str, float]:
    """The three figures of one phase."""
    q = q_errors(predicted, true)
    return {
        "q_median": float(np.median(q)),
        "q_p95": float(np.quantile(q, 0.95)),
        "wape": float(np.abs(predicted - true).sum() / true.sum()),
    }


def learning_curve(events: Events, predicted: Floats) -> dict[str, list[float]]:
    """95th percentile of q-errors over all functions by how often the function had been called before."""
    order = np.argsort(events.function, kind="stable")
    function = events.function[order]
    starts = np.flatnonzero(np.r_[True, function[1:] != function[:-1]])
    before = np.empty(len(order), dtype=np.int64)
    before[order] = np.arange(len(order)) - np.repeat(starts, np.diff(np.r_[starts, len(order)]))
    q = q_errors(predicted, events.cost)
    edges = [0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377, 610, 1000]
    curve: dict[str, list[float]] = {"calls": [], "q_p95": []}
    for low, high in itertools.pairwise(edges):
        chosen = q[(before >= low) & (before < high)]
        if len(chosen):
            curve["calls"].append(float(low))
            curve["q_p95"].append(float(np.quantile(chosen, 0.95)))
    return curve


def print_tables(result: dict[str, Any]) -> None:
    """Median and worst over the seeds, for every contestant and phase; ours by kind of cost; the bars."""
    print(f"{result['functions']} functions, {result['events']} calls, seeds {result['seeds']}: median (worst)")
    for phase in PHASES:
        lines = [[name, *_cells(result["errors"][name][phase])] for name in CONTESTANTS]
        calls = "second half" if phase == "steady" else f"first {result['cold_events']} calls"
        print(f"\n{table([f'{phase}: {calls}', *NAMES.values()], lines)}")
    lines = [[kind, *_cells(found)] for kind, found in result["kinds"].items() if found["wape"]]
    print(f"\n{table(['ours, steady, cost that is', *NAMES.values()], lines)}")
    bars = ", ".join(
        f"{NAMES[key]} <= {bar:g}: {'met' if result['met'][key] else 'MISSED'}" for key, bar in BARS.items()
    )
    print(f"\nbars for ours, steady, median over seeds: {bars}")
    print(
        f"coverage of the 95 % bound: {', '.join(f'{value:.3f}' for value in result['coverage'])};"
        f" drift resets: {result['resets']}; degraded at the end: {result['degraded']}"
    )


def _columns(rows: list[dict[str, float]]) -> dict[str, list[float]]:
    return {key: [row[key] for row in rows] for key in NAMES}


def _cells(found: dict[str, list[float]]) -> list[str]:
    shown = {key: "{:.1%}" if key == "wape" else "{:.3f}" for key in NAMES}
    return [
        f"{shown[key].format(statistics.median(found[key]))} ({shown[key].format(max(found[key]))})" for key in NAMES
    ]
