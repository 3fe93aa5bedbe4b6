"""Statements as trees of text and values: sent as literals or as parameters, and made smaller where they fail.

A `Piece` is text with values in it. It may know smaller pieces that could stand in its place, so that a statement on
which two databases differ can be cut down to what they differ on. In a text, `@table:mark@` stands for the key of the
row with that mark: keys that databases make are known only while a script runs.
"""

from __future__ import annotations

import random
import re
import struct
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta

KEY = re.compile(r"@(\w+):([\w-]+)@")
OIDS = {
    "bool": 16,
    "bytea": 17,
    "bigint": 20,
    "smallint": 21,
    "integer": 23,
    "text": 25,
    "varchar": 1043,
    "date": 1082,
    "timestamptz": 1184,
    "numeric": 1700,
    "uuid": 2950,
    "jsonb": 3802,
    "text[]": 1009,
    "bigint[]": 1016,
    "timestamp": 1114,
    "mark": 25,
}
MARK = "mark"  # the type of the text by which a row with a generated key is known
EPOCH = date(2000, 1, 1)
EPOCH_TIME = datetime(2000, 1, 1)
MICROSECOND = timedelta(microseconds=1)
BINARY_MAKERS: dict[str, Callable[[str], bytes]] = {
    "bool": lambda text: b"\1" if text == "true" else b"\0",
    "bytea": lambda text: bytes.fromhex(text[2:]),
    "bigint": lambda text: struct.pack("!q", int(text)),
    "smallint": lambda text: struct.pack("!h", int(text)),
    "integer": lambda text: struct.pack("!i", int(text)),
    "text": str.encode,
    "varchar": str.encode,
    "date": lambda text: struct.pack("!i", (date.fromisoformat(text) - EPOCH).days),
    "uuid": lambda text: uuid.UUID(text).bytes,
    "timestamp": lambda text: struct.pack("!q", (datetime.fromisoformat(text) - EPOCH_TIME) // MICROSECOND),
}
Resolve = Callable[[str], str]


@dataclass(frozen=True)
class Value:
    """One value: a type's name, PostgreSQL's text for it, and what else could stand there when it is drawn again."""

    type: str
    text: str | None
    pool: tuple[str | None, ...] = ()
    is_bare: bool = False  # as a literal it needs no cast where it stands

    def redrawn(self, draw: random.Random) -> Value:
        return replace(self, text=draw.choice(self.pool)) if self.pool else self

    def bare(self, draw: random.Random) -> Value:
        """The same, mostly without a cast, for a place whose type is certain."""
        return replace(self, is_bare=draw.random() < 0.7)

    def as_literal(self, resolve: Resolve) -> str:
        if self.text is None:
            return "NULL" if self.is_bare else f"NULL::{self.type}"
        text = resolve(self.text)
        if self.type == MARK:
            return f"'{text}'"
        if self.type in ("integer", "smallint"):
            return text if not text.startswith("-") else f"({text})"
        if self.type == "bigint" and self.text.startswith("@"):
            return text
        quoted = "'" + text.replace("'", "''") + "'"
        return quoted if self.is_bare else f"{quoted}::{self.type}"

    def as_parameter(self, is_binary: bool, resolve: Resolve) -> tuple[bytes | None, int]:
        """The bytes of Bind and their format."""
        if self.text is None:
            return None, 0
        text = resolve(self.text)
        make = BINARY_MAKERS.get(self.type) if is_binary else None
        return (make(text), 1) if make is not None else (text.encode(), 0)


@dataclass(frozen=True)
class Piece:
    """Text, values and pieces one after the other; `smaller` are pieces that could stand in its place."""

    parts: tuple[str | Value | Piece, ...]
    smaller: tuple[Piece, ...] = ()

    def walk(self) -> Iterator[str | Value]:
        for part in self.parts:
            if isinstance(part, Piece):
                yield from part.walk()
            else:
                yield part

    def values(self) -> list[Value]:
        return [part for part in self.walk() if isinstance(part, Value)]

    def as_literals(self, resolve: Resolve) -> str:
        found = [part if isinstance(part, str) else part.as_literal(resolve) for part in self.walk()]
        return resolve("".join(found))

    def as_parameters(self, resolve: Resolve) -> str:
        number, found = 0, []
        for part in self.walk():
            if isinstance(part, str):
                found.append(part)
            else:
                number += 1
                found.append(f"${number}")
        return resolve("".join(found))

    def mapped(self, change: Callable[[Value], Value]) -> Piece:
        """The same statement with other values."""
        return Piece(
            tuple(
                part if isinstance(part, str) else change(part) if isinstance(part, Value) else part.mapped(change)
                for part in self.parts
            )
        )

    def reductions(self) -> Iterator[Piece]:
        """This piece with one piece in it replaced by a smaller one, the largest cuts first."""
        yield from self.smaller
        for index, part in enumerate(self.parts):
            if isinstance(part, Piece):
                for less in part.reductions():
                    yield Piece((*self.parts[:index], less, *self.parts[index + 1 :]), self.smaller)


NOTHING = Piece(())


def piece(*parts: str | Value | Piece, smaller: tuple[Piece, ...] = ()) -> Piece:
    """A piece of these parts."""
    return Piece(parts, smaller)


def optional(*parts: str | Value | Piece) -> Piece:
    """A piece that may be left out."""
    return Piece(parts, (NOTHING,))


def joined(separator: str, parts: list[Piece]) -> Piece:
    """The pieces with a text between them."""
    found: list[str | Value | Piece] = []
    for index, part in enumerate(parts):
        found += [separator, part] if index else [part]
    return Piece(tuple(found))


def size_of(statement: Piece) -> int:
    """How long a statement is, as a measure of how far it has been cut down."""
    return len(statement.as_literals(lambda text: text))


@dataclass(frozen=True)
class Form:
    """How a statement is sent."""

    by_extended: bool = False
    is_named: bool = False
    is_typed: bool = False
    binary_values: bool = False
    result_format: int = 0
    rows_max: int = 0
    is_described: bool = False  # the statement is described, too: the types of its parameters

    @classmethod
    def drawn(cls, draw: random.Random, extended_share: float = 0.6) -> Form:
        binary_values = draw.random() < 0.4
        return cls(
            by_extended=draw.random() < extended_share,
            is_named=draw.random() < 0.5,
            is_typed=binary_values or draw.random() < 0.7,
            binary_values=binary_values,
            result_format=draw.choice((0, 1)),
            is_described=draw.random() < 0.2,
        )


SIMPLE = Form()


@dataclass(frozen=True)
class Made:
    """Where an INSERT's RETURNING tells which keys the database made."""

    table: str
    key_index: int
    mark_index: int


@dataclass(frozen=True)
class Statement:
    """One statement, and what may be compared of its answer."""

    kind: str
    sql: Piece
    order: str = "none"  # all: rows in order; none: as a multiset; count: only how many
    made: Made | None = None
    makes: tuple[tuple[str, str], ...] = ()  # (table, mark) of new rows whose keys nothing returns

    @property
    def has_sets(self) -> bool:
        """Whether there is a set operation in it, or may be in the cursor that it reads."""
        words = " ".join(part for part in self.sql.walk() if isinstance(part, str))
        return any(word in words for word in ("UNION", "INTERSECT", "EXCEPT", "FETCH"))

    @property
    def is_select(self) -> bool:
        return self.kind.startswith("select")


@dataclass(frozen=True)
class Unit:
    """What is sent before one ReadyForQuery is read: a statement, a string of several, or a pipeline."""

    statements: tuple[Statement, ...]
    forms: tuple[Form, ...]
    is_pipeline: bool = False
    copy_rows: tuple[str, ...] = ()  # the lines of a COPY FROM STDIN

    @classmethod
    def single(cls, statement: Statement, form: Form = SIMPLE) -> Unit:
        return cls((statement,), (form,))

    @property
    def is_string(self) -> bool:
        """Whether several statements are one Query."""
        return len(self.statements) > 1 and not self.is_pipeline

    def describe(self, resolve: Resolve = lambda text: text) -> str:
        """One line for people."""
        shown = "; ".join(statement.sql.as_literals(resolve) for statement in self.statements)
        how = "pipeline" if self.is_pipeline else "extended" if self.forms[0].by_extended else "simple"
        lines = "".join(f" | {line}" for line in self.copy_rows)
        return f"[{how}] {shown}{resolve(lines)}"
