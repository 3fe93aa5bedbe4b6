"""Placed keys, home buckets and the first map."""

from __future__ import annotations

from collections import Counter

import pytest

from foreshard._core.buckets import (
    BUCKET_COUNT,
    COUNTER_BITS,
    HOME_SEED,
    PLACED_FLAG,
    bucket_of,
    home_bucket,
    initial_map,
    make_placed_key,
)
from tests.reference.jump_hash import jump_hash
from tests.reference.postgres_hash import hashint8extended


def test_constants_are_those_of_the_design() -> None:
    assert (BUCKET_COUNT, COUNTER_BITS, PLACED_FLAG) == (4096, 40, 2**52)
    assert 0 < HOME_SEED < 2**63


def test_home_seed_never_changes() -> None:
    assert int.from_bytes(b"foreshar", "big") == HOME_SEED


@pytest.mark.parametrize("bucket", [0, 1, 2047, 4095])
@pytest.mark.parametrize("counter", [0, 1, 2**40 - 1])
def test_a_placed_key_names_its_bucket(bucket: int, counter: int) -> None:
    key = make_placed_key(bucket, counter)
    assert 2**52 <= key < 2**53
    assert bucket_of(key) == bucket


@pytest.mark.parametrize("key", [-(2**63), -1, 0, 1, 2**52 - 1, 2**53, 2**63 - 1])
def test_a_key_outside_the_placed_range_uses_its_home(key: int) -> None:
    assert bucket_of(key) == home_bucket(key) == hashint8extended(key, HOME_SEED) % 4096


@pytest.mark.parametrize("key", [2**52, 2**52 + 1, 2**53 - 1])
def test_a_key_at_the_edges_of_the_placed_range_is_decoded(key: int) -> None:
    assert bucket_of(key) == (key - 2**52) >> 40


def test_home_buckets_are_spread_evenly() -> None:
    counts = Counter(home_bucket(key) // 64 for key in range(64_000))
    assert len(counts) == 64
    assert max(counts.values()) < 1150


@pytest.mark.parametrize(("bucket", "counter"), [(-1, 0), (4096, 0), (0, -1), (0, 2**40)])
def test_a_key_that_cannot_be_placed_is_refused(bucket: int, counter: int) -> None:
    with pytest.raises(ValueError, match=r"bucket|counter"):
        make_placed_key(bucket, counter)


@pytest.mark.parametrize("shard_count", [1, 2, 3, 16, 64])
def test_the_first_map_is_jump_hash_of_the_bucket(shard_count: int) -> None:
    assert initial_map(shard_count) == [jump_hash(bucket, shard_count) for bucket in range(4096)]


@pytest.mark.parametrize("shard_count", [0, 4097])
def test_a_map_needs_shards_for_its_buckets(shard_count: int) -> None:
    with pytest.raises(ValueError, match="shards"):
        initial_map(shard_count)


def test_adding_a_shard_reassigns_about_its_share_of_buckets() -> None:
    for count in range(2, 65):
        moved = sum(old != new for old, new in zip(initial_map(count - 1), initial_map(count), strict=True))
        assert moved <= 1.3 * 4096 / count
