"""The moves in the control database: what is planned, what is under way, and what has been, with its reason."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import Enum

import msgspec
from asyncpg import Record

from foreshard.proxy.control.introspect import Connection
from foreshard.proxy.control.steps import Step, labelled_step

MOVE_CHANNEL = "foreshard_move"  # that there is something to do, or not to do any more


class State(Enum):
    """Written before what it says is begun."""

    PLANNED = "planned"
    COPYING = "copying"  # nothing is on the target but what its open transaction has
    FLIPPING = "flipping"  # the shards know whether it has happened
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


OPEN_STATES = [State.PLANNED.value, State.COPYING.value, State.FLIPPING.value]
MOVE = f"""\
CREATE TABLE IF NOT EXISTS foreshard.move (
  id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
  bucket integer NOT NULL CHECK (bucket BETWEEN 0 AND 4095),
  source integer NOT NULL,
  target integer NOT NULL CHECK (target <> source),
  state text NOT NULL DEFAULT 'planned' CHECK (state IN ({", ".join(f"'{state.value}'" for state in State)})),
  reason text NOT NULL,
  gain double precision,
  way text,
  rows bigint,
  events bigint,
  bytes bigint,
  rounds integer,
  pause_s double precision,
  tries integer NOT NULL DEFAULT 0,
  not_before timestamptz,
  problem text,
  planned_at timestamptz NOT NULL DEFAULT now(),
  begun_at timestamptz,
  ended_at timestamptz
);
CREATE UNIQUE INDEX IF NOT EXISTS move_is_one ON foreshard.move (bucket)
  WHERE state IN ('planned', 'copying', 'flipping');
CREATE INDEX IF NOT EXISTS move_of_state ON foreshard.move (state, id);
COMMENT ON TABLE foreshard.move IS 'moves of buckets between shards: planned, under way, and past';
COMMENT ON COLUMN foreshard.move.gain IS 'by how much the fullest shard''s ratio to its share was to fall';
COMMENT ON COLUMN foreshard.move.pause_s IS 'how long the bucket was not to be used, at most';
"""
NEXT = """
SELECT id, bucket, source, target, state, reason, tries FROM foreshard.move
WHERE state = 'planned' AND (not_before IS NULL OR not_before <= now()) ORDER BY id LIMIT 1
"""
UNFINISHED = """
SELECT id, bucket, source, target, state, reason, tries FROM foreshard.move
WHERE state IN ('copying', 'flipping') ORDER BY id
"""
PLAN = """
INSERT INTO foreshard.move (bucket, source, target, reason, gain)
SELECT given.bucket, given.source, given.target, $4, given.gain
FROM unnest($1::integer[], $2::integer[], $3::integer[], $5::float8[]) AS given(bucket, source, target, gain)
ON CONFLICT (bucket) WHERE state IN ('planned', 'copying', 'flipping') DO NOTHING
"""
BEGIN = """
UPDATE foreshard.move SET state = 'copying', tries = tries + 1, begun_at = coalesce(begun_at, now()), problem = NULL
WHERE id = $1 AND state = 'planned' RETURNING id
"""
FLIP = "UPDATE foreshard.move SET state = 'flipping', way = $2, rows = $3, rounds = $4 WHERE id = $1"
END = """
UPDATE foreshard.move SET state = $2, ended_at = now(), problem = $3, rows = coalesce($4, rows),
  events = coalesce($5, events), pause_s = coalesce($6, pause_s), bytes = coalesce($7, bytes)
WHERE id = $1
"""
PROBLEM = "UPDATE foreshard.move SET problem = $2 WHERE id = $1"
LATER = """
UPDATE foreshard.move SET state = 'planned', problem = $2, not_before = now() + make_interval(secs => $3)
WHERE id = $1
"""
OWN = """
WITH changed AS (UPDATE foreshard.bucket_map SET shard = $2 WHERE bucket = $1 AND shard <> $2 RETURNING bucket)
UPDATE foreshard.cluster SET epoch = epoch + 1 WHERE EXISTS (SELECT FROM changed)
"""


class Planned(msgspec.Struct, frozen=True):
    """One move that is to be made, or has been begun."""

    id: int
    bucket: int
    source: int
    target: int
    state: State
    reason: str
    tries: int


class Figures(msgspec.Struct):
    """What a move has come to."""

    way: str = "small"
    rows: int = 0
    events: int = 0
    rounds: int = 0
    bytes: int = 0
    pause_s: float = 0.0


def move_table_steps() -> Iterator[Step]:
    """What the control database needs for moves."""
    yield labelled_step("table foreshard.move", MOVE)


async def plan_moves(connection: Connection, moves: Sequence[tuple[int, int, int, float | None]], reason: str) -> int:
    """Plan moves, (bucket, source, target, gain) each; how many are new: a bucket has one at a time."""
    columns = [list(column) for column in zip(*moves, strict=True)] if moves else [[], [], [], []]
    tag = await connection.execute(PLAN, columns[0], columns[1], columns[2], reason, columns[3])
    if int(tag.split()[-1]):
        await connection.execute(f"NOTIFY {MOVE_CHANNEL}")
    return int(tag.split()[-1])


async def next_move(connection: Connection) -> Planned | None:
    """The oldest planned move whose time has come."""
    row = await connection.fetchrow(NEXT)
    return None if row is None else _planned(row)


async def unfinished(connection: Connection) -> list[Planned]:
    """The moves that somebody has begun."""
    return [_planned(row) for row in await connection.fetch(UNFINISHED)]


async def targets(connection: Connection) -> dict[int, int]:
    """Where the buckets go whose moves are planned or under way."""
    rows = await connection.fetch("SELECT bucket, target FROM foreshard.move WHERE state = ANY ($1)", OPEN_STATES)
    return {row["bucket"]: row["target"] for row in rows}


async def begin_move(connection: Connection, id: int) -> bool:
    """Write down that it is begun; False when it is not planned any more."""
    return await connection.fetchval(BEGIN, id) is not None


async def note_flipping(connection: Connection, id: int, figures: Figures) -> None:
    """Write down that it may have happened from now on."""
    await connection.execute(FLIP, id, figures.way, figures.rows, figures.rounds)


async def note_problem(connection: Connection, id: int, problem: str) -> None:
    """Write down why it has not happened yet; it goes on."""
    await connection.execute(PROBLEM, id, problem)


async def put_off(connection: Connection, id: int, problem: str, seconds: float) -> None:
    """It has not happened, and is to be tried again after so long."""
    await connection.execute(LATER, id, problem, seconds)


async def end_move(
    connection: Connection, move: Planned, state: State, figures: Figures | None = None, problem: str | None = None
) -> None:
    """Write down how it has ended; the bucket map follows one that has happened."""
    found = figures or Figures()
    values = (found.rows, found.events, found.pause_s, found.bytes) if figures is not None else (None,) * 4
    async with connection.transaction():
        if state is State.DONE:
            await connection.execute(OWN, move.bucket, move.target)
        await connection.execute(END, move.id, state.value, problem, *values)


def _planned(row: Record) -> Planned:
    values = dict(row)
    return Planned(**{**values, "state": State(values["state"])})
