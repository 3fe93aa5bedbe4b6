"""Where a SELECT goes."""

from __future__ import annotations

from foreshard._core.template import Operation, RouteKind, Template
from foreshard.proxy.errors import SqlError, not_built
from foreshard.proxy.routing.collect import Collector
from foreshard.proxy.routing.functions import Effects, check_shard_local, read_effects
from foreshard.proxy.routing.locate import Locator, distinct
from foreshard.proxy.routing.locks import check_locked_beside, locked_alone, locks_only, locks_problem, plan_locked
from foreshard.proxy.routing.merge import plan_merge
from foreshard.proxy.routing.scope import Reference, ReferenceKind
from foreshard.proxy.routing.tree import Node


def plan_select(collector: Collector, node: Node) -> Template:
    """The route of a SelectStmt; SqlError when it must be refused."""
    collector.select(node)
    return route_read(collector)


def route_read(collector: Collector) -> Template:
    """The route of what a collector went through, when it only reads declared tables."""
    effects = read_effects(collector)
    locks = collector.locks_rows
    is_write = effects.is_write or locks or collector.writes_within or collector.into is not None
    declared = [one for one in collector.references if one.declared is not None]
    sharded = [one for one in declared if one.kind is ReferenceKind.SHARDED]
    if collector.into is not None:
        check_into(collector, effects, bool(sharded))
    if sharded:
        return route_sharded(collector, effects, is_write)
    if declared and not has_plain(collector.references):
        if locks and locked_alone(collector) is not None:
            return plan_locked(collector, effects, named(declared[0]))
        return Template(
            RouteKind.ROUTE_ANY if not is_write else RouteKind.ROUTE_DEFAULT,
            operation=Operation.OPERATION_SELECT,
            is_write=is_write,
            table=named(declared[0]),
            pin=effects.pin,
            is_exact=collector.text.is_exact,
            reason="reference tables have the same rows on every shard",
        )
    if declared and locks:
        check_locked_beside(collector)
    return Template(
        RouteKind.ROUTE_DEFAULT,
        operation=Operation.OPERATION_SELECT,
        is_write=is_write,
        pin=effects.pin,
        is_exact=collector.text.is_exact,
        reason="no declared table" if not declared else "plain tables are on the default shard",
    )


def check_into(collector: Collector, effects: Effects, is_sharded: bool) -> None:
    """SELECT INTO makes a table on the default shard."""
    relation = (collector.into or {}).get("rel", {})
    if is_sharded:
        raise not_built("making a table from rows of declared tables", "Create the table, then insert the rows.")
    check_new_name(collector, relation)
    if relation.get("relpersistence") == "t":
        effects.pin = "temporary table"


def check_new_name(collector: Collector, relation: Node) -> None:
    """Refuse a new table that a statement would take for a declared one."""
    name, schema = relation.get("relname", ""), relation.get("schemaname")
    is_temporary = relation.get("relpersistence") == "t" or (schema or "").startswith("pg_temp")
    schema = None if is_temporary else schema
    if collector.catalog.find(name, schema) is not None or collector.catalog.find_pending(name, schema) is not None:
        raise not_built(f'a table with the name of the declared table "{name}"', "Choose another name.")


def has_plain(references: list[Reference]) -> bool:
    """Whether something is read that only the default shard has."""
    return any(one.kind in (ReferenceKind.PLAIN, ReferenceKind.SYSTEM) for one in references)


def named(one: Reference) -> str:
    """The declared table's qualified name."""
    return one.declared.qualified if one.declared is not None else one.name


def check_no_plain(collector: Collector) -> None:
    """Refuse joins of declared with plain tables."""
    for one in collector.references:
        if one.kind in (ReferenceKind.PLAIN, ReferenceKind.SYSTEM):
            raise not_built(
                "declared and plain tables in one statement",
                f'Read "{one.name}" in a statement of its own, or declare it as a reference table.',
                f'"{one.name}" is on the default shard only.',
            )


def route_sharded(collector: Collector, effects: Effects, is_write: bool) -> Template:
    """The route of a read of sharded tables."""
    check_no_plain(collector)
    check_shard_local(collector)
    check_locked_beside(collector)
    if collector.writes_within:
        raise not_built("data-modifying CTEs beside declared tables", "Send the two statements one after the other.")
    locator = Locator(collector)
    located = locator.locate()
    problem = locator.problem()
    if is_write and problem is None:
        problem = locks_problem(collector) if locks_only(collector, effects) else writes_many(collector.locks_rows)
    merge = None
    if problem is None and collector.levels[0].merges:
        try:
            merge = plan_merge(collector)
        except SqlError as refusal:
            problem = refusal
    table = named(locator.sharded[0])
    exact = collector.text.is_exact
    if len(located) == len(locator.sharded):
        keys = distinct([located[one] for one in locator.sharded])
        return Template(
            RouteKind.ROUTE_KEYED,
            operation=Operation.OPERATION_SELECT,
            is_write=is_write,
            pin=effects.pin,
            table=table,
            keys=keys,
            one_shard_refusal=problem,
            merge=merge,
            is_exact=exact,
            reason="every declared table is restricted to keys",
        )
    if problem is not None:
        raise problem
    return Template(
        RouteKind.ROUTE_SCATTER,
        operation=Operation.OPERATION_SELECT,
        is_write=is_write,
        returns=is_write,
        merge=merge,
        pin=effects.pin,
        table=table,
        is_exact=exact,
        reason="no key: every shard answers" + ("" if merge is None else ", and the answers are merged"),
    )


def writes_many(locks: bool) -> SqlError:
    """The refusal of changes or locks on several shards."""
    what = "locking rows of several shards" if locks else "calling functions that may write on several shards"
    return not_built(what, "Restrict the statement to keys of one shard.")
