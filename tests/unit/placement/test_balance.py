"""Imbalance, the indivisible bound and the offline oracle."""

from __future__ import annotations

import pytest

from foreshard.proxy.placement import Spread, expected_by_hash, indivisible_bound, longest_first, max_over_mean


def test_even_loads_are_at_one() -> None:
    assert max_over_mean([2.0, 2.0, 2.0]) == 1.0
    assert max_over_mean([0.0, 0.0]) == 1.0


def test_the_heaviest_shard_counts_against_the_mean() -> None:
    assert max_over_mean([3.0, 1.0, 2.0]) == 1.5


def test_a_shard_of_twice_the_weight_carries_twice_the_load() -> None:
    assert max_over_mean([4.0, 2.0], [2.0, 1.0]) == pytest.approx(1.0)


def test_one_heavy_row_bounds_every_placement() -> None:
    assert indivisible_bound([6.0, 1.0, 1.0], 4) == 3.0
    assert indivisible_bound([1.0] * 8, 4) == 1.0
    assert indivisible_bound([], 4) == 1.0


def test_the_oracle_puts_the_heaviest_first() -> None:
    assert sorted(longest_first([3.0, 3.0, 2.0, 2.0, 2.0], 2)) == [5.0, 7.0]
    assert sorted(longest_first([6.0, 1.0, 1.0, 1.0], 2)) == [3.0, 6.0]


def test_hashing_equal_rows_is_as_uneven_as_chance_says() -> None:
    spread = expected_by_hash([1.0] * 10_000, [1.0] * 4)
    # Of four shards of 2500 +- 43, the fullest is expected 1.03 deviations above (its share of the others taken off).
    assert spread.median == pytest.approx(1.018, abs=0.004)
    assert 1 < spread.low < spread.median < spread.high


def test_hashing_one_heavy_row_leaves_it_on_one_shard() -> None:
    assert expected_by_hash([9.0], [1.0] * 3) == Spread(3.0, 3.0, 3.0)
    assert expected_by_hash([], [1.0] * 3) == Spread(1.0, 1.0, 1.0)
