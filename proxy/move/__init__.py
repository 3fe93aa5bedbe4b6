"""Moves of buckets between shards: all rows of a bucket, their events, and who owns it, in one transaction."""

from foreshard.proxy.move.transfer import Transfer

__all__ = ["Transfer"]
