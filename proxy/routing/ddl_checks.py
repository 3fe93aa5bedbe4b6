"""What DDL is refused because it would break the sharding, and could not be seen afterwards on the shards."""

from __future__ import annotations

from foreshard.proxy.catalog import Catalog, Table, TableKind
from foreshard.proxy.errors import SqlError, not_built
from foreshard.proxy.routing.ddl_names import concerns_declared, is_temporary, listed_names
from foreshard.proxy.routing.references import DETERMINISTIC
from foreshard.proxy.routing.tree import Node, range_vars, strings, unwrap, walk
from foreshard.proxy.routing.words import body_of, words_of

OWN_SCHEMA = "foreshard"
TABLE_HINT = "Send a statement for the declared tables, and another for the others."


def check_own_schema(node: Node) -> None:
    """Refuse DDL in schema foreshard."""
    schemas = {relation.get("schemaname") for relation in range_vars(node)}
    schemas |= {path[0] for path in listed_names(node) if len(path) > 1}
    schemas.add(node.get("schemaname") or node.get("newschema"))
    is_schema = "OBJECT_SCHEMA" in (node.get("removeType"), node.get("renameType"), node.get("objtype"))
    named = {path[-1] for path in listed_names(node)} | {node.get("subname")} if is_schema else set()
    if OWN_SCHEMA in schemas | named:
        raise SqlError(
            "42501", "permission denied for schema foreshard", hint="It is Foreshard's own: `foreshard apply` keeps it."
        )


def check_names(catalog: Catalog, kind: str, node: Node) -> None:
    """Refuse what is refused whether a declared table is named or only touched."""
    is_schema = "OBJECT_SCHEMA" in (node.get("removeType"), node.get("renameType"))
    named = {path[-1] for path in listed_names(node)} | {node.get("subname", "")}
    if is_schema and named & catalog.schemas:
        raise not_built(
            "renaming or dropping a schema that holds declared tables", "Change its tables one by one.",
            f"The configuration names tables of {', '.join(sorted(named & catalog.schemas))}.",
        )  # fmt: skip
    if kind == "CreateFunctionStmt":
        found = words_of(body_of(node)) | {relation["relname"] for relation in range_vars(node.get("sql_body"))}
        if found & catalog.words:
            raise not_built(
                "functions and DO blocks that work on declared tables",
                "Send the statements themselves through Foreshard.",
                f'The body names "{min(found & catalog.words)}".',
            )
    if kind == "ViewStmt":
        view = node["view"]
        name, schema = view["relname"], view.get("schemaname")
        if not is_temporary(node) and (catalog.find(name, schema) or catalog.find_pending(name, schema) is not None):
            raise not_built(f'a view with the name of the declared table "{name}"', "Choose another name.")


def check_allowed(catalog: Catalog, kind: str, node: Node, declared: list[tuple[str | None, str]]) -> None:
    """Refuse what would break the sharding and could not be seen afterwards."""
    if kind == "CreateStmt" and node.get("inhRelations") and "partbound" not in node:
        raise not_built("tables that inherit from a declared one", "Add a column that tells the rows apart.")
    if kind == "AlterSeqStmt" and any(catalog.find_sequence(name, schema) for schema, name in declared):
        raise not_built("changing the sequence of placed keys", "Leave it: Foreshard makes the keys.")
    if kind == "DropStmt" and declared and node.get("removeType") == "OBJECT_TABLE":
        paths = [(path[-2] if len(path) > 1 else None, path[-1]) for path in listed_names(node)]
        if not all(concerns_declared(catalog, path) for path in paths):
            raise not_built("dropping declared and plain tables in one statement", TABLE_HINT)
    if kind == "CreateTrigStmt" and node.get("trigname", "").startswith("foreshard_"):
        raise SqlError("42939", f'the name "{node["trigname"]}" is reserved', hint="Choose another name.")
    if kind == "DropStmt" and node.get("removeType") == "OBJECT_TRIGGER":
        is_own = any(path[-1].startswith("foreshard_") for path in listed_names(node))
        if is_own:
            raise not_built("dropping Foreshard's own triggers", "Change the configuration and run `foreshard apply`.")
    if kind == "RenameStmt":
        check_rename(catalog, node)
    if kind == "AlterObjectSchemaStmt" and node.get("objectType") == "OBJECT_TABLE":
        check_moved(catalog, node.get("relation", {}))
    if kind == "AlterTableStmt":
        check_alter(catalog, node)


def check_rename(catalog: Catalog, node: Node) -> None:
    """Refuse new names for what the configuration names."""
    relation = node.get("relation", {})
    table = catalog.find(relation.get("relname", ""), relation.get("schemaname"))
    new_name = node.get("newname", "")
    if node.get("renameType") == "OBJECT_TABLE":
        check_moved(catalog, relation)
        if catalog.find(new_name) is not None or catalog.find_pending(new_name) is not None:
            raise not_built(f'a table with the name of the declared table "{new_name}"', "Choose another name.")
    if table is not None and node.get("renameType") == "OBJECT_COLUMN":
        check_column(table, node.get("subname", ""), "renaming")
    if table is not None and node.get("subname", "").startswith("foreshard_"):
        raise not_built("renaming Foreshard's own objects", "Leave them as they are.")


def check_moved(catalog: Catalog, relation: Node) -> None:
    """Refuse another name or schema for a declared table."""
    table = catalog.find(relation.get("relname", ""), relation.get("schemaname"))
    if table is not None:
        raise not_built(
            f'renaming the declared table "{table.name}"',
            f"The configuration names it (tables.{table.name}): keep the name, or make a view of the new name.",
        )


def check_column(table: Table, column: str, doing: str) -> None:
    """Refuse to take away a column that the configuration names."""
    if column in (*table.key_columns, *table.via_columns):
        line = f"tables.{table.name}.{'key' if column in table.key_columns else 'via'}"
    elif any(column in columns for columns in table.unique):
        line = f"tables.{table.name}.unique"
    else:
        fires = [one.name for one in table.functions if one.columns and column in one.columns]
        if not fires:
            return
        line = f"triggers.{fires[0]}.columns"
    raise not_built(f'{doing} the column "{column}" of "{table.name}"', f"The configuration names it: {line}.")


def check_alter(catalog: Catalog, node: Node) -> None:
    """The parts of ALTER TABLE that could not be seen afterwards."""
    relation = node["relation"]
    table = catalog.find(relation["relname"], relation.get("schemaname"))
    if table is None:
        return
    for command in node.get("cmds", []):
        fields = unwrap(command)[1]
        subtype, name = fields.get("subtype", ""), fields.get("name", "")
        if subtype == "AT_DropColumn":
            check_column(table, name, "dropping")
        elif subtype == "AT_AlterColumnType" and name in (*table.key_columns, *table.via_columns):
            raise not_built(
                f'changing the type of "{name}" of "{table.name}"',
                "Make a table with the new key, and copy the rows.",
                "The column's value says on which shard a row lives.",
            )
        elif subtype in ("AT_DisableTrigAll", "AT_DisableTrigUser", "AT_DisableRule") or (
            subtype.endswith("Trig") and name.startswith("foreshard_")
        ):
            raise not_built("changing Foreshard's own triggers", "Name the trigger to be disabled.")
        elif subtype in ("AT_ColumnDefault", "AT_DropIdentity", "AT_SetIdentity", "AT_AddIdentity") and (
            name in table.key_columns and table.is_sharded
        ):
            raise not_built(f'another default for the key of "{table.name}"', "Foreshard generates it; leave it.")
        if table.kind is TableKind.REFERENCE:
            check_same_everywhere(table, subtype, fields.get("def"))


def check_same_everywhere(table: Table, subtype: str, definition: Node | None) -> None:
    """Existing rows of a reference table must get the same values on every shard."""
    kind, fields = unwrap(definition)
    values = []
    if subtype == "AT_AddColumn" and kind == "ColumnDef":
        constraints = [unwrap(each)[1] for each in fields.get("constraints", [])]
        values = [each.get("raw_expr") for each in constraints if each.get("contype") == "CONSTR_DEFAULT"]
        type_name = strings(fields.get("typeName", {}).get("names"))[-1:]
        is_counted = any(each.get("contype") == "CONSTR_IDENTITY" for each in constraints)
        if is_counted or type_name[:1] in (["serial"], ["bigserial"], ["smallserial"]):
            raise not_built(
                f'a new column of the reference table "{table.name}" that a sequence fills',
                "Add it without a default, fill it by UPDATE, then set the default.",
                "Each shard would number the rows in another order.",
            )
    elif subtype == "AT_AlterColumnType":
        values = [fields.get("raw_default")]
    for value in values:
        for found, inner in walk(value):
            name = strings(inner.get("funcname"))[-1:]
            is_open = found == "FuncCall" and bool(name) and name[0] not in DETERMINISTIC
            if found == "SQLValueFunction" or is_open:
                raise not_built(
                    f'computing a column of the reference table "{table.name}"',
                    "Add it without a default, fill it by UPDATE, then set the default.",
                    "Each shard would compute another value.",
                )
