"""Where writes of reference tables go: to the first shard, which computes the rows, and from there to all others.

So nothing in a statement has to mean the same on every shard: clocks, sequences, defaults, plain tables and the user's
triggers are those of the first shard (proxy/control/outcome.py). `lock` serialises the writers of a table.
"""

from __future__ import annotations

from foreshard._core.template import Completion, Operation, RouteKind, Template
from foreshard.proxy.catalog import Table
from foreshard.proxy.errors import not_built
from foreshard.proxy.routing.collect import Collector
from foreshard.proxy.routing.functions import read_effects
from foreshard.proxy.routing.scope import ReferenceKind
from foreshard.proxy.routing.tree import Node, walk

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
    "SelectStmt": Operation.OPERATION_SELECT,
}
HINT = "Select the values first, then write them."


def plan_reference(collector: Collector, kind: str, node: Node, table: Table) -> Template:
    """The route of a write of a reference table; SqlError when the first shard has not all that it needs."""
    problem = obstacle(collector, node, table)
    if problem:
        raise not_built(f'{problem} in a write of the reference table "{table.name}"', HINT)
    effects = read_effects(collector)
    return Template(
        RouteKind.ROUTE_SCATTER,
        is_write=True,
        pin=effects.pin,
        table=table.qualified,
        returns="returningList" in node or kind == "SelectStmt",
        operation=OPERATIONS.get(kind, Operation.OPERATION_OTHER),
        lock=table.qualified.encode(),
        completion=Completion.COMPLETE_ROWS,
        is_exact=collector.text.is_exact,
        reason="the first shard computes the rows of a reference table, the others are given them",
    )


def plan_written_within(collector: Collector, kind: str, node: Node, target: Table | None) -> Template | None:
    """The route of a statement that writes a reference table in WITH; None when it writes none there."""
    if not collector.reference_writes:
        return None
    written = {table.qualified: table for table in (*collector.reference_writes, *([target] if target else []))}
    if len(written) > 1:
        raise not_built(
            "writes of several tables of which one is a reference table",
            "Send them one after the other, in a transaction.",
            f"The statement writes {', '.join(sorted(written))}.",
        )
    return plan_reference(collector, kind, node, collector.reference_writes[0])


def obstacle(collector: Collector, node: Node, table: Table) -> str | None:
    """What the first shard cannot do alone; None when there is nothing."""
    if table.functions:
        return "a trigger function"
    if any(one.kind is ReferenceKind.SHARDED for one in collector.references):
        return "rows of a sharded table"
    if any(found == "CurrentOfExpr" for found, _ in walk(node)):
        return "WHERE CURRENT OF"
    return None
