"""Jump hash and PostgreSQL's hashes, against known values and plain Python."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from foreshard._core.hashing import hashint8extended, hashtextextended, jump_hash_of, uuid_hash_extended
from tests.reference import jump_hash as jump_reference
from tests.reference import postgres_hash as reference

# Values that implementations of the paper in other languages agree on.
KNOWN_OF_100 = [0, 55, 62, 8, 45, 59, 86, 97, 82, 59, 73, 37, 17, 56, 86, 21, 90, 37, 38, 83]
KNOWN = [
    (10863919174838991, 11, 6),
    (2016238256797177309, 11, 3),
    (1673758223894951030, 11, 5),
    (2, 100001, 80343),
    (2201, 100001, 22152),
    (2202, 100001, 15018),
]


@pytest.mark.parametrize("jump", [jump_hash_of, jump_reference.jump_hash], ids=["compiled", "reference"])
def test_jump_hash_gives_the_published_values(jump) -> None:  # type: ignore[no-untyped-def]
    assert [jump(key, 100) for key in range(20)] == KNOWN_OF_100
    assert [jump(key, buckets) for key, buckets, _ in KNOWN] == [bucket for _, _, bucket in KNOWN]


def test_jump_hash_equals_the_reference_on_random_keys() -> None:
    chance = random.Random(1)
    for _ in range(5000):
        key, buckets = chance.getrandbits(64), chance.choice([1, 2, 3, 16, 64, 4096, 2**31 - 1])
        assert jump_hash_of(key, buckets) == jump_reference.jump_hash(key, buckets)


def test_jump_hash_moves_only_the_share_of_the_new_bucket() -> None:
    chance = random.Random(2)
    keys = [chance.getrandbits(64) for _ in range(20_000)]
    moved = [(jump_hash_of(key, 16), jump_hash_of(key, 17)) for key in keys]
    assert all(old == new or new == 16 for old, new in moved)
    assert sum(old != new for old, new in moved) / len(keys) == pytest.approx(1 / 17, abs=0.005)


def test_jump_hash_spreads_keys_evenly() -> None:
    chance = random.Random(3)
    counts = Counter(jump_hash_of(chance.getrandbits(64), 16) for _ in range(32_000))
    assert max(counts.values()) < 1.1 * 2000
    assert min(counts.values()) > 0.9 * 2000


def test_jump_hash_refuses_no_buckets() -> None:
    with pytest.raises(ValueError, match="at least one bucket"):
        jump_hash_of(1, 0)


@pytest.mark.parametrize("size", range(40))
def test_text_of_every_size_hashes_as_the_reference_does(size: int) -> None:
    data = bytes(random.Random(size).randrange(256) for _ in range(size))
    for seed in (0, 1, -1, 2**63 - 1, -(2**63), 12345678901234567):
        assert hashtextextended(data, seed) == reference.hash_any_extended(data, seed)


def test_bigints_hash_as_the_reference_does() -> None:
    chance = random.Random(4)
    edges = [0, 1, -1, 2**31, -(2**31), 2**32, 2**52, 2**53 - 1, 2**63 - 1, -(2**63)]
    for value in edges + [chance.randrange(-(2**63), 2**63) for _ in range(1000)]:
        for seed in (0, 7, -7, 2**63 - 1):
            assert hashint8extended(value, seed) == reference.hashint8extended(value, seed)


def test_a_uuid_hashes_as_its_16_bytes() -> None:
    data = bytes(range(16))
    assert uuid_hash_extended(data, 5) == reference.hash_any_extended(data, 5)
    with pytest.raises(ValueError, match="16 bytes"):
        uuid_hash_extended(data[:15], 5)


def test_text_is_hashed_in_utf_8() -> None:
    assert hashtextextended("größe", 3) == hashtextextended("größe".encode(), 3)
