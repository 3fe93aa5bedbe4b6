"""Reading PostgreSQL's parse tree as pgparse gives it: nested dicts, most nodes wrapped as {kind: fields}.

The only module that knows the parser. Locations are byte offsets into the text; a missing one is 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pgparse

Node = dict[str, Any]


class ParseFailure(Exception):
    """The parser does not understand the text: a mistake in it, or syntax of a newer PostgreSQL."""

    def __init__(self, message: str, sqlstate: str = "42601", position: int = 0) -> None:
        super().__init__(message)
        self.message = message
        self.sqlstate = sqlstate
        self.position = position  # in characters, from 1; 0: unknown


class Parsed(msgspec.Struct, frozen=True):
    """One statement of a text."""

    kind: str
    node: Node
    start: int  # byte offsets of the statement, without the semicolon
    stop: int


def parse(sql: bytes) -> list[Parsed]:
    """The statements of a text. ParseFailure when it cannot be parsed."""
    try:
        text = sql.decode()
    except UnicodeDecodeError:
        raise ParseFailure('invalid byte sequence for encoding "UTF8"', "22021") from None
    try:
        raw = pgparse.parse(text)
    except pgparse.PGQueryError as error:
        raise ParseFailure(str(error.args[0]), position=int(error.args[1])) from None
    except RecursionError:
        raise ParseFailure("the statement is nested too deeply", "54001") from None
    found = []
    for item in raw:
        start = item.get("stmt_location", 0)
        size = item.get("stmt_len", 0)
        [(kind, node)] = item["stmt"].items()
        found.append(Parsed(kind, node, start, start + size if size else len(sql)))
    return found


def unwrap(node: Node | None) -> tuple[str, Node]:
    """Kind and fields of a wrapped node; ("", {}) for what is none."""
    if isinstance(node, dict) and len(node) == 1:
        [(kind, fields)] = node.items()
        if kind[0].isupper():
            return kind, fields
    return "", {}


def strings(nodes: list[Node] | None) -> list[str]:
    """The values of a list of String nodes; what is not a String is left out."""
    return [node["String"].get("sval", "") for node in nodes or () if "String" in node]


def column_path(node: Node | None) -> list[str] | None:
    """The names of a column reference, None for other nodes and for stars."""
    kind, fields = unwrap(node)
    if kind != "ColumnRef":
        return None
    path = strings(fields["fields"])
    return path if len(path) == len(fields["fields"]) else None


def operator_name(fields: Node) -> str:
    """The operator of an A_Expr: its bare name, or with its schema when that is not pg_catalog."""
    path = strings(fields.get("name"))
    return path[-1] if len(path) == 1 or path[0] == "pg_catalog" else ".".join(path)


def type_of(cast: Node) -> tuple[str, bool]:
    """Type name and whether it is an array, of a TypeCast's fields; ("", False) for types not in pg_catalog."""
    named = cast.get("typeName", {})
    path = strings(named.get("names"))
    if not path or (len(path) > 1 and path[0] != "pg_catalog") or named.get("setof"):
        return "", False
    return path[-1], bool(named.get("arrayBounds"))


def has_modifier(cast: Node) -> bool:
    """Whether the type of a TypeCast's fields has something in parentheses, which may change the value."""
    return "typmods" in cast.get("typeName", {})


def walk(node: Any) -> Iterator[tuple[str, Node]]:
    """Every wrapped node below, itself included, in the order of the text where the parser keeps it."""
    if isinstance(node, list):
        for item in node:
            yield from walk(item)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key[:1].isupper() and isinstance(value, dict):
                yield key, value
            yield from walk(value)


def range_vars(node: Any) -> Iterator[Node]:
    """Fields of every table reference below, wrapped or not."""
    if isinstance(node, list):
        for item in node:
            yield from range_vars(item)
    elif isinstance(node, dict):
        if "relname" in node:
            yield node
        for value in node.values():
            yield from range_vars(value)
