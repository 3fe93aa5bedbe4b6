"""The picture of a run: CPU per transaction, throughput and latency by mode and clients, and what routing adds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

COLOURS = {"direct": "#9a9a9a", "pgbouncer": "#d08a3c", "foreshard": "#2f6db3"}
PANELS = (
    ("cpu_us", "CPU µs per transaction of the proxy", ("pgbouncer", "foreshard")),
    ("transactions_per_s", "transactions per second", ("direct", "pgbouncer", "foreshard")),
    ("p50_us", "median latency, µs (log)", ("direct", "pgbouncer", "foreshard")),
    ("p99_us", "p99 latency, µs (log)", ("direct", "pgbouncer", "foreshard")),
)


def draw(cases: Sequence[dict[str, Any]], kinds: Sequence[dict[str, Any]], path: Path) -> None:
    """Write the PNG."""
    figure, axes = plt.subplots(len(PANELS) + 1, 1, figsize=(11, 17), layout="constrained")
    for axis, (name, title, peers) in zip(axes, PANELS, strict=False):
        _draw_bars(axis, cases, name, peers)
        axis.set_title(title, loc="left")
        if "log" in title:
            axis.set_yscale("log")
    axes[0].legend(frameon=False)
    _draw_kinds(axes[-1], kinds)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_bars(axis: Any, cases: Sequence[dict[str, Any]], name: str, peers: Sequence[str]) -> None:
    """Medians as bars, least and most as whiskers."""
    width = 0.8 / len(peers)
    for index, peer in enumerate(peers):
        places, medians, below, above = [], [], [], []
        for place, case in enumerate(cases):
            if peer in case["figures"]:
                found = case["figures"][peer][name]
                places.append(place + (index - (len(peers) - 1) / 2) * width)
                medians.append(found["median"])
                below.append(found["median"] - found["least"])
                above.append(found["most"] - found["median"])
        axis.bar(places, medians, width, yerr=[below, above], label=peer, color=COLOURS[peer], ecolor="#444", capsize=2)
    axis.set_xticks(range(len(cases)), [f"{case['mode']}\n{case['clients']} clients" for case in cases])
    axis.spines[["top", "right"]].set_visible(False)


def _draw_kinds(axis: Any, kinds: Sequence[dict[str, Any]]) -> None:
    compared = [(kind, other, ratio) for kind in kinds for other, ratio in kind["cpu_ratios"].items()]
    names = [f"{kind['kind']} ({kind['mode']}) against {other.split(', ', 1)[1]}" for kind, other, _ in compared]
    axis.barh(names, [ratio["median"] for _, _, ratio in compared], color=COLOURS["foreshard"])
    axis.axvline(1.0, color="#444", linewidth=0.8)
    axis.axvline(1.2, color="#b03030", linewidth=0.8, linestyle="--")
    axis.set_title("CPU per transaction of routed and placed statements, as a ratio; dashed: the goal", loc="left")
    axis.spines[["top", "right"]].set_visible(False)
