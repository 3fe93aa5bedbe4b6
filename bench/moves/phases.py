"""Phases without and with moves in turns, while clients work; between them large buckets through plain COPY.

First moves follow each other without rest, which shows what they cost at most. Then they carry no more rows per minute
than the rebalancer allows itself (`rebalance.Limits`), which is what clients meet.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection as Pipe
from typing import Any

from bench.moves.driving import Copied, Driver, Made
from bench.moves.load import Done, Order, run_load
from bench.moves.probe import Probed, run_probe
from bench.moves.world import Size, World
from foreshard.proxy.rebalance import Limits

ANSWER_DEADLINE_S = 60.0
DriverOf = Callable[[Callable[[int], Awaitable[None]]], Driver]  # told how the probe is aimed
SETTLE_S = 1.0  # before a phase without moves: who is late may catch up


@dataclass(frozen=True)
class Length:
    """How much is run."""

    pairs: int  # of phases
    moves: dict[Size, int]
    roots: int
    rows: dict[Size, Sequence[int]]  # of the buckets that are made larger
    quiet_s: float
    calibrate_s: float
    share: float  # of what the machine can do
    paced_pairs: int  # of phases in which moves are paced
    paced_s: float


@dataclass
class Phase:
    """A time without moves, or with."""

    is_moving: bool
    began_s: float  # seconds since the epoch
    ended_s: float = 0.0


@dataclass
class Run:
    """What has happened."""

    rate: float = 0.0
    phases: list[Phase] = field(default_factory=list)
    moves: list[Made] = field(default_factory=list)
    paced_phases: list[Phase] = field(default_factory=list)
    paced_moves: list[Made] = field(default_factory=list)
    copies: list[Copied] = field(default_factory=list)
    done: Done = field(default_factory=Done)
    probed: Probed = field(default_factory=Probed)


class Child:
    """A process that answers over a pipe; its end is the end of the `with` block of `running`."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe

    async def ask(self, word: Any = None) -> Any:
        """Send a word, wait for the answer."""
        self._pipe.send(word)
        return await self.hear()

    async def hear(self) -> Any:
        """The next answer."""
        assert await asyncio.to_thread(self._pipe.poll, ANSWER_DEADLINE_S), "a process of the bench does not answer"
        return self._pipe.recv()


@contextmanager
def running(target: Any, argument: Any) -> Iterator[Child]:
    """A process that runs target(argument, pipe)."""
    spawning = multiprocessing.get_context("spawn")
    ours, theirs = spawning.Pipe()
    process = spawning.Process(target=target, args=(argument, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        yield Child(ours)
        process.join(ANSWER_DEADLINE_S)
    finally:
        if process.is_alive():
            process.kill()
            process.join()
        ours.close()
        process.close()


def split_moves(length: Length, draw: random.Random) -> list[list[Size]]:
    """The sizes to move in each phase, in no order; each phase has its part of every size."""
    wanted = [size for size, count in length.moves.items() for _ in range(count)]
    phases = [wanted[index :: length.pairs] for index in range(length.pairs)]
    for sizes in phases:
        draw.shuffle(sizes)
    return phases


def choose(world: World, sizes: list[Size], draw: random.Random) -> list[tuple[int, Size]]:
    """Random buckets of these sizes, none of them twice where there are enough."""
    found = []
    for size in Size:
        count, buckets = sizes.count(size), world.buckets[size]
        drawn = [bucket for _ in range(-(-count // len(buckets))) for bucket in draw.sample(buckets, len(buckets))]
        found += [(bucket, size) for bucket in drawn[:count]]
    places = {size: [bucket for bucket, of in found if of is size] for size in Size}
    return [(places[size].pop(), size) for size in sizes]


async def run_phases(world: World, driver_of: DriverOf, dsn: str, length: Length, seed: int) -> Run:
    """All of it; ends with what the processes know."""
    run, draw = Run(), random.Random(seed)
    keys = world.keys_by_bucket()
    order = Order(dsn, seed, world.owned, length.calibrate_s, length.share)
    with running(run_probe, dsn) as probe:
        await probe.ask(keys[world.buckets[Size.SMALL][0]][0])  # it writes while the rate is found, too
        with running(run_load, order) as load:
            run.rate = await load.hear()
            driver = driver_of(probe.ask)
            await driver.open()
            for number, sizes in enumerate(split_moves(length, draw)):
                chosen = choose(world, sizes, draw)
                run.phases.append(await rest(length.quiet_s))
                large = [bucket for bucket, size in chosen if size is Size.LARGE]
                if number % 2 == 0:
                    run.copies += [await driver.copy(bucket) for bucket in large]
                run.phases.append(phase := Phase(True, time.time()))
                for bucket, size in chosen:
                    await driver.move(bucket, size, draw.choice(keys[bucket]))
                phase.ended_s = time.time()
                if number % 2 == 1:
                    run.copies += [await driver.copy(bucket) for bucket in large]
            run.moves = list(driver.moves)
            await run_paced(run, world, driver, length, draw)
            run.done = await load.ask()
        run.probed = await probe.ask()
    await driver.close()
    return run


async def run_paced(run: Run, world: World, driver: Driver, length: Length, draw: random.Random) -> None:
    """Buckets of few rows at the pace of the rebalancer."""
    keys = world.keys_by_bucket()
    rows_per_s = world.row_count() * Limits().rows_share / Limits().budget_s
    for _ in range(length.paced_pairs):
        run.paced_phases.append(await rest(length.quiet_s))
        run.paced_phases.append(phase := Phase(True, time.time()))
        phase.ended_s = phase.began_s + length.paced_s
        rows, next_s = 0, phase.began_s
        while next_s < phase.ended_s:
            await asyncio.sleep(max(next_s - time.time(), 0.0))
            bucket = draw.choice(world.buckets[Size.SMALL])
            run.paced_moves.append(made := await driver.move(bucket, Size.SMALL, draw.choice(keys[bucket])))
            rows += max(made.rows, 1)
            next_s = phase.began_s + rows / rows_per_s
        await asyncio.sleep(max(phase.ended_s - time.time(), 0.0))


async def rest(seconds: float) -> Phase:
    """A phase without moves."""
    await asyncio.sleep(SETTLE_S)
    phase = Phase(False, time.time())
    await asyncio.sleep(seconds)
    phase.ended_s = time.time()
    return phase
