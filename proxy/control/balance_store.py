"""What balancers tell each other and keep in the control database: demand, decisions, and whether they may move."""

from __future__ import annotations

import datetime
from collections.abc import Iterator

import msgspec
import numpy as np
from numpy.typing import NDArray

from foreshard._core.buckets import BUCKET_COUNT
from foreshard.proxy.control.introspect import Connection
from foreshard.proxy.control.move_store import MOVE_CHANNEL
from foreshard.proxy.control.steps import Step, labelled_step

DEMAND = """\
CREATE UNLOGGED TABLE IF NOT EXISTS foreshard.demand (
  instance text PRIMARY KEY,
  reads bigint[] NOT NULL,
  rows bigint[] NOT NULL,
  costs double precision[] NOT NULL,
  degraded text NOT NULL DEFAULT '',
  told_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE foreshard.demand IS
  'what each proxy was asked of every bucket since it began: statements that read, rows written, cost predicted';
"""
DECISION = """\
CREATE TABLE IF NOT EXISTS foreshard.rebalance_decision (
  id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
  decided_at timestamptz NOT NULL DEFAULT now(),
  verdict text NOT NULL,
  resource text NOT NULL,
  fullest double precision NOT NULL,
  expected double precision NOT NULL,
  moves integer NOT NULL,
  rows bigint NOT NULL,
  detail text NOT NULL
);
COMMENT ON TABLE foreshard.rebalance_decision IS
  'rounds of the rebalancer that moved something, or came to another verdict than the one before';
"""
CONTROL = """\
CREATE TABLE IF NOT EXISTS foreshard.rebalance_control (
  is_only_row boolean PRIMARY KEY DEFAULT true CHECK (is_only_row),
  is_paused boolean NOT NULL DEFAULT false,
  asked_at timestamptz
);
COMMENT ON TABLE foreshard.rebalance_control IS
  'is_paused: nothing is planned and nothing moves; asked_at: when somebody asked for a round at once';
"""
TELL = """
INSERT INTO foreshard.demand AS known (instance, reads, rows, costs, degraded) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (instance) DO UPDATE SET reads = excluded.reads, rows = excluded.rows,
  costs = excluded.costs, degraded = excluded.degraded, told_at = now()
"""
TOLD = """
SELECT instance, reads, rows, costs, degraded, extract(epoch FROM now() - told_at)::float8 AS age_s
FROM foreshard.demand
"""
UNTELL = "DELETE FROM foreshard.demand WHERE instance = $1"
FORGET = "DELETE FROM foreshard.demand WHERE told_at < now() - make_interval(secs => $1)"
DECIDE = """
INSERT INTO foreshard.rebalance_decision (verdict, resource, fullest, expected, moves, rows, detail)
VALUES ($1, $2, $3, $4, $5, $6, $7)
"""
PAUSE = "UPDATE foreshard.rebalance_control SET is_paused = $1"
ASK = "UPDATE foreshard.rebalance_control SET asked_at = now()"


class Told(msgspec.Struct, frozen=True):
    """The demand that one proxy has counted since it began."""

    instance: str
    reads: NDArray[np.float64]  # by bucket
    rows: NDArray[np.float64]
    costs: NDArray[np.float64]  # buckets x resources, in each resource's own unit
    degraded: str  # the functions whose profile is not to be trusted
    age_s: float = 0.0


class Orders(msgspec.Struct, frozen=True):
    """What operators have asked for."""

    is_paused: bool = False
    asked_at: datetime.datetime | None = None


def balance_table_steps() -> Iterator[Step]:
    """What the control database needs for rebalancing."""
    yield labelled_step("table foreshard.demand", DEMAND)
    yield labelled_step("table foreshard.rebalance_decision", DECISION)
    yield labelled_step("table foreshard.rebalance_control", CONTROL)
    yield Step(
        "row of foreshard.rebalance_control",
        "INSERT INTO foreshard.rebalance_control (is_only_row) VALUES (true) ON CONFLICT (is_only_row) DO NOTHING;\n",
    )


async def tell(connection: Connection, told: Told) -> None:
    """Tell the others what this proxy has counted."""
    counts = [[int(value) for value in array] for array in (told.reads, told.rows)]
    await connection.execute(TELL, told.instance, *counts, told.costs.ravel().tolist(), told.degraded)


async def untell(connection: Connection, instance: str) -> None:
    """This proxy ends: nobody need wait for what it would tell."""
    await connection.execute(UNTELL, instance)


async def read_told(connection: Connection, forget_s: float) -> list[Told]:
    """What every proxy has told last; those that have been silent for `forget_s` are forgotten."""
    await connection.execute(FORGET, forget_s)
    return [
        Told(
            row["instance"],
            np.array(row["reads"], dtype=float),
            np.array(row["rows"], dtype=float),
            np.array(row["costs"], dtype=float).reshape(BUCKET_COUNT, -1),
            row["degraded"],
            row["age_s"],
        )
        for row in await connection.fetch(TOLD)
    ]


async def read_orders(connection: Connection) -> Orders:
    """What operators have asked for."""
    row = await connection.fetchrow("SELECT is_paused, asked_at FROM foreshard.rebalance_control")
    return Orders() if row is None else Orders(row["is_paused"], row["asked_at"])


async def set_paused(connection: Connection, is_paused: bool) -> None:
    """Keep buckets where they are, or let them move again."""
    await connection.execute(PAUSE, is_paused)
    await connection.execute(f"NOTIFY {MOVE_CHANNEL}")


async def ask_round(connection: Connection) -> None:
    """Ask the leader for a round at once."""
    await connection.execute(ASK)
    await connection.execute(f"NOTIFY {MOVE_CHANNEL}")


async def keep_decision(
    connection: Connection, verdict: str, resource: str, ratios: tuple[float, float], moves: int, rows: int, detail: str
) -> None:
    """Keep what a round came to; `ratios` are the fullest shard's, now and when the moves are done."""
    await connection.execute(DECIDE, verdict, resource, *ratios, moves, rows, detail)
