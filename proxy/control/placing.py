"""A router's hold on the shards: the bucket map that it routes by is theirs, and stays true while it routes by it.

On one connection to each shard it holds the locks of control/fence.py, reads which buckets are there, and hears when
one is to be moved away. Then it freezes the bucket, lets go as soon as no session has it open, and takes hold again
behind the move:

    held --notified--> frozen --nobody has it open--> let go --the mover has ended--> held
                          +--FREEZE_S are over--> held: the mover tries again later

1. Between letting go and taking hold again nothing is sent to the bucket; everything else goes on.
2. A connection that is lost takes the hold with it: no new backend is connected to the shard before it is there again,
   and the map of all shards has been read behind it. What is frozen stays so until then.
3. The map changes here only, and in no other process of the proxy.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections.abc import Collection, Iterable
from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from foreshard._core.buckets import BUCKET_COUNT
from foreshard._core.shared import SharedState
from foreshard.proxy.config import Config, ShardConfig
from foreshard.proxy.control.connect import connected
from foreshard.proxy.control.fence import ENLIST, ENLIST_AT_NODE, FORGET_ENDED, FREEZE_CHANNEL, ROUTER_CLASS
from foreshard.proxy.control.introspect import Connection
from foreshard.proxy.control.kept import IDENTITY
from foreshard.proxy.control.moves import MOVE_LOCK
from foreshard.proxy.control.retry import LOST, connect
from foreshard.proxy.errors import ForeshardError
from foreshard.proxy.triggers.points import control_point

FREEZE_S = 0.05  # at first; a mover that meets somebody again and again asks for more
POLL_S = 0.001  # between looks whether they have; nothing tells
HEARTBEAT_S = 1.0  # of a hold; movers take a router for stopped that is not heard of for fence.LEASE_S
AGAIN_S = 0.1  # before a lost connection is made again
READS_MAX = 50  # of all maps, until they fit: moves are few
SETTINGS = {"application_name": "foreshard router's hold", "default_transaction_isolation": "read committed"}
HOLD = f"SELECT pg_advisory_lock_shared({MOVE_LOCK}); SELECT pg_advisory_lock_shared({ROUTER_CLASS}, {{}})"
STILL_THERE = "SELECT pid FROM pg_stat_get_activity(NULL) WHERE pid = ANY ($1)"  # and its heartbeat
OWNED = "SELECT buckets::text AS bits, moves FROM foreshard.owned_buckets"

log = logging.getLogger("foreshard.router")

Bits = npt.NDArray[np.bool_]


class Traffic(Protocol):
    """What is asked of the relay (proxy/wire/pool.Hub)."""

    frozen_bucket: int
    enlist: bytes | None
    enlist_at_node: bytes | None

    def hasten(self, is_hasty: bool) -> None: ...
    def freeze(self, bucket: int) -> list[Any]: ...
    def leave_bucket(self, shard: int) -> None: ...
    def thaw(self) -> None: ...
    def take_lost(self, shard: int) -> list[int]: ...
    def note_lost(self, shard: int, pids: Iterable[int]) -> None: ...
    def leave_shard(self, shard: int) -> None: ...
    def return_to_shard(self, shard: int) -> None: ...


class Notice(msgspec.Struct, frozen=True):
    """A bucket is to be moved from the shard that tells of it to another one."""

    bucket: int
    target: int
    patience_s: float = FREEZE_S  # for transactions in it to end; statements that came meanwhile wait


class Placing:
    """One per router. Owns a connection to each shard; ends by `close`."""

    def __init__(self, config: Config, state: SharedState, traffic: Traffic) -> None:
        self.router = secrets.randbits(31)
        self.state = state
        self.traffic = traffic
        self.freezing = asyncio.Lock()  # one bucket at a time
        self.owned: list[Bits | None] = [None] * len(config.shards)  # as each shard said last
        self._moves = [0] * len(config.shards)
        self.holds = [_Hold(self, index, shard) for index, shard in enumerate(config.shards)]
        self._tasks: dict[_Hold, asyncio.Task[None]] = {}  # while it runs
        self._is_running = False
        traffic.enlist = ENLIST.format(self.router).encode()
        traffic.enlist_at_node = ENLIST_AT_NODE.format(self.router).encode()

    async def begin(self, left_out: Collection[int] = ()) -> None:
        """Take hold of every shard but those that are left out. ForeshardError when one cannot be had."""
        for hold in self.holds:
            if hold.index in left_out:
                self.traffic.leave_shard(hold.index)
            else:
                try:
                    await hold.take()
                except LOST as error:
                    raise ForeshardError(f"shard {hold.name}: {error}") from error

    async def run(self) -> None:
        """Keep hold until cancelled."""
        self._is_running = True
        try:
            for hold in self.holds:
                self._tasks[hold] = asyncio.create_task(hold.run())
            await asyncio.get_running_loop().create_future()
        finally:
            self._is_running = False
            for task in self._tasks.values():
                task.cancel()

    def follow_shards(self, config: Config) -> None:
        """There are other shards behind those there were, or some are there no more."""
        for gone in self.holds[len(config.shards) :]:
            gone.close()
            if gone in self._tasks:
                self._tasks.pop(gone).cancel()
            self.traffic.leave_shard(gone.index)
        count = len(self.holds)
        del self.holds[len(config.shards) :], self.owned[len(config.shards) :], self._moves[len(config.shards) :]
        for index in range(count, len(config.shards)):
            self.traffic.leave_shard(index)  # until it is held
            self.owned.append(None)
            self._moves.append(0)
            self.holds.append(_Hold(self, index, config.shards[index]))
            if self._is_running:
                self._tasks[self.holds[-1]] = asyncio.create_task(self.holds[-1].run())

    def close(self) -> None:
        """Let go of every shard."""
        for hold in self.holds:
            hold.close()

    async def read_maps(self) -> None:
        """Read anew what the shards have that are held, until no bucket is at two of them or has just left all."""
        for _ in range(READS_MAX):
            for hold in self.holds:
                await hold.read_owned()
            if self._settle():
                return
            await asyncio.sleep(AGAIN_S / 10)  # a move was between the two readings: it takes milliseconds
        raise ForeshardError("the shards do not agree on who has which bucket: `foreshard verify` tells")

    def _settle(self) -> bool:
        """Make one map of all; False when they do not fit (yet)."""
        _, owners = self.state.bucket_map()
        owners = owners.astype(np.int64)
        known = [index for index, bits in enumerate(self.owned) if bits is not None]
        bits = np.array([self.owned[index] for index in known])
        counts = bits.sum(axis=0)
        where = np.array(known)[bits.argmax(axis=0)]
        unknown = [index for index in range(len(self.owned)) if index not in known]
        lost = (counts == 0) & np.isin(owners, known)  # has left the shard that we thought had it
        if (counts > 1).any() or (lost.any() and not unknown):
            return False
        owners = np.where(counts == 1, where, owners)
        if unknown:
            owners[lost] = unknown[0]  # or another of them: whoever comes first tells; until then it is waited for
        self.publish(owners)
        return True

    async def follow(self, bucket: int, source: int, target: int) -> None:
        """The bucket has left the source: to the shard that was named, or (another move came first) to a third."""
        await self.holds[target].read_owned()
        bits = self.owned[target]
        has_come = bits is not None and bool(bits[bucket])
        self.note_moved(bucket, source, target)
        if not has_come:
            await self.read_maps()

    def note_moved(self, bucket: int, source: int, target: int) -> None:
        """The bucket has gone from one shard to the other."""
        _, owners = self.state.bucket_map()
        changed = owners.astype(np.int64)
        changed[bucket] = target
        for index, has in ((source, False), (target, True)):
            bits = self.owned[index]
            if bits is not None:
                bits[bucket] = has
        self._moves[source] += 1
        self.publish(changed)

    def note_owned(self, index: int, bits: Bits | None, moves: int = 0) -> None:
        """What one shard has; None: nobody knows while it is not held."""
        self.owned[index] = bits
        self._moves[index] = max(moves, self._moves[index])

    def publish(self, owners: npt.NDArray[Any]) -> None:
        """The map that everything in this proxy goes by; its epoch counts moves."""
        epoch, known = self.state.bucket_map()
        if (known != owners).any() or epoch != 1 + sum(self._moves):
            self.state.set_bucket_map(owners.tolist(), 1 + sum(self._moves))


class _Hold:
    """The hold on one shard."""

    def __init__(self, placing: Placing, index: int, shard: ShardConfig) -> None:
        self.index = index
        self.name = shard.name
        self._placing = placing
        self._dsn = shard.dsn
        self._connection: Connection | None = None
        self._is_mine = False  # we have frozen the bucket that is frozen
        self._notices: list[Notice] = []
        self._news = asyncio.Event()
        self._turn = asyncio.Lock()  # held while the connection may wait for long

    def close(self) -> None:
        """Let go."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()

    async def take(self) -> None:
        """Connect and take hold; waits while a bucket is being moved away from here."""
        self.close()
        connection = await connect(self._dsn, SETTINGS)
        try:
            name = await connection.fetchval(IDENTITY)
            if name != self.name:
                raise ForeshardError(f"shard {self.name}: its database says that it is shard {name}")
            await connection.add_listener(FREEZE_CHANNEL, self._on_notified)
            await connection.execute(HOLD.format(self._placing.router))
        except BaseException:
            connection.terminate()
            raise
        self._connection = connection
        self._notices.clear()
        self._placing.traffic.hasten(False)
        await self._placing.read_maps()
        control_point("hold-taken")

    async def run(self) -> None:
        """Keep hold, and give way to moves."""
        while True:
            try:
                if self._connection is None:
                    await self.take()
                    self._thaw_own()
                    self._placing.traffic.return_to_shard(self.index)
                await self._serve()
            except Exception as error:
                is_ours = not isinstance(error, (*LOST, ForeshardError))
                if self._connection is not None or is_ours:
                    log.warning("lost hold of shard %s: %s", self.name, error, exc_info=is_ours)
                self.close()
                self._placing.note_owned(self.index, None)
                self._placing.traffic.leave_shard(self.index)
                await asyncio.sleep(AGAIN_S * random.uniform(0.5, 1.5))

    async def _serve(self) -> None:
        connection = self._connection
        assert connection is not None
        while self._notices:
            try:
                async with self._turn:
                    await self._give_way(connection, self._notices.pop(0))
            finally:
                self._placing.traffic.hasten(False)
        self._news.clear()
        try:
            async with asyncio.timeout(HEARTBEAT_S):
                await self._news.wait()
        except TimeoutError:
            lost = self._placing.traffic.take_lost(self.index)
            try:
                async with self._turn:
                    left = await connection.fetch(STILL_THERE, lost)
                    if len(left) < len(lost):
                        await connection.execute(FORGET_ENDED)
            except BaseException:
                self._placing.traffic.note_lost(self.index, lost)
                raise
            self._placing.traffic.note_lost(self.index, [row["pid"] for row in left])

    def _on_notified(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        self._notices.append(msgspec.json.decode(str(payload), type=Notice))
        self._placing.traffic.hasten(True)
        self._news.set()

    async def read_owned(self) -> None:
        """Read what the shard has, if it is held."""
        connection = self._connection
        if connection is None:
            return self._placing.note_owned(self.index, None)
        if self._turn.locked():
            async with connected(f"shard {self.name}", self._dsn) as another:
                row = await another.fetchrow(OWNED)
        else:
            async with self._turn:
                row = await connection.fetchrow(OWNED)
        if row is None or len(row["bits"]) != BUCKET_COUNT:
            raise ForeshardError(f"shard {self.name}: foreshard.owned_buckets has no row; run `foreshard apply`")
        bits = np.frombuffer(row["bits"].encode(), dtype=np.uint8) == ord("1")
        return self._placing.note_owned(self.index, bits, row["moves"])

    async def _give_way(self, connection: Connection, notice: Notice) -> None:
        """Let the mover have the bucket, if nobody has it open soon. One at a time, whatever shard asks."""
        placing = self._placing
        if notice.target >= len(placing.holds):
            return  # the list of shards has changed, and is read any moment
        deadline = asyncio.get_running_loop().time() + notice.patience_s
        try:
            async with asyncio.timeout(notice.patience_s):
                await placing.freezing.acquire()
        except TimeoutError:
            return
        try:
            # What is frozen still is of a shard that does not tell yet what has become of it.
            if placing.state.owner_of(notice.bucket) == self.index and placing.traffic.frozen_bucket < 0:
                await self._freeze(connection, notice, deadline)
        finally:
            placing.freezing.release()

    async def _freeze(self, connection: Connection, notice: Notice, deadline: float) -> None:
        placing, traffic = self._placing, self._placing.traffic
        left = traffic.freeze(notice.bucket)
        self._is_mine = True
        control_point("hold-frozen")
        while left := [session for session in left if session.has_open(notice.bucket)]:
            if asyncio.get_running_loop().time() > deadline:
                return self._thaw_own()
            await asyncio.sleep(POLL_S)
        traffic.leave_bucket(self.index)
        control_point("hold-given")
        lost = traffic.take_lost(self.index)
        try:
            is_here = await connection.fetchval(
                "SELECT foreshard.give_way($1, $2, $3)", placing.router, lost, notice.bucket
            )
        except BaseException:
            traffic.note_lost(self.index, lost)
            raise
        if not is_here:
            await placing.follow(notice.bucket, self.index, notice.target)
        self._thaw_own()
        control_point("hold-thawed")

    def _thaw_own(self) -> None:
        if self._is_mine:
            self._is_mine = False
            self._placing.traffic.thaw()
