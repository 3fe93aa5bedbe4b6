"""What moves may carry over time: so many bytes a second, whoever has ordered them."""

from __future__ import annotations


class Budget:
    """A debt in seconds, which time pays off. Nothing is saved up while nothing moves."""

    def __init__(self, bytes_per_s: float) -> None:
        self._bytes_per_s = bytes_per_s
        self._paid_s = 0.0  # by the caller's clock: when all that was carried is paid for

    def spend(self, size: int, now_s: float) -> None:
        """So many bytes were carried."""
        self._paid_s = max(self._paid_s, now_s) + size / self._bytes_per_s

    def rest_s(self, now_s: float) -> float:
        """How long nothing more may be carried."""
        return max(0.0, self._paid_s - now_s)
