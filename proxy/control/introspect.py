"""Reads one shard: declared tables with keys and constraints, and the views, rules and functions that read them."""

from __future__ import annotations

import re
from typing import Any, TypeAlias

import asyncpg

from foreshard.proxy.catalog import Column
from foreshard.proxy.config import Config, qualified
from foreshard.proxy.control.facts import Facts, ForeignKey, KeySource, TableFacts, UniqueIndex

Connection: TypeAlias = "asyncpg.Connection[Any]"

WORD = re.compile(r"[^\W\d][\w$]*")
SYSTEM_SCHEMAS = "('pg_catalog', 'information_schema', 'foreshard')"

HIDDEN = """
SELECT n.nspname || '.' || c.relname AS name, f.nspname || '.' || h.relname AS hiding
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_class h ON h.relname = c.relname JOIN pg_namespace f ON f.oid = h.relnamespace
WHERE n.nspname || '.' || c.relname = ANY ($1::text[]) AND f.nspname || '.' || h.relname <> ALL ($1::text[])
  AND array_position(current_schemas(false), f.nspname) < array_position(current_schemas(false), n.nspname)
"""
TABLES = """
SELECT c.oid::bigint AS oid, n.nspname AS schema, c.relname AS name,
       EXISTS (SELECT FROM pg_trigger t
               WHERE t.tgrelid = c.oid AND t.tgname LIKE 'foreshard\\_capture\\_%') AS captured,
       EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = c.oid AND t.tgname = 'foreshard_fill_key') AS filled,
       EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = c.oid AND t.tgname = 'foreshard_away_insert') AS away,
       c.relhasrules OR EXISTS (
         SELECT FROM pg_trigger t
         WHERE NOT t.tgisinternal AND t.tgenabled <> 'D' AND t.tgname NOT LIKE 'foreshard\\_%'
           AND (t.tgrelid = c.oid OR t.tgrelid IN (SELECT i.inhrelid FROM pg_inherits i WHERE i.inhparent = c.oid)
                OR t.tgrelid IN (SELECT relid FROM pg_partition_tree(c.oid)))) AS has_triggers,
       ARRAY(SELECT pn.nspname || '.' || p.relname FROM pg_inherits i JOIN pg_class p ON p.oid = i.inhrelid
             JOIN pg_namespace pn ON pn.oid = p.relnamespace WHERE i.inhparent = c.oid ORDER BY 1) AS partitions,
       ARRAY(SELECT pn.nspname || '.' || p.relname FROM pg_inherits i JOIN pg_class p ON p.oid = i.inhparent
             JOIN pg_namespace pn ON pn.oid = p.relnamespace WHERE i.inhrelid = c.oid ORDER BY 1) AS ancestors
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND (n.nspname || '.' || c.relname) = ANY($1::text[])
"""

STRAY = """
SELECT DISTINCT n.nspname || '.' || c.relname AS name
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND (
  EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = c.oid
          AND (t.tgname LIKE 'foreshard\\_capture\\_%' OR t.tgname = 'foreshard_fill_key'))
  OR EXISTS (SELECT FROM pg_attrdef d JOIN pg_attribute a ON a.attrelid = d.adrelid AND a.attnum = d.adnum
             WHERE d.adrelid = c.oid AND CASE WHEN a.attgenerated = '' THEN pg_get_expr(d.adbin, 0) END
               LIKE ANY ('{foreshard.next_key(%,foreshard.next_uuid(%}')))
ORDER BY 1
"""

COLUMNS = """
SELECT a.attname AS name, format_type(a.atttypid, NULL) AS type_name, a.atttypid::bigint AS type_oid,
       a.atttypmod AS modifier, a.attcollation = 100 AS has_default_collation, -- DEFAULT_COLLATION_OID
       coalesce((SELECT l.collisdeterministic FROM pg_collation l WHERE l.oid = a.attcollation), true) AS deterministic,
       a.attnotnull AS not_null, a.attidentity::text AS identity, a.attgenerated::text AS generated,
       CASE WHEN a.attgenerated = '' THEN pg_get_expr(d.adbin, 0) -- with its table it would wait for who changes that
            WHEN d.oid IS NOT NULL THEN '(generated)' END AS default_text,
       (SELECT CASE WHEN NOT o.collisdeterministic THEN ''
                    WHEN o.provider = 'b' OR o.locale IN ('C', 'POSIX') THEN 'bytewise' ELSE 'exact' END
        FROM (SELECT l.collisdeterministic,
                     CASE l.collprovider WHEN 'd' THEN to_jsonb(b) ->> 'datlocprovider' ELSE l.collprovider::text END
                       AS provider,
                     CASE WHEN l.collprovider = 'd' AND coalesce(to_jsonb(b) ->> 'datlocprovider', 'c') = 'c'
                          THEN b.datcollate WHEN l.collprovider = 'c' THEN l.collcollate END AS locale
              FROM pg_collation l, pg_database b
              WHERE l.oid = a.attcollation AND b.datname = current_database()) o) AS collation,
       (SELECT quote_ident(sn.nspname) || '.' || quote_ident(s.relname)
        FROM pg_depend dep JOIN pg_class s ON s.relkind = 'S' JOIN pg_namespace sn ON sn.oid = s.relnamespace
        WHERE (dep.classid = 'pg_attrdef'::regclass AND dep.objid = d.oid AND dep.refobjid = s.oid)
           OR (dep.classid = 'pg_class'::regclass AND dep.objid = s.oid AND dep.refclassid = 'pg_class'::regclass
               AND dep.refobjid = a.attrelid AND dep.refobjsubid = a.attnum AND dep.deptype IN ('a', 'i'))
        ORDER BY dep.classid = 'pg_attrdef'::regclass DESC LIMIT 1) AS sequence
FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE a.attrelid = $1::bigint::oid AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attnum
"""

UNIQUE = """
SELECT c.relname AS name, i.indisprimary AS is_primary,
       -- Where it says no more, without pg_get_indexdef, which would wait for who changes the table.
       CASE WHEN i.indisexclusion OR i.indpred IS NOT NULL OR i.indexprs IS NOT NULL
              OR coalesce((to_jsonb(i) ->> 'indnullsnotdistinct')::boolean, false)
            THEN pg_get_indexdef(i.indexrelid) ELSE 'CREATE UNIQUE INDEX ' || c.relname END AS definition,
       ARRAY(SELECT coalesce(a.attname, pg_get_indexdef(i.indexrelid, k.place::int, true))
             FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS k(number, place)
             LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.number AND k.number > 0
             WHERE k.place <= i.indnkeyatts ORDER BY k.place) AS columns
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
WHERE i.indrelid = $1::bigint::oid AND (i.indisunique OR i.indisexclusion)
ORDER BY c.relname
"""

FOREIGN_KEYS = """
SELECT k.conname AS name, n.nspname || '.' || c.relname AS source, tn.nspname || '.' || t.relname AS target,
       ARRAY(SELECT a.attname FROM unnest(k.conkey) WITH ORDINALITY AS x(number, place)
             JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = x.number ORDER BY x.place) AS columns,
       ARRAY(SELECT a.attname FROM unnest(k.confkey) WITH ORDINALITY AS x(number, place)
             JOIN pg_attribute a ON a.attrelid = k.confrelid AND a.attnum = x.number ORDER BY x.place) AS target_columns
FROM pg_constraint k
JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_class t ON t.oid = k.confrelid JOIN pg_namespace tn ON tn.oid = t.relnamespace
WHERE k.contype = 'f' AND k.conparentid = 0
  AND (n.nspname || '.' || c.relname = ANY($1::text[]) OR tn.nspname || '.' || t.relname = ANY($1::text[]))
ORDER BY 2, 1
"""

# Rewrite rules (every view has one) and what they read.
RULES = f"""
SELECT n.nspname || '.' || c.relname AS name, rn.nspname || '.' || r.relname AS relation,
       pn.nspname || '.' || p.proname AS function
FROM pg_rewrite w JOIN pg_class c ON c.oid = w.ev_class JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = w.oid AND d.deptype = 'n'
LEFT JOIN pg_class r ON d.refclassid = 'pg_class'::regclass AND r.oid = d.refobjid AND r.oid <> c.oid
LEFT JOIN pg_namespace rn ON rn.oid = r.relnamespace
LEFT JOIN pg_proc p ON d.refclassid = 'pg_proc'::regclass AND p.oid = d.refobjid
LEFT JOIN pg_namespace pn ON pn.oid = p.pronamespace
WHERE n.nspname NOT IN {SYSTEM_SCHEMAS} AND (r.oid IS NOT NULL OR p.oid IS NOT NULL)
"""

FUNCTIONS = f"""
SELECT n.nspname || '.' || p.proname AS name, coalesce(pg_get_function_sqlbody(p.oid), p.prosrc) AS body
FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace JOIN pg_language l ON l.oid = p.prolang
WHERE n.nspname NOT IN {SYSTEM_SCHEMAS} AND l.lanname NOT IN ('c', 'internal') AND p.prokind IN ('f', 'p', 'w')
  AND p.prorettype NOT IN ('trigger'::regtype, 'event_trigger'::regtype)
"""

INDEXES = """
SELECT n.nspname || '.' || i.relname AS name, tn.nspname || '.' || t.relname AS relation
FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_namespace n ON n.oid = i.relnamespace
JOIN pg_class t ON t.oid = x.indrelid JOIN pg_namespace tn ON tn.oid = t.relnamespace
WHERE tn.nspname || '.' || t.relname = any($1::text[])
"""


async def introspect(connection: Connection, config: Config, shard: str) -> Facts:
    """Read a shard through the connection; `shard` is the name that messages use."""
    declared = [qualified(table.name) for table in config.tables]
    tables = {facts.qualified: facts for facts in await _read_tables(connection, declared)}
    stray = [row["name"] for row in await connection.fetch(STRAY) if row["name"] not in declared]
    foreign_keys = [
        ForeignKey(
            name=row["name"],
            table=row["source"],
            columns=tuple(row["columns"]),
            target=row["target"],
            target_columns=tuple(row["target_columns"]),
        )
        for row in await connection.fetch(FOREIGN_KEYS, declared)
    ]
    views, functions = await _read_readers(connection, tables)
    indexes = {row["name"]: row["relation"] for row in await connection.fetch(INDEXES, declared)}
    return Facts(
        shard=shard,
        tables=tables,
        foreign_keys=tuple(foreign_keys),
        views=views,
        indexes=indexes,
        functions=functions,
        stray=tuple(await _read_tables(connection, stray)),
        search_path=tuple(await connection.fetchval("SELECT current_schemas(false)::text[]")),
        hidden={row["name"]: row["hiding"] for row in await connection.fetch(HIDDEN, declared)},
        encoding=await connection.fetchval("SHOW server_encoding"),
        claim_sets=await _read_claim_sets(connection),
    )


async def _read_claim_sets(connection: Connection) -> dict[str, str]:
    if not await connection.fetchval("SELECT to_regclass('foreshard.claim_set') IS NOT NULL"):
        return {}
    rows = await connection.fetch("SELECT name, relation FROM foreshard.claim_set ORDER BY name")
    return {row["name"]: row["relation"] for row in rows}


async def _read_tables(connection: Connection, names: list[str]) -> list[TableFacts]:
    found = []
    for row in await connection.fetch(TABLES, names):
        columns = await connection.fetch(COLUMNS, row["oid"])
        unique = await connection.fetch(UNIQUE, row["oid"])
        found.append(
            TableFacts(
                schema=row["schema"],
                name=row["name"],
                columns=tuple(_column(column) for column in columns),
                sources={
                    column["name"]: KeySource(
                        identity=column["identity"],
                        default=column["default_text"] or "",
                        sequence=column["sequence"] or "",
                    )
                    for column in columns
                    if column["default_text"] or column["identity"] or column["sequence"]
                },
                unique=tuple(
                    UniqueIndex(
                        name=index["name"],
                        columns=tuple(index["columns"]),
                        is_primary=index["is_primary"],
                        definition=index["definition"],
                    )
                    for index in unique
                ),
                partitions=tuple(row["partitions"]),
                ancestors=tuple(row["ancestors"]),
                captured=row["captured"],
                filled=row["filled"],
                has_triggers=row["has_triggers"],
                away=row["away"],
                undetermined=tuple(column["name"] for column in columns if not column["deterministic"]),
            )
        )
    return found


def _column(row: Any) -> Column:
    return Column(
        name=row["name"],
        type_name=row["type_name"],
        type_oid=row["type_oid"],
        not_null=row["not_null"],
        collation=row["collation"] or "",
        has_default_collation=row["has_default_collation"],
        has_default=bool(row["default_text"] or row["identity"]),
        default_text=row["default_text"] or "",
        is_generated=bool(row["generated"]) or row["identity"] == "a",
        modifier=row["modifier"],
    )


async def _read_readers(connection: Connection, tables: dict[str, TableFacts]) -> tuple[dict[str, str], dict[str, str]]:
    """Views (with ruled tables, partitions and ancestors) and functions that reach a declared table, and which one."""
    views: dict[str, str] = {}
    for table in tables.values():
        views.update(dict.fromkeys((*table.partitions, *table.ancestors), table.qualified))
    functions: dict[str, str] = {}
    rules = await connection.fetch(RULES)
    bodies = [(row["name"], row["body"]) for row in await connection.fetch(FUNCTIONS)]
    while True:  # views of views, functions over views, views that call functions: until nothing new is found
        size = len(views) + len(functions)
        known = {name: name for name in tables} | views
        for rule in rules:
            reached = known.get(rule["relation"] or "") or functions.get(rule["function"] or "")
            if reached and rule["name"] not in tables:
                views.setdefault(rule["name"], reached)
        for name, body in bodies:
            reached = _first_named(body, known | functions, skip=name)
            if reached:
                functions.setdefault(name, reached)
        if len(views) + len(functions) == size:
            return views, functions


def _first_named(body: str, known: dict[str, str], skip: str) -> str | None:
    """The declared table behind the first known name that the body holds as a word, with its schema or without."""
    lowered = body.lower()
    words = set(WORD.findall(lowered))
    for name, reached in known.items():
        short = name.partition(".")[2].lower()
        if name != skip and (short in words or (not WORD.fullmatch(short) and short in lowered)):
            return reached
    return None
