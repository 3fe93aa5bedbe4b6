"""What the compiled placer adds to the rule: prediction, explanations, buckets for backends."""

from __future__ import annotations

from collections import Counter

import pytest

from foreshard._core.placement import BUCKET_ROWS_SHARE, Placer
from foreshard._core.shared import SharedState


@pytest.fixture
def state() -> SharedState:
    made = SharedState.private(4, 3)
    for index in range(3):
        weights = [[0.0, 0.001 * (index + 1), 0, 0], [0] * 4, [0] * 4, [0] * 4]
        made.set_profile(index, weights, [0] * 4, [60, 0, 0, 0], [0] * 4, 1, 1)
    return made


def test_the_cost_of_a_write_is_the_sum_over_its_profiles(state: SharedState) -> None:
    placer = Placer(state, seed=1)
    assert placer.charge_write(2, [1, 1000, 1, 1], [0, 2]) == pytest.approx(1 + 3)
    assert state.shard(2).placed == pytest.approx(4)
    assert state.shard(2).rows == 0


def test_place_charges_predicted_cost_and_rows(state: SharedState) -> None:
    placer = Placer(state, seed=1)
    chosen = placer.place_row([2, 1000, 4, 4], [1])
    assert state.shard(chosen).placed == pytest.approx(2)
    assert state.shard(chosen).rows == 2
    decision = placer.last_decision()
    assert decision["predicted"] == pytest.approx([2, 0, 0, 0])
    assert (decision["cost"], decision["chosen"]) == (pytest.approx(2), chosen)


def test_a_profile_outside_the_state_predicts_nothing(state: SharedState) -> None:
    assert Placer(state, seed=1).charge_write(0, [1, 1000, 1, 1], [3, -1]) == 0


def test_explain_tells_the_next_decision_and_charges_nobody(state: SharedState) -> None:
    placer = Placer(state, seed=1)
    for size in (10, 1000, 100_000, 500, 3):
        told = placer.explain([1, size, 1, 1], [0, 1])
        before = state.shards()
        assert told == placer.explain([1, size, 1, 1], [0, 1])
        assert state.shards() == before
        assert placer.place_row([1, size, 1, 1], [0, 1]) == told["chosen"]
        assert placer.last_decision() == told
    assert len(told["candidates"]) == 4
    assert all(candidate["cap"] > 0 for candidate in told["candidates"])


def test_explain_leaves_the_last_decision_alone(state: SharedState) -> None:
    placer = Placer(state, seed=1)
    placer.place_row([1, 5, 1, 1], [0])
    made = placer.last_decision()
    placer.explain([1, 50_000, 1, 1], [0, 1, 2])
    assert placer.last_decision() == made


def test_explain_names_the_transaction(state: SharedState) -> None:
    told = Placer(state, seed=1).explain([1, 5, 1, 1], [0], only_shard=2)
    assert (told["chosen"], told["reason"]) == (2, "transaction")
    assert [candidate["shard"] for candidate in told["candidates"]] == [2]


def test_buckets_rotate_over_all_that_the_shard_owns(state: SharedState) -> None:
    placer = Placer(state, seed=1)
    owned = state.shard(1).buckets
    taken = [placer.take_bucket(1) for _ in range(owned)]
    assert len(set(taken)) == owned
    assert all(state.owner_of(bucket) == 1 for bucket in taken)
    assert placer.take_bucket(1) == taken[0]


def test_processes_start_their_rotation_at_different_buckets(state: SharedState) -> None:
    assert len({Placer(state).take_bucket(1) for _ in range(20)}) > 10


def test_a_shard_without_buckets_gives_none(state: SharedState) -> None:
    state.set_bucket_map([0] * 4096, 1)
    placer = Placer(state, seed=1)
    assert placer.take_bucket(1) == -1
    assert placer.take_bucket(0) >= 0


def test_a_bucket_moved_away_is_not_given_out(state: SharedState) -> None:
    placer = Placer(state, seed=1)
    bucket = placer.take_bucket(1)
    owners = state.bucket_map()[1].tolist()
    owners[bucket] = 0
    state.set_bucket_map(owners, 1)
    assert bucket not in [placer.take_bucket(1) for _ in range(state.shard(1).buckets)]


def test_a_buckets_turn_ends_after_a_share_of_rows_or_their_mean_cost(state: SharedState) -> None:
    placer = Placer(state, seed=1)
    assert BUCKET_ROWS_SHARE == 64
    placer.place_known(0.0)
    assert placer.cost_share() == float("inf")
    for _ in range(100):
        placer.place_known(2.0)
    assert placer.cost_share() == pytest.approx(64 * 2.0)
    for _ in range(100):
        placer.place_known(12.0, rows=2.0)
    assert placer.cost_share() == pytest.approx(64 * 4.0)


@pytest.mark.parametrize(("policy", "bound"), [("random", 1.05), ("bounded", 0.9)])
def test_an_unknown_policy_or_bound_is_refused(state: SharedState, policy: str, bound: float) -> None:
    with pytest.raises(ValueError, match="placement"):
        Placer(state, policy, bound)


def test_wrong_shards_and_features_are_refused(state: SharedState) -> None:
    placer = Placer(state, seed=1)
    with pytest.raises(IndexError, match="shard 4"):
        placer.place_known(1.0, only_shard=4)
    with pytest.raises(ValueError, match="features"):
        placer.place_row([1, 2, 3], [0])
    with pytest.raises(ValueError, match="profiles"):
        placer.place_row([1, 2, 3, 4], [0] * 65)


def test_placements_are_counted_by_reason_and_explanations_are_not(state: SharedState) -> None:
    placer = Placer(state, seed=1)
    assert placer.reason_counts() == {}
    reasons = []
    for size in (10, 1000, 100_000, 500, 3):
        placer.explain([1, size, 1, 1], [0])
        placer.place_row([1, size, 1, 1], [0])
        reasons.append(placer.last_decision()["reason"])
    placer.place_row([1, 1, 1, 1], [0], only_shard=2)
    assert placer.reason_counts() == Counter([*reasons, "transaction"])
