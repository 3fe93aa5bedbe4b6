"""What moves of buckets need on every shard: the lock that a flip takes, and what workers ask before they commit.

MOVE_LOCK of a shard is held shared by everybody who may write or read there by the map that they know, and exclusively
by the transaction that takes a bucket away from it, until that has ended (a prepared transaction keeps it, too). So
whoever has it again, and then reads foreshard.owned_buckets, knows what is there.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator

from foreshard.proxy.config import Config
from foreshard.proxy.control.connect import connected, control_dsn
from foreshard.proxy.control.key_sql import function_step
from foreshard.proxy.control.steps import Step
from foreshard.proxy.errors import ForeshardError

MOVE_LOCK = 0x6D6F7665  # the bytes of "move"
# In the control database: held by the leader while a bucket moves, shared by those who work by a map that must stay.
STAY_LOCK = 0x73746179  # the bytes of "stay"
HAS_MOVES = "SELECT to_regclass('foreshard.move') IS NOT NULL"
UNDER_WAY = "SELECT EXISTS (SELECT FROM foreshard.move WHERE state IN ('copying', 'flipping'))"

STILL_PLACED = f"""\
CREATE OR REPLACE FUNCTION foreshard.still_placed(moves bigint) RETURNS boolean LANGUAGE plpgsql VOLATILE AS $body$
-- Whether no bucket has left this shard since `moves` was read there; none leaves it before this transaction has ended.
BEGIN
  PERFORM pg_catalog.pg_advisory_xact_lock_shared({MOVE_LOCK});
  RETURN (SELECT owned.moves OPERATOR(pg_catalog.=) still_placed.moves FROM foreshard.owned_buckets AS owned);
END
$body$;
REVOKE EXECUTE ON FUNCTION foreshard.still_placed(bigint) FROM PUBLIC;
"""


@contextlib.asynccontextmanager
async def buckets_stay(config: Config) -> AsyncIterator[None]:
    """No bucket moves meanwhile; waits for one that does."""
    async with connected("control database", control_dsn(config)) as connection:
        await connection.execute(f"SELECT pg_advisory_lock_shared({STAY_LOCK})", timeout=None)
        if await connection.fetchval(HAS_MOVES) and await connection.fetchval(UNDER_WAY):
            raise ForeshardError(
                "a move is under way whose mover has ended: run it again when a balancer has settled it"
            )
        yield


def move_steps() -> Iterator[Step]:
    """What every shard needs for moves."""
    yield function_step("foreshard.still_placed(bigint)", STILL_PLACED)
