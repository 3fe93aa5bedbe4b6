"""What the proxies on one set of shards tell each other of loads, and what it adds up to.

What is told counts from the beginning on, so that telling twice, or hearing late, does no harm. Costs in seconds of a
shard. What one proxy tells of a shard means little alone: a controller also measures, and takes out of what is pending,
what others have placed. Only the sums are true.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from foreshard._core.shared import SharedState


class Told(NamedTuple):
    """What one proxy tells: of each shard by name, in its own order, which may be another than ours."""

    shards: Sequence[str]
    measured: Sequence[float]
    pending: Sequence[float]  # placed - settled; below 0 when it measured what others had placed
    rows: Sequence[float]


class Own(NamedTuple):
    """What this proxy could tell now, and `placed` of each shard as of the same moment."""

    told: Told
    placed: Sequence[float]


class OthersLoad(NamedTuple):
    """Sums over the others, of one shard."""

    measured: float = 0.0
    pending: float = 0.0
    rows: float = 0.0


def own_load(state: SharedState, names: Sequence[str]) -> Own:
    """What this proxy knows by itself; `names` are those of the shards."""
    shards = state.shards()
    told = Told(
        names,
        [shard.measured for shard in shards],
        [shard.placed - shard.settled for shard in shards],
        [shard.rows for shard in shards],
    )
    return Own(told, [shard.placed for shard in shards])


def add_up(others: Iterable[Told], names: Sequence[str]) -> list[OthersLoad]:
    """Sums by shard, in the order of `names`; shards that are not among them are somebody else's business."""
    sums = dict.fromkeys(names, OthersLoad())
    for told in others:
        for name, *figures in zip(told.shards, told.measured, told.pending, told.rows, strict=False):
            if name in sums:
                sums[name] = OthersLoad(*(old + new for old, new in zip(sums[name], figures, strict=True)))
    return [sums[name] for name in names]


def take_over(state: SharedState, own: Own, others: Sequence[Told], names: Sequence[str], now_s: float) -> None:
    """The others have told this, and have been told `own`."""
    for shard, (load, placed, rows) in enumerate(zip(add_up(others, names), own.placed, own.told.rows, strict=True)):
        state.set_others(shard, *load, placed, rows)
    state.set_proxies(1 + len(others), now_s)


def let_go(state: SharedState) -> None:
    """Nobody has been heard for too long: what was measured is so still; of what was pending nobody knows more."""
    for index, shard in enumerate(state.shards()):
        state.set_others(index, shard.others_measured, 0.0, shard.others_rows, shard.placed, shard.rows)
    state.set_proxies(1, state.heard_s)
