"""The shared state file that belongs to a configuration."""

from __future__ import annotations

import hashlib
from pathlib import Path

from foreshard._core.shared import SharedState
from foreshard.proxy.config import Config
from foreshard.proxy.profiles import profile_keys

STATE_FILE = "state"
DRAINING_WEIGHT = 1e-6  # what comes to a shard that is drained would move away soon


def fingerprint_of(config: Config) -> int:
    """Digest of what indexes mean; the state of another meaning is not reused. Shards come and go meanwhile."""
    names = [f"shard {config.shards[0].name}"]
    names += [f"profile {key.function} {key.operation}" for key in profile_keys(config)]
    return int.from_bytes(hashlib.sha256("\0".join(names).encode()).digest()[:8], "little")


def state_path(config: Config) -> Path:
    """Where the processes of this configuration find their shared state."""
    return config.run_directory / STATE_FILE


def attach_state(config: Config) -> SharedState:
    """Open or make the state of a configuration, with its weights and capacities (supervisor, before its children)."""
    placement = config.placement
    state = SharedState.attach(
        state_path(config), len(config.shards), len(profile_keys(config)), fingerprint_of(config)
    )
    set_weights(state, config)
    state.set_capacities(
        [
            placement.cpu_s_per_s,
            placement.memory_bytes,
            placement.io_bytes_per_s,
            placement.network_bytes_per_s,
        ]
    )
    return state


def set_weights(state: SharedState, config: Config) -> None:
    """What each shard is to take, by the configuration."""
    for index, shard in enumerate(config.shards):
        state.set_weight(index, shard.share or DRAINING_WEIGHT)


def open_state(config: Config) -> SharedState:
    """Open the state that the supervisor made (its children); ForeshardError when it is another configuration's."""
    return SharedState.open(state_path(config), len(config.shards), len(profile_keys(config)), fingerprint_of(config))
