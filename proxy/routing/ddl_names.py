"""What DDL names: declared tables, what belongs to them, and what only the first shard has."""

from __future__ import annotations

from typing import Any

from foreshard.proxy.catalog import Catalog
from foreshard.proxy.routing.tree import Node, range_vars, strings, unwrap, walk
from foreshard.proxy.routing.words import body_of, words_of

# What is made for every shard even where no declared table is named: tables may come to depend on it.
SHARED = frozenset(
    (
        *("CreateSeqStmt", "AlterSeqStmt", "CreateFunctionStmt", "AlterFunctionStmt", "CreateSchemaStmt"),
        *("CompositeTypeStmt", "CreateEnumStmt", "AlterEnumStmt", "CreateRangeStmt", "CreateDomainStmt"),
        *("AlterDomainStmt", "DefineStmt", "AlterTypeStmt", "CreateCastStmt", "CreateExtensionStmt"),
        *("AlterExtensionStmt", "AlterDefaultPrivilegesStmt", "CreateOpClassStmt", "CreateOpFamilyStmt"),
        *("AlterOperatorStmt", "AlterCollationStmt"),
    )
)
SHARED_OBJECTS = frozenset(
    (
        *("OBJECT_TYPE", "OBJECT_DOMAIN", "OBJECT_FUNCTION", "OBJECT_PROCEDURE", "OBJECT_ROUTINE", "OBJECT_SCHEMA"),
        *("OBJECT_SEQUENCE", "OBJECT_AGGREGATE", "OBJECT_COLLATION", "OBJECT_EXTENSION", "OBJECT_OPERATOR"),
        *("OBJECT_CAST", "OBJECT_DOMCONSTRAINT", "OBJECT_ATTRIBUTE", "OBJECT_OPCLASS", "OBJECT_OPFAMILY"),
    )
)


def names_of(kind: str, node: Node) -> list[tuple[str | None, str]]:
    """(schema, name) of what a statement changes or refers to."""
    found: list[tuple[str | None, str]] = []
    skipped = {"query"} if kind == "ViewStmt" else set()
    for relation in range_vars({key: value for key, value in node.items() if key not in skipped}):
        found.append((relation.get("schemaname"), relation["relname"]))
    for path in listed_names(node):
        found.append((path[-2] if len(path) > 1 else None, path[-1]))
        if len(path) > 1:  # a table's column, trigger or constraint
            found.append((path[-3] if len(path) > 2 else None, path[-2]))
    return found


def listed_names(node: Node) -> list[list[str]]:
    """Names given as lists of strings: of what is dropped, commented on, granted, altered."""
    found = []
    for key in ("object", "objects", "defnames", "typeName", "typevar", "domainname", "funcname", "sequence"):
        value = node.get(key)
        for item in value if isinstance(value, list) else [value] if value else []:
            found += paths_of(item)
    if isinstance(node.get("objects"), list):
        found += [path for item in node["objects"] for path in paths_of(item)]
    for key in ("domainname", "funcname", "defnames", "typeName"):
        if isinstance(node.get(key), list):
            found.append(strings(node[key]))
    return [path for path in found if path]


def paths_of(item: Any) -> list[list[str]]:
    """The dotted names in an object's node."""
    kind, fields = unwrap(item)
    if kind == "String":
        return [[fields.get("sval", "")]]
    if kind == "List":
        inner = fields.get("items", [])
        flat = strings(inner)
        return [flat] if flat else [path for each in inner for path in paths_of(each)]
    if kind == "ObjectWithArgs":
        return [strings(fields.get("objname"))]
    if kind == "TypeName":
        return [strings(fields.get("names"))]
    return []


def concerns_declared(catalog: Catalog, named: tuple[str | None, str]) -> bool:
    """Whether a name is a declared table's, or of something that belongs to one."""
    schema, name = named
    return (
        any(find(name, schema) is not None for find in (catalog.find, catalog.find_view, catalog.find_sequence))
        or catalog.find_pending(name, schema) is not None
    )


def is_shared(kind: str, node: Node) -> bool:
    """Whether every shard has, or gets, such an object."""
    if kind in SHARED:
        return True
    types = {node.get(key) for key in ("removeType", "renameType", "objtype", "objectType", "relationType")}
    return (bool(types & SHARED_OBJECTS) and node.get("targtype") != "ACL_TARGET_ALL_IN_SCHEMA") or (
        node.get("targtype") == "ACL_TARGET_ALL_IN_SCHEMA" and kind == "GrantStmt"
    )


def is_local(catalog: Catalog, kind: str, node: Node, named: list[tuple[str | None, str]]) -> bool:
    """Whether a statement names something that only the first shard has."""
    words = {name for _, name in named}
    for found, fields in walk(node):
        if found == "TypeName":
            words.update(strings(fields.get("names"))[-1:])
    for relation in range_vars(node):
        words.add(relation["relname"])
    if kind == "CreateFunctionStmt":
        words |= words_of(body_of(node))
    return bool(words & catalog.local)


def is_temporary(node: Node) -> bool:
    """Whether it makes something that ends with the session."""
    relation = node.get("relation") or node.get("view") or node.get("sequence") or {}
    if not isinstance(relation, dict):
        return False
    return relation.get("relpersistence") == "t" or str(relation.get("schemaname", "")).startswith("pg_temp")
