"""`foreshard balancer`: moves buckets between shards. Started by the supervisor, not by hand.

Of all balancers of a deployment one leads, by an advisory lock in the control database, and carries out what is planned
there (control/move_store.py), one move at a time. The others wait for its place. Killed at any time it leaves moves
that the next one ends or begins anew; while the control database is down nothing moves.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Callable

import uvloop

from foreshard.proxy.config import Config, load_config
from foreshard.proxy.control.connect import control_dsn
from foreshard.proxy.control.introspect import Connection
from foreshard.proxy.control.move_store import (
    MOVE_CHANNEL,
    Figures,
    Planned,
    State,
    begin_move,
    end_move,
    next_move,
    note_flipping,
    note_problem,
    put_off,
    unfinished,
)
from foreshard.proxy.control.plan import read_catalog
from foreshard.proxy.control.retry import LOST, connect, end_tasks, pause
from foreshard.proxy.control.schema_control import read_cluster
from foreshard.proxy.embedded import resolve_shards
from foreshard.proxy.errors import ForeshardError
from foreshard.proxy.move.mover import Mover, why
from foreshard.proxy.move.transfer import Busy
from foreshard.proxy.triggers.points import control_point

LEADER_LOCK = 0x6C656164  # the bytes of "lead"
LOOK_INTERVAL_S = 1.0  # for moves whose time has come; those that are planned are notified
TRIES_MAX = 20
AGAIN_FIRST_S = 0.5  # after a move that could not be made; doubled each time
AGAIN_MAX_S = 60.0
COMMIT_POLL_S = 0.005
SETTINGS = {"application_name": "foreshard balancer"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `foreshard balancer`."""
    parser.add_argument("-c", "--config", required=True, metavar="FILE", help="configuration (YAML)")


def run(arguments: argparse.Namespace) -> int:
    """Run until SIGTERM or SIGINT."""
    config = resolve_shards(load_config(arguments.config))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(config))
    return 0


async def serve(config: Config) -> None:
    """Run a balancer until a signal asks for its end: a move under way is given up, or ended where it has happened."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    balancer = Balancer(config, report)
    working = asyncio.create_task(balancer.run(stopping))
    await asyncio.wait((working, asyncio.create_task(stopping.wait())), return_when=asyncio.FIRST_COMPLETED)
    while balancer.mover is not None and balancer.mover.is_committing:
        await asyncio.sleep(COMMIT_POLL_S)
    await end_tasks()
    if working.done() and not working.cancelled():
        working.result()


class Balancer:
    """Waits for its turn to lead, and leads."""

    def __init__(self, config: Config, report: Callable[[str], None]) -> None:
        self.config = config
        self._report = report
        self.mover: Mover | None = None  # while it leads
        self._trouble = ""

    async def run(self, stopping: asyncio.Event) -> None:
        """Lead whenever nobody else does, until `stopping` is set."""
        while not stopping.is_set():
            try:
                connection = await connect(control_dsn(self.config), SETTINGS)
                try:
                    if await connection.fetchval(f"SELECT pg_try_advisory_lock({LEADER_LOCK})"):
                        self._trouble = ""
                        await self._lead(connection, stopping)
                finally:
                    connection.terminate()
            except (*LOST, ForeshardError) as error:
                if str(error) != self._trouble:
                    self._trouble = str(error)
                    self._report(f"nothing moves: {why(error)}")
            await pause(stopping, LOOK_INTERVAL_S)

    async def _lead(self, connection: Connection, stopping: asyncio.Event) -> None:
        known = await read_cluster(connection)
        if known is None:
            raise ForeshardError("the control database knows no cluster; run `foreshard apply`")
        self.mover = Mover(self.config, known[0], self._report)
        try:
            await _Leader(self.config, connection, self.mover, self._report).run(stopping)
        finally:
            self.mover = None


class _Leader:
    """One time of leading. Everything it knows of moves is in the control database."""

    def __init__(self, config: Config, connection: Connection, mover: Mover, report: Callable[[str], None]) -> None:
        self.config = config
        self._connection = connection
        self._report = report
        self._news = asyncio.Event()
        self._mover = mover

    async def run(self, stopping: asyncio.Event) -> None:
        """Carry out moves; ends when `stopping` is set, or by an error of the control database's."""
        await self._connection.add_listener(MOVE_CHANNEL, lambda *_: self._news.set())
        for planned in await unfinished(self._connection):
            await self._settle(planned, planned.state is State.FLIPPING)
        while not stopping.is_set():
            self._news.clear()
            while not stopping.is_set() and (due := await next_move(self._connection)) is not None:
                await self._make(due)
            try:
                async with asyncio.timeout(LOOK_INTERVAL_S):
                    await self._news.wait()
            except TimeoutError:
                continue

    async def _make(self, planned: Planned) -> None:
        """Carry out one move, and write down what came of it."""
        if not await begin_move(self._connection, planned.id):
            return
        steps = _Steps(self._connection, planned.id)
        control_point("move-written")
        try:
            figures = await self._mover.move(await read_catalog(self.config), planned, steps)
        except Busy as error:
            return await self._put_off(planned, error)
        except ForeshardError as error:
            return await self._fail(planned, error)
        except LOST as error:
            if steps.may_have_happened:
                return await self._settle(planned, True)
            return await self._put_off(planned, error)
        control_point("move-made")
        await end_move(self._connection, planned, State.DONE, figures)
        self._report(f"{self._called(planned)}: {describe(figures)}")

    async def _settle(self, planned: Planned, is_flipping: bool) -> None:
        """End or begin anew what somebody has begun; until the shards tell what has happened."""
        wait_s = AGAIN_FIRST_S
        while is_flipping:
            try:
                has_happened = await self._mover.settle(planned)
            except ForeshardError as error:
                return await self._fail(planned, error)
            except LOST as error:
                self._report(f"{self._called(planned)}: not known whether it has happened: {why(error)}")
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, AGAIN_MAX_S)
                continue
            if has_happened:
                await end_move(self._connection, planned, State.DONE)
                return self._report(f"{self._called(planned)}: had happened when its mover ended")
            break
        await put_off(self._connection, planned.id, "its mover ended", 0)

    async def _put_off(self, planned: Planned, error: Exception) -> None:
        if planned.tries + 1 >= TRIES_MAX:
            return await self._fail(planned, error)
        seconds = min(AGAIN_FIRST_S * 2**planned.tries, AGAIN_MAX_S)
        self._report(f"{self._called(planned)}: again in {seconds:g} s; {why(error)}")
        return await put_off(self._connection, planned.id, why(error), seconds)

    async def _fail(self, planned: Planned, error: Exception) -> None:
        self._report(f"{self._called(planned)}: given up; {why(error)}")
        await end_move(self._connection, planned, State.FAILED, problem=why(error))

    def _called(self, planned: Planned) -> str:
        names = [shard.name for shard in self.config.shards]
        return f"move {planned.id} of bucket {planned.bucket} from {names[planned.source]} to {names[planned.target]}"


class _Steps:
    """Writes steps of one move down."""

    def __init__(self, connection: Connection, id: int) -> None:
        self.may_have_happened = False
        self._connection = connection
        self._id = id

    async def note_flipping(self, figures: Figures) -> None:
        """From now on only the shards know."""
        self.may_have_happened = True
        await note_flipping(self._connection, self._id, figures)

    async def note_problem(self, problem: str) -> None:
        """Why it has not happened yet."""
        await note_problem(self._connection, self._id, problem)


def describe(figures: Figures) -> str:
    """One line for the operator."""
    way = "in one step" if figures.way == "small" else f"copied before, {figures.rounds} rounds"
    return (
        f"{figures.rows} rows and {figures.events} waiting events, {way}; "
        f"its writers waited for {figures.pause_s * 1000:.0f} ms"
    )


def report(line: str) -> None:
    """One line for the operator."""
    print(f"foreshard balancer: {line}", file=sys.stderr, flush=True)
