"""Where UPDATE, DELETE and MERGE go."""

from __future__ import annotations

from foreshard._core.template import Operation, RouteKind, Template
from foreshard.proxy.catalog import Table
from foreshard.proxy.errors import SqlError, not_built
from foreshard.proxy.routing.away import owes_away
from foreshard.proxy.routing.collect import EVERYWHERE, Collector, InnerWrite, Level
from foreshard.proxy.routing.cte_writes import plan_cte_writes
from foreshard.proxy.routing.functions import Effects, check_shard_local, read_effects
from foreshard.proxy.routing.key_change import check_changed, elsewhere, new_keys
from foreshard.proxy.routing.locate import Locator, distinct
from foreshard.proxy.routing.merge_into import Merge
from foreshard.proxy.routing.reads import check_no_plain
from foreshard.proxy.routing.references import plan_reference, plan_written_within
from foreshard.proxy.routing.rows import assignments, fired_profiles, updated_values
from foreshard.proxy.routing.scope import Reference, ReferenceKind
from foreshard.proxy.routing.tree import Node, unwrap
from foreshard.proxy.routing.wide import wide_problem

OPERATIONS = {
    "InsertStmt": Operation.OPERATION_INSERT,
    "UpdateStmt": Operation.OPERATION_UPDATE,
    "DeleteStmt": Operation.OPERATION_DELETE,
    "MergeStmt": Operation.OPERATION_OTHER,
}


def open_write(collector: Collector, node: Node) -> tuple[Reference, Level, frozenset[str]]:
    """The target of a write, its level, and the CTE names known in it."""
    level = collector.open_level(None)
    ctes = collector.ctes(node.get("withClause"), None, EVERYWHERE)
    return collector.add_target(node["relation"], level), level, ctes


def plan_write(collector: Collector, kind: str, node: Node) -> Template:
    """The route of an UpdateStmt, DeleteStmt or MergeStmt; SqlError when it must be refused."""
    target, level, ctes = open_write(collector, node)
    collector.rest_of_write(node, level, ctes)
    effects = read_effects(collector)
    table = target.declared
    within = plan_written_within(collector, kind, node, table)
    if within is not None:
        return within
    if table is None:
        return plain_write(collector, kind, effects)
    if target.kind is ReferenceKind.REFERENCE:
        return plan_reference(collector, kind, node, table)
    if collector.inner_writes:
        outer = InnerWrite(kind, node, target, level)
        return plan_cte_writes(collector, effects, node, outer, OPERATIONS[kind])
    check_target(collector)
    if kind == "MergeStmt":
        return plan_merge_into(collector, node, target, level, effects)
    if "WHERE CURRENT OF" in level.merges:
        raise not_built("WHERE CURRENT OF on declared tables", "Name the row by its key.")
    pairs = assignments(node.get("targetList", [])) if kind == "UpdateStmt" else []
    changed = [column for column, _ in pairs]
    changes_place = check_changed(collector.catalog, table, changed)
    check_no_plain(collector)
    check_shard_local(collector)
    locator = Locator(collector)
    problem = wide_problem(collector, locator, target, node) if not changes_place else elsewhere(table, changed)
    keys = locate_all(locator, target, table, problem)
    if changes_place:
        found = new_keys(locator, target, table, pairs)
        keys = distinct([*locator.locate().values(), found])
    operation = "update" if kind == "UpdateStmt" else "delete"
    return Template(
        RouteKind.ROUTE_SCATTER if keys is None else RouteKind.ROUTE_KEYED,
        operation=OPERATIONS[kind],
        is_write=True,
        pin=effects.pin,
        table=table.qualified,
        keys=keys or (),
        one_shard_refusal=problem,
        returns="returningList" in node,
        profiles=fired_profiles(table, operation, frozenset(column for column, _ in pairs) if pairs else None),
        values=updated_values(collector.text, table, pairs),
        is_exact=collector.text.is_exact,
        owes_claims=collector.catalog.owes_claims(table),
        owes_away=owes_away(table, kind, [column for column, _ in pairs]),
        reason="no key: every shard writes its rows" if keys is None else "restricted to keys",
    )


def plan_merge_into(collector: Collector, node: Node, target: Reference, level: Level, effects: Effects) -> Template:
    """The route of a MERGE into a sharded table; SqlError when it must be refused."""
    assert target.declared is not None
    for clause in node.get("mergeWhenClauses", []):
        if unwrap(clause)[1].get("commandType") == "CMD_UPDATE":
            pairs = assignments(unwrap(clause)[1].get("targetList", []))
            check_assignments(target.declared, [column for column, _ in pairs])
    if target.declared.by_cost:
        raise not_built(
            f'MERGE into "{target.declared.name}", which is placed by cost', "Use INSERT ... ON CONFLICT, or UPDATE."
        )
    check_no_plain(collector)
    check_shard_local(collector)
    return Merge(collector, node, target, level, target.declared).plan(effects)


def plain_write(collector: Collector, kind: str, effects: Effects) -> Template:
    """A write of a plain table: on the default shard, which has the reference tables too."""
    for one in collector.references:
        if one.kind is ReferenceKind.SHARDED:
            raise not_built(
                "writing a plain table from rows of declared tables",
                "Select the rows first, then write them.",
                f'"{one.name}" is on several shards, the plain table on the default shard only.',
            )
    return Template(
        RouteKind.ROUTE_DEFAULT,
        operation=OPERATIONS[kind],
        is_write=True,
        pin=effects.pin,
        is_exact=collector.text.is_exact,
        reason="plain tables are on the default shard",
    )


def check_target(collector: Collector) -> None:
    """Refuse writes that do more than one thing."""
    if collector.writes_within:
        raise not_built("data-modifying CTEs beside declared tables", "Send the two statements one after the other.")


def check_assignments(table: Table, columns: list[str]) -> None:
    """Refuse changes of the columns that say where a row lives."""
    for column in columns:
        if column in (*table.key_columns, *table.via_columns):
            raise not_built(
                f'changing "{column}" of "{table.name}"',
                "Insert a new row and delete the old one.",
                "The column's value says on which shard the row lives.",
            )


def locate_all(
    locator: Locator, target: Reference, table: Table, problem: SqlError | None
) -> tuple[tuple[int, int, str], ...] | None:
    """The keys of a write; None when it goes to every shard. Raises why it cannot: `problem`, or doubtful keys."""
    located = locator.locate()
    if all(one in located for one in locator.sharded):
        return distinct([located[one] for one in locator.sharded])
    if problem is None:
        return None
    if target not in located and locator.has_doubtful_keys:
        raise not_built(
            "a parameter both as a key and otherwise",
            "Write $n::bigint wherever it stands, or use two parameters.",
            "The type of the parameter is not certain.",
        )
    if target not in located:
        raise problem
    raise not_built(
        "writing a declared table from rows of several shards",
        "Restrict every declared table in the statement to one key as well.",
        problem.detail,
    )


def several_shards() -> SqlError:
    """The refusal of a write whose keys lie on several shards."""
    return not_built(
        "one write on several shards",
        "Send one statement per key, or keys of one shard at a time.",
        "The keys of the statement live on different shards.",
    )
