"""The bucket of a child's row: what its parent's key says, or, where that says nothing, what the parent's row says.

A placed key names its bucket, and a root's other keys have a home. The key of a child that is neither (it is older than
Foreshard, or was given) says nothing: such a row is in the bucket of its own parent, and so are its children.
"""

from __future__ import annotations

from foreshard._core.buckets import PLACED_FLAG
from foreshard._core.typed_keys import KeyType
from foreshard.proxy.catalog import Catalog, Table, TableKind
from foreshard.proxy.control.away import bucket_of_parent
from foreshard.proxy.control.key_sql import UUID_NAMES_BUCKET
from foreshard.proxy.triggers.capture import quote_name, quote_table


def bucket_of_child(catalog: Catalog, table: Table, row: str, depth: int = 1) -> str:
    """An SQL expression over the child's row `row` for its bucket."""
    said = bucket_of_parent(catalog, table, row)
    if not looks_further(catalog, table):
        return said
    via = f"{row}.{quote_name(table.via or '')}"
    parent = catalog.tables[table.parent or ""]
    above = f"above_{depth}"
    return (
        f"CASE WHEN {names_bucket(table, table.via or '', via)} THEN {said} ELSE coalesce((SELECT "
        f"{bucket_of_child(catalog, parent, above, depth + 1)} FROM {quote_table(parent)} AS {above} "
        f"WHERE {above}.{quote_name(parent.key)} = {via}), {said}) END"
    )


def names_bucket(table: Table, column: str, value: str) -> str:
    """An SQL condition: the value, of the type of the table's column, is a key that carries its bucket."""
    key_type = table.type_of(column)
    if key_type is KeyType.TYPE_INT8:
        return f"{value} >= {PLACED_FLAG} AND {value} < {2 * PLACED_FLAG}"
    if key_type is KeyType.TYPE_UUID:
        return f"({UUID_NAMES_BUCKET.replace('key', value)})"
    return "false"


def looks_further(catalog: Catalog, table: Table) -> bool:
    """Whether the parent's key is held, and that is a child itself, so that its row may have to be asked."""
    parent = catalog.tables.get(table.domain_of_via or "")
    return parent is not None and parent.kind is TableKind.CHILD
