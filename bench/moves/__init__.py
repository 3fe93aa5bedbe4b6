"""Moves of buckets while clients work: how long writers of the bucket wait, and how much slower everybody else is."""

from __future__ import annotations

from bench.moves.command import run

__all__ = ["run"]
