"""Deadlocks over several shards: found by asking the shards who waits, broken by cancelling the youngest transaction.

It runs in the router, which knows for nothing which server processes serve one client, and whose cancel requests never
hit a later statement. The shards are asked only while transactions of ours on several shards have been busy for a
whole interval; then the shards that they are on are asked twice, and only waits of both looks count (waits.py).

Several routers tell each other what they have under way then (peers.py), and each looks for itself. All see the same
circles, and the same victim: only the router that has it cancels.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from typing import Any

from foreshard._core.two_phase import parse_gid
from foreshard.proxy.config import Config
from foreshard.proxy.control.connect import control_dsn
from foreshard.proxy.control.kept import KeptConnection, ShardDown, follow_shards
from foreshard.proxy.control.peers import Peers, Told, believe, tell
from foreshard.proxy.control.waits import (
    Cycle,
    OpenTransaction,
    Place,
    Wait,
    choose_victim,
    find_cycles,
    lasting,
    members_of,
)
from foreshard.proxy.errors import SqlError

INTERVAL_S = 1.0
LOOKS_APART_S = 0.1
# Waits that PostgreSQL itself has looked at by now. pg_locks, unlike pg_stat_activity, hides nobody's.
WAITS = """
SELECT w.pid, w.waitstart::text, pg_blocking_pids(w.pid), coalesce(max(x.gid), '')
FROM pg_locks AS w
LEFT JOIN pg_prepared_xacts AS x ON w.locktype = 'transactionid' AND x.transaction = w.transactionid
WHERE NOT w.granted AND w.waitstart < clock_timestamp() - current_setting('deadlock_timeout')::interval
GROUP BY w.pid, w.waitstart
"""
STARTS = """
SELECT pid, extract(epoch FROM xact_start)::float8 FROM pg_stat_activity
WHERE pid = ANY ($1::int[]) AND xact_start IS NOT NULL
"""
VIRTUAL_IDS = """
SELECT pid, virtualtransaction FROM pg_locks
WHERE pid = ANY ($1::int[]) AND locktype = 'virtualxid' AND virtualxid = virtualtransaction AND granted
"""
SETTINGS = {"application_name": "foreshard deadlock watch", "default_transaction_isolation": "read committed"}


class DeadlockWatch:
    """Owns a connection to each shard it has had to ask. Made by the router; runs until cancelled.

    `list_busy` gives the transactions on several shards of which a statement is under way; `cancel` ends one.
    """

    def __init__(
        self,
        config: Config,
        list_busy: Callable[[], Collection[OpenTransaction]],
        cancel: Callable[[OpenTransaction, Cycle], None],
    ) -> None:
        self._shards = [KeptConnection(shard, SETTINGS, "SELECT 1") for shard in config.shards]
        self._peers = Peers(control_dsn(config))
        self._list_busy = list_busy
        self._cancel = cancel

    async def run(self) -> None:
        """Look each second."""
        suspects: set[OpenTransaction] = set()
        try:
            while True:
                await asyncio.sleep(INTERVAL_S)
                busy = set(self._list_busy())
                suspects &= busy
                if suspects:  # one alone deadlocks with another router's only
                    await self.look()
                suspects = busy
        finally:
            self.close()

    def follow_shards(self, config: Config) -> None:
        """The shards are these from now on."""
        follow_shards(self._shards, config.shards, SETTINGS, "SELECT 1")

    def close(self) -> None:
        """Give every connection up."""
        self._peers.close()
        for shard in self._shards:
            shard.close()

    async def look(self) -> int:
        """Break the deadlocks of this moment; how many there were."""
        own = self._list_busy()
        told = await self._peers.exchange(tell(own, await self._read_virtual_ids(_places(own))))
        if len(own) + len(told) < 2:
            return 0
        indexes = sorted({shard for shard, _ in _places(own) | _places_told(told)} & set(range(len(self._shards))))
        heard_before = await self._read_virtual_ids(_places_told(told))
        before = await self._read_waits(indexes)
        if len({wait.place[0] for wait in before}) < 2:
            return 0
        await asyncio.sleep(LOOKS_APART_S)
        now = await self._read_waits(indexes)
        others = believe(told, heard_before, await self._read_virtual_ids(_places_told(told)))
        still = set(self._list_busy())
        own = [transaction for transaction in own if transaction in still]
        cycles = find_cycles([*own, *others], lasting(before, now))
        for cycle in cycles:
            members = members_of(cycle, [*own, *others])
            started = await self._read_starts(_places(members))
            victim = choose_victim(cycle, members, started)
            if victim in own:
                self._cancel(victim, cycle)
        return len(cycles)

    async def _read_starts(self, places: Collection[Place]) -> dict[Place, float]:
        """When the transactions of some processes began, of those that we may know of."""
        return {place: float(started_s) for place, started_s in (await self._ask_of(places, STARTS)).items()}

    async def _read_virtual_ids(self, places: Collection[Place]) -> dict[Place, str]:
        """What some processes have under way."""
        return {place: str(name) for place, name in (await self._ask_of(places, VIRTUAL_IDS)).items()}

    async def _ask_of(self, places: Collection[Place], sql: str) -> dict[Place, Any]:
        """What the shards answer of their processes; nothing of a shard that is down."""

        async def ask(index: int) -> list[tuple[Place, Any]]:
            try:
                async with self._shards[index].asked() as connection:
                    rows = await connection.fetch(sql, [pid for shard, pid in places if shard == index])
            except ShardDown:
                return []
            return [((index, pid), value) for pid, value in map(tuple, rows)]

        indexes = {shard for shard, _ in places} & set(range(len(self._shards)))  # less the query node
        return dict(pair for some in await asyncio.gather(*map(ask, sorted(indexes))) for pair in some)

    async def _read_waits(self, indexes: Sequence[int]) -> list[Wait]:
        return [wait for some in await asyncio.gather(*map(self._read_waits_of, indexes)) for wait in some]

    async def _read_waits_of(self, index: int) -> list[Wait]:
        """Waits on one shard; none while it is down: whoever waits there will hear so."""
        try:
            async with self._shards[index].asked() as connection:
                rows = await connection.fetch(WAITS)
        except ShardDown:
            return []
        found = []
        for pid, since, blockers, name in map(tuple, rows):
            gid = parse_gid(name)
            id = gid.id if gid is not None else ""
            found.append(Wait((index, pid), since, tuple(blockers), id))
        return found


def _places(transactions: Collection[OpenTransaction]) -> set[Place]:
    return {place for transaction in transactions for place in transaction.places}


def _places_told(told: Collection[Told]) -> set[Place]:
    return {part.place for each in told for part in each.parts}


def explain_deadlock(victim: OpenTransaction, cycle: Cycle, names: Sequence[str]) -> SqlError:
    """What the client of the cancelled transaction hears."""
    shards = ", ".join(sorted(names[index] for index in cycle.shards))
    clients = ", ".join(str(node) for node in sorted(node for node in cycle.nodes if isinstance(node, int)))
    return SqlError(
        "40P01",
        f"deadlock detected over shards {shards}",
        f"The transactions of clients {clients} wait for each other; that of client {victim.client} is the youngest.",
        "Run it again. Transactions that lock rows in one order do not meet this.",
    )
