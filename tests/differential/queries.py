"""SELECTs drawn at random: joins, sub-queries, CTEs, windows, set operations, grouping sets, over all kinds of tables.

Every query's rows are settled as a multiset. Where rows are cut (LIMIT, DISTINCT ON) all columns are sorted by first,
so that what is left over by the order cannot be told apart.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from tests.differential.expressions import COMPARABLE, ORDERED, Expressions, Scope, Source
from tests.differential.pieces import NOTHING, Piece, Statement, Value, joined, optional, piece
from tests.differential.schema import BY_NAME, CHILDREN, TABLES, Table
from tests.differential.values import literal

SHOWN = ("int", "num", "text", "bool", "date", "ts", "mood", "array", "json", "big")
JOINS = ("JOIN", "JOIN", "LEFT JOIN", "LEFT JOIN", "RIGHT JOIN", "FULL JOIN")
SUMMED = ("int", "num")


@dataclass
class Query:
    """A SELECT without ORDER BY, and the types of its columns, named c1, c2 and so on."""

    sql: Piece
    kinds: list[str]

    def source(self, alias: str) -> Source:
        return Source(alias, {f"c{index}": kind for index, kind in enumerate(self.kinds, 1)})


class Queries:
    """Draws queries from one seed's randomness."""

    def __init__(self, draw: random.Random, key_value: Callable[[str, str], Value | None]) -> None:
        self.draw = draw
        self.count = 0
        self.expressions = Expressions(draw)
        self.expressions.subquery = self.subquery
        self.expressions.exists = self.exists
        self.expressions.key_value = key_value

    def alias(self) -> str:
        self.count += 1
        return f"t{self.count}"

    def statement(self) -> Statement:
        """A whole SELECT."""
        self.count = 0
        depth = self.draw.choice((1, 2, 2, 3))
        query, common = self.query(depth), NOTHING
        if self.draw.random() < 0.15:
            query, common = self.with_common(depth)
        ending, order = self.ending(query)
        return Statement("select random", piece(common, query.sql, ending), order)

    def ending(self, query: Query) -> tuple[Piece, str]:
        """ORDER BY and LIMIT, and what they settle."""
        roll = self.draw.random()
        if roll < 0.4:
            return NOTHING, "none"
        if roll < 0.47:
            return optional(f" LIMIT {self.draw.randint(0, 9)}"), "count"
        order = piece(" ORDER BY ", self.order_of(query.kinds))
        limit = optional(self.limit()) if self.draw.random() < 0.5 else NOTHING
        return piece(order, limit), "all"

    def limit(self) -> str:
        number, skip = self.draw.choice((0, 1, 3, 7, 50)), self.draw.choice((0, 1, 4))
        first = f" OFFSET {skip} ROWS FETCH FIRST {number} ROWS ONLY"
        return self.draw.choice((f" LIMIT {number}", f" LIMIT {number} OFFSET {skip}", f" OFFSET {skip}", first))

    def order_of(self, kinds: list[str]) -> Piece:
        """All columns by their numbers, in any order and direction."""
        numbers = self.draw.sample(range(1, len(kinds) + 1), len(kinds))
        return joined(", ", [piece(f"{number}{self.direction()}") for number in numbers])

    def direction(self) -> str:
        return self.draw.choice(("", "", " DESC", " ASC", " NULLS FIRST", " DESC NULLS LAST"))

    def query(self, depth: int, outer: Scope | None = None, kinds: list[str] | None = None) -> Query:
        """A query, with columns of the kinds when they are given."""
        makers = [self.plain, self.plain, self.plain, self.grouped, self.distinct]
        if depth > 0:
            makers += [self.combined, self.windowed]
        return self.draw.choice(makers)(depth, outer, kinds)

    def some_kinds(self, allowed: tuple[str, ...] = SHOWN) -> list[str]:
        return [self.draw.choice(allowed) for _ in range(self.draw.randint(1, 4))]

    # FROM

    def table(self) -> Table:
        weighted = [table for table in TABLES for _ in range(4 if table.name in ("account", "orders", "item") else 1)]
        return self.draw.choice(weighted)

    def item(self, depth: int) -> tuple[Piece, Source]:
        """One FROM item."""
        alias = self.alias()
        if depth > 1 and self.draw.random() < 0.2:
            query = self.query(depth - 1)
            names = ", ".join(f"c{index}" for index in range(1, len(query.kinds) + 1))
            return piece("(", query.sql, f") AS {alias}({names})"), query.source(alias)
        if self.draw.random() < 0.06:
            return self.computed(alias)
        table = self.table()
        return piece(f"{table.name} {alias}"), Source(alias, dict(table.columns), table.name)

    def computed(self, alias: str) -> tuple[Piece, Source]:
        """Rows of no table."""
        if self.draw.random() < 0.5:
            last = self.draw.randint(0, 4)
            return piece(f"generate_series(1, {last}) AS {alias}(c1)"), Source(alias, {"c1": "int"})
        kinds = [self.draw.choice(("int", "text", "date")) for _ in range(2)]
        rows = [piece("(", joined(", ", [literal(self.draw, kind) for kind in kinds]), ")") for _ in range(3)]
        columns = {f"c{number}": kind for number, kind in enumerate(kinds, 1)}
        return piece("(VALUES ", joined(", ", rows), f") AS {alias}(c1, c2)"), Source(alias, columns)

    def from_clause(self, depth: int, outer: Scope | None) -> tuple[Piece, Scope]:
        """FROM with one to three items."""
        text, source = self.item(depth)
        scope = Scope([source], outer)
        for _ in range(self.draw.choice((0, 0, 1, 1, 2))):
            if depth > 1 and self.draw.random() < 0.15:
                text = piece(text, self.lateral(depth, scope))
                continue
            text = self.add_join(text, scope, depth)
        return text, scope

    def add_join(self, text: Piece, scope: Scope, depth: int) -> Piece:
        relative = self.relative(scope) if self.draw.random() < 0.5 else None
        if relative is not None:
            item, source, tie = relative
        else:
            item, source = self.item(depth)
            tie = self.tie(scope, source)
        shared = self.shared(scope, source)
        scope.sources.append(source)
        more = NOTHING
        kind = self.draw.choice(JOINS)
        if shared and self.draw.random() < 0.3:
            return piece(text, f" {kind} ", item, f" USING ({self.draw.choice(shared)})")
        if kind != "FULL JOIN" and self.draw.random() < 0.25:
            more = optional(" AND ", self.expressions.condition(Scope(scope.sources), 0))
        return piece(text, f" {kind} ", item, " ON ", tie, more)

    def shared(self, scope: Scope, source: Source) -> list[str]:
        """Columns that two tables have in common, and nothing before them has."""
        if len(scope.sources) > 1 or not source.table:
            return []
        ours = scope.sources[0].columns
        return [name for name, kind in source.columns.items() if ours.get(name) == kind and kind in COMPARABLE]

    def relative(self, scope: Scope) -> tuple[Piece, Source, Piece] | None:
        """A parent or child of a table in scope, tied by the foreign key."""
        found = []
        for source in scope.sources:
            if source.table:
                table, alias = BY_NAME[source.table], source.alias
                found += [
                    (child.name, f"{{}}.{child.via} = {alias}.{table.key[0]}")
                    for child in CHILDREN
                    if child.parent == table.name
                ]
                if table.parent:
                    found.append((table.parent, f"{{}}.{BY_NAME[table.parent].key[0]} = {alias}.{table.via}"))
                if table.name == "account":
                    found.append(("country", f"{{}}.code = {alias}.country"))
        if not found:
            return None
        name, tie = self.draw.choice(found)
        alias = self.alias()
        return piece(f"{name} {alias}"), Source(alias, dict(BY_NAME[name].columns), name), piece(tie.format(alias))

    def tie(self, scope: Scope, source: Source) -> Piece:
        """An equality between something in scope and a new source."""
        pairs = [
            (left, f"{source.alias}.{name}")
            for left, kind in scope.columns(*ORDERED)
            for name, other in source.columns.items()
            if other == kind and other in COMPARABLE
        ]
        if not pairs:
            return piece("true") if len(scope.sources) < 2 else piece("false")
        left, right = self.draw.choice(pairs)
        return piece(f"{left} = {right}")

    def lateral(self, depth: int, scope: Scope) -> Piece:
        """A LATERAL item, added to the scope."""
        alias = self.alias()
        query = self.query(depth - 2, scope)
        limit = f" LIMIT {self.draw.randint(1, 3)}" if self.draw.random() < 0.6 else ""
        ending = piece(" ORDER BY ", self.order_of(query.kinds), limit) if limit else NOTHING
        names = ", ".join(f"c{index}" for index in range(1, len(query.kinds) + 1))
        scope.sources.append(query.source(alias))
        kind = self.draw.choice((" LEFT JOIN LATERAL (", " JOIN LATERAL ("))
        return piece(kind, query.sql, ending, f") AS {alias}({names}) ON true")

    def where(self, scope: Scope, depth: int) -> Piece:
        if self.draw.random() < 0.35:
            return NOTHING
        return optional(" WHERE ", self.expressions.condition(scope, depth))

    # Kinds of SELECT

    def plain(self, depth: int, outer: Scope | None, kinds: list[str] | None) -> Query:
        """Expressions over rows."""
        chosen = kinds or self.some_kinds()
        text, scope = self.from_clause(depth, outer)
        shown = self.shown(chosen, scope, depth)
        return Query(piece("SELECT ", shown, " FROM ", text, self.where(scope, depth)), chosen)

    def shown(self, kinds: list[str], scope: Scope, depth: int, prefix: str = "") -> Piece:
        found = [self.expressions.expression(kind, scope, depth) for kind in kinds]
        return joined(", ", [piece(prefix, text, f" AS c{number}") for number, text in enumerate(found, 1)])

    def distinct(self, depth: int, outer: Scope | None, kinds: list[str] | None) -> Query:
        """DISTINCT, or DISTINCT ON in a settled order."""
        chosen = kinds or self.some_kinds(ORDERED[:-1])
        text, scope = self.from_clause(depth, outer)
        shown = self.shown(chosen, scope, depth)
        body = piece(shown, " FROM ", text, self.where(scope, depth))
        if self.draw.random() < 0.25:
            order = ", ".join(["1" + self.direction(), *(f"{n}{self.direction()}" for n in range(2, len(chosen) + 1))])
            first = self.expressions.leaf(chosen[0], scope)
            rest = [self.expressions.expression(kind, scope, depth) for kind in chosen[1:]]
            listed = [piece(text, f" AS c{number}") for number, text in enumerate([first, *rest], 1)]
            if any(not isinstance(part, str) for part in first.walk()):
                return Query(piece("SELECT DISTINCT ", body), chosen)
            sql = piece("SELECT DISTINCT ON (", first, ") ", joined(", ", listed), " FROM ", text, f" ORDER BY {order}")
            return Query(piece("SELECT * FROM (", sql, f") AS {self.alias()}"), chosen)
        return Query(piece("SELECT DISTINCT ", body), chosen)

    def aggregate(self, kind: str, scope: Scope, depth: int) -> Piece:
        """An aggregate of a type."""
        inner = self.expressions.expression(kind, scope, depth - 1)
        makers = {
            "int": [
                *(("min(", ")"), ("max(", ")"), ("sum(", ")::integer"), ("count(DISTINCT ", ")::integer")),
                ("sum(0.5::float8 * (", "))::integer"),
            ],
            "num": [("min(", ")"), ("max(", ")"), ("sum(", ")::numeric(14,2)")],
            "text": [("min(", ")"), ("max(", ")")],
            "bool": [("bool_and(", ")"), ("bool_or(", ")"), ("every(", ")")],
            "date": [("min(", ")"), ("max(", ")")],
            "ts": [("min(", ")"), ("max(", ")")],
            "mood": [("min(", ")"), ("max(", ")")],
        }[kind]
        if self.draw.random() < 0.2:
            return self.ordered_aggregate(kind, inner, depth)
        before, after = self.draw.choice(makers)
        where = ""
        if kind == "text" and self.draw.random() < 0.4:
            text = piece("string_agg(", inner, ", ',' ORDER BY ", inner, ")")
            return piece(text, smaller=(piece("min(", inner, ")"),))
        head, _, cast = after.partition("::")
        if self.draw.random() < 0.2:
            test = self.expressions.condition(scope, 0)
            return piece(before, inner, head, optional(" FILTER (WHERE ", test, ")"), f"::{cast}" if cast else where)
        return piece(before, inner, after)

    def ordered_aggregate(self, kind: str, inner: Piece, depth: int) -> Piece:
        """An aggregate that looks at its rows in their order."""
        found = [
            piece("percentile_disc(0.5) WITHIN GROUP (ORDER BY ", inner, ")"),
            piece("mode() WITHIN GROUP (ORDER BY ", inner, ")"),
            piece("(array_agg(DISTINCT ", inner, " ORDER BY ", inner, " DESC))[1]"),
            piece("(array_agg(", inner, " ORDER BY ", inner, " NULLS FIRST))[2]"),
        ]
        simple = piece("min(", inner, ")") if kind != "bool" else piece("bool_and(", inner, ")")
        if kind == "int":
            found.append(piece("array_length(array_agg(", inner, "), 1)"))
        if kind == "text":
            found.append(piece("left(jsonb_agg(", inner, " ORDER BY ", inner, ")::text, 200)"))
            found.append(piece("string_agg(DISTINCT ", inner, ", '; ')"))
            found.append(piece("array_to_string(array_agg(", inner, " ORDER BY ", inner, " DESC), ',', '-')"))
        if kind == "bool":
            return piece("(array_agg(", inner, " ORDER BY ", inner, "))[1]", smaller=(simple,))
        return piece(self.draw.choice(found), smaller=(simple,))

    def grouped(self, depth: int, outer: Scope | None, kinds: list[str] | None) -> Query:
        """GROUP BY, grouping sets, HAVING, or aggregates of everything."""
        possible = ("int", "num", "text", "bool", "date", "ts", "mood")
        chosen = kinds if kinds and all(kind in possible for kind in kinds) else None
        if kinds and chosen is None:
            return self.plain(depth, outer, kinds)
        chosen = chosen or self.some_kinds(possible)
        text, scope = self.from_clause(depth, outer)
        inner = Scope(scope.sources)
        keys: list[Piece] = []
        shown: list[Piece] = []
        for kind in chosen:
            columns = scope.columns(kind)
            if columns and self.draw.random() < 0.45:
                keys.append(piece(self.draw.choice(columns)[0]))
                shown.append(keys[-1])
            elif self.draw.random() < 0.12:
                shown.append(self.expressions.expression(kind, inner, depth))
                keys.append(piece(str(len(shown))))
            else:
                shown.append(self.total(kind, inner, depth))
        listed = joined(", ", [piece(one, f" AS c{number}") for number, one in enumerate(shown, 1)])
        by = piece(" GROUP BY ", self.grouping(keys)) if keys else NOTHING
        having = NOTHING
        if self.draw.random() < 0.25:
            test = piece(self.draw.choice(("count(*) > 1", "count(*) <> 2", "min(1) = 1")))
            if self.draw.random() < 0.4:
                test = piece(self.aggregate("int", inner, 0), " IS NOT NULL")
            having = optional(" HAVING ", test)
        return Query(piece("SELECT ", listed, " FROM ", text, self.where(scope, depth), by, having), chosen)

    def total(self, kind: str, scope: Scope, depth: int) -> Piece:
        """An aggregate, or an expression of one."""
        if kind == "int" and self.draw.random() < 0.4:
            return piece(
                self.draw.choice(("count(*)::integer", "(count(*) + 1)::integer", "count(DISTINCT 1)::integer"))
            )
        found = self.aggregate(kind, scope, depth)
        if kind in SUMMED and self.draw.random() < 0.2:
            return piece("coalesce(", found, ", 0)" if kind == "int" else ", 0.00)", smaller=(found,))
        return found

    def grouping(self, keys: list[Piece]) -> Piece:
        """The groups, plain or several kinds at once."""
        listed = joined(", ", keys)
        roll = self.draw.random()
        if roll < 0.75 or any(str(next(key.walk())).isdigit() for key in keys):
            return listed
        if roll < 0.85:
            return piece("ROLLUP (", listed, ")", smaller=(listed,))
        if roll < 0.92:
            return piece("CUBE (", listed, ")", smaller=(listed,))
        return piece("GROUPING SETS ((", listed, "), ())", smaller=(listed,))

    def combined(self, depth: int, outer: Scope | None, kinds: list[str] | None) -> Query:
        """Set operations."""
        chosen = kinds or self.some_kinds(ORDERED[:-3])
        word = self.draw.choice(("UNION", "UNION ALL", "INTERSECT", "EXCEPT", "UNION ALL", "EXCEPT ALL"))
        sides = [self.query(depth - 1, outer, chosen).sql for _ in range(2)]
        return Query(piece("(", sides[0], f") {word} (", sides[1], ")", smaller=tuple(sides)), chosen)

    def windowed(self, depth: int, outer: Scope | None, kinds: list[str] | None) -> Query:
        """Window functions whose values no order of equal rows changes."""
        if kinds is not None:
            return self.plain(depth, outer, kinds)
        text, scope = self.from_clause(depth, outer)
        columns = scope.columns(*COMPARABLE)
        if not columns:
            return Query(piece("SELECT count(*) AS c1 FROM ", text), ["big"])
        part, by = self.draw.choice(columns)[0], self.draw.choice(columns)[0]
        source = scope.sources[0]
        if len(scope.sources) == 1 and source.table and self.draw.random() < 0.5:
            return self.windowed_rows(text, scope, depth, part)
        over = self.draw.choice(
            (
                f"(PARTITION BY {part})",
                f"(PARTITION BY {part} ORDER BY {by}{self.direction()})",
                f"(ORDER BY {by})",
                "()",
            )
        )
        inner = self.expressions.expression("int", Scope(scope.sources), depth - 1)
        ranked = ["rank()", "dense_rank()"] if "ORDER BY" in over else []
        calls = [piece(name) for name in ("count(*)", *ranked)]
        calls += [piece("sum(", inner, ")"), piece("max(", inner, ")"), piece("min(", inner, ")")]
        call = piece(self.draw.choice(calls), f" OVER {over}")
        shown = self.expressions.expression("text", scope, depth - 1)
        sql = piece("SELECT ", shown, f" AS c1, {part} AS c2, (", call, ")::integer AS c3 FROM ", text)
        kind = next(kind for name, kind in columns if name == part)
        return Query(piece(sql, self.where(scope, depth)), ["text", kind, "int"])

    def windowed_rows(self, text: Piece, scope: Scope, depth: int, part: str) -> Query:
        """Window functions that tell rows apart, over rows of one table in an order that is settled."""
        source = scope.sources[0]
        order = ", ".join(f"{source.alias}.{name}{self.direction()}" for name in BY_NAME[source.table].key)
        begin = self.draw.choice(("", f"PARTITION BY {part} "))
        frame = self.draw.choice(
            (
                *("", ""),
                " ROWS BETWEEN 1 PRECEDING AND 1 FOLLOWING",
                " ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING EXCLUDE CURRENT ROW",
            )
        )
        inner = self.expressions.expression("int", Scope(scope.sources), min(depth - 1, 1))
        calls = [
            piece("row_number()"),
            piece("ntile(3)"),
            piece("lag(", inner, ")"),
            piece("lead(", inner, ", 2)"),
            piece("first_value(", inner, ")"),
            piece("last_value(", inner, ")"),
            piece("nth_value(", inner, ", 2)"),
            piece("sum(", inner, ") FILTER (WHERE ", inner, " > 0)"),
        ]
        call = piece(self.draw.choice(calls), f" OVER ({begin}ORDER BY {order}{frame})")
        shown = self.expressions.expression("text", scope, depth - 1)
        sql = piece("SELECT ", shown, f" AS c1, {part} AS c2, (", call, ")::integer AS c3 FROM ", text)
        kind = next(kind for name, kind in scope.columns(*COMPARABLE) if name == part)
        return Query(piece(sql, self.where(scope, depth)), ["text", kind, "int"])

    # Sub-queries

    def subquery(self, kind: str, scope: Scope, depth: int) -> Piece:
        """A sub-query of one column: of one row, or of a set of rows when the kind says so."""
        if kind.startswith("set:"):
            return piece("(", self.plain(max(depth - 1, 0), scope, kind[4:].split(",")).sql, ")")
        text, inner = self.from_clause(0, scope)
        own = Scope(inner.sources)
        found = self.aggregate(kind, own, depth) if kind != "big" else piece("count(*)")
        return piece("(SELECT ", found, " FROM ", text, self.where(inner, min(depth, 1)), ")")

    def exists(self, scope: Scope, depth: int) -> Piece:
        """EXISTS over a correlated query."""
        text, inner = self.from_clause(0, scope)
        word = self.draw.choice(("EXISTS", "EXISTS", "NOT EXISTS"))
        test = self.expressions.condition(inner, max(depth, 0))
        return piece(f"({word} (SELECT 1 FROM ", text, " WHERE ", test, "))")

    def with_common(self, depth: int) -> tuple[Query, Piece]:
        """A query over a CTE, sometimes a recursive one, sometimes over two of which one reads the other."""
        roll = self.draw.random()
        if roll < 0.15:
            source = Source(self.alias(), {"n": "int"})
            scope = Scope([source])
            text = self.add_join(piece(f"r {source.alias}"), scope, 0)
            kinds = self.some_kinds()
            first = piece("WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r WHERE n < ")
            common = piece(first, Value("integer", "4", ("0", "2", "5")), ") ")
            shown = self.shown(kinds, scope, depth - 1)
            return Query(piece("SELECT ", shown, " FROM ", text, self.where(scope, depth - 1)), kinds), common
        name = f"w{self.draw.randint(1, 9)}"
        inner = self.query(depth - 1)
        words = self.draw.choice((" AS (", " AS MATERIALIZED (", " AS NOT MATERIALIZED ("))
        columns = ", ".join(f"c{index}" for index in range(1, len(inner.kinds) + 1))
        common = piece(f"WITH {name}({columns})", words, inner.sql, ") ")
        if roll < 0.35:
            common = piece(
                f"WITH {name}({columns})", words, inner.sql, f"), v0 AS (SELECT * FROM {name} WHERE c1 IS NOT NULL) "
            )
            name = "v0"
        alias = self.alias()
        source = inner.source(alias)
        scope = Scope([source])
        text = piece(f"{name} {alias}")
        if self.draw.random() < 0.6:
            text = self.add_join(text, scope, 0)
        kinds = self.some_kinds()
        shown = self.shown(kinds, scope, depth - 1)
        return Query(piece("SELECT ", shown, " FROM ", text, self.where(scope, depth - 1)), kinds), common
