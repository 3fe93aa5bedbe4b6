"""Result sets that Foreshard itself makes, and their wire bytes.

Everything is sent in text format, as PostgreSQL prints it; the frontend's ReadyForQuery is left to the session, which
alone knows the transaction status.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

import msgspec

Cell = str | int | float | bool | None

BOOL_OID = 16
INT8_OID = 20
TEXT_OID = 25
FLOAT8_OID = 701
TYPE_SIZES = {BOOL_OID: 1, INT8_OID: 8, TEXT_OID: -1, FLOAT8_OID: 8}
LARGE = 999_999.5  # from here on six digits would take an exponent
HUGE = 1e15
TYPE_NAMES = {"text": TEXT_OID, "bigint": INT8_OID, "float": FLOAT8_OID, "bool": BOOL_OID}


class Column(msgspec.Struct, frozen=True):
    """One column of a result set."""

    name: str
    type_oid: int = TEXT_OID


class ResultSet(msgspec.Struct, frozen=True):
    """Rows with named, typed columns, and the command tag that ends them."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    tag: str = "SHOW"


def make_columns(specification: str) -> tuple[Column, ...]:
    """Columns from "name:type name:type ..."; the type is text when left out."""
    found = []
    for word in specification.split():
        name, _, type_name = word.partition(":")
        found.append(Column(name, TYPE_NAMES[type_name or "text"]))
    return tuple(found)


def make_result(specification: str, rows: Iterable[Sequence[Cell]], tag: str = "SHOW") -> ResultSet:
    """A result set from a column specification (`make_columns`) and rows."""
    return ResultSet(make_columns(specification), tuple(tuple(row) for row in rows), tag)


def cells(row: Iterable[object]) -> tuple[Cell, ...]:
    """Values that a database driver gave, as cells; what is no cell is shown as text."""
    return tuple(value if isinstance(value, str | int | float | None) else str(value) for value in row)


def encode_results(results: Iterable[ResultSet]) -> bytes:
    """RowDescription, DataRow and CommandComplete of each result set, in order."""
    return b"".join(
        piece
        for result in results
        for piece in (
            encode_row_description(result.columns),
            *(encode_data_row(row) for row in result.rows),
            _message(b"C", result.tag.encode() + b"\0"),
        )
    )


def encode_row_description(columns: Sequence[Column]) -> bytes:
    """RowDescription: columns of no table, in text format."""
    body = struct.pack("!H", len(columns)) + b"".join(
        column.name.encode() + b"\0" + struct.pack("!IHIhiH", 0, 0, column.type_oid, TYPE_SIZES[column.type_oid], -1, 0)
        for column in columns
    )
    return _message(b"T", body)


def encode_data_row(row: Sequence[Cell]) -> bytes:
    """DataRow of one row."""
    body = b"".join(_encode_cell(cell) for cell in row)
    return _message(b"D", struct.pack("!H", len(row)) + body)


def show_value(value: object) -> str:
    """A value as the console prints it: t or f, six digits of a fraction, no exponent where none is needed."""
    if isinstance(value, bool):
        return "t" if value else "f"
    if isinstance(value, float):
        return f"{value:.0f}" if LARGE <= abs(value) < HUGE else f"{value:.6g}"
    return str(value)


def _encode_cell(cell: Cell) -> bytes:
    if cell is None:
        return struct.pack("!i", -1)
    # A text value ends at its first NUL for libpq, so none may be in it.
    text = show_value(cell).replace("\0", "").encode()
    return struct.pack("!i", len(text)) + text


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!I", len(body) + 4) + body
