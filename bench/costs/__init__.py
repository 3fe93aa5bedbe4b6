"""What several shards cost: statements through Foreshard over four shards against the same on one PostgreSQL."""

from __future__ import annotations

from bench.costs.command import run

__all__ = ["run"]
