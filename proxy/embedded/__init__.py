"""Embedded PostgreSQL shards: found, initialised, started, adopted, stopped."""

from foreshard.proxy.embedded.binaries import Binaries, find_binaries
from foreshard.proxy.embedded.cluster import EmbeddedCluster, resolve_shards, running_shards

__all__ = ["Binaries", "EmbeddedCluster", "find_binaries", "resolve_shards", "running_shards"]
