"""Embedded PostgreSQL shards: found, initialised, started, adopted, stopped."""

from foreshard.proxy.embedded.binaries import Binaries, find_binaries
from foreshard.proxy.embedded.cluster import EmbeddedCluster, is_made, resolve_shards, running_shards, shard_names

__all__ = ["Binaries", "EmbeddedCluster", "find_binaries", "is_made", "resolve_shards", "running_shards", "shard_names"]
