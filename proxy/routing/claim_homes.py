"""What a statement's text tells of the claims that it makes (ARCHITECTURE.md, "Claims").

A new row's values name the homes of its claims, as keys name their buckets: where all of them are of the row's own
shard, it owes nothing to others. An UPDATE of other columns claims and releases nothing. Triggers of users may change
what a row holds, and write more: tables with any are taken to owe.
"""

from __future__ import annotations

from foreshard._core.template import KeyFlag, RouteKind, Template
from foreshard.proxy.catalog import Table
from foreshard.proxy.catalog.model import key_family
from foreshard.proxy.routing.collect import Collector
from foreshard.proxy.routing.locate import KeyUse, chain, distinct, usable_params
from foreshard.proxy.routing.tree import Node, unwrap


def claims_of_rows(
    collector: Collector, table: Table, columns: list[str], rows: list[list[Node]], node: Node
) -> tuple[bool, Template | None]:
    """Whether an INSERT may owe claims, and the keys that name their homes; None when the text does not tell them."""
    if not collector.catalog.owes_claims(table):
        return False, None
    if table.has_triggers or "onConflictClause" in node or node.get("override") == "OVERRIDING_USER_VALUE":
        return True, None
    found: list[KeyUse] = []
    for names in table.unique:
        if not set(names) <= set(columns):
            return True, None
        places = [columns.index(name) for name in names]
        for row in rows:
            read = [
                _read(collector, table, name, row[at]) if at < len(row) else None
                for name, at in zip(names, places, strict=True)
            ]
            parts = [part for part in read if part is not None]
            if len(parts) < len(read):
                return True, None
            if all(parts):  # a value with a NULL in it is not claimed
                found.append(chain(use for part in parts for use in part))
    usable = usable_params(collector)
    for use in (part for one in found for part in (one, *one.rest)):
        key_type = table.type_of(use.column.rpartition(".")[2])
        if use.flags & KeyFlag.KEY_PARAM and (key_type is None or usable.get(use.index) != key_family(key_type)):
            return True, None
    if not found:
        return False, None
    return True, Template(RouteKind.ROUTE_KEYED, keys=distinct([tuple(found)]), is_hashed=True)


def _read(collector: Collector, table: Table, column: str, cell: Node) -> tuple[KeyUse, ...] | None:
    """One value of a new row: none for NULL; None when it is not in the text."""
    key_type = table.type_of(column)
    known = table.column(column)
    if key_type is None or known is None or unwrap(cell)[0] == "SetToDefault":
        return None
    keys = collector.text.read_keys(cell, key_family(key_type))
    if keys is None:
        return None
    flags = key_type * KeyFlag.KEY_TYPE_UNIT | known.length_max * KeyFlag.KEY_LIMIT_UNIT
    return tuple(KeyUse(key.index, key.flags | flags, f"{table.name}.{column}") for key in keys)


def update_owes_claims(collector: Collector, table: Table, changed: list[str]) -> bool:
    """Whether an UPDATE of these columns may owe claims: its own, or those of rows that it cascades to."""
    catalog = collector.catalog
    if not catalog.owes_claims(table):
        return False
    if table.has_triggers or catalog.claims_below(table):
        return True
    claimed = {column for columns in table.unique for column in columns}
    known = [table.column(column) for column in claimed]
    if any(column is None or column.is_generated for column in known):
        return True
    return not claimed.isdisjoint(changed) or not set(table.routing_columns).isdisjoint(changed)
