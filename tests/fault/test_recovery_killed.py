"""Controllers killed or stopped between any two steps of recovery: another ends what is prepared, and the right way."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from foreshard.proxy.config import Config
from foreshard.proxy.control import apply
from foreshard.proxy.placement import attach_state
from foreshard.proxy.triggers.points import RECOVERY_NAMES
from tests.support.postgres import Shards
from tests.support.two_phase import TwoPhaseWorld
from tests.support.verified import assert_verified
from tests.support.waiting import process_state, wait_until

# A controller that looks for old decisions in every round.
EAGER = """
import sys
from foreshard.proxy.__main__ import main
from foreshard.proxy.control.recovery import Recovery
Recovery.clean_interval_s = 0.0
sys.exit(main(["controller", "-c", sys.argv[1]]))
"""


def write_config(shards: Shards, folder: Path) -> Config:
    config = Config(path=folder / "foreshard.yaml", run_directory=folder / "run", shards=shards.shards)
    lines = ["run_directory: run", "limits: {commit_timeout: 1ms}", "shards:"]
    lines += [f"  - {{name: {shard.name}, dsn: '{shard.dsn}'}}" for shard in config.shards]
    config.path.write_text("\n".join(lines) + "\n")
    config.run_directory.mkdir()
    return config


@contextmanager
def eager_controller(config: Config, crash_at: str = "", stop_at: str = "") -> Iterator[subprocess.Popen[bytes]]:
    environment = {**os.environ, "FORESHARD_CRASH_AT": crash_at, "FORESHARD_STOP_AT": stop_at}
    running = subprocess.Popen([sys.executable, "-c", EAGER, str(config.path)], env=environment)
    try:
        yield running
    finally:
        running.kill()
        running.wait()


class Doubts:
    """Transactions that their coordinators have left, two of each outcome."""

    def __init__(self, shards: Shards) -> None:
        self.world = TwoPhaseWorld(shards)
        self.undecided = [self.world.prepare(), self.world.prepare([0, 2], decision=1)]
        self.committed = [self.world.prepare(), self.world.prepare([0, 1], decision=2)]
        self.world.decide(self.committed[0], age_s=90)
        self.world.decide(self.committed[1], decision=2, age_s=90)

    def are_over(self) -> bool:
        return not self.world.prepared() and not self.world.decisions()

    def check(self) -> None:
        assert [self.world.marks(id) for id in self.undecided] == [[], []]
        assert [self.world.marks(id) for id in self.committed] == [[1, 2], [0, 1]]


@pytest.fixture
def config(three_shards: Shards, tmp_path: Path) -> Config:
    made = write_config(three_shards, tmp_path)
    asyncio.run(apply(made))
    attach_state(made)
    return made


@pytest.mark.parametrize("point", RECOVERY_NAMES)
def test_the_next_controller_goes_on_where_one_was_killed(three_shards: Shards, config: Config, point: str) -> None:
    doubts = Doubts(three_shards)
    with eager_controller(config, crash_at=point) as running:
        assert running.wait(60) == -signal.SIGKILL
    with eager_controller(config), eager_controller(config):
        wait_until(doubts.are_over)
    doubts.check()
    assert_verified(config)


@pytest.mark.parametrize("point", RECOVERY_NAMES)
def test_a_controller_that_was_stopped_finds_everything_ended_by_another(
    three_shards: Shards, config: Config, point: str
) -> None:
    doubts = Doubts(three_shards)
    with eager_controller(config, stop_at=point) as stopped:
        wait_until(lambda: stopped.poll() is not None or process_state(stopped.pid) == "T")
        with eager_controller(config):  # aborts stay noted: the stopped one may have transactions open
            wait_until(lambda: not doubts.world.prepared())
        last = doubts.world.prepare()
        os.kill(stopped.pid, signal.SIGCONT)
        wait_until(lambda: stopped.poll() is not None or doubts.are_over())
        assert stopped.poll() is None
    doubts.check()
    assert doubts.world.marks(last) == []
    assert_verified(config)
