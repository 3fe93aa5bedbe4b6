"""Decisions of the rebalancer: what moves, what does not, and within which bounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreshard.proxy.rebalance import Limits, Loads, Rebalancer, Verdict, ratios, shard_loads

AT_ONCE = Limits(rounds_min=1, rows_share=1.0)


def loads(owner: list[int], load: list[Any], **given: Any) -> Loads:
    """A round of one second on shards of equal weight, a row in each bucket."""
    count = len(owner)
    demand = np.array(load, dtype=float)
    values: dict[str, Any] = {
        "rows": np.ones(count),
        "writes": np.zeros(count),
        "seconds": 1.0,
        "weights": [1.0] * (max(owner) + 1),
    }
    values |= {name: np.array(value, dtype=float) if name in {"rows", "writes"} else value
               for name, value in given.items()}  # fmt: skip
    return Loads(np.array(owner), load=demand.reshape(count, -1), **values)


def test_even_shards_move_nothing() -> None:
    decision = Rebalancer(AT_ONCE).decide(loads([0, 1, 0, 1], [3, 3, 2, 2]), 0.0)
    assert decision.verdict is Verdict.EVEN
    assert decision.moves == []
    assert decision.before == decision.after == 1.0


def test_the_fullest_gives_to_the_emptiest() -> None:
    decision = Rebalancer(AT_ONCE).decide(loads([0, 0, 0, 1, 2], [4, 2, 1, 4, 1]), 0.0)
    assert decision.verdict is Verdict.MOVING
    assert [(move.bucket, move.source, move.target) for move in decision.moves] == [(1, 0, 2), (2, 0, 2)]
    assert decision.after == pytest.approx(1.0)


def test_one_hot_row_is_moved_rather_than_many_rows() -> None:
    found = loads([0, 0, 0, 1], [5, 5, 5, 5], rows=[1000, 10, 1000, 10])
    (move,) = Rebalancer(AT_ONCE).decide(found, 0.0).moves
    assert move.bucket == 1
    assert move.rows == 10


def test_a_bucket_that_is_written_all_the_time_is_dearer() -> None:
    found = loads([0, 0, 0, 1], [5, 5, 5, 5], rows=[1000] * 4, writes=[1e5, 0, 1e5, 0])
    (move,) = Rebalancer(AT_ONCE).decide(found, 0.0).moves
    assert move.bucket == 1
    assert move.price == 1000.0


def test_an_overload_has_to_last() -> None:
    rebalancer = Rebalancer(Limits(rounds_min=3, rows_share=1.0))
    found = loads([0, 0, 0, 1], [5, 5, 5, 5])
    assert [rebalancer.decide(found, n).verdict for n in range(3)] == [Verdict.WAITING, Verdict.WAITING, Verdict.MOVING]


def test_a_short_overload_is_forgotten() -> None:
    rebalancer = Rebalancer(Limits(rounds_min=2, rows_share=1.0, smoothing=1.0))
    full, even = loads([0, 0, 0, 1], [5, 5, 5, 5]), loads([0, 0, 0, 1], [5, 5, 5, 15])
    verdicts = [rebalancer.decide(found, n).verdict for n, found in enumerate((full, even, full, even))]
    assert verdicts == [Verdict.WAITING, Verdict.EVEN, Verdict.WAITING, Verdict.EVEN]


def test_nothing_moves_between_goal_and_start() -> None:
    decision = Rebalancer(AT_ONCE).decide(loads([0, 0, 1, 1], [55, 1, 43, 1]), 0.0)
    assert decision.before == pytest.approx(1.12)
    assert decision.verdict is Verdict.EVEN


def test_moves_under_way_count_at_both_ends() -> None:
    found = loads([0, 0, 0, 1], [5, 5, 5, 5], moving={0: 1})
    assert Rebalancer(AT_ONCE).decide(found, 0.0).verdict is Verdict.EVEN


def test_a_bucket_that_was_moved_rests() -> None:
    rebalancer = Rebalancer(Limits(rounds_min=1, rows_share=1.0, cooldown_s=100, smoothing=1.0))
    first = rebalancer.decide(loads([0, 0, 1], [6, 5, 1]), 0.0)
    assert [move.bucket for move in first.moves] == [1]
    back = loads([0, 1, 1], [1, 5, 9], moving={2: 1})
    assert [move.bucket for move in rebalancer.decide(back, 99.0).moves] == []
    assert [move.bucket for move in rebalancer.decide(back, 101.0).moves] == [1]


def test_moves_carry_no_more_than_their_share_of_the_rows() -> None:
    rebalancer = Rebalancer(Limits(rounds_min=1, rows_share=0.02, rows_least=0.0, budget_s=60.0, cooldown_s=0.0))
    owner, rows = [0] * 60 + [1] * 40, np.full(100, 10.0)
    owner_now = np.array(owner)
    total = 0
    for number in range(10):
        found = loads(owner_now.tolist(), [1.0] * 100, rows=rows)
        decision = rebalancer.decide(found, number * 5.0)
        total += decision.rows
        for move in decision.moves:
            owner_now[move.bucket] = move.target
    assert total == 20
    assert rebalancer.decide(loads(owner_now.tolist(), [1.0] * 100, rows=rows), 61.0).rows == 20


def test_uncertain_figures_move_nothing() -> None:
    rebalancer = Rebalancer(AT_ONCE)
    decision = rebalancer.decide(loads([0, 0, 0, 1], [5, 5, 5, 5], frozen="metrics are 40 s old"), 0.0)
    assert decision.verdict is Verdict.FROZEN
    assert decision.detail == "metrics are 40 s old"
    assert decision.moves == []


def test_one_heavy_group_is_told() -> None:
    decision = Rebalancer(AT_ONCE).decide(loads([0, 1, 2], [10, 1, 1], heaviest_group=9.0), 0.0)
    assert decision.verdict is Verdict.INDIVISIBLE
    assert decision.detail == "the heaviest group asks for 2.25 times what a shard has on average"


def test_a_heavier_shard_takes_more() -> None:
    found = loads([0, 0, 0, 1], [5, 5, 5, 5], weights=[3.0, 1.0])
    assert Rebalancer(AT_ONCE).decide(found, 0.0).verdict is Verdict.EVEN
    found = loads([0, 1, 1, 1], [5, 5, 5, 5], weights=[3.0, 1.0])
    decision = Rebalancer(AT_ONCE).decide(found, 0.0)
    assert len(decision.moves) == 2
    assert decision.after == pytest.approx(1.0)


def test_the_dominant_resource_decides_and_no_other_gets_worse() -> None:
    # Of the second resource shard 0 uses most. Bucket 1 would even it out at once, but fill shard 1 with the first one.
    demand = [[0, 4], [11, 6], [1, 3], [4, 1]]
    decision = Rebalancer(AT_ONCE).decide(loads([0, 0, 0, 1], demand), 0.0)
    assert decision.resource == 1
    assert [move.bucket for move in decision.moves] == [0, 2]


def test_a_shard_without_weight_is_emptied_of_everything() -> None:
    rebalancer = Rebalancer(Limits(rows_share=1.0))
    found = loads([0, 1, 2, 2, 2, 2], [4, 4, 3, 0, 1, 0], weights=[1.0, 1.0, 0.0])
    decision = rebalancer.decide(found, 0.0)
    assert decision.verdict is Verdict.DRAINING
    assert sorted(move.bucket for move in decision.moves) == [2, 3, 4, 5]
    assert decision.moves[0].bucket == 2
    assert {move.target for move in decision.moves} == {0, 1}


def test_draining_keeps_to_the_budget_but_never_stops() -> None:
    rebalancer = Rebalancer(Limits(rows_share=0.02, rows_least=0.0, budget_s=10.0))
    owner = np.array([0] * 10 + [1] * 10)
    for number in range(200):
        found = loads(owner.tolist(), [1.0] * 20, rows=np.full(20, 100.0), weights=[1.0, 0.0])
        decision = rebalancer.decide(found, number * 10.0)
        assert len(decision.moves) <= 1
        for move in decision.moves:
            owner[move.bucket] = move.target
    assert set(owner.tolist()) == {0}


@pytest.mark.parametrize(
    "wrong",
    [{"goal": 1.2}, {"goal": 0.9}, {"rounds_min": 0}, {"smoothing": 0.0}, {"rows_share": 2.0}, {"cooldown_s": -1.0}],
)
def test_limits_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"goal|rounds_min|smoothing|rows_share|cooldown_s"):
        Limits(**wrong)


def test_loads_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(ValueError, match="no weight"):
        loads([0, 3], [1, 1], weights=[1.0])
    with pytest.raises(ValueError, match="entry for each bucket"):
        loads([0, 1], [1, 1], rows=[1])
    with pytest.raises(ValueError, match="some shard has one"):
        loads([0, 0], [1, 1], weights=[0.0])


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_whatever_is_asked_it_gets_better_within_the_bounds(data: st.DataObject) -> None:
    shards = data.draw(st.integers(2, 6))
    count = data.draw(st.integers(shards, 40))
    resources = data.draw(st.integers(1, 3))
    owner = data.draw(st.lists(st.integers(0, shards - 1), min_size=count, max_size=count))
    amounts = st.integers(0, 50)
    demand = [data.draw(st.lists(amounts, min_size=resources, max_size=resources)) for _ in range(count)]
    rows = data.draw(st.lists(st.integers(0, 100), min_size=count, max_size=count))
    weights = data.draw(st.lists(st.sampled_from([1.0, 1.0, 2.0]), min_size=shards, max_size=shards))
    share = data.draw(st.sampled_from([0.02, 0.2, 1.0]))
    found = loads(owner, demand, rows=rows, weights=weights)
    decision = Rebalancer(Limits(rounds_min=1, rows_share=share, rows_least=0.0)).decide(found, 0.0)
    after = found.owner.copy()
    for move in decision.moves:
        assert after[move.bucket] == move.source
        assert move.source != move.target
        after[move.bucket] = move.target
        assert move.gain > 0
    assert len({move.bucket for move in decision.moves}) == len(decision.moves)
    assert decision.rows <= share * sum(rows)
    by_shard = shard_loads(after, found.load, shards)
    reached = ratios(by_shard[:, decision.resource], np.array(weights))
    assert decision.after == pytest.approx(float(reached.max()))
    assert decision.after <= decision.before + 1e-9
    used_before = (shard_loads(found.owner, found.load, shards) / np.array(weights)[:, None]).max()
    used_after = (by_shard / np.array(weights)[:, None]).max()
    assert used_after <= used_before + 1e-9
