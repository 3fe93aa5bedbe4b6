"""Jump consistent hash as its paper prints it (Lamping and Veach 2014), in plain Python."""

from __future__ import annotations


def jump_hash(key: int, buckets: int) -> int:
    """The bucket of a 64-bit key."""
    b, j = -1, 0
    while j < buckets:
        b = j
        key = (key * 2862933555777941757 + 1) % 2**64
        j = int((b + 1) * (2.0**31 / ((key >> 33) + 1)))
    return b
