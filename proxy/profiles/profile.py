"""One profile as the controller keeps it: the learner, its version and history, and counters."""

from __future__ import annotations

from collections.abc import Sequence

from foreshard._core.model import Learner
from foreshard.proxy.profiles.keys import ProfileKey
from foreshard.proxy.profiles.priors import NOTHING_KNOWN, Costs
from foreshard.proxy.profiles.rows import ProfileRow
from foreshard.proxy.profiles.sizes import Sizes

HISTORY_FROM_SAMPLES = 32  # doublings below, and drifts that follow each other faster, are not worth a row


class Profile:
    """Owns one learner. Made by the controller for each key of the configuration; lives as long as it does."""

    def __init__(self, key: ProfileKey, ceilings: Costs, capacities: Sequence[float]) -> None:
        self.key = key
        self.learner = Learner(ceilings, capacities)
        self.sizes = Sizes()  # of measured calls in this process
        self.priors = NOTHING_KNOWN
        self.version = 0
        self.calls = 0
        self.cpu_seconds = 0.0
        self.wall_seconds = 0.0
        self.queue_seconds = 0.0
        self.is_published = False  # whether shared state holds what the learner says
        self.is_stored = True  # whether the control database does
        self._history: list[ProfileRow] = []
        self._resets = 0
        self._degraded = False
        self._version_samples = 0  # when the last version began

    def record(self, features: Sequence[float], measured: Costs, wall_s: float, queue_s: float) -> float:
        """Learn from one call; answers the scalar cost that was predicted for it."""
        predicted = self.learner.update(features, measured)
        self.sizes.add(features[1], features[2])
        self.calls += 1
        self.cpu_seconds += measured[0] or 0.0
        self.wall_seconds += wall_s
        self.queue_seconds += queue_s
        self.is_published = self.is_stored = False
        reason = self._reason_for_version()
        if reason is not None:
            self.version += 1
            self._version_samples = self.learner.samples
            self._history.append(self.row(reason))
        return predicted

    def set_priors(self, priors: Costs) -> None:
        """Expected cost until measured."""
        if priors == self.priors:
            return
        self.priors = priors
        self.learner.set_priors(priors)
        self.is_published = False

    def row(self, reason: str | None = None) -> ProfileRow:
        """The profile as it is kept."""
        learner = self.learner
        scalar = learner.q_error() or (None, None)
        by_resource = [learner.q_error(resource) or (None, None) for resource in range(4)]
        medians, highs = zip(*by_resource, strict=True)
        return ProfileRow(
            function=self.key.function,
            operation=self.key.operation,
            version=self.version,
            samples=learner.samples,
            degraded=learner.degraded,
            calls=self.calls,
            cpu_seconds=self.cpu_seconds,
            wall_seconds=self.wall_seconds,
            queue_seconds=self.queue_seconds,
            q_median=scalar[0],
            q_p95=scalar[1],
            q_medians=medians,
            q_p95s=highs,
            means=learner.means(),
            state=learner.state(),
            reason=reason,
        )

    def restore(self, row: ProfileRow) -> bool:
        """Go on from a kept row; False when its state is of no use, and only version and counters were taken."""
        self.version = row.version
        self.calls = row.calls
        self.cpu_seconds = row.cpu_seconds
        self.wall_seconds = row.wall_seconds
        self.queue_seconds = row.queue_seconds
        restored = self.learner.restore(row.state)
        self._resets = self.learner.resets()
        self._degraded = self.learner.degraded
        self.is_published = False
        return restored

    def take_history(self) -> list[ProfileRow]:
        """The versions begun since the last time."""
        taken, self._history = self._history, []
        return taken

    def _reason_for_version(self) -> str | None:
        """Why a new version begins with this sample, if it does."""
        learner = self.learner
        samples = learner.samples
        if samples == 1:
            return "first"
        if learner.degraded != self._degraded:
            self._degraded = learner.degraded
            return "degraded" if learner.degraded else "recovered"
        if learner.resets() != self._resets and samples - self._version_samples >= HISTORY_FROM_SAMPLES:
            self._resets = learner.resets()
            return "drift"
        return "grown" if samples >= HISTORY_FROM_SAMPLES and samples & (samples - 1) == 0 else None
