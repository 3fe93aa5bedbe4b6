"""What a verification finds, as values, and how it is told: a table of findings, or JSON.

A finding is something that is wrong; a note is something that an operator should know and that is not.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import msgspec

KEYS_SHOWN = 5
WIDTH = 110


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was found, on one place."""

    check: str  # what kind: "misplaced", "doubled", "sequence" ...
    place: str  # "shard s0", "shards s0 and s2", "control database"
    subject: str  # the table, or the object
    what: str
    count: int
    keys: tuple[str, ...] = ()  # the first few
    remedy: str = ""


class Counted(msgspec.Struct, frozen=True, kw_only=True):
    """How many rows of a table on a shard were looked at."""

    table: str
    shard: str
    rows: int


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """The result of one verification."""

    findings: tuple[Finding, ...]
    notes: tuple[Finding, ...]
    counted: tuple[Counted, ...]
    unreachable: tuple[str, ...] = ()  # what could not be looked at, and why
    is_quick: bool = False
    seconds: float = 0.0

    @property
    def is_clean(self) -> bool:
        """Whether everything was looked at and nothing is wrong."""
        return not self.findings and not self.unreachable

    @property
    def rows(self) -> int:
        return sum(counted.rows for counted in self.counted)

    def to_json(self) -> bytes:
        """The whole result, for programs."""
        built = {"clean": self.is_clean, "rows": self.rows, **msgspec.to_builtins(self)}
        return msgspec.json.format(msgspec.json.encode(built), indent=2)


def first_keys(keys: Sequence[str]) -> tuple[str, ...]:
    """As many keys as a finding holds."""
    return tuple(keys[:KEYS_SHOWN])


def verdict_lines(verdict: Verdict) -> list[str]:
    """The result in plain lines, findings first."""
    lines = []
    if verdict.findings:
        lines += _table(verdict.findings)
    if verdict.notes:
        lines += ["", "For information:", *_table(verdict.notes)]
    lines += [f"could not look: {line}" for line in verdict.unreachable]
    tables = len({counted.table for counted in verdict.counted})
    looked = f"{verdict.rows:,} rows in {tables} tables, {verdict.seconds:.1f} s" + (
        "; quick: ranges and aggregates only" if verdict.is_quick else ""
    )
    if verdict.is_clean:
        return [*lines, f"clean: {looked}"]
    count = len(verdict.findings)
    return [*lines, f"{count} finding{'s' * (count != 1)}: {looked}"]


def _table(findings: Sequence[Finding]) -> list[str]:
    """Place, subject and number in columns, the words beside them, what to do below."""
    rows = [(finding.place, finding.subject, f"{finding.count:,}") for finding in findings]
    headings = ("place", "what of", "count")
    widths = [max(len(heading), *(len(row[at]) for row in rows)) for at, heading in enumerate(headings)]
    lines = [f"{headings[0]:<{widths[0]}}  {headings[1]:<{widths[1]}}  {headings[2]:>{widths[2]}}  found"]
    margin = " " * (sum(widths) + 6)
    for finding, row in zip(findings, rows, strict=True):
        start = f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]:>{widths[2]}}  "
        words = finding.what
        if finding.keys:
            words += f": {', '.join(finding.keys)}" + (" ..." if finding.count > len(finding.keys) else "")
        lines += textwrap.wrap(words, WIDTH, initial_indent=start, subsequent_indent=margin, break_long_words=False)
        if finding.remedy:
            lines += textwrap.wrap(
                f"-> {finding.remedy}", WIDTH, initial_indent=margin, subsequent_indent=margin + "   ",
                break_long_words=False,
            )  # fmt: skip
    return lines
