"""What rows of one size usually look like: complexity by size, from the rows whose calls were measured.

The outbox knows the size of what waits, not its complexity, and a model may have put its weight on either.
"""

from __future__ import annotations

RATE = 0.01  # of each row, so that about the last hundred count


class Sizes:
    """A line through (size, complexity), decayed. One per profile."""

    def __init__(self) -> None:
        self._rows = 0
        self._size = self._complexity = 0.0  # means
        self._variance = self._covariance = 0.0  # of size, and of both

    def add(self, size: float, complexity: float) -> None:
        """Note one row."""
        self._rows += 1
        rate = max(1 / self._rows, RATE)
        off, complexity_off = size - self._size, complexity - self._complexity
        self._size += rate * off
        self._complexity += rate * complexity_off
        self._variance += rate * ((1 - rate) * off * off - self._variance)
        self._covariance += rate * ((1 - rate) * off * complexity_off - self._covariance)

    def complexity_at(self, size: float) -> float | None:
        """The complexity to expect of rows of this size; None before the first row."""
        if not self._rows:
            return None
        slope = self._covariance / self._variance if self._variance > 0 else 0.0
        return max(0.0, self._complexity + slope * (size - self._size))
