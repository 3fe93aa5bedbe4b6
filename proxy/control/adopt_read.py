"""Reads a live database for `adopt`: every table with its keys, sizes, writes, and what else is in the database.

One read-only transaction; every question is of the catalogs and statistics, or one look into the index of a key.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from foreshard._core.buckets import PLACED_FLAG
from foreshard.proxy.config import Config, TableConfig
from foreshard.proxy.control.adopt_model import Live, Measures
from foreshard.proxy.control.connect import connected, shown_dsn
from foreshard.proxy.control.facts import TableFacts
from foreshard.proxy.control.introspect import SYSTEM_SCHEMAS, Connection, introspect
from foreshard.proxy.errors import ForeshardError
from foreshard.proxy.triggers.capture import quote_name

# Tables of users: not of extensions, not temporary, not partitions of others.
IS_OF_USERS = f"""
c.relpersistence <> 't' AND NOT c.relispartition AND n.nspname NOT IN {SYSTEM_SCHEMAS}
AND n.nspname NOT LIKE 'pg\\_%'
AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
"""

MEASURES = f"""
SELECT n.nspname || '.' || c.relname AS name, c.relkind = 'p' AS is_partitioned, c.relpersistence = 'u' AS is_unlogged,
       c.relrowsecurity AS has_row_security, size.*,
       ARRAY(SELECT t.tgname::text FROM pg_trigger t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal ORDER BY 1)
         AS triggers,
       ARRAY(SELECT k.conname::text FROM pg_constraint k WHERE k.conrelid = c.oid AND k.contype = 'x' ORDER BY 1)
         AS exclusions,
       ARRAY(SELECT k.conname::text FROM pg_constraint k WHERE k.conrelid = c.oid AND k.condeferrable ORDER BY 1)
         AS deferrable,
       ARRAY(SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attgenerated <> '' ORDER BY 1)
         AS generated
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace CROSS JOIN LATERAL (
  SELECT sum(pg_total_relation_size(leaf.oid))::bigint AS bytes,
         sum(CASE WHEN leaf.reltuples < 0 THEN coalesce(s.n_live_tup, 0) ELSE leaf.reltuples END)::bigint AS rows,
         coalesce(sum(s.n_tup_ins), 0)::bigint AS inserts, coalesce(sum(s.n_tup_upd), 0)::bigint AS updates,
         coalesce(sum(s.n_tup_del), 0)::bigint AS deletes
  FROM (SELECT c.oid UNION SELECT relid FROM pg_partition_tree(c.oid) WHERE isleaf) AS tree(oid)
  JOIN pg_class leaf ON leaf.oid = tree.oid AND leaf.relkind IN ('r', 'p')
  LEFT JOIN pg_stat_all_tables s ON s.relid = leaf.oid AND leaf.relkind = 'r'
) AS size
WHERE c.relkind IN ('r', 'p') AND {IS_OF_USERS} ORDER BY 1
"""
NULL_SHARES = """
SELECT schemaname || '.' || tablename AS name, attname AS column, null_frac AS share FROM pg_stats
WHERE schemaname || '.' || tablename = ANY ($1::text[])
"""
DATABASE = f"""
SELECT current_database() AS name, current_setting('server_version') AS version,
       to_regclass('foreshard.shard_info') IS NOT NULL AS is_shard,
       (SELECT coalesce(to_char(stats_reset, 'YYYY-MM-DD'), '') FROM pg_stat_database
        WHERE datname = current_database()) AS statistics_since,
       ARRAY(SELECT n.nspname || '.' || c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE c.relkind = 'f' AND {IS_OF_USERS} ORDER BY 1) AS foreign_tables,
       ARRAY(SELECT n.nspname || '.' || c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE c.relkind = 'm' AND {IS_OF_USERS} ORDER BY 1) AS materialized_views,
       ARRAY(SELECT pubname::text FROM pg_publication ORDER BY 1) AS publications,
       ARRAY(SELECT extname::text FROM pg_extension WHERE extname <> 'plpgsql' ORDER BY 1) AS extensions,
       ARRAY(SELECT evtname::text FROM pg_event_trigger ORDER BY 1) AS event_triggers,
       EXISTS (SELECT FROM pg_largeobject_metadata) AS has_large_objects
"""


async def read_live(dsn: str) -> Live:
    """Everything that a proposal needs. ForeshardError when the database is a shard already."""
    async with (
        connected("database", dsn) as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        database = await connection.fetchrow(DATABASE)
        assert database is not None
        if database["is_shard"]:
            raise ForeshardError(f"{shown_dsn(dsn)} is a shard already (it has foreshard.shard_info)")
        rows = await connection.fetch(MEASURES)
        names = [row["name"] for row in rows]
        everything = Config(path=Path(), tables=tuple(TableConfig(name=name, reference=True) for name in names))
        facts = await introspect(connection, everything, "s0")
        shares: dict[str, dict[str, float]] = {name: {} for name in names}
        for row in await connection.fetch(NULL_SHARES, names):
            shares[row["name"]][row["column"]] = row["share"]
        return Live(
            name=database["name"],
            place=shown_dsn(dsn),
            version=database["version"].split()[0],
            facts=facts,
            measures={
                row["name"]: await _measures(connection, row, facts.tables[row["name"]], shares[row["name"]])
                for row in rows
            },
            statistics_since=database["statistics_since"],
            foreign_tables=tuple(database["foreign_tables"]),
            materialized_views=tuple(database["materialized_views"]),
            publications=tuple(database["publications"]),
            extensions=tuple(database["extensions"]),
            event_triggers=tuple(database["event_triggers"]),
            has_large_objects=database["has_large_objects"],
        )


async def _measures(connection: Connection, row: Any, table: TableFacts, shares: dict[str, float]) -> Measures:
    return Measures(
        bytes=row["bytes"],
        rows=row["rows"],
        inserts=row["inserts"],
        updates=row["updates"],
        deletes=row["deletes"],
        is_partitioned=row["is_partitioned"],
        is_unlogged=row["is_unlogged"],
        has_row_security=row["has_row_security"],
        triggers=tuple(row["triggers"]),
        exclusions=tuple(row["exclusions"]),
        deferrable=tuple(row["deferrable"]),
        generated=tuple(row["generated"]),
        null_shares=shares,
        has_reserved_keys=await _has_reserved_keys(connection, table),
    )


async def _has_reserved_keys(connection: Connection, table: TableFacts) -> bool:
    """Whether a bigint key lies in the range of placed keys: one look into the primary key's index."""
    if len(table.primary_key) != 1:
        return False
    (name,) = table.primary_key
    column = table.column(name)
    if column is None or column.type_name != "bigint":
        return False
    key, of = quote_name(name), f"{quote_name(table.schema)}.{quote_name(table.name)}"
    return bool(
        await connection.fetchval(
            f"SELECT EXISTS (SELECT FROM {of} WHERE {key} >= {PLACED_FLAG} AND {key} < {2 * PLACED_FLAG})"
        )
    )
