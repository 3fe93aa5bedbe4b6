"""Statements that are refused because of other shards, in a deployment that has only one: it runs them as they are.

An existing database that became the only shard answers whatever it answered before. What stays refused: changes of a
key or of the column that names the parent (the bucket in the key would no longer be the row's), DDL of declared tables
(the catalog would not hear of it), and settings made by functions (they would stay on one backend).
"""

from __future__ import annotations

from typing import Any

from foreshard._core.template import Operation, RouteKind, Template
from foreshard.proxy.catalog import Catalog, Table
from foreshard.proxy.errors import SqlError
from foreshard.proxy.routing.collect import SETTINGS
from foreshard.proxy.routing.functions import SESSION_LOCKS
from foreshard.proxy.routing.query import REFUSED, Findings
from foreshard.proxy.routing.rows import fired_profiles
from foreshard.proxy.routing.tree import Node, unwrap

OPERATIONS = {
    "SelectStmt": Operation.OPERATION_OTHER,
    "InsertStmt": Operation.OPERATION_INSERT,
    "UpdateStmt": Operation.OPERATION_UPDATE,
    "DeleteStmt": Operation.OPERATION_DELETE,
    "MergeStmt": Operation.OPERATION_OTHER,
    "TruncateStmt": Operation.OPERATION_OTHER,
    "LockStmt": Operation.OPERATION_OTHER,
    "CopyStmt": Operation.OPERATION_OTHER,
}
FIRED = {"InsertStmt": "insert", "UpdateStmt": "update", "DeleteStmt": "delete"}


def stay(catalog: Catalog, kind: str, node: Node, refusal: SqlError, is_exact: bool) -> Template:
    """The route to the only shard of a statement that was refused, or the refusal raised again.

    The route is that of a placement, so that keys which the shard generates meanwhile have a bucket.
    """
    if (
        refusal.sqlstate != REFUSED
        or kind not in OPERATIONS
        or catalog.query_node is None
        or not catalog.query_node.is_only_shard
        or "filename" in node
        or "intoClause" in node
        or changes_place(catalog, node)
    ):
        raise refusal
    found = Findings()
    found.read(node)
    names = {path[-1] for path in found.calls}
    relation = node.get("relation", {})
    if "set_config" in names or relation.get("relname") == SETTINGS:
        raise refusal
    table = catalog.find(relation["relname"], relation.get("schemaname")) if "relname" in relation else None
    return Template(
        RouteKind.ROUTE_PLACE,
        operation=OPERATIONS[kind],
        is_write=True,
        pin="advisory lock" if names & SESSION_LOCKS else None,
        table=table.qualified if table else None,
        profiles=fired_profiles(table, FIRED[kind]) if table and kind in FIRED else (),
        rows=1,
        is_exact=is_exact,
        reason="there is only one shard",
    )


def changes_place(catalog: Catalog, node: Any) -> bool:
    """Whether a SET list somewhere in the tree has a column that says where rows of a declared table live."""
    placing = {name for table in catalog.tables.values() for name in placing_columns(table)}
    return any(name in placing for name in assigned(node))


def placing_columns(table: Table) -> tuple[str, ...]:
    """The columns that say where a row lives, and under which key it is found."""
    return (*table.key_columns, *table.via_columns)


def assigned(node: Any) -> list[str]:
    """The columns that any UPDATE in the tree sets, those of ON CONFLICT and MERGE included."""
    found: list[str] = []
    if isinstance(node, list):
        for item in node:
            found += assigned(item)
    elif isinstance(node, dict):
        is_other = "limitOption" in node or node.get("commandType") == "CMD_INSERT"  # SELECT, MERGE ... INSERT
        for target in () if is_other else node.get("targetList", []):
            found.append(unwrap(target)[1].get("name", ""))
        for value in node.values():
            found += assigned(value)
    return found
