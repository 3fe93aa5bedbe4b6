"""A connection that is kept between questions and made again after every failure: for rounds that must never hang."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence

from foreshard.proxy.config import ShardConfig
from foreshard.proxy.control.introspect import Connection
from foreshard.proxy.control.retry import LOST, connect

ANSWER_TIMEOUT_S = 2.0  # a shard that takes longer is down for this round
IDENTITY = "SELECT name FROM foreshard.shard_info"


class ShardDown(Exception):
    """The shard did not answer, or is not the one that it should be; its text says why."""


class KeptConnection:
    """Owns one connection to one shard. Ends by `close`."""

    def __init__(self, shard: ShardConfig, settings: Mapping[str, str], first_sql: str) -> None:
        self.name = shard.name
        self._dsn = shard.dsn
        self._settings = settings
        self._first_sql = first_sql
        self._connection: Connection | None = None
        self._turn = asyncio.Lock()  # a connection does one thing at a time

    def close(self) -> None:
        """Give the connection up."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()

    @contextlib.asynccontextmanager
    async def asked(self) -> AsyncIterator[Connection]:
        """The connection, for one question. ShardDown for whatever keeps the shard from answering it."""
        async with self._turn:
            try:
                async with asyncio.timeout(ANSWER_TIMEOUT_S):
                    if self._connection is None:
                        self._connection = await connect(self._dsn, self._settings)
                        await self._begin(self._connection)
                    yield self._connection
            except ShardDown:
                self.close()
                raise
            except LOST as error:
                self.close()
                raise ShardDown(" ".join(str(error).split()) or type(error).__name__) from error

    async def _begin(self, connection: Connection) -> None:
        """Nothing is believed of a database that does not say that it is the shard that the configuration names."""
        await connection.execute(self._first_sql)
        name = await connection.fetchval(IDENTITY)
        if name != self.name:
            raise ShardDown(f"its database says that it is shard {name}")


def follow_shards(
    kept: list[KeptConnection], shards: Sequence[ShardConfig], settings: Mapping[str, str], first_sql: str
) -> None:
    """Keep a connection to each of these shards: others are behind those there were, or some are there no more."""
    for gone in kept[len(shards) :]:
        gone.close()
    del kept[len(shards) :]
    for index, shard in enumerate(shards):
        if index == len(kept):
            kept.append(KeptConnection(shard, settings, first_sql))
        elif kept[index].name != shard.name:
            kept[index].close()
            kept[index] = KeptConnection(shard, settings, first_sql)
