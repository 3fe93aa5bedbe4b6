"""Types of a statement's parameters, as far as its text and the catalog tell: for statements that no shard describes.

A driver that asks for them (asyncpg) encodes its arguments by the answer. PostgreSQL would tell more; what is not known
here is text, which every driver can send.
"""

from __future__ import annotations

from collections.abc import Iterator

from foreshard.proxy.catalog import Catalog, Table
from foreshard.proxy.routing.tree import Node, column_path, range_vars, strings, type_of, unwrap, walk

INT8_OID, TEXT_OID = 20, 25
OIDS = {
    **{"bool": 16, "bytea": 17, "int8": 20, "int2": 21, "int4": 23, "text": 25, "json": 114, "jsonb": 3802},
    **{"float4": 700, "float8": 701, "varchar": 1043, "numeric": 1700, "uuid": 2950},
    **{"date": 1082, "timestamp": 1114, "timestamptz": 1184},
}
ARRAY_OIDS = {
    **{16: 1000, 17: 1001, 20: 1016, 21: 1005, 23: 1007, 25: 1009, 114: 199, 3802: 3807, 700: 1021, 701: 1022},
    **{1043: 1015, 1700: 1231, 2950: 2951, 1082: 1182, 1114: 1115, 1184: 1185},
}
Found = tuple[int, int]  # number of a parameter, from 1, and the OID of its type


def parameter_types(catalog: Catalog, kind: str, node: Node) -> tuple[int, ...]:
    """The OIDs of $1, $2, ... of a statement; the first that is known of each counts."""
    tree = {kind: node}
    tables = [
        table
        for name in range_vars(tree)
        if (table := catalog.find(name["relname"], name.get("schemaname"))) is not None
    ]
    last = max((fields.get("number", 0) for kind, fields in walk(tree) if kind == "ParamRef"), default=0)
    known: dict[int, int] = {}
    for number, oid in (*_casts(tree), *_assigned(catalog, kind, node), *_compared(tables, tree), *_limits(tree)):
        known.setdefault(number, oid)
    return tuple(known.get(number, TEXT_OID) for number in range(1, last + 1))


def _casts(tree: Node) -> Iterator[Found]:
    for kind, fields in walk(tree):
        if kind == "TypeCast":
            name, is_array = type_of(fields)
            oid = OIDS.get(name, 0)
            yield from _typed(fields.get("arg"), ARRAY_OIDS.get(oid, 0) if is_array else oid)


def _assigned(catalog: Catalog, kind: str, node: Node) -> Iterator[Found]:
    """Parameters that become columns: of VALUES and of SET."""
    relation = node.get("relation", {})
    table = catalog.find(relation.get("relname", ""), relation.get("schemaname"))
    if table is None or kind not in ("InsertStmt", "UpdateStmt"):
        return
    named = [unwrap(column)[1] for column in node.get("cols", [])]
    columns = [column["name"] for column in named] or [column.name for column in table.columns]
    for row in unwrap(node.get("selectStmt"))[1].get("valuesLists", []):
        for column, value in zip(columns, unwrap(row)[1].get("items", []), strict=False):
            yield from _typed(value, _column_oid([table], column))
    for target in node.get("targetList", []):
        fields = unwrap(target)[1]
        yield from _typed(fields.get("val"), _column_oid([table], fields.get("name", "")))


def _compared(tables: list[Table], tree: Node) -> Iterator[Found]:
    """Parameters beside a column: compared with it, one of a list, or an array."""
    for kind, fields in walk(tree):
        if kind != "A_Expr":
            continue
        form = fields.get("kind")
        for one, other in ((fields.get("lexpr"), fields.get("rexpr")), (fields.get("rexpr"), fields.get("lexpr"))):
            path = column_path(one) if isinstance(one, dict) else None
            oid = _column_oid(tables, path[-1]) if path else 0
            if form == "AEXPR_OP" and strings(fields.get("name"))[-1:] in (["="], ["<"], [">"], ["<="], [">="], ["<>"]):
                yield from _typed(other, oid)
            elif form == "AEXPR_OP_ANY":
                yield from _typed(other, ARRAY_OIDS.get(oid, 0))
            elif form in ("AEXPR_IN", "AEXPR_BETWEEN"):
                for item in unwrap(other)[1].get("items", []):
                    yield from _typed(item, oid)


def _limits(tree: Node) -> Iterator[Found]:
    for kind, fields in walk(tree):
        if kind == "SelectStmt":
            yield from _typed(fields.get("limitCount"), INT8_OID)
            yield from _typed(fields.get("limitOffset"), INT8_OID)


def _typed(node: Node | None, oid: int) -> Iterator[Found]:
    kind, fields = unwrap(node)
    if kind == "ParamRef" and oid:
        yield fields.get("number", 0), oid


def _column_oid(tables: list[Table], name: str) -> int:
    """The type of the first column of that name; 0 when no declared table has one."""
    return next((column.type_oid for table in tables if (column := table.column(name)) is not None), 0)
