"""Keeps commits over several shards out while snapshots of all shards are opened, whichever router they come from.

One participant of every distributed commit, on whichever shard, holds foreshard.gate in ROW EXCLUSIVE mode from before
its PREPARE until its COMMIT PREPARED; a prepared transaction keeps its locks, so a dead coordinator's does until
recovery has ended it. Whoever opens snapshots holds foreshard.gate in SHARE mode on every shard. Neither mode is in the
way of itself.

1. While all are held no transaction is decided: its gate participant has prepared before, and so has ended again, or
   will later. Other participants of one that is decided may still be prepared: they are listed, and waited for.
2. What is visible on one shard is then visible on all. Snapshots that are opened now are of one moment.
3. They are used only when every lock was still held afterwards: the COMMIT that gives it back tells. A router that is
   stopped meanwhile loses its locks to the shards' idle_in_transaction_session_timeout, and so its snapshots.
4. Who waits for a lock keeps commits waiting behind it. So it waits for less than half of the time.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Protocol

import asyncpg

from foreshard._core.two_phase import gid_prefix, parse_gid
from foreshard.proxy.config import Config
from foreshard.proxy.control.introspect import Connection
from foreshard.proxy.control.kept import KeptConnection, ShardDown, follow_shards
from foreshard.proxy.control.recovery_shard import COMMIT
from foreshard.proxy.control.retry import LOST
from foreshard.proxy.errors import SqlError
from foreshard.proxy.triggers.points import control_point

LOCK_WAIT_FIRST_S = 0.1
LOCK_WAIT_MAX_S = 0.8  # less than deadlock_timeout: nobody looks for cycles through this
OPEN_S = 1.0  # to open snapshots; a router that is busier, or stopped, holds up nobody for longer
LOOKS_MAX = 40  # at what is decided and still prepared, before commits get their turn
LOOK_INTERVAL_S = 0.005  # about a COMMIT PREPARED; no shard tells when another's transaction is no longer prepared
SETTINGS = {
    "application_name": "foreshard gate",
    "default_transaction_isolation": "read committed",  # each look is a new one
    "default_transaction_read_only": "off",
    "idle_in_transaction_session_timeout": str(int(OPEN_S * 2000)),
}
HOLD = "BEGIN; SET LOCAL lock_timeout = {}; LOCK TABLE foreshard.gate IN SHARE MODE"
LIST = "SELECT gid FROM pg_prepared_xacts WHERE database = current_database() AND starts_with(gid, $1)"
DECIDED = "SELECT id FROM foreshard.decision WHERE outcome = $2 AND id = ANY ($1::text[])"


class Line(Protocol):
    """Those who want snapshots (proxy/wire/gate.pyx)."""

    def is_wanted(self) -> bool: ...
    def admit(self) -> bool: ...
    def settle(self, is_kept: bool) -> None: ...
    def refuse(self, error: SqlError) -> None: ...


class ShardGate:
    """One per router. Owns a connection to each shard, from the first use on; ends by `close`."""

    def __init__(self, config: Config, cluster: str) -> None:
        self._kept = [KeptConnection(shard, SETTINGS, "SELECT 1") for shard in config.shards]
        self._held: list[Connection] = []
        self._prefix = gid_prefix(cluster)
        self._wait_s = config.pool.wait_timeout_s
        self._opened = asyncio.Event()
        self._is_serving = False

    def follow_shards(self, config: Config) -> None:
        """The shards are these from now on."""
        follow_shards(self._kept, config.shards, SETTINGS, "SELECT 1")

    def close(self) -> None:
        """Give every connection up, and what is locked with it."""
        self._held = []
        for kept in self._kept:
            kept.close()

    def note_opened(self) -> None:
        """All that were let in have their snapshots, or have left."""
        self._opened.set()

    async def serve(self, line: Line) -> None:
        """Let everybody in who waits now or comes meanwhile."""
        if self._is_serving:
            return
        self._is_serving = True
        try:
            while line.is_wanted():
                await self._serve_some(line)
        finally:
            self._is_serving = False

    async def _serve_some(self, line: Line) -> None:
        try:
            await self._hold()
        except SqlError as error:
            return line.refuse(error)
        self._opened.clear()
        control_point("gate-held")
        try:
            if line.admit():
                async with asyncio.timeout(OPEN_S):
                    await self._opened.wait()
        except TimeoutError:
            pass  # who is late is told so
        control_point("gate-opened")
        line.settle(await self._let_go())

    async def _hold(self) -> None:
        """Return when no commit over several shards passes any more. SqlError when that was not to be had in time."""
        wait_s = LOCK_WAIT_FIRST_S
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + self._wait_s
        while True:
            try:
                if await self._lock(wait_s) and await self._is_settled():
                    return
                await self._let_go()
            except ShardDown as error:
                self.close()
                message = f"no snapshots of all shards can be opened: {error}"
                raise SqlError("08006", message, hint="SHOW SHARDS tells which are down.") from error
            if loop.time() > deadline_s:
                raise SqlError(
                    "55P03",
                    "no snapshots of all shards could be opened in time",
                    f"waited {self._wait_s:g} s for transactions over several shards to be committed on all of them",
                    "SHOW TWO_PHASE tells what is prepared; SET foreshard.snapshot = off reads without waiting.",
                )
            await asyncio.sleep(wait_s)  # the locks are free meanwhile: commits that wait behind them pass
            wait_s = min(wait_s * 2, LOCK_WAIT_MAX_S)

    async def _lock(self, wait_s: float) -> bool:
        """Ask for the lock on every shard; False when one of them is not to be had yet."""
        answers = await asyncio.gather(*(_lock(kept, wait_s) for kept in self._kept), return_exceptions=True)
        for kept, answer in zip(self._kept, answers, strict=True):
            if isinstance(answer, ShardDown):
                raise ShardDown(f"shard {kept.name}: {answer}") from answer
            if isinstance(answer, BaseException):
                raise answer
        self._held = [answer for answer in answers if isinstance(answer, asyncpg.Connection)]
        return len(self._held) == len(self._kept)

    async def _is_settled(self) -> bool:
        """Wait a little until nothing is prepared that is decided; False when that took too long."""
        for _ in range(LOOKS_MAX):
            if not await self._has_unfinished():
                return True
            await asyncio.sleep(LOOK_INTERVAL_S)
        return False

    async def _has_unfinished(self) -> bool:
        """Whether a transaction is committed on its decision shard, and still prepared elsewhere."""
        found = await self._ask_all(LIST, self._prefix)
        ids: dict[str, list[str]] = defaultdict(list)
        for names in found:
            for name in names:
                gid = parse_gid(name)
                if gid is not None:
                    ids[gid.decision_shard].append(gid.id)
        for index, kept in enumerate(self._kept):
            asked = ids.pop(kept.name, None)
            if asked and await self._ask(index, DECIDED, asked, COMMIT):
                return True
        return bool(ids)  # of a shard that is not configured: nobody knows

    async def _ask_all(self, sql: str, *values: object) -> list[list[str]]:
        return await asyncio.gather(*(self._ask(index, sql, *values) for index in range(len(self._kept))))

    async def _ask(self, index: int, sql: str, *values: object) -> list[str]:
        """The rows' only column, asked under the lock."""
        try:
            return [row[0] for row in await self._held[index].fetch(sql, *values)]
        except LOST as error:
            raise ShardDown(f"shard {self._kept[index].name}: {error}") from error

    async def _let_go(self) -> bool:
        """Give every lock back; whether all of them were held until now."""
        held, self._held = self._held, []
        answers = await asyncio.gather(*(each.execute("COMMIT") for each in held), return_exceptions=True)
        failed = [answer for answer in answers if isinstance(answer, BaseException)]
        if failed:
            self.close()
        return not failed and len(held) == len(self._kept)


async def _lock(kept: KeptConnection, wait_s: float) -> Connection | None:
    """The connection that holds the gate of one shard; None when somebody was in the way for all that time."""
    async with kept.asked() as connection:
        try:
            await connection.execute(HOLD.format(int(wait_s * 1000)))
        except asyncpg.LockNotAvailableError:
            await connection.execute("ROLLBACK")
            return None
        return connection
