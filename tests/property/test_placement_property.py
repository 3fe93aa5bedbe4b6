"""Hashes, buckets and placement decisions: compiled code against plain Python, on whatever hypothesis finds."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from foreshard._core.buckets import HOME_SEED, bucket_of, initial_map, make_placed_key
from foreshard._core.hashing import hashint8extended, hashtextextended, jump_hash_of
from foreshard._core.placement import Placer
from foreshard._core.shared import POLICIES, SharedState
from tests.reference import jump_hash as jump_reference
from tests.reference import postgres_hash as reference
from tests.reference.placement import ReferencePlacer, ReferenceShard, ReferenceState

BIGINTS = st.integers(-(2**63), 2**63 - 1)
# Eighths, whole loads and weights that are powers of two keep sums exact in whatever order they are taken.
COSTS = st.one_of(
    st.just(0.0), st.integers(1, 10**9).map(lambda eighths: eighths / 8), st.sampled_from([0.5, 1.0, 2.0])
)
ROWS = st.tuples(COSTS, st.integers(1, 100), st.one_of(st.none(), st.integers(0, 2**64 - 1)), st.integers(-1, 4))
SHARDS = st.tuples(st.sampled_from([0.5, 1.0, 4.0]), st.booleans(), st.integers(0, 10**6))


@given(st.integers(0, 2**64 - 1), st.integers(1, 2**31 - 1))
def test_jump_hash_equals_the_paper(key: int, buckets: int) -> None:
    assert jump_hash_of(key, buckets) == jump_reference.jump_hash(key, buckets)


@given(st.binary(max_size=100), BIGINTS)
def test_bytes_hash_as_the_reference(data: bytes, seed: int) -> None:
    assert hashtextextended(data, seed) == reference.hash_any_extended(data, seed)


@given(BIGINTS, BIGINTS)
def test_bigints_hash_as_the_reference(value: int, seed: int) -> None:
    assert hashint8extended(value, seed) == reference.hashint8extended(value, seed)


@given(st.integers(0, 4095), st.integers(0, 2**40 - 1))
def test_a_placed_key_round_trips_and_is_exact_in_a_double(bucket: int, counter: int) -> None:
    key = make_placed_key(bucket, counter)
    assert bucket_of(key) == bucket
    assert int(float(key)) == key
    assert key & (2**40 - 1) == counter


@given(BIGINTS)
def test_every_bigint_has_one_bucket(key: int) -> None:
    placed = 2**52 <= key < 2**53
    assert bucket_of(key) == (key >> 40 & 4095 if placed else reference.hashint8extended(key, HOME_SEED) % 4096)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(POLICIES), st.lists(SHARDS, min_size=5, max_size=9), st.lists(ROWS, max_size=40))
def test_placers_agree_on_any_stream(
    policy: str, shards: list[tuple[float, bool, int]], rows: list[tuple[float, int, int | None, int]]
) -> None:
    count = len(shards)
    compiled = Placer(SharedState.private(count), policy, 1.05, 3)
    state = ReferenceState(initial_map(count), [ReferenceShard() for _ in shards])
    plain = ReferencePlacer(state, policy, 1.05, 3)
    for index, (weight, up, measured) in enumerate(shards):
        for each in (compiled.state, state):
            each.set_weight(index, weight)
            each.set_up(index, up)
            each.add_measured(index, measured)
    for cost, number, key_hash, only_shard in rows:
        chosen = compiled.place_known(cost, float(number), key_hash, only_shard)
        assert chosen == plain.place_known(cost, float(number), key_hash, only_shard)
        assert compiled.last_decision()["reason"] == plain.reason
        assert chosen >= 0 or not any(up for _, up, _ in shards)
