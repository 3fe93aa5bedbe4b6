"""The type of an expression, as far as merging must know it: a few operators and functions over known columns.

None means not known, which costs a merge, never truth.
"""

from __future__ import annotations

from typing import NamedTuple

from foreshard.proxy.routing.scope import Scope
from foreshard.proxy.routing.tree import Node, operator_name, strings, type_of, unwrap

BOOL, BYTEA, INT8, INT2, INT4, TEXT, OID = 16, 17, 20, 21, 23, 25, 26
FLOAT4, FLOAT8, BPCHAR, VARCHAR, DATE, TIME = 700, 701, 1042, 1043, 1082, 1083
TIMESTAMP, TIMESTAMPTZ, NUMERIC, UUID = 1114, 1184, 1700, 2950
JSON, JSONB = 114, 3802
NAMES = {
    **{"bool": BOOL, "bytea": BYTEA, "int8": INT8, "int2": INT2, "int4": INT4, "text": TEXT, "oid": OID},
    **{"float4": FLOAT4, "float8": FLOAT8, "bpchar": BPCHAR, "varchar": VARCHAR, "date": DATE, "time": TIME},
    **{"timestamp": TIMESTAMP, "timestamptz": TIMESTAMPTZ, "numeric": NUMERIC, "uuid": UUID},
}
INTEGERS = (INT2, INT4, INT8)
STRINGS = (TEXT, VARCHAR, BPCHAR)
DATED = (DATE, TIMESTAMP, TIMESTAMPTZ)  # in a style that the session chooses
NUMBERS = (*INTEGERS, NUMERIC, FLOAT4, FLOAT8)
SORTABLE = frozenset(NAMES.values())  # types whose order the router knows
RANKS = {oid: rank for rank, oid in enumerate((INT2, INT4, INT8, NUMERIC, FLOAT4, FLOAT8))}
# Functions of one type whatever they are given, and those of their argument's type.
FIXED = {
    **dict.fromkeys(("length", "char_length", "octet_length", "ascii", "strpos", "cardinality"), INT4),
    **dict.fromkeys(("lower", "upper", "btrim", "ltrim", "rtrim", "replace", "substring", "substr", "concat"), TEXT),
    **dict.fromkeys(("left", "right", "reverse", "md5", "initcap", "repeat", "lpad", "rpad", "split_part"), TEXT),
    "count": INT8,
    **dict.fromkeys(("bool_and", "bool_or", "every"), BOOL),
    **dict.fromkeys(("json_build_object", "json_build_array", "to_json", "row_to_json"), JSON),
    **dict.fromkeys(("jsonb_build_object", "jsonb_build_array", "to_jsonb"), JSONB),
}
SAME = frozenset(("min", "max", "abs", "bit_and", "bit_or", "bit_xor", "any_value"))


class Collation(NamedTuple):
    """What is known about the order and equality of a string type's values."""

    is_bytewise: bool = False  # ordered as their bytes are
    is_exact: bool = False  # equal only if their bytes are
    is_default: bool = False  # the database's own


class Type(NamedTuple):
    """A type, and for strings the collation."""

    oid: int
    collation: Collation = Collation()

    @property
    def is_sortable(self) -> bool:
        """Whether the router orders values as the shards do."""
        return self.oid in SORTABLE and (self.oid not in STRINGS or self.collation.is_bytewise)

    @property
    def is_groupable(self) -> bool:
        """Whether the router tells equal values as the shards do, given any order."""
        return self.oid in SORTABLE and (self.oid not in STRINGS or self.collation.is_exact)


BYTEWISE, EXACT = Collation(True, True), Collation(False, True)
COLLATIONS = {"bytewise": BYTEWISE, "exact": EXACT}


SUMS = {INT2: Type(INT8), INT4: Type(INT8), INT8: Type(NUMERIC), NUMERIC: Type(NUMERIC)}
SUMS |= {FLOAT4: Type(FLOAT4), FLOAT8: Type(FLOAT8)}


class Typer:
    """Infers types in one scope."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope

    def type_of(self, node: Node | None) -> Type | None:
        """The type of an expression; None when it is not known."""
        kind, fields = unwrap(node)
        if kind == "ColumnRef":
            return self._column(node)
        if kind == "A_Const":
            return self._constant(fields)
        if kind == "TypeCast":
            return self._cast(fields)
        if kind == "A_Expr":
            return self._operator(fields)
        if kind == "FuncCall":
            return self._function(fields)
        if kind == "CollateClause":
            return self._collated(fields)
        if kind in ("BoolExpr", "NullTest", "BooleanTest"):
            return Type(BOOL)
        if kind == "CoalesceExpr":
            return self._common(fields.get("args", []))
        return None

    def _column(self, node: Node | None) -> Type | None:
        found = self.scope.resolve(node)
        column = found[0].table.column(found[1]) if found and found[0].table else None
        if column is None:
            return None
        known = COLLATIONS.get(column.collation, Collation())
        return Type(column.type_oid, known._replace(is_default=column.has_default_collation))

    def _constant(self, fields: Node) -> Type | None:
        if "ival" in fields:
            return Type(INT4)
        if "boolval" in fields:
            return Type(BOOL)
        if "fval" in fields:
            return Type(NUMERIC) if any(letter in fields["fval"].get("fval", "") for letter in ".eE") else None
        return None

    def _cast(self, fields: Node) -> Type | None:
        name, is_array = type_of(fields)
        if is_array or name not in NAMES:
            return None
        inner = self.type_of(fields.get("arg"))
        if NAMES[name] in STRINGS:
            return Type(NAMES[name], inner.collation) if inner and inner.oid in STRINGS else None
        return Type(NAMES[name])

    def _operator(self, fields: Node) -> Type | None:
        form, name = fields.get("kind"), operator_name(fields)
        if form != "AEXPR_OP":
            return Type(BOOL) if form in ("AEXPR_IN", "AEXPR_OP_ANY", "AEXPR_OP_ALL", "AEXPR_LIKE") else None
        left, right = self.type_of(fields.get("lexpr")), self.type_of(fields.get("rexpr"))
        if name in ("=", "<>", "<", ">", "<=", ">="):
            return Type(BOOL) if left and right and left.oid in SORTABLE and right.oid in SORTABLE else None
        if name == "||":
            found = [one for one in (left, right) if one and one.oid in STRINGS]
            given = [side for side in (fields.get("lexpr"), fields.get("rexpr")) if side and is_string(side)]
            if len(found) + len(given) < 2 or len({one.collation for one in found}) != 1:
                return None
            return Type(TEXT, found[0].collation)
        if name not in ("+", "-", "*", "/", "%") or right is None:
            return None
        if fields.get("lexpr") is None:
            return right if right.oid in NUMBERS else None
        if left is None or left.oid not in NUMBERS or right.oid not in NUMBERS:
            return None
        wider = max(left, right, key=lambda one: RANKS[one.oid])
        return Type(FLOAT8) if wider.oid == FLOAT4 and left.oid != right.oid else wider

    def _function(self, fields: Node) -> Type | None:
        path = strings(fields["funcname"])
        name = path[-1]
        if len(path) > 1 and path[-2] != "pg_catalog":
            return None
        arguments = [self.type_of(argument) for argument in fields.get("args", [])]
        first = arguments[0] if arguments else None
        if name in FIXED:
            if FIXED[name] != TEXT:
                return Type(FIXED[name])
            texts = [argument for argument in arguments if argument and argument.oid in STRINGS]
            return Type(TEXT, texts[0].collation) if first and first in texts and len(texts) == 1 else None
        if name == "date_trunc" and len(arguments) == 2:
            second = arguments[1]
            return second if second and second.oid in (TIMESTAMP, TIMESTAMPTZ) else None
        if first is None:
            return None
        if name in SAME:
            return first
        if name == "sum":
            return SUMS.get(first.oid)
        if name == "avg":
            return Type(FLOAT8 if first.oid in (FLOAT4, FLOAT8) else NUMERIC) if first.oid in NUMBERS else None
        return None

    def _collated(self, fields: Node) -> Type | None:
        inner = self.type_of(fields.get("arg"))
        name = strings(fields.get("collname"))
        if inner is None or inner.oid not in STRINGS or not name or name[-1] not in ("C", "POSIX", "ucs_basic"):
            return None
        return Type(inner.oid, BYTEWISE)

    def _common(self, nodes: list[Node]) -> Type | None:
        """The type that several expressions have in common; string constants take the others'."""
        found = [self.type_of(node) for node in nodes if not is_string(node)]
        if not found or any(one is None for one in found):
            return None
        known = [one for one in found if one is not None]
        if all(one.oid in RANKS for one in known):
            return max(known, key=lambda one: RANKS[one.oid])
        return known[0] if all(one == known[0] for one in known) else None


def is_string(node: Node) -> bool:
    """Whether an expression is a string constant, which has no type of its own."""
    kind, fields = unwrap(node)
    return kind == "A_Const" and "sval" in fields
