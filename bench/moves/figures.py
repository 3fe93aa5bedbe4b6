"""Figures of a run: how long writers of a moving bucket waited, how others fared, how fast large buckets moved."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.moves.load import WEIGHTS
from bench.moves.phases import Phase, Run
from bench.moves.world import Size

Floats = npt.NDArray[np.float64]
STEP_S = 0.5  # of the timeline
FIT_MOVES_MIN = 5
AFTER_S = 0.05  # what was begun so soon after a move may still have waited for it


def quantiles(values: Sequence[float] | Floats) -> dict[str, float] | None:
    """Median, p99 and the most, in ms; None when there are no values."""
    if not len(values):
        return None
    p50, p99 = np.percentile(values, [50, 99]) * 1e3
    return {"p50_ms": float(p50), "p99_ms": float(p99), "most_ms": float(np.max(values)) * 1e3}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": float(np.median(values)), "least": float(np.min(values)), "most": float(np.max(values))}


class Probes:
    """The probe's writes."""

    def __init__(self, run: Run) -> None:
        self.began_s = np.array(run.probed.began_s)
        self.took_s = np.array(run.probed.took_s)

    def longest_s(self, began_s: float, ended_s: float) -> float:
        """The longest of the writes of which some part lies in this time; 0 when there are none."""
        inside = (self.began_s < ended_s) & (self.began_s + self.took_s > began_s)
        return float(np.max(self.took_s[inside], initial=0.0))


def pauses(run: Run, seed: int) -> list[dict[str, Any]]:
    """Per move: its longest write, and for comparison that of a time as long without moves."""
    probes, draw = Probes(run), random.Random(seed)
    quiet = [phase for phase in run.phases if not phase.is_moving]
    found = []
    for move in run.moves:
        length_s = move.ended_s - move.begun_s + AFTER_S
        phase = draw.choice(quiet)
        at_s = phase.began_s + draw.uniform(0, max(phase.ended_s - phase.began_s - length_s, 0))
        found.append(
            {
                "bucket": move.bucket,
                "size": move.size.value,
                "state": move.state,
                "way": move.way,
                "rows": move.rows,
                "rounds": move.rounds,
                "tries": move.tries,
                "began_s": move.begun_s,
                "took_s": move.ended_s - move.begun_s,
                "mover_pause_s": move.pause_s,
                "write_longest_s": probes.longest_s(move.begun_s, move.ended_s + AFTER_S),
                "write_longest_quiet_s": probes.longest_s(at_s, min(at_s + length_s, phase.ended_s)),
            }
        )
    return found


def by_size(moves: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per size: how many, by which way, what their writers saw."""
    found = []
    for size in Size:
        done = [move for move in moves if move["size"] == size.value and move["state"] == "done"]
        if done:
            found.append(
                {
                    "size": size.value,
                    "moves": len(done),
                    "ways": {way: sum(move["way"] == way for move in done) for way in ("small", "large")},
                    "rows": spread([move["rows"] for move in done]),
                    "rows_in_all": sum(move["rows"] for move in done),
                    "tried_again": sum(move["tries"] > 1 for move in done),
                    "took_s": spread([move["took_s"] for move in done]),
                    "write_longest": quantiles([move["write_longest_s"] for move in done]),
                    "write_longest_quiet": quantiles([move["write_longest_quiet_s"] for move in done]),
                    "mover_pause": quantiles([move["mover_pause_s"] for move in done]),
                }
            )
    return found


def pause_of_copied(moves: list[dict[str, Any]]) -> dict[str, float] | None:
    """How the mover's pause grows with the rows of buckets that were copied before; None for too few of them."""
    copied = [move for move in moves if move["way"] == "large" and move["state"] == "done"]
    if len({move["rows"] for move in copied}) < FIT_MOVES_MIN:
        return None
    slope, fixed = np.polyfit([move["rows"] for move in copied], [move["mover_pause_s"] * 1e3 for move in copied], 1)
    return {"fixed_ms": float(fixed), "per_10000_rows_ms": float(slope) * 10_000}


class Acts:
    """What all clients but the probe did."""

    def __init__(self, run: Run) -> None:
        self.ended_s = np.array(run.done.ended_s)
        self.took_s = np.array(run.done.took_s)
        self.since_due_s = np.array(run.done.since_due_s)
        self.deeds = np.array(run.done.deeds)

    def within(self, spans: Iterable[tuple[float, float]]) -> npt.NDArray[np.bool_]:
        """Which of them ended in one of these times."""
        inside = np.zeros(len(self.ended_s), dtype=bool)
        for began_s, ended_s in spans:
            inside |= (self.ended_s >= began_s) & (self.ended_s < ended_s)
        return inside


def of_phase(acts: Acts, phase: Phase) -> dict[str, Any]:
    """Throughput and latency in one phase."""
    inside = acts.within([(phase.began_s, phase.ended_s)])
    return {
        "is_moving": phase.is_moving,
        "began_s": phase.began_s,
        "ended_s": phase.ended_s,
        "per_s": int(np.sum(inside)) / (phase.ended_s - phase.began_s),
        **(quantiles(acts.took_s[inside]) or {}),
        "p99_since_due_ms": float(np.percentile(acts.since_due_s[inside], 99)) * 1e3,
    }


def others(run: Run) -> dict[str, Any]:
    """Phases with moves against the phase without before each."""
    acts = Acts(run)
    return {**compared(acts, run.phases), "during": during(run, acts), "deeds": of_deeds(run, acts)}


def paced(run: Run) -> dict[str, Any]:
    """The same where moves carry no more than the rebalancer lets them."""
    seconds = sum(phase.ended_s - phase.began_s for phase in run.paced_phases if phase.is_moving)
    return {
        **compared(Acts(run), run.paced_phases),
        "moves": len(run.paced_moves),
        "rows": sum(move.rows for move in run.paced_moves),
        "seconds": seconds,
    }


def compared(acts: Acts, pairs: Sequence[Phase]) -> dict[str, Any]:
    """Phases without moves, each with the one with moves behind it."""
    phases = [of_phase(acts, phase) for phase in pairs]
    quiet, moving = phases[0::2], phases[1::2]
    figures = {}
    for name in ("per_s", "p50_ms", "p99_ms", "most_ms", "p99_since_due_ms"):
        without, beside = ([phase[name] for phase in some] for some in (quiet, moving))
        figures[name] = {
            "without": float(np.median(without)),
            "beside": float(np.median(beside)),
            "ratio": spread([more / less for more, less in zip(beside, without, strict=True)]),
        }
    return {"phases": phases, "figures": figures}


def during(run: Run, acts: Acts) -> dict[str, Any]:
    """Latency of what ended while a bucket of each size moved, and without moves."""
    times: dict[str, list[tuple[float, float]]] = {
        "none": [(phase.began_s, phase.ended_s) for phase in run.phases if not phase.is_moving]
    }
    for move in run.moves:
        times.setdefault(move.size.value, []).append((move.begun_s, move.ended_s + AFTER_S))
    return {name: quantiles(acts.took_s[acts.within(spans)]) for name, spans in times.items()}


def of_deeds(run: Run, acts: Acts) -> dict[str, Any]:
    """Latency of each kind of act in phases without moves and with."""
    found: dict[str, Any] = {}
    for is_moving, word in ((False, "without"), (True, "beside")):
        inside = acts.within((phase.began_s, phase.ended_s) for phase in run.phases if phase.is_moving is is_moving)
        for name in WEIGHTS:
            found.setdefault(name, {})[word] = quantiles(acts.took_s[inside & (acts.deeds == name)])
    return found


def speeds(run: Run) -> dict[str, Any] | None:
    """Rows per second of large moves against COPY of the same buckets; None when there were none."""
    large = [move for move in run.moves if move.size is Size.LARGE and move.state == "done"]
    pairs = [
        {
            "bucket": move.bucket,
            "rows": move.rows,
            "move_rows_per_s": move.rows / (move.ended_s - move.begun_s),
            "copy_rows_per_s": copied.rows / copied.took_s,
        }
        for move, copied in _paired(large, run.copies)
    ]
    if not pairs:
        return None
    return {
        "pairs": pairs,
        "move_rows_per_s": spread([pair["move_rows_per_s"] for pair in pairs]),
        "copy_rows_per_s": spread([pair["copy_rows_per_s"] for pair in pairs]),
        "ratio": spread([pair["move_rows_per_s"] / pair["copy_rows_per_s"] for pair in pairs]),
    }


def _paired(moves: list[Any], copies: list[Any]) -> list[tuple[Any, Any]]:
    """Each move with the COPY of its bucket of the same phase: the n-th with the n-th."""
    left = list(copies)
    found = []
    for move in moves:
        copied = next((copied for copied in left if copied.bucket == move.bucket), None)
        if copied is not None:
            left.remove(copied)
            found.append((move, copied))
    return found


def timeline(run: Run) -> dict[str, Any]:
    """Acts per second and their p99 over the run, by half seconds; times count from the first phase."""
    zero_s = run.phases[0].began_s
    ended_s, took_s = np.array(run.done.ended_s) - zero_s, np.array(run.done.took_s)
    edges = np.arange(0.0, run.phases[-1].ended_s - zero_s, STEP_S)
    places = np.digitize(ended_s, edges) - 1
    steps = [took_s[places == place] for place in range(len(edges) - 1)]
    return {
        "zero_s": zero_s,
        "at_s": edges[:-1].tolist(),
        "per_s": [len(step) / STEP_S for step in steps],
        "p99_ms": [float(np.percentile(step, 99)) * 1e3 if len(step) else None for step in steps],
    }
