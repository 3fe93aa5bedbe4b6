"""What must hold at the end of the demo, asked of the shards themselves and through the proxy."""

from __future__ import annotations

import asyncio
from collections import defaultdict

import msgspec

from foreshard._core.buckets import bucket_of
from foreshard.proxy.admin import ShardAnswer, ask_control, ask_shards
from foreshard.proxy.config import Config
from foreshard.proxy.errors import ForeshardError

OUTBOX_SQL = "SELECT (SELECT count(*) FROM foreshard.outbox), (SELECT count(*) FROM foreshard.dead_letter)"
EFFECTS_SQL = """
SELECT count(*) FILTER (WHERE indexed < revision OR compressed < revision OR shingled < revision),
       count(*) FILTER (WHERE indexed > revision OR compressed > revision OR shingled > revision)
  FROM document"""
STRAY_CHILDREN_SQL = """
SELECT count(*) FROM symbol WHERE foreshard.bucket_of(id) <> foreshard.bucket_of(document_id)"""
DRAIN_POLL_S = 0.3
DRAIN_STALL_S = 180.0  # no event handled for so long: something is wrong


class Outbox(msgspec.Struct, frozen=True):
    """Events of all shards."""

    waiting: int
    dead: int


class Placement(msgspec.Struct, frozen=True):
    """Where the rows are."""

    rows: tuple[int, ...]  # documents per shard
    misplaced: int  # keys that are on no shard, on several, or not on the one that owns their bucket
    paths: dict[int, str]  # of every document on any shard


class Effects(msgspec.Struct, frozen=True):
    """How often the trigger functions' transactional effects took place, against the revisions written."""

    lost: int  # documents with an effect missing
    repeated: int  # documents with an effect made twice


async def ask_all(config: Config, sql: str) -> list[ShardAnswer]:
    """Answers of every shard; ForeshardError when one does not answer."""
    answers = await ask_shards(config, sql)
    for answer in answers:
        if answer.error is not None:
            raise ForeshardError(f"shard {answer.shard}: {answer.error}")
    return answers


async def read_outbox(config: Config) -> Outbox:
    """Events not handled yet and dead letters."""
    rows = [answer.rows[0] for answer in await ask_all(config, OUTBOX_SQL)]
    return Outbox(sum(_number(row[0]) for row in rows), sum(_number(row[1]) for row in rows))


async def read_effects(config: Config) -> Effects:
    """Documents whose functions' effects differ from their revisions; right only once the outbox is empty."""
    rows = [answer.rows[0] for answer in await ask_all(config, EFFECTS_SQL)]
    return Effects(sum(_number(row[0]) for row in rows), sum(_number(row[1]) for row in rows))


async def read_placement(config: Config, expected: set[int]) -> Placement:
    """Ask every shard for its documents and compare with the bucket map in the control database."""
    map_answer = await ask_control(config, "SELECT bucket, shard FROM foreshard.bucket_map")
    if map_answer.error is not None:
        raise ForeshardError(f"the control database: {map_answer.error}")
    owners = {_number(bucket): _number(shard) for bucket, shard in map_answer.rows}
    shards_of: dict[int, list[int]] = defaultdict(list)
    paths: dict[int, str] = {}
    rows = []
    for index, answer in enumerate(await ask_all(config, "SELECT id, path FROM document")):
        rows.append(len(answer.rows))
        for key, path in answer.rows:
            shards_of[_number(key)].append(index)
            paths[_number(key)] = str(path)
    misplaced = sum(shards_of.get(key, []) != [owners[bucket_of(key)]] for key in expected | set(paths))
    strays = [_number(answer.rows[0][0]) for answer in await ask_all(config, STRAY_CHILDREN_SQL)]
    return Placement(tuple(rows), misplaced + sum(strays), paths)


class Drain:
    """Waits until no shard has an event left. Made when the load has ended."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.last = Outbox(0, 0)

    async def begin(self) -> int:
        """Events to be handled now."""
        self.last = await read_outbox(self.config)
        return self.last.waiting

    async def step(self) -> int:
        """Wait a moment; events left. ForeshardError when none was handled for a long time."""
        deadline_s = asyncio.get_running_loop().time() + DRAIN_STALL_S
        before = self.last.waiting
        while asyncio.get_running_loop().time() < deadline_s:
            await asyncio.sleep(DRAIN_POLL_S)
            self.last = await read_outbox(self.config)
            if self.last.waiting < before or self.last.waiting == 0:
                return self.last.waiting
        raise ForeshardError(
            f"{before} events wait and none was handled for {DRAIN_STALL_S:.0f} s; see the workers' logs"
        )


def _number(value: object) -> int:
    assert isinstance(value, int)
    return value
