"""Reads whose shards' partial results PostgreSQL itself puts together: expressions of aggregates, DISTINCT aggregates.

The shards group by everything that makes a group, and by what an aggregate is DISTINCT of, and give partial results
(the *parts*). The router puts those rows into a second text, `SELECT ... FROM (VALUES ...)`, that one shard runs: every
aggregate of the client's text is replaced by one over the parts, every group's expression by its column. So
expressions, HAVING, ORDER BY and DISTINCT mean what they mean in PostgreSQL. Values travel as text and are cast to the
types that the parts have; dates and times are ISO whatever the session's DateStyle. A type whose text does not say
everything is not planned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from foreshard._core.merge_plan import MergePlan
from foreshard.proxy.routing.collect import Call, Collector
from foreshard.proxy.routing.finish_lists import LISTED, NotListed, list_of
from foreshard.proxy.routing.scope import Place
from foreshard.proxy.routing.select_list import Expression, SelectList, is_star, name_of
from foreshard.proxy.routing.tokens import OddText, Piece, joined
from foreshard.proxy.routing.tree import Node, column_path, unwrap
from foreshard.proxy.routing.types import (
    BOOL,
    DATED,
    FLOAT4,
    FLOAT8,
    INTEGERS,
    JSON,
    JSONB,
    NAMES,
    NUMERIC,
    STRINGS,
    Type,
)

TYPE_NAMES = {**{oid: name for name, oid in NAMES.items()}, JSON: "json", JSONB: "jsonb"}
SUMMED = (*INTEGERS, NUMERIC)
SAME = frozenset(("min", "max", "bit_and", "bit_or", "bit_xor", "bool_and", "bool_or", "every", "any_value"))
BITS = frozenset(("bit_and", "bit_or", "bit_xor"))
BOOLEANS = frozenset(("bool_and", "bool_or", "every"))
DISTINCT_OF = frozenset(("count", "sum", "avg", "min", "max"))
# What stands for something that is not in the parts.
FOREIGN = frozenset(("ParamRef", "SubLink", "GroupingFunc", "JsonObjectAgg", "JsonArrayAgg"))
TAIL = (b"group", b"having", b"window", b"order", b"limit", b"offset", b"fetch", b"for")
COLUMN = "foreshard_"


class NotFinishable(Exception):
    """One shard cannot put the parts together."""


@dataclass
class Part:
    """One column of the parts: its text for the shards, and its type with its collation."""

    pieces: tuple[Piece, ...]
    cast: bytes


def plan_finish(collector: Collector) -> MergePlan:
    """The plan for the outermost query of a collector; NotFinishable or OddText."""
    try:
        return Finisher(collector).plan()
    except NotListed:
        raise NotFinishable from None


class Finisher:
    """Makes one plan."""

    def __init__(self, collector: Collector) -> None:
        self.collector = collector
        self.select = SelectList(collector, collector.levels[0])
        self.node = self.select.node
        self.tokens = self.select.tokens
        self.starts = {token.start: index for index, token in enumerate(self.tokens.items)}
        self.groups = self.select.group_items()
        self.parts: list[Part] = []
        self.group_texts: list[tuple[Piece, ...]] = []
        self.group_places: list[Place | None] = []
        self.keys: list[list[Piece]] = []  # what the shards group by
        self.group_count = 0  # columns that the client groups by
        self.distinct: list[tuple[Piece, ...]] = []  # what the shards group by for an aggregate's DISTINCT: at most one
        self.distinct_column = b""
        # First token of an aggregate: behind its last one, new text.
        self.ranges: dict[int, tuple[int, tuple[Piece, ...]]] = {}
        self.is_text = self.is_float = False

    def plan(self) -> MergePlan:
        """The plan; NotFinishable or OddText."""
        if self.node.get("limitOption") == "LIMIT_OPTION_WITH_TIES" or self.select.distinct_on:
            raise NotFinishable
        calls = list(self.select.aggregates.values())
        if not calls and not self.groups:
            raise NotFinishable
        for group in self.groups:
            self.add_group(group)
        self.group_count = len(self.parts)
        for call in calls:
            if is_distinct(call):
                self.take_distinct(call)
        for call in calls:
            if not is_distinct(call):
                self.take_call(call)
        return MergePlan(
            self.shards_text(),
            finish=self.finish_text(),
            types=tuple(part.cast for part in self.parts),
            is_text=self.is_text,
            is_float=self.is_float,
        )

    # The parts

    def add(self, pieces: Sequence[Piece], known: Type | None) -> bytes:
        """Add a column of the parts; its name in the second text."""
        if known is None:
            raise NotFinishable
        cast = self.cast_of(known)
        self.parts.append(Part(joined(self.shown(list(pieces), known)), cast))
        return column_name(len(self.parts))

    def cast_of(self, known: Type) -> bytes:
        """What values of a type are cast to in the second text."""
        if known.oid not in TYPE_NAMES:
            raise NotFinishable
        cast = b"pg_catalog." + TYPE_NAMES[known.oid].encode()
        if known.oid in STRINGS:
            if known.collation.is_bytewise and not known.collation.is_default:
                cast += b' COLLATE pg_catalog."C"'
            elif not known.collation.is_default:
                raise NotFinishable
        self.is_text |= known.oid in STRINGS
        self.is_float |= known.oid in (FLOAT4, FLOAT8)
        return cast

    def shown(self, pieces: list[Piece], known: Type) -> list[Piece]:
        """An expression whose text says its value under any settings."""
        if known.oid not in DATED:
            return pieces
        return [b"(pg_catalog.to_json(", *pieces, b") OPERATOR(pg_catalog.#>>) ARRAY[]::pg_catalog.text[])"]

    def add_group(self, group: Expression) -> None:
        """Add what the client groups by."""
        known = self.select.type_of(group.node)
        if known is None or not known.is_groupable:
            raise NotFinishable
        self.add(self.select.pieces(group), known)
        self.keys.append(self.key_pieces(self.select.pieces(group), known))
        self.group_texts.append(self.tokens.joined(group.start, group.stop))
        self.group_places.append(self.select.level.scope.resolve(group.node) if group.node else None)

    def key_pieces(self, pieces: list[Piece], known: Type) -> list[Piece]:
        """The column of the parts that was added last in GROUP BY."""
        return [b"(", *pieces, b")"] if known.oid in DATED else [b"%d" % len(self.parts)]

    def range_of(self, call: Call) -> tuple[int, int, int]:
        """Of an aggregate: its first token, its opening bracket, and the token behind its FILTER."""
        items = self.tokens.items
        start = self.starts.get(call.fields.get("location", 0), -1)
        if start < 0 or call.fields.get("agg_within_group") or call.fields.get("over"):
            raise NotFinishable
        bracket = next((index for index in range(start, len(items)) if items[index].word == b"("), -1)
        stop = self.tokens.closing(bracket) + 1
        if call.fields.get("agg_filter"):
            if stop >= len(items) or items[stop].word != b"filter":
                raise OddText
            stop = self.tokens.closing(stop + 1) + 1
        return start, bracket, stop

    def take_distinct(self, call: Call) -> None:
        """The shards group by what the aggregate is DISTINCT of; the second text keeps it as it is."""
        fields, name = call.fields, call.path[-1]
        start, bracket, stop = self.range_of(call)
        arguments = fields.get("args", [])
        if name not in DISTINCT_OF or len(arguments) != 1:
            raise NotFinishable
        place = bracket + 2, stop - 1
        if self.tokens.items[bracket + 1].word != b"distinct":
            raise OddText
        text = self.tokens.joined(*place)
        known = self.select.type_of(arguments[0])
        if known is None or not known.is_groupable or (name in ("sum", "avg") and known.oid not in SUMMED):
            raise NotFinishable
        if fields.get("agg_filter") or fields.get("agg_order") or (self.distinct and self.distinct != [text]):
            self.ranges[start] = (stop, list_of(self, call, bracket, stop))
            return
        if not self.distinct:
            pieces = self.tokens.pieces(*place)
            self.add(pieces, known)
            self.keys.append(self.key_pieces(pieces, known))
            self.distinct.append(text)
            self.distinct_column = column_name(len(self.parts))
        self.ranges[start] = (stop, (b"pg_catalog." + name.encode() + b"(DISTINCT " + self.distinct_column + b")",))

    def take_call(self, call: Call) -> None:
        """A partial result for an aggregate, and how the second text puts it together."""
        fields, name = call.fields, call.path[-1]
        start, bracket, stop = self.range_of(call)
        if name in LISTED:
            self.ranges[start] = (stop, list_of(self, call, bracket, stop))
            return
        known = self.select.type_of({"FuncCall": fields})
        if fields.get("agg_order") or known is None:
            raise NotFinishable
        pieces = self.tokens.pieces(start, stop)
        if name == "count":
            text = b"pg_catalog.sum(" + self.add(pieces, known) + b")::pg_catalog.int8"
        elif name == "sum":
            text = b"pg_catalog.sum(" + self.add(pieces, known) + b")::pg_catalog." + TYPE_NAMES[known.oid].encode()
        elif name == "avg":
            text = self.average(call, start, bracket, stop)
        elif name in SAME and is_of_its_kind(name, known):
            text = b"pg_catalog." + name.encode() + b"(" + self.add(pieces, known) + b")"
        else:
            raise NotFinishable
        self.ranges[start] = (stop, (text,))

    def average(self, call: Call, start: int, bracket: int, stop: int) -> bytes:
        """An average is a sum divided by a count: of exact numbers to the last digit, of floats as float8."""
        argument = self.select.type_of(call.fields["args"][0])
        if argument is None or bracket != start + 1:
            raise NotFinishable
        rest = self.tokens.pieces(bracket, stop)
        count = [b"pg_catalog.count", *rest]
        if argument.oid in (FLOAT4, FLOAT8):
            end = self.tokens.closing(bracket)
            if self.tokens.items[bracket + 1].word == b"all":
                raise OddText
            inner = [b"((", *self.tokens.pieces(bracket + 1, end), b")::pg_catalog.float8)"]
            rest = [*inner, b" ", *self.tokens.pieces(end + 1, stop)]
            sums = self.add([b"pg_catalog.sum", *rest], Type(FLOAT8))
            counts = self.add(count, Type(NAMES["int8"]))
            return b"(pg_catalog.sum(%s) / NULLIF(pg_catalog.sum(%s), 0)::pg_catalog.float8)" % (sums, counts)
        if argument.oid not in SUMMED:
            raise NotFinishable
        whole = {"FuncCall": {**call.fields, "funcname": [{"String": {"sval": "sum"}}]}}
        sums = self.add([b"pg_catalog.sum", *rest], self.select.type_of(whole))
        counts = self.add(count, Type(NAMES["int8"]))
        return b"(pg_catalog.sum(%s)::pg_catalog.numeric / NULLIF(pg_catalog.sum(%s), 0))" % (sums, counts)

    # The texts

    def shards_text(self) -> tuple[Piece, ...]:
        """What the shards are asked."""
        tokens = self.tokens
        if not self.parts:
            raise NotFinishable
        pieces: list[Piece] = [*tokens.pieces(0, tokens.clauses[b"select"][0])]
        for index, part in enumerate(self.parts):
            pieces += [b", " if index else b" ", *part.pieces]
        stop = min(tokens.start_of(clause) for clause in TAIL)
        pieces += [b" ", *tokens.pieces(tokens.start_of(b"from"), stop)]
        for index, key in enumerate(self.keys):
            pieces += [b", " if index else b" GROUP BY ", *key]
        return joined(pieces)

    def finish_text(self) -> tuple[tuple[Piece, ...], tuple[Piece, ...]]:
        """What the shard is asked that puts the parts together, before and behind their rows."""
        pieces: list[Piece] = [b"SELECT DISTINCT " if self.node.get("distinctClause") else b"SELECT "]
        for index, target in enumerate(self.select.targets):
            if is_star(target.node):
                raise NotFinishable
            given = unwrap(self.node["targetList"][index])[1].get("name")
            name = (given or name_of(target.node)).replace('"', '""')
            pieces += [b", " if index else b"", *self.rewritten(target), b' AS "' + name.encode() + b'"']
        names = b", ".join(column_name(index + 1) for index in range(len(self.parts)))
        behind: list[Piece] = [b" AS " + COLUMN.encode() + b"parts(" + names + b")"]
        if self.group_count:
            behind.append(b" GROUP BY " + b", ".join(column_name(index + 1) for index in range(self.group_count)))
        if "havingClause" in self.node:
            start, stop = self.tokens.clauses[b"having"]
            behind += [b" HAVING ", *self.rewritten(Expression(self.node["havingClause"], start, stop))]
        for index, (item, down, nulls_first) in enumerate(self.select.order_items()):
            behind.append(b", " if index else b" ORDER BY ")
            behind += self.order_item(item)
            behind.append((b" DESC" if down else b" ASC") + (b" NULLS FIRST" if nulls_first else b" NULLS LAST"))
        return joined([*pieces, b" FROM ("]), joined([b")", *behind, *self.limits()])

    def order_item(self, item: Expression) -> list[Piece]:
        """A target by its number, or the expression."""
        for index, target in enumerate(self.select.targets):
            if (target.start, target.stop) == (item.start, item.stop):
                return [b"%d" % (index + 1)]
        return self.rewritten(item)

    def limits(self) -> list[Piece]:
        """LIMIT and OFFSET."""
        found: list[Piece] = []
        for word, name in ((b" LIMIT ", "limitCount"), (b" OFFSET ", "limitOffset")):
            kind, fields = unwrap(self.node.get(name))
            if kind == "" or (kind == "A_Const" and fields.get("isnull")):
                continue
            if kind == "A_Const" and fields.get("location", 0) < 0:  # FETCH FIRST ROW ONLY
                found.append(word + b"%d" % int(fields["ival"]["ival"]))
                continue
            keys = self.collector.text.read_keys(self.node.get(name)) if kind == "A_Const" else None
            if not keys or keys[0].flags:
                raise NotFinishable
            found += [word, keys[0].index]
        return found

    def rewritten(self, expression: Expression) -> list[Piece]:
        """An expression over the parts."""
        text = self.tokens.joined(expression.start, expression.stop)
        if text in self.group_texts:
            return [column_name(self.group_texts.index(text) + 1)]
        replaced = {**self.ranges, **self.columns_of(expression)}
        found: list[Piece] = []
        at = kept = expression.start
        while at < expression.stop:
            if at in replaced:
                found += [*self.tokens.pieces(kept, at), b" ", *replaced[at][1], b" "]
                at = kept = replaced[at][0]
            else:
                at += 1
        return [*found, *self.tokens.pieces(kept, expression.stop)]

    def columns_of(self, expression: Expression) -> dict[int, tuple[int, tuple[Piece, ...]]]:
        """The columns outside of aggregates, which must be ones that the client groups by."""
        found: dict[int, tuple[int, tuple[Piece, ...]]] = {}
        for kind, fields in outside(expression.node, set(self.select.aggregates)):
            if kind in FOREIGN:
                raise NotFinishable
            if kind != "ColumnRef":
                continue
            path = column_path({kind: fields})
            place = self.select.level.scope.resolve({kind: fields})
            start = self.starts.get(fields.get("location", 0), -1)
            if path is None or place is None or place not in self.group_places or start < 0:
                raise NotFinishable
            column = column_name(self.group_places.index(place) + 1)
            found[start] = (start + 2 * len(path) - 1, (column,))
        return found


def is_distinct(call: Call) -> bool:
    """Whether an aggregate is DISTINCT, and no list of values."""
    return bool(call.fields.get("agg_distinct")) and call.path[-1] not in LISTED


def is_of_its_kind(name: str, known: Type) -> bool:
    """Whether an aggregate of this type is the one that PostgreSQL has."""
    if name in BITS:
        return known.oid in INTEGERS
    return name not in BOOLEANS or known.oid == BOOL


def outside(node: object, aggregates: set[int]) -> list[tuple[str, Node]]:
    """Every wrapped node below that is no part of an aggregate."""
    found: list[tuple[str, Node]] = []
    if isinstance(node, list):
        for item in node:
            found += outside(item, aggregates)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key[:1].isupper() and isinstance(value, dict):
                if id(value) in aggregates:
                    continue
                found.append((key, value))
            found += outside(value, aggregates)
    return found


def column_name(number: int) -> bytes:
    """A column of the parts in the second text."""
    return b"%s%d" % (COLUMN.encode(), number)


__all__ = ["NotFinishable", "plan_finish"]
