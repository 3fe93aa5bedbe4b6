"""The structure of a table as SQL, read from the first shard: what makes the same table on a shard that has none.

`before_rows` makes what rows need: schema, types, functions, sequences, the table with its columns. `after_rows` adds
what is quicker, or only right, when they are there: sequences' states, constraints, indexes, triggers, grants, owner.
What cannot be made the same is refused by name, with what to do; nothing of it is left out silently.
"""

from __future__ import annotations

from typing import Any

import msgspec

from foreshard.proxy.control.introspect import Connection
from foreshard.proxy.control.query_schema import COLLATIONS, COMPOSITES, DOMAINS, ENUMS, EXTENSIONS, SCHEMAS
from foreshard.proxy.triggers.capture import quote_name, quote_text

REMEDY = "make it on the other shards as it is on the first (the `schema` file may), and run apply again"

# Everything that the table's columns, defaults, constraints, indexes and triggers need.
NEEDED = """
WITH RECURSIVE own AS (
  SELECT 'pg_class'::regclass::oid AS class, $1::bigint::oid AS object
  UNION ALL SELECT 'pg_attrdef'::regclass, oid FROM pg_attrdef WHERE adrelid = $1::bigint::oid
  UNION ALL SELECT 'pg_constraint'::regclass, oid FROM pg_constraint WHERE conrelid = $1::bigint::oid
  UNION ALL SELECT 'pg_class'::regclass, indexrelid FROM pg_index WHERE indrelid = $1::bigint::oid
  UNION ALL SELECT 'pg_trigger'::regclass, oid FROM pg_trigger
    WHERE tgrelid = $1::bigint::oid AND NOT tgisinternal AND tgname NOT LIKE 'foreshard\\_%'
  UNION ALL SELECT 'pg_class'::regclass, d.objid FROM pg_depend d JOIN pg_class s ON s.oid = d.objid
    WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = $1::bigint::oid
      AND d.deptype = 'a' AND s.relkind = 'S'
), needed AS (
  SELECT class, object FROM own
  UNION
  SELECT d.refclassid, d.refobjid FROM needed n JOIN pg_depend d ON d.classid = n.class AND d.objid = n.object
  WHERE d.refclassid IN ('pg_type'::regclass, 'pg_proc'::regclass, 'pg_collation'::regclass, 'pg_extension'::regclass)
    OR d.refclassid = 'pg_class'::regclass
      AND EXISTS (SELECT FROM pg_class c WHERE c.oid = d.refobjid AND c.relkind IN ('c', 'S'))
)
SELECT class::regclass::text AS class, object::bigint AS oid,
       EXISTS (SELECT FROM pg_depend e WHERE e.classid = class AND e.objid = object AND e.deptype = 'e') AS is_member
FROM needed WHERE object >= 16384 ORDER BY object
"""
TABLE = """
SELECT c.oid::bigint AS oid, c.relkind::text AS kind, c.relpersistence::text AS persistence,
       c.relrowsecurity AS has_row_security, c.relhasrules AS has_rules, c.reloftype <> 0 AS is_typed,
       EXISTS (SELECT FROM pg_inherits i WHERE c.oid IN (i.inhrelid, i.inhparent)) AS inherits,
       array_to_string(c.reloptions, ', ') AS options, pg_get_userbyid(c.relowner) AS owner, n.nspname AS schema,
       c.relreplident::text AS identity, obj_description(c.oid, 'pg_class') AS comment
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = to_regclass($1)
"""
COLUMNS = """
SELECT a.attname AS name, format_type(a.atttypid, a.atttypmod) AS type, a.attnotnull AS not_null,
       CASE WHEN a.attcollation NOT IN (0, t.typcollation) THEN a.attcollation::regcollation::text END AS collation,
       a.attidentity::text AS identity, a.attgenerated::text AS generated, pg_get_expr(d.adbin, d.adrelid) AS value,
       pg_get_serial_sequence(a.attrelid::regclass::text, a.attname) AS sequence,
       CASE WHEN a.attstorage <> t.typstorage THEN a.attstorage::text END AS storage,
       col_description(a.attrelid, a.attnum) AS comment
FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE a.attrelid = $1::bigint::oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
"""
SEQUENCE = """
SELECT s.seqrelid::regclass::text AS name, s.seqtypid::regtype::text AS type, s.seqstart AS start,
       s.seqincrement AS increment, s.seqmin AS low, s.seqmax AS high, s.seqcache AS cache, s.seqcycle AS cycles,
       pg_get_userbyid(c.relowner) AS owner,
       (SELECT format('%s.%I', d.refobjid::regclass, a.attname) FROM pg_depend d
        JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
        WHERE d.classid = 'pg_class'::regclass AND d.objid = s.seqrelid AND d.deptype = 'a') AS owned_by
FROM pg_sequence s JOIN pg_class c ON c.oid = s.seqrelid WHERE s.seqrelid = $1::bigint::oid
"""
FOREIGN_KEYS = 8
AFTER = """
SELECT place, sql FROM (
  SELECT CASE k.contype WHEN 'p' THEN 1 WHEN 'u' THEN 2 WHEN 'x' THEN 3 WHEN 'c' THEN 5 ELSE 8 END AS place,
         k.conname::text AS name,
         format('ALTER TABLE %s ADD CONSTRAINT %I %s', k.conrelid::regclass, k.conname, pg_get_constraintdef(k.oid))
         || coalesce(format(E';\\nCOMMENT ON CONSTRAINT %I ON %s IS %L', k.conname, k.conrelid::regclass,
                            obj_description(k.oid, 'pg_constraint')), '') AS sql
  FROM pg_constraint k WHERE k.conrelid = $1::bigint::oid AND k.contype IN ('p', 'u', 'x', 'c', 'f')
  UNION ALL
  SELECT 4, x.indexrelid::regclass::text, pg_get_indexdef(x.indexrelid)
  FROM pg_index x WHERE x.indrelid = $1::bigint::oid AND x.indisvalid
    AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = x.indexrelid AND k.contype IN ('p', 'u', 'x'))
  UNION ALL
  SELECT 6, oid::text, pg_get_statisticsobjdef(oid) FROM pg_statistic_ext WHERE stxrelid = $1::bigint::oid
  UNION ALL
  SELECT 7, '', format('ALTER TABLE %s REPLICA IDENTITY USING INDEX %I', x.indrelid::regclass, i.relname)
  FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid WHERE x.indrelid = $1::bigint::oid AND x.indisreplident
  UNION ALL
  SELECT 9, t.tgname, pg_get_triggerdef(t.oid) || CASE t.tgenabled WHEN 'O' THEN '' ELSE
           format(E';\\nALTER TABLE %s %s TRIGGER %I', t.tgrelid::regclass,
             CASE t.tgenabled WHEN 'D' THEN 'DISABLE' WHEN 'R' THEN 'ENABLE REPLICA' ELSE 'ENABLE ALWAYS' END,
             t.tgname) END
  FROM pg_trigger t WHERE t.tgrelid = $1::bigint::oid AND NOT t.tgisinternal AND t.tgname NOT LIKE 'foreshard\\_%'
) AS made ORDER BY place, name
"""
RIGHTS = """
SELECT format('%s ON %s TO %s%s', g.privilege_type || coalesce(' (' || quote_ident(a.attname) || ')', ''),
         c.oid::regclass, CASE g.grantee WHEN 0 THEN 'PUBLIC' ELSE g.grantee::regrole::text END,
         CASE WHEN g.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END) AS granted
FROM pg_class c CROSS JOIN LATERAL (
  SELECT NULL::name AS attname, c.relacl AS acl WHERE c.relacl IS NOT NULL
  UNION ALL SELECT a.attname, a.attacl FROM pg_attribute a
  WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attacl IS NOT NULL) AS a
CROSS JOIN aclexplode(a.acl) AS g
WHERE c.oid = $1::bigint::oid ORDER BY 1
"""
FUNCTION = """
SELECT p.oid::regprocedure::text AS name, pg_get_functiondef(p.oid) AS sql, p.proowner::regrole::text AS owner,
       (SELECT array_agg(CASE g.grantee WHEN 0 THEN 'PUBLIC' ELSE g.grantee::regrole::text END)
        FROM aclexplode(p.proacl) g WHERE g.privilege_type = 'EXECUTE') AS callers
FROM pg_proc p WHERE p.oid = $1::bigint::oid AND p.prokind IN ('f', 'p', 'w')
"""
TYPE = """
SELECT format('type %s.%s', n.nspname, t.typname) AS label, t.typelem <> 0 AS is_array,
       t.typrelid <> 0 AND (SELECT c.relkind <> 'c' FROM pg_class c WHERE c.oid = t.typrelid) AS is_row,
       t.oid::regtype::text AS name
FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace WHERE t.oid = $1::bigint::oid
"""
LABEL = {
    "pg_collation": "SELECT format('collation %s.%s', n.nspname, c.collname) FROM pg_collation c "
    "JOIN pg_namespace n ON n.oid = c.collnamespace WHERE c.oid = $1::bigint::oid",
    "pg_extension": "SELECT 'extension ' || extname FROM pg_extension WHERE oid = $1::bigint::oid",
}
STATE = "SELECT format('SELECT setval(%L, %s, %L)', {name}, last_value, is_called) FROM {sequence}"


class Structure(msgspec.Struct, frozen=True, kw_only=True):
    """One table's SQL. Every name in it is qualified."""

    table: str
    before_rows: tuple[tuple[str, str, str], ...]  # label, SQL condition: it is there, SQL
    after_rows: tuple[str, ...]
    foreign_keys: tuple[str, ...]  # and triggers: when all tables are there
    states: tuple[str, ...]  # of its sequences


class Unlike(Exception):
    """What about a table cannot be made the same on another shard."""


async def read_structure(connection: Connection, table: str) -> Structure:
    """The structure of a table (quoted name). Unlike when it cannot be told. The transaction stays as it was."""
    await connection.execute("SAVEPOINT structure; SET LOCAL search_path = pg_catalog")
    try:
        row = await connection.fetchrow(TABLE, table)
        assert row is not None
        _check_plain(row)
        columns = await connection.fetch(COLUMNS, row["oid"])
        needed = await _read_needed(connection, row, columns)
        after = await connection.fetch(AFTER, row["oid"])
        states = [
            await connection.fetchval(STATE.format(name=quote_text(each), sequence=each))
            for each in needed.sequences
        ]  # fmt: skip
        return Structure(
            table=table,
            before_rows=(*needed.objects, _table_object(table, row, columns)),
            after_rows=(
                *needed.owned,
                *_settings(table, row, columns),
                *[each["sql"] for each in after if each["place"] < FOREIGN_KEYS],
                *_rights(table, row["owner"], await connection.fetch(RIGHTS, row["oid"])),
            ),
            foreign_keys=tuple(each["sql"] for each in after if each["place"] >= FOREIGN_KEYS),
            states=tuple(states),
        )
    finally:
        await connection.execute("ROLLBACK TO structure; RELEASE structure")


def _check_plain(row: Any) -> None:
    """Refuse what SQL made of the catalogs would not be the same."""
    if row["kind"] == "p" or row["inherits"]:
        raise Unlike(f"it has partitions or inherits: {REMEDY}")
    if row["has_row_security"]:
        raise Unlike(f"it has row security: {REMEDY}")
    if row["has_rules"]:
        raise Unlike(f"it has rules: {REMEDY}")
    if row["is_typed"] or row["kind"] != "r":
        raise Unlike(f"it is not an ordinary table: {REMEDY}")


class _Needed(msgspec.Struct):
    """What has to be there before the table, and what the table then owns of it."""

    objects: list[tuple[str, str, str]] = []
    owned: list[str] = []
    sequences: list[str] = []  # quoted names, identities included


async def _read_needed(connection: Connection, table: Any, columns: list[Any]) -> _Needed:
    found = _Needed()
    known: dict[str, str] = {}
    for sql in (EXTENSIONS, COLLATIONS, ENUMS, COMPOSITES, DOMAINS):
        known |= {row["label"]: row["sql"] for row in await connection.fetch(sql)}
    for row in await connection.fetch(SCHEMAS):
        name = row["label"].partition(" ")[2]
        found.objects.append((row["label"], f"to_regnamespace({quote_text(quote_name(name))}) IS NOT NULL", row["sql"]))
    for row in await connection.fetch(NEEDED, table["oid"]):
        if row["is_member"]:
            continue  # comes with its extension
        if row["class"] == "pg_proc":
            await _add_function(connection, found, row["oid"])
        elif row["class"] == "pg_type":
            await _add_type(connection, found, row["oid"], known)
        elif row["class"] in LABEL:
            label = await connection.fetchval(LABEL[row["class"]], row["oid"])
            name = label.partition(" ")[2]
            there = f"EXISTS (SELECT FROM pg_extension WHERE extname = {quote_text(name)})"
            if row["class"] == "pg_collation":
                there = f"to_regcollation({quote_text(_quoted(name))}) IS NOT NULL"
            found.objects.append((label, there, known[label]))
        elif row["class"] == "pg_class":
            await _add_sequence(connection, found, row["oid"])
    found.sequences += [each["sequence"] for each in columns if each["identity"] and each["sequence"]]
    used = {label.partition(" ")[2] for label, _, _ in found.objects if not label.startswith("schema ")}
    prefixes = {f"{table['schema']}."} | {f"{name.partition('.')[0].strip(chr(34))}." for name in used}
    found.objects = [each for each in found.objects if _is_used(each[0], prefixes)]
    return found


def _is_used(label: str, prefixes: set[str]) -> bool:
    """Whether it is no schema, or one that something else lies in."""
    kind, _, name = label.partition(" ")
    return kind != "schema" or f"{name}." in prefixes


async def _add_function(connection: Connection, found: _Needed, oid: int) -> None:
    row = await connection.fetchrow(FUNCTION, oid)
    if row is None:
        raise Unlike(f"it needs an aggregate of your own: {REMEDY}")
    lines = [row["sql"].rstrip(), f"ALTER FUNCTION {row['name']} OWNER TO {row['owner']}"]
    if row["callers"] is not None:
        lines.append(f"REVOKE ALL ON FUNCTION {row['name']} FROM PUBLIC")
        lines += [f"GRANT EXECUTE ON FUNCTION {row['name']} TO {caller}" for caller in row["callers"]]
    there = f"to_regprocedure({quote_text(row['name'])}) IS NOT NULL"
    found.objects.append((f"function {row['name']}", there, ";\n".join(lines) + ";"))


async def _add_type(connection: Connection, found: _Needed, oid: int, known: dict[str, str]) -> None:
    row = await connection.fetchrow(TYPE, oid)
    assert row is not None
    if row["is_array"] or row["is_row"]:
        return
    if row["label"] not in known:
        raise Unlike(f"it needs the type {row['name']}, which apply cannot make: {REMEDY}")
    found.objects.append((row["label"], f"to_regtype({quote_text(row['name'])}) IS NOT NULL", known[row["label"]]))


async def _add_sequence(connection: Connection, found: _Needed, oid: int) -> None:
    """A sequence that a default names; an identity's comes with its column."""
    row = await connection.fetchrow(SEQUENCE, oid)
    if row is None:
        return
    name = row["name"]
    sql = (
        f"CREATE SEQUENCE {name} AS {row['type']} {_sequence_options(row)};\n"
        f"ALTER SEQUENCE {name} OWNER TO {quote_name(row['owner'])};"
    )
    found.objects.append((f"sequence {name}", f"to_regclass({quote_text(name)}) IS NOT NULL", sql))
    found.sequences.append(name)
    if row["owned_by"]:
        # PostgreSQL wants a sequence's owner to be the table's: the table has it by now, or gets it below.
        found.owned.append(f"ALTER SEQUENCE {name} OWNED BY {row['owned_by']}")
    for right in await connection.fetch(RIGHTS, oid):
        found.owned.append(f"GRANT {right['granted'].replace(' ON ', ' ON SEQUENCE ', 1)}")


def _sequence_options(row: Any) -> str:
    cycle = "CYCLE" if row["cycles"] else "NO CYCLE"
    return (
        f"START {row['start']} INCREMENT {row['increment']} MINVALUE {row['low']} MAXVALUE {row['high']} "
        f"CACHE {row['cache']} {cycle}"
    )


def _table_object(table: str, row: Any, columns: list[Any]) -> tuple[str, str, str]:
    lines = ",\n  ".join(_column(column) for column in columns)
    kind = "UNLOGGED TABLE" if row["persistence"] == "u" else "TABLE"
    options = f" WITH ({row['options']})" if row["options"] else ""
    sql = f"CREATE {kind} {table} (\n  {lines}\n){options};\nALTER TABLE {table} OWNER TO {quote_name(row['owner'])};"
    return f"table {table}", f"to_regclass({quote_text(table)}) IS NOT NULL", sql


def _column(column: Any) -> str:
    parts = [quote_name(column["name"]), column["type"]]
    if column["collation"]:
        parts.append(f"COLLATE {column['collation']}")
    if column["generated"]:
        parts.append(f"GENERATED ALWAYS AS ({column['value']}) {'VIRTUAL' if column['generated'] == 'v' else 'STORED'}")
    elif column["identity"]:
        kind = "ALWAYS" if column["identity"] == "a" else "BY DEFAULT"
        parts.append(f"GENERATED {kind} AS IDENTITY (SEQUENCE NAME {column['sequence']})")
    elif column["value"] is not None:
        parts.append(f"DEFAULT {column['value']}")
    if column["not_null"]:
        parts.append("NOT NULL")
    return " ".join(parts)


def _settings(table: str, row: Any, columns: list[Any]) -> list[str]:
    names = {"p": "PLAIN", "e": "EXTERNAL", "m": "MAIN", "x": "EXTENDED"}
    found = [
        f"ALTER TABLE {table} ALTER COLUMN {quote_name(column['name'])} SET STORAGE {names[column['storage']]}"
        for column in columns
        if column["storage"]
    ]
    if row["identity"] in ("f", "n"):
        found.append(f"ALTER TABLE {table} REPLICA IDENTITY {'FULL' if row['identity'] == 'f' else 'NOTHING'}")
    if row["comment"] is not None:
        found.append(f"COMMENT ON TABLE {table} IS {quote_text(row['comment'])}")
    for column in columns:
        if column["comment"] is not None:
            place = f"{table}.{quote_name(column['name'])}"
            found.append(f"COMMENT ON COLUMN {place} IS {quote_text(column['comment'])}")
    return found


def _rights(table: str, owner: str, granted: list[Any]) -> list[str]:
    if not granted:
        return []
    revoked = f"REVOKE ALL ON {table} FROM PUBLIC, {quote_name(owner)}"
    return [revoked, *(f"GRANT {row['granted']}" for row in granted)]


def _quoted(name: str) -> str:
    return ".".join(quote_name(part) for part in name.split(".", 1))
