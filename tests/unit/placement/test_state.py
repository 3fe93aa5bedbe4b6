"""The state file of a configuration."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from foreshard.proxy.config import Config, PlacementConfig, ShardConfig, TriggerConfig
from foreshard.proxy.errors import ForeshardError
from foreshard.proxy.placement import attach_state, open_state
from foreshard.proxy.profiles import profile_keys


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(
        path=tmp_path / "foreshard.yaml",
        run_directory=tmp_path,
        shards=(ShardConfig(name="a", dsn=""), ShardConfig(name="b", dsn="", weight=2.0)),
        triggers=(TriggerConfig(name="f", table="t", on=("insert", "update"), function="m:f"),),
        placement=PlacementConfig(cpu_s_per_s=4.0),
    )


def test_the_state_has_the_weights_and_capacities_of_the_configuration(config: Config) -> None:
    state = attach_state(config)
    assert [shard.weight for shard in state.shards()] == [1.0, 2.0]
    assert state.capacities()[0] == 4.0
    assert state.profile_count == len(profile_keys(config))


def test_children_open_what_the_supervisor_made(config: Config) -> None:
    attach_state(config).add_measured(1, 2.0)
    assert open_state(config).loads() == [0.0, 2.0]


def test_children_refuse_the_state_of_another_configuration(config: Config) -> None:
    attach_state(config)
    renamed = msgspec.structs.replace(config, shards=(config.shards[1], config.shards[0]))
    with pytest.raises(ForeshardError, match="other shards or trigger functions"):
        open_state(renamed)


def test_children_say_who_makes_a_missing_state(config: Config) -> None:
    with pytest.raises(ForeshardError, match="foreshard serve"):
        open_state(config)


def test_loads_survive_a_restart_with_the_same_configuration(config: Config) -> None:
    attach_state(config).add_measured(0, 5.0)
    assert attach_state(config).loads() == [5.0, 0.0]
