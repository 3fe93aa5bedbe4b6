"""Every other statement: DDL, maintenance, COPY. Refused where it touches a declared table."""

from __future__ import annotations

from typing import Any

from foreshard._core.template import RouteKind, Template
from foreshard.proxy.catalog import Catalog
from foreshard.proxy.errors import SqlError, not_built
from foreshard.proxy.routing.collect import Collector
from foreshard.proxy.routing.copies import plan_copy, plan_copy_select, plan_dump_lock
from foreshard.proxy.routing.ddl import plan_schema
from foreshard.proxy.routing.functions import check_declared, read_effects
from foreshard.proxy.routing.reads import check_new_name, route_read
from foreshard.proxy.routing.tree import Node, range_vars, strings, unwrap, walk
from foreshard.proxy.routing.words import body_of, words_of

DDL_HINT = "Change the schema file and run `foreshard apply`, which changes every shard."
# What a statement does to a declared table, and what to do instead.
HINTS = {
    "TruncateStmt": ("TRUNCATE", "Delete rows by key."),
    "LockStmt": ("LOCK", "Lock rows by key with SELECT ... FOR UPDATE."),
    "CopyStmt": ("COPY", "Use INSERT and SELECT."),
    "VacuumStmt": ("VACUUM and ANALYZE", "Connect to each shard, or leave it to autovacuum."),
    "ClusterStmt": ("CLUSTER", "Connect to each shard."),
    "ReindexStmt": ("REINDEX", "Connect to each shard."),
    "RefreshMatViewStmt": ("REFRESH MATERIALIZED VIEW", "Connect to each shard."),
}
NEW_RELATIONS = ("CreateStmt", "CreateTableAsStmt", "ViewStmt", "CreateForeignTableStmt", "CreateSeqStmt")
# What may make a known table, view or function another one. What is new is not known yet.
ALTERING = ("Alter", "Rename", "Drop", "View", "CreateFunction", "Grant", "Do", "Call")
OWNER_WIDE = ("DropOwnedStmt", "ReassignOwnedStmt")
STATE_WORDS = frozenset(
    (
        *("set", "reset", "listen", "unlisten", "temp", "temporary", "prepare", "load", "discard", "execute"),
        *("set_config", "pg_settings", "pg_advisory_lock", "pg_advisory_lock_shared"),
        *("pg_try_advisory_lock", "pg_try_advisory_lock_shared"),
    )
)
# What a DO block must not do unseen: names would mean other tables, texts other values, and claims would not be made.
SETTING_WORDS = frozenset(
    ("set_config", "pg_settings", "search_path", "session_replication_role", "standard_conforming_strings")
)


def plan_utility(collector: Collector, kind: str, node: Node) -> Template:
    """The route of a statement that is none of the others; SqlError when it must be refused."""
    collector.text.is_exact = True
    catalog = collector.catalog
    pin = None
    if catalog.is_declared:
        found = plan_schema(collector, kind, node)
        if found is not None:
            return found
    if kind == "LockStmt":
        found = plan_dump_lock(collector, node)
        if found is not None:
            return found
    if kind == "CopyStmt" and "query" in node:
        return plan_copy_query(collector, node)
    if kind == "CopyStmt":
        found = plan_copy(collector, node)
        if found is not None:
            return found
    if kind == "CreateTableAsStmt" and unwrap(node["query"])[0] == "SelectStmt":
        collector.select(unwrap(node["query"])[1])
        collector.into = node["into"]
        return route_read(collector)
    if kind in NEW_RELATIONS:
        pin = new_relation_pin(node)
    if kind == "CallStmt":
        collector.visit(node.get("funccall", {}), collector.open_level(None), frozenset())
        path = strings(node.get("funccall", {}).get("funcname"))
        if path:
            check_declared(catalog, path)
        pin = read_effects(collector).pin
    if kind == "DoStmt":
        pin = do_pin(node)
    if catalog.is_declared:
        check_names(collector, kind, node)
    is_write = not (kind == "CopyStmt" and not node.get("is_from"))
    return Template(
        RouteKind.ROUTE_DEFAULT,
        is_write=is_write,
        alters=kind.startswith(ALTERING) or (kind in NEW_RELATIONS and not is_temporary(node)),
        pin=pin,
        is_exact=True,
        reason="no declared table",
    )


def plan_copy_query(collector: Collector, node: Node) -> Template:
    """COPY (query) TO: as the query."""
    kind, query = unwrap(node["query"])
    if kind == "SelectStmt":
        return plan_copy_select(collector, node, query)
    if collector.catalog.is_declared:
        check_names(collector, "CopyStmt", node)
    return Template(RouteKind.ROUTE_DEFAULT, is_write=True, is_exact=True, reason="no declared table")


def new_relation(node: Node) -> Node:
    """The relation that a statement makes."""
    found = node.get("into", {}).get("rel") or node.get("relation") or node.get("view") or node.get("sequence")
    return found or node.get("base", {}).get("relation") or {}


def is_temporary(node: Node) -> bool:
    """Whether a statement makes a relation for its own session."""
    relation = new_relation(node)
    return relation.get("relpersistence") == "t" or relation.get("schemaname", "").startswith("pg_temp")


def new_relation_pin(node: Node) -> str | None:
    """Why making this relation ties the session to its backend."""
    drops = "ONCOMMIT_DROP" in (node.get("oncommit"), node.get("into", {}).get("onCommit"))
    return "temporary table" if is_temporary(node) and not drops else None


def do_pin(node: Node) -> str | None:
    """Why a DO block ties the session to its backend: it may change session state."""
    found = words_of(body_of(node)) & STATE_WORDS
    return "DO" if found else None


def check_names(collector: Collector, kind: str, node: Node) -> None:
    """Refuse a statement that names a declared table in any way."""
    catalog = collector.catalog
    what, hint = HINTS.get(kind, ("DDL", DDL_HINT))
    if kind in NEW_RELATIONS:
        check_new_name(collector, new_relation(node))
    for relation in range_vars(node):
        if touches(catalog, relation["relname"], relation.get("schemaname")):
            raise touching(what, relation["relname"], hint)
    for path in object_names(node):
        name = touched_name(catalog, path)
        if name is not None:
            raise touching(what, name, hint)
    check_wide(catalog, kind, node)
    if kind == "RenameStmt" and catalog.find(node.get("newname", "")) is not None:
        raise not_built(f'a table with the name of the declared table "{node["newname"]}"', "Choose another name.")
    if kind in ("CreateFunctionStmt", "DoStmt", "RuleStmt", "CreateTrigStmt"):
        check_body(catalog, kind, node)


def touches(catalog: Catalog, name: str, schema: str | None) -> bool:
    """Whether a name means a declared table, or something that belongs to one."""
    return bool(catalog.find(name, schema) or catalog.find_view(name, schema) or catalog.find_sequence(name, schema))


def touched_name(catalog: Catalog, path: list[str]) -> str | None:
    """The part of a dotted name that means a declared table: itself, or what is before a column's name."""
    for end in range(len(path), max(len(path) - 2, 0), -1):
        name, schema = path[end - 1], path[end - 2] if end > 1 else None
        if touches(catalog, name, schema) or (end == 1 and touches(catalog, name, None)):
            return name
    return None


def touching(what: str, name: str, hint: str) -> SqlError:
    """The refusal of a statement that touches a declared table."""
    return not_built(
        f'{what} of "{name}"', hint, "A declared table depends on it, and the statement would reach one shard only."
    )


def object_names(node: Any) -> list[list[str]]:
    """Names given as lists of strings: of what is dropped, commented on, granted."""
    found = []
    for kind, fields in walk(node):
        if kind == "List":
            path = strings(fields.get("items"))
            if path and len(path) <= 4:
                found.append(path)
    for key in ("object", "objects"):
        for item in node.get(key, []) if isinstance(node.get(key), list) else []:
            if "String" in item:
                found.append([item["String"].get("sval", "")])
    return found


def check_wide(catalog: Catalog, kind: str, node: Node) -> None:
    """Refuse what works on everything in a schema that holds declared tables, or on all that somebody owns."""
    if kind in OWNER_WIDE:
        raise not_built(f"{kind.removesuffix('Stmt')} beside declared tables", "Connect to each shard.")
    is_schema = "OBJECT_SCHEMA" in (node.get("removeType"), node.get("renameType"), node.get("objectType"))
    if is_schema or node.get("targtype") == "ACL_TARGET_ALL_IN_SCHEMA":
        named = {path[-1] for path in object_names(node)} | {node.get("subname", "")}
        if named & catalog.schemas:
            raise not_built("changing a schema that holds declared tables", DDL_HINT)


def check_body(catalog: Catalog, kind: str, node: Node) -> None:
    """Refuse a body that names a declared table: it would read and write one shard only."""
    found = words_of(body_of(node)) & catalog.words
    if found:
        raise not_built(
            "functions and DO blocks that work on declared tables",
            "Send the statements themselves through Foreshard.",
            f'The body names "{min(found)}".',
        )
    if kind == "DoStmt" and "execute" in words_of(body_of(node)):
        raise not_built(
            "EXECUTE in a DO block beside declared tables",
            "Send the statements themselves.",
            "What it runs is not known before.",
        )
    settings = words_of(body_of(node)) & SETTING_WORDS if kind == "DoStmt" else None
    if settings:
        raise not_built(
            f"{min(settings)} in a DO block beside declared tables",
            "Use SET or SET LOCAL: Foreshard makes those on every shard of the session.",
        )
