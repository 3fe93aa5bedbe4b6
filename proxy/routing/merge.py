"""Whether the answers of several shards to one SELECT can be merged in the router, and how.

Asked once it is proven that the rows of FROM and WHERE are the union of the shards' rows. This is the one place that
decides what is not mergeable: `plan_merge` raises the refusal with its reason, and whoever has another way to answer
takes it from there.

*Local groups*: when rows that GROUP BY or DISTINCT puts together have equal routing keys, each group is on one shard,
which does all the work, whatever the aggregates. *Merged groups* else: the shards give partial results sorted by the
group's columns. Every key of a sort or a group is a hidden column in front of the client's, so its type is the shard's.

Dates are read as ISO writes them. Where a plan has any, it has a second one for sessions with another DateStyle, whose
keys are seconds since 1970: numerics, exact and in the same order (*undated*).
"""

from __future__ import annotations

from foreshard._core.merge_plan import Combine, LimitSource, MergePlan
from foreshard._core.template import KeyFlag
from foreshard.proxy.routing.collect import Collector
from foreshard.proxy.routing.finish import NotFinishable, plan_finish
from foreshard.proxy.routing.locate import merging
from foreshard.proxy.routing.merge_lists import JOINED, combine_list
from foreshard.proxy.routing.scope import Place
from foreshard.proxy.routing.select_list import Expression, SelectList, is_star
from foreshard.proxy.routing.text import Text
from foreshard.proxy.routing.tokens import OddText, Piece, Tokens, joined
from foreshard.proxy.routing.tree import Node, operator_name, unwrap
from foreshard.proxy.routing.types import BOOL, DATED, FLOAT4, FLOAT8, INTEGERS, NAMES, NUMERIC, STRINGS, Type

COMBINES = {
    "count": Combine.COMBINE_SUM,
    "sum": Combine.COMBINE_SUM,
    "min": Combine.COMBINE_MIN,
    "max": Combine.COMBINE_MAX,
    "bool_and": Combine.COMBINE_AND,
    "every": Combine.COMBINE_AND,
    "bool_or": Combine.COMBINE_OR,
    "avg": Combine.COMBINE_AVG,
    "bit_and": Combine.COMBINE_BIT_AND,
    "bit_or": Combine.COMBINE_BIT_OR,
    "bit_xor": Combine.COMBINE_BIT_XOR,
    "any_value": Combine.COMBINE_ANY,
}
MERGED = frozenset(("DISTINCT", "GROUP BY", "HAVING", "ORDER BY", "LIMIT", "OFFSET", "aggregates"))
TAIL = (b"order", b"limit", b"offset", b"fetch", b"for")
FLIPPED = {"=": "=", "<>": "<>", "<": ">", ">": "<", "<=": ">=", ">=": "<="}
TYPE_NAMES = {oid: name for name, oid in NAMES.items()}
LIMIT_MAX = b"9223372036854775807"
LOCKS = {
    "LCS_FORKEYSHARE": " FOR KEY SHARE",
    "LCS_FORSHARE": " FOR SHARE",
    "LCS_FORNOKEYUPDATE": " FOR NO KEY UPDATE",
    "LCS_FORUPDATE": " FOR UPDATE",
}
WAITS = {"LockWaitSkip": " SKIP LOCKED", "LockWaitError": " NOWAIT"}
Source = tuple[int, int]


class NotMergeable(Exception):
    """What stands in the way, as in "... over rows of several shards"."""


def plan_merge(collector: Collector) -> MergePlan:
    """The plan for the outermost query of a collector; SqlError with the reason when there is none."""
    level = collector.levels[0]
    odd = next((merge for merge in level.merges if merge not in MERGED), None)
    if odd is not None:
        raise merging(odd)
    try:
        return Merger(collector).plan()
    except NotMergeable as reason:
        refusal = merging(str(reason))
    except OddText:
        refusal = merging(level.merges[0], "It is written in a way that Foreshard does not take apart.")
    try:
        return plan_finish(collector)
    except (NotFinishable, OddText):
        raise refusal from None


def undated_of(collector: Collector) -> MergePlan | None:
    """The plan for a session whose dates are not ISO; None: there is none."""
    try:
        return Merger(collector, is_undated=True).plan()
    except (NotMergeable, OddText):
        pass
    try:
        return plan_finish(collector)
    except (NotFinishable, OddText):
        return None


class Merger:
    """Makes one plan."""

    def __init__(self, collector: Collector, *, is_undated: bool = False) -> None:
        self.collector = collector
        self.is_undated = is_undated
        self.is_dated = False  # it compares dates
        self.select = SelectList(collector, collector.levels[0])
        self.node = self.select.node
        self.tokens = self.select.tokens
        self.groups = self.select.group_items()
        self.items = self.select.order_items()
        self.hidden: list[tuple[Piece, ...]] = []
        self.keys: list[tuple[bool, bool]] = []
        self.group = -1
        self.combines: list[tuple[int, int, object]] = []  # columns of the client's own are below 0: -1 is the first
        self.order: list[tuple[int, bool, bool]] = []
        self.filters: list[tuple[int, str, int]] = []
        self.is_text = False
        self.is_float = False

    def plan(self) -> MergePlan:
        """The plan; NotMergeable or OddText."""
        node = self.node
        if node.get("limitOption") == "LIMIT_OPTION_WITH_TIES":
            raise NotMergeable("FETCH FIRST WITH TIES")
        is_grouped = bool(self.groups) or "havingClause" in node or "aggregates" in self.select.level.merges
        distinct = node.get("distinctClause")
        if is_grouped and not any(self.is_routing(item) for item in self.groups):
            if distinct:
                raise NotMergeable("DISTINCT of groups")
            self.merge_groups()
        elif distinct:
            if not self.select.distinct_on:
                self.check_order_of_distinct()
            if self.is_local_distinct():
                self.sort_by_items()
            else:
                self.merge_distinct()
        else:
            self.sort_by_items()
        limit, offset = self.source(node.get("limitCount")), self.source(node.get("limitOffset"))
        hidden = len(self.hidden)
        return MergePlan(
            self.text(limit, offset),
            undated=undated_of(self.collector) if self.is_dated and not self.is_undated else None,
            hidden=hidden,
            keys=tuple(self.keys),
            group=self.group,
            combines=tuple(
                (hidden - 1 - column if column < 0 else column, kind, extra) for column, kind, extra in self.combines
            ),
            order=tuple(self.order),
            limit=limit,
            offset=offset,
            filters=tuple(self.filters),
            is_text=self.is_text,
            is_float=self.is_float,
        )

    # Sorting

    def hide(self, pieces: list[Piece]) -> int:
        """Add a hidden column; its number."""
        self.hidden.append(joined(pieces))
        return len(self.hidden) - 1

    def caution(self, known: Type | None) -> None:
        """Note what the comparison of a type's values asks of the session's settings."""
        self.is_text = self.is_text or (known is not None and known.oid in STRINGS)
        self.is_float = self.is_float or (known is not None and known.oid in (FLOAT4, FLOAT8))
        if known is not None and known.oid in DATED:
            self.is_dated = True
            if self.is_undated:
                raise NotMergeable("dates in another style than ISO")

    def key_of(self, pieces: list[Piece], known: Type) -> list[Piece]:
        """A key that the router can compare."""
        if known.oid in DATED and self.is_undated and not self.select.distinct_on:
            return [b"EXTRACT(epoch FROM (", *pieces, b"))"]
        self.caution(known)
        return pieces

    def add_key(self, expression: Expression, down: bool = False, nulls_first: bool = False) -> Type:
        """Add a key that the shards sort by, and that the client asked for."""
        known = self.select.type_of(expression.node)
        if known is None or not known.is_sortable:
            raise NotMergeable("ORDER BY of values whose order only a shard knows")
        self.hide(self.key_of(self.select.pieces(expression), known))
        self.keys.append((down, nulls_first))
        return known

    def add_group_key(self, expression: Expression) -> None:
        """Add a key in whatever order."""
        known = self.select.type_of(expression.node)
        if known is None or not known.is_groupable:
            raise NotMergeable("GROUP BY or DISTINCT of values whose equality only a shard knows")
        pieces = self.select.pieces(expression)
        if known.oid in STRINGS and not known.is_sortable:
            pieces = [b"(", *pieces, b') COLLATE pg_catalog."C"']
        self.hide(self.key_of(pieces, known))
        self.keys.append((False, False))

    def sort_by_items(self) -> None:
        """The client's ORDER BY, and nothing to put together."""
        for expression, down, nulls_first in self.items:
            self.add_key(expression, down, nulls_first)

    # DISTINCT

    def place_of(self, node: Node | None) -> Place | None:
        """The column that an expression is."""
        return self.select.level.scope.resolve(node) if node else None

    def is_routing(self, expression: Expression) -> bool:
        """Whether rows with equal values of an expression are on one shard."""
        place = self.place_of(expression.node)
        if place is None or place[0].table is None or place[0].is_nullable:
            return False
        return place[0].table.is_sharded and place[0].table.domain(place[1]) is not None

    def is_local_distinct(self) -> bool:
        """Whether rows that DISTINCT takes for one are on one shard."""
        if self.select.distinct_on:
            return any(self.is_routing(one) for one in self.select.distinct_on)
        bare = any(is_star(one.node) and len(unwrap(one.node)[1]["fields"]) == 1 for one in self.select.targets)
        return bare or any(self.is_routing(one) for one in self.select.targets)

    def check_order_of_distinct(self) -> None:
        """What DISTINCT is sorted by must be selected, or hidden columns would change what is distinct."""
        bare = any(is_star(one.node) for one in self.select.targets)
        texts = {self.tokens.joined(one.start, one.stop) for one in self.select.targets}
        places = {self.place_of(one.node) for one in self.select.targets} - {None}
        for item, _, _ in self.items:
            place = self.place_of(item.node)
            if not (self.tokens.joined(item.start, item.stop) in texts or place in places or (bare and place)):
                raise NotMergeable("DISTINCT sorted by what is not selected")

    def merge_distinct(self) -> None:
        """Rows that are equal come one after the other, and the first of them stays."""
        self.sort_by_items()
        if self.select.distinct_on:
            places = [self.place_of(one.node) for one in self.select.distinct_on]
            if len(places) > 1 and (None in places or len(set(places)) < len(places)):
                raise NotMergeable("DISTINCT ON such expressions")
            if self.items and len(self.items) < len(places):
                raise NotMergeable("DISTINCT ON more than ORDER BY names")
            if not self.items:
                for one in self.select.distinct_on:
                    self.add_group_key(one)
            self.group = len(places)
            return
        for target in self.select.targets:
            if is_star(target.node):
                raise NotMergeable("DISTINCT with a star")
            self.add_group_key(target)
        self.group = len(self.keys)

    # Groups

    def merge_groups(self) -> None:
        """Partial results of each group become one row."""
        if not self.groups and not all(item.ordinal for item, _, _ in self.items):
            raise NotMergeable("ORDER BY of a single row")
        in_order = not any(self.select.has_aggregate(item.node) for item, _, _ in self.items)
        if in_order and self.groups:
            self.sort_by_items()
        for one in self.groups:
            self.add_group_key(one)
        self.group = len(self.keys)
        if self.groups and not in_order:
            for item, down, nulls_first in self.items:
                self.order_groups(item, down, nulls_first)
        if self.select.has_aggregate(self.node.get("havingClause")):
            self.filter_groups()
        for index, target in enumerate(self.select.targets):
            if self.select.has_aggregate(target.node):
                self.combine(target, -1 - index)
            elif is_star(target.node) or not self.is_plain(target.node):
                raise NotMergeable("GROUP BY with such targets")

    def is_plain(self, node: Node | None) -> bool:
        """Whether an expression without aggregates surely has one value in a group."""
        kind, fields = unwrap(node)
        if kind == "TypeCast":
            return self.is_plain(fields.get("arg"))
        return kind in ("ColumnRef", "A_Const", "ParamRef") or self.select.type_of(node) is not None

    def order_groups(self, item: Expression, down: bool, nulls_first: bool) -> None:
        """Add a hidden column that the merged groups are sorted by."""
        known = self.select.type_of(item.node)
        if known is None or not known.is_sortable:
            raise NotMergeable("ORDER BY of values whose order only a shard knows")
        if self.select.has_aggregate(item.node):
            self.caution(known)
        column = self.hide(self.key_of(self.select.pieces(item), known))
        self.order.append((column, down, nulls_first))
        if self.select.has_aggregate(item.node):
            self.combine(item, column)

    def filter_groups(self) -> None:
        """HAVING of aggregates and constants: both become hidden columns, compared when the group is whole."""
        for condition, place in self.select.having_items():
            kind, fields = unwrap(condition)
            operator = operator_name(fields) if fields.get("kind") == "AEXPR_OP" else ""
            if kind != "A_Expr" or operator not in FLIPPED:
                raise NotMergeable("such a HAVING")
            left, right = self.select.sides(fields, place)
            if not self.select.has_aggregate(left.node):
                left, right, operator = right, left, FLIPPED[operator]
            known = self.select.type_of(left.node)
            if known is None or not known.is_sortable or not fits(right.node, known):
                raise NotMergeable("HAVING of such values")
            self.caution(known)
            column = self.hide(self.select.pieces(left))
            self.combine(left, column)
            cast = b")::pg_catalog." + TYPE_NAMES[known.oid].encode()
            self.filters.append((column, operator, self.hide([b"(", *self.select.pieces(right), cast])))

    def combine(self, expression: Expression, column: int) -> None:
        """Add how a column that is an aggregate is put together."""
        fields = self.select.aggregates.get(id(unwrap(expression.node)[1]))
        if fields is None:
            raise NotMergeable("expressions of aggregates")
        call = fields.fields
        name = fields.path[-1]
        if name in ("array_agg", *JOINED) or (name == "string_agg" and call.get("agg_order")):
            self.combine_list(expression, column, call, name)
            return
        if any(call.get(flag) for flag in ("agg_distinct", "agg_order", "agg_within_group")) or call.get("over"):
            raise NotMergeable(f"{name} with DISTINCT or an order of its own")
        known = self.select.type_of(expression.node)
        if name == "string_agg":
            self.combines.append((column, Combine.COMBINE_TEXT, self.delimiter(call)))
            return
        if name not in COMBINES or (known is None and name != "any_value"):
            raise NotMergeable(f"the aggregate {name}")
        if name in ("min", "max") and (known is None or not known.is_sortable):
            raise NotMergeable(f"{name} of values whose order only a shard knows")
        if name.startswith("bit_") and (known is None or known.oid not in INTEGERS):
            raise NotMergeable(f"the aggregate {name}")
        if name in ("bool_and", "bool_or", "every") and known != Type(BOOL):
            raise NotMergeable(f"the aggregate {name}")
        if name in ("sum", "avg") and known is not None and known.oid in (FLOAT4, FLOAT8):
            raise NotMergeable(f"{name} of floats")
        self.caution(known)
        extra = self.parts_of_avg(expression) if name == "avg" else None
        self.combines.append((column, COMBINES[name], extra))

    def combine_list(self, expression: Expression, column: int, call: Node, name: str) -> None:
        """Add how a list of values is put together."""
        if call.get("agg_within_group") or call.get("over") or call.get("func_variadic"):
            raise NotMergeable(f"{name} with an order of its own")
        delimiter = self.delimiter(call) if name == "string_agg" else None
        found = combine_list(self.select, expression, call, name, delimiter, self.hide)
        if found is None:
            raise NotMergeable(f"{name} with DISTINCT or an order of its own")
        self.combines.append((column, *found[0]))
        for hidden, known in found[1]:
            self.caution(known)
            self.combines.append((hidden, int(Combine.COMBINE_KEPT), None))

    def parts_of_avg(self, expression: Expression) -> tuple[int, int]:
        """Hidden columns with sum and count of what an average is of."""
        items = self.tokens.items
        name = next(index for index in range(expression.start, expression.stop) if items[index].word == b"(") - 1
        if items[name].word not in (b"avg", b'"avg"'):
            raise OddText
        columns = []
        for part in (b"sum", b"count"):
            start = self.tokens.pieces(expression.start, name)
            columns.append(self.hide([*start, part, *self.tokens.pieces(name + 1, expression.stop)]))
            self.combines.append((columns[-1], Combine.COMBINE_SUM, None))
        return columns[0], columns[1]

    def delimiter(self, call: Node) -> bytes:
        """The constant that string_agg puts between strings."""
        known = self.select.type_of(call["args"][0])
        kind, fields = unwrap(call["args"][1])
        if known is None or known.oid not in STRINGS or kind != "A_Const" or "sval" not in fields:
            raise NotMergeable("string_agg with such a delimiter")
        self.is_text = True
        written = str(self.collector.text.value_of(call["args"][1]))
        if not written.isascii():
            raise NotMergeable("string_agg with such a delimiter")
        return written.encode()

    # The shards' text

    def source(self, node: Node | None) -> Source:
        """Where LIMIT or OFFSET has its number."""
        kind, fields = unwrap(node)
        if node is None or (kind == "A_Const" and fields.get("isnull")):
            return int(LimitSource.LIMIT_NONE), 0
        if kind == "A_Const" and fields.get("location", 0) < 0:  # FETCH FIRST ROW ONLY
            return int(LimitSource.LIMIT_CONSTANT), int(fields["ival"]["ival"])
        keys = self.collector.text.read_keys(node) if kind in ("A_Const", "ParamRef") else None
        if not keys or keys[0].flags & KeyFlag.KEY_NEGATIVE:
            raise NotMergeable("LIMIT or OFFSET by an expression")
        is_param = keys[0].flags & KeyFlag.KEY_PARAM
        return int(LimitSource.LIMIT_PARAM if is_param else LimitSource.LIMIT_LITERAL), keys[0].index

    def text(self, limit: Source, offset: Source) -> tuple[Piece, ...]:
        """The shards' text."""
        tokens = self.tokens
        first = self.select.first_target
        stop = min(tokens.start_of(clause) for clause in TAIL)
        pieces: list[Piece] = [*tokens.pieces(0, first), b" "]
        for column in self.hidden:
            pieces += [*column, b", "]
        pieces += self.body(first, stop)
        if self.keys:
            words = [
                b"%d%s NULLS %s" % (index + 1, b" DESC" if down else b"", b"FIRST" if nulls_first else b"LAST")
                for index, (down, nulls_first) in enumerate(self.keys)
            ]
            pieces.append(b" ORDER BY " + b", ".join(words))
        if limit[0] != LimitSource.LIMIT_NONE and not self.order and not self.filters and self.group != 0:
            pieces += [b" LIMIT ", *self.limit_pieces(limit, offset), *self.lock_pieces()]
            return joined(pieces)
        # Every parameter that the client binds must stand in the text.
        for source in (limit, offset):
            if source[0] == LimitSource.LIMIT_PARAM:
                word = b" LIMIT" if source is limit else b" OFFSET"
                pieces += [word, b" CASE WHEN true THEN NULL ELSE ", *number_pieces(source), b"::pg_catalog.int8 END"]
        return joined([*pieces, *self.lock_pieces()])

    def lock_pieces(self) -> list[Piece]:
        """FOR UPDATE and its like."""
        found: list[Piece] = []
        for clause in self.node.get("lockingClause", []):
            fields = unwrap(clause)[1]
            tables = [unwrap(one)[1]["relname"].replace('"', '""') for one in fields.get("lockedRels", [])]
            words = LOCKS[fields["strength"]] + (f""" OF "{'", "'.join(tables)}\"""" if tables else "")
            found.append((words + WAITS.get(fields.get("waitPolicy", ""), "")).encode())
        return found

    def body(self, first: int, stop: int) -> list[Piece]:
        """From the targets to the end of HAVING; numbers of targets in GROUP BY count the hidden columns in."""
        if self.filters:
            stop = self.tokens.start_of(b"having")  # nothing but WINDOW may stand behind it, which is not merged
        if b"group" not in self.tokens.clauses:
            return self.tokens.pieces(first, stop)
        start, end = self.tokens.clauses[b"group"]
        pieces = self.tokens.pieces(first, start)
        for index, (place, item) in enumerate(zip(self.tokens.split(start, end), self.groups, strict=True)):
            pieces.append(b", " if index else b" ")
            number = b"%d" % (item.ordinal + len(self.hidden))
            pieces += [number] if item.ordinal else self.tokens.pieces(*place)
        rest = self.tokens.pieces(end, stop)
        return [*pieces, b" ", *rest] if rest else pieces

    def limit_pieces(self, limit: Source, offset: Source) -> list[Piece]:
        """The rows that any shard may have to give: those before the offset, too."""
        if offset[0] == LimitSource.LIMIT_NONE:
            return [*number_pieces(limit), b"::pg_catalog.int8"]
        return [
            *(b"LEAST(", *number_pieces(limit), b"::pg_catalog.int8::pg_catalog.numeric + "),
            *(*number_pieces(offset), b"::pg_catalog.int8, ", LIMIT_MAX, b")::pg_catalog.int8"),
        ]


def fits(node: Node | None, known: Type) -> bool:
    """Whether a constant takes a type when it is compared with a value of it."""
    kind, fields = unwrap(node)
    if kind == "ParamRef":
        return True
    if kind != "A_Const":
        return False
    if "ival" in fields:
        return known.oid in (*INTEGERS, NUMERIC)
    return "sval" in fields or ("fval" in fields and known.oid == NUMERIC)


def plan_of_shards(text: Text, merge: MergePlan | None) -> MergePlan | None:
    """How the plans that an EXPLAIN asks of several shards are shown; None: one behind the other."""
    try:
        tokens = Tokens(text)
    except OddText:
        return None
    pieces = tokens.joined(0, len(tokens.items)) if merge is None else merge.pieces
    return MergePlan(pieces, is_plan=True)


def number_pieces(source: Source) -> list[Piece]:
    """The text of a number."""
    kind, number = source
    if kind == LimitSource.LIMIT_PARAM:
        return [b"$%d" % (number + 1)]
    return [number] if kind == LimitSource.LIMIT_LITERAL else [b"%d" % number]


__all__ = ["plan_merge", "plan_of_shards"]
