"""Child processes of the supervisor: started, restarted when they die, stopped with a deadline.

Invariants
1. A child does not outlive its supervisor, however that ends: the kernel kills it when its parent dies.
2. A child leads a session of its own, so Ctrl-C in a terminal reaches only the supervisor, which decides the order.
3. A child that dies is started again, at most once per back-off; the delay doubles while deaths follow each other.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

from foreshard.proxy.triggers.points import CRASH_AT

LOG_TAIL_LINES = 5
PR_SET_PDEATHSIG = 1
BACKOFF_FIRST_S = 0.2
BACKOFF_MAX_S = 10.0
STEADY_S = 30.0  # chosen, not measured: a child that lived this long starts again without a grown delay

_libc = ctypes.CDLL(None, use_errno=True)


def end_with_parent(parent: int, signal_number: int = signal.SIGKILL) -> None:
    """Have the kernel send this process a signal when its parent dies; runs between fork and exec."""
    _libc.prctl(PR_SET_PDEATHSIG, int(signal_number), 0, 0, 0)
    if os.getppid() != parent:  # it died before the kernel knew
        os._exit(1)


def describe_end(status: int) -> str:
    """How a process ended, from Popen.returncode."""
    if status >= 0:
        return f"exited with code {status}"
    with contextlib.suppress(ValueError):
        return f"killed by {signal.Signals(-status).name}"
    return f"killed by signal {-status}"


class Child:
    """One child process, kept alive by `keep` until `stop`. Made by the supervisor, which reaps it on SIGCHLD."""

    def __init__(
        self, name: str, command: list[str], log: Path, report: Callable[[str], None], shard: str = ""
    ) -> None:
        self.name = name
        self.shard = shard  # that it works for alone; empty: none
        self.log = log
        self.restarts = 0
        self._command = command
        self._report = report
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = asyncio.Event()
        self._stopping = asyncio.Event()
        self._is_renewed = False  # it was asked to end, to begin anew
        self._backoff_s = BACKOFF_FIRST_S
        self._born_s = 0.0

    @property
    def pid(self) -> int | None:
        """Process id while it lives."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    def add_words(self, words: Iterable[str]) -> None:
        """More of the command line, before it is started."""
        self._command = [*self._command, *words]

    def start(self) -> None:
        """Start the process; its output is appended to the log."""
        parent = os.getpid()
        # Whom a test kills at a control point goes on when it is started again.
        environment = {name: value for name, value in os.environ.items() if not self.restarts or name != CRASH_AT}
        self._ended.clear()
        self._born_s = asyncio.get_running_loop().time()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=environment,
                preexec_fn=lambda: end_with_parent(parent),
            )

    def reap(self) -> None:
        """Notice that the process has ended; called on SIGCHLD."""
        if self._process is not None and self._process.poll() is not None:
            self._ended.set()

    async def keep(self, on_death: Callable[[Child, int], None]) -> None:
        """Start the process again whenever it dies; returns once it ended after `stop`."""
        while True:
            await self._ended.wait()
            assert self._process is not None
            on_death(self, self._process.pid)
            if self._stopping.is_set():
                return
            if self._is_renewed:
                self._is_renewed = False
                self.start()
                continue
            if asyncio.get_running_loop().time() - self._born_s >= STEADY_S:
                self._backoff_s = BACKOFF_FIRST_S
            how = describe_end(self._process.returncode)
            self._report(f"{self.name} {how}; starting it again in {self._backoff_s:g} s (its log: {self.log})")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), self._backoff_s)
                return
            self._backoff_s = min(self._backoff_s * 2, BACKOFF_MAX_S)
            self.restarts += 1
            self.start()

    def renew(self) -> None:
        """Have it end in its own time, and start it again at once."""
        if self.pid is not None and not self._stopping.is_set():
            self._is_renewed = True
            self._signal(signal.SIGTERM)

    async def stop(self, deadline_s: float) -> None:
        """Ask the process to end; kill it and what it started when it has not by the deadline."""
        self._stopping.set()
        if self.pid is None:
            return
        self._signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self._ended.wait(), deadline_s)
        except TimeoutError:
            self._report(f"{self.name} did not end within {deadline_s:g} s; killing it")
            self.kill()
            await self._ended.wait()

    def kill(self) -> None:
        """SIGKILL to the process and its session."""
        self._stopping.set()
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    def log_tail(self) -> str:
        """The last lines of its log, for whoever reports that it did not start."""
        try:
            lines = self.log.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return ""
        return "\n".join(lines[-LOG_TAIL_LINES:])

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)
