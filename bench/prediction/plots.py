"""Figures of the prediction bench."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt

COLORS = {
    "EWMA": "#8a8a2e",
    "log EWMA": "#4d8f5b",
    "SGD, 3 features": "#b5542d",
    "textbook RLS": "#7a4a99",
    "ours": "#1b6ca8",
}
PANELS = (("q_median", "median q-error"), ("q_p95", "95th percentile of q-error"), ("wape", "WAPE"))

TICKS = {"q_median": (1, 1.1, 1.5, 2, 3), "q_p95": (1, 1.5, 2, 5, 20, 100), "wape": (0.01, 0.03, 0.1, 0.3, 1, 10)}


def draw_errors(result: dict[str, Any], path: Path) -> str:
    """A panel per figure: bars by contestant, steady and cold, a dot per seed, the bar to meet as a line."""
    figure, panels = plt.subplots(1, len(PANELS), figsize=(13, 4.5))
    for axes, (key, label) in zip(panels, PANELS, strict=True):
        base = 0.01 if key == "wape" else 1.0
        for place, name in enumerate(COLORS):
            for shift, phase in ((-0.2, "steady"), (0.2, "cold")):
                values = result["errors"][name][phase][key]
                height = max(statistics.median(values) - base, 0)
                alpha = 1.0 if phase == "steady" else 0.45
                axes.bar(place + shift, height, 0.38, bottom=base, color=COLORS[name], alpha=alpha)
                axes.plot([place + shift] * len(values), values, ".", color="black", markersize=4)
        axes.axhline(result["bars"][key], color="black", linewidth=0.8, linestyle="--")
        axes.set_yscale("log")
        axes.set_ylim(bottom=base)
        ticks = (
            [0.01, 0.03, 0.1, 0.3, 1]
            if key == "wape"
            else [1, 1.1, 1.5, 2, 3]
            if key == "q_median"
            else [1, 2, 5, 20, 100]
        )
        axes.set_yticks(ticks, [f"{tick:.0%}" if key == "wape" else f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set_xticks(range(len(COLORS)), list(COLORS), rotation=25, ha="right")
        axes.set_title(label)
    figure.suptitle(
        f"Predicted against noise-free cost: {result['functions']} functions, {result['events']} calls,"
        f" {len(result['seeds'])} seeds; solid: steady, pale: cold, dot: a seed, dashed: the bar for steady",
        fontsize=10,
    )
    return _save(figure, path)


def draw_learning(curves: dict[str, dict[str, list[float]]], seed: int, path: Path) -> str:
    """How fast each contestant learns: error against the calls a function had before."""
    figure, axes = plt.subplots(figsize=(7, 4.5))
    for name, curve in curves.items():
        axes.plot(
            [calls + 1 for calls in curve["calls"]],
            curve["q_p95"],
            marker="o",
            markersize=3,
            color=COLORS[name],
            label=name,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_yticks([1, 1.5, 2, 3, 5, 10, 30, 100], ["1", "1.5", "2", "3", "5", "10", "30", "100"])
    axes.set_xticks([1, 10, 100, 1000], ["1", "10", "100", "1000"])
    axes.minorticks_off()
    axes.axhline(1.5, color="black", linewidth=0.8, linestyle="--")
    axes.grid(alpha=0.3)
    axes.set_xlabel("this call of the function (1 = its first)")
    axes.set_ylabel("95th percentile of q-error, all functions")
    axes.set_title(f"Learning from the first call on (seed {seed})")
    axes.legend(fontsize=8)
    return _save(figure, path)


def _save(figure: Any, path: Path) -> str:
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path.name
