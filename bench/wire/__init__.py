"""What the relay costs: pgbench through nothing, PgBouncer and Foreshard, interleaved in one run."""

from __future__ import annotations

from bench.wire.command import run

__all__ = ["run"]
