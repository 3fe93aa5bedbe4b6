"""The shards that a deployment has now: a list on the first shard, changed by the transaction that takes a shard in or
lets one go, behind the barrier that changes of the schema have (schema_barrier). So everybody who goes on behind
such a change goes by the new list.

Configuration says where the shards are that it names; where those are that were added since, the list says. Shards that
only the configuration has are none of the deployment: `foreshard shards add` takes them in.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import msgspec

from foreshard.proxy.config import Config, ShardConfig
from foreshard.proxy.control.connect import connected
from foreshard.proxy.control.introspect import Connection
from foreshard.proxy.control.retry import LOST, connect
from foreshard.proxy.control.steps import Step, labelled_step
from foreshard.proxy.errors import ConfigError, ForeshardError
from foreshard.proxy.triggers.capture import quote_text

TABLE = labelled_step(
    "table foreshard.shard",
    """\
CREATE TABLE IF NOT EXISTS foreshard.shard (
  index integer PRIMARY KEY CHECK (index >= 0),
  name text NOT NULL,
  dsn text,
  weight double precision CHECK (weight > 0),
  is_draining boolean NOT NULL DEFAULT false
);
REVOKE ALL ON foreshard.shard FROM PUBLIC; -- a dsn may hold a password
COMMENT ON TABLE foreshard.shard IS 'the shards of this deployment; dsn and weight: NULL where configuration says them';
""",
)
IS_THERE = "SELECT to_regclass('foreshard.shard') IS NOT NULL"
LOOK_INTERVAL_S = 0.5  # nobody notifies of weights; chosen, not measured
# Of one shard, as it says itself; NULL before the first apply.
BUCKET_COUNT_SQL = "SELECT length(replace(buckets::text, '0', '')) FROM foreshard.owned_buckets"
SETTINGS = {"application_name": "foreshard supervisor"}
LIST = "SELECT index, name, dsn, weight, is_draining FROM foreshard.shard ORDER BY index"


class Listed(msgspec.Struct, frozen=True):
    """One row of the list."""

    index: int
    name: str
    dsn: str | None
    weight: float | None
    is_draining: bool


def shard_list_steps(config: Config) -> Iterator[Step]:
    """What the first shard needs: the list, with the shards that there are."""
    rows = ", ".join(f"({index}, {quote_text(shard.name)})" for index, shard in enumerate(config.shards))
    yield TABLE
    yield Step(
        "rows of foreshard.shard",
        f"INSERT INTO foreshard.shard AS known (index, name) VALUES {rows}\n"
        "ON CONFLICT (index) DO UPDATE SET name = excluded.name;\n",
    )


async def read_list(connection: Connection) -> list[Listed]:
    """The list, from the first shard; empty before the first apply."""
    if not await connection.fetchval(IS_THERE):
        return []
    return as_list(await connection.fetch(LIST))


def as_list(rows: Iterable[Mapping[str, Any]]) -> list[Listed]:
    """Rows of LIST as values."""
    return [Listed(**dict(row)) for row in rows]


def follow(config: Config, listed: list[Listed]) -> Config:
    """The configuration with the shards that the list has. ConfigError when nothing says where one of them is."""
    if not listed:
        return config
    named = {shard.name: shard for shard in config.shards}
    known = {each.name for each in listed}
    found = []
    for each in listed:
        own = named.get(each.name)
        is_unsaid = own is None and each.dsn is None and each.index < len(config.shards)
        if is_unsaid and config.shards[each.index].name not in known:
            own = config.shards[each.index]  # by another name
        if own is None and each.dsn is None:
            raise ConfigError(
                [f"{config.path}: shards: the deployment has a shard {each.name}, and nothing says where: restore it"]
            )
        found.append(
            ShardConfig(
                name=own.name if own is not None else each.name,
                dsn=own.dsn if own is not None else each.dsn or "",
                weight=each.weight or (own.weight if own is not None else 1.0),
                is_draining=each.is_draining,
            )
        )
    return msgspec.structs.replace(config, shards=tuple(found))


def strangers(config: Config, listed: list[Listed]) -> list[ShardConfig]:
    """Shards that configuration names and the deployment does not have."""
    if not listed:
        return []
    known = {shard.name for shard in follow(config, listed).shards}
    return [shard for shard in config.shards if shard.name not in known]


async def current(config: Config) -> Config:
    """The configuration with the shards that the deployment has now. ForeshardError when its first one is down."""
    first = config.shards[0]
    async with connected(f"shard {first.name}", first.dsn) as connection:
        return follow(config, await read_list(connection))


def latest(config: Config) -> Config:
    """The same, for a command that need not have an event loop yet; says of shards that only the file has."""
    return asyncio.run(_latest(config))


async def _latest(config: Config) -> Config:
    first = config.shards[0]
    try:
        async with connected(f"shard {first.name}", first.dsn) as connection:
            listed = await read_list(connection)
    except ForeshardError:
        return config  # the command will say so
    for shard in strangers(config, listed):
        print(
            f"foreshard: {config.path}: shards: {shard.name} is none of the deployment: "
            f"`foreshard shards add {shard.name}` takes it in",
            file=sys.stderr,
        )
    return follow(config, listed)


class ShardWatch:
    """Looks at the list for one supervisor, and tells it of every other one. Owns a connection while it runs."""

    def __init__(self, config: Config, tell: Callable[[Config], None]) -> None:
        self.config = config
        self._tell = tell

    async def run(self) -> None:
        """Look until cancelled; while the first shard is down nothing is known to have changed."""
        connection: Connection | None = None
        try:
            while self.config.tables:
                try:
                    connection = connection or await connect(self.config.shards[0].dsn, SETTINGS)
                    await self._look(connection)
                except LOST:
                    if connection is not None:
                        connection.terminate()
                    connection = None
                await asyncio.sleep(LOOK_INTERVAL_S)
        finally:
            if connection is not None:
                connection.terminate()

    async def _look(self, connection: Connection) -> None:
        found = follow(self.config, await read_list(connection))
        if found.shards != self.config.shards:
            self.config = found
            self._tell(found)
