"""Where DDL goes when tables are declared.

What concerns a declared table, and objects that one may depend on (types, functions, schemas, sequences, views of
declared tables), is changed on every shard in one transaction: the same statement, one shard after the other, under an
advisory lock that serialises such changes. Whether the tables can still be sharded as declared is not judged here but
by `apply`'s own code, inside that transaction (proxy/control/schema_change.py); what it could not see is refused here.
Plain tables, and whatever names something that only the first shard has, stay there.
"""

from __future__ import annotations

from foreshard._core.template import Completion, RouteKind, Template
from foreshard.proxy.catalog import Catalog, TableKind
from foreshard.proxy.errors import SqlError, not_built
from foreshard.proxy.routing.collect import SYSTEM_SCHEMAS, Collector
from foreshard.proxy.routing.ddl_checks import TABLE_HINT, check_allowed, check_names, check_own_schema
from foreshard.proxy.routing.ddl_names import concerns_declared, is_local, is_shared, is_temporary, names_of
from foreshard.proxy.routing.tree import Node, range_vars, unwrap, walk

LOCK = b"foreshard: schema"
# Statements that change, or may change, what is declared; others keep their way.
CHANGING = frozenset(
    (
        *("CreateStmt", "AlterTableStmt", "AlterTableMoveAllStmt", "RenameStmt", "AlterObjectSchemaStmt"),
        *("AlterOwnerStmt", "AlterObjectDependsStmt", "DropStmt", "IndexStmt", "CommentStmt", "GrantStmt"),
        *("CreateTrigStmt", "CreatePolicyStmt", "AlterPolicyStmt", "CreateStatsStmt", "AlterStatsStmt", "ViewStmt"),
        *("CreateSeqStmt", "AlterSeqStmt", "CreateFunctionStmt", "AlterFunctionStmt", "CreateSchemaStmt"),
        *("CompositeTypeStmt", "CreateEnumStmt", "AlterEnumStmt", "CreateRangeStmt", "CreateDomainStmt"),
        *("AlterDomainStmt", "DefineStmt", "AlterTypeStmt", "CreateCastStmt", "CreateExtensionStmt"),
        *("AlterExtensionStmt", "AlterDefaultPrivilegesStmt", "SecLabelStmt", "CreateOpClassStmt"),
        *("CreateOpFamilyStmt", "AlterOperatorStmt", "AlterCollationStmt"),
    )
)


def plan_schema(collector: Collector, kind: str, node: Node) -> Template | None:
    """The route of DDL that concerns every shard; None for what keeps its way. SqlError when it must be refused."""
    catalog = collector.catalog
    if kind == "TruncateStmt":
        return plan_truncate(catalog, node)
    if kind not in CHANGING:
        return None
    check_own_schema(node)
    check_names(catalog, kind, node)
    named = names_of(kind, node)
    if is_temporary(node):
        return None
    declared = [name for name in named if concerns_declared(catalog, name)]
    if not declared and not (is_shared(kind, node) and not is_local(catalog, kind, node, named)):
        return plan_reader(catalog, kind, node)
    if kind in ("CreateStmt", "AlterTableStmt") and is_plain(catalog, node):
        return plan_plain(catalog, node)
    check_allowed(catalog, kind, node, declared)
    if is_concurrent(kind, node):
        return plan_alone(catalog, kind, node)
    return everywhere(kind, Completion.COMPLETE_SCHEMA, declared[0][1] if declared else None)


def everywhere(kind: str, completion: int, table: str | None = None, owes_claims: bool = False) -> Template:
    """The route of a statement that every shard runs, one after the other."""
    return Template(
        RouteKind.ROUTE_SCATTER,
        is_write=True,
        alters=True,
        table=table,
        lock=LOCK,
        completion=completion,
        owes_claims=owes_claims,
        is_exact=True,
        reason="DDL of every shard" if completion != Completion.COMPLETE_FIRST else "DDL that needs plain tables",
    )


def is_plain(catalog: Catalog, node: Node) -> bool:
    """Whether the table that is made or altered is not declared itself, nor a partition of one that is."""
    relation = node.get("relation", {})
    over = [unwrap(parent)[1] for parent in node.get("inhRelations", [])]
    return not any(
        concerns_declared(catalog, (one.get("schemaname"), one.get("relname", ""))) for one in (relation, *over)
    )


def plan_plain(catalog: Catalog, node: Node) -> Template:
    """A plain table may refer to reference tables, which the first shard has too, and to no other declared one."""
    name = node["relation"]["relname"]
    for relation in range_vars({key: value for key, value in node.items() if key != "relation"}):
        table = catalog.find(relation["relname"], relation.get("schemaname"))
        is_reference = table is not None and table.kind is TableKind.REFERENCE
        if concerns_declared(catalog, (relation.get("schemaname"), relation["relname"])) and not is_reference:
            raise not_built(
                f'the plain table "{name}" that refers to the sharded table "{relation["relname"]}"',
                f'Declare "{name}" as well, as its child, or leave the reference out.',
                "Rows of plain tables are on the first shard only.",
            )
    if any(found == "TableLikeClause" for found, _ in walk(node)):
        raise not_built(f'the plain table "{name}" like a declared one', "Write its columns out.")
    return Template(
        RouteKind.ROUTE_DEFAULT, is_write=True, alters=True, is_exact=True, reason="a plain table beside reference ones"
    )


def plan_truncate(catalog: Catalog, node: Node) -> Template | None:
    """TRUNCATE: of declared tables on every shard, of plain ones on the first."""
    found = [catalog.find(one["relname"], one.get("schemaname")) for one in range_vars(node)]
    declared = [table for table in found if table is not None]
    if not declared:
        return None
    if len(declared) < len(found):
        raise not_built("TRUNCATE of declared and plain tables in one statement", TABLE_HINT)
    if any(table.functions for table in declared):
        raise not_built(
            f'TRUNCATE of "{declared[0].name}"', "Use DELETE.", "Its trigger functions would miss the deleted rows."
        )
    owes_claims = any(catalog.owes_claims(table) or table.by_cost for table in declared)
    return everywhere("TruncateStmt", Completion.COMPLETE_NONE, declared[0].qualified, owes_claims)


def plan_reader(catalog: Catalog, kind: str, node: Node) -> Template | None:
    """A view: on every shard if all that it reads is there, on the first (and so on the query node) otherwise."""
    if kind != "ViewStmt" or not catalog.is_declared:
        return None
    read = [(one["relname"], one.get("schemaname")) for one in range_vars(node.get("query"))]
    hidden = {fields.get("ctename") for found, fields in walk(node.get("query")) if found == "CommonTableExpr"}
    tables = [
        name for name in read if name[1] not in SYSTEM_SCHEMAS and (name[1] or name[0] not in hidden)
        and not name[0].startswith("pg_")
    ]  # fmt: skip
    for name in tables:
        if catalog.find_pending(*name) is not None:
            raise SqlError("42P01", f'relation "{name[0]}" does not exist', hint="It is declared: create it.")
    declared = [name for name in tables if catalog.find(*name) or catalog.find_view(*name)]
    if not declared:
        return None
    is_whole = len(declared) == len(tables) and not any(name[0] in catalog.local for name in tables)
    return everywhere(kind, Completion.COMPLETE_SCHEMA if is_whole else Completion.COMPLETE_FIRST, declared[0][0])


def plan_alone(catalog: Catalog, kind: str, node: Node) -> Template:
    """What no transaction block takes: every shard by itself."""
    if kind == "IndexStmt" and node.get("unique"):
        relation = node["relation"]
        table = catalog.find(relation["relname"], relation.get("schemaname"))
        columns = {unwrap(element)[1].get("name") for element in node.get("indexParams", [])}
        holds_place = table is not None and any(set(placing) <= columns for placing, _ in table.domains)
        if table is not None and table.is_sharded and not holds_place:
            raise not_built(
                f'a unique index on other columns than the key of "{table.name}", made concurrently',
                f"Create it without CONCURRENTLY, or declare it (unique: in tables.{table.name}) and run apply.",
            )
    return Template(
        RouteKind.ROUTE_ALONE,
        name="CREATE INDEX" if kind == "IndexStmt" else "DROP INDEX",
        is_write=True,
        alters=True,
        is_exact=True,
        reason="DDL of every shard, one by one",
    )


def is_concurrent(kind: str, node: Node) -> bool:
    """CREATE INDEX CONCURRENTLY and DROP INDEX CONCURRENTLY."""
    return kind in ("IndexStmt", "DropStmt") and bool(node.get("concurrent"))
