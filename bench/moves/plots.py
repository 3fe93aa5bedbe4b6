"""The picture of a run: the longest write to each moving bucket by its rows, and everybody's throughput over time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from bench.moves.world import Size

COLOURS = {Size.SMALL: "#2f6db3", Size.MIDDLE: "#d08a3c", Size.LARGE: "#b03030"}
QUIET = "#9a9a9a"
WIDTH_MIN_S = 0.05  # a shorter move could not be seen


def draw(result: dict[str, Any], path: Path) -> None:
    """Write the PNG."""
    figure, (writes, rates, delays) = plt.subplots(
        3, 1, figsize=(12, 12), layout="constrained", height_ratios=(1.3, 1, 1)
    )
    _draw_writes(writes, result["moves"])
    line = result["timeline"]
    rates.plot(line["at_s"], line["per_s"], color="#222", linewidth=0.9)
    rates.axhline(result["rate"], color=QUIET, linewidth=0.9, linestyle="--")
    rates.set_ylim(0, max([result["rate"], *line["per_s"]]) * 1.1)
    rates.set_title("acts of the other clients per second; dashed: what is asked of them", loc="left")
    delays.plot(line["at_s"], line["p99_ms"], color="#222", linewidth=0.9)
    delays.set_yscale("log")
    delays.set_title("their p99, ms (log)", loc="left")
    for axis in (rates, delays):
        _mark_moves(axis, result)
        axis.set_xlim(0, line["at_s"][-1] if line["at_s"] else 1)
        axis.set_xlabel("s; shaded: a bucket moves, in the colour of its size")
    for axis in (writes, rates, delays):
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_writes(axis: Any, moves: list[dict[str, Any]]) -> None:
    """A dot per move; crosses: a time as long without moves."""
    for size in Size:
        done = [move for move in moves if move["size"] == size.value and move["state"] == "done"]
        rows = [max(move["rows"], 1) for move in done]
        quiet = [move["write_longest_quiet_s"] * 1e3 for move in done]
        axis.plot(rows, quiet, "x", color=QUIET, markersize=4)
        axis.plot(
            rows, [move["write_longest_s"] * 1e3 for move in done], "o", color=COLOURS[size], markersize=4, alpha=0.7,
            label=f"{size.value}: {len(done)} moves",
        )  # fmt: skip
    axis.plot([], [], "x", color=QUIET, markersize=4, label="a time as long without moves")
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("rows of the bucket (log)")
    axis.set_title("longest write of a client to the bucket while it moved, ms (log)", loc="left")
    axis.set_ylim(top=axis.get_ylim()[1] * 2)  # room for the legend
    axis.legend(frameon=False, loc="upper left", ncols=4)


def _mark_moves(axis: Any, result: dict[str, Any]) -> None:
    zero_s = result["timeline"]["zero_s"]
    for move in result["moves"]:
        at_s = move["began_s"] - zero_s
        width_s = max(move["took_s"], WIDTH_MIN_S)
        axis.axvspan(at_s, at_s + width_s, color=COLOURS[Size(move["size"])], alpha=0.3, linewidth=0)
