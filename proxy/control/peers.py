"""Transactions that other routers of the deployment have under way: told to each other in the control database.

Only while one of its statements has been busy for a second does a router tell anything. A transaction is told with the
virtual transaction ids of its parts, which PostgreSQL never uses again. Whoever hears of it asks the shards whether
they are still those: so nothing is believed that was true only when it was told.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Collection, Mapping

import msgspec

from foreshard.proxy.control.introspect import Connection
from foreshard.proxy.control.retry import LOST, connect
from foreshard.proxy.control.waits import OpenTransaction, Place

ANSWER_TIMEOUT_S = 2.0  # a control database that takes longer is down for this look
FRESH_S = 5  # what was told before that is not asked for
FORGOTTEN_S = 60  # and after that deleted, by anybody

TELL = """
INSERT INTO foreshard.busy_router (instance, transactions, told_at) VALUES ($1, $2, clock_timestamp())
ON CONFLICT (instance) DO UPDATE SET transactions = excluded.transactions, told_at = excluded.told_at
"""
FORGET = f"DELETE FROM foreshard.busy_router WHERE told_at < clock_timestamp() - interval '{FORGOTTEN_S} seconds'"
HEAR = f"""
SELECT transactions FROM foreshard.busy_router
WHERE instance <> $1 AND told_at > clock_timestamp() - interval '{FRESH_S} seconds'
"""


class Part(msgspec.Struct, frozen=True, array_like=True):
    """A transaction on one shard."""

    shard: int
    pid: int
    virtual_id: str

    @property
    def place(self) -> Place:
        return (self.shard, self.pid)


class Told(msgspec.Struct, frozen=True, array_like=True):
    """One router's transaction, as another one hears of it."""

    client: int
    commit_id: str
    parts: tuple[Part, ...]


class Peers:
    """Owns one connection to the control database, from the first use on. Ends by `close`."""

    def __init__(self, dsn: str) -> None:
        self.instance = uuid.uuid4().hex
        self._dsn = dsn
        self._connection: Connection | None = None

    def close(self) -> None:
        """Give the connection up."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()

    async def exchange(self, own: Collection[Told]) -> list[Told]:
        """Tell of one's own, hear of others'. Nothing while the control database is down."""
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                if self._connection is None:
                    self._connection = await connect(self._dsn, {"application_name": "foreshard deadlock watch"})
                await self._connection.execute(TELL, self.instance, msgspec.json.encode(list(own)).decode())
                await self._connection.execute(FORGET)
                rows = await self._connection.fetch(HEAR, self.instance)
        except LOST:
            self.close()
            return []
        return [told for row in rows for told in msgspec.json.decode(row[0], type=list[Told])]


def tell(transactions: Collection[OpenTransaction], virtual_ids: Mapping[Place, str]) -> list[Told]:
    """One's own transactions with the virtual ids that their parts have."""
    return [
        Told(
            each.client,
            each.commit_id,
            tuple(Part(*place, virtual_ids[place]) for place in sorted(each.places) if place in virtual_ids),
        )
        for each in transactions
    ]


def believe(told: Collection[Told], *looks: Mapping[Place, str]) -> list[OpenTransaction]:
    """What holds of what was heard: the parts that had their virtual ids in every one of the looks."""
    return [
        OpenTransaction(
            each.client,
            frozenset(
                part.place for part in each.parts if all(look.get(part.place) == part.virtual_id for look in looks)
            ),
            each.commit_id,
        )
        for each in told
    ]
