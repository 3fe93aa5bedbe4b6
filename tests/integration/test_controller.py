"""The controller against real shards: measurements in; profiles, models, loads and ledgers out."""

from __future__ import annotations

from pathlib import Path

import pytest

from foreshard.proxy.placement import Placer
from foreshard.proxy.profiles import ProfileKey, profile_indexes
from tests.support.controlled import Gate, controller, measure, new_state, prepare, until, with_dsns
from tests.support.postgres import Shards

COUNT = "SELECT count(*) FROM foreshard.measurement"


async def test_measurements_become_models_loads_and_ledgers(three_shards: Shards, tmp_path: Path) -> None:
    config = await prepare(three_shards, tmp_path)
    state = new_state(config)
    index = profile_indexes(config)[ProfileKey("index", "insert")]
    measure(three_shards, on=0, calls=200)
    measure(three_shards, on=2, calls=200, first_key=1001)
    async with controller(config, state):
        await until(lambda: state.profile(index).samples == 400)
        await until(lambda: min(state.shard(0).measured, state.shard(2).measured) > 0)
        assert state.predict(index, (1, 5000, 4, 1))[0] == pytest.approx(0.006, rel=0.05)
        # 20 calls each of 2 ms to 11 ms
        assert state.loads() == pytest.approx([1.3, 0.0, 1.3])
        assert sum(state.ledgers()["key-hash"]) == pytest.approx(2.6)
    assert all(three_shards.query(COUNT, on=shard) == [(0,)] for shard in range(3))
    kept = three_shards.query("SELECT calls, samples, cpu_seconds, q_median, means[4] FROM foreshard.profile")
    assert [row[:2] for row in kept] == [(400, 400)]
    assert kept[0][2] == pytest.approx(2.6)
    assert kept[0][3] == pytest.approx(1.0, abs=0.05)
    assert kept[0][4] is None  # network was never known


async def test_a_new_controller_goes_on_from_what_was_kept(three_shards: Shards, tmp_path: Path) -> None:
    config = await prepare(three_shards, tmp_path)
    index = profile_indexes(config)[ProfileKey("index", "insert")]
    measure(three_shards, calls=100)
    state = new_state(config)
    async with controller(config, state):
        await until(lambda: state.profile(index).samples == 100)
    learned = state.profile(index)
    after = new_state(config)
    async with controller(config, after):
        await until(lambda: after.profile(index).samples == 100)
        assert after.profile(index) == learned
        measure(three_shards, calls=28)
        await until(lambda: after.profile(index).samples == 128)
    assert three_shards.query("SELECT calls, version FROM foreshard.profile") == [(128, 4)]
    history = three_shards.query("SELECT reason, samples FROM foreshard.profile_history ORDER BY version")
    assert history == [("first", 1), ("grown", 32), ("grown", 64), ("grown", 128)]


async def test_functions_without_measurements_are_expected_to_cost_what_comparable_ones_do(
    three_shards: Shards, tmp_path: Path
) -> None:
    config = await prepare(three_shards, tmp_path)
    indexes = profile_indexes(config)
    state = new_state(config)
    measure(three_shards, calls=100)
    async with controller(config, state):
        await until(lambda: state.profile(indexes[ProfileKey("zip", "insert")]).means[0] > 0.005)
    measured = state.profile(indexes[ProfileKey("index", "insert")]).means
    assert state.profile(indexes[ProfileKey("zip", "insert")]).means == pytest.approx(measured)


async def test_measurements_of_unknown_functions_count_as_load_only(
    one_shard: Shards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = await prepare(one_shard, tmp_path)
    state = new_state(config)
    measure(one_shard, calls=10, function="gone")
    async with controller(config, state) as running:
        await until(lambda: state.shard(0).measured > 0)
        await until(lambda: running.learning.unknown and "gone insert" in capsys.readouterr().err)
    assert one_shard.query("SELECT count(*) FROM foreshard.profile") == [(0,)]


async def test_an_empty_outbox_settles_what_was_placed_and_a_waiting_event_keeps_its_part(
    one_shard: Shards, tmp_path: Path
) -> None:
    config = await prepare(one_shard, tmp_path)
    state = new_state(config)
    one_shard.execute(
        """INSERT INTO foreshard.outbox (lane, lsn, xid, ordinal, function, operation, table_name, row_key, new, volume,
             depth, captured_at)
           VALUES (0, '0/1', '1', 1, 'index', 'insert', 'public.document', '1', '{}', 1, 0, now())"""
    )
    router = Placer(state)
    router.charge_known(0, 5.0)
    async with controller(config, state):
        await until(lambda: state.shard(0).settled > 0)
        assert state.loads()[0] == pytest.approx(1e-3)  # the one that waits, at the first guess
        one_shard.execute("DELETE FROM foreshard.outbox")
        router.charge_known(0, 5.0)
        await until(lambda: state.shard(0).settled == state.shard(0).placed)
        assert state.loads() == [0.0]


async def test_a_shard_that_is_down_gets_no_rows_until_it_is_back(
    three_shards: Shards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = await prepare(three_shards, tmp_path)
    gate = Gate(config.shards[1].dsn)
    await gate.open()
    config = with_dsns(config, {1: gate.dsn})
    state = new_state(config)
    index = profile_indexes(config)[ProfileKey("index", "insert")]
    async with controller(config, state):
        measure(three_shards, on=1, calls=10)
        await until(lambda: state.profile(index).samples == 10)
        await gate.shut()
        await until(lambda: not state.shard(1).up)
        measure(three_shards, on=1, calls=10)
        measure(three_shards, on=0, calls=10)
        await until(lambda: state.profile(index).samples == 20)  # the others go on
        assert state.shard(0).up
        await gate.open()
        await until(lambda: state.profile(index).samples == 30)
        assert state.shard(1).up
    await gate.shut()
    lines = [line for line in capsys.readouterr().err.splitlines() if "the query node" not in line]
    assert [line.split(": ")[1] for line in lines] == ["shard s1", "shard s1"]
    assert lines[1].endswith("works again")


async def test_profiles_wait_in_memory_while_the_control_database_is_down(
    three_shards: Shards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = await prepare(three_shards, tmp_path)
    gate = Gate(config.shards[0].dsn)
    await gate.open()
    config = with_dsns(config, {}, control=gate.dsn)
    state = new_state(config)
    index = profile_indexes(config)[ProfileKey("index", "insert")]
    async with controller(config, state):
        measure(three_shards, calls=10)
        await until(lambda: three_shards.query("SELECT calls FROM foreshard.profile") == [(10,)])
        await gate.shut()
        measure(three_shards, calls=10)
        await until(lambda: state.profile(index).samples == 20)
        await until(lambda: "control database" in capsys.readouterr().err)
        await gate.open()
        await until(lambda: three_shards.query("SELECT calls FROM foreshard.profile") == [(20,)])
    await gate.shut()


async def test_nothing_is_measured_before_the_kept_profiles_are_there(three_shards: Shards, tmp_path: Path) -> None:
    config = await prepare(three_shards, tmp_path)
    gate = Gate(config.shards[0].dsn)
    await gate.open()
    config = with_dsns(config, {}, control=gate.dsn)
    await gate.shut()
    measure(three_shards, on=1, calls=10)
    state = new_state(config)
    index = profile_indexes(config)[ProfileKey("index", "insert")]
    async with controller(config, state) as running:
        await until(lambda: running.store.trouble is not None)
        assert three_shards.query(COUNT, on=1) == [(10,)]
        await gate.open()
        await until(lambda: state.profile(index).samples == 10)
    await gate.shut()


async def test_a_controller_stops_while_the_control_database_is_down(three_shards: Shards, tmp_path: Path) -> None:
    config = await prepare(three_shards, tmp_path)
    gate = Gate(config.shards[0].dsn)
    await gate.open()
    await gate.shut()
    async with controller(with_dsns(config, {}, control=gate.dsn), new_state(config)) as running:
        await until(lambda: running.store.trouble is not None)
