"""Where an INSERT goes: new roots are placed, given keys go home, children go to their parents."""

from __future__ import annotations

from foreshard._core.template import KeyFlag, Operation, RouteKind, Template
from foreshard._core.typed_keys import KeyType
from foreshard.proxy.catalog import Table, TableKind
from foreshard.proxy.catalog.model import key_family
from foreshard.proxy.errors import SqlError, not_built
from foreshard.proxy.routing.arbiters import conflict_arbiters, may_carry
from foreshard.proxy.routing.away import new_keys
from foreshard.proxy.routing.claim_homes import claims_of_rows
from foreshard.proxy.routing.collect import Collector, InnerWrite
from foreshard.proxy.routing.cte_writes import plan_cte_writes
from foreshard.proxy.routing.functions import check_shard_local, read_effects
from foreshard.proxy.routing.locate import (
    KeyUse,
    Locator,
    chain,
    check_param_types,
    distinct,
    key_uses,
    starts,
    unnamed,
)
from foreshard.proxy.routing.reads import check_no_plain
from foreshard.proxy.routing.references import plan_reference, plan_written_within
from foreshard.proxy.routing.row_marks import row_marks
from foreshard.proxy.routing.rows import (
    GENERATED,
    Rows,
    cells,
    insert_columns,
    insert_template,
    inserted_values,
    is_null,
    may_split,
    value_rows,
)
from foreshard.proxy.routing.scope import Reference, ReferenceKind
from foreshard.proxy.routing.selected import Selected, carry, plan_selected
from foreshard.proxy.routing.tree import Node, unwrap
from foreshard.proxy.routing.writes import (
    check_target,
    open_write,
    plain_write,
    several_shards,
)

CONSTANTS = ("A_Const", "ParamRef", GENERATED)  # other values of a row are computed by a shard first


def plan_insert(collector: Collector, node: Node) -> Template:
    """The route of an InsertStmt; SqlError when it must be refused."""
    target, level, ctes = open_write(collector, node)
    collector.rest_of_write(node, level, ctes)
    effects = read_effects(collector)
    table = target.declared
    found = plan_written_within(collector, "InsertStmt", node, table)
    if found is not None:
        return found
    rows = value_rows(node)
    columns = insert_columns(table, node)
    selected = Selected(collector, node, target, table, columns, effects)
    if table is None or target.kind is ReferenceKind.REFERENCE:
        return plan_whole(selected, rows)
    if collector.inner_writes:
        outer = InnerWrite("InsertStmt", node, target, level)
        return plan_cte_writes(collector, effects, node, outer, Operation.OPERATION_INSERT)
    check_target(collector)
    if may_carry(table, rows, node):
        return carry(selected, conflict_in_query())
    try:
        arbiters = conflict_arbiters(collector, table, columns, rows, node)
    except SqlError as problem:
        if not has_expressions(rows) or problem.sqlstate != "0A000":
            raise
        return carry(selected, problem)
    try:
        check_no_plain(collector)
        check_shard_local(collector)
    except SqlError as problem:
        if rows is not None:
            raise
        return carry(selected, problem)
    return plan_selected(selected) if rows is None else plan_rows(selected, target, rows, arbiters)


def plan_rows(selected: Selected, target: Reference, rows: Rows, arbiters: tuple[Template, ...]) -> Template:
    """The route of an INSERT ... VALUES into a sharded table."""
    collector, table, columns, node = selected.collector, selected.table, selected.columns, selected.node
    assert table is not None
    try:
        uses = key_source(collector, table, columns, rows, node)
        keys = locate_rest(collector, target, uses)
    except SqlError as problem:
        if not has_expressions(rows):
            raise
        return carry(selected, problem)
    split = row_keys(collector, node, rows, uses, keys)
    if arbiters and len(rows) > 1 and uses is not None and not split:
        raise several_shards()
    owes_claims, claim_homes = claims_of_rows(collector, table, columns, rows, node)
    return insert_template(
        collector,
        table,
        selected.effects,
        node,
        RouteKind.ROUTE_PLACE if uses is None else RouteKind.ROUTE_KEYED,
        keys=keys,
        one_shard_refusal=None if uses is None else several_shards(),
        values=inserted_values(collector.text, table, columns, rows),
        rows=len(rows),
        row_keys=split,
        marks=row_marks(collector, table, columns, rows, node) if split else None,
        new_keys=new_keys(table, node, uses is not None),
        owes_claims=owes_claims,
        claim_homes=claim_homes,
        arbiters=arbiters,
        reason="the shard generates the keys" if uses is None else "the rows say where they live",
    )


def has_expressions(rows: Rows | None) -> bool:
    """Whether a shard has to compute some of the values first."""
    return any(unwrap(cell)[0] not in CONSTANTS for row in rows or () for cell in row)


def plan_whole(selected: Selected, rows: Rows | None) -> Template:
    """The route of an INSERT into a plain or reference table."""
    try:
        if selected.table is None:
            return plain_write(selected.collector, "InsertStmt", selected.effects)
        return plan_reference(selected.collector, "InsertStmt", selected.node, selected.table)
    except SqlError as problem:
        if rows is not None or selected.collector.writes_within:
            raise
        return carry(selected, problem)


def row_keys(
    collector: Collector,
    node: Node,
    rows: Rows | None,
    uses: tuple[KeyUse, ...] | None,
    keys: tuple[tuple[int, int, str], ...],
) -> tuple[int, ...]:
    """For each row the position of its key among `keys`; nothing where the rows may not be split by shard."""
    if rows is None or uses is None or len(uses) != len(rows) or not may_split(collector, rows, node):
        return ()
    positions = starts(keys)
    return tuple(positions[unnamed(use.sources)] for use in uses)


def conflict_in_query() -> SqlError:
    """Why shards cannot insert what they select where it may meet rows of other shards."""
    return not_built(
        "ON CONFLICT on columns that are unique over all shards, of rows of a query",
        "Select the rows first, then insert them.",
        "A row with equal values of those columns may be on another shard.",
    )


def key_source(
    collector: Collector, table: Table, columns: list[str], rows: Rows | None, node: Node
) -> tuple[KeyUse, ...] | None:
    """The keys that say where the new rows live; None when the shard will generate them."""
    if len(table.routing_columns) > 1:
        return composite_source(collector, table, columns, rows, node)
    given: list[Node | None] = cells(columns, rows, table.key) if rows is not None else [None]
    is_given = [cell is not None for cell in given]
    if any(is_given) and node.get("override") == "OVERRIDING_USER_VALUE":
        raise not_built("OVERRIDING USER VALUE for a key", "Leave the key out.")
    if table.kind is TableKind.CHILD:
        if not table.takes_keys and any(cell is not None and not is_null(cell) for cell in given):
            raise not_built(
                f'given keys of the child table "{table.name}"',
                f'Leave "{table.key}" out: the shard generates it. Or declare the table with unique: [{table.key}].',
            )
        return read_cells(collector, table, table.via or "", cells(columns, rows or [], table.via or ""))
    if not any(is_given):
        if table.type_of(table.key) is not KeyType.TYPE_INT8 and not table.generates_key:
            raise null_key(table, table.key)
        return None
    if not all(is_given):
        raise not_built("given and generated keys in one INSERT", "Send two statements.")
    return read_cells(collector, table, table.key, given)


def composite_source(
    collector: Collector, table: Table, columns: list[str], rows: Rows | None, node: Node
) -> tuple[KeyUse, ...]:
    """The same where several columns say where a row lives."""
    if node.get("override") == "OVERRIDING_USER_VALUE":
        raise not_built("OVERRIDING USER VALUE beside a key of several columns", "Leave the clause out.")
    given = [
        read_cells(collector, table, column, cells(columns, rows or [], column)) for column in table.routing_columns
    ]
    return tuple(chain(parts) for parts in zip(*given, strict=True))


def read_cells(collector: Collector, table: Table, column: str, given: list[Node | None]) -> tuple[KeyUse, ...]:
    """The keys in a routing column of new rows."""
    found: list[KeyUse] = []
    for cell in given:
        if cell is None or is_null(cell):
            raise null_key(table, column)
        key_type = table.type_of(column)
        keys = collector.text.read_keys(cell, key_family(key_type)) if key_type is not None else None
        if keys is None:
            raise not_built(
                f'an expression as "{column}" of "{table.name}"',
                "Give a constant or a parameter, computed in the client.",
                "The column's value says where the row lives.",
            )
        found.extend(key_uses(collector.catalog, table, column, keys, KeyFlag.KEY_INSERTED))
    check_param_types(collector, table, column, found)
    return tuple(found)


def null_key(table: Table, column: str) -> SqlError:
    """The refusal of a new row that does not say where it lives."""
    return SqlError(
        "23502",
        f'null value in column "{column}" of relation "{table.name}" has no shard',
        "The column's value says where the row lives.",
        f'Give a value for "{column}" in every row.',
    )


def locate_rest(
    collector: Collector, target: Reference, uses: tuple[KeyUse, ...] | None
) -> tuple[tuple[int, int, str], ...]:
    """All keys of the statement: of the new rows, and of the rows that it reads besides."""
    others = [one for one in collector.references if one.kind is ReferenceKind.SHARDED and one is not target]
    if uses is None:
        if others:
            raise not_built(
                "inserting with a generated key from rows of declared tables",
                "Select the rows first, then insert them.",
                "The new rows' shard is chosen by cost.",
            )
        return ()
    located = Locator(collector).locate({target: uses})
    for one in others:
        if one not in located:
            raise not_built(
                "inserting from rows of several shards", f'Restrict "{one.name}" to the key of the new row.'
            )
    return distinct([located[one] for one in (target, *others)])
