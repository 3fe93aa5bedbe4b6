"""What measurements do to profiles, loads and ledgers, without a database."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import pytest

from foreshard.proxy.config import Config, ProfilePrior, ShardConfig, TableConfig, TriggerConfig
from foreshard.proxy.control.learning import Learning, Measurement, Waiting
from foreshard.proxy.placement import Placer, SharedState
from foreshard.proxy.profiles import ProfileKey, ProfileRow, decode_state, profile_indexes

CONFIG = Config(
    path=Path("foreshard.yaml"),
    shards=tuple(ShardConfig(name=f"s{index}", dsn=f"postgresql://s{index}/app") for index in range(3)),
    tables=(TableConfig(name="document", key="id"), TableConfig(name="word", key="id", parent="document", via="d")),
    triggers=(
        TriggerConfig(name="index", table="document", on=("insert", "update"), function="f:index"),
        TriggerConfig(name="zip", table="document", on=("insert",), function="f:zip"),
        TriggerConfig(name="spell", table="word", on=("insert",), function="f:spell", profile=ProfilePrior(cpu_s=0.25)),
    ),
)
INDEXES = profile_indexes(CONFIG)
INDEX, ZIP, SPELL = (INDEXES[ProfileKey(name, "insert")] for name in ("index", "zip", "spell"))
ROW = Measurement("index", "insert", "public.document", "1", 1000.0, 4.0, 1.0, 0.5, 100.0, 0.0, None, 0.6, 0.1)


@pytest.fixture
def state() -> SharedState:
    made = SharedState.private(3, len(INDEXES))
    made.set_capacities((1.0, 1e9, 200e6, 100e6))
    return made


@pytest.fixture
def learning(state: SharedState) -> Learning:
    return Learning(CONFIG, state)


def test_a_measurement_counts_in_its_profile_its_shard_and_the_ledgers(learning: Learning, state: SharedState) -> None:
    learning.learn(1, [ROW])
    assert state.profile(INDEX).samples == 1
    assert [load.measured for load in state.shards()] == [0.0, 0.5, 0.0]
    assert {policy: sum(costs) for policy, costs in state.ledgers().items()} == dict.fromkeys(state.ledgers(), 0.5)


def test_the_predicted_cost_of_what_was_measured_is_no_longer_pending(learning: Learning, state: SharedState) -> None:
    Placer(state, "bounded", 1.05, 1).charge_known(0, 0.001)
    assert state.loads()[0] == pytest.approx(0.001)  # the first guess of a call nobody has measured
    learning.learn(0, [ROW])
    assert state.loads()[0] == pytest.approx(0.5)


def test_events_of_one_row_go_to_one_shard_in_each_ledger(learning: Learning, state: SharedState) -> None:
    update = ROW._replace(operation="update")
    learning.learn(0, [ROW, ROW._replace(function="zip"), update, update])
    for costs in state.ledgers().values():
        assert sorted(costs) == pytest.approx([0.0, 0.0, 2.0])


def test_rows_that_follow_a_parent_stay_out_of_the_ledgers(learning: Learning, state: SharedState) -> None:
    learning.learn(0, [ROW._replace(function="spell", table_name="public.word")])
    assert sum(state.ledgers()["key-hash"]) == 0
    assert state.shard(0).measured == 0.5


@pytest.mark.parametrize("row_key", ["a name", "", str(2**63), "0198c5d4-7a52-8000-8000-000000000000"])
def test_keys_that_are_no_bigint_stay_out_of_the_ledgers(learning: Learning, state: SharedState, row_key: str) -> None:
    learning.learn(0, [ROW._replace(row_key=row_key)])
    assert sum(state.ledgers()["key-hash"]) == 0
    assert state.profile(INDEX).samples == 1


@pytest.mark.parametrize("cost", [math.inf, math.nan, -1.0])
def test_a_cost_that_is_no_cost_loads_nobody(learning: Learning, state: SharedState, cost: float) -> None:
    learning.learn(0, [ROW._replace(cpu_s=cost)])
    assert 0 <= state.shard(0).measured < 1e-6  # its memory is known
    assert state.profile(INDEX).means[0] == 0.001  # still the guess


def test_an_unknown_function_is_load_and_is_named(learning: Learning, state: SharedState) -> None:
    learning.learn(2, [ROW._replace(function="gone")])
    assert state.shard(2).measured == 0.5
    assert learning.unknown == {("gone", "insert")}


def test_priors_are_registered_ones_then_those_of_the_same_table_and_operation(
    learning: Learning, state: SharedState
) -> None:
    assert state.profile(SPELL).means[0] == 0.25
    assert state.profile(ZIP).means[0] == 0.001
    learning.learn(0, [ROW])
    learning.refresh_priors()
    learning.publish()
    assert state.profile(ZIP).means[:2] == pytest.approx([0.5, 100.0])
    assert state.profile(SPELL).means[:2] == pytest.approx([0.25, 100.0])
    assert state.profile(INDEX).means[:2] == pytest.approx([0.5, 100.0])


def test_what_waits_stays_pending_at_what_it_is_predicted_to_cost_by_now(
    learning: Learning, state: SharedState
) -> None:
    rows = [ROW._replace(size=1000.0 * n, cpu_s=0.01 * n, row_key=str(n)) for n in range(1, 200)]
    learning.learn(0, rows)
    measured = state.shard(0).measured
    Placer(state, "bounded", 1.05, 1).charge_known(0, 20.0)
    placed = state.shard(0).placed
    learning.settle(0, placed, [Waiting("index", "insert", 4, 50_000.0, 1.0), Waiting("gone", "insert", 9, 1, 1)])
    assert state.loads()[0] == pytest.approx(measured + 4 * 0.5, rel=0.02)
    learning.settle(0, placed, [Waiting("index", "insert", 4, 5000.0, 1.0)])
    assert state.loads()[0] == pytest.approx(measured + 4 * 0.05, rel=0.02)


def test_what_waits_without_known_features_is_pending_at_its_mean_cost(learning: Learning, state: SharedState) -> None:
    learning.learn(0, [ROW])
    learning.settle(0, state.shard(0).placed, [Waiting("index", "insert", 4, None, 1.0)])
    assert state.loads()[0] == pytest.approx(0.5 + 4 * 0.5)


def test_rows_are_kept_once_and_put_back_when_they_could_not_be(learning: Learning) -> None:
    learning.learn(0, [ROW])
    rows, history = learning.take_rows()
    assert [row.calls for row in rows] == [1]
    assert [row.reason for row in history] == ["first"]
    assert learning.take_rows() == ([], [])
    learning.put_back(rows, history)
    assert learning.take_rows() == (rows, history)


def test_a_kept_row_brings_everything_back(learning: Learning, state: SharedState) -> None:
    learning.learn(0, [ROW._replace(row_key=str(key), size=100.0 * key) for key in range(1, 80)])
    rows, _ = learning.take_rows()
    fresh = SharedState.private(3, len(INDEXES))
    fresh.set_capacities(state.capacities())
    after = Learning(CONFIG, fresh)
    copies = [msgspec.structs.replace(row, state=decode_state(row.profile_values()[-1])) for row in rows]  # type: ignore[arg-type]
    assert after.restore(copies) == []
    assert fresh.profile(INDEX) == state.profile(INDEX)
    after.learn(0, [ROW])
    assert after.take_rows()[0][0].calls == 80


def test_a_row_without_a_usable_state_brings_its_counters_and_is_named(learning: Learning) -> None:
    row = ProfileRow(function="index", operation="insert", version=7, calls=9, state=decode_state("[1"))
    assert learning.restore([row]) == [ProfileKey("index", "insert")]
    learning.learn(0, [ROW])
    kept = learning.take_rows()[0][0]
    assert (kept.calls, kept.samples, kept.version) == (10, 1, 8)


def test_ledgers_go_on_from_what_the_state_holds(state: SharedState) -> None:
    Learning(CONFIG, state).learn(0, [ROW])
    before = {policy: sum(costs) for policy, costs in state.ledgers().items()}
    Learning(CONFIG, state).learn(0, [ROW._replace(row_key="2")])
    assert {policy: sum(costs) for policy, costs in state.ledgers().items()} == {
        policy: total + 0.5 for policy, total in before.items()
    }


def test_a_shard_that_is_down_gets_nothing_in_the_ledgers_either(learning: Learning, state: SharedState) -> None:
    learning.set_up(1, False)
    learning.learn(0, [ROW._replace(row_key=str(key)) for key in range(100)])
    assert all(costs[1] == 0 for costs in state.ledgers().values())
    assert not state.shard(1).up
