"""The picture of a run: what each statement costs, as ratios of throughput, with the bars that are set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

ONE, PLAIN, BAR = "#2f6db3", "#d08a3c", "#b03030"


def draw(compared: list[dict[str, Any]], path: Path) -> None:
    """Write the PNG."""
    figure, axis = plt.subplots(figsize=(10, 0.55 * len(compared) + 1.5), layout="constrained")
    for place, made in enumerate(reversed(compared)):
        _draw_ratio(axis, place + (0.2 if made["plain_ratio"] else 0.0), made["throughput_ratio"], ONE)
        at = place
        if made["plain_ratio"]:
            at = place - 0.2
            _draw_ratio(axis, at, made["plain_ratio"], PLAIN)
        if made["bar"] is not None:
            axis.plot([made["bar"]] * 2, [at - 0.3, at + 0.3], color=BAR)
    axis.set_yticks(range(len(compared)), [made["kind"] for made in reversed(compared)])
    axis.axvline(1.0, color="#444", linewidth=0.8)
    axis.set_title(
        "throughput: one PostgreSQL / Foreshard (blue), plain through Foreshard / this (orange); red: the bar",
        loc="left",
        fontsize=9,
    )
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_ratio(axis: Any, place: float, ratio: dict[str, float], colour: str) -> None:
    """A bar of the median, with least and most as whiskers."""
    median = ratio["median"]
    spread = [[median - ratio["least"]], [ratio["most"] - median]]
    axis.barh(place, median, 0.36, xerr=spread, color=colour, ecolor="#444", capsize=2)
