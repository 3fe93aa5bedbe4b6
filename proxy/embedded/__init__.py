"""Embedded PostgreSQL shards: found, initialised, started, adopted, stopped."""
