"""Where the parents of copied rows live: their claims are asked beside the client's transaction.

While a shard takes the rows of a COPY its connection cannot be asked anything, so a router has one more to each shard,
which sees what is committed. That is enough: a transaction that has new rows away from home may not copy rows behind
them, and its other new rows are at home. A parent that is deleted and inserted elsewhere while a COPY runs was not
there all the time: its rows may be refused (23503), by the foreign key on the shard where it was.
"""

from __future__ import annotations

import asyncio
import datetime
import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence

from foreshard._core.typed_keys import TYPE_NAMES, KeyType
from foreshard.proxy.config import ShardConfig
from foreshard.proxy.control.kept import KeptConnection, ShardDown, follow_shards
from foreshard.proxy.errors import SqlError

SETTINGS = {"application_name": "foreshard parents", "DateStyle": "ISO", "default_transaction_read_only": "on"}
FIND = (
    "SELECT foreshard.claimed_bucket($1, given::{})"
    " FROM unnest($2::text[]) WITH ORDINALITY AS u (given, place) ORDER BY place"
)
INTEGERS = frozenset({KeyType.TYPE_INT8, KeyType.TYPE_INT4, KeyType.TYPE_INT2})
MOMENTS = frozenset({KeyType.TYPE_TIMESTAMP, KeyType.TYPE_TIMESTAMPTZ})
KEYS_MAX = 5000  # of one question; chosen, not measured
ANSWERS_TIMEOUT_S = 15.0  # to all that a batch of rows asks of one shard, its place in the line of others included
EPOCH_JULIAN_DAY = 2451545  # 2000-01-01, from which dates and timestamps count
DAY_US = 86_400_000_000

Value = tuple[bytes, bool]  # as the client's data has it, and whether that is the binary format


class Parents:
    """One per router. Owns a connection to each shard, from the first use on; ends by `close`."""

    def __init__(self, shards: Sequence[ShardConfig]) -> None:
        self._kept = [KeptConnection(shard, SETTINGS, "SELECT 1") for shard in shards]

    def follow_shards(self, shards: Sequence[ShardConfig]) -> None:
        """The shards are these from now on."""
        follow_shards(self._kept, shards, SETTINGS, "SELECT 1")

    def close(self) -> None:
        """Give every connection up."""
        for kept in self._kept:
            kept.close()

    async def find(
        self, claim: str, key_type: int, limit: int, homes: Mapping[Value, int], shards: Mapping[int, int]
    ) -> dict[Value, int]:
        """The bucket of each key: what its claim says, else its home.

        `claim` is the name of the claims, `homes` the home bucket of each key, `shards` the shard of each of these,
        `limit` the length of a varchar(n), else 0. SqlError 08006 where a shard does not answer.
        """
        asked: dict[int, list[Value]] = defaultdict(list)
        for value, home in homes.items():
            asked[shards[home]].append(value)
        answers = await asyncio.gather(
            *(self._ask(shard, claim, key_type, [key_text(value, key_type, limit) for value in values])
              for shard, values in asked.items())
        )  # fmt: skip
        found = dict(homes)
        for values, buckets in zip(asked.values(), answers, strict=True):
            found |= {value: bucket for value, bucket in zip(values, buckets, strict=True) if bucket is not None}
        return found

    async def _ask(self, shard: int, claim: str, key_type: int, keys: list[str]) -> list[int | None]:
        kept, found = self._kept[shard], []
        try:
            async with asyncio.timeout(ANSWERS_TIMEOUT_S):
                for start in range(0, len(keys), KEYS_MAX):
                    async with kept.asked() as connection:
                        some = keys[start : start + KEYS_MAX]
                        found += await connection.fetch(FIND.format(TYPE_NAMES[key_type]), claim, some)
        except (ShardDown, TimeoutError) as error:
            why = str(error) or "no answer in time"
            hint = "SHOW SHARDS tells which are down. Run the COPY again."
            raise SqlError("08006", f"shard {kept.name} does not tell where rows are: {why}", hint=hint) from error
        return [row[0] for row in found]


def key_text(value: Value, key_type: int, limit: int) -> str:
    """A key as PostgreSQL reads it from text."""
    data, is_binary = value
    if key_type == KeyType.TYPE_TEXT or not is_binary:
        text = data.decode()
        return text[:limit] if limit and not text[limit:].strip(" ") else text
    if key_type == KeyType.TYPE_UUID:
        return str(uuid.UUID(bytes=data))
    if key_type == KeyType.TYPE_BYTEA:
        return "\\x" + data.hex()
    number = int.from_bytes(data, "big", signed=True)
    if key_type in INTEGERS:
        return str(number)
    bits = 8 * len(data) - 1
    if number in (-(2**bits), 2**bits - 1):
        return "infinity" if number > 0 else "-infinity"
    days, moment_us = divmod(number, DAY_US) if key_type in MOMENTS else (number, 0)
    moment = datetime.datetime.min + datetime.timedelta(microseconds=moment_us)
    suffix = f" {moment.time()}{'+00' if key_type == KeyType.TYPE_TIMESTAMPTZ else ''}" if key_type in MOMENTS else ""
    return f"J{EPOCH_JULIAN_DAY + days}{suffix}"
