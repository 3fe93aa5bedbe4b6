"""How eagerly shards are evened out: the numbers of a rebalancer, with what each is for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Ratios are of a shard's load to what its weight entitles it to. `bench balance` runs with these values."""

    start: float = 1.15  # a shard above it, for `rounds_min` rounds in a row, is relieved
    least: float = 0.05  # of what a shard of its weight can do: one that is asked for less is never relieved
    goal: float = 1.05  # until no shard is above this
    rounds_min: int = 2
    rows_share: float = 0.02  # of all rows: what moves may carry at most within `budget_s`, if that is more than
    rows_least: float = 1_000.0  # that are always allowed: as good as nothing, wherever there are few
    budget_s: float = 60.0
    cooldown_s: float = 600.0  # a bucket that was moved stays for so long
    smoothing: float = 0.5  # weight of the newest round; the rest is what was known before
    worth: float = 0.25  # a move that brings less than this share of what the best one would is not weighed against it
    copy_rows_per_s: float = 20_000.0  # what a move carries while its bucket is written: each write is copied again

    def __post_init__(self) -> None:
        if not 1.0 <= self.goal < self.start:
            raise ValueError(f"goal {self.goal} must be at least 1 and below start {self.start}")
        if not 0.0 < self.smoothing <= 1.0 or not 0.0 <= self.worth <= 1.0 or not 0.0 < self.rows_share <= 1.0:
            raise ValueError("smoothing, worth and rows_share are shares: above 0, at most 1")
        if self.rounds_min < 1 or min(self.cooldown_s, self.budget_s) < 0 or self.copy_rows_per_s <= 0:
            raise ValueError("rounds_min is at least 1, cooldown_s and budget_s not negative, copy_rows_per_s positive")
