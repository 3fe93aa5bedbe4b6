"""Embedded PostgreSQL shards: found, initialised, started, adopted, stopped."""

from foreshard.proxy.embedded.binaries import Binaries, find_binaries
from foreshard.proxy.embedded.cluster import (
    EmbeddedCluster,
    forget_instance,
    grown_shards,
    is_made,
    resolve_shards,
    running_shards,
    shard_names,
)
from foreshard.proxy.embedded.serving import keep_shards, served

__all__ = [
    "Binaries",
    "EmbeddedCluster",
    "find_binaries",
    "forget_instance",
    "grown_shards",
    "is_made",
    "keep_shards",
    "resolve_shards",
    "running_shards",
    "served",
    "shard_names",
]
