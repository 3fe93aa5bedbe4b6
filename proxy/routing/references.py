"""Where writes of reference tables go: to every shard, one after the other, if each shard surely computes the same.

The shards must agree on the rows for ever, so a statement is taken only when nothing in it can differ between them:
no clock, randomness or sequence, no default but a constant, no choice that the order of rows on disk makes. `lock`
serialises the writers of a table: taken on the first shard it keeps later writers away from all of them, taken on the
others it waits there for the commit of the writer before. Readers and foreign keys are not held up. Triggers of the
user's own on a reference table are trusted to do the same everywhere.
"""

from __future__ import annotations

import re

from foreshard._core.template import Operation, RouteKind, Template
from foreshard.proxy.catalog import Table
from foreshard.proxy.errors import not_built
from foreshard.proxy.routing.collect import Collector
from foreshard.proxy.routing.functions import is_unknown
from foreshard.proxy.routing.reads import check_no_plain
from foreshard.proxy.routing.scope import ReferenceKind
from foreshard.proxy.routing.tree import Node, unwrap, walk
from foreshard.proxy.routing.wide import system_columns

DETERMINISTIC = frozenset(
    (
        *("abs", "ascii", "bit_length", "btrim", "ceil", "ceiling", "char_length", "chr", "decode", "div", "encode"),
        *(
            "floor",
            "generate_series",
            "initcap",
            "left",
            "length",
            "lower",
            "lpad",
            "ltrim",
            "md5",
            "mod",
            "octet_length",
        ),
        *("overlay", "position", "power", "repeat", "replace", "reverse", "right", "round", "rpad", "rtrim", "sha256"),
        *("sign", "split_part", "sqrt", "strpos", "substr", "substring", "translate", "trunc", "upper"),
        *("array_append", "array_cat", "array_length", "array_prepend", "array_remove", "cardinality"),
        *("jsonb_build_object", "jsonb_build_array", "jsonb_set", "jsonb_strip_nulls", "jsonb_array_length"),
    )
)
OPERATIONS = {
    "InsertStmt": Operation.OPERATION_INSERT,
    "UpdateStmt": Operation.OPERATION_UPDATE,
    "DeleteStmt": Operation.OPERATION_DELETE,
}
CONSTANT = re.compile(r"(-?\d+(\.\d+)?|'[^']*'|true|false|NULL)(::[a-z ]+)?")
HINT = "Compute the values in the client, and name every column that has a default."


def plan_reference(collector: Collector, kind: str, node: Node, table: Table) -> Template:
    """The route of an INSERT, UPDATE or DELETE of a reference table; SqlError when the shards might not agree."""
    check_no_plain(collector)
    problem = disagreement(collector, kind, node, table)
    if problem:
        raise not_built(f'{problem} in a write of the reference table "{table.name}"', HINT, "Shards might not agree.")
    return Template(
        RouteKind.ROUTE_SCATTER,
        is_write=True,
        table=table.qualified,
        returns="returningList" in node,
        operation=OPERATIONS[kind],
        lock=table.qualified.encode(),
        is_exact=collector.text.is_exact,
        reason="every shard has the rows of a reference table",
    )


def disagreement(collector: Collector, kind: str, node: Node, table: Table) -> str | None:
    """What might be another thing on each shard; None when nothing is."""
    if kind == "MergeStmt" or collector.writes_within:
        return "MERGE" if kind == "MergeStmt" else "a data-modifying CTE"
    if table.functions:
        return "a trigger function"
    if any(one.kind is ReferenceKind.SHARDED for one in collector.references):
        return "rows of a sharded table"
    if kind == "UpdateStmt" and node.get("fromClause"):
        return "FROM"
    for call in collector.calls:
        if is_unknown(call) or call.path[-1] not in DETERMINISTIC:
            return f"the function {call.path[-1]}"
    for level in collector.levels:
        for merge in level.merges:
            return merge
    for found, _ in walk(node):
        if found in ("SQLValueFunction", "CurrentOfExpr", "XmlExpr", "RangeTableSample"):
            return "what depends on the session" if found == "SQLValueFunction" else found
    for column in system_columns(node):
        return f"the system column {column}"
    return filled_in(kind, node, table)


def filled_in(kind: str, node: Node, table: Table) -> str | None:
    """A column whose value the shard would make, as far as the catalog knows."""
    if any(found == "SetToDefault" for found, _ in walk(node)):
        return "DEFAULT"
    if kind != "InsertStmt":
        return None
    if not table.columns:
        return "columns that are not known"
    named = [unwrap(column)[1]["name"] for column in node.get("cols", [])]
    if not named:
        rows = unwrap(node.get("selectStmt"))[1].get("valuesLists", [])
        width = min([len(unwrap(row)[1].get("items", [])) for row in rows], default=0)
        named = [column.name for column in table.columns][:width]
    for column in table.columns:
        is_constant = not column.is_generated and CONSTANT.fullmatch(column.default_text) is not None
        is_timed = column.type_name.startswith(("date", "time"))
        if column.name not in named and (column.has_default or column.is_generated) and (is_timed or not is_constant):
            return f'the default of "{column.name}"'
    return None
