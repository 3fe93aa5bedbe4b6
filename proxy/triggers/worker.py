"""`foreshard worker`: runs the trigger functions of one shard.

The worker is two processes. The supervisor below is single-threaded, has no event loop and no connection; it binds the
wake socket, forks the executor (executor.py), and looks every WATCH_S at the call that runs: beyond its timeout or its
memory limit it kills the executor. Whatever ends an executor, a new one takes its place and first records the call that
was running as failed. Modules in `workers.preload` are imported before the fork: a replacement starts in milliseconds.

Killed itself, it takes the executor with it (the kernel sees to that on Linux); nothing is lost, only repeated.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import importlib
import logging
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from foreshard.proxy.config import Config, ShardConfig, load_config
from foreshard.proxy.embedded import served
from foreshard.proxy.errors import ConfigError, ForeshardError
from foreshard.proxy.triggers.executor import Executor
from foreshard.proxy.triggers.functions import add_functions_folder
from foreshard.proxy.triggers.measure import resident_bytes
from foreshard.proxy.triggers.points import check_armed, control_point, disarm
from foreshard.proxy.triggers.slot import Call, CallSlot

WATCH_S = 0.02  # granularity of timeouts and memory limits
RESPAWN_S_MIN = 0.05
RESPAWN_S_MAX = 10.0
LIFE_S_HEALTHY = 5.0  # an executor that lived that long, or ended in a call, is replaced at once
SOCKET_PATH_BYTES_MAX = 100  # sun_path is 108 on Linux, 104 elsewhere
PR_SET_PDEATHSIG = 1  # prctl(2)

log = logging.getLogger("foreshard.worker")


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `foreshard worker`."""
    parser.add_argument("-c", "--config", type=Path, required=True, metavar="FILE", help="configuration (YAML)")
    parser.add_argument("--shard", metavar="NAME", help="the shard; may be left out when there is only one")


def run(arguments: argparse.Namespace) -> int:
    """Run until SIGTERM or SIGINT; then finish the running event, commit, and return 0."""
    logging.basicConfig(
        level=logging.DEBUG if arguments.debug else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s[%(process)d] %(message)s",
    )
    check_armed()
    config = served(load_config(arguments.config))
    return Worker(config, choose_shard(config, arguments.shard)).run()


def choose_shard(config: Config, name: str | None) -> int:
    """Index of the shard by its name."""
    names = [shard.name for shard in config.shards]
    if name is None and len(names) == 1:
        return 0
    if name not in names:
        raise ConfigError([f"--shard {name or 'NAME'}: the shards in {config.path} are {', '.join(names)}"])
    return names.index(name)


class Worker:
    """The supervisor of one executor. Owns the wake socket and the call slot."""

    def __init__(self, config: Config, shard_index: int) -> None:
        self._config = config
        self._shard_index = shard_index
        self._shard: ShardConfig = config.shards[shard_index]
        self._slot = CallSlot()
        self._executor_pid = 0
        self._is_stopping = False
        self._wake_path = config.run_directory / f"wake-{shard_index}-{os.getpid()}.sock"

    def run(self) -> int:
        """Keep an executor running until told to stop; exit code."""
        add_functions_folder(self._config)
        self._preload()
        self._config.run_directory.mkdir(parents=True, exist_ok=True)
        with self._bound_wake_socket() as wake, self._watched_signals() as signals:
            return self._supervise(wake, signals)

    def _supervise(self, wake: socket.socket, signals: socket.socket) -> int:
        killed: tuple[Call, str] | None = None
        respawn_s = RESPAWN_S_MIN
        while not self._is_stopping:
            started_s = time.monotonic()
            self._executor_pid = self._fork(wake, killed)
            log.info("shard %s: executor %d started", self._shard.name, self._executor_pid)
            status, reason = self._watch(signals)
            self._executor_pid = 0
            if self._is_stopping and os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
                return 0
            call = self._slot.read()
            self._slot.clear()
            if call is not None:
                killed = (call, reason or _describe_status(status))
                control_point("failure-found")
            if not reason:
                disarm()
            log.warning("shard %s: executor ended: %s", self._shard.name, reason or _describe_status(status))
            is_healthy = call is not None or time.monotonic() - started_s > LIFE_S_HEALTHY
            if call is None and is_healthy:
                killed = None  # recorded long ago; recording it twice would change nothing
            respawn_s = RESPAWN_S_MIN if is_healthy else min(respawn_s * 2, RESPAWN_S_MAX)
            if not is_healthy and not self._is_stopping:
                select.select([signals], [], [], respawn_s)
        return 0

    def _watch(self, signals: socket.socket) -> tuple[int, str]:
        """Wait for the executor's end; its status, and why we ended it ("" when we did not)."""
        reason = ""
        while True:
            pid, status = os.waitpid(self._executor_pid, os.WNOHANG)
            if pid:
                return status, reason
            select.select([signals], [], [], WATCH_S)
            with contextlib.suppress(BlockingIOError):
                signals.recv(64)
            call = self._slot.read()
            if call is not None and not reason:
                reason = self._find_excess(call)
                if reason:
                    _kill_group(self._executor_pid, signal.SIGKILL)

    def _find_excess(self, call: Call) -> str:
        """Which limit the running call has passed; "" for none."""
        running_s = time.monotonic() - call.started_s
        if running_s > call.timeout_s:
            return f"timeout: still running after {call.timeout_s:g} s, process killed"
        if call.memory_bytes_max is not None:
            used_bytes = resident_bytes(self._executor_pid) - call.memory_bytes_before
            if used_bytes > call.memory_bytes_max:
                return f"memory: used {used_bytes} bytes, its limit is {call.memory_bytes_max}, process killed"
        return ""

    def _fork(self, wake: socket.socket, killed: tuple[Call, str] | None) -> int:
        """Start an executor; its pid."""
        parent_pid = os.getpid()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid:
            with contextlib.suppress(OSError):
                os.setpgid(pid, pid)  # both sides set it: whoever comes first
            return pid
        code = 1
        try:
            os.setpgid(0, 0)  # what its functions start ends with it; Ctrl-C reaches it through us
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _end_with_parent(parent_pid)
            code = Executor(self._config, self._shard, self._slot, wake, parent_pid).run(killed)
        except BaseException:
            log.exception("shard %s: the executor failed", self._shard.name)
        finally:
            logging.shutdown()
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def _preload(self) -> None:
        for name in self._config.workers.preload:
            try:
                importlib.import_module(name)
            except Exception as error:
                raise ForeshardError(f"workers.preload: cannot import {name}: {error}") from error

    @contextlib.contextmanager
    def _bound_wake_socket(self) -> Iterator[socket.socket]:
        """The socket on which the router wakes this worker; executors inherit it."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as wake:
            _remove_stale(self._wake_path)
            _bind(wake, self._wake_path)
            try:
                yield wake
            finally:
                self._wake_path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _watched_signals(self) -> Iterator[socket.socket]:
        """A socket that becomes readable with every signal; SIGTERM and SIGINT also stop us."""
        reader, writer = socket.socketpair()
        reader.setblocking(False)
        writer.setblocking(False)
        with reader, writer:
            signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
            signal.signal(signal.SIGCHLD, lambda *_: None)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._on_stop)
            try:
                yield reader
            finally:
                signal.set_wakeup_fd(-1)

    def _on_stop(self, *_: object) -> None:
        self._is_stopping = True
        if self._executor_pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._executor_pid, signal.SIGTERM)


def _remove_stale(path: Path) -> None:
    """Remove wake sockets of this shard whose workers are gone, as a kill leaves them behind."""
    for other in path.parent.glob(f"{path.name.rpartition('-')[0]}-*.sock"):
        pid = other.stem.rpartition("-")[2]
        if other == path or (pid.isdigit() and not Path(f"/proc/{pid}").exists() and Path("/proc/self").exists()):
            other.unlink(missing_ok=True)


def _bind(wake: socket.socket, path: Path) -> None:
    """Bind to a path of any length: an address holds 100 bytes, so a longer one goes by the folder's descriptor."""
    if len(os.fsencode(path)) < SOCKET_PATH_BYTES_MAX:
        wake.bind(str(path))
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        wake.bind(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)


def _kill_group(pid: int, number: signal.Signals) -> None:
    """Kill the executor and what its functions started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _end_with_parent(parent_pid: int) -> None:
    """Ask the kernel to kill this process when the supervisor ends, however it ends."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)


def _describe_status(status: int) -> str:
    """What a process ended by, in words."""
    if os.WIFSIGNALED(status):
        return f"the process was ended by {signal.Signals(os.WTERMSIG(status)).name}"
    return f"the process ended itself with exit code {os.WEXITSTATUS(status)}"
