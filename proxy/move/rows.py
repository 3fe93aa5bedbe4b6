"""The rows of one bucket, as SQL: which rows of a table are in it, found through the indexes that the table has.

A bucket's placed keys are one range of the key, and of the columns that refer to it; other keys are found by the index
on foreshard.bucket_of. Where neither is there the table is read.
"""

from __future__ import annotations

from foreshard._core.buckets import COUNTER_BITS, PLACED_FLAG
from foreshard._core.typed_keys import KeyType
from foreshard.proxy.catalog import Catalog, Table, TableKind
from foreshard.proxy.control.key_sql import bucket_of_row
from foreshard.proxy.control.lineage import bucket_of_child, looks_further, names_bucket
from foreshard.proxy.triggers.capture import quote_name, quote_table, quote_text

# What values print as must mean the same on the other shard; both ends have the same.
SESSION = {
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "TimeZone": "UTC",
    "xmloption": "content",
    "row_security": "off",
    "search_path": "pg_catalog, pg_temp",
    "jit": "off",
}
SETTINGS = "; ".join(
    f"SET LOCAL {name} = {value if name == 'search_path' else quote_text(value)}"  # that one is a list
    for name, value in {**SESSION, "session_replication_role": "replica"}.items()
)


def moving_tables(catalog: Catalog) -> list[Table]:
    """The tables whose rows go with their bucket, parents first."""
    found: list[Table] = []
    left = [table for table in catalog.tables.values() if table.is_sharded]
    while left:
        names = {table.qualified for table in left}
        ready = [table for table in left if table.parent not in names]
        found += ready
        left = [table for table in left if table not in ready]
    return found


def in_bucket(catalog: Catalog, table: Table, row: str, bucket: int) -> str:
    """An SQL condition: the table's row `row` is in the bucket. Of a child its parent's row is still there."""
    if table.by_cost:
        return _placed_by_cost(table, row, bucket)
    if table.kind is TableKind.CHILD and catalog.claim_of(table, table.via or "") is not None:
        return _with_parents(catalog, table, row, bucket)
    own = f"{bucket_of_row(table, row)} = {bucket}"
    column = table.routing_column
    if table.kind is TableKind.CHILD and looks_further(catalog, table):
        named = names_bucket(table, column, f"{row}.{quote_name(column)}")
        further = f"NOT ({named}) AND {bucket_of_child(catalog, table, row)} = {bucket}"
        return f"({_named(table, row, bucket)}) OR ({further})"
    if column and table.type_of(column) is KeyType.TYPE_INT8:
        value = f"{row}.{quote_name(column)}"
        other = f"({value} < {PLACED_FLAG} OR {value} >= {2 * PLACED_FLAG}) AND {own}"
        return f"({_named(table, row, bucket)}) OR ({other})"
    return own


def _named(table: Table, row: str, bucket: int) -> str:
    """The routing column holds a key that carries the bucket."""
    column = table.routing_column
    value = f"{row}.{quote_name(column)}"
    if table.type_of(column) is KeyType.TYPE_INT8:
        low = PLACED_FLAG | bucket << COUNTER_BITS
        return f"{value} BETWEEN {low} AND {low + (1 << COUNTER_BITS) - 1}"
    return f"{names_bucket(table, column, value)} AND {bucket_of_row(table, row)} = {bucket}"


def _placed_by_cost(table: Table, row: str, bucket: int) -> str:
    """At home in the bucket and not away, or away there."""
    key, name = f"{row}.{quote_name(table.key)}", quote_text(table.claim)
    return (
        f"({bucket_of_row(table, row)} = {bucket} AND NOT EXISTS (SELECT FROM foreshard.away AS noted "
        f"WHERE noted.name = {name} AND noted.key = {key}::text)) OR {key} = ANY (ARRAY(SELECT "
        f"noted.key::{table.key_type} FROM foreshard.away AS noted WHERE noted.name = {name} "
        f"AND noted.bucket = {bucket}))"
    )


def _with_parents(catalog: Catalog, table: Table, row: str, bucket: int) -> str:
    """Below a root that is placed by cost: where the row is that the via column names."""
    domain = catalog.tables[table.domain_of_via or ""]
    condition = in_bucket(catalog, domain, "above", bucket)
    return (
        f"{row}.{quote_name(table.via or '')} = ANY (ARRAY(SELECT above.{quote_name(domain.key)} "
        f"FROM {quote_table(domain)} AS above WHERE {condition}))"
    )
