"""Typed expressions drawn at random, over the columns that a query has in scope.

Every expression has one value whatever plan PostgreSQL chooses: no floating point sums, no volatile functions, nothing
that fails for some rows only, and numerics of one scale, so that equal values print alike.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.differential.pieces import Piece, Value, joined, piece
from tests.differential.values import literal

COMPARABLE = ("int", "num", "text", "date", "ts", "big", "mood")
ORDERED = (*COMPARABLE, "bool", "uuid", "bytea", "array", "varchar")


@dataclass
class Source:
    """One FROM item in scope."""

    alias: str
    columns: dict[str, str]
    table: str = ""  # when it is a table itself


@dataclass
class Scope:
    """The columns that an expression may name; `outer` are those of the query around it."""

    sources: list[Source] = field(default_factory=list)
    outer: Scope | None = None

    def columns(self, *kinds: str) -> list[tuple[str, str]]:
        """(text, type) of every column of the kinds, of all when none is named."""
        return [
            (f"{source.alias}.{name}", kind)
            for source in self.sources
            for name, kind in source.columns.items()
            if not kinds or kind in kinds
        ]


class Expressions:
    """Draws expressions. `subquery` makes scalar and row sub-queries; the queries' generator fills it in."""

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        self.subquery: Callable[[str, Scope, int], Piece] | None = None
        self.exists: Callable[[Scope, int], Piece] | None = None
        self.key_value: Callable[[str, str], Value | None] | None = None  # of a table's routing column
        self.makers: dict[str, list[Callable[[Scope, int], Piece]]] = {
            "int": [self._int_operation, self._int_call, self._length, self._choice_of("int")],
            "num": [self._num_operation, self._choice_of("num"), self._round],
            "text": [self._text_call, self._text_join, self._choice_of("text"), self._as_text],
            "bool": [self.condition],
            "date": [self._date_shift, self._choice_of("date")],
            "ts": [self._choice_of("ts")],
            "mood": [self._choice_of("mood")],
            "array": [self._array],
            "json": [self._json],
            "big": [self._choice_of("big")],
            "varchar": [self._choice_of("varchar")],
        }

    def expression(self, kind: str, scope: Scope, depth: int) -> Piece:
        """An expression of the type."""
        leaf = self.leaf(kind, scope)
        makers = self.makers.get(kind, [])
        if depth <= 0 or not makers or self.draw.random() < 0.45:
            return leaf
        if self.subquery is not None and depth > 1 and kind in COMPARABLE and self.draw.random() < 0.12:
            return piece(self.subquery(kind, scope, depth - 1), smaller=(leaf,))
        return piece(self.draw.choice(makers)(scope, depth - 1), smaller=(leaf,))

    def leaf(self, kind: str, scope: Scope) -> Piece:
        """A column or a value."""
        found = scope.columns(kind)
        if scope.outer is not None and self.draw.random() < 0.3:
            found = scope.outer.columns(kind) or found
        if found and self.draw.random() < 0.8:
            return piece(self.draw.choice(found)[0])
        return literal(self.draw, kind, null_share=0.08)

    def _int_operation(self, scope: Scope, depth: int) -> Piece:
        left, right = self.expression("int", scope, depth), self.expression("int", scope, depth)
        return piece("(", left, f" {self.draw.choice(('+', '-'))} ", right, ")", smaller=(left, right))

    def _int_call(self, scope: Scope, depth: int) -> Piece:
        inner = self.expression("int", scope, depth)
        form = self.draw.choice((("abs(", ")"), ("(", " % 7)"), ("(-", ")"), ("(", " * 2)"), ("sign(", ")::integer")))
        return piece(form[0], inner, form[1], smaller=(inner,))

    def _length(self, scope: Scope, depth: int) -> Piece:
        if self.draw.random() < 0.3:
            return piece("extract(year from ", self.expression("date", scope, depth), ")::integer")
        return piece(self.draw.choice(("length(", "octet_length(")), self.expression("text", scope, depth), ")")

    def _num_operation(self, scope: Scope, depth: int) -> Piece:
        left, right = self.expression("num", scope, depth), self.expression("num", scope, depth)
        return piece("(", left, f" {self.draw.choice(('+', '-'))} ", right, ")::numeric(14,2)", smaller=(left, right))

    def _round(self, scope: Scope, depth: int) -> Piece:
        if self.draw.random() < 0.5:
            return piece(self.expression("int", scope, depth), "::numeric(14,2)")
        return piece("round(", self.expression("num", scope, depth), ", 2)::numeric(14,2)")

    def _text_call(self, scope: Scope, depth: int) -> Piece:
        inner = self.expression("text", scope, depth)
        form = self.draw.choice(
            (
                ("lower(", ")"),
                ("upper(", ")"),
                ("left(", ", 2)"),
                ("reverse(", ")"),
                ("md5(", ")"),
                ("btrim(", ", 'a')"),
            )
        )
        return piece(form[0], inner, form[1], smaller=(inner,))

    def _text_join(self, scope: Scope, depth: int) -> Piece:
        left, right = self.expression("text", scope, depth), self.expression("text", scope, depth)
        if self.draw.random() < 0.3:
            return piece("concat_ws('-', ", left, ", ", right, ")", smaller=(left, right))
        return piece("(", left, " || ", right, ")", smaller=(left, right))

    def _as_text(self, scope: Scope, depth: int) -> Piece:
        kind = self.draw.choice(("int", "num", "date", "bool", "mood", "uuid", "json", "array", "varchar"))
        return piece("CAST(", self.expression(kind, scope, depth), " AS text)")

    def _choice_of(self, kind: str) -> Callable[[Scope, int], Piece]:
        return lambda scope, depth: self._choice(kind, scope, depth)

    def _choice(self, kind: str, scope: Scope, depth: int) -> Piece:
        """CASE, COALESCE, NULLIF, GREATEST."""
        one, other = self.expression(kind, scope, depth), self.expression(kind, scope, depth)
        roll = self.draw.random()
        if roll < 0.4:
            test = self.condition(scope, depth)
            return piece("CASE WHEN ", test, " THEN ", one, " ELSE ", other, " END", smaller=(one, other))
        name = self.draw.choice(
            ("coalesce", "nullif") if kind == "json" else ("coalesce", "nullif", "greatest", "least")
        )
        return piece(f"{name}(", one, ", ", other, ")", smaller=(one, other))

    def _date_shift(self, scope: Scope, depth: int) -> Piece:
        inner = self.expression("date", scope, depth)
        return piece("(", inner, f" + {self.draw.randint(-40, 400)})", smaller=(inner,))

    def _array(self, scope: Scope, depth: int) -> Piece:
        one, other = self.expression("text", scope, depth), self.expression("text", scope, depth)
        return piece("ARRAY[", one, ", ", other, "]")

    def _json(self, scope: Scope, depth: int) -> Piece:
        inner = self.expression(self.draw.choice(("int", "text", "bool")), scope, depth)
        return piece("jsonb_build_object('k', ", inner, ")")

    def condition(self, scope: Scope, depth: int) -> Piece:
        """A boolean expression."""
        if self.key_value is not None and self.draw.random() < 0.25:
            found = self._by_key(scope)
            if found is not None:
                return piece(found, smaller=(piece("true"), piece("false")))
        makers = [self._comparison, self._comparison, self._is_null, self._in_list, self._between, self._like]
        if depth > 0:
            makers += [self._logic, self._logic, self._membership, self._contains]
        if depth > 1 and self.exists is not None:
            makers += [self.exists, self._in_subquery, self._row_in]
        return piece(self.draw.choice(makers)(scope, depth - 1), smaller=(piece("true"), piece("false")))

    def _by_key(self, scope: Scope) -> Piece | None:
        """A condition on a routing column: what says on which shards rows are, or nearly does."""
        assert self.key_value is not None
        tables = [source for source in scope.sources if source.table]
        if not tables:
            return None
        source = self.draw.choice(tables)
        column = self.draw.choice(list(source.columns))
        one, other = self.key_value(source.table, column), self.key_value(source.table, column)
        if one is None or other is None:
            return None
        name = f"{source.alias}.{column}"
        return self.draw.choice(
            [
                piece(f"{name} = ", one),
                piece(f"{name} = ", one),
                piece(one, f" = {name}"),
                piece(f"{name} IN (", one, ", ", other, ")"),
                piece(f"{name} = ANY (ARRAY[", one, ", ", other, f"]::{one.type}[])"),
                piece(f"({name} = ", one, f" OR {name} = ", other, ")"),
                piece(f"NOT ({name} <> ", one, ")"),
                piece(f"{name} IS NOT DISTINCT FROM ", one),
                piece(f"({name}, 1) = (", one, ", 1)"),
                piece(f"({name} >= ", one, f" AND {name} <= ", one, ")"),
                piece(f"{name} BETWEEN ", one, " AND ", other),
                piece(f"{name} = (SELECT ", one, f"::{one.type})"),
                piece(f"{name} = coalesce(", one, ", ", other, ")"),
                piece(f"{name} NOT IN (", one, ", ", other, ")"),
                piece(f"({name} = ", one, f" AND {name} = ", other, ")"),
                piece(f"{name} IN (VALUES (", one, f"::{one.type}), (", other, f"::{one.type}))"),
                piece(f"CASE WHEN {name} = ", one, " THEN true ELSE false END"),
            ]
        )

    def _comparison(self, scope: Scope, depth: int) -> Piece:
        kind = self.draw.choice(COMPARABLE)
        operator = self.draw.choice(("=", "=", "<", ">", "<=", ">=", "<>", "IS DISTINCT FROM", "IS NOT DISTINCT FROM"))
        left, right = self.expression(kind, scope, depth), self.expression(kind, scope, depth)
        return piece("(", left, f" {operator} ", right, ")")

    def _is_null(self, scope: Scope, depth: int) -> Piece:
        kind = self.draw.choice(ORDERED)
        return piece("(", self.leaf(kind, scope), self.draw.choice((" IS NULL)", " IS NOT NULL)")))

    def _in_list(self, scope: Scope, depth: int) -> Piece:
        kind = self.draw.choice(("int", "text", "date", "mood"))
        values = [literal(self.draw, kind, null_share=0.05) for _ in range(self.draw.randint(1, 4))]
        word = self.draw.choice((" IN (", " IN (", " NOT IN ("))
        return piece("(", self.expression(kind, scope, depth), word, joined(", ", values), "))")

    def _between(self, scope: Scope, depth: int) -> Piece:
        kind = self.draw.choice(("int", "num", "date", "text"))
        ends = [literal(self.draw, kind) for _ in range(2)]
        return piece("(", self.expression(kind, scope, depth), " BETWEEN ", ends[0], " AND ", ends[1], ")")

    def _like(self, scope: Scope, depth: int) -> Piece:
        pattern = self.draw.choice(("'%a%'", "'a%'", "'_'", "'%'"))
        word = self.draw.choice((" LIKE ", " NOT LIKE ", " ILIKE "))
        return piece("(", self.expression("text", scope, depth), word, pattern, ")")

    def _logic(self, scope: Scope, depth: int) -> Piece:
        left, right = self.condition(scope, depth), self.condition(scope, depth)
        if self.draw.random() < 0.2:
            return piece("(NOT ", left, ")", smaller=(left,))
        return piece("(", left, self.draw.choice((" AND ", " OR ")), right, ")", smaller=(left, right))

    def _membership(self, scope: Scope, depth: int) -> Piece:
        return piece("(", self.expression("text", scope, depth), " = ANY (", self.leaf("array", scope), "))")

    def _contains(self, scope: Scope, depth: int) -> Piece:
        kind = self.draw.choice(("array", "json"))
        operator = self.draw.choice(("@>", "<@", "=") if kind == "json" else ("@>", "<@", "&&"))
        return piece("(", self.leaf(kind, scope), f" {operator} ", literal(self.draw, kind), ")")

    def _row_in(self, scope: Scope, depth: int) -> Piece:
        """Two values together, against values or against rows of the same kinds."""
        pair = [self.expression(kind, scope, 0) for kind in ("int", "text")]
        if self.draw.random() < 0.5:
            other = [literal(self.draw, kind) for kind in ("int", "text")]
            word = self.draw.choice((" < ", " >= ", " = "))
            return piece("((", joined(", ", pair), ")", word, "(", joined(", ", other), "))")
        assert self.subquery is not None
        inner = self.subquery("set:int,text", scope, depth)
        return piece("((", joined(", ", pair), ")", self.draw.choice((" IN ", " NOT IN ")), inner, ")")

    def _in_subquery(self, scope: Scope, depth: int) -> Piece:
        assert self.subquery is not None
        kind = self.draw.choice(("int", "text", "num"))
        word = self.draw.choice((" IN ", " NOT IN ", " = ANY ", " <> ALL ", " > ALL "))
        return piece("(", self.expression(kind, scope, 0), word, self.subquery(f"set:{kind}", scope, depth), ")")
