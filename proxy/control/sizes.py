"""Sizes as people read them, in the units of the configuration."""

from __future__ import annotations

UNITS = ("B", "kB", "MB", "GB", "TB")


def bytes_text(size: int) -> str:
    """Three digits and a unit: 8.19 kB, 120 MB."""
    value = float(size)
    for unit in UNITS:
        if value < 999.5 or unit == UNITS[-1]:
            digits = 0 if unit == "B" or value >= 99.95 else 1 if value >= 9.995 else 2
            return f"{value:.{digits}f} {unit}"
        value /= 1000
    raise AssertionError
