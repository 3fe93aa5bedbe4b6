"""Keeps everybody from planning by an old catalog once a change of the schema is committed.

Every router holds CHANGE_LOCK on the first shard, shared, as long as it plans by the catalog that it knows. Whoever
commits another one wants it exclusively, inside the transaction that changes the schema, which has all its locks by
then, and keeps it until that has ended (a prepared transaction keeps it, too):

    announce: NOTIFY --> routers hold statements back, let those under way end, give their shared lock up (give_way)
    lock granted --> commit --> locks gone --> routers have the shared lock again, read the catalog, go on (resume)

1. A statement that is sent is either done, or running since before the change (so it holds the locks of all its
   tables), or waits for a table that the change has locked, when the lock is granted.
2. One that waits was planned by the old catalog. It may run afterwards where that plan means the same (`is_milder`);
   otherwise its router cancels it with 40001.
3. A router that is stopped, or does not answer, makes the change fail (55P03): nobody goes on without it. One that dies
   loses its lock; one whose connection breaks reads the catalog anew when it has another.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import asyncpg
import msgspec

from foreshard.proxy.catalog import Catalog
from foreshard.proxy.config import Config
from foreshard.proxy.control.connect import connected
from foreshard.proxy.control.inside import Inside, together
from foreshard.proxy.control.introspect import Connection
from foreshard.proxy.errors import SqlError

CHANGE_CHANNEL = "foreshard_change"
CHANGE_LOCK = 0x63686E67  # the bytes of "chng"
WAIT_TIMEOUT = "5s"  # of a change for the routers, and of its COMMIT for anything else
POLL_S = 0.02  # what is waited for is another session's lock or end, which notifies nobody; chosen, not measured
GIVE_WAY_S = 4.0  # less than WAIT_TIMEOUT: the router that cannot give way goes on, and the change fails
WANTED_S = 1.0
HOLD = f"SELECT pg_advisory_lock_shared({CHANGE_LOCK})"
CALLED = "foreshard router "  # application_name of the connection that holds it, with a digest of the declarations
LET_GO = f"SELECT pg_advisory_unlock_shared({CHANGE_LOCK})"
TAKE = f"SELECT pg_advisory_xact_lock({CHANGE_LOCK})"
IS_WANTED = f"""
SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = {CHANGE_LOCK} AND mode = 'ExclusiveLock'
               AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))
"""
OTHERS = f"""
SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)
WHERE l.locktype = 'advisory' AND l.objid = {CHANGE_LOCK} AND l.mode = 'ShareLock' AND a.application_name <> $1
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
# What the shard knows of backends that work for clients: whether they have begun, and whether the change is in the way.
STATES = """
SELECT a.pid, a.state = 'active' AS has_begun,
       $2 = ANY(pg_blocking_pids(a.pid))
       AND EXISTS (SELECT FROM pg_locks l WHERE l.pid = a.pid AND NOT l.granted AND l.locktype = 'relation') AS waits
FROM pg_stat_activity a WHERE a.pid = ANY($1::int[])
"""
STALE = SqlError(
    "40001",
    "the schema was changed while the statement waited for it",
    "Its columns, or what it reads, are not what they were when it was sent.",
    "Run the transaction again.",
)
Place = tuple[int, int]  # shard, process id of a backend there


class Traffic(Protocol):
    """What a router lets this module do with its clients' statements."""

    def hold_statements(self) -> None:
        """Begin none from now on."""

    def release_statements(self) -> None:
        """Go on with those that were held back."""

    def list_working(self) -> set[Place]:
        """Backends that owe clients answers."""

    def follow_shards(self, config: Config) -> None:
        """The shards are these from now on."""

    def cancel_stale(self, places: Iterable[Place]) -> None:
        """Cancel what these backends do: their clients hear 40001."""


def called(config: Config) -> str:
    """The name of a router's connection, by which is known what it takes for declared."""
    declared = msgspec.json.encode(sorted(config.tables, key=lambda table: table.name))
    return CALLED + hashlib.sha256(declared).hexdigest()[:12]


async def take_barrier_with(config: Config, shards: Sequence[Connection]) -> None:
    """The same as `take_barrier`, for who has a transaction on every shard. SqlError when a router is in the way."""
    if await shards[0].fetchval(OTHERS, called(config)):
        raise SqlError(
            "55000",
            "a router serves with another configuration, by which these tables would stay plain ones",
            "",
            "Restart it with this file; it serves the tables from the first shard until they are spread.",
        )
    pids = [await connection.fetchval("SELECT pg_backend_pid()") for connection in shards]
    for connection in shards:
        await connection.execute(f"SET LOCAL lock_timeout = '{WAIT_TIMEOUT}'")
    async with connected(f"shard {config.shards[0].name}", config.shards[0].dsn) as connection:
        await connection.execute(announcement(pids, False))
    try:
        await shards[0].execute(TAKE)
    except asyncpg.LockNotAvailableError:
        raise not_followed() from None


def is_milder(old: Catalog, new: Catalog) -> bool:
    """Whether statements that were planned by the old catalog mean the same by the new one."""
    if old.tables.keys() != new.tables.keys() or old.views != new.views or old.functions != new.functions:
        return False
    for name, table in old.tables.items():
        before = [(column.name, column.type_oid, column.collation) for column in table.columns]
        after = [(column.name, column.type_oid, column.collation) for column in new.tables[name].columns]
        if after[: len(before)] != before:
            return False
    return True


def announcement(pids: Sequence[int], is_mild: bool) -> str:
    """The NOTIFY that routers hear: whose locks are in the way, and whether what waits for them may go on."""
    payload = json.dumps({"pids": list(pids), "mild": is_mild})
    return f"NOTIFY {CHANGE_CHANNEL}, '{payload}'"


async def take_barrier(shard_count: int, is_mild: bool, announce: Callable[[str], None]) -> None:
    """A script in the client's transaction (`inside`), right before its COMMIT: no router plans by the old catalog."""
    shards = [Inside(index) for index in range(shard_count)]
    pids = await together(*(shard.fetchval("SELECT pg_backend_pid() AS pid") for shard in shards))
    await together(*(shard.execute(f"SET LOCAL lock_timeout = '{WAIT_TIMEOUT}'") for shard in shards))
    announce(announcement(pids, is_mild))
    try:
        await shards[0].execute(TAKE)
    except SqlError as error:
        if error.sqlstate != "55P03":
            raise
        raise not_followed() from None


def not_followed() -> SqlError:
    """Some router goes on by the old catalog."""
    return SqlError(
        "55P03",
        "the schema could not be changed: a router does not follow",
        f"It has not let its clients' statements end, or does not answer, within {WAIT_TIMEOUT}.",
        "Run it again; a router that is stopped or cut off has to be ended first.",
    )


async def give_way(config: Config, traffic: Traffic, payload: str) -> bool:
    """Hold statements back until none that is under way could run by an old plan behind the change; False: in vain."""
    told = json.loads(payload)
    traffic.hold_statements()
    settled: set[Place] = set()
    try:
        async with asyncio.timeout(GIVE_WAY_S):
            while working := traffic.list_working():
                found, stale = await _look(config, working, told["pids"])
                if stale and not told["mild"]:
                    traffic.cancel_stale(stale)
                elif working <= (settled & found):  # seen twice: begun, with all its locks, or waiting for the change
                    return True
                settled = found
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        return False
    return True


async def _look(config: Config, working: set[Place], pids: Sequence[int]) -> tuple[set[Place], set[Place]]:
    """Those of the backends that have begun, and those that wait for the change."""
    begun, waiting = set(), set()
    for shard in {shard for shard, _ in working if shard < len(config.shards)}:
        async with connected(f"shard {config.shards[shard].name}", config.shards[shard].dsn) as connection:
            mine = [pid for index, pid in working if index == shard]
            for row in await connection.fetch(STATES, mine, pids[shard]):
                begun |= {(shard, row["pid"])} if row["has_begun"] else set()
                waiting |= {(shard, row["pid"])} if row["waits"] else set()
    node = {(shard, pid) for shard, pid in working if shard >= len(config.shards)}
    return begun | node, waiting


async def resume(connection: Connection) -> None:
    """Give the lock to the change, which is in line for it by now, and have it again when that has ended."""
    try:
        async with asyncio.timeout(WANTED_S):
            while not await connection.fetchval(IS_WANTED):
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        pass  # it has given up
    await connection.execute(LET_GO)
    await connection.execute(HOLD)
