"""Looks at one database the way an operator would: each finding is ok, a warning, or a failure, with what it costs.

Only reads. A failure is something that makes Foreshard give errors; a warning is something that it works without.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from foreshard.proxy.config import Config, qualified
from foreshard.proxy.control.introspect import Connection
from foreshard.proxy.triggers.capture import quote_name

OK, WARN, FAIL = "ok", "warn", "fail"
VERSION_MIN = 14
VERSION_TESTED = 18
CLOCK_SKEW_MAX_S = 0.1  # chosen: queue waits and `captured_at` are compared over shards only by people
CONNECTIONS_OTHERS = 10  # left for superusers, workers' tools and the operator

FACTS = """
SELECT current_setting('server_version_num')::int AS version, current_setting('server_version') AS version_text,
       current_setting('max_prepared_transactions')::int AS prepared_max,
       current_setting('max_connections')::int AS connections_max,
       current_setting('wal_level') AS wal_level,
       current_setting('synchronous_commit') AS synchronous_commit, current_setting('fsync') AS fsync,
       current_setting('full_page_writes') AS full_page_writes,
       current_setting('default_transaction_isolation') AS isolation,
       current_setting('default_transaction_read_only') AS read_only,
       current_setting('default_transaction_deferrable') AS deferrable,
       current_setting('session_replication_role') AS replication_role,
       current_setting('server_encoding') AS encoding, current_setting('TimeZone') AS time_zone,
       current_setting('transaction_timeout', true) AS transaction_timeout,
       current_setting('idle_in_transaction_session_timeout') AS idle_timeout,
       pg_is_in_recovery() AS is_standby, current_user::text AS user_name,
       has_database_privilege(current_database(), 'CREATE') AS may_create,
       (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) AS is_superuser,
       (SELECT rolconnlimit FROM pg_roles WHERE rolname = current_user) AS user_connections,
       (SELECT datconnlimit FROM pg_database WHERE datname = current_database()) AS database_connections,
       (SELECT concat_ws('/', d.datcollate, to_jsonb(d) ->> 'datlocale', to_jsonb(d) ->> 'datcollversion')
        FROM pg_database d WHERE datname = current_database()) AS collation,
       (SELECT count(*) FROM pg_prepared_xacts
        WHERE database = current_database() AND gid NOT LIKE 'foreshard/%')::int AS prepared_others,
       (SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database() AND gid LIKE 'foreshard/%'
        AND prepared < clock_timestamp() - interval '10 seconds')::int AS prepared_in_doubt,
       ARRAY(SELECT concat_ws(' ', 'ROLE ' || quote_ident(r.rolname),
               CASE WHEN r.oid IS NOT NULL AND d.oid IS NOT NULL THEN 'IN' END, 'DATABASE ' || quote_ident(d.datname),
               split_part(set, '=', 2))
             FROM pg_db_role_setting AS s CROSS JOIN unnest(s.setconfig) AS set
             LEFT JOIN pg_roles AS r ON r.oid = s.setrole LEFT JOIN pg_database AS d ON d.oid = s.setdatabase
             WHERE (d.oid IS NULL OR d.datname = current_database())
               AND set LIKE 'default\\_transaction\\_isolation=%' AND set NOT LIKE '%=read %committed' ORDER BY 1)
         AS isolations
"""
MAY_SET_REPLICA = "SELECT has_parameter_privilege('session_replication_role', 'SET')"  # from PostgreSQL 15 on
PARAMETER_PRIVILEGES_SINCE = 15

TABLE_PRIVILEGES = """
SELECT name, to_regclass(name) IS NOT NULL AS is_there,
       CASE WHEN to_regclass(name) IS NOT NULL THEN pg_has_role(c.relowner, 'USAGE') END AS is_owner
FROM unnest($1::text[]) WITH ORDINALITY AS t(name, place) LEFT JOIN pg_class c ON c.oid = to_regclass(name)
ORDER BY place
"""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at. `cost` says what a shortfall costs; "" when there is none."""

    place: str
    subject: str
    level: str
    value: str
    cost: str = ""


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """What one database said, and when."""

    name: str
    facts: Mapping[str, Any]
    tables: Mapping[str, bool | None]  # declared table -> whether we own it; None when it is missing
    references: Mapping[str, str]  # reference table -> row count and a hash of all rows
    clock_skew_s: float  # database's clock minus ours
    clock_error_s: float  # half the round trip: the skew is known no better than this


async def inspect(connection: Connection, config: Config, name: str) -> Inspection:
    """Ask one database."""
    row = await connection.fetchrow(FACTS)
    assert row is not None
    facts = dict(row)
    facts["may_set_replica"] = facts["is_superuser"] or (
        facts["version"] // 10_000 >= PARAMETER_PRIVILEGES_SINCE and await connection.fetchval(MAY_SET_REPLICA)
    )
    names = [qualified(table.name) for table in config.tables]
    tables = {entry["name"]: entry["is_owner"] for entry in await connection.fetch(TABLE_PRIVILEGES, names)}
    references = {
        name: await _read_contents(connection, name)
        for name in (qualified(table.name) for table in config.tables if table.reference)
        if tables[name]
    }
    best: tuple[float, float] | None = None
    for _ in range(5):  # the quickest answer bounds the skew best
        before = time.time()
        theirs = await connection.fetchval("SELECT extract(epoch FROM clock_timestamp())::float8")
        after = time.time()
        if best is None or after - before < best[1]:
            best = (theirs - (before + after) / 2, after - before)
    assert best is not None
    return Inspection(
        name=name,
        facts=facts,
        tables=tables,
        references=references,
        clock_skew_s=best[0],
        clock_error_s=best[1] / 2,
    )


async def _read_contents(connection: Connection, name: str) -> str:
    """Row count and a hash of the rows that does not depend on their order."""
    table = ".".join(quote_name(part) for part in name.split("."))
    row = await connection.fetchrow(
        f"SELECT count(*) AS rows, coalesce(sum(hashtextextended(t::text, 0)::numeric), 0) AS hash FROM {table} AS t"
    )
    assert row is not None
    return f"{row['rows']} rows, hash {int(row['hash']) & 0xFFFFFFFF:08x}"


def judge(config: Config, inspections: list[Inspection]) -> list[Finding]:
    """Findings about every database, then about their differences. The inspections are the shards', in order."""
    found: list[Finding] = []
    for inspection in inspections:
        found += _judge_server(inspection)
        found += _judge_durability(inspection)
        found += _judge_sessions(inspection)
        found += _judge_capacity(config, inspection)
        found += _judge_privileges(inspection)
        if len(config.shards) > 1:
            found += _judge_for_moves(inspection)
    return [*found, *_judge_differences(inspections)]


def _judge_server(inspection: Inspection) -> Iterator[Finding]:
    facts, place = inspection.facts, inspection.name
    version = facts["version"] // 10_000
    if version < VERSION_MIN:
        cost = f"PostgreSQL before {VERSION_MIN} lacks CREATE OR REPLACE TRIGGER: apply fails"
        yield Finding(place=place, subject="version", level=FAIL, value=facts["version_text"], cost=cost)
    elif version > VERSION_TESTED:
        cost = f"not tested with PostgreSQL after {VERSION_TESTED}: statements of its new syntax are refused"
        yield Finding(place=place, subject="version", level=WARN, value=facts["version_text"], cost=cost)
    else:
        yield Finding(place=place, subject="version", level=OK, value=facts["version_text"])
    yield Finding(
        place=place, subject="role of the server", level=FAIL if facts["is_standby"] else OK,
        value="standby" if facts["is_standby"] else "primary",
        cost="a standby takes no writes: name the primary" if facts["is_standby"] else "",
    )  # fmt: skip
    is_utf8 = facts["encoding"] == "UTF8"
    yield Finding(
        place=place, subject="server_encoding", level=OK if is_utf8 else WARN, value=facts["encoding"],
        cost="" if is_utf8 else "sizes of texts are counted in UTF-8: predicted costs will be off",
    )  # fmt: skip


def _judge_durability(inspection: Inspection) -> Iterator[Finding]:
    facts, place = inspection.facts, inspection.name
    for name in ("fsync", "full_page_writes"):
        is_on = facts[name] == "on"
        cost = "" if is_on else "a crash of the machine may lose or corrupt the whole shard: for tests only"
        yield Finding(place=place, subject=name, level=OK if is_on else WARN, value=facts[name], cost=cost)
    is_on = facts["synchronous_commit"] != "off"
    cost = "" if is_on else "a crash may lose the last acknowledged commits, with their trigger events"
    yield Finding(
        place=place, subject="synchronous_commit", level=OK if is_on else WARN, value=facts["synchronous_commit"],
        cost=cost,
    )  # fmt: skip
    is_enough = facts["wal_level"] != "minimal"
    cost = "" if is_enough else "no replica and no backup by WAL: a lost machine is a lost shard"
    yield Finding(
        place=place, subject="wal_level", level=OK if is_enough else WARN, value=facts["wal_level"], cost=cost
    )


def _judge_sessions(inspection: Inspection) -> Iterator[Finding]:
    facts, place = inspection.facts, inspection.name
    if facts["read_only"] == "on":
        cost = "every write through Foreshard fails"
        yield Finding(place=place, subject="default_transaction_read_only", level=FAIL, value="on", cost=cost)
    if facts["replication_role"] != "origin":
        cost = "no trigger fires: child keys are not filled and no event is captured"
        value = facts["replication_role"]
        yield Finding(place=place, subject="session_replication_role", level=FAIL, value=value, cost=cost)
    is_plain = facts["isolation"] == "read committed"
    cost = (
        "" if is_plain else "a transaction that reads several shards has a snapshot on each, taken at different moments"
    )
    yield Finding(
        place=place, subject="default_transaction_isolation", level=OK if is_plain else WARN, value=facts["isolation"],
        cost=cost,
    )  # fmt: skip
    timeout = facts["transaction_timeout"]
    if timeout not in (None, "0"):
        cost = "a transaction of a worker, which lasts as long as its functions run, is ended after this"
        yield Finding(place=place, subject="transaction_timeout", level=WARN, value=timeout, cost=cost)


def _judge_capacity(config: Config, inspection: Inspection) -> Iterator[Finding]:
    facts, place = inspection.facts, inspection.name
    yield _judge_prepared_max(config, inspection)
    # A transaction that has begun on one shard joins another beyond pool.size, so that none waits for each other.
    transactions_max = config.pool.size * (max(len(config.shards), 1) if config.tables else 1)
    needed = transactions_max + 2 * config.workers.per_shard + CONNECTIONS_OTHERS
    limits = [facts["connections_max"], facts["user_connections"], facts["database_connections"]]
    allowed = min(limit for limit in limits if limit >= 0)
    cost = ""
    if allowed < needed:
        cost = f"pool, workers and controller may open {needed}: clients will hear 53300; raise it or lower pool.size"
    level = OK if allowed >= needed else FAIL if allowed < config.pool.size else WARN
    yield Finding(place=place, subject="connections allowed", level=level, value=str(allowed), cost=cost)
    left_over = {
        "prepared transactions in doubt": (
            facts["prepared_in_doubt"],
            "each holds its locks; a running controller ends them once their decision shard is up: SHOW TWO_PHASE",
        ),
        "prepared transactions of others": (
            facts["prepared_others"],
            "each holds its locks until whoever prepared it ends it (SELECT * FROM pg_prepared_xacts)",
        ),
    }
    for subject, (count, cost) in left_over.items():
        if count:
            yield Finding(place=place, subject=subject, level=WARN, value=str(count), cost=cost)


def _judge_prepared_max(config: Config, inspection: Inspection) -> Finding:
    """Each transaction that writes on several shards prepares on all of them but one."""
    prepared, level, cost = inspection.facts["prepared_max"], OK, ""
    if prepared < config.pool.size:
        level, restart = WARN, f"set it to {config.pool.size} or more, and restart the server"
        cost = f"at most {prepared} transactions at once can commit here and elsewhere; {restart}"
        if prepared == 0:
            cost = f"transactions that write here and on other shards are refused; {restart}"
    return Finding(
        place=inspection.name, subject="max_prepared_transactions", level=level, value=str(prepared), cost=cost
    )


def _judge_privileges(inspection: Inspection) -> Iterator[Finding]:
    facts, place = inspection.facts, inspection.name
    may = facts["may_create"]
    yield Finding(
        place=place, subject="privilege to create schema foreshard", level=OK if may else FAIL,
        value=f"{facts['user_name']}: {'yes' if may else 'no'}",
        cost="" if may else f"apply fails: GRANT CREATE ON DATABASE ... TO {facts['user_name']}",
    )  # fmt: skip
    for table, is_owner in inspection.tables.items():
        if is_owner is None:
            cost = "apply refuses unless the `schema` file makes it"
            yield Finding(place=place, subject=f"table {table}", level=WARN, value="missing", cost=cost)
        elif not is_owner:
            cost = f"apply fails: {facts['user_name']} must own it to set its default and its triggers"
            yield Finding(place=place, subject=f"table {table}", level=FAIL, value="not the owner", cost=cost)
        else:
            yield Finding(place=place, subject=f"table {table}", level=OK, value="owner")


def _judge_for_moves(inspection: Inspection) -> Iterator[Finding]:
    """What moves of buckets need of each shard. Sessions tell the router of their isolation level, ALTER does not."""
    facts, place = inspection.facts, inspection.name
    may, user = facts["may_set_replica"], facts["user_name"]
    cost = f"buckets cannot move: GRANT SET ON PARAMETER session_replication_role TO {user}"
    if facts["version"] // 10_000 < PARAMETER_PRIVILEGES_SINCE:
        cost = f"buckets cannot move: before PostgreSQL 15 only a superuser may; ALTER ROLE {user} SUPERUSER"
    yield Finding(
        place=place, subject="privilege to set session_replication_role", level=OK if may else WARN,
        value=f"{user}: {'yes' if may else 'no'}", cost="" if may else cost,
    )  # fmt: skip
    for text in facts["isolations"]:
        target = text.rsplit(" repeatable read", 1)[0].rsplit(" serializable", 1)[0]
        cost = (
            "the router does not know of it: reads of several shards may miss rows of a bucket that moves meanwhile, "
            f"or see them twice; ALTER {target} RESET default_transaction_isolation, and say it in BEGIN"
        )
        yield Finding(place=place, subject="default_transaction_isolation", level=WARN, value=text, cost=cost)


def _judge_differences(inspections: list[Inspection]) -> Iterator[Finding]:
    """What must be the same on all shards, and how far their clocks are apart."""
    texts = {
        "collation": "rows of several shards cannot be merged in one order",
        "time_zone": "times without a zone mean something else on each shard",
        "encoding": "texts of several shards cannot be put side by side",
    }
    for subject, cost in texts.items():
        values = sorted({str(inspection.facts[subject]) for inspection in inspections})
        is_same = len(values) == 1
        yield Finding(
            place="all shards", subject=subject, level=OK if is_same else WARN, value=", ".join(values),
            cost="" if is_same else cost,
        )  # fmt: skip
    for table in inspections[0].references:
        contents = [inspection.references.get(table, "missing") for inspection in inspections]
        is_same = len(set(contents)) == 1
        cost = "" if is_same else "a SELECT is answered by any shard, so its rows depend on which: make them the same"
        value = contents[0] if is_same else "; ".join(contents)
        yield Finding(
            place="all shards",
            subject=f"reference table {table}",
            level=OK if is_same else FAIL,
            value=value,
            cost=cost,
        )
    skews = {inspection.name: inspection.clock_skew_s for inspection in inspections}
    width = max(skews.values()) - min(skews.values())
    error = max(inspection.clock_error_s for inspection in inspections)
    is_close = width - 2 * error <= CLOCK_SKEW_MAX_S
    yield Finding(
        place="all shards", subject="clocks apart", level=OK if is_close else WARN,
        value=f"{width * 1000:.1f} ms (known to {2 * error * 1000:.1f} ms)",
        cost="" if is_close else "now() differs between shards, and so do the waits that SHOW OUTBOX prints",
    )  # fmt: skip
