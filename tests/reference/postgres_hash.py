"""PostgreSQL's extended hashes in plain Python: lookup3 over words, with a seed."""

from __future__ import annotations

MASK = 0xFFFFFFFF
MIX = ((0, 2, 4, 1), (1, 0, 6, 2), (2, 1, 8, 0), (0, 2, 16, 1), (1, 0, 19, 2), (2, 1, 4, 0))
FINAL = ((2, 1, 14), (0, 2, 11), (1, 0, 25), (2, 1, 16), (0, 2, 4), (1, 0, 14), (2, 1, 24))


def rotate(word: int, bits: int) -> int:
    return (word << bits | word >> (32 - bits)) & MASK


def mix(words: list[int]) -> None:
    for x, y, bits, z in MIX:
        words[x] = (words[x] - words[y]) & MASK ^ rotate(words[y], bits)
        words[y] = (words[y] + words[z]) & MASK


def begin(size: int, seed: int) -> list[int]:
    words = [(0x9E3779B9 + size + 3923095) & MASK] * 3
    if seed:
        words[0] = (words[0] + (seed >> 32 & MASK)) & MASK
        words[1] = (words[1] + (seed & MASK)) & MASK
        mix(words)
    return words


def finish(words: list[int]) -> int:
    for x, y, bits in FINAL:
        words[x] = ((words[x] ^ words[y]) - rotate(words[y], bits)) & MASK
    answer = words[1] << 32 | words[2]
    return answer - 2**64 if answer >> 63 else answer


def hash_any_extended(data: bytes, seed: int) -> int:
    """hash_any_extended, as a signed bigint."""
    words = begin(len(data), seed)
    while len(data) >= 12:
        for i in range(3):
            words[i] = (words[i] + int.from_bytes(data[4 * i : 4 * i + 4], "little")) & MASK
        mix(words)
        data = data[12:]
    # The length is taken to be in the last word's lowest byte, so its data starts one byte higher.
    tail = data[:8].ljust(8, b"\0") + b"\0" + data[8:].ljust(3, b"\0")
    for i in range(3):
        words[i] = (words[i] + int.from_bytes(tail[4 * i : 4 * i + 4], "little")) & MASK
    return finish(words)


def hashint8extended(value: int, seed: int) -> int:
    """hashint8extended."""
    low, high = value & MASK, value >> 32 & MASK
    words = begin(4, seed)
    words[0] = (words[0] + (low ^ (high if value >= 0 else ~high & MASK))) & MASK
    return finish(words)
