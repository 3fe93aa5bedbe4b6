"""Plain Python and numpy for what _core/model.pyx does in compiled loops; the same tests run on both."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import numpy as np

DECAY, RIDGE, CLIP, SWEEPS, FLOOR = 0.995, 0.05, 2.5, 4, 0.02
VARIANCE_MIN, RATE_MIN, MEAN_MIN, VALUE_MAX = 0.0025, 0.01, 1e-30, 1e18
DRIFT_SLACK, DRIFT_TRIP, DRIFT_KEEPS, BIAS_RATE = 0.15, 6.0, 0.05, 0.005
BASE_MIN, LOST_RATE, EXCESS_MAX, LOST_MAX = 0.1, 0.01, 1000.0, 0.5
DEGRADED_FROM, DEGRADED_UNTIL, DEGRADED_SAMPLES, FRESH_MAX = 4.0, 3.0, 64, 16
USELESS_FROM, USELESS_UNTIL = 0.8, 0.65  # of the q-error of the mean


class Window:
    """The latest log ratios, and order statistics taken when enough are fresh."""

    def __init__(self) -> None:
        self.ratios: deque[float] = deque(maxlen=256)
        self.fresh = 0
        self.q_median, self.q_p95, self.upper = 1.0, 1.0, 0.0

    def add(self, ratio: float) -> None:
        self.ratios.append(ratio)
        self.fresh += 1
        if self.fresh >= FRESH_MAX or len(self.ratios) <= FRESH_MAX:
            self.take_statistics()

    def take_statistics(self) -> None:
        self.fresh = 0
        count = len(self.ratios)
        off = np.sort(np.abs(self.ratios))
        self.q_median = math.exp(float(np.median(off)))
        self.q_p95 = math.exp(off[min(count - 1, count * 95 // 100)])
        rank = math.ceil((count + 1) * 0.95 - 1e-9)
        ordered = sorted(self.ratios)
        self.upper = ordered[rank - 1] if rank <= count else max(ordered[-1], 0.0) + math.log(2)


class Fit:
    """One resource."""

    def __init__(self) -> None:
        self.samples = self.settled = 0.0
        self.resets = 0
        self.bias = self.spread = self.lost = self.risen = self.fallen = 0.0
        self.window = Window()
        self.restart_at(0.0)

    def restart_at(self, mean: float) -> None:
        self.gram, self.moment = np.zeros((4, 4)), np.zeros(4)
        self.coefficients = np.array([mean, 0.0, 0.0, 0.0])
        self.mean, self.evidence, self.variance = mean, 0.0, 1.0

    def dot(self, x: np.ndarray) -> float:
        return max(float(self.coefficients @ x), FLOOR * self.mean)

    def learn(self, x: np.ndarray, measured: float) -> None:
        if self.mean < MEAN_MIN:
            self.restart_at(measured / (self.samples + 1))
            if self.mean < MEAN_MIN:
                self.samples += 1
                self.settled += 1
                return
        predicted = self.dot(x)
        lift = FLOOR * self.mean
        ratio = math.log((measured + lift) / (predicted + lift))
        limit = CLIP * math.sqrt(self.variance)
        residual = measured / predicted - 1
        inside = min(max(residual, -limit), limit)
        clipped = predicted * (1 + (inside if self.lost < LOST_MAX else residual))
        self.lost += LOST_RATE * (min(residual, EXCESS_MAX) - inside - self.lost)
        self.samples += 1
        self.settled += 1
        self.variance += max(1 / (self.settled + 4), RATE_MIN) * (inside**2 - self.variance)
        self.variance = max(self.variance, VARIANCE_MIN)
        weight = 1 / max(predicted / self.mean, BASE_MIN) ** 2
        self.mean += max(1 / self.settled, 1 - DECAY) * (clipped - self.mean)
        self.gram = DECAY * self.gram + weight * np.outer(x, x)
        self.moment = DECAY * self.moment + weight * x * clipped
        self.evidence = DECAY * self.evidence + 1
        self.solve()
        self.window.add(ratio)
        self.watch_drift(ratio)

    def solve(self) -> None:
        for _ in range(SWEEPS):
            for row in range(4):
                own = self.gram[row, row]
                if not own > 1e-200:
                    self.coefficients[row] = 0
                    continue
                ridge = RIDGE * own / self.evidence
                rest = self.moment[row] - self.gram[row] @ self.coefficients + own * self.coefficients[row]
                self.coefficients[row] = max(0.0, (rest + (ridge * self.mean if row == 0 else 0)) / (own + ridge))
        if not np.isfinite(self.coefficients).all():
            self.restart_at(self.mean)

    def watch_drift(self, ratio: float) -> None:
        excess = min(max(ratio, -1.0), 1.0) - self.bias
        rate = max(1 / (self.settled + 1), BIAS_RATE)
        slack = max(DRIFT_SLACK, math.sqrt(self.spread) / 2)
        self.bias += rate * excess
        self.spread += rate * (excess**2 - self.spread)
        self.risen = max(0.0, self.risen + excess - slack)
        self.fallen = max(0.0, self.fallen - excess - slack)
        if max(self.risen, self.fallen) <= DRIFT_TRIP:
            return
        self.gram *= DRIFT_KEEPS
        self.moment *= DRIFT_KEEPS
        self.evidence *= DRIFT_KEEPS
        self.variance, self.settled = 1.0, 1 / DRIFT_KEEPS / 4
        self.risen = self.fallen = self.bias = self.spread = self.lost = 0.0
        self.resets += 1
        self.window = Window()


class Learner:
    """One profile; the part of foreshard._core.model.Learner that decides figures."""

    def __init__(
        self,
        ceilings: Sequence[float | None] = (None,) * 4,
        capacities: Sequence[float] = (1.0, 1e9, 200e6, 100e6),
        priors: Sequence[float | None] = (None,) * 4,
    ) -> None:
        self.ceilings = [math.inf if value is None else value for value in ceilings]
        self.capacities = list(capacities)
        self.fits = [Fit() for _ in range(4)]
        self.window, self.mean_window = Window(), Window()
        self.samples = 0
        self.degraded = False
        self.set_priors(priors)

    def set_priors(self, priors: Sequence[float | None]) -> None:
        self.priors = [None if value is None or not 0 <= value < math.inf else value for value in priors]

    def update(self, features: Sequence[float], measured: Sequence[float | None]) -> float:
        x, before = _features(features), self.predict_scalar(features)
        told = found = 0.0
        known = drifted = False
        for resource, value in enumerate(measured):
            if value is None or not 0 <= value < math.inf:
                continue
            known, cost = True, min(value, VALUE_MAX)
            told = max(told, self._estimate(resource, x) / self.capacities[resource])
            found = max(found, cost / self.capacities[resource])
            resets = self.fits[resource].resets
            self.fits[resource].learn(x, cost)
            if self.fits[resource].resets > resets:
                drifted |= self.fits[resource].mean / self.capacities[resource] >= self._mean_scalar()
        if known:
            self.samples += 1
            if drifted:
                self.window, self.mean_window = Window(), Window()
            elif self.samples > 1:
                self._judge(told, found)
        return before

    def predict(self, features: Sequence[float]) -> tuple[float, ...]:
        x = _features(features)
        return tuple(self._predicted(resource, x) for resource in range(4))

    def predict_scalar(self, features: Sequence[float]) -> float:
        return max(cost / most for cost, most in zip(self.predict(features), self.capacities, strict=True))

    def upper_bound(self, features: Sequence[float]) -> float:
        return self.predict_scalar(features) * math.exp(self.window.upper)

    def means(self) -> tuple[float | None, ...]:
        return tuple(fit.mean if fit.samples else None for fit in self.fits)

    def resource_samples(self) -> tuple[int, ...]:
        return tuple(int(fit.samples) for fit in self.fits)

    def resets(self) -> int:
        return sum(fit.resets for fit in self.fits)

    def q_error(self, resource: int | None = None) -> tuple[float, float] | None:
        window = self.window if resource is None else self.fits[resource].window
        if not window.ratios:
            return None
        window.take_statistics()
        return window.q_median, window.q_p95

    def _mean_scalar(self) -> float:
        return max(fit.mean / most for fit, most in zip(self.fits, self.capacities, strict=True))

    def _judge(self, told: float, found: float) -> None:
        lift = FLOOR * self._mean_scalar()
        if told + lift <= 0 or found + lift <= 0:
            return
        self.window.add(math.log((found + lift) / (told + lift)))
        self.mean_window.add(math.log((found + lift) / (self._mean_scalar() + lift)))
        if len(self.window.ratios) >= DEGRADED_SAMPLES:
            useless = (USELESS_UNTIL if self.degraded else USELESS_FROM) * self.mean_window.q_p95
            far_off = DEGRADED_UNTIL if self.degraded else DEGRADED_FROM
            self.degraded = self.window.q_p95 > max(far_off, useless)

    def _estimate(self, resource: int, x: np.ndarray) -> float:
        fit = self.fits[resource]
        return min(fit.dot(x) if fit.samples else self.priors[resource] or 0.0, self.ceilings[resource])

    def _predicted(self, resource: int, x: np.ndarray) -> float:
        fit = self.fits[resource]
        return min(fit.mean, self.ceilings[resource]) if self.degraded and fit.samples else self._estimate(resource, x)


def _features(features: Sequence[float]) -> np.ndarray:
    return np.array([min(value, VALUE_MAX) if value > 0 else 0.0 for value in map(float, features)])
