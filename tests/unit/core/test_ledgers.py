"""Shadow ledgers: each policy decides on its own loads."""

from __future__ import annotations

import random

import pytest

from foreshard._core.buckets import HOME_SEED, home_bucket, initial_map
from foreshard._core.hashing import hashint8extended
from foreshard._core.ledgers import ShadowLedgers
from foreshard._core.placement import Placer
from foreshard._core.shared import POLICIES, SharedState


def test_measured_cost_lands_where_each_policy_put_the_row() -> None:
    ledgers = ShadowLedgers(4)
    ledgers.insert(7, 2.0)
    placed = ledgers.shards_of(7)
    assert placed is not None
    ledgers.charge(7, 3.0)
    ledgers.charge(7, 0.5)
    for policy, costs in ledgers.loads().items():
        assert costs == [3.5 if shard == placed[policy] else 0.0 for shard in range(4)]


def test_key_hash_is_the_home_of_the_key_itself() -> None:
    ledgers = ShadowLedgers(16)
    for key in (1, 2**52 + 5, -9):
        ledgers.insert(key, 1.0)
        placed = ledgers.shards_of(key)
        assert placed is not None
        assert placed["key-hash"] == initial_map(16)[home_bucket(key)]


def test_every_policy_decides_as_a_placer_of_its_own_would() -> None:
    ledgers = ShadowLedgers(8, bound=1.05)
    placers = {policy: Placer(SharedState.private(8), policy, 1.05, 0) for policy in POLICIES}
    chance = random.Random(5)
    for key in range(500):
        cost = chance.lognormvariate(0, 2)
        ledgers.insert(key, cost)
        placed = ledgers.shards_of(key)
        key_hash = home_hash_of(key)
        assert placed == {policy: placer.place_known(cost, 1.0, key_hash) for policy, placer in placers.items()}


def home_hash_of(key: int) -> int:
    return hashint8extended(key, HOME_SEED) % 2**64


def test_a_row_placed_twice_stays_where_it_is() -> None:
    ledgers = ShadowLedgers(16)
    ledgers.insert(1, 1.0)
    placed = ledgers.shards_of(1)
    for _ in range(20):
        ledgers.insert(1, 100.0)
    assert ledgers.shards_of(1) == placed
    assert len(ledgers) == 1


def test_rows_of_two_tables_with_one_key_are_two_rows() -> None:
    ledgers = ShadowLedgers(4)
    ledgers.insert(7, 1.0, table=0)
    assert ledgers.shards_of(7, table=1) is None
    ledgers.insert(7, 1.0, table=1)
    ledgers.charge(7, 5.0, table=1)
    assert len(ledgers) == 2
    assert all(sum(costs) == 5.0 for costs in ledgers.loads().values())


def test_a_row_older_than_the_ledgers_is_placed_at_its_first_measurement() -> None:
    ledgers = ShadowLedgers(4)
    assert ledgers.shards_of(9) is None
    ledgers.charge(9, 2.0)
    assert ledgers.shards_of(9) is not None
    assert all(sum(costs) == 2.0 for costs in ledgers.loads().values())


def test_memory_is_bounded_and_no_cost_is_lost() -> None:
    ledgers = ShadowLedgers(4, rows_max=64)
    for key in range(1000):
        ledgers.insert(key, 1.0)
    for key in range(1000):
        ledgers.charge(key, 1.0)
    assert len(ledgers) == 64
    assert all(sum(costs) == 1000.0 for costs in ledgers.loads().values())


def test_ledgers_follow_weights_map_and_shards_that_are_down() -> None:
    ledgers = ShadowLedgers(3, [1.0, 1.0, 2.0])
    ledgers.set_bucket_map([1, 2] * 2048, 1)
    ledgers.set_up(0, False)
    for key in range(300):
        ledgers.insert(key, 1.0)
        ledgers.charge(key, 1.0)
    loads = ledgers.loads()
    assert loads["key-hash"] == pytest.approx([0.0, 150.0, 150.0], abs=40)
    assert loads["least-loaded"] == pytest.approx([0.0, 100.0, 200.0], abs=2)


def test_a_shard_without_buckets_takes_no_rows() -> None:
    ledgers = ShadowLedgers(3)
    ledgers.set_bucket_map([1] * 4096, 1)
    for key in range(100):
        ledgers.insert(key, 1.0)
        ledgers.charge(key, 1.0)
    assert all(costs == [0.0, 100.0, 0.0] for costs in ledgers.loads().values())
