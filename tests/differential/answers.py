"""Answers of two databases, made comparable: what must be equal stays, what may differ goes."""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

from tests.differential.pieces import Statement, Unit
from tests.support.raw import CREATED_OID_MIN, Message, transcript

REFUSED = "0A000"
ENDS = "CIsE"
MODIFIERS = re.compile(r"(\(\w+\.\d+ \w+ -?\d+) -?\d+ (\d\))")
# Two errors at once: which of them is told first may differ.
EQUAL_ERRORS = (
    {"42601", "25P02"},  # malformed text in a failed transaction
    {"23503", "23505"},  # another key for a row that has children, which another row has already
    {"23502", "25006"},  # a new row without a key in a transaction that may not write
)
DROPPED = "123NSn"
NAMES = re.compile(r'"[^"]*"|\$\d+|\d+')


class Result(NamedTuple):
    """What one statement was answered."""

    lines: tuple[str, ...]
    sqlstate: str = ""
    message: str = ""
    is_ours: bool = False  # an error that no PostgreSQL raised


def split(answer: list[Message]) -> list[list[Message]]:
    """The messages of each statement, without what says nothing about its result."""
    found: list[list[Message]] = [[]]
    for message in answer:
        kind = message.kind.decode()
        if kind in DROPPED or kind == "Z":
            continue
        found[-1].append(message)
        if kind in ENDS:
            found.append([])
    return found if found[-1] else found[:-1]


def results_of(answer: list[Message], unit: Unit) -> list[Result]:
    """A result for each statement that was answered."""
    found = []
    groups = split(answer)
    if len(groups) > len(unit.statements) and groups[-1][-1].kind == b"E":
        del groups[-2]  # what was told done before the end of its own transaction failed
    for index, group in enumerate(groups):
        statement = unit.statements[min(index, len(unit.statements) - 1)]
        found.append(result_of(group, statement))
    return found


def result_of(group: list[Message], statement: Statement) -> Result:
    """One statement's result; of an error only its SQLSTATE is compared."""
    last = group[-1]
    if last.kind == b"E":
        fields = last.fields
        return Result((f"E {fields['C']}",), fields["C"], fields["M"], "R" not in fields)
    lines = [
        types_of(message) if message.kind == b"t" else line
        for message, line in zip(group, transcript(group), strict=True)
    ]
    if statement.has_sets:  # of an empty side PostgreSQL's planner leaves out, columns take the other side's modifiers
        lines = [MODIFIERS.sub(r"\1 -1 \2", line) if line[0] == "T" else line for line in lines]
    rows = [line for line in lines if line[0] in "Dd"]
    others = [line for line in lines if line[0] not in "Dd"]
    if statement.order == "count":
        rows = [f"{len(rows)} rows"]
    elif statement.order == "none":
        rows = sorted(rows)
    return Result((*others, *rows))


def types_of(message: Message) -> str:
    """A ParameterDescription, without the oids of types that somebody has made."""
    count = len(message.body) // 4
    oids = struct.unpack_from(f"!{count}I", message.body, 2)
    return "t " + " ".join("created" if oid >= CREATED_OID_MIN else str(oid) for oid in oids)


def reason_of(message: str) -> str:
    """A refusal without names and numbers, so that equal reasons count together."""
    return NAMES.sub("*", message)


def is_same(one: list[Result], other: list[Result]) -> bool:
    """Whether two answers agree."""
    if len(one) != len(other):
        return False
    for left, right in zip(one, other, strict=True):
        if left.lines != right.lines and {left.sqlstate, right.sqlstate} not in EQUAL_ERRORS:
            return False
    return True


def show(results: list[Result], status: str, limit: int = 12) -> str:
    """An answer for people."""
    lines = []
    for result in results:
        shown = list(result.lines[:limit])
        if len(result.lines) > limit:
            shown.append(f"... {len(result.lines)} lines")
        if result.message:
            shown.append(f"  {result.message}")
        lines += shown
    return "\n    ".join([*lines, f"status {status}"])
