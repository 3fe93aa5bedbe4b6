"""The controller as a process: stopped, it loses nothing; killed, it never counts a measurement twice."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from foreshard.proxy.config import Config
from foreshard.proxy.control.feed import BATCH_MAX
from foreshard.proxy.placement import SharedState, attach_state
from tests.support.controlled import DEADLINE_S, measure, prepare, until
from tests.support.postgres import Shards
from tests.support.verified import assert_verified

CALL_S = 0.0065  # mean CPU of what `measure` writes, over tens of calls


def write_config(config: Config) -> Config:
    """The file that the process reads, saying the same."""
    lines = ["run_directory: run", "shards:"]
    lines += [f"  - {{name: {shard.name}, dsn: '{shard.dsn}'}}" for shard in config.shards]
    lines += ["tables:", "  document: {key: id}", "  word: {key: id, parent: document, via: document_id}", "triggers:"]
    lines += ["  index: {table: document, on: [insert, update], function: 'functions:index'}"]
    lines += ["  zip: {table: document, on: [insert], function: 'functions:zip'}"]
    config.path.write_text("\n".join(lines) + "\n")
    config.run_directory.mkdir()
    return config


@contextmanager
def process(config: Config) -> Iterator[subprocess.Popen[bytes]]:
    """`foreshard controller`, killed at the end of the block if it still runs."""
    running = subprocess.Popen([sys.executable, "-m", "foreshard.proxy", "controller", "-c", str(config.path)])
    try:
        yield running
    finally:
        running.kill()
        running.wait()


async def until_process(running: subprocess.Popen[bytes], holds: Callable[[], object]) -> None:
    """Wait for a condition while the process lives."""
    await until(lambda: holds() or running.poll() is not None)
    assert running.poll() is None


async def test_a_stopped_controller_has_kept_everything(one_shard: Shards, tmp_path: Path) -> None:
    config = write_config(await prepare(one_shard, tmp_path))
    state = attach_state(config)
    with process(config) as running:
        measure(one_shard, calls=500)
        await until_process(running, lambda: state.profile(0).samples == 500)
        running.terminate()
        assert await asyncio.to_thread(running.wait, DEADLINE_S) == 0
    assert one_shard.query("SELECT calls FROM foreshard.profile") == [(500,)]
    await asyncio.to_thread(assert_verified, config)


@pytest.mark.parametrize("seed", range(3))
async def test_a_killed_controller_counts_each_measurement_at_most_once(
    one_shard: Shards, tmp_path: Path, seed: int
) -> None:
    config = write_config(await prepare(one_shard, tmp_path))
    state: SharedState = attach_state(config)
    written = kills = 0
    for _ in range(4):
        before = state.shard(0).measured
        with process(config) as running:
            for _ in range(5 + 10 * seed):  # below, at and above one batch
                measure(one_shard, calls=400, first_key=written + 1)
                written += 400
            # Killed as soon as it has begun to count, between or inside batches as it falls.
            await until_process(running, lambda before=before: state.shard(0).measured > before)
        kills += 1
    before = state.shard(0).measured
    measure(one_shard, calls=10, first_key=written + 1)
    written += 10
    with process(config) as running:
        await until_process(running, lambda: state.shard(0).measured > before)
        await until_process(running, lambda: one_shard.query("SELECT count(*) FROM foreshard.measurement") == [(0,)])
        running.terminate()
        assert await asyncio.to_thread(running.wait, DEADLINE_S) == 0
    counted = round(state.shard(0).measured / CALL_S)
    assert written - kills * BATCH_MAX <= counted <= written
    ((calls,),) = one_shard.query("SELECT calls FROM foreshard.profile")
    assert isinstance(calls, int)
    assert calls <= written
    await asyncio.to_thread(assert_verified, config)
