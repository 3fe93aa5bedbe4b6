"""Seeded streams of writes whose trigger cost is log-normal, as fitted to serverless durations.

Costs: log-normal, mu -0.38, sigma 2.36 (Shahrad et al. 2020), 0.3 of sigma being noise that no feature explains. Every
event fires one of a few trigger functions; its features are made so that the function's noise-free cost is the drawn
one: most functions are linear in size, some n log n, some quadratic. 20,000 roots exist before the first event (made
without triggers, so at no cost); updates hit roots by the zipf distribution of YCSB (0.99 over 10^10 items, scattered
by a hash); a scattered root that does not exist yet is drawn again.

Mixes (root insert / child insert / update, per cent):
A 100/0/0; B 35/25/40; C as B, every update costs what the root's insert cost; D 8/65/27, LinkBench's writes, children
go to roots as updates do; E as B with 24 kinds of row, each of one cost. Elsewhere a child's parent is any root,
uniformly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

MU, SIGMA, NOISE = -0.38, 2.36, 0.3
FUNCTIONS = 10
SHAPES = ("linear",) * 7 + ("n log n",) * 2 + ("quadratic",)
ZIPF_ITEMS, ZIPF_THETA, ZIPF_ZETA = 10**10, 0.99, 26.46902820178302
ZIPF_DRAWS = 32  # per event, until one exists
INSERT, CHILD, UPDATE = 0, 1, 2
MIXES = {
    "A": (1.0, 0.0, 0.0),
    "B": (0.35, 0.25, 0.40),
    "C": (0.35, 0.25, 0.40),
    "D": (0.08, 0.65, 0.27),
    "E": (0.35, 0.25, 0.40),
}
FIXED_COSTS = 24


@dataclass(frozen=True)
class Workload:
    """Events in order. Roots are numbered: the preloaded ones first, then by insertion."""

    mix: str
    seed: int
    preloaded: int
    kind: Integers  # INSERT, CHILD, UPDATE
    root: Integers  # inserted, or the parent, or updated
    function: Integers  # which trigger function it fires
    features: Floats  # events x 4
    cost: Floats  # noise-free, seconds
    executed: Floats  # measured, seconds

    @property
    def groups(self) -> Floats:
        """Executed cost by root: what no placement can divide."""
        return np.bincount(self.root, weights=self.executed)


def make_workload(mix: str, seed: int, events: int, preloaded: int) -> Workload:
    """`events` writes after `preloaded` roots."""
    random = np.random.default_rng([seed, ord(mix)])
    kind = random.choice(3, events, p=MIXES[mix])
    inserted = preloaded + np.cumsum(kind == INSERT)  # roots that exist once an event is done
    root = np.where(kind == INSERT, inserted - 1, 0)
    skewed = (kind == UPDATE) | ((kind == CHILD) & (mix == "D"))
    root[skewed] = _draw_skewed(random, inserted[skewed], int(inserted[-1]))
    uniform = (kind == CHILD) & ~skewed
    root[uniform] = (random.random(int(uniform.sum())) * inserted[uniform]).astype(np.int64)
    cost = _draw_costs(random, mix, events)
    if mix == "C":
        cost = _persist(random, cost, kind, root, preloaded)
    function, features = _make_features(random, cost, fixed=mix == "E")
    noise = random.lognormal(-(NOISE**2) / 2, NOISE, events)
    return Workload(mix, seed, preloaded, kind, root, function, features, cost, cost * noise)


def _draw_costs(random: np.random.Generator, mix: str, events: int) -> Floats:
    sigma = float(np.sqrt(SIGMA**2 - NOISE**2))
    if mix == "E":
        return random.choice(random.lognormal(MU, sigma, FIXED_COSTS), events)
    return random.lognormal(MU, sigma, events)


def _persist(random: np.random.Generator, cost: Floats, kind: Integers, root: Integers, preloaded: int) -> Floats:
    """Updates cost what their root's insert did; a preloaded root has a cost of its own."""
    by_root = np.concatenate([_draw_costs(random, "C", preloaded), cost[kind == INSERT]])
    return np.where(kind == UPDATE, by_root[root], cost)


def _draw_skewed(random: np.random.Generator, existing: Integers, total: int) -> Integers:
    """One existing root per entry of `existing`: scattered zipf ranks, the first draw that exists."""
    chosen = np.full(len(existing), -1, dtype=np.int64)
    for _ in range(ZIPF_DRAWS):
        open_ = np.flatnonzero(chosen < 0)
        if len(open_) == 0:
            break
        drawn = _scatter(_draw_ranks(random, len(open_))) % np.uint64(total)
        drawn = drawn.astype(np.int64)
        fits = drawn < existing[open_]
        chosen[open_[fits]] = drawn[fits]
    left = chosen < 0
    chosen[left] = (random.random(int(left.sum())) * existing[left]).astype(np.int64)
    return chosen


def _draw_ranks(random: np.random.Generator, count: int) -> NDArray[np.uint64]:
    """Zipf ranks by the inverse that YCSB uses (Gray et al. 1994)."""
    alpha = 1 / (1 - ZIPF_THETA)
    zeta_2 = 1 + 0.5**ZIPF_THETA
    eta = (1 - (2 / ZIPF_ITEMS) ** (1 - ZIPF_THETA)) / (1 - zeta_2 / ZIPF_ZETA)
    uniform = random.random(count)
    ranks = (ZIPF_ITEMS * (eta * uniform - eta + 1) ** alpha).astype(np.uint64)
    scaled = uniform * ZIPF_ZETA
    return np.where(scaled < 1, np.uint64(0), np.where(scaled < zeta_2, np.uint64(1), ranks))


def _scatter(ranks: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """FNV-1a over the eight bytes of each rank."""
    hashed = np.full(len(ranks), 0xCBF29CE484222325, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for byte in range(8):
            hashed ^= ranks >> np.uint64(8 * byte) & np.uint64(0xFF)
            hashed *= np.uint64(0x100000001B3)
    return hashed


def _make_features(random: np.random.Generator, cost: Floats, fixed: bool) -> tuple[Integers, Floats]:
    """Functions, and features under which their noise-free cost is `cost`: their growth, turned around.

    `fixed`: rows of equal cost fire the same function and have the same features.
    """
    unlike, which = np.unique(cost, return_inverse=True) if fixed else (cost, np.arange(len(cost)))
    function = random.integers(0, FUNCTIONS, len(unlike))
    slope = random.lognormal(-8, 1, FUNCTIONS)[function]
    amount = unlike / slope
    shapes: NDArray[Any] = np.array(SHAPES)[function]
    size = np.where(shapes == "quadratic", np.sqrt(amount), np.where(shapes == "n log n", _n_log_n(amount), amount))
    complexity = size * random.lognormal(-3, 0.5, len(size))
    features = np.column_stack([np.ones(len(size)), size, complexity, np.ones(len(size))])
    return function[which], features[which]


def _n_log_n(amount: Floats) -> Floats:
    """n where n log2(n + 2) = amount, by fixed-point steps."""
    size = amount.copy()
    for _ in range(40):
        size = amount / np.log2(size + 2)
    return size
