"""Which profiles a configuration has, and their indexes in shared state.

Every process derives the same tuple from the same configuration file, so an index alone names a profile.
"""

from __future__ import annotations

import msgspec

from foreshard.proxy.config import Config

OPERATIONS = ("insert", "update", "delete")  # the order of profiles of one function


class ProfileKey(msgspec.Struct, frozen=True, order=True):
    """Names one profile: a registered trigger function (by its name in `triggers:`) and an operation."""

    function: str
    operation: str  # one of OPERATIONS


def profile_keys(config: Config) -> tuple[ProfileKey, ...]:
    """Every profile of the configuration, by trigger name, then insert, update, delete; index = position."""
    return tuple(
        ProfileKey(trigger.name, operation)
        for trigger in sorted(config.triggers, key=lambda trigger: trigger.name)
        for operation in OPERATIONS
        if operation in trigger.on
    )


def profile_indexes(config: Config) -> dict[ProfileKey, int]:
    """Index of every profile by its key."""
    return {key: index for index, key in enumerate(profile_keys(config))}
