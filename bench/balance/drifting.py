"""Load that drifts on four real shards, under the real rebalancer, and beside it the same load with nothing moving.

Clients read and update roots by the zipf distribution (0.99), as many statements per second as they are told; after
every epoch some of the hottest roots change places with cold ones. Roots lie in buckets by hash. The shards' shares are
those of the distribution that clients draw from at that moment, by the owners at that moment: nothing of chance in it.
The rebalancer knows counts only. What clients were told of their updates is compared with the rows at the end.

Other than by default: a shard is said to give 0.05 CPU seconds per second, or so little load would leave it alone, and
a moved bucket rests for 30 s, because the hot set changes within minutes here.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import numpy as np
import numpy.typing as npt

from bench import Options
from bench.balance.workload import ZIPF_THETA
from bench.report import table
from foreshard._core.buckets import bucket_of
from foreshard.proxy.placement import max_over_mean
from foreshard.proxy.rebalance import Limits
from tests.support.postgres import Shards, TestInstances
from tests.support.proxy import Proxy

SHARDS = 4
CLIENTS = 8
CHILDREN = 3
SAMPLE_S = 1.0
ASK_S = 3.5  # --small: between requests for a round, which would come by itself every 6 s
COOLDOWN_S = 30
CAPACITY = {"cpu": 0.05}
ARMS = {"paused": False, "rebalanced": True}
SCHEMA = """
CREATE TABLE item (id bigint PRIMARY KEY, n bigint NOT NULL DEFAULT 0, body text NOT NULL);
CREATE TABLE part (id bigint PRIMARY KEY, item_id bigint NOT NULL REFERENCES item, body text NOT NULL);
CREATE INDEX part_item_id ON part (item_id);
"""
TABLES = {"item": {"key": "id"}, "part": {"key": "id", "parent": "item", "via": "item_id"}}
FILL = f"""
INSERT INTO item (id, body) SELECT n, repeat('x', 100) FROM generate_series(1, {{}}) AS n
  WHERE (SELECT get_bit(buckets, foreshard.bucket_of(n)) FROM foreshard.owned_buckets) = 1;
INSERT INTO part SELECT id * {CHILDREN} + part_number, id, repeat('x', 100)
  FROM item, generate_series(0, {CHILDREN - 1}) AS part_number;
"""
READ = "SELECT n FROM item WHERE id = $1"
UPDATE = "UPDATE item SET n = n + 1 WHERE id = $1"
OWNERS = "SELECT shard FROM foreshard.bucket_map ORDER BY bucket"
MOVED = "SELECT count(*), coalesce(sum(rows), 0)::bigint FROM foreshard.move WHERE state = 'done'"
FAILED = "SELECT count(*) FROM foreshard.move WHERE state = 'failed'"
ASK = "UPDATE foreshard.rebalance_control SET asked_at = now()"
DECIDED = "SELECT verdict, fullest, expected, moves FROM foreshard.rebalance_decision ORDER BY id"

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Scale:
    """How much is done."""

    roots: int
    per_second: float  # statements of all clients
    hot: int  # of which so many
    replaced: int  # change places after every epoch
    epoch_s: float
    seconds: dict[str, float]  # by arm


FULL = Scale(8_000, 500.0, 100, 10, 20.0, {"paused": 100.0, "rebalanced": 100.0})
SMALL = Scale(1_000, 300.0, 50, 10, 4.0, {"paused": 2.0, "rebalanced": 9.0})


@dataclass
class Arm:
    """What was seen of one run."""

    times_s: list[float] = field(default_factory=list)
    shares: list[list[float]] = field(default_factory=list)  # of the load, by shard
    moves: list[int] = field(default_factory=list)  # done so far
    rows: list[int] = field(default_factory=list)  # moved so far
    waits_ms: list[float] = field(default_factory=list)
    decisions: list[tuple[Any, ...]] = field(default_factory=list)
    rows_before: int = 0
    failed: int = 0
    errors: int = 0
    updates_lost: int = 0

    @property
    def ratios(self) -> list[float]:
        """max/mean by sample."""
        return [max_over_mean(shares) for shares in self.shares]


class Popularity:
    """Who is asked for; drifts."""

    def __init__(self, seed: int, scale: Scale) -> None:
        self._random = np.random.default_rng([seed, 4])
        self._scale = scale
        self._root_of_rank = self._random.permutation(scale.roots)
        shares = 1 / np.arange(1, scale.roots + 1) ** ZIPF_THETA
        self._shares = shares / shares.sum()
        self._ranks = np.cumsum(self._shares)
        self._bucket = np.array([bucket_of(key) for key in range(1, scale.roots + 1)])

    def draw(self, random: np.random.Generator) -> int:
        """A root's key."""
        rank = int(np.searchsorted(self._ranks, random.random()))
        return int(self._root_of_rank[min(rank, self._scale.roots - 1)]) + 1

    def drift(self) -> None:
        """Some of the hottest roots change places with cold ones."""
        old = self._random.choice(self._scale.hot, self._scale.replaced, replace=False)
        new = self._random.choice(np.arange(self._scale.hot, self._scale.roots), self._scale.replaced, replace=False)
        ranks = self._root_of_rank
        ranks[old], ranks[new] = ranks[new].copy(), ranks[old].copy()

    def by_shard(self, owners: npt.NDArray[np.int64]) -> list[float]:
        """The share of all statements that each shard is asked for now."""
        of_rank = owners[self._bucket[self._root_of_rank]]
        return [float(share) for share in np.bincount(of_rank, weights=self._shares, minlength=SHARDS)]


class Run:
    """One arm, on fresh databases."""

    def __init__(self, shards: Shards, proxy: Proxy, seed: int, scale: Scale, seconds: float) -> None:
        self.shards = shards
        self.proxy = proxy
        self.seed = seed
        self.scale = scale
        self.arm = Arm()
        self.popularity = Popularity(seed, scale)
        self.acknowledged = 0
        self.began_s = time.monotonic()
        self.end_s = self.began_s + seconds

    async def run(self, *, asks: bool) -> Arm:
        """Send the load, and watch; `asks` for rounds sooner than they come."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch())
            group.create_task(self._drift())
            if asks:
                group.create_task(self._ask())
            for number in range(CLIENTS):
                group.create_task(self._send(np.random.default_rng([self.seed, 40, number])))
        totals = [int(str(self.shards.query("SELECT sum(n) FROM item", on=index)[0][0])) for index in range(SHARDS)]
        self.arm.updates_lost = self.acknowledged - sum(totals)
        return self.arm

    @contextlib.asynccontextmanager
    async def _control(self) -> AsyncIterator[asyncpg.Connection[Any]]:
        connection = await asyncpg.connect(self.shards.dsns[0])
        try:
            yield connection
        finally:
            await connection.close()

    async def _send(self, random: np.random.Generator) -> None:
        """One client, which keeps to its pace: late is late."""
        interval_s = CLIENTS / self.scale.per_second
        server = self.proxy.server
        client = await asyncpg.connect(
            host=server.host, port=server.port, user=server.user, database=server.database, ssl=False
        )
        due_s = time.monotonic() + random.random() * interval_s
        try:
            while (now_s := time.monotonic()) < self.end_s:
                if due_s > now_s:
                    await asyncio.sleep(due_s - now_s)
                key, is_update = self.popularity.draw(random), random.random() < 0.5
                try:
                    if is_update:
                        await client.execute(UPDATE, key)
                        self.acknowledged += 1
                    else:
                        await client.fetchval(READ, key)
                except asyncpg.PostgresError:
                    self.arm.errors += 1
                self.arm.waits_ms.append((time.monotonic() - max(due_s, now_s)) * 1000)
                due_s += interval_s
        finally:
            await client.close()

    async def _drift(self) -> None:
        for epoch in range(1, int((self.end_s - self.began_s) / self.scale.epoch_s) + 1):
            await asyncio.sleep(max(self.began_s + epoch * self.scale.epoch_s - time.monotonic(), 0.0))
            self.popularity.drift()

    async def _ask(self) -> None:
        async with self._control() as connection:
            while time.monotonic() + ASK_S < self.end_s:
                await asyncio.sleep(ASK_S)
                await connection.execute(ASK)

    async def _watch(self) -> None:
        async with self._control() as connection:
            while True:
                owners = np.array([row[0] for row in await connection.fetch(OWNERS)], dtype=np.int64)
                moves, rows = await connection.fetchrow(MOVED) or (0, 0)
                self.arm.times_s.append(time.monotonic() - self.began_s)
                self.arm.shares.append(self.popularity.by_shard(owners))
                self.arm.moves.append(moves)
                self.arm.rows.append(rows)
                if time.monotonic() > self.end_s:
                    break
                await asyncio.sleep(SAMPLE_S)
            self.arm.failed = await connection.fetchval(FAILED)
            self.arm.decisions = [tuple(row) for row in await connection.fetch(DECIDED)]


def run_arm(name: str, instances: TestInstances, folder: Path, options: Options) -> Arm:
    """One arm: with the rebalancer, or without."""
    scale = SMALL if options.small else FULL
    shards = instances.create(SHARDS)
    try:
        shards.execute(SCHEMA)
        rebalance = {"automatic": ARMS[name], "cooldown": f"{COOLDOWN_S}s"}
        proxy = Proxy(
            shards.dsns, folder, tables=TABLES, workers={"per_shard": 0}, placement={"capacity": CAPACITY},
            rebalance=rebalance,
        )  # fmt: skip
        shards.execute(FILL.format(scale.roots))
        with proxy:
            run = Run(shards, proxy, options.seed, scale, scale.seconds[name])
            arm = asyncio.run(run.run(asks=options.small and ARMS[name]))
        arm.rows_before = scale.roots * (1 + CHILDREN)
        return arm
    finally:
        instances.drop(shards)


def run_drifting(options: Options) -> dict[str, Any]:
    """Both arms, one after the other: `arms[name]` over time, `figures[name]` of it."""
    scale = SMALL if options.small else FULL
    instances = TestInstances(SHARDS)
    try:
        with tempfile.TemporaryDirectory() as folder:
            arms = {name: run_arm(name, instances, Path(folder) / name, options) for name in ARMS}
    finally:
        instances.close()
    failures = [
        f"drift on real shards, {name}: {arm.updates_lost} updates lost, {arm.errors} errors, {arm.failed} moves failed"
        for name, arm in arms.items()
        if arm.updates_lost or arm.errors or arm.failed
    ]
    return {
        "shards": SHARDS,
        "per_second": scale.per_second,
        "roots": scale.roots,
        "epoch_s": scale.epoch_s,
        "replaced": scale.replaced,
        "hot": scale.hot,
        "start": Limits().start,
        "failures": failures,
        "arms": {name: {**vars(arm), "ratios": arm.ratios, "waits_ms": []} for name, arm in arms.items()},
        "figures": {name: summarize(arm) for name, arm in arms.items()},
    }


def summarize(arm: Arm) -> dict[str, float]:
    """At the beginning, and from the second half on."""
    half = len(arm.ratios) // 2
    waits = np.array(arm.waits_ms)
    return {
        "first": arm.ratios[0],
        "mean": statistics.fmean(arm.ratios),
        "later": statistics.fmean(arm.ratios[half:]),
        "worst_later": max(arm.ratios[half:]),
        "moves": arm.moves[-1],
        "rows": arm.rows[-1],
        "rows_share": arm.rows[-1] / arm.rows_before,
        "per_second": len(waits) / arm.times_s[-1],
        "p50_ms": float(np.percentile(waits, 50)),
        "p99_ms": float(np.percentile(waits, 99)),
    }


def print_drifting(result: dict[str, Any]) -> None:
    """One line per arm."""
    print(
        f"\ndrift on {result['shards']} real shards: max/mean of the load, {result['per_second']:.0f} statements/s by"
        f" zipf {ZIPF_THETA} over {result['roots']} roots; {result['replaced']} of the {result['hot']} hottest change"
        f" every {result['epoch_s']:.0f} s; later: the second half"
    )
    headings = ["", "first", "mean", "later", "worst later", "moves", "rows", "of all", "stmt/s", "p50 ms", "p99 ms"]
    lines = [
        [
            name,
            *(f"{found[key]:.3f}" for key in ("first", "mean", "later", "worst_later")),
            found["moves"],
            found["rows"],
            f"{found['rows_share']:.2%}",
            f"{found['per_second']:.0f}",
            *(f"{found[key]:.1f}" for key in ("p50_ms", "p99_ms")),
        ]
        for name, found in result["figures"].items()
    ]
    print(table(headings, lines))
    for decision in result["arms"]["rebalanced"]["decisions"]:
        print("  {}: fullest {:.3f}, expected {:.3f}, {} moves".format(*decision))
