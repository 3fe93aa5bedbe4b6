"""What the query node should hold, as SQL: read from the default shard, where every schema object is.

A table is an empty parent with the primary key of the original, so that `GROUP BY key` means there what it means on one
PostgreSQL, and a foreign table below it for each shard that has rows: all shards for sharded tables, the default shard
for the others. Views over declared tables are made again; other views are read where they are. Names, columns, types
and grants of SELECT are those of the default shard.

An object that cannot be made (its type is written in C, it needs something that is not here) is left out: statements
that name it stay refused. The node holds no data, so it is made anew as a whole when anything has changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from foreshard.proxy.catalog import Catalog
from foreshard.proxy.config import Config, ShardConfig
from foreshard.proxy.control.introspect import Connection
from foreshard.proxy.control.steps import Step
from foreshard.proxy.routing.query import may_run_there
from foreshard.proxy.triggers.capture import quote_name, quote_text

FETCH_ROWS = 1000  # that a foreign scan asks for at a time; chosen, not measured
SERVER_OPTIONS = {
    "updatable": "false",
    "truncatable": "false",
    "async_capable": "true",
    "use_remote_estimate": "true",
    "fetch_size": str(FETCH_ROWS),
}
NAME_SHOWN_MAX = 40  # characters of a table's name that its foreign tables have in theirs
OURS = "n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'foreshard')"

# Every row is one object: its label, and the SQL that makes it. Names are qualified, for search_path is empty.
SCHEMAS = f"""
SELECT 'schema ' || n.nspname AS label,
       format('CREATE SCHEMA IF NOT EXISTS %I;', n.nspname) || coalesce((
         SELECT string_agg(format(E'\\nGRANT USAGE ON SCHEMA %I TO %s;', n.nspname, g.role), '' ORDER BY g.role)
         FROM (SELECT DISTINCT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END AS role
               FROM aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) a
               WHERE a.privilege_type = 'USAGE') AS g), '') AS sql
FROM pg_namespace n WHERE {OURS} ORDER BY n.nspname
"""
EXTENSIONS = """
SELECT 'extension ' || e.extname AS label,
       format('CREATE EXTENSION IF NOT EXISTS %I SCHEMA %I VERSION %L;', e.extname, n.nspname, e.extversion) AS sql
FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
WHERE e.extname NOT IN ('plpgsql', 'postgres_fdw') ORDER BY e.extname
"""
NO_EXTENSION = "NOT EXISTS (SELECT FROM pg_depend x WHERE x.classid = {0} AND x.objid = {1} AND x.deptype = 'e')"
ENUMS = f"""
SELECT format('type %s.%s', n.nspname, t.typname) AS label,
       format('CREATE TYPE %I.%I AS ENUM (%s);', n.nspname, t.typname,
         (SELECT string_agg(quote_literal(e.enumlabel), ', ' ORDER BY e.enumsortorder)
          FROM pg_enum e WHERE e.enumtypid = t.oid)) AS sql
FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
WHERE t.typtype = 'e' AND {OURS} AND {NO_EXTENSION.format("'pg_type'::regclass", "t.oid")} ORDER BY 1
"""
COLUMN = """format('%I %s%s', a.attname, format_type(a.atttypid, a.atttypmod),
    CASE WHEN a.attcollation NOT IN (0, ty.typcollation) THEN ' COLLATE ' || a.attcollation::regcollation::text
    ELSE '' END)"""
COMPOSITES = f"""
SELECT format('type %s.%s', n.nspname, c.relname) AS label,
       format('CREATE TYPE %I.%I AS (%s);', n.nspname, c.relname, (
         SELECT string_agg({COLUMN}, ', ' ORDER BY a.attnum)
         FROM pg_attribute a JOIN pg_type ty ON ty.oid = a.atttypid
         WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped)) AS sql
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'c' AND {OURS} AND {NO_EXTENSION.format("'pg_class'::regclass", "c.oid")} ORDER BY 1
"""
DOMAINS = f"""
SELECT format('type %s.%s', n.nspname, t.typname) AS label,
       format('CREATE DOMAIN %I.%I AS %s%s%s%s;', n.nspname, t.typname, format_type(t.typbasetype, t.typtypmod),
         CASE WHEN t.typcollation NOT IN (0, b.typcollation) THEN ' COLLATE ' || t.typcollation::regcollation::text
           ELSE '' END,
         CASE WHEN t.typnotnull THEN ' NOT NULL' ELSE '' END,
         (SELECT string_agg(format(' CONSTRAINT %I %s', k.conname, pg_get_constraintdef(k.oid)), '' ORDER BY k.conname)
          FROM pg_constraint k WHERE k.contypid = t.oid AND k.contype = 'c')) AS sql
FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace JOIN pg_type b ON b.oid = t.typbasetype
WHERE t.typtype = 'd' AND {OURS} AND {NO_EXTENSION.format("'pg_type'::regclass", "t.oid")} ORDER BY 1
"""
COLLATIONS = f"""
SELECT format('collation %s.%s', n.nspname, c.collname) AS label,
       format('CREATE COLLATION %I.%I (PROVIDER = %s, DETERMINISTIC = %s, %s);', n.nspname, c.collname,
         CASE c.collprovider WHEN 'i' THEN 'icu' WHEN 'b' THEN 'builtin' ELSE 'libc' END, c.collisdeterministic,
         CASE WHEN c.collprovider = 'c'
           THEN format('LC_COLLATE = %L, LC_CTYPE = %L', c.collcollate, c.collctype)
           ELSE format('LOCALE = %L', coalesce(to_jsonb(c) ->> 'colllocale', to_jsonb(c) ->> 'colliculocale')) END
       ) AS sql
FROM pg_collation c JOIN pg_namespace n ON n.oid = c.collnamespace WHERE {OURS} ORDER BY 1
"""
RELATIONS = f"""
SELECT n.nspname AS schema, c.relname AS name, c.relkind::text AS kind, c.relrowsecurity AS has_row_security,
       pg_get_userbyid(c.relowner) AS owner, coalesce(array_to_string(c.reloptions, ', '), '') AS options,
       (SELECT array_agg({COLUMN} ORDER BY a.attnum)
        FROM pg_attribute a JOIN pg_type ty ON ty.oid = a.atttypid
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) AS columns,
       (SELECT array_agg(quote_ident(a.attname) ORDER BY k.place)
        FROM pg_constraint p CROSS JOIN unnest(p.conkey) WITH ORDINALITY AS k(number, place)
        JOIN pg_attribute a ON a.attrelid = p.conrelid AND a.attnum = k.number
        WHERE p.conrelid = c.oid AND p.contype = 'p' AND NOT p.condeferrable) AS key,
       (SELECT array_agg(DISTINCT CASE g.grantee WHEN 0 THEN 'PUBLIC' ELSE g.grantee::regrole::text END)
        FROM aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) g
        WHERE g.privilege_type = 'SELECT') AS readers,
       (SELECT array_agg(DISTINCT format('%I) ON %%s TO %s', a.attname,
                  CASE g.grantee WHEN 0 THEN 'PUBLIC' ELSE g.grantee::regrole::text END))
        FROM pg_attribute a CROSS JOIN aclexplode(a.attacl) g
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND g.privilege_type = 'SELECT')
       AS column_readers,
       CASE WHEN c.relkind = 'v' THEN pg_get_viewdef(c.oid) END AS definition
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND c.relpersistence <> 't' AND {OURS}
  AND {NO_EXTENSION.format("'pg_class'::regclass", "c.oid")}
ORDER BY n.nspname, c.relname
"""
# Functions that only read, and of whose users no one was excluded.
FUNCTIONS = f"""
SELECT format('function %s.%s', n.nspname, p.oid::regprocedure) AS label, p.prosrc AS body,
       pg_get_functiondef(p.oid) AS definition, p.oid::regprocedure::text AS signature,
       pg_get_userbyid(p.proowner) AS owner
FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace JOIN pg_language l ON l.oid = p.prolang
WHERE p.prokind = 'f' AND p.provolatile IN ('i', 's') AND l.lanname IN ('sql', 'plpgsql') AND p.proacl IS NULL
  AND p.prorettype NOT IN ('trigger'::regtype, 'event_trigger'::regtype) AND {OURS}
  AND {NO_EXTENSION.format("'pg_proc'::regclass", "p.oid")}
ORDER BY 1
"""
# Every function by its name, to tell which names have others than those.
FUNCTION_NAMES = f"""
SELECT n.nspname || '.' || p.proname AS name, format('function %s.%s', n.nspname, p.oid::regprocedure) AS label
FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE {OURS}
"""
SETTINGS = """
SELECT split_part(item, '=', 1) AS name, substr(item, strpos(item, '=') + 1) AS value
FROM pg_db_role_setting s CROSS JOIN unnest(s.setconfig) AS item
WHERE s.setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database()) AND s.setrole = 0
ORDER BY 1
"""
LIST_SETTINGS = ("search_path", "temp_tablespaces", "local_preload_libraries", "session_preload_libraries")

# Whatever an earlier apply made goes; nothing here is data.
CLEARING = f"""\
DO $clear$
DECLARE found record;
BEGIN
  FOR found IN SELECT srvname FROM pg_foreign_server WHERE srvname LIKE 'foreshard %' LOOP
    EXECUTE format('DROP SERVER %I CASCADE', found.srvname);
  END LOOP;
  FOR found IN SELECT extname FROM pg_extension WHERE extname NOT IN ('plpgsql', 'postgres_fdw') LOOP
    EXECUTE format('DROP EXTENSION IF EXISTS %I CASCADE', found.extname);
  END LOOP;
  FOR found IN SELECT n.nspname FROM pg_namespace n WHERE {OURS} LOOP
    EXECUTE format('DROP SCHEMA %I CASCADE', found.nspname);
  END LOOP;
END $clear$;
"""


async def query_node_steps(config: Config, catalog: Catalog, shard: Connection, database: str) -> list[Step]:
    """Everything the query node should have, in the order in which it is made. `shard` is the default shard's.

    The transaction on the shard is left as it was.
    """
    await shard.execute("SAVEPOINT query_node; SET LOCAL search_path = pg_catalog")
    try:
        found = [
            Step("clearing", CLEARING),
            await _settings_step(shard, database),
            *_server_steps(config),
            *_snapshot_steps(config),
        ]
        for sql in (SCHEMAS, EXTENSIONS, COLLATIONS, ENUMS, COMPOSITES, DOMAINS):
            found += [Step(row["label"], row["sql"]) for row in await shard.fetch(sql)]
        for number, row in enumerate(await shard.fetch(RELATIONS)):
            step = relation_step(config, catalog, row, number)
            if step is not None:
                found.append(step)
        found += [
            Step(
                row["label"],
                f"{row['definition'].rstrip()};\n"
                f"ALTER FUNCTION {row['signature']} OWNER TO {quote_name(row['owner'])};",
            )
            for row in await shard.fetch(FUNCTIONS)
            if may_run_there(row["definition"])
        ]
        return found
    finally:
        await shard.execute("ROLLBACK TO query_node; RELEASE query_node")


async def read_function_names(shard: Connection) -> dict[str, set[str]]:
    """The labels of all functions of one name, as the steps have them."""
    found: dict[str, set[str]] = {}
    await shard.execute("SAVEPOINT query_node; SET LOCAL search_path = pg_catalog")
    for row in await shard.fetch(FUNCTION_NAMES):
        found.setdefault(row["name"], set()).add(row["label"])
    await shard.execute("ROLLBACK TO query_node; RELEASE query_node")
    return found


async def _settings_step(shard: Connection, database: str) -> Step:
    """The settings of the default shard's database; every transaction is read-only unless it asks for more."""
    name = quote_name(database)
    lines = [f"ALTER DATABASE {name} RESET ALL;"]
    for row in await shard.fetch(SETTINGS):
        value = row["value"] if row["name"] in LIST_SETTINGS else quote_text(row["value"])
        lines.append(f"ALTER DATABASE {name} SET {row['name']} = {value or quote_text('')};")
    lines.append(f"ALTER DATABASE {name} SET default_transaction_read_only = on;")
    return Step("database settings", "\n".join(lines))


def _server_steps(config: Config) -> list[Step]:
    """postgres_fdw, and a server with a user mapping for each shard."""
    found = [Step("extension postgres_fdw", "CREATE EXTENSION IF NOT EXISTS postgres_fdw WITH SCHEMA foreshard;")]
    for shard in config.shards:
        name = server_name(shard)
        server = f"CREATE SERVER {name} FOREIGN DATA WRAPPER postgres_fdw OPTIONS ({_server_options(shard)});"
        parts = urlsplit(shard.dsn)
        user = {"user": unquote(parts.username or "postgres")}
        if parts.password is not None:
            user["password"] = unquote(parts.password)
        mapping = f"CREATE USER MAPPING FOR PUBLIC SERVER {name} OPTIONS ({{}});"
        shown = mapping.format(options({key: "..." if key == "password" else value for key, value in user.items()}))
        # Without a password a mapping serves those who are no superusers only where a superuser has said so.
        trust = (
            "DO $$ BEGIN IF (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN\n"
            f"  ALTER USER MAPPING FOR PUBLIC SERVER {name} OPTIONS (ADD password_required 'false');\nEND IF; END $$;"
        )
        found.append(
            Step(
                f"server {shard.name}",
                "\n".join((server, mapping.format(options(user)), trust)),
                f"EXISTS (SELECT FROM pg_foreign_server WHERE srvname = {quote_text('foreshard ' + shard.name)})",
                shown="\n".join((server, shown, trust)),
            )
        )
    return found


def _snapshot_steps(config: Config) -> list[Step]:
    """What tells the names of the snapshots that the node's sessions have on the shards; see proxy/wire/snapshots.

    Estimates are not asked for, and no one but the relay can name the tables.
    """
    found = []
    for index, shard in enumerate(config.shards):
        place = f"foreshard.snapshot_{index}"
        remote = options({"schema_name": "foreshard", "table_name": "snapshot", "use_remote_estimate": "false"})
        sql = (
            f"CREATE FOREIGN TABLE {place} (id text) SERVER {server_name(shard)} OPTIONS ({remote});\n"
            f"GRANT SELECT ON {place} TO PUBLIC;"
        )
        found.append(Step(f"snapshot of {shard.name}", sql, f"to_regclass({quote_text(place)}) IS NOT NULL"))
    return found


def server_name(shard: ShardConfig) -> str:
    """The foreign server's name, quoted."""
    return quote_name(f"foreshard {shard.name}")


def _server_options(shard: ShardConfig) -> str:
    parts = urlsplit(shard.dsn)
    given = dict(parse_qsl(parts.query))
    found = {
        **{name: value for name, value in given.items() if name.startswith("ssl")},
        "host": unquote(parts.hostname or given.get("host", "127.0.0.1")),
        "port": str(parts.port or given.get("port", 5432)),
        "dbname": unquote(parts.path.lstrip("/")),
        "application_name": "foreshard query node",
    }
    return options({**found, **SERVER_OPTIONS})


def options(values: dict[str, str]) -> str:
    """Options of foreign servers, tables and user mappings."""
    return ", ".join(f"{name} {quote_text(value)}" for name, value in values.items())


def relation_step(config: Config, catalog: Catalog, row: Any, number: int) -> Step | None:
    """One table or view; None for what the node must not have."""
    qualified = f"{row['schema']}.{row['name']}"
    if row["has_row_security"] or not row["columns"]:
        return None  # its rows depend on who reads them
    table = catalog.tables.get(qualified)
    place = f"{quote_name(row['schema'])}.{quote_name(row['name'])}"
    if qualified in catalog.views:
        may_be = row["kind"] == "v" and may_run_there(row["definition"])
        return _view_step(row, qualified, place) if may_be else None
    shards = config.shards if table is not None and table.is_sharded else config.shards[:1]
    if row["kind"] in ("r", "p"):
        sql = _table_sql(row, place, shards, number)
    else:
        sql = (
            f"CREATE FOREIGN TABLE {place} (\n  {_listed(row['columns'])}\n)\n"
            f"SERVER {server_name(shards[0])} OPTIONS ({_remote(row)});"
        )
    return Step(f"relation {qualified}", "\n".join((sql, *_grants(row, place))))


def _table_sql(row: Any, place: str, shards: Sequence[ShardConfig], number: int) -> str:
    """The empty parent and its foreign tables."""
    items = list(row["columns"])
    if row["key"]:
        items.append(f"PRIMARY KEY ({', '.join(row['key'])})")
    items.append("CONSTRAINT foreshard_no_rows CHECK (false) NO INHERIT")
    lines = [f"CREATE TABLE {place} (\n  {_listed(items)}\n);"]
    for index, shard in enumerate(shards):
        name = quote_name(f"{row['name'][:NAME_SHOWN_MAX]}_{number}_{index}")
        lines.append(
            f"CREATE FOREIGN TABLE foreshard.{name} () INHERITS ({place})\n"
            f"  SERVER {server_name(shard)} OPTIONS ({_remote(row)});"
        )
    return "\n".join(lines)


def _view_step(row: Any, qualified: str, place: str) -> Step:
    """A view over declared tables."""
    given = f" WITH ({row['options']})" if row["options"] else ""
    lines = [f"CREATE VIEW {place}{given} AS\n{row['definition'].strip()}"]
    owner = quote_name(row["owner"])
    lines.append(f"ALTER VIEW {place} OWNER TO {owner};")
    return Step(f"relation {qualified}", "\n".join((*lines, *_grants(row, place))))


def _remote(row: Any) -> str:
    return options({"schema_name": row["schema"], "table_name": row["name"]})


def _listed(items: Iterable[str]) -> str:
    return ",\n  ".join(items)


def _grants(row: Any, place: str) -> list[str]:
    """Who may read it."""
    whole = [f"GRANT SELECT ON {place} TO {role};" for role in sorted(row["readers"] or ())]
    return whole + [
        f"GRANT SELECT ({form.replace(' ON %s TO ', f' ON {place} TO ', 1)};" for form in row["column_readers"] or ()
    ]
