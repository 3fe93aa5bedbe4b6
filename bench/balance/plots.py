"""Figures of the balance bench."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt

COLORS = {
    "bounded": "#1b6ca8",
    "key-hash": "#b5542d",
    "cost-hash": "#7a4a99",
    "two-choices": "#4d8f5b",
    "least-loaded": "#8a8a2e",
    "offline LPT": "#555555",
    "indivisible bound": "#bbbbbb",
}
HASH_FIGURES = ("hash_low", "hash_median", "hash_high")
TOP = 3.0  # what is above is cut, and said so in numbers


def draw(result: dict[str, Any], out: Path) -> list[str]:
    """Write the PNG files; answers their names."""
    shards = "16" if 16 in result["shards"] else str(result["shards"][-1])
    return [
        draw_mixes(result, shards, out / "balance-mixes.png"),
        draw_scaling(result, out / "balance-shards.png"),
        draw_drift(result["drift"], out / "balance-drift.png"),
        draw_drifting(result["drifting"], out / "balance-drifting.png"),
        draw_real(result["real"], out / "balance-real.png"),
    ]


def draw_mixes(result: dict[str, Any], shards: str, path: Path) -> str:
    """Bars by mix and policy at one number of shards: median, and a dot per seed."""
    mixes = list(result["values"])
    names = list(COLORS)
    figure, axes = plt.subplots(figsize=(11, 5))
    width = 0.8 / len(names)
    for position, name in enumerate(names):
        places = [index + (position - (len(names) - 1) / 2) * width for index in range(len(mixes))]
        medians = [statistics.median(result["values"][mix][shards][name]) for mix in mixes]
        axes.bar(places, [value - 1 for value in medians], width * 0.92, bottom=1, color=COLORS[name], label=name)
        axes.hlines(
            medians, [place - width / 2 for place in places], [place + width / 2 for place in places], COLORS[name]
        )
        for place, mix, median in zip(places, mixes, medians, strict=True):
            seen = [value for value in result["values"][mix][shards][name] if value <= TOP]
            axes.plot([place] * len(seen), seen, ".", color="black", markersize=3)
            if median > TOP:
                axes.text(place, TOP - 0.02, f"{median:.1f}", rotation=90, ha="center", va="top", color="white", size=8)
    axes.set_ylim(0.98, TOP)
    axes.set_xticks(range(len(mixes)), [f"mix {mix}" for mix in mixes])
    axes.set_ylabel("max/mean of executed cost (1 = even)")
    axes.set_title(f"{shards} shards, {result['events']} events, {len(result['seeds'])} seeds: median, a dot per seed")
    axes.legend(ncols=4, fontsize=8, loc="upper center")
    return _save(figure, path)


def draw_scaling(result: dict[str, Any], path: Path) -> str:
    """One panel per mix: median max/mean against the number of shards, on logarithmic axes."""
    mixes = list(result["values"])
    figure, panels = plt.subplots(1, len(mixes), figsize=(14, 4), sharey=True)
    for axes, mix in zip(panels, mixes, strict=True):
        for name, color in COLORS.items():
            medians = [statistics.median(result["values"][mix][str(count)][name]) for count in result["shards"]]
            style = "--" if name in ("offline LPT", "indivisible bound") else "-"
            axes.plot(result["shards"], medians, style, marker="o", markersize=3, color=color, label=name)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(result["shards"], [str(count) for count in result["shards"]])
        axes.set_yticks([1, 1.5, 2, 3, 5, 10], ["1", "1.5", "2", "3", "5", "10"])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.set_title(f"mix {mix}")
        axes.set_xlabel("shards")
    panels[0].set_ylabel("max/mean of executed cost")
    panels[0].legend(fontsize=7)
    return _save(figure, path)


def draw_real(result: dict[str, Any], path: Path) -> str:
    """One panel per mix: a dot per run on real shards, and what hashing those rows is expected to give."""
    mixes = sorted({run["mix"] for run in result["runs"]})
    figure, panels = plt.subplots(1, len(mixes), figsize=(5.5 * len(mixes), 4.5), sharey=True, squeeze=False)
    for axes, mix in zip(panels[0], mixes, strict=True):
        runs = [run for run in result["runs"] if run["mix"] == mix]
        policies = [name for name in COLORS if any(run["policy"] == name for run in runs)]
        low, median, high = (statistics.median(run[name] for run in runs) for name in HASH_FIGURES)
        axes.axhspan(low, high, color=COLORS["key-hash"], alpha=0.12, label="hashing, eight draws of ten")
        axes.axhline(median, color=COLORS["key-hash"], linestyle=":", label="hashing, median of 1,000 draws")
        bound = statistics.median(run["bound"] for run in runs)
        axes.axhline(bound, color=COLORS["indivisible bound"], label="indivisible bound")
        for place, policy in enumerate(policies):
            found = [run["max_over_mean"] for run in runs if run["policy"] == policy]
            axes.plot([place] * len(found), found, "o", color=COLORS[policy], markersize=8)
            middle = statistics.median(found)
            axes.annotate(f"{middle:.2f}", (place, middle), (8, -3), textcoords="offset points", fontsize=9)
        axes.set_xlim(-0.5, len(policies) - 0.3)
        axes.set_xticks(range(len(policies)), policies, rotation=20)
        axes.set_title(f"mix {mix}: {result['shards']} real shards, {result['events']} events, a dot per run")
    panels[0][0].set_ylabel("max/mean of measured cost (1 = even)")
    panels[0][0].set_ylim(top=panels[0][0].get_ylim()[1] + 0.15)  # room for the legend
    panels[0][0].legend(fontsize=8, loc="upper right")
    return _save(figure, path)


def draw_drift(result: dict[str, Any], path: Path) -> str:
    """Two panels over time: max/mean by epoch, and the share of all rows moved so far; median of the seeds."""
    figure, (above, below) = plt.subplots(2, 1, figsize=(9, 7), sharex=True, height_ratios=(3, 2))
    for color, (signal, runs) in zip(COLORS.values(), result["runs"].items(), strict=False):
        middle = [statistics.median(epoch) for epoch in zip(*(run["ratios"] for run in runs), strict=True)]
        above.plot(range(1, len(middle) + 1), middle, ".-", color=color, label=signal)
        shares = [statistics.median(epoch) for epoch in zip(*(run["moved"] for run in runs), strict=True)]
        if any(shares):
            below.plot(range(1, len(shares) + 1), [100 * sum(shares[: n + 1]) for n in range(len(shares))], color=color)
    above.set_ylabel("max/mean of the demand (1 = even)")
    above.set_title(f"drifting load on {result['shards']} simulated shards, moved by")
    above.legend(fontsize=8)
    below.set_yscale("log")
    below.set_ylabel("rows moved so far, % of all")
    below.set_xlabel(f"epochs of {result['writes']} writes; 5 % of the hottest roots change after each")
    return _save(figure, path)


def draw_drifting(result: dict[str, Any], path: Path) -> str:
    """Over time: max/mean of both arms, each shard's share in each of them, and the rows moved."""
    figure, panels = plt.subplots(4, 1, figsize=(9, 11), sharex=True, height_ratios=(3, 2, 2, 1.5))
    arms, colors = result["arms"], dict(zip(result["arms"], COLORS.values(), strict=False))
    for name, arm in arms.items():
        panels[0].step(arm["times_s"], arm["ratios"], where="post", color=colors[name], label=name)
    panels[0].axhline(result["start"], color="#555555", linestyle=":", label="relieved above it")
    panels[0].set_ylabel("max/mean of the load (1 = even)")
    panels[0].set_title(f"drifting load on {result['shards']} real shards, {result['per_second']:.0f} statements/s")
    panels[0].legend(fontsize=8)
    for axes, (name, arm) in zip(panels[1:3], arms.items(), strict=True):
        for shard, shares in enumerate(zip(*arm["shares"], strict=True)):
            axes.step(arm["times_s"], [100 * share for share in shares], where="post", label=f"s{shard}")
        axes.axhline(100 / result["shards"], color="#bbbbbb")
        axes.set_ylabel(f"% of the load, {name}")
    panels[1].legend(fontsize=8, ncols=4)
    moved = arms["rebalanced"]
    panels[3].step(moved["times_s"], moved["rows"], where="post", color=colors["rebalanced"], label="rows")
    panels[3].set_ylabel("rows moved so far")
    moves = panels[3].twinx()
    moves.step(moved["times_s"], moved["moves"], where="post", color="#555555", linestyle="--")
    moves.set_ylabel("moves (dashed)")
    changed = f"{result['replaced']} of the {result['hot']} hottest roots change"
    panels[3].set_xlabel(f"seconds; at the vertical lines {changed}")
    for axes in panels:
        for epoch in range(1, int(moved["times_s"][-1] / result["epoch_s"]) + 1):
            axes.axvline(epoch * result["epoch_s"], color="#dddddd", zorder=0)
    return _save(figure, path)


def _save(figure: Any, path: Path) -> str:
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path.name
