"""Balance on four real shards: real clients, proxy, workers that burn CPU, measured loads.

The same streams as in the simulation (mixes A and B), a thousand times cheaper: a cost of one second is one millisecond
here, at most CAP_MS. An item's cost is divided between its payload and its tags, on which one trigger function each
works; noise is a column that no feature shows. Clients wait while many events do, as in a deployment in balance.
Every policy is run by itself on the same stream; offline LPT, the indivisible bound and what hashing is expected to
give are computed from the costs measured in that run.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import asyncpg
import numpy as np

from bench import Options
from bench.balance.burning import S_PER_BYTE, S_PER_TAG
from bench.balance.deployment import SHARDS, Deployment, deployed
from bench.balance.workload import CHILD, INSERT, Workload, make_workload
from bench.report import table
from foreshard.proxy.demo.pace import Pace
from foreshard.proxy.placement import POLICIES, expected_by_hash, indivisible_bound, longest_first, max_over_mean
from tests.support.postgres import TestInstances

SCALE = 1e-3
CAP_MS = 200.0
EVENTS, PRELOADED = 1600, 40
SEEDS = 3
REPEATED = ("bounded", "key-hash")  # run with every seed, the others with the first
CLIENTS = 8
BUDGET_S = 440.0  # no run begins that would end after it
INSERT_ITEM = "INSERT INTO item (payload, tags, noise) VALUES ($1, $2, $3) RETURNING id"
UPDATE_ITEM = "UPDATE item SET payload = $1, tags = $2, noise = $3 WHERE id = $4"
INSERT_PART = "INSERT INTO part (payload, noise, item_id) VALUES ($1, $2, $3)"


@dataclass(frozen=True)
class Outcome:
    """One policy on one stream."""

    mix: str
    seed: int
    policy: str
    max_over_mean: float
    rows_max_over_mean: float  # of items
    shadows: dict[str, float]
    hash_median: float  # of key-hash on the same items, over many draws
    hash_low: float
    hash_high: float
    oracle: float  # offline LPT
    bound: float
    cost_s: float
    q_errors: dict[str, tuple[float, float]]
    seconds: float


@dataclass(frozen=True)
class Scale:
    """How much work a run is."""

    events: int
    preloaded: int
    cap_ms: float
    factor: float  # of the cost


class Stream:
    """The statements of one workload, sent by several clients; a statement waits for the item it needs."""

    def __init__(self, workload: Workload, scale: Scale) -> None:
        loop = asyncio.get_running_loop()
        random = np.random.default_rng(workload.seed)
        self._workload = workload
        self._cost_s = np.minimum(workload.cost * SCALE * scale.factor, scale.cap_ms / 1000)
        self._noise = workload.executed / workload.cost
        self._share = random.uniform(0.2, 0.9, len(self._cost_s))  # of an item's cost that is its payload's
        total = workload.preloaded + int(np.sum(workload.kind == INSERT))
        self._keys: list[asyncio.Future[int]] = [loop.create_future() for _ in range(total)]
        self._next = 0

    async def preload(self, client: asyncpg.Connection[Any]) -> None:
        """Items that exist before the stream, at hardly any cost."""
        for number in range(self._workload.preloaded):
            self._keys[number].set_result(await client.fetchval(INSERT_ITEM, "", [], 1.0))

    async def send(self, client: asyncpg.Connection[Any], pace: Pace) -> None:
        """Send what is next until nothing is left."""
        while self._next < len(self._cost_s):
            number = self._next
            self._next += 1
            await pace.wait()
            await self._send_one(client, number)

    async def _send_one(self, client: asyncpg.Connection[Any], number: int) -> None:
        kind, root = int(self._workload.kind[number]), int(self._workload.root[number])
        cost_s, noise = float(self._cost_s[number]), float(self._noise[number])
        if kind == CHILD:
            payload = "x" * round(cost_s / S_PER_BYTE)
            await client.execute(INSERT_PART, payload, noise, await self._keys[root])
            return
        share = float(self._share[number])
        values = ("x" * round(cost_s * share / S_PER_BYTE), [1] * round(cost_s * (1 - share) / S_PER_TAG), noise)
        if kind == INSERT:
            self._keys[root].set_result(await client.fetchval(INSERT_ITEM, *values))
        else:
            await client.execute(UPDATE_ITEM, *values, await self._keys[root])


def run_real(options: Options) -> dict[str, Any]:
    """All runs that the time allows; `runs` is a list of outcomes."""
    if options.small:
        scale, planned = Scale(240, 20, 5.0, 0.05), [("B", options.seed, "bounded")]
    else:
        scale, planned = Scale(EVENTS, PRELOADED, CAP_MS, 1.0), plan_runs(options.seed)
    outcomes: list[Outcome] = []
    instances = TestInstances(SHARDS)
    began_s = time.monotonic()
    try:
        with tempfile.TemporaryDirectory() as name:
            for number, (mix, seed, policy) in enumerate(planned):
                passed_s = time.monotonic() - began_s
                if number and passed_s * (number + 1) / number > BUDGET_S:
                    break
                with deployed(instances, Path(name) / str(number), policy) as deployment:
                    outcomes.append(asyncio.run(run_one(deployment, mix, seed, policy, scale)))
    finally:
        instances.close()
    return {
        "shards": SHARDS,
        "events": scale.events,
        "runs": [asdict(outcome) for outcome in outcomes],
        "left_out": len(planned) - len(outcomes),
    }


def plan_runs(seed: int) -> list[tuple[str, int, str]]:
    """(mix, seed, policy): every policy with the first seed, then the repeated ones with the others."""
    first = [(mix, seed, policy) for policy in POLICIES for mix in ("A", "B")]
    return first + [(mix, seed + i, policy) for i in range(1, SEEDS) for policy in REPEATED for mix in ("A", "B")]


async def run_one(deployment: Deployment, mix: str, seed: int, policy: str, scale: Scale) -> Outcome:
    """Send one stream through one deployment, and read what came of it."""
    began_s = time.monotonic()
    stream = Stream(make_workload(mix, seed, scale.events, scale.preloaded), scale)
    async with deployment.clients(CLIENTS) as clients, Pace(deployment.config) as pace:
        await stream.preload(clients[0])
        async with asyncio.TaskGroup() as group:
            for client in clients:
                group.create_task(stream.send(client, pace))
    await deployment.drain()
    costs, groups = await deployment.costs(), await deployment.groups()
    hashing = expected_by_hash(groups, [1.0] * SHARDS)
    return Outcome(
        mix=mix,
        seed=seed,
        policy=policy,
        max_over_mean=max_over_mean(costs),
        rows_max_over_mean=max_over_mean(await deployment.item_counts()),
        shadows=await deployment.shadows(),
        hash_median=hashing.median,
        hash_low=hashing.low,
        hash_high=hashing.high,
        oracle=max_over_mean(longest_first(groups, SHARDS)),
        bound=indivisible_bound(groups, SHARDS),
        cost_s=sum(costs),
        q_errors=await deployment.q_errors(),
        seconds=time.monotonic() - began_s,
    )


def print_real(result: dict[str, Any]) -> None:
    """One line per run, then the medians of the policies that were repeated."""
    runs = result["runs"]
    print(f"\n{result['shards']} real shards, {result['events']} events, max/mean of measured cost")
    ordered = sorted(runs, key=lambda run: (run["mix"], run["seed"]))
    headings = ["mix", "seed", "policy", "max/mean", "items", "hash, expected", "LPT", "bound", "cost, s", "run, s"]
    print(table(headings, [outcome_line(run) for run in ordered]))
    shadows = [
        [run["mix"], run["seed"], *(f"{run['shadows'][policy]:.3f}" for policy in POLICIES)]
        for run in ordered
        if run["policy"] == "bounded"
    ]
    print(f"\nshadow ledgers of the runs of bounded, parts left out\n{table(['mix', 'seed', *POLICIES], shadows)}")
    for mix in sorted({run["mix"] for run in runs}):
        for policy in REPEATED:
            found = [run["max_over_mean"] for run in runs if (run["mix"], run["policy"]) == (mix, policy)]
            if found:
                print(f"mix {mix}, {policy}: median {statistics.median(found):.3f} of {len(found)} seeds")
    if result["left_out"]:
        print(f"{result['left_out']} runs were left out: they would have taken longer than {BUDGET_S:.0f} s in all")


def outcome_line(run: dict[str, Any]) -> list[object]:
    """One line of the table of runs."""
    hashing = f"{run['hash_median']:.3f} ({run['hash_low']:.2f}-{run['hash_high']:.2f})"
    reached = [f"{run['max_over_mean']:.3f}", run["rows_max_over_mean"]]
    least = [f"{run['oracle']:.3f}", run["bound"]]
    return [run["mix"], run["seed"], run["policy"], *reached, hashing, *least, run["cost_s"], run["seconds"]]
