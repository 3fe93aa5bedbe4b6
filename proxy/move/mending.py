"""The bucket map in the control database, made true again: what buckets the shards have is said by themselves."""

from __future__ import annotations

import numpy as np

from foreshard._core.buckets import BUCKET_COUNT
from foreshard.proxy.config import Config
from foreshard.proxy.control.introspect import Connection
from foreshard.proxy.control.retry import connect
from foreshard.proxy.control.schema_control import read_bucket_map

OWNED = "SELECT buckets::text FROM foreshard.owned_buckets"
MEND = """
WITH changed AS (
  UPDATE foreshard.bucket_map AS known SET shard = given.shard
  FROM unnest($1::integer[]) WITH ORDINALITY AS given(shard, place)
  WHERE known.bucket = given.place - 1 AND known.shard <> given.shard RETURNING known.bucket)
UPDATE foreshard.cluster SET epoch = epoch + 1 WHERE EXISTS (SELECT FROM changed)
"""


async def mend_map(config: Config, control: Connection) -> int:
    """Write down who has which bucket, where that is not what the map says; how many it was wrong about.

    For whoever leads, when no move is under way. LOST when a shard does not answer. Nothing is written while two shards
    have a bucket, or none has it: `foreshard verify` tells of that.
    """
    owned = []
    for shard in config.shards:
        connection = await connect(shard.dsn)
        try:
            bits = await connection.fetchval(OWNED)
        finally:
            await connection.close()
        owned.append(np.frombuffer(bits.encode(), dtype=np.uint8) == ord("1"))
    found = np.array(owned)
    if found.shape[1] != BUCKET_COUNT or (found.sum(axis=0) != 1).any():
        return 0
    owners = found.argmax(axis=0).tolist()
    wrong = sum(int(one != other) for one, other in zip(await read_bucket_map(control), owners, strict=True))
    if wrong:
        await control.execute(MEND, owners)
    return wrong
