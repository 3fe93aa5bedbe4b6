"""One shard as recovery sees it: prepared transactions and decisions, read and ended one statement at a time.

1. Nothing is known of a shard that does not say that it is the one that the configuration names: a decision looked up
   in the wrong database would be a guess.
2. A decision is durable before anyone acts on it, whatever synchronous_commit the server has.
3. Every method may be called by several controllers at once, for the same transaction.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum

import asyncpg
import msgspec

from foreshard._core.two_phase import PREFIX
from foreshard.proxy.config import ShardConfig
from foreshard.proxy.control.introspect import Connection
from foreshard.proxy.control.kept import KeptConnection
from foreshard.proxy.triggers.capture import quote_name
from foreshard.proxy.triggers.points import control_point

COMMIT, ABORT = "commit", "abort"
OPEN_DECISION_WAIT_MS = 250  # for a decision whose transaction has not ended: it is asked for again in the next round
RETENTION_S = 60  # of a commit decision, so that a participant that fails over to a late replica still finds it
DECISIONS_MAX = 10_000  # decisions looked at per cleaning

SETTINGS = {
    "default_transaction_isolation": "read committed",  # what was decided meanwhile must be seen
    "default_transaction_read_only": "off",
    "lock_timeout": str(OPEN_DECISION_WAIT_MS),
}
DURABLE = "SELECT set_config('synchronous_commit', 'local', false) WHERE current_setting('synchronous_commit') = 'off'"
LIST = f"""
SELECT p.gid, p.owner::text, extract(epoch FROM clock_timestamp() - p.prepared)::float8
FROM pg_prepared_xacts AS p, foreshard.shard_info AS i
WHERE p.database = current_database() AND starts_with(p.gid, '{PREFIX}/' || i.cluster || '/')
"""
IS_LISTED = "SELECT EXISTS (SELECT FROM pg_prepared_xacts WHERE database = current_database() AND gid = $1)"
OUTCOMES = "SELECT id, outcome FROM foreshard.decision WHERE id = ANY ($1::text[])"
INSERT_ABORT = "INSERT INTO foreshard.decision (id, outcome) VALUES ($1, 'abort') ON CONFLICT (id) DO NOTHING"
OLD_DECISIONS = f"""
SELECT id, outcome FROM foreshard.decision
WHERE outcome = 'abort' OR decided_at < clock_timestamp() - interval '{RETENTION_S} seconds' LIMIT {DECISIONS_MAX}
"""
# Every transaction holds its own virtual id, also one that has written nothing yet.
OPEN_TRANSACTIONS = """
SELECT virtualtransaction FROM pg_locks
WHERE locktype = 'virtualxid' AND virtualxid = virtualtransaction AND granted AND pid <> pg_backend_pid()
"""
DELETE = "DELETE FROM foreshard.decision WHERE id = ANY ($1::text[])"


class Prepared(msgspec.Struct, frozen=True):
    """A prepared transaction of this cluster."""

    gid: str
    owner: str
    age_s: float  # by the shard's own clock


class Finish(Enum):
    """What became of one COMMIT PREPARED or ROLLBACK PREPARED."""

    DONE = "done"
    GONE = "gone"  # somebody else has ended it
    BUSY = "busy"  # somebody else is ending it


class ShardLink:
    """Owns one connection to one shard. Every method raises ShardDown for whatever keeps the shard from answering."""

    def __init__(self, shard: ShardConfig) -> None:
        self.name = shard.name
        self._kept = KeptConnection(shard, SETTINGS, DURABLE)
        self._open_at_abort: dict[str, frozenset[str]] = {}  # id -> transactions open when its tombstone was first seen

    def close(self) -> None:
        """Give the connection up."""
        self._kept.close()

    async def list_prepared(self) -> list[Prepared]:
        """Prepared transactions of this cluster."""
        async with self._kept.asked() as connection:
            return [Prepared(*row) for row in map(tuple, await connection.fetch(LIST))]

    async def read_outcomes(self, ids: Collection[str]) -> dict[str, str]:
        """Outcome by id, of those that are decided."""
        async with self._kept.asked() as connection:
            return {row["id"]: row["outcome"] for row in await connection.fetch(OUTCOMES, list(ids))}

    async def decide(self, id: str) -> str | None:
        """Abort the transaction unless it is decided; the outcome. None while its decision transaction is open."""
        async with self._kept.asked() as connection:
            try:
                await connection.execute(INSERT_ABORT, id)
            except asyncpg.LockNotAvailableError:
                return None
            control_point("recovery-decided")
            rows = await connection.fetch(OUTCOMES, [id])
            return rows[0]["outcome"] if rows else None

    async def finish(self, prepared: Prepared, outcome: str) -> Finish:
        """End a prepared transaction. ShardDown with the reason when this shard does not let us."""
        command = f"{'COMMIT' if outcome == COMMIT else 'ROLLBACK'} PREPARED '{prepared.gid}'"
        async with self._kept.asked() as connection:
            try:
                await self._run_as(connection, prepared.owner, command)
            except asyncpg.UndefinedObjectError:
                if await connection.fetchval(IS_LISTED, prepared.gid):
                    raise
                return Finish.GONE
            except asyncpg.ObjectNotInPrerequisiteStateError:
                return Finish.BUSY
        return Finish.DONE

    async def _run_as(self, connection: Connection, owner: str, command: str) -> None:
        """Run the command; as the transaction's owner where only that role may, and we may become it."""
        try:
            await connection.execute(command)
        except asyncpg.InsufficientPrivilegeError:
            await connection.execute(f"SET ROLE {quote_name(owner)}")
            try:
                await connection.execute(command)
            finally:
                await connection.execute("RESET ROLE")

    async def read_old_decisions(self) -> dict[str, str]:
        """Decisions that may be forgotten once nothing is prepared under them: old commits, and aborts out of reach.

        An abort is out of reach when every transaction has ended that was open after the tombstone was there: the
        coordinator's own, which might still try to commit, was open before.
        """
        async with self._kept.asked() as connection:
            rows = {row["id"]: row["outcome"] for row in await connection.fetch(OLD_DECISIONS)}
            aborts = {id for id, outcome in rows.items() if outcome == ABORT}
            running: frozenset[str] = frozenset()
            if aborts:
                running = frozenset(row[0] for row in await connection.fetch(OPEN_TRANSACTIONS))
        known = {id: self._open_at_abort.get(id, running) & running for id in aborts}
        self._open_at_abort = known
        return {id: outcome for id, outcome in rows.items() if not known.get(id)}

    async def forget(self, ids: Collection[str]) -> None:
        """Delete decisions."""
        async with self._kept.asked() as connection:
            await connection.execute(DELETE, list(ids))
