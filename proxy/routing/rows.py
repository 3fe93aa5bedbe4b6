"""What a write says about its rows: the values that prediction counts, and the profiles that it fires."""

from __future__ import annotations

from typing import Any

from foreshard._core.features import SHAPE_SCALAR, shape_of_type
from foreshard._core.row_split import RowText
from foreshard._core.template import Operation, RouteKind, Template
from foreshard.proxy.catalog import Table
from foreshard.proxy.errors import not_built
from foreshard.proxy.routing.away import owes_away
from foreshard.proxy.routing.claim_homes import update_owes_claims
from foreshard.proxy.routing.collect import Collector
from foreshard.proxy.routing.functions import Effects, is_unknown
from foreshard.proxy.routing.scope import ReferenceKind
from foreshard.proxy.routing.text import Text
from foreshard.proxy.routing.tree import Node, unwrap

GENERATED = "SetToDefault"
FILLED_IN = -1  # the index of a value that the shard fills in: a key, a default
COMPUTED = -2  # that it makes of an expression, whose size nobody knows before
Rows = list[list[Node]]
Pairs = list[tuple[str, Node | None]]  # column and expression of each assignment of SET
Value = tuple[int, bool, int]  # as the Template has it: index, whether it is a parameter, shape
OPERATIONS = {
    "InsertStmt": Operation.OPERATION_INSERT,
    "UpdateStmt": Operation.OPERATION_UPDATE,
    "DeleteStmt": Operation.OPERATION_DELETE,
    "MergeStmt": Operation.OPERATION_OTHER,
}


def shape_of(table: Table, column: str) -> int:
    """How the values of a column are counted."""
    known = table.column(column)
    return shape_of_type(known.type_name) if known is not None else SHAPE_SCALAR


def value_source(text: Text, node: Node | None, shape: int) -> Value | None:
    """Where an expression's value is read from. None for NULL."""
    kind, fields = unwrap(node)
    if kind == "TypeCast":
        return value_source(text, fields.get("arg"), shape)
    if kind == "ParamRef" and fields.get("number", 0) > 0:
        return fields["number"] - 1, True, shape
    if kind == "A_Const":
        if fields.get("isnull"):
            return None
        index = text.literal_index(fields) if "boolval" not in fields else None
        if index is not None:
            return index, False, shape
    return COMPUTED, False, shape


def inserted_values(text: Text, table: Table, columns: list[str], rows: list[list[Node]]) -> tuple[Value, ...]:
    """The values of new rows, those that the shard fills in included."""
    found: list[Value | None] = []
    every = [column.name for column in table.columns] or columns
    for row in rows:
        given = dict(zip(columns, row, strict=False))
        for column in every:
            node = given.get(column)
            shape = shape_of(table, column)
            if node is None or unwrap(node)[0] == "SetToDefault":
                known = table.column(column)
                if column in (*table.key_columns, *table.via_columns) or (
                    known is not None and (known.has_default or known.is_generated)
                ):
                    found.append((FILLED_IN, False, shape))
            else:
                found.append(value_source(text, node, shape))
    return tuple(value for value in found if value is not None)


def assignments(targets: list[Node]) -> list[tuple[str, Node | None]]:
    """Column and expression of each assignment of SET; None where several columns are assigned from one row."""
    found = []
    for target in targets:
        fields = unwrap(target)[1]
        kind, value = unwrap(fields.get("val"))
        expression = fields.get("val")
        if kind == "MultiAssignRef":
            source, row = unwrap(value.get("source"))
            arguments = row.get("args", []) if source == "RowExpr" else []
            position = value.get("colno", 1) - 1
            expression = arguments[position] if position < len(arguments) else None
        found.append((fields.get("name", ""), expression))
    return found


def updated_values(text: Text, table: Table, pairs: list[tuple[str, Node | None]]) -> tuple[Value, ...]:
    """The values that SET gives."""
    found = [
        value_source(text, node, shape_of(table, column)) if node else (COMPUTED, False, shape_of(table, column))
        for column, node in pairs
    ]
    return tuple(value for value in found if value is not None)


def fired_profiles(table: Table, operation: str, columns: frozenset[str] | None = None) -> tuple[int, ...]:
    """Indexes of the profiles that a write fires; `columns` are those that an update assigns."""
    return tuple(
        function.profile_indexes[operation]
        for function in table.functions
        if operation in function.operations
        and operation in function.profile_indexes
        and (columns is None or function.columns is None or columns & frozenset(function.columns))
    )


def insert_columns(table: Table | None, node: Node) -> list[str]:
    """The columns that values are given for, in their order."""
    named = [unwrap(column)[1] for column in node.get("cols", [])]
    if table is None or not table.is_sharded:
        return [column["name"] for column in named] or [column.name for column in (table.columns if table else ())]
    for column in named:
        if "indirection" in column and column["name"] in (*table.key_columns, *table.via_columns):
            raise not_built(f'a part of "{column["name"]}"', "Give the column's whole value.")
    if named:
        return [column["name"] for column in named]
    if not table.columns and "selectStmt" in node:
        raise not_built(f'INSERT into "{table.name}" without a column list', "Name the columns.")
    return [column.name for column in table.columns]


def value_rows(node: Node) -> Rows | None:
    """The rows of VALUES; None when the rows come from a query."""
    if "selectStmt" not in node:
        return [[]]  # DEFAULT VALUES
    source = unwrap(node["selectStmt"])[1]
    plain = {"valuesLists", "limitOption", "op"}
    if "valuesLists" not in source or set(source) - plain:
        return None
    return [unwrap(row)[1].get("items", []) for row in source["valuesLists"]]


def insert_template(
    collector: Collector, table: Table, effects: Effects, node: Node, kind: RouteKind, **fields: Any
) -> Template:
    """The Template of an INSERT into a sharded table."""
    return Template(
        kind,
        operation=Operation.OPERATION_INSERT,
        is_write=True,
        pin=effects.pin,
        table=table.qualified,
        profiles=fired_profiles(table, "insert"),
        returns="returningList" in node,
        owes_away=owes_away(table, "InsertStmt", []),
        **{"is_exact": collector.text.is_exact, "owes_claims": collector.catalog.owes_claims(table), **fields},
    )


def write_template(
    collector: Collector,
    effects: Effects,
    kind: str,
    node: Node,
    table: Table,
    pairs: Pairs,
    route: RouteKind,
    **fields: Any,
) -> Template:
    """The Template of an UPDATE or DELETE of a sharded table."""
    operation = "update" if kind == "UpdateStmt" else "delete"
    columns = [column for column, _ in pairs]
    return Template(
        route,
        operation=OPERATIONS[kind],
        is_write=True,
        pin=effects.pin,
        table=table.qualified,
        returns="returningList" in node,
        profiles=fired_profiles(table, operation, frozenset(columns) if pairs else None),
        values=updated_values(collector.text, table, pairs),
        owes_claims=update_owes_claims(collector, table, columns) if pairs else collector.catalog.owes_claims(table),
        owes_away=owes_away(table, kind, columns),
        **{"is_exact": collector.text.is_exact, **fields},
    )


def cells(columns: list[str], rows: Rows, column: str) -> list[Node | None]:
    """What each row gives for a column; None where the shard fills it in."""
    position = columns.index(column) if column in columns else -1
    found = [row[position] if 0 <= position < len(row) else None for row in rows]
    return [None if cell is not None and unwrap(cell)[0] == GENERATED else cell for cell in found]


def is_null(cell: Node) -> bool:
    """Whether an expression is the constant NULL, seen through casts."""
    kind, fields = unwrap(cell)
    return is_null(fields["arg"]) if kind == "TypeCast" else bool(kind == "A_Const" and fields.get("isnull"))


def may_split(collector: Collector, rows: Rows, node: Node) -> bool:
    """Whether the rows of an INSERT ... VALUES may be inserted by several statements, each with some of them."""
    if len(rows) < 2 or "withClause" in node:
        return False
    sharded = [one for one in collector.references if one.kind is ReferenceKind.SHARDED]
    if len(sharded) > 1 or any(is_unknown(call) for call in collector.calls):
        return False
    return len(RowText(collector.text.sql).rows) == len(rows)
