"""The query node: a database whose tables are foreign tables over all shards, so that PostgreSQL itself answers reads
that neither one shard nor the merging of shards' rows can answer.

`plan` and `apply` treat it as one piece: what it should hold is known from the default shard (query_schema), and when
the digest of any object differs, or one is missing, it is made anew in one transaction. Without a `query_node` in the
configuration there is one wherever the first shard's user may make it; where it may not, a note says why.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import quote, urlsplit, urlunsplit

import asyncpg

from foreshard.proxy.catalog import Catalog
from foreshard.proxy.config import Config, QueryNodeConfig
from foreshard.proxy.config.kinds import NAME_BYTES_MAX
from foreshard.proxy.control.connect import connected, described, shown_dsn
from foreshard.proxy.control.introspect import Connection
from foreshard.proxy.control.query_schema import query_node_steps
from foreshard.proxy.control.steps import APPLIED, SCHEMA, Step, read_applied, record_steps
from foreshard.proxy.errors import ConfigError, ForeshardError

NAME = "query node"
SUFFIX = "_foreshard_query"
LOCK_TIMEOUT = "10s"  # apply waits this long for statements that run there, then gives up without a change
MAKE_LOCK = 0x71756572  # advisory lock of whoever makes it; the bytes of "quer"
CREATION = "database"
LEFT_OUT = "left out: "  # before the label of an object that could not be made
# Objects of the node's own, without which there is none; all others may be left out.
NEEDED = ("clearing", "schema foreshard", "table foreshard.applied", "database settings", "extension postgres_fdw")
NEEDED_PREFIXES = ("server ", "snapshot ")
MAY_MAKE = """
SELECT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) AS is_superuser,
       EXISTS (SELECT FROM pg_available_extensions WHERE name = 'postgres_fdw') AS has_fdw,
       EXISTS (SELECT FROM pg_database WHERE datname = $1) AS is_there
"""
CREATE_DATABASE = """
SELECT format('CREATE DATABASE %I TEMPLATE template0 ENCODING %L LC_COLLATE %L LC_CTYPE %L', $1::text,
              pg_encoding_to_char(d.encoding), d.datcollate, d.datctype) ||
       CASE to_jsonb(d) ->> 'datlocprovider'
         WHEN 'i' THEN format(' LOCALE_PROVIDER icu ICU_LOCALE %L', coalesce(to_jsonb(d) ->> 'datlocale',
                                                                             to_jsonb(d) ->> 'daticulocale'))
         WHEN 'b' THEN format(' LOCALE_PROVIDER builtin BUILTIN_LOCALE %L', to_jsonb(d) ->> 'datlocale')
         ELSE '' END
FROM pg_database d WHERE datname = current_database()
"""
FOREIGN_OBJECTS = """
SELECT n.nspname || '.' || c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND to_regclass('foreshard.applied') IS NULL LIMIT 1
"""
MISSING = """
SELECT label FROM unnest($1::text[]) AS label
WHERE label LIKE 'relation %' AND NOT EXISTS (
  SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  WHERE 'relation ' || n.nspname || '.' || c.relname = label)
"""


@dataclass
class NodeWork:
    """The query node as `plan` and `apply` see it. Unlike a shard's work it holds no transaction open."""

    place: str
    dsn: str
    server_dsn: str  # of a database on the same server, from where it can be created
    steps: list[Step]
    creation: Step | None  # CREATE DATABASE, when it is not there
    all_lacking: list[Step] = field(default_factory=list)
    name: str = NAME


def query_node_dsn(config: Config) -> str | None:
    """Where the query node is, or would be; None when there is none: switched off, no table declared, or one shard."""
    chosen = config.query_node or QueryNodeConfig()
    if not chosen.is_on or not config.tables or len(config.shards) == 1:
        return None
    if chosen.dsn is not None:
        return chosen.dsn
    first = database_of(config.shards[0].dsn)
    kept = first.encode()[: NAME_BYTES_MAX - len(SUFFIX)].decode(errors="ignore")
    return with_database(config.shards[0].dsn, chosen.database or kept + SUFFIX)


def database_of(dsn: str) -> str:
    """The database that a DSN names."""
    parts = urlsplit(dsn)
    return parts.path.lstrip("/") or parts.username or ""


def with_database(dsn: str, database: str) -> str:
    """The DSN with another database of the same server."""
    return urlunsplit(urlsplit(dsn)._replace(path="/" + quote(database, safe="")))


async def plan_query_node(config: Config, catalog: Catalog, shard: Connection) -> tuple[NodeWork | None, str]:
    """What the query node lacks; or None, with a note when it cannot be made and nobody has asked for one."""
    dsn = query_node_dsn(config)
    if dsn is None:
        return None, ""
    database = database_of(dsn)
    is_own_server = config.query_node is not None and config.query_node.dsn is not None
    server_dsn = with_database(dsn, "postgres") if is_own_server else config.shards[0].dsn
    if not is_own_server:
        row = await shard.fetchrow(MAY_MAKE, database)
        assert row is not None
        if (not row["is_superuser"] and not row["is_there"]) or not row["has_fdw"]:
            problem = (
                "postgres_fdw is not installed"
                if not row["has_fdw"]
                else "its user is no superuser, who must make postgres_fdw"
            )
            if config.query_node is not None:
                raise ConfigError([f"{config.path}: query_node: cannot be made on the first shard's server: {problem}"])
            return None, f"there is no query node: {problem}; reads that only it could answer are refused"
    steps = [SCHEMA, APPLIED, *await query_node_steps(config, catalog, shard, database)]
    steps.insert(0, steps.pop(2))  # clearing comes first
    work = NodeWork(shown_dsn(dsn), dsn, server_dsn, steps, None)
    try:
        connection: Connection = await asyncpg.connect(dsn, timeout=10)
    except asyncpg.InvalidCatalogNameError:
        work.creation = Step(CREATION, await shard.fetchval(CREATE_DATABASE, database) + ";")
        work.all_lacking = [work.creation, *steps]
        return work, ""
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise ForeshardError(f"{NAME} ({work.place}): cannot connect: {described(error)}") from error
    try:
        await _find_lacking(config, work, connection)
    finally:
        await connection.close()
    return work, ""


async def _find_lacking(config: Config, work: NodeWork, connection: Connection) -> None:
    """Compare with what is there. One difference, and the whole node is made anew."""
    stray = await connection.fetchval(FOREIGN_OBJECTS)
    if stray is not None:
        raise ConfigError(
            [
                f"{config.path}: query_node: the database {work.place} holds {stray}, which is not Foreshard's: "
                "name one that may be emptied"
            ]
        )
    wanted = {step.object: step.digest for step in work.steps}
    applied = await read_applied(connection)
    present = [label for label in wanted if applied.get(label) == wanted[label]]
    missing = {row["label"] for row in await connection.fetch(MISSING, present)} - set(left_out(applied))
    stale = applied.keys() - {LEFT_OUT + label for label in wanted} - wanted.keys()
    if stale or missing or len(present) < len(wanted):
        changed = [step for step in work.steps if step.object not in present or step.object in missing]
        work.all_lacking = changed or work.steps


def left_out(applied: dict[str, str]) -> list[str]:
    """Objects that could not be made when the node was."""
    return [label.removeprefix(LEFT_OUT) for label in applied if label.startswith(LEFT_OUT)]


async def make_query_node(work: NodeWork, say: Callable[[str], None]) -> None:
    """Make the node anew, when anything is lacking."""
    if not work.all_lacking:
        return
    if work.creation is not None:
        async with connected(NAME, work.server_dsn) as server:
            with contextlib.suppress(asyncpg.DuplicateDatabaseError):  # another apply was faster
                await server.execute(work.creation.sql)
    async with connected(NAME, work.dsn) as connection:
        await connection.execute(
            f"BEGIN READ WRITE; SELECT pg_advisory_xact_lock({MAKE_LOCK}); SET LOCAL lock_timeout = '{LOCK_TIMEOUT}';"
            " SET LOCAL client_min_messages = warning; SET LOCAL search_path = pg_catalog;"
            " SET LOCAL check_function_bodies = off"
        )
        failed = await run_all(connection, work.steps)
        await connection.execute("DELETE FROM foreshard.applied")
        await record_steps(connection, [*work.steps, *(Step(LEFT_OUT + label, "") for label in failed)])
        await connection.execute("COMMIT")
    for label, reason in failed.items():
        say(f"query node: left out {label}: {reason}")


async def run_all(connection: Connection, steps: list[Step]) -> dict[str, str]:
    """Run the steps until none succeeds any more, since one may need a later one; why those that are left failed."""
    failed: dict[str, str] = {}
    waiting = steps
    while waiting:
        failed = {}
        for step in waiting:
            await connection.execute("SAVEPOINT step")
            try:
                await connection.execute(step.sql)
                await connection.execute("RELEASE step")
            except asyncpg.PostgresError as error:
                if step.object in NEEDED or step.object.startswith(NEEDED_PREFIXES):
                    raise
                await connection.execute("ROLLBACK TO step")
                failed[step.object] = described(error)
        if len(failed) == len(waiting):
            break
        waiting = [step for step in waiting if step.object in failed]
    return failed


__all__ = [
    "NodeWork",
    "database_of",
    "left_out",
    "make_query_node",
    "plan_query_node",
    "query_node_dsn",
    "with_database",
]
