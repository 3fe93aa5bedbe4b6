"""ON CONFLICT: whether the shard of the new row finds the row that it meets, and which values are asked for first.

What holds the columns that say where rows live is decided by the shard that the INSERT goes to. Columns that are unique
over all shards may meet a row on any of them: `Template.arbiters` are their values in the new rows, and the relay asks
the homes of their claims (wire/arbiter.pyx).

Several rows: each goes to the row that it meets. Where the target is named, a row that has the value of an earlier one
of the statement goes where that went; without one nobody can tell whether the earlier one is inserted, so such rows
may not leave their shards (`keeps_bucket`).
"""

from __future__ import annotations

from dataclasses import replace

from foreshard._core.template import KeyFlag, RouteKind, Template
from foreshard._core.typed_keys import KeyType
from foreshard.proxy.catalog import Table, TableKind
from foreshard.proxy.catalog.model import key_family
from foreshard.proxy.errors import SqlError, not_built
from foreshard.proxy.routing.away import ClaimedColumn
from foreshard.proxy.routing.collect import Collector
from foreshard.proxy.routing.locate import KeyUse, chain, check_param_types, key_uses
from foreshard.proxy.routing.rows import Rows, cells, is_null, may_split
from foreshard.proxy.routing.tree import Node, unwrap
from foreshard.proxy.routing.writes import check_assignments

# Types whose values print in one way only: in a set of several columns the router prints them.
PRINTABLE = frozenset({KeyType.TYPE_INT8, KeyType.TYPE_INT4, KeyType.TYPE_INT2, KeyType.TYPE_TEXT})


def conflict_arbiters(
    collector: Collector, table: Table, columns: list[str], rows: Rows | None, node: Node
) -> tuple[Template, ...]:
    """The values by which new rows may meet rows of any shard; SqlError for what cannot be told."""
    clause = node.get("onConflictClause")
    if not clause:
        return ()
    check_assignments(table, [unwrap(target)[1].get("name", "") for target in clause.get("targetList", [])])
    wanted = arbiter_columns(table, clause.get("infer"))
    if not wanted:
        return ()
    refusal = refused(table, wanted[0])
    if table.has_triggers or rows is None or not all(printable(table, one) for one in wanted):
        raise refusal
    if len(rows) > 1 and (not may_split(collector, rows, node) or moves_value(clause, wanted)):
        raise refusal
    found = []
    for one in wanted:
        given = zip(*(cells(columns, rows, column) for column in one), strict=True)
        found += [arbiter(collector, table, one, parts, refusal, row, clause) for row, parts in enumerate(given)]
    return tuple(value for value in found if value is not None)


def may_carry(table: Table, rows: Rows | None, node: Node) -> bool:
    """Whether the rows of a query have to be known before it can be told which rows they meet."""
    clause = node.get("onConflictClause")
    return bool(rows is None and clause and table.is_sharded and arbiter_columns(table, clause.get("infer")))


def moves_value(clause: Node, wanted: tuple[tuple[str, ...], ...]) -> bool:
    """Whether DO UPDATE may give a row another value of the columns by which rows of the statement meet."""
    for target in clause.get("targetList", []):
        _, fields = unwrap(target)
        kind, value = unwrap(fields.get("val"))
        names = [unwrap(part)[1].get("sval") for part in value.get("fields", [])] if kind == "ColumnRef" else []
        if any(fields.get("name") in one for one in wanted) and names != ["excluded", fields.get("name")]:
            return True
    return False


def arbiter_columns(table: Table, infer: Node | None) -> tuple[tuple[str, ...], ...]:
    """The claimed columns by which rows meet; none where the shard of the new row decides."""
    if not infer:
        return table.unique
    columns = {unwrap(element)[1].get("name") for element in infer.get("indexElems", [])}
    claimed = tuple(one for one in table.unique if set(one) == columns)
    is_partial = "whereClause" in infer
    if claimed and not is_partial and not set(table.routing_columns) <= columns:
        return claimed
    holds_place = any(set(placing) <= columns for placing, _ in table.domains)
    if infer.get("conname") == f"{table.name}_pkey" and not (table.kind is TableKind.CHILD and table.unique):
        return ()
    if holds_place:
        return ()
    raise not_built(
        f'ON CONFLICT on other columns than the key of "{table.name}"',
        f"Name the key: ON CONFLICT ({', '.join(table.row_key)}).",
        "A row with equal values of those columns may be on another shard.",
    )


def printable(table: Table, columns: tuple[str, ...]) -> bool:
    """Whether the router can write the values of these columns as claims have them."""
    return len(columns) == 1 or all(table.type_of(column) in PRINTABLE for column in columns)


def arbiter(
    collector: Collector,
    table: Table,
    columns: tuple[str, ...],
    given: tuple[Node | None, ...],
    refusal: SqlError,
    row: int,
    clause: Node,
) -> Template | None:
    """The value of one row; None for one with a NULL in it, which meets nothing."""
    uses = [part_of(collector, table, column, cell, refusal) for column, cell in zip(columns, given, strict=True)]
    parts = [use for use in uses if use is not None]
    if len(parts) < len(uses):
        return None
    whole = chain(parts)
    sources = []
    for index, use_flags, column in whole.sources:
        name = ClaimedColumn(column)
        name.claim = f"{table.qualified}.{','.join(columns)}"
        flags = use_flags & ~(KeyFlag.KEY_INSERTED | KeyFlag.KEY_PLACED)
        sources.append((index, flags, name))
    index, flags, name = sources[0]
    is_own_key = len(columns) == 1 and columns == table.key_columns and table.is_placeable
    if is_own_key:  # a key that names its bucket is not claimed: it is with its parent
        sources.append((index, flags | KeyFlag.KEY_PLACED, name))
    return Template(
        RouteKind.ROUTE_KEYED,
        keys=tuple(sources),
        one_shard_refusal=refusal,
        can_query=is_own_key,
        row_keys=(row,),
        keeps_bucket="infer" not in clause,
        owes_away=collector.catalog.root_of(table).by_cost,
        reason="an arbiter",
    )


def part_of(collector: Collector, table: Table, column: str, cell: Node | None, refusal: SqlError) -> KeyUse | None:
    """What a row gives for one column; None for NULL."""
    known, key_type = table.column(column), table.type_of(column)
    if cell is None:
        is_generated_key = column == table.key and table.kind is TableKind.CHILD
        if known is not None and (known.has_default or known.is_generated) and not is_generated_key:
            raise refusal
        return None
    if is_null(cell):
        return None
    keys = collector.text.read_keys(cell, key_family(key_type)) if key_type is not None else None
    if not keys:
        raise refusal
    uses = list(key_uses(collector.catalog, table, column, keys, int(KeyFlag.KEY_INSERTED)))
    check_param_types(collector, table, column, uses)
    return replace(uses[0], column=f"{table.name}.{column}")


def refused(table: Table, columns: tuple[str, ...]) -> SqlError:
    """The refusal of a conflict with a row that may be on another shard."""
    return not_built(
        f'this ON CONFLICT on {", ".join(columns)} of "{table.name}"',
        f"Send one row at a time, or name the key: ({', '.join(table.row_key)}).",
        "A row with equal values of those columns may be on another shard.",
    )
