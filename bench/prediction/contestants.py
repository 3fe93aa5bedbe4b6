"""Predictors of the bake-off: one object per function, one resource, the same rules for all.

Every contestant predicts at least 2 % of its running mean, and before its first measurement the geometric mean of the
functions measured so far: the floor and the prior of the real learner, so that what differs is the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from foreshard._core.model import Learner

FLOOR = 0.02
EWMA_RATE = 0.05  # chosen, not measured
SGD_RATE = 0.05  # of normalised least mean squares; chosen, not measured
RLS_FORGETTING = 0.995
RLS_START = 1e4  # initial covariance


class Contestant(Protocol):
    """Predicts the cost of one function's calls."""

    def predict(self, x: Sequence[float]) -> float: ...
    def update(self, x: Sequence[float], measured: float) -> None: ...


class Ewma:
    """Exponentially weighted moving average of cost."""

    def __init__(self) -> None:
        self.mean: float | None = None

    def predict(self, x: Sequence[float]) -> float:
        return self.mean or 0.0

    def update(self, x: Sequence[float], measured: float) -> None:
        self.mean = measured if self.mean is None else self.mean + EWMA_RATE * (measured - self.mean)


class LogEwma:
    """Exponentially weighted moving average of the logarithm of cost."""

    def __init__(self) -> None:
        self.mean: float | None = None

    def predict(self, x: Sequence[float]) -> float:
        return 0.0 if self.mean is None else math.exp(self.mean)

    def update(self, x: Sequence[float], measured: float) -> None:
        value = math.log(measured)
        self.mean = value if self.mean is None else self.mean + EWMA_RATE * (value - self.mean)


class Sgd:
    """The founding formula: size, complexity and volume without an intercept, by normalised gradient steps."""

    def __init__(self) -> None:
        self.weights = np.zeros(3)
        self.scale: np.ndarray | None = None

    def predict(self, x: Sequence[float]) -> float:
        return 0.0 if self.scale is None else float(self.weights @ (np.asarray(x[1:]) / self.scale))

    def update(self, x: Sequence[float], measured: float) -> None:
        if self.scale is None:
            self.scale = np.maximum(x[1:], 1e-9)
            self.weights += measured / 3
        z = np.asarray(x[1:]) / self.scale
        self.weights += SGD_RATE * (measured - self.weights @ z) * z / (z @ z)


class Rls:
    """Textbook recursive least squares with forgetting on all four features."""

    def __init__(self) -> None:
        self.weights = np.zeros(4)
        self.covariance = np.eye(4) * RLS_START

    def predict(self, x: Sequence[float]) -> float:
        return float(self.weights @ x)

    def update(self, x: Sequence[float], measured: float) -> None:
        gain = self.covariance @ x
        gain /= RLS_FORGETTING + gain @ x
        self.weights += gain * (measured - self.weights @ x)
        self.covariance = (self.covariance - np.outer(gain, self.covariance @ x)) / RLS_FORGETTING


class Ours:
    """The learner of the product."""

    def __init__(self) -> None:
        self.learner = Learner()

    def predict(self, x: Sequence[float]) -> float:
        return self.learner.predict_scalar(x)

    def update(self, x: Sequence[float], measured: float) -> None:
        self.learner.update(x, (measured, None, None, None))


CONTESTANTS: dict[str, Callable[[], Contestant]] = {
    "EWMA": Ewma,
    "log EWMA": LogEwma,
    "SGD, 3 features": Sgd,
    "textbook RLS": Rls,
    "ours": Ours,
}


class Field:
    """One kind of contestant on every function of a world."""

    def __init__(self, make: Callable[[], Contestant], functions: int) -> None:
        self.each = [make() for _ in range(functions)]
        self._means: dict[int, tuple[float, int]] = {}  # measured so far: mean, calls

    def predict(self, function: int, x: Sequence[float]) -> float:
        """Cost of one call, by the rules for all."""
        if function in self._means:
            return max(self.each[function].predict(x), FLOOR * self._means[function][0])
        if not self._means:
            return 1e-3
        return math.exp(sum(math.log(mean) for mean, _ in self._means.values()) / len(self._means))

    def update(self, function: int, x: Sequence[float], measured: float) -> None:
        """Learn from one call."""
        mean, calls = self._means.get(function, (0.0, 0))
        self._means[function] = (mean + (measured - mean) / (calls + 1), calls + 1)
        self.each[function].update(x, measured)
