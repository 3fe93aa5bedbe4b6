"""`foreshard serve`: the supervisor of one proxy.

It starts what the configuration asks for, in this order, and stops it in the reverse order of who needs whom:

    start   embedded shards -> shared state -> controller -> router -> workers, balancer -> "listening"
    stop    router (finishes open transactions) -> balancer (ends or gives up its move) -> workers (finish their event)
            -> controller (flushes) -> shards

It carries no traffic itself. Everything else may be killed at any time and is started again; when the supervisor is
killed its children end with it, embedded shards survive and are adopted by the next start.

Invariants
1. One supervisor per run directory: it holds a lock on `supervisor.pid` that the kernel drops when it dies.
2. It never serves from shards that `foreshard apply` has not prepared. One that is down at the start, and is not the
   first, is looked at when it comes (control/absent.py); until then its statements are refused.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import struct
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

from foreshard.proxy.children import Child
from foreshard.proxy.config import Config, load_config
from foreshard.proxy.control import is_applied
from foreshard.proxy.control.absent import ARRIVAL_POLL_S, find_down
from foreshard.proxy.control.shard_list import ShardWatch, latest
from foreshard.proxy.embedded import keep_shards, running_shards
from foreshard.proxy.errors import ForeshardError
from foreshard.proxy.placement import SharedState, attach_state, set_weights

ROUTER_STOP_S = 12.0  # the router itself ends open transactions after 10 s
WORKER_STOP_S = 10.0
CONTROLLER_STOP_S = 5.0
BALANCER_STOP_S = 5.0
READY_S = 30.0
READY_POLL_S = 0.02
SSL_REQUEST = struct.pack("!II", 8, 80877103)


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `foreshard serve`."""
    parser.add_argument("-c", "--config", type=Path, required=True, metavar="FILE", help="configuration (YAML)")
    parser.epilog = (
        "SIGTERM or Ctrl-C lets open transactions finish; a second one does not. Logs: the run directory. "
        "The first shard and the control database must be up (exit code 1 otherwise: have your service manager try "
        "again); any other shard may be down, and is taken in when it comes."
    )


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal."""
    signal.signal(signal.SIGTERM, exit_in_order)
    config = load_config(arguments.config)
    config.run_directory.mkdir(parents=True, exist_ok=True)
    with lock_run_directory(config.run_directory), running_shards(config, stop_adopted=True) as ready:
        asyncio.run(Supervisor(latest(ready)).run())
    return 0


def exit_in_order(number: int, frame: object) -> None:
    """SIGTERM while shards start or stop: unwind, so that what was started is stopped."""
    sys.exit(128 + number)


@contextlib.contextmanager
def lock_run_directory(folder: Path) -> Iterator[None]:
    """Hold `supervisor.pid`; ForeshardError when another supervisor does. A stale file is simply taken over."""
    path = folder / "supervisor.pid"
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ForeshardError(
                f"{folder} is in use by the supervisor with process id {file.read().strip() or 'unknown'}: "
                "stop it first, or set another run_directory"
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def report(text: str) -> None:
    """One line for the operator."""
    print(f"foreshard: {text}", file=sys.stderr, flush=True)


class Supervisor:
    """Starts, watches and stops the processes of one proxy. Lives for one `serve`."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.folder = config.run_directory
        self.router = self._make_child("router", ["router"])
        self.controller = self._make_child("controller", ["controller"])
        self.balancers = (
            [self._make_child("balancer", ["balancer"])] if config.tables and len(config.shards) > 1 else []
        )
        self.workers = [worker for shard in config.shards for worker in self._make_workers(shard.name)]
        self._late: dict[int, list[Child]] = {}  # workers that wait for their shard, by its index
        self._watch = ShardWatch(config, self._follow_shards)
        self._state: SharedState | None = None
        self._keepers: list[asyncio.Task[None]] = []
        self._leaving: list[asyncio.Task[None]] = []  # the ends of workers whose shard has gone
        self._started: list[Child] = []  # those that have gone for good among them
        self._signals = 0
        self._asked_to_stop = asyncio.Event()

    @property
    def children(self) -> list[Child]:
        """In the order they start."""
        return [self.controller, self.router, *self.workers, *self.balancers]

    async def run(self) -> None:
        """Start everything, keep it running until a signal, stop everything."""
        self._watch_signals()
        self._check_port()
        down = await find_down(self.config)
        for reason in down.values():
            report(f"{reason}; serving without it until it comes and has been checked")
        if not await is_applied(self.config, down):
            raise ForeshardError(
                f"the shards are not prepared for {self.config.path}: run "
                f"`foreshard apply -c {self.config.path}` (`foreshard plan` shows what it would do)"
            )
        self._remove_stale_sockets()
        keep_shards(self.config)
        state = self._state = attach_state(self.config)
        self._leave_out(state, down)
        for child in self.children:
            self._start_child(child)
        late = asyncio.create_task(self._start_late(state))
        watching = asyncio.create_task(self._watch.run())
        try:
            if await self._wait_ready():
                self._say_ready()
            await self._asked_to_stop.wait()
        finally:
            late.cancel()
            watching.cancel()
            await self._stop()
            await asyncio.gather(*self._keepers)

    def _leave_out(self, state: SharedState, down: Collection[str]) -> None:
        """Nothing is placed on these shards, or asked of them, before the controller has looked at them."""
        for index, shard in enumerate(self.config.shards):
            if shard.name in down:
                state.set_up(index, False)
                self._late[index] = [worker for worker in self.workers if worker.shard == shard.name]
                self.workers = [worker for worker in self.workers if worker.shard != shard.name]
        words = [word for name in down for word in ("--unchecked", name)]
        self.controller.add_words(words)
        self.router.add_words(words)

    def _start_child(self, child: Child) -> None:
        self._started.append(child)
        child.start()
        self._keepers.append(asyncio.create_task(child.keep(self._on_death)))

    async def _start_late(self, state: SharedState) -> None:
        """Start the workers of shards that were down once the controller calls them up."""
        while self._late:
            await asyncio.sleep(ARRIVAL_POLL_S)
            for index in [index for index in self._late if state.shard(index).up]:
                report(f"shard {self.config.shards[index].name}: is there and has been checked")
                for worker in self._late.pop(index):
                    self.workers.append(worker)
                    self._start_child(worker)

    def _make_workers(self, shard: str) -> list[Child]:
        return [
            self._make_child(f"worker-{shard}-{number}", ["worker", "--shard", shard], shard)
            for number in range(self.config.workers.per_shard)
        ]

    def _follow_shards(self, config: Config) -> None:
        """The deployment has these shards from now on: routers follow by themselves, the others begin anew."""
        assert self._state is not None
        before = [shard.name for shard in self.config.shards]
        names = [shard.name for shard in config.shards]
        self.config = config
        keep_shards(config)
        self._state.resize(len(names))
        for index, name in enumerate(names):
            if before[index : index + 1] != [name]:
                self._state.clear_shard(index)
        set_weights(self._state, config)
        self.controller.renew()
        if names != before:
            report(f"the shards are {', '.join(names)} from now on")
        for worker in [worker for worker in self.workers if worker.shard not in names]:
            self.workers.remove(worker)
            self._leaving.append(asyncio.create_task(worker.stop(WORKER_STOP_S)))
        for worker in self.workers:
            if before.index(worker.shard) != names.index(worker.shard):
                worker.renew()  # the shard has another place
        started = [worker for name in names if name not in before for worker in self._make_workers(name)]
        self.workers += started
        if self.balancers:
            self.balancers[0].renew()
        elif len(names) > 1:
            self.balancers.append(self._make_child("balancer", ["balancer"]))
            started.append(self.balancers[0])
        for child in started:
            self._start_child(child)

    def _make_child(self, name: str, arguments: list[str], shard: str = "") -> Child:
        command = [sys.executable, "-m", "foreshard.proxy", arguments[0], "-c", str(self.config.path), *arguments[1:]]
        return Child(name, command, self.folder / f"{name}.log", report, shard)

    def _check_port(self) -> None:
        """ForeshardError when somebody listens where the router shall."""
        host, port = self.config.listen_host, self.config.listen_port
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                raise ForeshardError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None

    def _watch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGCHLD, self._reap)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)

    def _reap(self) -> None:
        for child in self._started:
            child.reap()

    def _on_signal(self) -> None:
        self._signals += 1
        self._asked_to_stop.set()
        if self._signals > 1:
            for child in self._started:
                child.kill()

    def _on_death(self, child: Child, pid: int) -> None:
        """Remove the wake sockets that a dead worker left, so that nobody tries to wake it."""
        for path in self.folder.glob(f"wake-*-{pid}.sock"):
            path.unlink(missing_ok=True)

    def _remove_stale_sockets(self) -> None:
        for path in self.folder.glob("wake-*.sock"):
            pid = path.stem.rpartition("-")[2]
            if not (pid.isdigit() and Path(f"/proc/{pid}").exists()):
                path.unlink(missing_ok=True)

    async def _wait_ready(self) -> bool:
        """Wait until the router answers and every worker listens; False when asked to stop meanwhile."""
        deadline_s = asyncio.get_running_loop().time() + READY_S
        waiting = [self.router, *self.workers]
        while waiting and not self._asked_to_stop.is_set():
            waiting = [child for child in waiting if not await self._is_ready(child)]
            failed = next((child for child in self.children if child.restarts >= 2), None)
            late = asyncio.get_running_loop().time() > deadline_s
            if failed is not None or (late and waiting):
                child = failed or waiting[0]
                raise ForeshardError(f"{child.name} did not start; the end of {child.log}:\n{child.log_tail()}")
            await asyncio.sleep(READY_POLL_S)
        return not self._asked_to_stop.is_set()

    async def _is_ready(self, child: Child) -> bool:
        if child.pid is None:
            return False
        if child is self.router:
            return await answers(self.config.listen_host, self.config.listen_port)
        return next(self.folder.glob(f"wake-*-{child.pid}.sock"), None) is not None

    def _say_ready(self) -> None:
        config = self.config
        print(
            f"foreshard: listening on {config.listen_host}:{config.listen_port}, "
            f"{count(len(config.shards), 'shard')}, {count(len(self.workers), 'worker')}" + self._left_out(),
            flush=True,
        )

    def _left_out(self) -> str:
        names = ", ".join(self.config.shards[index].name for index in self._late)
        return f", without {names}, down" if names else ""

    async def _stop(self) -> None:
        """Stop in the order that loses nothing; each kind has its deadline."""
        await self.router.stop(ROUTER_STOP_S)
        await asyncio.gather(*(balancer.stop(BALANCER_STOP_S) for balancer in self.balancers))
        await asyncio.gather(*(worker.stop(WORKER_STOP_S) for worker in self.workers))
        await self.controller.stop(CONTROLLER_STOP_S)


async def answers(host: str, port: int) -> bool:
    """True when a PostgreSQL speaker answers an SSLRequest there."""
    try:
        reader, writer = await asyncio.open_connection(host, port)
    except OSError:
        return False
    try:
        writer.write(SSL_REQUEST)
        return await asyncio.wait_for(reader.read(1), 1.0) in (b"N", b"S")
    except (OSError, TimeoutError):
        return False
    finally:
        writer.close()


def count(number: int, noun: str) -> str:
    """ "1 shard", "3 shards"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
