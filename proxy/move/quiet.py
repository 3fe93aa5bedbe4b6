"""How a mover gets a bucket for itself: routers give way, sessions that nobody answers for end, prepared ones are over.

While MOVE_LOCK of the source is held by the mover's transaction, nothing uses the bucket there:

- a router that holds it shared was told by NOTIFY, and has let go when no session of its has the bucket open
  (control/placing.py), and says which bucket; one that has lost its hold is a stranger, whose sessions are ended;
- a transaction that was prepared before is waited for, whosever it is: its rows would not be seen, and stay behind.
"""

from __future__ import annotations

import asyncio
import time

import asyncpg
import msgspec

from foreshard.proxy.control.fence import END_STRANGERS_NOW, FREEZE_CHANNEL, IS_WAITING, UNWILLING
from foreshard.proxy.control.introspect import Connection
from foreshard.proxy.control.moves import MOVE_LOCK
from foreshard.proxy.control.placing import Notice

TURN_MS = 70  # that routers may take to hear, beside what they give transactions to end
TRIPS = 3  # round trips to the shard that it takes until all have given way
PREPARED_WAIT_S = 0.05  # for transactions over several shards that are just being committed
POLL_S = 0.001  # between looks at locks and prepared transactions: PostgreSQL tells nobody of either
PREPARED = "SELECT gid::text FROM pg_prepared_xacts WHERE database = current_database()"
LOCK_TIMEOUT_MS = 50  # of a flip, for rows and locks that others have: writers of the bucket wait meanwhile
# When the lock is there: whatever waits behind it in one message costs writers no round trip of its own. Sessions are
# ended first: what one of them prepares as it ends is listed behind that.
LOCK = f"""
SET LOCAL lock_timeout = {{wait_ms}}; SELECT pg_advisory_xact_lock({MOVE_LOCK});
SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}; {END_STRANGERS_NOW};
SELECT FROM ({UNWILLING}) AS unwilling UNION ALL SELECT FROM ({PREPARED}) AS prepared
"""


async def quieten(source: Connection, bell: Connection, notice: Notice, begin: str) -> None:
    """Take MOVE_LOCK in the transaction that is open on the source, and see that nothing uses the bucket any more.

    asyncpg.LockNotAvailableError when somebody does. `bell` is another connection to the source; it has a transaction
    open afterwards, too, by `begin`.
    """
    began_s = time.monotonic()
    await bell.execute("SELECT")
    wait_ms = TURN_MS + int(1000 * (notice.patience_s + TRIPS * (time.monotonic() - began_s)))
    locking = asyncio.create_task(source.execute(LOCK.format(wait_ms=wait_ms, bucket=notice.bucket)))
    try:
        while not locking.done():
            is_waiting = await bell.fetchval(IS_WAITING, source.get_server_pid())
            if is_waiting:
                text = msgspec.json.encode(notice).decode()
                await bell.execute("SELECT pg_notify($1, $2)", FREEZE_CHANNEL, text)
                break
            await asyncio.sleep(POLL_S)
        await bell.execute(begin)
    finally:
        in_the_way = _row_count(await locking)
    if in_the_way:
        unwilling = await source.fetch(UNWILLING.format(bucket=notice.bucket))
        if unwilling:
            raise asyncpg.LockNotAvailableError(f"{len(unwilling)} routers have not given the bucket up")
        await _see_prepared_end(source)


def _row_count(tag: str) -> int:
    """Rows of the last SELECT of a message."""
    return int(tag.split()[-1])


async def _see_prepared_end(source: Connection) -> None:
    """Wait until everything that is prepared now has ended."""
    deadline_s = asyncio.get_running_loop().time() + PREPARED_WAIT_S
    left = {row["gid"] for row in await source.fetch(PREPARED)}
    while left:
        if asyncio.get_running_loop().time() > deadline_s:
            raise asyncpg.LockNotAvailableError(f"{len(left)} transactions are prepared, {min(left)} among them")
        await asyncio.sleep(POLL_S)
        left &= {row["gid"] for row in await source.fetch(PREPARED)}
