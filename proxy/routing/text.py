"""One statement text while it is planned: its literals, and the keys that can be read from them at run time.

A Template is shared by all texts with the same structure, so a plan may depend on a literal's value only through
`value_of`, which marks the plan as exact: cached for this very text.
"""

from __future__ import annotations

import bisect

import msgspec

from foreshard._core.key_values import parse_key
from foreshard._core.lexer import (
    LITERAL_DOLLAR,
    LITERAL_INTEGER,
    LITERAL_STRING,
    lift,
)
from foreshard._core.template import KeyFlag
from foreshard._core.typed_keys import KeyType
from foreshard.proxy.catalog.model import KEY_TYPES_BY_CATALOG_NAME, key_family
from foreshard.proxy.routing.tree import Node, has_modifier, type_of, unwrap

VALUE_NUMBER = 2  # of _core/values.ValueFormat
INTEGERS = KeyType.TYPE_INT8  # stands for integers of every size, as in catalog.key_family
CASTS = {name: key_family(key_type) for name, key_type in KEY_TYPES_BY_CATALOG_NAME.items()}  # by the cast's type


class Key(msgspec.Struct, frozen=True):
    """Where one key, or one array of keys, is read from: a KeySource."""

    index: int
    flags: int


KeySet = tuple[Key, ...]  # the keys that a column may have; empty when it can have none (NULL)


class Text:
    """A text and its literals. Made for one planning, thrown away after it."""

    def __init__(self, sql: bytes) -> None:
        self.sql = sql
        self.is_exact = False
        _, self.literals, _ = lift(sql)
        self._offsets = [offset for offset, _, _ in self.literals]
        self.key_params: dict[int, KeyType] = {}  # by id of the ParamRef node: family of the column it is compared with

    def value_of(self, node: Node | None) -> str | int | None:
        """The value of a constant, seen through casts; None for what is not a constant. Makes the plan exact."""
        kind, fields = unwrap(node)
        if kind == "TypeCast":
            return self.value_of(fields.get("arg"))
        if kind != "A_Const" or fields.get("isnull"):
            return None
        self.is_exact = True
        if "ival" in fields:
            return int(fields["ival"].get("ival", 0))
        for name in ("sval", "fval", "bsval"):
            if name in fields:
                return str(fields[name].get(name, ""))
        return int(bool(fields.get("boolval", {}).get("boolval", False))) if "boolval" in fields else None

    def literal_index(self, fields: Node) -> int | None:
        """Index of the literal that an A_Const stands for."""
        index = bisect.bisect_left(self._offsets, fields.get("location", 0))
        return index if index < len(self.literals) else None

    def read_keys(self, node: Node | None, family: KeyType = INTEGERS) -> KeySet | None:
        """The key of a family that a scalar expression holds: at most one. None when the expression is no key."""
        kind, fields = unwrap(node)
        if kind == "TypeCast":
            name, is_array = type_of(fields)
            is_key = CASTS.get(name) == family and not is_array and not has_modifier(fields)
            inner = self.read_keys(fields.get("arg"), family) if is_key else None
            return None if inner is None else tuple(Key(key.index, key.flags | KeyFlag.KEY_CAST) for key in inner)
        if kind == "ParamRef" and fields.get("number", 0) > 0:
            self.key_params[id(fields)] = family
            return (Key(fields["number"] - 1, KeyFlag.KEY_PARAM),)
        if kind != "A_Const":
            return None
        return () if fields.get("isnull") else self._read_literal(fields, family)

    def _read_literal(self, fields: Node, family: KeyType) -> KeySet | None:
        index = self.literal_index(fields)
        if index is None:
            return None
        offset, size, kind = self.literals[index]
        written = self.sql[offset : offset + size]
        if "sval" in fields and kind in (LITERAL_STRING, LITERAL_DOLLAR):
            same = written.replace(b"''", b"'") if kind == LITERAL_STRING else written
            flags = KeyFlag.KEY_QUOTED if kind == LITERAL_STRING and family is not INTEGERS else 0
            return (Key(index, flags),) if same == fields["sval"].get("sval", "").encode() else None
        if family is not INTEGERS or kind != LITERAL_INTEGER or not ("ival" in fields or "fval" in fields):
            return None
        if "fval" in fields and not fields["fval"]["fval"].lstrip("-").isdigit():
            return None  # in hexadecimal, or with underscores
        value = int(fields["ival"].get("ival", 0) if "ival" in fields else fields["fval"]["fval"])
        if parse_key(written, VALUE_NUMBER) not in (abs(value), "none"):
            return None
        if value == 0 and fields.get("location", 0) != offset:
            self.is_exact = True  # -0: the parser has lost the sign that other literals would have here
            return None
        return (Key(index, KeyFlag.KEY_NEGATIVE if value < 0 else 0),)

    def read_array(self, node: Node | None, family: KeyType = INTEGERS) -> KeySet | None:
        """The keys of a family that an array expression holds. None when they cannot be read."""
        kind, fields = unwrap(node)
        flags = int(KeyFlag.KEY_ARRAY)
        if kind == "TypeCast":
            name, is_array = type_of(fields)
            is_key = CASTS.get(name) == family and is_array and not has_modifier(fields)
            return self.read_array(fields.get("arg"), family) if is_key else None
        if kind == "A_ArrayExpr":
            return self.read_list(fields.get("elements", []), family)
        if kind == "ParamRef" and fields.get("number", 0) > 0:
            self.key_params[id(fields)] = family
            return (Key(fields["number"] - 1, flags | KeyFlag.KEY_PARAM),)
        if kind == "A_Const" and fields.get("isnull"):
            return ()
        found = self._read_literal(fields, family) if kind == "A_Const" and "sval" in fields else None
        return None if found is None else tuple(Key(key.index, key.flags | flags) for key in found)

    def read_list(self, nodes: list[Node], family: KeyType = INTEGERS) -> KeySet | None:
        """The keys of several scalar expressions; None when one of them is no key."""
        found: list[Key] = []
        for node in nodes:
            keys = self.read_keys(node, family)
            if keys is None:
                return None
            found.extend(keys)
        return tuple(found)
