"""Controllers killed between any two steps of recovery: the next one ends what is prepared, and the right way."""

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
from tests.support.waiting import wait_until

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
def eager_controller(config: Config, crash_at: str = "") -> Iterator[subprocess.Popen[bytes]]:
    environment = {**os.environ, "FORESHARD_CRASH_AT": crash_at}
    running = subprocess.Popen([sys.executable, "-c", EAGER, str(config.path)], env=environment)
    try:
        yield running
    finally:
        running.kill()
        running.wait()


@pytest.mark.parametrize("point", RECOVERY_NAMES)
def test_the_next_controller_goes_on_where_one_was_killed(three_shards: Shards, tmp_path: Path, point: str) -> None:
    config = write_config(three_shards, tmp_path)
    asyncio.run(apply(config))
    attach_state(config)
    world = TwoPhaseWorld(three_shards)
    undecided = [world.prepare(), world.prepare([0, 2], decision=1)]
    committed = [world.prepare(), world.prepare([0, 1], decision=2)]
    world.decide(committed[0], age_s=90)
    world.decide(committed[1], decision=2, age_s=90)
    with eager_controller(config, crash_at=point) as running:
        assert running.wait(60) == -signal.SIGKILL
    with eager_controller(config), eager_controller(config):
        wait_until(lambda: not world.prepared() and not world.decisions())
    assert [world.marks(id) for id in undecided] == [[], []]
    assert [world.marks(id) for id in committed] == [[1, 2], [0, 1]]
    assert_verified(config)
