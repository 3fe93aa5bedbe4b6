"""The figures a demo ends with: read from the running proxy and the shards, shown as tables, written as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

from foreshard.proxy.demo.display import Display
from foreshard.proxy.placement import Spread


class FunctionFigures(msgspec.Struct, frozen=True):
    """Predicted against measured cost of one trigger function on one operation."""

    calls: int
    median_q: float | None  # q-error of the last 256: predicted over measured or the inverse, whichever is above 1
    p95_q: float | None
    cpu_seconds: float


class Balance(msgspec.Struct, frozen=True):
    """How even the shards were at one time."""

    by_policy: dict[str, float]  # max/mean: measured for the policy in use, by the shadow ledgers for others
    key_hash_expected: Spread  # of key-hash on the same rows, over many draws of their keys


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What the demo found."""

    rows: int
    inserted: int
    updates: int
    found: int
    misplaced: int
    outbox_left: int
    dead_letters: int
    effects_lost: int
    effects_repeated: int
    findings: int  # of `foreshard verify`
    reconnects: int
    seconds: float
    rows_per_shard: dict[str, int]
    cost_s_per_shard: dict[str, float]
    policy: str
    balance_inserts: dict[str, float] | None  # of the first half of the documents, before any update; None on reuse
    balance: dict[str, float]
    key_hash_expected_inserts: Spread | None
    key_hash_expected: Spread
    functions: dict[str, FunctionFigures]  # over all operations: sums, and the worse q-errors
    profiles: dict[str, FunctionFigures]  # by "function on operation"

    def failures(self) -> list[str]:
        """What is wrong, one line each; nothing when all is well."""
        checks = [
            (self.rows - self.found, "of {rows} rows were not found by their key through the proxy"),
            (self.misplaced, "rows are not on exactly the shard that their key names"),
            (self.outbox_left, "events are left in the outbox"),
            (self.dead_letters, "events are dead letters"),
            (self.effects_lost, "documents lack an effect of a trigger function"),
            (self.effects_repeated, "documents have an effect of a trigger function twice"),
            (self.findings, "findings of foreshard verify"),
        ]
        return [f"{count} {text.format(rows=self.rows)}" for count, text in checks if count]

    def write(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps(msgspec.to_builtins(self), indent=2) + "\n")

    def show(self, display: Display) -> None:
        """As tables."""
        total_s = sum(self.cost_s_per_shard.values())
        rows = [
            (
                name,
                f"{count:,}",
                f"{self.cost_s_per_shard[name]:.2f}",
                f"{100 * self.cost_s_per_shard[name] / total_s:.1f} %" if total_s else "-",
            )
            for name, count in self.rows_per_shard.items()
        ]
        display.table("Rows and executed cost", ["shard", "documents", "cost, s", "share"], rows)
        self._show_balance(display)
        functions = [
            (name, f"{figures.calls:,}", f"{figures.cpu_seconds:.2f}", ratio(figures.median_q), ratio(figures.p95_q))
            for name, figures in self.profiles.items()
        ]
        headings = ["function", "calls", "CPU, s", "median", "95th percentile"]
        display.table(
            "Predicted against measured cost (q-error of the last 256 calls: 1 is exact)", headings, functions
        )
        checks = [
            ("rows inserted and found again by key", f"{self.found:,} of {self.rows:,}"),
            ("rows not on exactly the shard their key names", f"{self.misplaced:,}"),
            ("events left in the outbox", f"{self.outbox_left:,}"),
            ("dead letters", f"{self.dead_letters:,}"),
            ("documents with an effect lost", f"{self.effects_lost:,}"),
            ("documents with an effect made twice", f"{self.effects_repeated:,}"),
            ("findings of foreshard verify, over all shards and tables", f"{self.findings:,}"),
        ]
        display.table("Checked", ["", "count"], checks)

    def _show_balance(self, display: Display) -> None:
        columns = [("at the end", self.balance, self.key_hash_expected)]
        if self.balance_inserts is not None and self.key_hash_expected_inserts is not None:
            columns.insert(0, ("first inserts", self.balance_inserts, self.key_hash_expected_inserts))
        rows = [
            (
                policy,
                *(ratio(figures.get(policy), 3) for _, figures, _ in columns),
                "in use, measured" if policy == self.policy else "shadow",
            )
            for policy in self.balance
        ]
        rows += [
            (
                "key-hash, expected",
                *(f"{spread.median:.3f}" for _, _, spread in columns),
                "median of 1,000 draws of the keys",
            ),
            ("", *(f"{spread.low:.2f}-{spread.high:.2f}" for _, _, spread in columns), "eight draws of ten"),
        ]
        display.table(
            "Cost of the fullest shard over the mean: 1 is even (a shadow decides when an insert's work is done)",
            ["policy", *(heading for heading, _, _ in columns), ""],
            rows,
        )


def by_function(profiles: dict[str, FunctionFigures]) -> dict[str, FunctionFigures]:
    """Figures by function, of those by "function on operation"."""
    found: dict[str, FunctionFigures] = {}
    for name, figures in profiles.items():
        function = name.partition(" on ")[0]
        other = found.get(function, FunctionFigures(0, None, None, 0.0))
        found[function] = FunctionFigures(
            calls=figures.calls + other.calls,
            median_q=worse(figures.median_q, other.median_q),
            p95_q=worse(figures.p95_q, other.p95_q),
            cpu_seconds=round(figures.cpu_seconds + other.cpu_seconds, 3),
        )
    return found


def worse(one: float | None, other: float | None) -> float | None:
    """The greater of two q-errors, as far as they are known."""
    return max((value for value in (one, other) if value is not None), default=None)


def ratio(value: float | None, digits: int = 2) -> str:
    """A ratio, or a dash while nothing was measured."""
    return "-" if value is None else f"{value:.{digits}f}"
