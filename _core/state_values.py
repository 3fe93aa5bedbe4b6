"""What is read of shared state (shared.pyx), as values."""

from __future__ import annotations

from typing import NamedTuple


class ShardLoad(NamedTuple):
    """What placement knows about one shard; costs in seconds of a shard."""

    weight: float
    up: bool
    measured: float
    placed: float
    settled: float
    rows: float
    load: float
    buckets: int
    others_measured: float
    others_pending: float
    others_rows: float


class ProfileState(NamedTuple):
    """The published model of one profile; lists by resource, weights[resource][feature]."""

    weights: list[list[float]]
    floors: list[float]
    ceilings: list[float]
    means: list[float]
    samples: int
    version: int
    degraded: bool
