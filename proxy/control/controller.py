"""`foreshard controller`: the learning loop of one server, and recovery. Started by the supervisor, not by hand.

It takes measurements from every shard each 100 ms, learns, publishes models and loads in shared memory, and keeps
profiles in the control database each second and at its end. Killed at any time it loses at most one batch of
measurements per shard from the loads (proxy/control/feed.py), and from the profiles what was learned since they were
last kept; events and rows are never touched. All the while it ends the prepared transactions of coordinators that gave
up (proxy/control/recovery.py), keeps the query node current (proxy/control/query_watch.py), and exchanges loads with
the controllers of other proxies (proxy/control/load_exchange.py).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import signal
import sys
from collections.abc import Collection

import uvloop

from foreshard.proxy.config import Config, load_config
from foreshard.proxy.control.absent import UNCHECKED_HELP, check_shard
from foreshard.proxy.control.connect import control_dsn
from foreshard.proxy.control.feed import ShardFeed
from foreshard.proxy.control.learning import Learning
from foreshard.proxy.control.load_exchange import LoadExchange
from foreshard.proxy.control.profile_store import ProfileStore
from foreshard.proxy.control.query_watch import QueryKeeper
from foreshard.proxy.control.recovery import Recovery
from foreshard.proxy.control.retry import pause
from foreshard.proxy.embedded import served
from foreshard.proxy.placement import SharedState, open_state

KEEP_INTERVAL_S = 1.0
STOP_TIMEOUT_S = 5.0  # for keeping profiles at the end


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `foreshard controller`."""
    parser.add_argument("-c", "--config", required=True, metavar="FILE", help="configuration (YAML)")
    parser.add_argument("--unchecked", action="append", default=[], metavar="NAME", help=UNCHECKED_HELP)


def run(arguments: argparse.Namespace) -> int:
    """Run until SIGTERM or SIGINT."""
    config = served(load_config(arguments.config))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(config, open_state(config), arguments.unchecked))
    return 0


async def serve(config: Config, state: SharedState, unchecked: Collection[str] = ()) -> None:
    """Run a controller until a signal asks for its end."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    await Controller(config, state, unchecked).run(stopping)


class Controller:
    """Owns what is learned and every connection the learning needs."""

    def __init__(self, config: Config, state: SharedState, unchecked: Collection[str] = ()) -> None:
        self.learning = Learning(config, state)
        self.store = ProfileStore(control_dsn(config), report)
        self.feeds = [
            ShardFeed(
                index,
                shard,
                self.learning,
                report,
                functools.partial(check_shard, config, shard.name) if shard.name in unchecked else None,
            )
            for index, shard in enumerate(config.shards)
        ]
        self.recovery = Recovery(config, report)
        self.query_keeper = QueryKeeper(config, report)
        self.exchange = LoadExchange(config, state, report)
        self._unknown_reported: set[tuple[str, str]] = set()

    async def run(self, stopping: asyncio.Event) -> None:
        """Learn and recover until `stopping` is set; then keep what was learned."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self.recovery.run(stopping))  # waits for nothing: the control database may be down
                tasks.create_task(self.query_keeper.run(stopping))
                tasks.create_task(self.exchange.run(stopping))
                tasks.create_task(self._work(stopping))
        finally:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._keep(), STOP_TIMEOUT_S)
            self.store.close()

    async def _work(self, stopping: asyncio.Event) -> None:
        """Nothing is measured before the profiles are there to learn it: measurements wait on their shards."""
        profiles = await self.store.load(stopping)
        if profiles is None:
            return
        self.learning.follow_map()
        for key in self.learning.restore(profiles):
            report(f"profile {key.function} {key.operation}: what was kept is of no use; learning it anew")
        async with asyncio.TaskGroup() as tasks:
            for feed in self.feeds:
                tasks.create_task(feed.run(stopping))
            tasks.create_task(self._keep_regularly(stopping))

    async def _keep_regularly(self, stopping: asyncio.Event) -> None:
        while not stopping.is_set():
            await pause(stopping, KEEP_INTERVAL_S)
            self.learning.follow_map()
            self.learning.refresh_priors()
            self.learning.publish()
            await self._keep()
            for function, operation in sorted(self.learning.unknown - self._unknown_reported):
                self._unknown_reported.add((function, operation))
                report(f"measurements of {function} {operation}: not in the configuration, only counted as load")

    async def _keep(self) -> None:
        rows, history = self.learning.take_rows()
        if not rows and not history:
            return
        kept = False
        try:
            kept = await self.store.keep(rows, history)
        finally:
            if not kept:
                self.learning.put_back(rows, history)


def report(line: str) -> None:
    """One line for the operator."""
    print(f"foreshard controller: {line}", file=sys.stderr, flush=True)
