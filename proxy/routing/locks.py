"""Row locks (FOR UPDATE and its like) where a statement's rows are on several shards, or the same on all of them.

A row of a reference table is on every shard, so its locks are taken as in "read one, write all": those that others may
share are taken where the statement runs; those that one transaction alone may have, on every shard, in the shards'
order. Whatever meets in PostgreSQL so meets on some shard: writers and exclusive locks are on all of them, the foreign
keys of other tables' rows and shared locks on at least one. Exclusive ones wait for the table's writers, too, whatever
rows those write: so every shard has the same rows to lock.
"""

from __future__ import annotations

from foreshard._core.template import Operation, RouteKind, Template
from foreshard.proxy.errors import SqlError, not_built
from foreshard.proxy.routing.collect import Collector, Level
from foreshard.proxy.routing.functions import Effects, is_unknown
from foreshard.proxy.routing.scope import Reference, ReferenceKind
from foreshard.proxy.routing.tree import Node, unwrap
from foreshard.proxy.routing.wide import VOLATILE

SHARED = frozenset(("LCS_FORSHARE", "LCS_FORKEYSHARE"))
WAITS = "LockWaitBlock"


def clauses_of(collector: Collector) -> list[tuple[Level, Node]]:
    """Every FOR UPDATE and its like, with the query that it stands in."""
    return [(level, unwrap(clause)[1]) for level in collector.levels for clause in level.node.get("lockingClause", [])]


def locked_alone(collector: Collector) -> Reference | None:
    """A reference table of which rows are locked for one transaction alone; None when there is none."""
    declared = [one for one in collector.references if one.kind is ReferenceKind.REFERENCE]
    for level, clause in clauses_of(collector):
        if clause.get("strength") in SHARED:
            continue
        names = {unwrap(relation)[1].get("relname") for relation in clause.get("lockedRels", [])}
        known = {one.name for one in level.references if one.kind is not ReferenceKind.DERIVED}
        found = declared if not names or names - known else [one for one in level.references if one.name in names]
        for one in found:
            if one.kind is ReferenceKind.REFERENCE:
                return one
    return None


def check_locked_beside(collector: Collector) -> None:
    """Refuse exclusive locks on rows of reference tables in statements that not every shard can run alike."""
    one = locked_alone(collector)
    if one is not None:
        raise not_built(
            "locking rows of reference tables beside those of others",
            "Say whose rows are locked (FOR UPDATE OF ...), or lock the others in their own statement.",
            f'The rows of "{one.name}" are on every shard and would be locked on one.',
        )


def plan_locked(collector: Collector, effects: Effects, table: str) -> Template:
    """The route of a SELECT that locks rows of reference tables only, for this transaction alone."""
    waits = {clause.get("waitPolicy", WAITS) for _, clause in clauses_of(collector)}
    merges = {name for level in collector.levels for name in level.merges}
    odd = [call.path[-1] for call in collector.calls if is_unknown(call) or call.path[-1] in VOLATILE]
    what = (
        "NOWAIT or SKIP LOCKED"
        if waits - {WAITS}
        else "LIMIT"
        if {"LIMIT", "OFFSET"} & merges
        else f"the function {odd[0]}()"
        if odd or effects.is_write
        else ""
    )
    if what:
        raise not_built(
            f"{what} with locks on rows of reference tables",
            "Lock them FOR SHARE, or leave it out.",
            "They are locked on every shard, each of which could take other rows.",
        )
    return Template(
        RouteKind.ROUTE_SCATTER,
        operation=Operation.OPERATION_SELECT,
        is_write=True,
        returns=True,
        table=table,
        lock=table.encode(),
        pin=effects.pin,
        is_exact=collector.text.is_exact,
        reason="rows of reference tables are locked on every shard, the first one's are shown",
    )


def locks_only(collector: Collector, effects: Effects) -> bool:
    """Whether a SELECT changes nothing but the locks of rows."""
    return collector.locks_rows and not effects.is_write and not collector.writes_within and collector.into is None


def locks_problem(collector: Collector) -> SqlError | None:
    """Why rows of several shards cannot be locked; None when they can.

    Under LIMIT each shard locks as many rows as the whole statement would. That is no other answer, unless rows that
    are locked are skipped or refused: then other sessions, or this one, would miss rows that nobody is given.
    """
    waits = {clause.get("waitPolicy", WAITS) for _, clause in clauses_of(collector)}
    if {"LIMIT", "OFFSET"} & set(collector.levels[0].merges) and waits - {WAITS}:
        return not_built(
            "LIMIT with NOWAIT or SKIP LOCKED over rows of several shards",
            "Restrict the statement to keys of one shard, or leave LIMIT out.",
            "Every shard would lock as many rows as the whole statement may, and others would find them locked.",
        )
    if any("lockingClause" in level.node for level in collector.levels[1:]):
        return not_built("row locks in a sub-select over several shards", "Lock the rows in the outermost SELECT.")
    return None
