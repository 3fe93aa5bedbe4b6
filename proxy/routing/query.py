"""Reads that the query node answers: what routing refuses, when it provably only reads what the node has too.

The node (proxy/control/query_node.py) is a database of its own, so a statement must mean there what it means on one
PostgreSQL: every table is one that the node has, and no function answers for a session, a server or its catalogs. Not
proven means no: the refusal stands.
"""

from __future__ import annotations

import re
from typing import Any

from foreshard._core.template import Operation, RouteKind, Template
from foreshard.proxy.catalog import Catalog
from foreshard.proxy.errors import SqlError
from foreshard.proxy.routing.builtins import AGGREGATES, DYNAMIC, LOCAL, PURE, WINDOWS, WRITES, names_in
from foreshard.proxy.routing.shadow import ShadowPlan, plan_shadow
from foreshard.proxy.routing.tree import Node, strings

REFUSED = "0A000"
WORD = re.compile(r"[a-z_]\w*")
# Changes or locks rows, or looks at where they are stored.
FORBIDDEN_NODES = frozenset(
    names_in("InsertStmt UpdateStmt DeleteStmt MergeStmt LockingClause RangeTableSample CurrentOfExpr")
)
SYSTEM_COLUMNS = frozenset(names_in("ctid xmin xmax cmin cmax tableoid"))
SYSTEM_SCHEMAS = frozenset(names_in("pg_catalog information_schema pg_toast foreshard"))
# Of PostgreSQL's pure functions those that tell of a database, its catalogs, a session or a transaction.
TELLING = names_in(
    """
    acldefault aclexplode col_description current_database current_query current_setting format_type
    get_current_ts_config inet_client_addr inet_client_port inet_server_addr inet_server_port obj_description querytree
    regclass row_security_active satisfies_hash_partition shobj_description to_regclass to_regcollation to_regnamespace
    to_regoper to_regoperator to_regproc to_regprocedure to_regrole to_regtype to_regtypemod
    """
)
TELLING_PREFIXES = ("pg_", "has_", "txid_")
HARMLESS = names_in(
    """
    pg_collation_for pg_input_error_info pg_input_is_valid pg_lsn pg_size_bytes pg_size_pretty pg_sleep pg_sleep_for
    pg_sleep_until
    """
)
# What a user's function may call, as far as words in its body tell, in addition to other users' functions.
UNSAFE_WORDS = (WRITES | LOCAL | DYNAMIC | (PURE & TELLING)) - names_in("regclass")
SAFE = frozenset(
    name
    for name in AGGREGATES | WINDOWS | PURE
    if name in HARMLESS or not (name in TELLING or name.startswith(TELLING_PREFIXES))
)


def fall_back(catalog: Catalog, query: Node, refusal: SqlError, is_exact: bool) -> Template:
    """The route over the query node of a SelectStmt that was refused, or the refusal raised again."""
    if refusal.sqlstate != REFUSED or not is_queryable(catalog, query):
        raise until_node_follows(catalog, query, refusal)
    late = SqlError(
        REFUSED,
        f"{refusal.message} in a transaction that has written",
        "The query node answers such reads, and it does not see what the transaction has not committed yet.",
        "Send the statement before the transaction writes, or when it has committed.",
    )
    return Template(
        RouteKind.ROUTE_QUERY,
        operation=Operation.OPERATION_SELECT,
        refusal=late,
        shadow=shadow_of(catalog, query),
        is_exact=is_exact,
        reason=f"the query node answers it: {refusal.message}",
    )


def until_node_follows(catalog: Catalog, query: Node, refusal: SqlError) -> SqlError:
    """A refusal that the router waits with, where the node may answer when it has followed a change of the schema."""
    node = catalog.query_node
    if refusal.sqlstate != REFUSED or node is None or not node.is_behind:
        return refusal
    found = Findings()
    found.read(query)
    if found.is_forbidden:
        return refusal
    return SqlError(refusal.sqlstate, refusal.message, refusal.detail, refusal.hint, is_passing=True)


def may_run_there(body: str) -> bool:
    """Whether a function's or view's text names nothing that tells of a session, a server or its catalogs."""
    return not any(
        word in UNSAFE_WORDS or (word.startswith(TELLING_PREFIXES) and word not in HARMLESS)
        for word in WORD.findall(body.lower())
    )


def is_queryable(catalog: Catalog, query: Node) -> bool:
    """Whether the query node surely answers a SelectStmt as one PostgreSQL would."""
    if catalog.query_node is None:
        return False
    found = Findings()
    found.read(query)
    return (
        not found.is_forbidden
        and all(is_known_relation(catalog, relation, found.ctes) for relation in found.relations)
        and all(is_safe_call(catalog, path) for path in found.calls)
    )


def shadow_of(catalog: Catalog, query: Node) -> ShadowPlan | None:
    """How the node answers a SelectStmt for a transaction that has written; None where it cannot."""
    found = Findings()
    found.read(query)
    if all(is_safe(path) for path in found.calls):
        return plan_shadow(catalog, found.relations, found.ctes)
    return None


def is_known_relation(catalog: Catalog, relation: Node, ctes: set[str]) -> bool:
    """Whether the query node has the table that a reference means."""
    name, schema = relation["relname"], relation.get("schemaname")
    if not relation.get("inh") or schema in SYSTEM_SCHEMAS or relation.get("catalogname"):
        return False  # ONLY: the node's own table holds no rows
    assert catalog.query_node is not None
    if catalog.query_node.is_only_shard:
        return True
    for candidate in (schema,) if schema else catalog.search_path:
        if f"{candidate}.{name}" in catalog.query_node.relations:
            return True
    return schema is None and name in ctes


def is_safe_call(catalog: Catalog, path: list[str]) -> bool:
    """Whether a function gives the same answer on the query node."""
    if is_safe(path):
        return True
    assert catalog.query_node is not None
    schemas = (path[-2],) if len(path) > 1 else catalog.search_path
    return any(f"{schema}.{path[-1]}" in catalog.query_node.functions for schema in schemas)


def is_safe(path: list[str]) -> bool:
    """Whether a function is PostgreSQL's own, and tells only of its arguments."""
    return path[-1] in SAFE and (len(path) == 1 or path[-2] == "pg_catalog")


class Findings:
    """What a query names, whatever the place. One per query."""

    def __init__(self) -> None:
        self.relations: list[Node] = []
        self.calls: list[list[str]] = []
        self.ctes: set[str] = set()
        self.is_forbidden = False

    def read(self, node: Any) -> None:
        """Go through a tree."""
        if isinstance(node, list):
            for item in node:
                self.read(item)
        elif isinstance(node, dict):
            if "relname" in node:
                self.relations.append(node)
            for key, value in node.items():
                self.note(key, value)
                self.read(value)

    def note(self, key: str, value: Any) -> None:
        """Take down one node."""
        if key in FORBIDDEN_NODES or key == "intoClause":
            self.is_forbidden = True
        elif key == "FuncCall":
            self.calls.append(strings(value["funcname"]))
        elif key == "CommonTableExpr":
            self.ctes.add(value["ctename"])
        elif key == "ColumnRef":
            path = strings(value["fields"])
            self.is_forbidden |= bool(path) and path[-1] in SYSTEM_COLUMNS
        elif key == "SQLValueFunction":
            self.is_forbidden |= value.get("op") == "SVFOP_CURRENT_CATALOG"
        elif key == "typeName":
            names = strings(value.get("names"))
            self.is_forbidden |= bool(names) and names[-1].startswith("reg")
