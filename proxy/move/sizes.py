"""How many rows each bucket has, roughly: counted where tables are small, from some of their pages where not."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from foreshard._core.buckets import BUCKET_COUNT
from foreshard.proxy.catalog import Catalog, Table, TableKind
from foreshard.proxy.config import Config
from foreshard.proxy.control.away import bucket_of_root
from foreshard.proxy.control.lineage import bucket_of_child
from foreshard.proxy.control.retry import connect
from foreshard.proxy.move.rows import moving_tables
from foreshard.proxy.triggers.capture import quote_table

READ_ROWS = 50_000.0  # of each table on each shard; chosen, not measured
SETTINGS = {"application_name": "foreshard balancer", "statement_timeout": "30s"}
# What ANALYZE has seen, or (never analysed) what the pages may hold.
ESTIMATE = """
SELECT CASE WHEN reltuples >= 0 THEN reltuples ELSE pg_relation_size(oid) / 100.0 END::float8
FROM pg_class WHERE oid = to_regclass($1)
"""

Floats = NDArray[np.float64]


async def count_rows(config: Config, catalog: Catalog) -> Floats:
    """Rows by bucket, of all tables of all shards. LOST when a shard does not answer."""
    found = np.zeros(BUCKET_COUNT)
    for shard in config.shards:
        connection = await connect(shard.dsn, SETTINGS)
        try:
            for table in moving_tables(catalog):
                estimate = await connection.fetchval(ESTIMATE, quote_table(table))
                share = min(1.0, READ_ROWS / estimate) if estimate else 1.0
                for row in await connection.fetch(_sample_sql(catalog, table, share)):
                    if 0 <= row["bucket"] < BUCKET_COUNT:
                        found[row["bucket"]] += row["count"] / share
        finally:
            await connection.close()
    return found


def _sample_sql(catalog: Catalog, table: Table, share: float) -> str:
    """Rows of one table by bucket, among a share of its pages."""
    is_child = table.kind is TableKind.CHILD
    bucket = bucket_of_child(catalog, table, "held") if is_child else bucket_of_root(table, "held")
    some = "" if share >= 1 else f" TABLESAMPLE SYSTEM ({100 * share:.6f})"
    return f"SELECT {bucket} AS bucket, count(*) AS count FROM {quote_table(table)} AS held{some} GROUP BY 1"
