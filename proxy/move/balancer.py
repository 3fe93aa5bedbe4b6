"""`foreshard balancer`: moves buckets between shards. Started by the supervisor, not by hand.

Of all balancers of a deployment one leads, by an advisory lock in the control database, and carries out what is planned
there (control/move_store.py), one move at a time. The others wait for its place. Killed at any time it leaves moves
that the next one ends or begins anew; while the control database is down nothing moves.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import signal
import sys
from collections.abc import Callable

import uvloop

from foreshard._core.shared import SharedState
from foreshard.proxy.catalog import Catalog
from foreshard.proxy.config import Config, load_config
from foreshard.proxy.control.balance_store import Orders, keep_decision, read_orders, read_told, tell, untell
from foreshard.proxy.control.connect import control_dsn
from foreshard.proxy.control.introspect import Connection
from foreshard.proxy.control.load_exchange import instance_name
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
    plan_moves,
    put_off,
    targets,
    unfinished,
)
from foreshard.proxy.control.moves import STAY_LOCK
from foreshard.proxy.control.plan import read_catalog
from foreshard.proxy.control.query_watch import STATE
from foreshard.proxy.control.retry import LOST, connect, end_tasks, pause
from foreshard.proxy.control.schema_control import read_bucket_map, read_cluster
from foreshard.proxy.control.two_phase import two_phase_ready
from foreshard.proxy.embedded import served
from foreshard.proxy.errors import ForeshardError
from foreshard.proxy.move.budget import Budget
from foreshard.proxy.move.mending import mend_map
from foreshard.proxy.move.mover import Mover, why
from foreshard.proxy.move.rounds import RESOURCES, ROUND_S, Rounds, own_demand
from foreshard.proxy.move.transfer import Busy
from foreshard.proxy.placement import open_state
from foreshard.proxy.rebalance import Verdict
from foreshard.proxy.triggers.points import control_point

FORGET_S = 60.0  # a proxy that has told nothing for so long is gone; until then it may be cut off
STAY_WANTED = f"""
SELECT EXISTS (SELECT FROM pg_locks AS held WHERE held.locktype = 'advisory' AND held.classid = 0
  AND held.objid = {STAY_LOCK} AND held.objsubid = 1 AND NOT held.granted)
"""
LEADER_LOCK = 0x6C656164  # the bytes of "lead"
LOOK_INTERVAL_S = 1.0  # for moves whose time has come; those that are planned are notified
TRIES_MAX = 20
AGAIN_FIRST_S = 0.5  # after a move that could not be made; doubled each time
AGAIN_MAX_S = 60.0
LEAVE_TIMEOUT_S = 1.0
COMMIT_POLL_S = 0.005  # a signal may not cut a commit in two: it takes milliseconds
SETTINGS = {"application_name": "foreshard balancer"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `foreshard balancer`."""
    parser.add_argument("-c", "--config", required=True, metavar="FILE", help="configuration (YAML)")


def run(arguments: argparse.Namespace) -> int:
    """Run until SIGTERM or SIGINT."""
    config = served(load_config(arguments.config))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(config))
    return 0


async def serve(config: Config) -> None:
    """Run a balancer until a signal asks for its end: a move under way is given up, or ended where it has happened."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    balancer = Balancer(config, open_state(config), report)
    working = asyncio.create_task(balancer.run(stopping))
    await asyncio.wait((working, asyncio.create_task(stopping.wait())), return_when=asyncio.FIRST_COMPLETED)
    while balancer.mover is not None and balancer.mover.is_committing:
        await asyncio.sleep(COMMIT_POLL_S)
    await end_tasks()
    if stopping.is_set():
        await leave(config, balancer.instance)
    if working.done() and not working.cancelled():
        working.result()


async def leave(config: Config, instance: str) -> None:
    """Take away what this proxy has told of its demand: while one that is expected to tell is silent, nothing moves."""
    connection: Connection | None = None
    with contextlib.suppress(*LOST):
        async with asyncio.timeout(LEAVE_TIMEOUT_S):
            connection = await connect(control_dsn(config), SETTINGS)
            await untell(connection, instance)
    if connection is not None:
        connection.terminate()


class Balancer:
    """Tells what its proxy was asked; waits for its turn to lead, and leads."""

    def __init__(self, config: Config, state: SharedState | None, report: Callable[[str], None]) -> None:
        self.config = config
        self.state = state
        self.instance = instance_name(config)
        self._report = report
        self.mover: Mover | None = None  # while it leads
        self._trouble = ""

    async def run(self, stopping: asyncio.Event) -> None:
        """Tell, and lead whenever nobody else does, until `stopping` is set."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._tell(stopping))
            tasks.create_task(self._lead_in_turn(stopping))

    async def _tell(self, stopping: asyncio.Event) -> None:
        """Keep the others informed of what this proxy is asked."""
        connection: Connection | None = None
        while self.state is not None and not stopping.is_set():
            try:
                connection = connection or await connect(control_dsn(self.config), SETTINGS)
                await tell(connection, own_demand(self.config, self.state, self.instance))
            except LOST:
                if connection is not None:
                    connection.terminate()
                connection = None
            await pause(stopping, ROUND_S / 2)
        if connection is not None:
            connection.terminate()

    async def _lead_in_turn(self, stopping: asyncio.Event) -> None:
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
        ready = await two_phase_ready(self.config)
        lacking = [shard.name for shard in self.config.shards if shard.name not in ready]
        if lacking:
            raise ForeshardError(f"max_prepared_transactions is 0 on {', '.join(lacking)}: buckets stay where they are")
        self.mover = Mover(self.config, known[0], self._report)
        try:
            await _Leader(self.config, connection, self.mover, self._report).run(stopping)
        finally:
            self.mover.close()
            self.mover = None


class _Leader:
    """One time of leading. Everything it knows of moves is in the control database."""

    def __init__(self, config: Config, connection: Connection, mover: Mover, report: Callable[[str], None]) -> None:
        self.config = config
        self._connection = connection
        self._report = report
        self._news = asyncio.Event()
        self._mover = mover
        self._rounds = Rounds(config)
        self._budget = Budget(config.rebalance.bytes_per_s)
        self._catalog: Catalog | None = None
        self._catalog_state = ""
        self._next_round_s = 0.0
        self._asked_at: datetime.datetime | None = None
        self._verdict: Verdict | None = None

    async def run(self, stopping: asyncio.Event) -> None:
        """Carry out moves; ends when `stopping` is set, or by an error of the control database's."""
        await self._connection.add_listener(MOVE_CHANNEL, lambda *_: self._news.set())
        for planned in await unfinished(self._connection):
            if planned.state is State.COPYING or not await self._has_happened(planned):
                await put_off(self._connection, planned.id, "its mover ended", 0)
        wrong = await mend_map(self.config, self._connection)
        if wrong:
            self._report(f"the bucket map was wrong about {wrong} buckets: it says what the shards say now")
        while not stopping.is_set():
            self._news.clear()
            orders = await read_orders(self._connection)
            if not orders.is_paused:
                await self._plan(orders)
                await self._make_all(stopping)
            try:
                async with asyncio.timeout(LOOK_INTERVAL_S):
                    await self._news.wait()
            except TimeoutError:
                continue

    async def _read_catalog(self) -> Catalog:
        """The catalog as it is now; read anew when the first shard's schema has changed."""
        state = await self._mover.ask(0, STATE)
        if self._catalog is None or state != self._catalog_state:
            self._catalog, self._catalog_state = await read_catalog(self.config), state
        return self._catalog

    async def _make_all(self, stopping: asyncio.Event) -> None:
        """Carry out what is due, unless somebody works by a map that must stay, or says that nothing is to move."""
        if not await self._connection.fetchval(f"SELECT pg_try_advisory_lock({STAY_LOCK})"):
            return
        try:
            while not stopping.is_set() and (due := await next_move(self._connection)) is not None:
                await self._make(due)
                await pause(stopping, self._budget.rest_s(asyncio.get_running_loop().time()))
                if (await read_orders(self._connection)).is_paused or await self._connection.fetchval(STAY_WANTED):
                    break
        finally:
            if not self._connection.is_closed():
                await self._connection.execute(f"SELECT pg_advisory_unlock({STAY_LOCK})")

    async def _plan(self, orders: Orders) -> None:
        """Hold a round when it is time for one, or somebody has asked for it."""
        now_s = asyncio.get_running_loop().time()
        is_asked = orders.asked_at is not None and orders.asked_at != self._asked_at and self._next_round_s > 0
        self._asked_at = orders.asked_at
        if not is_asked and (now_s < self._next_round_s or not self.config.rebalance.automatic):
            return
        if is_asked:
            self._rounds.hurry()
        self._next_round_s = now_s + ROUND_S
        told = await read_told(self._connection, FORGET_S)
        moving = await targets(self._connection)
        owners = await read_bucket_map(self._connection)
        decision = await self._rounds.run(await self._read_catalog(), told, owners, moving, now_s)
        if decision is None or (decision.verdict is self._verdict and not decision.moves):
            return
        self._verdict = decision.verdict
        resource = RESOURCES[decision.resource]
        gain = decision.before - decision.after
        reason = f"{resource}: the fullest shard has {decision.before:.2f} of its share, {decision.after:.2f} then"
        moves = [(move.bucket, move.source, move.target, gain) for move in decision.moves]
        async with self._connection.transaction():
            await keep_decision(
                self._connection, decision.verdict.name.lower(), resource, (decision.before, decision.after),
                len(moves), decision.rows, decision.detail,
            )  # fmt: skip
            await plan_moves(self._connection, moves, reason)
        if moves:
            self._report(f"{decision.verdict.value}: {len(moves)} moves planned, {decision.rows} rows; {reason}")

    async def _make(self, planned: Planned) -> None:
        """Carry out one move, and write down what came of it."""
        if await begin_move(self._connection, planned.id):
            await self._carry_out(planned)

    async def _carry_out(self, planned: Planned) -> None:
        steps = _Steps(self._connection, planned.id)
        control_point("move-written")
        try:
            figures = await self._mover.move(await self._read_catalog(), planned, steps)
        except Busy as error:
            return await self._put_off(planned, error)
        except ForeshardError as error:
            if not await self._has_happened(planned):  # by a mover that thought it led
                await self._fail(planned, error)
            return
        except LOST as error:
            if not steps.may_have_happened or not await self._has_happened(planned):
                await self._put_off(planned, error)
            return
        control_point("move-made")
        self._budget.spend(figures.bytes, asyncio.get_running_loop().time())
        await end_move(self._connection, planned, State.DONE, figures)
        self._report(f"{self._called(planned)}: {describe(figures)}")

    async def _has_happened(self, planned: Planned) -> bool:
        try:
            return await self._settle(planned)
        except ForeshardError:
            return False

    async def _settle(self, planned: Planned) -> bool:
        """Ask the shards what has become of a flip, until they tell; False when it has not happened."""
        wait_s = AGAIN_FIRST_S
        while True:
            try:
                has_happened = await self._mover.settle(planned)
            except LOST as error:
                self._report(f"{self._called(planned)}: not known whether it has happened: {why(error)}")
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, AGAIN_MAX_S)
                continue
            if has_happened:
                await end_move(self._connection, planned, State.DONE)
                self._report(f"{self._called(planned)}: had happened when its mover ended")
            return has_happened

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
