"""Goes once through a statement and notes what routing asks about: table references, facts about keys, functions
called, and what would need rows of several shards to be merged.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from foreshard._core.typed_keys import KeyType
from foreshard.proxy.catalog import Catalog, Table
from foreshard.proxy.errors import SqlError, not_built
from foreshard.proxy.routing.builtins import AGGREGATES
from foreshard.proxy.routing.facts import Fact, FactReader, conjuncts, family_of
from foreshard.proxy.routing.scope import Names, Outputs, Place, Reference, ReferenceKind, Scope
from foreshard.proxy.routing.text import CASTS, Text
from foreshard.proxy.routing.tree import Node, column_path, strings, type_of, unwrap, walk

SYSTEM_SCHEMAS = ("pg_catalog", "information_schema", "pg_toast")
MERGING_CLAUSES = {
    "distinctClause": "DISTINCT",
    "groupClause": "GROUP BY",
    "havingClause": "HAVING",
    "windowClause": "window functions",
    "sortClause": "ORDER BY",
    "limitCount": "LIMIT",
    "limitOffset": "OFFSET",
}
EVERYWHERE: frozenset[str] = frozenset()
SETTINGS = "pg_settings"  # an UPDATE of this view makes settings


@dataclass(eq=False)
class Level:
    """One query: a SELECT, or the part of a write that reads."""

    scope: Scope
    references: list[Reference] = field(default_factory=list)
    merges: list[str] = field(default_factory=list)  # clauses that work on all rows of the result together
    targets: list[Node] = field(default_factory=list)
    node: Node = field(default_factory=dict)
    inner: list[Level] = field(default_factory=list)  # sub-selects in its expressions
    first: int = 0  # of the references in it and below it, those in its WITH left out


@dataclass(eq=False)
class Call:
    """One function call."""

    path: list[str]
    fields: Node
    level: Level
    is_aggregate: bool = False


@dataclass(eq=False)
class InnerWrite:
    """A write of a declared table: one in WITH, or the statement itself."""

    kind: str  # InsertStmt, UpdateStmt, DeleteStmt, MergeStmt
    node: Node
    target: Reference
    level: Level
    stop: int = 0  # its references are those from its level's first one to this


class Collector:
    """Holds what was found. One per statement."""

    def __init__(self, catalog: Catalog, text: Text) -> None:
        self.catalog = catalog
        self.text = text
        self.levels: list[Level] = []
        self.references: list[Reference] = []
        self.facts: list[Fact] = []
        self.calls: list[Call] = []
        self.locks_rows = False
        self.writes_within = False  # a CTE changes rows
        self.inner_writes: list[InnerWrite] = []  # those of sharded tables
        self.reference_writes: list[Table] = []  # reference tables that CTEs write
        self.outputs: dict[str, Outputs] = {}  # by name of a CTE
        self.into: Node | None = None  # the table that SELECT INTO makes
        self.params: list[tuple[Node, KeyType | None]] = []  # every $n, and what kind of key a cast around it makes it

    # Queries

    def select(self, node: Node, outer: Scope | None = None, ctes: frozenset[str] = EVERYWHERE) -> Level:
        """Go through a SelectStmt; its level."""
        level = self.open_level(outer)
        level.node = node
        ctes = self.ctes(node.get("withClause"), outer, ctes)
        level.first = len(self.references)
        if node.get("op", "SETOP_NONE") != "SETOP_NONE":
            level.merges.append(str(node["op"]).removeprefix("SETOP_"))
            self.select(node["larg"], outer, ctes)
            self.select(node["rarg"], outer, ctes)
        self.into = self.into or node.get("intoClause")
        self.from_items(node.get("fromClause", []), level, ctes)
        self.where(node.get("whereClause"), level, ctes)
        level.merges += [name for clause, name in MERGING_CLAUSES.items() if clause in node]
        level.targets = node.get("targetList", [])
        self.locks_rows = self.locks_rows or bool(node.get("lockingClause"))
        for clause in ("targetList", "valuesLists", *MERGING_CLAUSES):
            self.visit(node.get(clause), level, ctes)
        return level

    def open_level(self, outer: Scope | None) -> Level:
        """A new level inside a scope."""
        level = Level(Scope(Names(), outer))
        self.levels.append(level)
        return level

    def ctes(self, clause: Node | None, outer: Scope | None, known: frozenset[str]) -> frozenset[str]:
        """Go through WITH; the names that hide tables after it."""
        if not clause:
            return known
        items = [unwrap(item)[1] for item in clause.get("ctes", [])]
        if clause.get("recursive"):
            known |= {item["ctename"] for item in items}
        for item in items:
            kind, query = unwrap(item["ctequery"])
            if kind == "SelectStmt":
                level = self.select(query, outer, known)
                found = outputs_of(level, level.targets)
            else:
                level = self.write_within(kind, query, outer, known)
                found = outputs_of(level, query.get("returningList", []))
            names = strings(item.get("aliascolnames"))
            is_new = item["ctename"] not in self.outputs and not clause.get("recursive")
            renamed = [(name, place) for name, (_, place) in zip(names, found, strict=False)] if names else found
            self.outputs[item["ctename"]] = renamed if is_new else []
            known |= {item["ctename"]}
        return known

    def write_within(self, kind: str, query: Node, outer: Scope | None, ctes: frozenset[str]) -> Level:
        """Go through a data-modifying CTE; its level."""
        relation = query.get("relation", {})
        self.writes_within = True
        level = self.open_level(outer)
        ctes = self.ctes(query.get("withClause"), outer, ctes)
        target = self.add_target(relation, level)
        write = InnerWrite(kind, query, target, level)
        if target.kind is ReferenceKind.SHARDED:
            self.inner_writes.append(write)
        elif target.kind is ReferenceKind.REFERENCE and target.declared is not None:
            self.reference_writes.append(target.declared)
        self.rest_of_write(query, level, ctes)
        write.stop = len(self.references)
        return level

    def add_target(self, relation: Node, level: Level) -> Reference:
        """The table that a write changes, visible in its level."""
        reference = self.classify(relation, EVERYWHERE)
        level.first = len(self.references)
        self.references.append(reference)
        level.references.append(reference)
        level.scope.names = Names([reference])
        if relation.get("relname") == SETTINGS:
            self.calls.append(Call(["set_config"], {}, level))  # by the view's rule, for any setting
        return reference

    def rest_of_write(self, query: Node, level: Level, ctes: frozenset[str]) -> None:
        """Go through all of a write but WITH and its target."""
        for clause in ("fromClause", "usingClause"):
            self.from_items(query.get(clause, []), level, ctes)
        if "sourceRelation" in query:  # MERGE
            self.from_items([query["sourceRelation"]], level, ctes)
        self.where(query.get("whereClause"), level, ctes)
        kind, source = unwrap(query.get("selectStmt"))
        if kind == "SelectStmt":
            self.select(source, level.scope.outer, ctes)
        clauses = ("targetList", "returningList", "onConflictClause", "joinCondition", "mergeWhenClauses")
        for clause in clauses:
            self.visit(query.get(clause), level, ctes)

    # FROM

    def from_items(self, items: list[Node], level: Level, ctes: frozenset[str]) -> None:
        """Go through a FROM list: its references become the level's."""
        for item in items:
            found = self.from_item(item, level, ctes)
            level.scope.names = level.scope.names.join(found)

    def from_item(self, item: Node, level: Level, ctes: frozenset[str]) -> Names:
        """Go through one item of FROM; the names it makes visible."""
        kind, fields = unwrap(item)
        if kind == "JoinExpr":
            return self.join(fields, level, ctes)
        if kind == "RangeVar":
            return self.add(self.classify(fields, ctes), level)
        if kind == "RangeTableSample":
            names = self.from_item(fields["relation"], level, ctes)
            if any(one.declared for one in names.references):
                raise not_built("TABLESAMPLE of declared tables", "Select from the table without TABLESAMPLE.")
            self.visit(fields.get("args"), level, ctes)
            return names
        alias = fields.get("alias", {}).get("aliasname", "")
        if kind == "RangeSubselect":
            inner, query = unwrap(fields["subquery"])
            scope = Scope(level.scope.names, level.scope.outer) if fields.get("lateral") else level.scope.outer
            if inner == "SelectStmt":
                self.select(query, scope, ctes)
        else:
            self.visit(fields, level, ctes)  # functions, XMLTABLE, JSON_TABLE: their arguments see earlier items
        return self.add(Reference(ReferenceKind.DERIVED, alias), level)

    def add(self, reference: Reference, level: Level) -> Names:
        """Note a reference."""
        self.references.append(reference)
        level.references.append(reference)
        return Names([reference])

    def join(self, fields: Node, level: Level, ctes: frozenset[str]) -> Names:
        """Go through a join: its sides, then its condition, which sees both."""
        before = level.scope.names
        left = self.from_item(fields["larg"], level, ctes)
        level.scope.names = before.join(left)
        right = self.from_item(fields["rarg"], level, ctes)
        level.scope.names = before
        form = fields.get("jointype", "JOIN_INNER")
        nullable = {"JOIN_LEFT": [right], "JOIN_RIGHT": [left], "JOIN_FULL": [left, right]}.get(form, [])
        for names in nullable:
            for reference in every_reference(names):
                reference.is_nullable = True
        sides = {"JOIN_INNER": [left, right], "JOIN_LEFT": [right], "JOIN_RIGHT": [left]}.get(form, [])
        region = frozenset(one for side in sides for one in every_reference(side))
        both = left.join(right)
        scope = Scope(both, level.scope.outer)
        self.facts += FactReader(self.text, scope).read(fields.get("quals"), region)
        for column in strings(fields.get("usingClause")):
            self.use(column, left, right, both, form, region)
        if fields.get("isNatural"):
            both = Names(both.references, both.hidden | {""})
        inner = Level(scope, level.references)
        self.visit(fields.get("quals"), inner, ctes)
        return Names([HiddenReference(both)], {fields["alias"]["aliasname"]}) if "alias" in fields else both

    def use(self, column: str, left: Names, right: Names, both: Names, form: str, region: frozenset[Reference]) -> None:
        """Note that USING makes a column of both sides one."""
        ours, theirs = left.owner(column), right.owner(column)
        if ours and theirs and family_of(ours) is not None and family_of(ours) == family_of(theirs):
            self.facts.append(Fact(ours, region, other=theirs))
        both.merged[column] = {"JOIN_FULL": None, "JOIN_RIGHT": theirs}.get(form, ours)

    def where(self, condition: Node | None, level: Level, ctes: frozenset[str]) -> None:
        """Go through the condition that every row of a level's result meets."""
        region = frozenset(level.references)
        self.facts += FactReader(self.text, level.scope).read(condition, region)
        for conjunct in conjuncts(condition):
            kind, fields = unwrap(conjunct)
            if kind == "SubLink" and fields.get("subLinkType") == "ANY_SUBLINK":
                self.membership(fields, level, region, ctes)
            else:
                self.visit(conjunct, level, ctes)

    def membership(self, fields: Node, level: Level, region: frozenset[Reference], ctes: frozenset[str]) -> None:
        """Go through `column IN (SELECT column ...)` that must hold: the two columns are equal in rows that matter."""
        self.visit(fields.get("testexpr"), level, ctes)
        inner = self.select(unwrap(fields["subselect"])[1], level.scope, ctes)
        if strings(fields.get("operName")) not in ([], ["="]) or len(inner.targets) != 1:
            return
        ours = FactReader(self.text, level.scope).place(fields.get("testexpr"))
        target = unwrap(inner.targets[0])[1].get("val")
        theirs = FactReader(self.text, inner.scope).place(target)
        if ours and theirs and not inner.merges and family_of(ours) == family_of(theirs):
            both = region | frozenset(inner.references)
            self.facts.append(Fact(ours, both, other=theirs))

    # Tables and expressions

    def classify(self, relation: Node, ctes: frozenset[str]) -> Reference:
        """What a table reference means."""
        name, schema = relation["relname"], relation.get("schemaname")
        alias = relation.get("alias", {})
        shown = alias.get("aliasname", name)
        if schema is None and name in ctes:
            found = self.outputs.get(name, []) if "colnames" not in alias else []
            return Reference(ReferenceKind.DERIVED, shown, outputs=tuple(found), cte=name)
        table = self.catalog.find(name, schema)
        if schema in SYSTEM_SCHEMAS or (table is None and schema is None and name.startswith("pg_")):
            return Reference(ReferenceKind.SYSTEM, shown, schema)
        if table is None:
            self.refuse_pending(relation)
            self.refuse_disguised(name, schema)
            return Reference(ReferenceKind.PLAIN, shown, schema)
        kind = ReferenceKind.SHARDED if table.is_sharded else ReferenceKind.REFERENCE
        known = None if "colnames" in alias else table
        return Reference(kind, shown, None if alias else table.schema, known, table)

    def refuse_pending(self, relation: Node) -> None:
        """Refuse a declared table that is not there, or not as it must be: no shard can be asked for it."""
        name, schema = relation["relname"], relation.get("schemaname")
        reason = self.catalog.find_pending(name, schema)
        if reason == "":
            self.text.is_exact = True
            position = len(self.text.sql[: relation.get("location", 0)].decode("utf-8", "replace")) + 1
            shown = f"{schema}.{name}" if schema else name
            raise SqlError("42P01", f'relation "{shown}" does not exist', "", "It is declared: create it.", position)
        if reason is not None:
            raise not_built(f'the declared table "{name}" as it is', "See `foreshard plan`.", reason)

    def refuse_disguised(self, name: str, schema: str | None) -> None:
        """Refuse what is not a declared table but reads one."""
        read = self.catalog.find_view(name, schema)
        if read is not None:
            raise not_built(
                f'the view "{name}"', f'Query "{read}" itself.', f'It reads "{read}", whose rows are on several shards.'
            )
        table = self.catalog.find_sequence(name, schema)
        if table is not None:
            raise not_built(
                f'the sequence "{name}"',
                "Use RETURNING to learn a new row's key.",
                f'Each shard has its own; together they make the keys of "{table}".',
            )

    def visit(self, node: Any, level: Level, ctes: frozenset[str], cast: KeyType | None = None) -> None:
        """Go through an expression: sub-selects, calls and parameters in it."""
        if isinstance(node, list):
            for item in node:
                self.visit(item, level, ctes)
        elif isinstance(node, dict):
            for key, value in node.items():
                if key == "SelectStmt":
                    level.inner.append(self.select(value, level.scope, ctes))
                elif key == "ParamRef":
                    self.params.append((value, cast))
                elif key == "TypeCast":
                    name, _ = type_of(value)
                    self.visit(value.get("arg"), level, ctes, cast=CASTS.get(name))
                else:
                    if key == "FuncCall":
                        self.call(value, level)
                    elif key in ("JsonObjectAgg", "JsonArrayAgg"):
                        level.merges.append("aggregates")
                    elif key == "CurrentOfExpr":
                        level.merges.append("WHERE CURRENT OF")
                    self.visit(value, level, ctes)

    def call(self, fields: Node, level: Level) -> None:
        """Note a function call, and whether it works on several rows."""
        path = strings(fields["funcname"])
        call = Call(path, fields, level)
        self.calls.append(call)
        if "over" in fields:
            level.merges.append("window functions")
        elif path[-1] in AGGREGATES or any(name.startswith("agg_") for name in fields):
            call.is_aggregate = True
            level.merges.append("aggregates")
            if not self.is_own_aggregate(fields, level):
                level.merges.append("aggregates of an outer query")

    def is_own_aggregate(self, fields: Node, level: Level) -> bool:
        """Whether an aggregate surely belongs to the query it stands in: it belongs where its columns come from."""
        if fields.get("agg_star"):
            return True
        own = Scope(level.scope.names)
        columns = [{kind: column} for kind, column in walk(fields.get("args", [])) if kind == "ColumnRef"]
        return level.scope.outer is None or not columns or any(own.resolve(column) for column in columns)


def outputs_of(level: Level, targets: list[Node]) -> Outputs:
    """The columns of a query's result, each with the table's column that it is; None for expressions."""
    found: Outputs = []
    for target in targets:
        fields = unwrap(target)[1]
        path = column_path(fields.get("val"))
        if unwrap(fields.get("val"))[0] == "ColumnRef" and path is None:
            shown = strings(unwrap(fields["val"])[1]["fields"])
            chosen = [one for one in level.scope.names.references if not shown or one.name == shown[-1]]
            if len(chosen) != 1 or len(shown) > 1 or level.scope.names.hidden:
                return []  # what stands behind such a star is not counted
            one = chosen[0]
            columns = one.table.columns if one.table is not None else ()
            found += [(column.name, (one, column.name)) for column in columns] or list(one.outputs)
            continue
        name = fields.get("name") or (path[-1] if path else "")
        found.append((name, trace(level, fields.get("val"))))
    return found


def trace(level: Level, node: Node | None) -> Place | None:
    """The table's column that an expression is, CTEs seen through; None for others."""
    kind, fields = unwrap(node)
    if kind == "SubLink" and fields.get("subLinkType") == "EXPR_SUBLINK":
        inner, query = unwrap(fields.get("subselect"))
        targets = query.get("targetList", []) if inner == "SelectStmt" else []
        behind = next((one for one in level.inner if one.node is query), None)
        return trace(behind, unwrap(targets[0])[1].get("val")) if behind is not None and len(targets) == 1 else None
    place = level.scope.resolve(node)
    path = column_path(node)
    if place is not None or path is None or len(path) > 2:
        return place
    names = level.scope.names
    chosen = [one for one in names.references if len(path) == 1 or one.name == path[0]]
    if names.hidden or any(one.table is not None and one.table.has_column(path[-1]) for one in chosen):
        return None
    found = [output for one in chosen for name, output in one.outputs if name == path[-1]]
    return found[0] if len(found) == 1 else None


class HiddenReference(Reference):
    """Stands for the references behind a join's alias: their columns are not looked up."""

    def __init__(self, names: Names) -> None:
        super().__init__(ReferenceKind.DERIVED, "")
        self.behind = names


def every_reference(names: Names) -> list[Reference]:
    """The references that names stand for, those behind aliases of joins included."""
    found: list[Reference] = []
    for one in names.references:
        found.extend(every_reference(one.behind) if isinstance(one, HiddenReference) else [one])
    return found
