"""Profile indexes: the same in every process that reads the same configuration."""

from __future__ import annotations

from pathlib import Path

from foreshard.proxy.config import Config, TriggerConfig
from foreshard.proxy.profiles import ProfileKey, profile_indexes, profile_keys


def trigger(name: str, *operations: str) -> TriggerConfig:
    return TriggerConfig(name=name, table="document", on=operations, function=f"functions:{name}")


def test_profiles_are_sorted_by_trigger_name_then_insert_update_delete() -> None:
    config = Config(path=Path("f.yaml"), triggers=(trigger("zip", "delete", "insert"), trigger("index", "update")))
    assert profile_keys(config) == (
        ProfileKey("index", "update"),
        ProfileKey("zip", "insert"),
        ProfileKey("zip", "delete"),
    )
    assert profile_indexes(config)[ProfileKey("zip", "delete")] == 2


def test_the_order_of_triggers_in_the_file_does_not_matter() -> None:
    triggers = (trigger("b", "insert", "update"), trigger("a", "insert"))
    forwards = Config(path=Path("f.yaml"), triggers=triggers)
    backwards = Config(path=Path("f.yaml"), triggers=triggers[::-1])
    assert profile_keys(forwards) == profile_keys(backwards)


def test_a_configuration_without_triggers_has_no_profiles() -> None:
    assert profile_keys(Config(path=Path("f.yaml"))) == ()
