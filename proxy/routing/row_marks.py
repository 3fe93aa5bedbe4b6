"""Which row of an INSERT a returned row was: what ON CONFLICT leaves out, nobody returns.

Rows that several shards return are told apart by a mark in a column of ours behind the others: the hash of the values
of some columns, which the router computes for each row that it has sent (`Template.marks`). Rows with equal marks are
those that conflict with each other: the first of them is there. DO UPDATE returns the row that was met, of which only
the columns of the conflict are known to be those of the row that was sent.
"""

from __future__ import annotations

from dataclasses import replace

from foreshard._core.buckets import HOME_SEED
from foreshard._core.template import KeyFlag, RouteKind, Template
from foreshard._core.typed_keys import HASH_SQL
from foreshard.proxy.catalog import Table
from foreshard.proxy.catalog.model import key_family
from foreshard.proxy.errors import SqlError
from foreshard.proxy.routing.arbiters import moves_value
from foreshard.proxy.routing.collect import Collector
from foreshard.proxy.routing.locate import KeyUse, chain, check_param_types, key_uses
from foreshard.proxy.routing.moving import quoted
from foreshard.proxy.routing.rows import Rows, cells, is_null
from foreshard.proxy.routing.tree import Node, unwrap

COLUMNS_MAX = 8


def row_marks(collector: Collector, table: Table, columns: list[str], rows: Rows, node: Node) -> Template | None:
    """The marks of the rows; `text` is the column's SQL. None where every row is returned, or none can be marked."""
    clause = node.get("onConflictClause")
    if not clause or "returningList" not in node:
        return None
    for names in _choices(table, columns, clause):
        given = [_uses(collector, table, column, cells(columns, rows, column)) for column in names]
        if names and all(given):
            break
    else:
        return None
    rows_uses = zip(*[uses for uses in given if uses is not None], strict=True)
    sources = [source for uses in rows_uses for source in chain(uses).sources]
    return Template(
        RouteKind.ROUTE_KEYED,
        keys=tuple(sources),
        row_keys=tuple(range(0, len(sources), len(names))),
        is_hashed=True,
        text=_mark_sql(table, names),
        reason="marks",
    )


def _choices(table: Table, columns: list[str], clause: Node) -> list[list[str]]:
    """Columns that may tell rows apart, the best first: those of the conflict, the key, all."""
    elements = (clause.get("infer") or {}).get("indexElems", [])
    named = [str(unwrap(element)[1].get("name", "")) for element in elements]
    if clause.get("action") == "ONCONFLICT_UPDATE":  # none where none is needed, and where none would do
        returns_all = "whereClause" not in clause and not table.has_triggers
        met = named or list(table.row_key)
        return [] if returns_all or not set(met) <= set(columns) or moves_value(clause, (tuple(met),)) else [met]
    wanted = [named, list(table.row_key)] if named else [list(table.row_key)]
    found = [names for names in wanted if names and set(names) <= set(columns)]
    return [*found, [column for column in columns if table.type_of(column) is not None][:COLUMNS_MAX]]


def _uses(collector: Collector, table: Table, column: str, given: list[Node | None]) -> list[KeyUse] | None:
    """What the rows give for a column; None unless each gives a constant or a parameter that can be hashed."""
    key_type = table.type_of(column)
    if key_type is None:
        return None
    found: list[KeyUse] = []
    for cell in given:
        keys = None if cell is None or is_null(cell) else collector.text.read_keys(cell, key_family(key_type))
        if not keys or len(keys) != 1:
            return None
        found += key_uses(collector.catalog, table, column, keys, int(KeyFlag.KEY_INSERTED))
    try:
        check_param_types(collector, table, column, found)
    except SqlError:
        return None
    placed = int(KeyFlag.KEY_PLACED)
    return [replace(use, flags=use.flags & ~placed, column=f"{table.name}.{column}") for use in found]


def _mark_sql(table: Table, names: list[str]) -> bytes:
    """The same hash by the shard, over the row that it returns."""
    found = str(HOME_SEED)
    for column in names:
        key_type = table.type_of(column)
        assert key_type is not None
        words = HASH_SQL[key_family(key_type)].replace("seed", "\0").replace("key", quoted(column).decode())
        found = words.replace("\0", found)
    return f", {found} AS foreshard_mark".encode()
