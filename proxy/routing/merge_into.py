"""Where MERGE goes: to the shard of its keys, or to every shard where source and target rows live together.

The argument is that of wide.py. Without WHEN NOT MATCHED THEN INSERT the target is the anchor, as in UPDATE ... FROM.
With it the anchor is a sharded table of the source: each of its rows is on one shard, which has the target's rows that
may match it, and keeps the row that is made of it. WHEN NOT MATCHED BY SOURCE looks at every row of the target, so it
has no keys; a shard still sees all rows of the source that may match its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from foreshard._core.row_split import RowText
from foreshard._core.template import KeyFlag, Operation, RouteKind, Template
from foreshard._core.typed_keys import KeyType
from foreshard.proxy.catalog import Table, TableKind
from foreshard.proxy.catalog.model import key_family
from foreshard.proxy.errors import SqlError, not_built
from foreshard.proxy.routing.away import NewKeys
from foreshard.proxy.routing.collect import Collector, Level
from foreshard.proxy.routing.facts import Fact, FactReader, conjuncts
from foreshard.proxy.routing.functions import Effects, is_unknown
from foreshard.proxy.routing.locate import KeyUse, Locator, chain, distinct, key_uses, same_domain, starts, unnamed
from foreshard.proxy.routing.rows import fired_profiles
from foreshard.proxy.routing.scope import Place, Reference, ReferenceKind
from foreshard.proxy.routing.tree import Node, column_path, has_modifier, operator_name, strings, type_of, unwrap
from foreshard.proxy.routing.wide import wide_problem

HINT = "Join by the key (ON target.key = source.key) and give new rows that key, or send INSERT ... ON CONFLICT."
BY_SOURCE, BY_TARGET = "MERGE_WHEN_NOT_MATCHED_BY_SOURCE", "MERGE_WHEN_NOT_MATCHED_BY_TARGET"
COMMANDS = {"CMD_INSERT": "insert", "CMD_UPDATE": "update", "CMD_DELETE": "delete"}


@dataclass
class Source:
    """The rows that a MERGE compares the target's with: what its columns are made of."""

    level: Level  # the query whose rows they are
    alias: str = ""
    is_even: bool = False  # VALUES whose rows are of the same types, each for itself
    columns: dict[str, list[Node]] = field(default_factory=dict)  # of a sub-select: one expression, or one of each row


class Merge:
    """One MERGE into a sharded table while it is planned."""

    def __init__(self, collector: Collector, node: Node, target: Reference, level: Level, table: Table) -> None:
        self.collector = collector
        self.node = node
        self.target = target
        self.level = level
        self.table = table
        self.clauses = [unwrap(clause)[1] for clause in node.get("mergeWhenClauses", [])]
        self.source = read_source(collector, node, level)
        self.matched: dict[str, list[Node]] = {}  # columns of the target that equal a column of constants: its cells

    def plan(self, effects: Effects) -> Template:
        """The route; SqlError when it must be refused."""
        looks_at_all = any(
            clause.get("matchKind") == BY_SOURCE and clause.get("commandType") != "CMD_NOTHING"
            for clause in self.clauses
        )
        self.read_condition()
        uses, places = self.new_rows()
        locator = Locator(self.collector)
        self.check_params(locator, uses)
        problem = self.problem(locator, uses, places)
        located = {} if looks_at_all else locator.locate()
        if located and all(one in located for one in locator.sharded):
            if uses and self.upserts:
                others = [located[one] for one in locator.sharded if one is not self.target]
                return self.described(effects, distinct([uses, *others]), problem, uses)
            if uses and self.table.by_cost:
                raise refused("new rows of a table that is placed by cost")
            return self.described(effects, distinct([*(located[one] for one in locator.sharded), uses]), problem)
        if problem is not None:
            raise problem
        if places and self.table.by_cost:
            raise refused("new rows of a table that is placed by cost")
        return self.described(effects, (), None)

    @property
    def upserts(self) -> bool:
        """Whether each row of the source matches and makes rows of one key only."""
        found = [clause for clause in self.clauses if clause.get("commandType") == "CMD_INSERT"]
        return bool(found) and all(
            self.matched.get(column) is not None and self.made_of(value) is self.matched[column]
            for clause in found
            for column, value in zip(self.table.routing_columns, self.routing_values(clause), strict=True)
        )

    def row_keys(self, keys: tuple[tuple[int, int, str], ...], uses: tuple[KeyUse, ...]) -> tuple[int, ...]:
        """For each row of the source the position of its key; nothing where they may not be split by shard."""
        text = self.collector.text
        sharded = [one for one in self.collector.references if one.kind is ReferenceKind.SHARDED]
        if len(uses) < 2 or len(sharded) > 1 or "withClause" in self.node:
            return ()
        if not self.source.is_even or self.source.level.merges:
            return ()
        if any(is_unknown(call) for call in self.collector.calls) or len(RowText(text.sql).rows) != len(uses):
            return ()
        positions = starts(keys)
        return tuple(positions[unnamed(use.sources)] for use in uses)

    def described(
        self,
        effects: Effects,
        keys: tuple[tuple[int, int, str], ...],
        problem: SqlError | None,
        rows: tuple[KeyUse, ...] = (),
    ) -> Template:
        """The Template."""
        commands = {COMMANDS[name] for clause in self.clauses if (name := clause.get("commandType")) in COMMANDS}
        profiles = {index for command in sorted(commands) for index in fired_profiles(self.table, command)}
        return Template(
            RouteKind.ROUTE_KEYED if keys else RouteKind.ROUTE_SCATTER,
            operation=Operation.OPERATION_OTHER,
            is_write=True,
            pin=effects.pin,
            table=self.table.qualified,
            keys=keys,
            one_shard_refusal=problem,
            returns="returningList" in self.node,
            profiles=tuple(sorted(profiles)),
            rows=max(len(rows), 1),
            row_keys=self.row_keys(keys, rows),
            new_keys=NewKeys.ON_CONFLICT if rows and self.table.by_cost else NewKeys.NONE,
            owes_away=self.table.by_cost,
            owes_claims=self.collector.catalog.owes_claims(self.table),
            is_exact=self.collector.text.is_exact,
            reason="restricted to keys" if keys else "every shard merges the rows that live together",
        )

    def read_condition(self) -> None:
        """Note what ON says: of the target's rows always, of the source's where those that match nothing do nothing."""
        inserts = any(clause.get("commandType") == "CMD_INSERT" for clause in self.clauses)
        region = frozenset((self.target,))
        if not inserts:
            region |= frozenset(self.level.references)
            if not set(self.source.level.merges) - {"ORDER BY"}:
                region |= frozenset(self.source.level.references)
        reader = FactReader(self.collector.text, self.level.scope)
        condition = self.node.get("joinCondition")
        self.collector.facts += reader.read(condition, region)
        for conjunct in conjuncts(condition):
            kind, fields = unwrap(conjunct)
            if kind != "A_Expr" or fields.get("kind") != "AEXPR_OP" or operator_name(fields) != "=":
                continue
            for ours, theirs in (("lexpr", "rexpr"), ("rexpr", "lexpr")):
                place = reader.place(fields.get(ours))
                if place is not None and place[0] is self.target:
                    self.equate(place, self.made_of(fields.get(theirs)), region)

    def equate(self, place: Place, value: Place | list[Node] | None, region: frozenset[Reference]) -> None:
        """Note that a column of the target equals what a column of a sub-select is made of."""
        key_type = self.table.type_of(place[1])
        if isinstance(value, tuple):
            if value[0].table is not None and value[0].table.type_of(value[1]) is not None and key_type is not None:
                self.collector.facts.append(Fact(place, region, other=value))
        elif value is not None and key_type is not None:
            self.matched[place[1]] = value
            keys = self.collector.text.read_list(value, key_family(key_type))
            if keys is not None:
                self.collector.facts.append(Fact(place, region, keys))

    def made_of(self, node: Node | None) -> Place | list[Node] | None:
        """What a column of a sub-select as the source is made of: a column in it, or constants."""
        path = column_path(node)
        if path is None or (len(path) > 1 and path[-2] != self.source.alias):
            return None
        if len(path) == 1 and self.table.has_column(path[0]):
            return None
        cells = self.source.columns.get(path[-1])
        if cells is None or len(cells) > 1 or column_path(cells[0]) is None:
            return cells
        return self.source.level.scope.resolve(cells[0])

    def new_rows(self) -> tuple[tuple[KeyUse, ...], list[Place]]:
        """Where the rows of INSERT live: by keys, and with rows of the source."""
        uses: list[KeyUse] = []
        places: list[Place] = []
        for clause in self.clauses:
            if clause.get("commandType") != "CMD_INSERT":
                continue
            values = self.routing_values(clause)
            made = [self.made_of(value) or self.level.scope.resolve(value) or [value] for value in values]
            if len(made) == 1 and isinstance(made[0], tuple):
                if not same_domain(made[0], (self.target, self.table.routing_column)):
                    raise refused("new rows that live elsewhere")
                places.append(made[0])
                continue
            cells = [each for each in made if isinstance(each, list)]
            if len(cells) < len(made):
                raise refused("new rows whose key of several columns is made of others' rows")
            uses += self.read_uses(cells)
        return tuple(uses), places

    def routing_values(self, clause: Node) -> list[Node]:
        """What a WHEN NOT MATCHED clause gives for the columns that say where the row lives."""
        named = [unwrap(column)[1].get("name") for column in clause.get("targetList", [])]
        columns = named or [column.name for column in self.table.columns]
        given = dict(zip(columns, clause.get("values", []), strict=False))
        found: list[Node] = []
        for routing in self.table.routing_columns:
            value: Node | None = given.get(routing)
            if value is None or unwrap(value)[0] == "SetToDefault":
                raise refused("new rows without their key")
            found.append(value)
        if self.table.kind is TableKind.CHILD and self.table.key in given and not self.table.takes_keys:
            raise refused("given keys of a child table")
        return found

    def read_uses(self, cells: list[list[Node]]) -> tuple[KeyUse, ...]:
        """The keys of new rows that are constants, by the columns that say where a row lives."""
        columns: list[tuple[KeyUse, ...]] = []
        for routing, given in zip(self.table.routing_columns, cells, strict=True):
            key_type = self.table.type_of(routing)
            keys = self.collector.text.read_list(given, key_family(key_type)) if key_type is not None else None
            if keys is None or len(keys) < len(given):
                raise refused("new rows whose key is an expression")
            columns.append(key_uses(self.collector.catalog, self.table, routing, keys, KeyFlag.KEY_INSERTED))
        if len(columns) == 1:
            return columns[0]
        if len({len(column) for column in columns}) > 1:
            raise refused("new rows whose key is made of constants and the source's rows")
        return tuple(chain(parts) for parts in zip(*columns, strict=True))

    def check_params(self, locator: Locator, uses: tuple[KeyUse, ...]) -> None:
        """Refuse a parameter that is a new row's key and may be of another type elsewhere."""
        for use in (part for each in uses for part in (each, *each.rest)):
            usable = locator.usable.get(use.index)
            key_type = KeyType(
                use.flags // KeyFlag.KEY_TYPE_UNIT & (KeyFlag.KEY_LIMIT_UNIT // KeyFlag.KEY_TYPE_UNIT - 1)
            )
            if use.flags & KeyFlag.KEY_PARAM and usable != key_family(key_type):
                raise refused(f"${use.index + 1} both as a key and otherwise")

    def problem(self, locator: Locator, uses: tuple[KeyUse, ...], places: list[Place]) -> SqlError | None:
        """Why the shards may not each merge their own rows; None when they may."""
        inner = self.source.level
        if not uses and not places:
            return wide_problem(self.collector, locator, self.target, self.node)
        if uses or any(place[0] is not places[0][0] for place in places):
            return refused("new rows of several shards")
        anchor = places[0][0]
        if anchor not in inner.references or anchor.is_nullable or anchor.kind is not ReferenceKind.SHARDED:
            return refused("new rows that are made of others' rows")
        if set(inner.merges) - {"ORDER BY"}:
            return refused(f"{inner.merges[0]} in the source")
        return wide_problem(self.collector, locator, anchor, self.node, inner)


def read_source(collector: Collector, node: Node, level: Level) -> Source:
    """The source of a MERGE."""
    kind, fields = unwrap(node.get("sourceRelation"))
    inner, query = unwrap(fields.get("subquery")) if kind == "RangeSubselect" else ("", {})
    if inner != "SelectStmt":
        return Source(level)
    found = next((one for one in collector.levels if one.node is query), level)
    alias = fields.get("alias", {})
    names = strings(alias.get("colnames"))
    columns: dict[str, list[Node]] = {}
    if "valuesLists" in query:
        rows = [unwrap(row)[1].get("items", []) for row in query["valuesLists"]]
        for index in range(min(len(row) for row in rows)):
            name = names[index] if index < len(names) else f"column{index + 1}"
            columns[name] = [row[index] for row in rows]
    else:
        for index, target in enumerate(query.get("targetList", [])):
            value = unwrap(target)[1]
            path = column_path(value.get("val"))
            name = value.get("name") or (path[-1] if path else "")
            if unwrap(value.get("val"))[0] == "ColumnRef" and path is None:
                break  # a star: what stands behind it is not counted
            columns[names[index] if index < len(names) else name] = [value["val"]]
    is_even = "valuesLists" in query and all(
        len({shape_of(cell) for cell in cells}) == 1 and shape_of(cells[0]) for cells in columns.values()
    )
    return Source(found, alias.get("aliasname", ""), is_even, columns)


def shape_of(cell: Node) -> str:
    """What type an expression has, as far as it can be seen; nothing where it depends on the rows beside it."""
    kind, fields = unwrap(cell)
    if kind == "TypeCast":
        name, is_array = type_of(fields)
        return f"{name}{is_array}{has_modifier(fields)}"
    if kind != "A_Const" or fields.get("isnull"):
        return ""
    return next((name for name in ("ival", "fval", "sval", "boolval") if name in fields), "")


def refused(what: str) -> SqlError:
    """The refusal of a MERGE."""
    return not_built(f"MERGE with {what}", HINT, "The key says on which shard a row lives.")
