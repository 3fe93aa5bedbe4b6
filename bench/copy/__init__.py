"""COPY FROM STDIN of rows with keys: split over four shards through Foreshard, against one PostgreSQL."""

from __future__ import annotations

from bench.copy.command import run

__all__ = ["run"]
