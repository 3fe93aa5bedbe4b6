"""What stands in a SELECT: its targets, and what ORDER BY, GROUP BY and DISTINCT ON mean by them in PostgreSQL.

An Expression joins a node of the parse tree with the tokens it is written in.
"""

from __future__ import annotations

from dataclasses import dataclass

from foreshard.proxy.routing.collect import Collector, Level
from foreshard.proxy.routing.facts import conjuncts
from foreshard.proxy.routing.tokens import OddText, Piece, Tokens
from foreshard.proxy.routing.tree import Node, column_path, strings, unwrap, walk
from foreshard.proxy.routing.types import Type, Typer

UNNAMED = "?column?"
SIGNS = (b"<", b">", b"=", b"!")
FIXED_NAMES = {"CoalesceExpr": "coalesce", "A_ArrayExpr": "array", "RowExpr": "row"}


@dataclass(eq=False)
class Expression:
    """An expression: its node, its tokens, and the number of the target it stands for in ORDER BY 2."""

    node: Node | None
    start: int
    stop: int
    ordinal: int = 0


class SelectList:
    """Reads the outermost query of a text. OddText for what is not understood."""

    def __init__(self, collector: Collector, level: Level) -> None:
        self.text = collector.text
        self.level = level
        self.node = level.node
        self.tokens = Tokens(collector.text)
        self.typer = Typer(level.scope)
        own = [call for call in collector.calls if call.is_aggregate and call.level is level]
        self.aggregates = {id(call.fields): call for call in own}
        self.first_target = 0
        self.distinct_on: list[Expression] = []
        self.targets = self._read_targets()

    def _read_targets(self) -> list[Expression]:
        tokens = self.tokens
        if b"select" not in tokens.clauses:
            raise OddText
        start, stop = tokens.clauses[b"select"]
        if tokens.items[start].word == b"distinct":
            start += 1
            if tokens.items[start].word == b"on":
                start = self._read_distinct_on(start + 1)
        elif tokens.items[start].word == b"all":
            start += 1
        self.first_target = start
        ranges = tokens.split(start, stop)
        nodes = [unwrap(target)[1] for target in self.node.get("targetList", [])]
        if len(ranges) != len(nodes):
            raise OddText
        found = []
        for (begin, end), node in zip(ranges, nodes, strict=True):
            if "name" in node:
                end -= 1
                end -= tokens.items[end - 1].word == b"as"
            found.append(Expression(node.get("val"), begin, end))
        return found

    def _read_distinct_on(self, bracket: int) -> int:
        """The expressions of DISTINCT ON; the token behind them."""
        tokens = self.tokens
        stop = next(
            index
            for index in range(bracket + 1, len(tokens.items))
            if tokens.items[index].word == b")" and tokens.items[index].depth == tokens.items[bracket].depth
        )
        ranges, nodes = tokens.split(bracket + 1, stop), self.node.get("distinctClause", [])
        if len(ranges) != len(nodes):
            raise OddText
        self.distinct_on = [
            self.resolve(Expression(node, *place), False) for node, place in zip(nodes, ranges, strict=True)
        ]
        if any(one.ordinal for one in self.distinct_on):
            raise OddText
        return stop + 1

    def order_items(self) -> list[tuple[Expression, bool, bool]]:
        """(expression, descending, nulls first) of ORDER BY."""
        nodes = [unwrap(item)[1] for item in self.node.get("sortClause", [])]
        ranges = self.tokens.split(*self.tokens.clauses[b"order"]) if nodes else []
        if len(ranges) != len(nodes) or any(node.get("sortby_dir") == "SORTBY_USING" for node in nodes):
            raise OddText
        found = []
        for (start, end), node in zip(ranges, nodes, strict=True):
            if node.get("sortby_nulls", "SORTBY_NULLS_DEFAULT") != "SORTBY_NULLS_DEFAULT":
                end -= 2
            if node.get("sortby_dir", "SORTBY_DEFAULT") != "SORTBY_DEFAULT":
                end -= 1
            down = node.get("sortby_dir") == "SORTBY_DESC"
            nulls = node.get("sortby_nulls")
            first = nulls == "SORTBY_NULLS_FIRST" or (down and nulls != "SORTBY_NULLS_LAST")
            found.append((self.resolve(Expression(node["node"], start, end), True), down, first))
        return found

    def group_items(self) -> list[Expression]:
        """The expressions of GROUP BY."""
        nodes = self.node.get("groupClause", [])
        ranges = self.tokens.split(*self.tokens.clauses[b"group"]) if nodes else []
        if len(ranges) != len(nodes) or self.node.get("groupDistinct"):
            raise OddText
        if ranges and self.tokens.items[ranges[0][0]].word in (b"all", b"distinct"):
            raise OddText
        if any(unwrap(node)[0] == "GroupingSet" for node in nodes):
            raise OddText
        return [self.resolve(Expression(node, *place), False) for node, place in zip(nodes, ranges, strict=True)]

    def having_items(self) -> list[tuple[Node, tuple[int, int]]]:
        """The conditions of HAVING that must all hold, and where they stand."""
        nodes = conjuncts(self.node.get("havingClause"))
        start, stop = self.tokens.clauses[b"having"]
        ranges = self.tokens.split(start, stop, b"and")
        if len(ranges) != len(nodes):
            raise OddText
        return list(zip(nodes, ranges, strict=True))

    def sides(self, fields: Node, place: tuple[int, int]) -> tuple[Expression, Expression]:
        """Left and right of a comparison."""
        items, (start, stop) = self.tokens.items, place
        signs = [index for index in range(start, stop) if items[index].depth == 0 and items[index].word in SIGNS]
        if not signs or signs[-1] - signs[0] != len(signs) - 1:
            raise OddText
        return (
            Expression(fields.get("lexpr"), start, signs[0]),
            Expression(fields.get("rexpr"), signs[-1] + 1, stop),
        )

    def resolve(self, item: Expression, prefers_targets: bool) -> Expression:
        """What an item of ORDER BY or GROUP BY means: a target by number or name, or itself."""
        kind, fields = unwrap(item.node)
        if kind == "A_Const":
            number = self.text.value_of(item.node) if "ival" in fields else None
            if not isinstance(number, int) or not 0 < number <= len(self.targets):
                raise OddText
            if any(is_star(target.node) for target in self.targets):
                raise OddText
            return Expression(self.targets[number - 1].node, *self._range(number - 1), number)
        path = column_path(item.node)
        if path is None or len(path) != 1:
            return item
        if not prefers_targets and self.level.scope.names.may_own(path[0]):
            return item
        named = [index for index, target in enumerate(self.targets) if self._name(index, target) == path[0]]
        if len(named) > 1 and len({self.tokens.joined(*self._range(index)) for index in named}) > 1:
            raise OddText
        if not named:
            return item
        has_star = any(is_star(target.node) for target in self.targets)
        if has_star and unwrap(self.targets[named[0]].node)[0] != "ColumnRef":
            raise OddText  # the star may have a column of that name, too
        return Expression(self.targets[named[0]].node, *self._range(named[0]))

    def _range(self, index: int) -> tuple[int, int]:
        return self.targets[index].start, self.targets[index].stop

    def _name(self, index: int, target: Expression) -> str:
        given = unwrap(self.node["targetList"][index])[1].get("name")
        return given or name_of(target.node)

    def has_aggregate(self, node: Node | None) -> bool:
        """Whether an aggregate of this query is in an expression."""
        return any(
            id(fields) in self.aggregates or kind in ("JsonObjectAgg", "JsonArrayAgg", "GroupingFunc")
            for kind, fields in walk(node)
        )

    def type_of(self, node: Node | None) -> Type | None:
        """The type of an expression; None when it is not known."""
        return self.typer.type_of(node)

    def pieces(self, expression: Expression) -> list[Piece]:
        """The text of an expression."""
        return self.tokens.pieces(expression.start, expression.stop)


def is_star(node: Node | None) -> bool:
    """Whether a target stands for several columns."""
    kind, fields = unwrap(node)
    return kind == "ColumnRef" and "A_Star" in fields["fields"][-1]


def name_of(node: Node | None) -> str:
    """The name PostgreSQL gives a target that has none."""
    kind, fields = unwrap(node)
    if kind == "ColumnRef":
        return (column_path(node) or [UNNAMED])[-1]
    if kind == "FuncCall":
        return strings(fields["funcname"])[-1]
    if kind == "A_Indirection":
        fields_named = strings(fields.get("indirection"))
        return fields_named[-1] if fields_named else name_of(fields.get("arg"))
    if kind == "CollateClause":
        return name_of(fields.get("arg"))
    if kind == "TypeCast":
        inner = name_of(fields.get("arg"))
        return inner if inner != UNNAMED else strings(fields.get("typeName", {}).get("names"))[-1]
    if kind == "CaseExpr":
        inner = name_of(fields["defresult"]) if "defresult" in fields else UNNAMED
        return inner if inner != UNNAMED else "case"
    if kind in FIXED_NAMES:
        return FIXED_NAMES[kind]
    if kind in ("A_Const", "A_Expr", "ParamRef", "BoolExpr", "NullTest", "BooleanTest"):
        return "nullif" if fields.get("kind") == "AEXPR_NULLIF" else UNNAMED
    raise OddText
