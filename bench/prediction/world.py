"""A stationary synthetic world of trigger functions whose noise-free cost is known.

Functions differ in scale by orders of magnitude, and in how cost grows with a row: most linearly, some as n log n, some
as n squared. Every measurement is the noise-free cost times log-normal noise of mean 1, and one in a hundred is ten
times as large. Everything follows from the seed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

FUNCTIONS = 40
SCALE_S = 0.01  # median cost of a function
SCALE_SPREAD = 1.9  # deviation of the logarithm of scales
LINEAR_SHARE = 0.7
N_LOG_N_SHARE = 0.2  # the rest is quadratic
NOISE = 0.3  # deviation of the logarithm of noise
OUTLIER_SHARE = 0.01
OUTLIER_FACTOR = 10.0
POPULARITY = 0.9  # zipf exponent of calls over functions
SIZE_BYTES = 128.0
SIZE_SPREAD = 0.75


@dataclass(frozen=True)
class Events:
    """Calls in order: which function, its features, its noise-free cost, its measured cost."""

    function: NDArray[np.int64]
    features: Floats  # events x 4
    cost: Floats
    measured: Floats
    kinds: tuple[str, ...]  # of each function


def make_events(seed: int, count: int, functions: int = FUNCTIONS) -> Events:
    """`count` calls of `functions` functions."""
    random = np.random.default_rng(seed)
    kinds = tuple(random.permutation(_kinds(functions)))
    weights = 1.0 / np.arange(1, functions + 1) ** POPULARITY
    function = random.permutation(functions)[random.choice(functions, count, p=weights / weights.sum())]
    features = _features(random, function, functions)
    cost = np.empty(count)
    for index, kind in enumerate(kinds):
        own = function == index
        scale = SCALE_S * random.lognormal(0.0, SCALE_SPREAD)
        if own.any():
            cost[own] = scale * _shape(random, kind, features[own])
    noise = random.lognormal(-(NOISE**2) / 2, NOISE, count)
    outlier = np.where(random.random(count) < OUTLIER_SHARE, OUTLIER_FACTOR, 1.0)
    return Events(function, features, cost, cost * noise * outlier, kinds)


def _kinds(functions: int) -> list[str]:
    linear = round(functions * LINEAR_SHARE)
    n_log_n = round(functions * N_LOG_N_SHARE)
    return ["linear"] * linear + ["n log n"] * n_log_n + ["quadratic"] * (functions - linear - n_log_n)


def _features(random: np.random.Generator, function: NDArray[np.int64], functions: int) -> Floats:
    """Each function's table has rows of its own typical size; longer rows have more values, within noise."""
    count = len(function)
    typical = SIZE_BYTES * random.lognormal(1.0, 1.0, functions)
    spread = random.normal(0.0, 1.0, count)
    size = np.ceil(typical[function] * np.exp(SIZE_SPREAD * spread))
    values = 3 + random.poisson(8.0 * np.exp(0.3 * spread + random.normal(0.0, 0.4, count)))
    volume = np.where(random.random(count) < 0.8, 1, 1 + random.geometric(0.2, count))
    return np.column_stack([np.ones(count), size, values, volume]).astype(np.float64)


def _shape(random: np.random.Generator, kind: str, features: Floats) -> Floats:
    """Relative cost of a row, mean about 1."""
    relative = features / features.mean(axis=0)
    if kind == "linear":
        return relative @ random.dirichlet(np.ones(4))
    size = features[:, 1]
    grown = size * np.log2(1 + size) if kind == "n log n" else size**2
    fixed = random.uniform(0.05, 0.3)
    return fixed + (1 - fixed) * grown / grown.mean()
