"""Distributed commit as the control plane sees it: which shards can take part, and the names of what they prepare.

Every writer but one prepares under a gid (_core/two_phase). The remaining one, the decision shard, inserts
`(id, 'commit')` into foreshard.decision in the client's own transaction and commits, which is the commit point; the
others then COMMIT PREPARED. Recovery (recovery.py) inserts `(id, 'abort')` under the same key and reads back which won.
"""

from __future__ import annotations

import asyncio

import msgspec

from foreshard._core.two_phase import Gid, gid_prefix, make_gid, new_id, parse_gid
from foreshard.proxy.config import Config, ShardConfig
from foreshard.proxy.control.connect import connected, control_dsn
from foreshard.proxy.control.schema_control import read_cluster
from foreshard.proxy.errors import ForeshardError

__all__ = ["Gid", "TwoPhase", "gid_prefix", "make_gid", "new_id", "parse_gid", "read_two_phase", "two_phase_ready"]

PREPARED_MAX = "SELECT current_setting('max_prepared_transactions')::int"


class TwoPhase(msgspec.Struct, frozen=True, kw_only=True):
    """What the relay must know to commit on several shards."""

    cluster: str
    first_count: int  # of shards, when it was made
    ready: frozenset[str]  # names of the shards that can prepare; one that was not reachable counts: PREPARE will tell


async def read_two_phase(config: Config) -> TwoPhase:
    """The cluster's name and the shards that can prepare. ForeshardError when the control database is not applied."""
    async with connected("control database", control_dsn(config)) as connection:
        known = await read_cluster(connection)
    if known is None:
        raise ForeshardError("the control database knows no cluster; run `foreshard apply`")
    return TwoPhase(cluster=known[0], first_count=known[1], ready=frozenset(await two_phase_ready(config)))


async def two_phase_ready(config: Config) -> set[str]:
    """Names of the shards whose max_prepared_transactions is not known to be 0."""
    found = await asyncio.gather(*map(_can_prepare, config.shards))
    return {shard.name for shard, can_prepare in zip(config.shards, found, strict=True) if can_prepare}


async def _can_prepare(shard: ShardConfig) -> bool:
    try:
        async with connected(f"shard {shard.name}", shard.dsn) as connection:
            return bool(await connection.fetchval(PREPARED_MAX))
    except ForeshardError:
        return True
