"""What clients were told about rows, and whether the rows that are left can be the outcome of it.

Every row version has a *mark* that no other has. An act makes some and ends some, all or none; what its client heard is
that it happened, that it did not, or nothing (the connection broke). Clients end only rows whose mark they know, so an
act that nobody knows the outcome of ends those rows or nothing.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from enum import Enum
from typing import NamedTuple

Value = tuple[str, str]  # what must be unique, e.g. ("item.email", "a@b")


class Outcome(Enum):
    HAPPENED = "happened"
    REFUSED = "refused"
    UNKNOWN = "unknown"


class Row(NamedTuple):
    """One version of one row."""

    mark: str
    values: tuple[Value, ...]


class Act(NamedTuple):
    """What one client tried, between two moments of the test's clock."""

    made: tuple[Row, ...]
    ended: tuple[str, ...]
    outcome: Outcome
    began_s: float
    told_s: float  # infinity: it happened, but some shard shows it later


class Look(NamedTuple):
    """What one client saw of one value, between two moments of the test's clock."""

    value: Value
    mark: str | None  # of the row that holds it; None: no row does
    began_s: float
    told_s: float


def problems(acts: Collection[Act], left: Collection[Row]) -> list[str]:
    """Everything that contradicts what clients were told, or uniqueness; nothing when all is well."""
    return [*_doubles(left), *_untrue(acts, left), *_halves(acts, left), *_overlaps(acts)]


def _doubles(left: Iterable[Row]) -> Iterator[str]:
    """Two rows with one value."""
    holders: dict[Value, list[str]] = defaultdict(list)
    for row in left:
        for value in row.values:
            holders[value].append(row.mark)
    for value, marks in holders.items():
        if len(marks) > 1:
            yield f"{value} is held by {marks}"


def _untrue(acts: Collection[Act], left: Collection[Row]) -> Iterator[str]:
    """Rows that were acknowledged and are gone, and rows that should not be there."""
    present = {row.mark for row in left}
    maybe_ended = {mark for act in acts if act.outcome is not Outcome.REFUSED for mark in act.ended}
    maybe_made = {row.mark for act in acts if act.outcome is not Outcome.REFUSED for row in act.made}
    for mark in present - maybe_made:
        yield f"{mark} is there, and nobody made it"
    for act in acts:
        if act.outcome is Outcome.HAPPENED:
            for row in act.made:
                if row.mark not in present and row.mark not in maybe_ended:
                    yield f"{row.mark} was acknowledged and is lost"
            for mark in act.ended:
                if mark in present:
                    yield f"{mark} was acknowledged to be gone and is there"


def _halves(acts: Collection[Act], left: Collection[Row]) -> Iterator[str]:
    """Acts of which a part has happened."""
    present = {row.mark for row in left}
    surely_ended = {mark for act in acts if act.outcome is Outcome.HAPPENED for mark in act.ended}
    maybe_ended = {mark for act in acts if act.outcome is not Outcome.REFUSED for mark in act.ended}
    for act in acts:
        made = {row.mark for row in act.made}
        if act.outcome is Outcome.UNKNOWN and made & (present | surely_ended):
            missing = made - present - maybe_ended
            kept = set(act.ended) & present
            if missing or kept:
                yield f"half of an act: {made - missing} were made, {missing} not, {kept} not ended"


def _overlaps(acts: Collection[Act]) -> Iterator[str]:
    """Rows with one value that were there at one time for certain: from an acknowledgement to the first ending act."""
    ends_s: dict[str, float] = defaultdict(lambda: math.inf)
    for act in acts:
        if act.outcome is not Outcome.REFUSED:
            for mark in act.ended:
                ends_s[mark] = min(ends_s[mark], act.began_s)
    spans: dict[Value, list[tuple[float, float, str]]] = defaultdict(list)
    for act in acts:
        if act.outcome is Outcome.HAPPENED:
            for row in act.made:
                if act.told_s < ends_s[row.mark]:
                    for value in row.values:
                        spans[value].append((act.told_s, ends_s[row.mark], row.mark))
    for value, some in spans.items():
        some.sort()
        longest = some[0]
        for span in some[1:]:
            if span[0] < longest[1]:
                yield f"{value} was held by {longest[2]} and {span[2]} at one time"
            longest = max(longest, span, key=lambda each: each[1])


def wrong_looks(acts: Collection[Act], looks: Collection[Look]) -> Iterator[str]:
    """Looks that missed a row which was there all the time, or saw one that had gone before."""
    ends_s: dict[str, float] = defaultdict(lambda: math.inf)
    gone_s: dict[str, float] = {}
    for act in acts:
        if act.outcome is not Outcome.REFUSED:
            for mark in act.ended:
                ends_s[mark] = min(ends_s[mark], act.began_s)
                if act.outcome is Outcome.HAPPENED:
                    gone_s[mark] = act.told_s
    spans: dict[Value, list[tuple[float, float, str]]] = defaultdict(list)
    for act in acts:
        if act.outcome is Outcome.HAPPENED:
            for row in act.made:
                for value in row.values:
                    spans[value].append((act.told_s, ends_s[row.mark], row.mark))
    for look in looks:
        if look.mark is not None and gone_s.get(look.mark, math.inf) < look.began_s:
            ago_s = look.began_s - gone_s[look.mark]
            yield f"{look.value} was seen held by {look.mark}, which had gone {ago_s:.3f} s before"
        for told_s, end_s, mark in spans[look.value]:
            if told_s < look.began_s and look.told_s < end_s and look.mark != mark:
                yield f"{look.value} was seen held by {look.mark} while {mark} held it"
