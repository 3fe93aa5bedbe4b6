"""INSERT ... SELECT: where the rows of a query go. Three ways, of which the first that is proven is taken.

1. *By key*: the query reads rows of known keys, and the new rows live with them: one shard does it all.
2. *Each shard its own*: every new row lives in the bucket of a row that it is made from (a child's rows of its parent's
   key), so each shard inserts what it selects: the argument of locate.py, with that row's table as the anchor.
3. *Carried*: the router runs the query, whatever tier answers it, and inserts its rows (carried.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from foreshard._core.template import KeyFlag, Operation, RouteKind, Template
from foreshard.proxy.catalog import Table, TableKind
from foreshard.proxy.catalog.model import key_family
from foreshard.proxy.errors import SqlError, not_built
from foreshard.proxy.routing.carried import plan_carry
from foreshard.proxy.routing.collect import Collector, Level, trace
from foreshard.proxy.routing.facts import Fact
from foreshard.proxy.routing.functions import Effects
from foreshard.proxy.routing.locate import KeyUse, Located, Locator, distinct, key_uses, same_domain
from foreshard.proxy.routing.query import REFUSED
from foreshard.proxy.routing.rows import COMPUTED, Value, insert_template, shape_of
from foreshard.proxy.routing.scope import Place, Reference, ReferenceKind
from foreshard.proxy.routing.tree import Node, column_path, strings, unwrap
from foreshard.proxy.routing.wide import wide_problem

HINT = "Select the rows first, then insert them with VALUES."
DETAIL = "Where the rows live would depend on the query's result."


@dataclass
class Selected:
    """An INSERT whose rows come from a query, while it is planned."""

    collector: Collector
    node: Node
    target: Reference
    table: Table | None  # None: a plain one
    columns: list[str]
    effects: Effects

    @property
    def level(self) -> Level:
        """The query that gives the rows."""
        source = unwrap(self.node["selectStmt"])[1]
        return next(level for level in self.collector.levels if level.node is source)


def declared(insert: Selected) -> Table:
    """The sharded table that the rows go to."""
    assert insert.table is not None
    return insert.table


def plan_selected(insert: Selected) -> Template:
    """The route; SqlError when it must be refused."""
    table = declared(insert)
    given = given_columns(insert)
    if table.kind is TableKind.CHILD and table.key in given and not table.takes_keys:
        raise not_built(f'given keys of the child table "{table.name}" from a query', HINT, DETAIL)
    if not all(column in given for column in table.routing_columns):
        return plan_generated(insert)
    if len(table.routing_columns) > 1:
        return carry(insert, elsewhere())
    routing = table.routing_column
    value = given[routing]
    keys = None
    if isinstance(value, dict):
        key_type = table.type_of(routing)
        keys = insert.collector.text.read_keys(value, key_family(key_type)) if key_type is not None else None
        value = trace(insert.level, value)
    if keys:
        uses = key_uses(insert.collector.catalog, table, routing, keys, KeyFlag.KEY_INSERTED)
        return plan_located(insert, {insert.target: uses}, None)
    if value is not None and same_domain(value, (insert.target, routing)):
        insert.collector.facts.append(Fact((insert.target, routing), frozenset((insert.target,)), other=value))
        return plan_located(insert, {}, value)
    return plan_located(insert, None, None)


def plan_located(insert: Selected, seeds: Located | None, place: Place | None) -> Template:
    """By key, or each shard its own: new rows live by known keys (`seeds`), or with the rows of `place`."""
    locator = Locator(insert.collector)
    if seeds is None:
        return carry(insert, elsewhere())
    problem = elsewhere() if place is None else each_problem(insert, locator, place)
    located = locator.locate(seeds)
    if all(one in located for one in locator.sharded):
        check_types(insert, locator, located[insert.target])
        keys = distinct([located[one] for one in locator.sharded])
        return described(insert, RouteKind.ROUTE_KEYED, keys, problem, "the rows stay where they are selected")
    if problem is not None:
        return carry(insert, problem)
    return described(insert, RouteKind.ROUTE_SCATTER, (), None, "every shard inserts what it selects")


def plan_generated(insert: Selected) -> Template:
    """Rows that do not say where they live: the shard generates their keys, or nobody does."""
    table = declared(insert)
    if table.kind is TableKind.CHILD or not table.generates_key:
        column = next(column for column in table.routing_columns if column not in given_columns(insert))
        raise SqlError(
            "23502",
            f'null value in column "{column}" of relation "{table.name}" has no shard',
            "The column's value says where the row lives.",
            f'Give a value for "{column}" in every row.',
        )
    if any(one.kind is ReferenceKind.SHARDED and one is not insert.target for one in insert.collector.references):
        return carry(insert, elsewhere())
    return described(insert, RouteKind.ROUTE_PLACE, (), None, "the shard generates the keys")


def described(
    insert: Selected,
    kind: RouteKind,
    keys: tuple[tuple[int, int, str], ...],
    problem: SqlError | None,
    reason: str,
) -> Template:
    """The Template of a route that shards carry out."""
    instead = carried_instead(insert) if problem is not None and keys else None
    return insert_template(
        insert.collector,
        declared(insert),
        insert.effects,
        insert.node,
        kind,
        keys=keys,
        one_shard_refusal=problem,
        values=query_values(declared(insert)),
        carry=instead,
        is_exact=insert.collector.text.is_exact or instead is not None,
        reason=reason,
    )


def carry(insert: Selected, problem: SqlError) -> Template:
    """The Template of a route over the router; `problem` is raised where that is not possible either."""
    node = insert.collector.catalog.query_node
    if problem.sqlstate != REFUSED or (node is not None and node.is_only_shard):
        raise problem
    return Template(
        RouteKind.ROUTE_CARRY,
        operation=Operation.OPERATION_INSERT,
        is_write=True,
        pin=insert.effects.pin,
        table=insert.table.qualified if insert.table is not None else None,
        returns="returningList" in insert.node,
        carry=plan_carry(insert.collector.text, insert.node, insert.columns, insert.table, problem),
        is_exact=True,
        reason="the router carries the rows to their shards",
    )


def carried_instead(insert: Selected) -> object:
    """How the rows are carried when the keys lie on several shards; None when they cannot be."""
    try:
        return plan_carry(insert.collector.text, insert.node, insert.columns, insert.table, elsewhere())
    except SqlError:
        return None


def elsewhere() -> SqlError:
    """Why shards cannot insert what they select."""
    return not_built("INSERT ... SELECT of rows that live on other shards than they are selected on", HINT, DETAIL)


def each_problem(insert: Selected, locator: Locator, place: Place) -> SqlError | None:
    """Why the shards may not each insert the rows that they select; None when they may."""
    level = insert.level
    anchor = place[0]
    if anchor not in level.references or anchor.is_nullable or anchor.kind is not ReferenceKind.SHARDED:
        return elsewhere()
    allowed = {"ORDER BY"}
    if is_plain_distinct(level.node):
        allowed.add("DISTINCT")
    if any(level.scope.resolve(item) == place for item in level.node.get("groupClause", [])):
        allowed |= {"GROUP BY", "HAVING", "aggregates"}
    for merge in level.merges:
        if merge not in allowed:
            return not_built(f"{merge} in INSERT ... SELECT on several shards", HINT, DETAIL)
    return wide_problem(insert.collector, locator, anchor, insert.node, level)


def is_plain_distinct(node: Node) -> bool:
    """Whether a query's rows are made distinct as a whole, the routing column among the rest."""
    return bool(node.get("distinctClause")) and not any(unwrap(item)[0] for item in node["distinctClause"])


def given_columns(insert: Selected) -> dict[str, Node | Place | None]:
    """What the query gives for each column of the table: an expression, a column that a star stands for, or None."""
    level = insert.level
    if "targetList" not in level.node:  # UNION, VALUES
        return dict.fromkeys(insert.columns)
    found: list[Node | Place | None] = []
    for target in level.targets:
        value = unwrap(target)[1].get("val")
        if not is_star(target):
            found.append(value)
            continue
        places = star_places(value, level)
        if places is None:
            return {**dict(zip(insert.columns, found, strict=False)), **dict.fromkeys(insert.columns[len(found) :])}
        found.extend(places)
    return dict(zip(insert.columns, found, strict=False))


def star_places(node: Node | None, level: Level) -> list[Place | None] | None:
    """The columns that a star stands for; None when they are not known for certain."""
    names = level.scope.names
    path = strings(unwrap(node)[1].get("fields", []))
    if names.hidden or names.merged or len(path) > 1:
        return None
    chosen = [one for one in names.references if not path or one.name == path[0]]
    found: list[Place | None] = []
    for one in chosen:
        columns = one.table.columns if one.table is not None else ()
        if not columns and not one.outputs:
            return None
        found += [(one, column.name) for column in columns] or [place for _, place in one.outputs]
    return found if chosen else None


def check_types(insert: Selected, locator: Locator, uses: tuple[KeyUse, ...]) -> None:
    """Refuse a parameter that is the new rows' key and may be of another type elsewhere in the statement."""
    table = declared(insert)
    key_type = table.type_of(table.routing_column)
    for use in uses:
        is_param = use.flags & KeyFlag.KEY_PARAM and use.flags & KeyFlag.KEY_INSERTED
        if is_param and (key_type is None or locator.usable.get(use.index) != key_family(key_type)):
            raise not_built(
                f"${use.index + 1} both as a key and otherwise",
                f"Write ${use.index + 1}::bigint wherever it stands, or use two parameters.",
                "The type of the parameter is not certain.",
            )


def is_star(target: Node) -> bool:
    """Whether a target stands for several columns."""
    value = unwrap(target)[1].get("val")
    return unwrap(value)[0] == "ColumnRef" and column_path(value) is None


def query_values(table: Table) -> tuple[Value, ...]:
    """The values of a row of which only the table is known."""
    return tuple((COMPUTED, False, shape_of(table, column.name)) for column in table.columns)
