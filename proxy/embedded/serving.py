"""The shards that one proxy serves, as its supervisor tells its children: a file in the run directory."""

from __future__ import annotations

from pathlib import Path

import msgspec

from foreshard.proxy.config import Config, ShardConfig
from foreshard.proxy.embedded.cluster import resolve_shards

KEPT_FILE = "shards.json"


def kept_path(config: Config) -> Path:
    """Where the supervisor leaves the shards for its children."""
    return config.run_directory / KEPT_FILE


def keep_shards(config: Config) -> None:
    """Leave the shards where children look for them."""
    draft = kept_path(config).with_suffix(".draft")
    draft.touch(mode=0o600)  # a dsn may hold a password
    draft.write_bytes(msgspec.json.format(msgspec.json.encode(config.shards), indent=1) + b"\n")
    draft.rename(kept_path(config))


def served(config: Config) -> Config:
    """The configuration of a child: with the shards that its supervisor serves, those of the file without one."""
    try:
        shards = msgspec.json.decode(kept_path(config).read_bytes(), type=tuple[ShardConfig, ...])
    except FileNotFoundError:
        return resolve_shards(config)
    return msgspec.structs.replace(config, shards=shards)
