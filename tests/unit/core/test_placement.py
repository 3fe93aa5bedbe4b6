"""The placement rule: every test runs on the compiled placer and on the reference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from foreshard._core.buckets import initial_map
from foreshard._core.placement import Placer
from foreshard._core.shared import POLICIES, SharedState
from tests.reference.placement import ReferencePlacer, ReferenceShard, ReferenceState

Make = Callable[..., Any]


def make_compiled(shard_count: int, policy: str = "bounded", seed: int = 1) -> Placer:
    return Placer(SharedState.private(shard_count), policy, 1.05, seed)


def make_reference(shard_count: int, policy: str = "bounded", seed: int = 1) -> ReferencePlacer:
    state = ReferenceState(initial_map(shard_count), [ReferenceShard() for _ in range(shard_count)])
    return ReferencePlacer(state, policy, 1.05, seed)


@pytest.fixture(params=[make_compiled, make_reference], ids=["compiled", "reference"])
def make(request: pytest.FixtureRequest) -> Make:
    return request.param  # type: ignore[no-any-return]


def reasons(placer: Any, count: int, cost: float = 1.0) -> Counter[str]:
    found: Counter[str] = Counter()
    for _ in range(count):
        placer.place_known(cost)
        found[placer.last_decision()["reason"]] += 1
    return found


def test_without_cost_rows_are_spread_as_the_hash_says(make: Make) -> None:
    placer = make(4)
    assert reasons(placer, 400, cost=0.0) == {"candidate-0": 400}
    assert all(60 < shard.rows < 140 for shard in placer.state.shards())
    assert placer.state.loads() == [0.0] * 4


def test_cost_and_rows_are_charged_to_the_chosen_shard(make: Make) -> None:
    placer = make(4)
    chosen = placer.place_known(2.5, rows=3.0)
    assert [shard.placed for shard in placer.state.shards()] == [2.5 if i == chosen else 0.0 for i in range(4)]
    assert [shard.rows for shard in placer.state.shards()] == [3.0 if i == chosen else 0.0 for i in range(4)]


def test_a_light_row_leaves_a_shard_above_its_cap(make: Make) -> None:
    placer = make(4)
    for _ in range(100):
        placer.place_known(1.0)
    placer.state.add_measured(2, 1000.0)
    placer.place_known(50.0)  # raises the threshold above 1.0
    taken = [placer.place_known(0.5) for _ in range(200)]
    # It stays only when the lighter of two is the same shard again.
    assert taken.count(2) < 200 / 16 * 2


def test_a_heavy_row_takes_the_lightest_candidate(make: Make) -> None:
    placer = make(16)
    for _ in range(200):
        placer.place_known(1.0)
    for shard in range(16):
        placer.state.add_measured(shard, float(shard) * 100)
    taken = []
    for _ in range(100):
        taken.append(placer.place_known(1000.0 * len(taken) + 1000.0))
        assert placer.last_decision()["reason"] == "heavy-lightest"
    assert max(placer.state.loads()) / (sum(placer.state.loads()) / 16) < 1.35


def test_about_a_twentieth_of_the_rows_is_heavy(make: Make) -> None:
    placer = make(16)
    costs = [float((i * 7919) % 10_007 + 1) for i in range(4000)]
    heavy = 0
    for cost in costs:
        placer.place_known(cost)
        heavy += placer.last_decision()["reason"] == "heavy-lightest"
    assert 0.035 < heavy / 4000 < 0.08


def test_equal_costs_are_not_all_heavy(make: Make) -> None:
    placer = make(16)
    assert reasons(placer, 2000)["heavy-lightest"] < 200


@pytest.mark.parametrize("policy", POLICIES)
def test_a_shard_that_is_down_gets_nothing(make: Make, policy: str) -> None:
    placer = make(4, policy)
    placer.state.set_up(1, False)
    taken = Counter(placer.place_known(1.0 + i % 7) for i in range(400))
    assert taken[1] == 0
    assert sum(taken.values()) == 400


@pytest.mark.parametrize("policy", POLICIES)
def test_the_only_shard_that_is_up_takes_all(make: Make, policy: str) -> None:
    placer = make(3, policy)
    placer.state.set_up(0, False)
    placer.state.set_up(2, False)
    assert [placer.place_known(1.0) for _ in range(5)] == [1] * 5
    assert placer.last_decision()["reason"] == "only-shard"


@pytest.mark.parametrize("policy", POLICIES)
def test_no_shard_up_means_no_shard(make: Make, policy: str) -> None:
    placer = make(2, policy)
    placer.state.set_up(0, False)
    placer.state.set_up(1, False)
    assert placer.place_known(1.0) == -1
    assert placer.last_decision()["reason"] == "none-up"
    assert placer.state.loads() == [0.0, 0.0]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_transaction_keeps_its_shard_and_is_charged(make: Make, policy: str) -> None:
    placer = make(4, policy)
    assert [placer.place_known(2.0, only_shard=3) for _ in range(5)] == [3] * 5
    assert placer.last_decision()["reason"] == "transaction"
    assert placer.state.loads() == [0.0, 0.0, 0.0, 10.0]


def test_cost_hash_sends_equal_costs_to_one_shard(make: Make) -> None:
    placer = make(16, "cost-hash")
    assert len({placer.place_known(1.5) for _ in range(100)}) == 1
    assert len({placer.place_known(float(i)) for i in range(100)}) > 10


def test_least_loaded_takes_the_lightest_of_all(make: Make) -> None:
    placer = make(4, "least-loaded")
    for shard, cost in enumerate([3.0, 1.0, 2.0, 4.0]):
        placer.state.add_measured(shard, cost)
    assert [placer.place_known(1.5) for _ in range(3)] == [1, 2, 1]


def test_key_hash_follows_the_key_alone(make: Make) -> None:
    placer = make(16, "key-hash")
    for key_hash in (5, 4096 + 5, 77):
        assert placer.place_known(9.0, key_hash=key_hash) == initial_map(16)[key_hash % 4096]


def test_the_home_of_a_client_key_is_its_first_candidate(make: Make) -> None:
    placer = make(16)
    assert placer.place_known(0.0, key_hash=12345) == initial_map(16)[12345 % 4096]


def test_two_choices_takes_the_lighter(make: Make) -> None:
    placer = make(2, "two-choices")
    placer.state.add_measured(0, 1e6)
    taken = Counter(placer.place_known(1.0) for _ in range(400))
    assert taken[1] > 250


def test_weights_set_the_share_of_load(make: Make) -> None:
    placer = make(4)
    placer.state.set_weight(0, 3.0)
    for i in range(6000):
        placer.place_known(float((i * 7919) % 97 + 1))
    loads = placer.state.loads()
    assert loads[0] / sum(loads) == pytest.approx(3 / 6, abs=0.08)


def test_a_crowded_shard_drops_out(make: Make) -> None:
    placer = make(4)
    for _ in range(400):
        placer.place_known(0.0)
    crowd = placer.place_known(0.0, rows=1000.0)
    # Only a row whose four candidates are all that shard (one in 256) still goes there.
    assert [placer.place_known(0.0) for _ in range(200)].count(crowd) <= 5


def test_when_all_candidates_are_down_the_next_shard_takes_the_row(make: Make) -> None:
    placer = make(16)
    for shard in range(14):
        placer.state.set_up(shard, False)
    found = reasons(placer, 200)
    assert found["fallback"] > 50
    assert sum(placer.state.loads()[14:]) == 200


def test_the_same_stream_makes_the_same_decisions_on_both() -> None:
    for policy in POLICIES:
        compiled, reference = make_compiled(16, policy, 9), make_reference(16, policy, 9)
        for i in range(1500):
            cost = float((i * 48271) % 2999) ** 2 / 1000
            key_hash = None if i % 3 else i * 2654435761
            chosen = compiled.place_known(cost, 1.0, key_hash)
            assert chosen == reference.place_known(cost, 1.0, key_hash), (policy, i)
            assert compiled.last_decision()["reason"] == reference.reason
            if i % 5 == 0:
                compiled.state.add_measured(chosen, cost * 1.1, cost)
                reference.state.add_measured(chosen, cost * 1.1, cost)


def test_measured_load_corrects_predictions(make: Make) -> None:
    placer = make(8)
    for i in range(4000):
        cost = float((i * 7919) % 101 + 1)
        shard = placer.place_known(cost)
        placer.state.add_measured(shard, cost * (3.0 if shard == 5 else 1.0), cost)
    loads = placer.state.loads()
    assert max(loads) / (sum(loads) / 8) < 1.15
