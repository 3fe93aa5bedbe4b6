"""The shared state: what it keeps, for whom, and what it refuses."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from foreshard._core.buckets import initial_map
from foreshard._core.errors import ForeshardError
from foreshard._core.placement import Placer
from foreshard._core.shared import POLICIES, SharedState

MODEL = {
    "weights": [[0.1, 0.001, 0.01, 0.5], [0, 2, 0, 0], [0, 0, 3, 0], [0, 0, 0, 0]],
    "floors": [0.05, 0, 0, 0],
    "ceilings": [30, 1e12, 1e12, 0],
    "means": [4, 40, 400, 0],
    "samples": 17,
    "version": 3,
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state"


def test_a_new_state_has_the_first_map_and_all_shards_up(path: Path) -> None:
    state = SharedState.create(path, 3, 2)
    epoch, owners = state.bucket_map()
    assert epoch == 0
    assert owners.tolist() == initial_map(3)
    assert [(shard.up, shard.weight, shard.load) for shard in state.shards()] == [(True, 1.0, 0.0)] * 3
    assert sum(shard.buckets for shard in state.shards()) == 4096
    assert state.predict(0, [1, 10, 10, 1]) == [0, 0, 0, 0]


def test_two_processes_see_one_state(path: Path) -> None:
    controller = SharedState.create(path, 3, 2, fingerprint=7)
    router = SharedState.open(path, 3, 2, 7)
    controller.set_bucket_map([2] * 4096, epoch=5)
    controller.set_weight(1, 2.5)
    controller.set_up(0, False)
    controller.set_profile(1, **MODEL)  # type: ignore[arg-type]
    controller.add_measured(2, 10.0)
    assert (router.epoch, router.owner_of(4095)) == (5, 2)
    assert (router.shard(1).weight, router.shard(0).up, router.shard(2).load) == (2.5, False, 10.0)
    assert router.profile(1) == controller.profile(1)
    Placer(router).charge_known(2, 4.0)
    assert controller.shard(2).placed == 4.0
    assert controller.loads() == [0.0, 0.0, 14.0]


def test_state_outlives_its_processes(path: Path) -> None:
    state = SharedState.create(path, 2, 0)
    state.add_measured(1, 3.0)
    del state
    assert SharedState.attach(path, 2, 0).loads() == [0.0, 3.0]


def test_attach_makes_a_missing_file_and_replaces_one_made_for_something_else(path: Path) -> None:
    SharedState.attach(path, 2, 0).add_measured(0, 1.0)
    assert SharedState.attach(path, 2, 0).loads() == [1.0, 0.0]
    assert SharedState.attach(path, 3, 0).loads() == [1.0, 0.0, 0.0]  # shards come while it is in use
    assert SharedState.attach(path, 3, 0, fingerprint=1).fingerprint == 1
    assert os.listdir(path.parent) == ["state"]


def test_creating_leaves_who_has_the_old_file_mapped_alone(path: Path) -> None:
    old = SharedState.create(path, 2, 0)
    SharedState.create(path, 2, 0).add_measured(0, 1.0)
    assert old.loads() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ((3, 2, 7), "made for 1 profiles, the configuration has 2"),
        ((3, 1, 8), "other shards or trigger functions"),
    ],
)
def test_a_state_of_another_configuration_is_refused(path: Path, asked: tuple[int, int, int], message: str) -> None:
    SharedState.create(path, 3, 1, fingerprint=7)
    with pytest.raises(ForeshardError, match=message):
        SharedState.open(path, *asked)


@pytest.mark.parametrize("content", [b"", b"x" * 63, b"x" * 64, b"x" * 100_000])
def test_a_file_that_is_no_state_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(ForeshardError, match="not a shared state file"):
        SharedState.open(path)


def test_a_cut_or_altered_file_is_refused(path: Path) -> None:
    SharedState.create(path, 3, 1)
    whole = path.read_bytes()
    path.write_bytes(whole[:-64])
    with pytest.raises(ForeshardError, match="shorter than its own header says"):
        SharedState.open(path)
    path.write_bytes(whole[:8] + b"\1" + whole[9:])
    with pytest.raises(ForeshardError, match="another version"):
        SharedState.open(path)


def test_a_missing_file_is_named(path: Path) -> None:
    with pytest.raises(ForeshardError, match=str(path)):
        SharedState.open(path)


def test_load_counts_pending_predictions_and_never_falls_below_measured() -> None:
    state = SharedState.private(2)
    placer = Placer(state)
    placer.charge_known(0, 10.0)
    state.add_measured(0, 3.0, settled=2.0)
    assert state.shard(0).load == 3.0 + 10.0 - 2.0
    state.add_measured(0, 4.0, settled=20.0)
    assert state.shard(0).load == 7.0


def test_an_empty_outbox_settles_what_had_been_placed_by_then() -> None:
    state = SharedState.private(1)
    placer = Placer(state)
    placer.charge_known(0, 10.0)
    seen = state.shard(0).placed
    placer.charge_known(0, 1.0)
    state.settle_all(0, seen)
    assert state.loads() == [1.0]


def test_a_new_epoch_of_loads_begins_at_nothing() -> None:
    state = SharedState.private(2)
    Placer(state).charge_known(1, 10.0)
    state.add_measured(0, 3.0)
    state.reset_measured()
    assert state.loads() == [0.0, 0.0]


def test_prediction_is_the_clipped_product_of_weights_and_features() -> None:
    state = SharedState.private(1, 2)
    state.set_profile(1, **MODEL)  # type: ignore[arg-type]
    assert state.predict(1, [1, 100, 10, 1]) == pytest.approx([0.1 + 0.1 + 0.1 + 0.5, 200, 30, 0])
    assert state.predict(1, [1, 1e9, 10, 1])[0] == 30
    state.set_profile(1, **{**MODEL, "weights": [[0] * 4] * 4})  # type: ignore[arg-type]
    assert state.predict(1, [1, 100, 10, 1]) == [0.05, 0, 0, 0]


def test_rows_cost_n_times_their_mean_row() -> None:
    state = SharedState.private(1, 1)
    state.set_profile(0, **MODEL)  # type: ignore[arg-type]
    one = state.predict(0, [1, 100, 10, 3])
    assert state.predict(0, [3, 300, 30, 9]) == pytest.approx([3 * cost for cost in one])
    assert state.predict(0, [3, 3e9, 30, 9])[0] == 3 * 30


def test_a_degraded_profile_costs_its_mean() -> None:
    state = SharedState.private(1, 1)
    state.set_profile(0, **MODEL, degraded=True)  # type: ignore[arg-type]
    assert state.predict(0, [2, 300, 30, 4]) == [8, 80, 800, 0]
    assert state.profile(0).degraded


def test_scalar_cost_is_the_scarcest_resource() -> None:
    state = SharedState.private(1)
    state.set_capacities([2.0, 1e9, 1e8, 1e8])
    assert state.scalar_of([1.0, 1e8, 1e7, None]) == 0.5
    assert state.scalar_of([1.0, 1e8, 2e8, None]) == 2.0
    assert state.scalar_of([0, 0, 0, 0]) == 0


def test_ledgers_are_kept_by_policy() -> None:
    state = SharedState.private(2)
    state.set_ledger("two-choices", [1.0, 2.0])
    assert state.ledgers() == {policy: [1.0, 2.0] if policy == "two-choices" else [0.0, 0.0] for policy in POLICIES}


def test_a_bucket_map_can_be_an_array() -> None:
    state = SharedState.private(2)
    state.set_bucket_map(np.ones(4096, dtype=np.uint16), 1)
    assert state.shard(1).buckets == 4096


def test_what_does_not_fit_is_refused() -> None:
    state = SharedState.private(2, 1)
    with pytest.raises(ValueError, match="4096 entries"):
        state.set_bucket_map([0] * 4095, 1)
    with pytest.raises(IndexError, match="shard 2"):
        state.set_bucket_map([0] * 4095 + [2], 1)
    with pytest.raises(IndexError, match="shard -1"):
        state.shard(-1)
    with pytest.raises(IndexError, match="profile 1"):
        state.profile(1)
    with pytest.raises(IndexError, match="bucket 4096"):
        state.owner_of(4096)
    with pytest.raises(ValueError, match="above 0"):
        state.set_weight(0, 0)
    with pytest.raises(ValueError, match="capacities"):
        state.set_capacities([1, 0, 1, 1])
    with pytest.raises(ValueError, match="4 lists"):
        state.set_profile(0, **{**MODEL, "weights": [[0] * 4]})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="shards"):
        SharedState.private(0)
    assert state.epoch == 0
    assert state.bucket_map()[1].tolist() == initial_map(2)


def test_readers_and_the_next_writer_outlive_a_writer_that_died_in_a_change(path: Path) -> None:
    state = SharedState.create(path, 2, 1)
    map_sequence, profile_sequence = (
        64,
        path.stat().st_size - 256 - 5 * 128 * 8 - 4096 * 64,
    )  # ledgers and demand follow
    data = bytearray(path.read_bytes())
    for place in (map_sequence, profile_sequence):
        assert data[place] == 0
        with path.open("r+b") as file:
            file.seek(place)
            file.write(b"\1")
    assert state.bucket_map()[1].tolist() == initial_map(2)
    assert state.predict(0, [1, 1, 1, 1]) == [0, 0, 0, 0]
    state.set_bucket_map([1] * 4096, 1)
    state.set_profile(0, **MODEL)  # type: ignore[arg-type]
    assert [path.read_bytes()[place] for place in (map_sequence, profile_sequence)] == [2, 2]
    assert state.profile(0).samples == 17


def test_shards_come_and_go_while_it_is_in_use(path: Path) -> None:
    state = SharedState.create(path, 2, 1)
    other = SharedState.open(path)
    state.set_ledger("bounded", [1.0, 2.0])
    state.resize(3)
    state.clear_shard(2)
    state.set_weight(2, 4.0)
    state.set_bucket_map([0, 1, 2, 2] * 1024, 5)
    assert [shard.buckets for shard in state.shards()] == [1024, 1024, 2048]
    assert other.shard_count == 2
    with pytest.raises(IndexError):
        other.shard(2)
    other.resize(3)
    assert other.shard(2).weight == 4.0
    state.resize(2)
    state.resize(3)
    state.clear_shard(2)
    assert state.shard(2).weight == 1.0
    assert state.ledgers()["bounded"] == [1.0, 2.0, 0.0]
    for count in (0, 129):
        with pytest.raises(ValueError, match="room for"):
            state.resize(count)
