"""Child processes are started again when they die, stopped with a deadline, and never outlive their supervisor."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from foreshard.proxy.children import Child
from tests.support.waiting import wait_until, wait_until_gone

OBEDIENT = "import time\nprint('up', flush=True)\ntime.sleep(600)"
STUBBORN = (
    "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('up', flush=True)\ntime.sleep(600)"
)
PARENT = """
import asyncio, sys
from pathlib import Path
from foreshard.proxy.children import Child
async def main():
    child = Child("child", [sys.executable, "-c", "import time; time.sleep(600)"], Path(sys.argv[1]), print)
    child.start()
    print(child.pid, flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


@asynccontextmanager
async def running(code: str, log: Path, said: list[str]) -> AsyncIterator[Child]:
    """A kept child that runs Python code and has said "up"; stopped at the end."""
    child = Child("child", [sys.executable, "-c", code], log, said.append)
    asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, child.reap)
    child.start()
    keeper = asyncio.create_task(child.keep(lambda *_: None))
    try:
        await until(lambda: log.exists() and "up" in log.read_text())
        yield child
    finally:
        child.kill()
        await keeper
        asyncio.get_running_loop().remove_signal_handler(signal.SIGCHLD)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0.01)


async def test_a_killed_child_is_started_again_and_said_so_in_one_line(tmp_path: Path) -> None:
    said: list[str] = []
    async with running(OBEDIENT, tmp_path / "log", said) as child:
        first = child.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await until(lambda: child.restarts == 1)
        assert child.pid not in (None, first)
        assert len(said) == 1
        assert "killed by SIGKILL" in said[0]


async def test_a_stopped_child_is_not_started_again(tmp_path: Path) -> None:
    said: list[str] = []
    async with running(OBEDIENT, tmp_path / "log", said) as child:
        await child.stop(30)
        assert child.pid is None
        assert child.restarts == 0
    assert said == []


async def test_a_child_that_ignores_sigterm_is_killed_at_its_deadline(tmp_path: Path) -> None:
    said: list[str] = []
    async with running(STUBBORN, tmp_path / "log", said) as child:
        await child.stop(0.05)
        assert child.pid is None
    assert "did not end within 0.05 s" in said[0]


async def test_a_child_that_is_stopped_while_it_waits_to_start_again_stays_down(tmp_path: Path) -> None:
    said: list[str] = []
    async with running(OBEDIENT, tmp_path / "log", said) as child:
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        await until(lambda: bool(said))
        await child.stop(30)
        assert child.pid is None


def test_children_end_when_their_supervisor_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, tmp_path / "log"], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        wait_until(lambda: Path(f"/proc/{child}").exists())
        parent.kill()
        parent.wait()
        wait_until_gone(child)
