"""Where UPDATE, DELETE and MERGE go."""

from __future__ import annotations

from foreshard._core.template import RouteKind, Template
from foreshard.proxy.catalog import Table
from foreshard.proxy.errors import SqlError, not_built
from foreshard.proxy.routing.collect import EVERYWHERE, Collector, InnerWrite, Level
from foreshard.proxy.routing.cte_writes import plan_cte_writes
from foreshard.proxy.routing.functions import Effects, check_shard_local, read_effects
from foreshard.proxy.routing.key_change import Change, KeyChange, check_changed
from foreshard.proxy.routing.locate import Locator, locate_all
from foreshard.proxy.routing.merge_into import Merge
from foreshard.proxy.routing.reads import check_no_plain
from foreshard.proxy.routing.references import plan_reference, plan_written_within
from foreshard.proxy.routing.rows import OPERATIONS, assignments, write_template
from foreshard.proxy.routing.scope import Reference, ReferenceKind
from foreshard.proxy.routing.tree import Node, unwrap
from foreshard.proxy.routing.wide import wide_problem


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
    change = check_changed(collector.catalog, table, changed)
    check_no_plain(collector)
    check_shard_local(collector)
    if change is not Change.NONE:
        return KeyChange(collector, node, target, pairs, change).plan(effects)
    locator = Locator(collector)
    problem = wide_problem(collector, locator, target, node)
    keys = locate_all(locator, target, table, problem)
    return write_template(
        collector,
        effects,
        kind,
        node,
        table,
        pairs,
        RouteKind.ROUTE_SCATTER if keys is None else RouteKind.ROUTE_KEYED,
        keys=keys or (),
        one_shard_refusal=problem,
        reason="no key: every shard writes its rows" if keys is None else "restricted to keys",
    )


def plan_merge_into(collector: Collector, node: Node, target: Reference, level: Level, effects: Effects) -> Template:
    """The route of a MERGE into a sharded table; SqlError when it must be refused."""
    assert target.declared is not None
    for clause in node.get("mergeWhenClauses", []):
        if unwrap(clause)[1].get("commandType") == "CMD_UPDATE":
            pairs = assignments(unwrap(clause)[1].get("targetList", []))
            check_assignments(target.declared, [column for column, _ in pairs])
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


def several_shards() -> SqlError:
    """The refusal of a write whose keys lie on several shards."""
    return not_built(
        "one write on several shards",
        "Send one statement per key, or keys of one shard at a time.",
        "The keys of the statement live on different shards.",
    )
