"""Questions to the shards themselves, for the console and the demo: one short connection each, never a client's."""

from __future__ import annotations

import asyncio

import asyncpg

from foreshard.proxy.admin.sources import ShardAnswer
from foreshard.proxy.config import Config

ASK_TIMEOUT_S = 5.0  # chosen, not measured: an operator's patience


async def ask_shards(config: Config, sql: str) -> list[ShardAnswer]:
    """The rows of one SELECT from every shard, in the shards' order; a shard that fails says why."""
    return await asyncio.gather(*(ask(shard.name, shard.dsn, sql) for shard in config.shards))


async def ask_control(config: Config, sql: str) -> ShardAnswer:
    """The rows of one SELECT from the control database."""
    return await ask("control", config.control or config.shards[0].dsn, sql)


async def ask(name: str, dsn: str, sql: str) -> ShardAnswer:
    """The rows of one SELECT from one database."""
    try:
        async with asyncio.timeout(ASK_TIMEOUT_S):
            connection = await asyncpg.connect(dsn, server_settings={"application_name": "foreshard console"})
            try:
                rows = await connection.fetch(sql)
            finally:
                connection.terminate()
    except TimeoutError:
        return ShardAnswer(name, error=f"no answer within {ASK_TIMEOUT_S:.0f} s")
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        return ShardAnswer(name, error=str(error).splitlines()[0] if str(error) else type(error).__name__)
    return ShardAnswer(name, tuple(tuple(row) for row in rows))
