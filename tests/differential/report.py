"""Counts of a run: statements by kind and tier, and what was refused for which reason."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

EXAMPLES_MAX = 3


@dataclass
class Tally:
    """What was asked and what came of it."""

    asked: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    tiers: Counter[tuple[str, str]] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    kinds_of_reason: dict[str, Counter[str]] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=list)
    mismatches: list[str] = field(default_factory=list)

    def add(self, kind: str, tier: str, sqlstate: str, reason: str) -> None:
        """One statement that was answered; `reason` when it was refused."""
        self.asked[kind] += 1
        self.tiers[kind.partition(" ")[0], tier] += 1
        if reason:
            self.refused[kind] += 1
            self.reasons[reason] += 1
            self.kinds_of_reason.setdefault(reason, Counter())[kind] += 1
        elif sqlstate:
            self.failed[kind] += 1

    def keep_example(self, reason: str, sql: str) -> None:
        """A statement that was refused."""
        kept = self.examples.setdefault(reason, [])
        if len(kept) < EXAMPLES_MAX and sql not in kept:
            kept.append(sql)

    @property
    def refused_share(self) -> float:
        """The part of all statements that was answered with 0A000."""
        return self.refused.total() / max(self.asked.total(), 1)

    def as_json(self) -> dict[str, Any]:
        """Everything, for programs."""
        return {
            "seeds": self.seeds,
            "statements": self.asked.total(),
            "refused": self.refused.total(),
            "refused_share": self.refused_share,
            "kinds": {
                kind: {"asked": count, "failed": self.failed[kind], "refused": self.refused[kind]}
                for kind, count in sorted(self.asked.items())
            },
            "tiers": {f"{kind}: {tier}": count for (kind, tier), count in sorted(self.tiers.items())},
            "reasons": [
                {
                    "reason": reason,
                    "count": count,
                    "kinds": dict(self.kinds_of_reason[reason]),
                    "examples": self.examples.get(reason, []),
                }
                for reason, count in self.reasons.most_common()
            ],
            "mismatches": self.mismatches,
        }

    def lines(self) -> list[str]:
        """Everything, for people."""
        total = self.asked.total()
        found = [f"{total} statements, {self.refused.total()} refused with 0A000 ({self.refused_share:.2%})", ""]
        found.append(f"{'kind':34} {'asked':>7} {'errors':>7} {'0A000':>6}")
        for kind, count in sorted(self.asked.items()):
            found.append(f"{kind:34} {count:7} {self.failed[kind]:7} {self.refused[kind]:6}")
        found += ["", f"{'answered by':50} {'statements':>10}"]
        for (kind, tier), count in sorted(self.tiers.items()):
            found.append(f"{kind + ': ' + tier:50} {count:10}")
        if self.reasons:
            found += ["", "refused because"]
        for reason, count in self.reasons.most_common():
            found.append(f"{count:6} {count / total:.2%}  {reason}")
            found += [f"{'':15}{sql[:240]}" for sql in self.examples.get(reason, [])[:1]]
        return found
