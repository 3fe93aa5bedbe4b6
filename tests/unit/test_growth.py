"""proxy/rebalance/growth: which buckets fill a shard, and where those of one go that is emptied."""

from __future__ import annotations

import numpy as np
import pytest

from foreshard._core.buckets import initial_map
from foreshard.proxy.move.budget import Budget
from foreshard.proxy.rebalance import empty, fill

COUNT = 4096


def shares(moves: list[tuple[int, int, int]], owner: np.ndarray, amounts: np.ndarray, count: int) -> list[float]:  # type: ignore[type-arg]
    """What each shard has of the whole behind the moves."""
    placed = owner.copy()
    for bucket, source, target in moves:
        assert placed[bucket] == source
        placed[bucket] = target
    return [float(value) for value in np.bincount(placed, weights=amounts, minlength=count) / amounts.sum()]


@pytest.mark.parametrize("shard_count", [2, 3, 4, 8, 16])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_new_shard_takes_its_share_and_never_more_buckets_than_one_of_n(shard_count: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    owner = np.array(initial_map(shard_count - 1))
    demand, rows = draw.lognormal(0, 1.5, COUNT), draw.lognormal(3, 1, COUNT)
    moves = fill(owner, demand, rows, [1.0] * shard_count, shard_count - 1)
    assert len(moves) <= COUNT // shard_count
    assert all(target == shard_count - 1 for _, _, target in moves)
    assert shares(moves, owner, demand, shard_count)[-1] == pytest.approx(1 / shard_count, rel=0.1)
    assert shares(moves, owner, rows, shard_count)[-1] <= 1.06 / shard_count
    assert demand[moves[0][0]] >= np.quantile(demand[owner == moves[0][1]], 0.99)  # the hottest first


def test_nothing_hotter_than_the_new_shards_share_goes_there() -> None:
    demand = np.ones(COUNT)
    demand[7] = 10 * COUNT
    moves = fill(np.zeros(COUNT, dtype=np.int64), demand, np.ones(COUNT), [1.0, 1.0], 1)
    assert 7 not in [bucket for bucket, _, _ in moves]


def test_an_idle_deployment_gives_buckets_by_their_number() -> None:
    nothing = np.zeros(COUNT)
    moves = fill(np.array(initial_map(2)), nothing, nothing, [1.0, 1.0, 2.0], 2)
    assert len(moves) == COUNT // 3
    assert fill(np.array(initial_map(2)), nothing, nothing, [1.0, 1.0, 0.0], 1) == []


def test_filling_goes_on_where_it_was_and_leaves_what_moves_alone() -> None:
    demand = np.random.default_rng(3).lognormal(0, 1, COUNT)
    owner = np.array(initial_map(2))
    first = fill(owner, demand, demand, [1.0] * 3, 2)
    for bucket, _, target in first:
        owner[bucket] = target
    assert fill(owner, demand, demand, [1.0] * 3, 2) == []
    staying = set(range(0, COUNT, 2))
    again = fill(np.array(initial_map(2)), demand, demand, [1.0] * 3, 2, staying)
    assert not staying & {bucket for bucket, _, _ in again}


def test_an_emptied_shards_buckets_go_where_least_is() -> None:
    draw = np.random.default_rng(4)
    owner = np.array(initial_map(4))
    demand = draw.lognormal(0, 1, COUNT)
    moves = empty(owner, demand, np.ones(COUNT), [1.0, 1.0, 2.0, 0.0], 3)
    assert sorted(bucket for bucket, _, _ in moves) == list(np.flatnonzero(owner == 3))
    assert shares(moves, owner, demand, 4)[3] == 0
    after = shares(moves, owner, demand, 4)
    assert after[2] == pytest.approx(max(0.25, after[2]))
    assert max(after[0], after[1]) < 0.3
    with pytest.raises(ValueError, match="no other shard"):
        empty(owner, demand, demand, [0.0, 0.0, 0.0, 1.0], 3)


def test_a_budget_is_paid_off_by_time_and_saves_nothing_up() -> None:
    budget = Budget(1000.0)
    assert budget.rest_s(0.0) == 0.0
    budget.spend(500, 10.0)
    budget.spend(1500, 10.2)
    assert budget.rest_s(10.2) == pytest.approx(1.8)
    assert budget.rest_s(13.0) == 0.0
    budget.spend(100, 100.0)
    assert budget.rest_s(100.0) == pytest.approx(0.1)
