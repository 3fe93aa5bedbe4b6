"""Kill -9 of who moves a bucket, at every control point: it is whole on one shard, which says that it is its own."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from foreshard.proxy.config import Config
from foreshard.proxy.control.recovery import Recovery
from foreshard.proxy.triggers.points import MOVE_NAMES
from tests.support.fault_matrix import NOBODY, Case
from tests.support.move_world import BUCKETS, ask, owners, rows_of, run, small
from tests.support.move_world import move_world as open_world
from tests.support.postgres import TestInstances
from tests.support.waiting import wait_until

DECIDED = ("move-decided", "move-finished")
DEADLINE_S = 60.0
LEFT = """
SELECT (SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database()) + (
  SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
  AND backend_type = 'client backend' AND xact_start IS NOT NULL)
"""


@pytest.fixture(scope="module")
def config(test_instances: TestInstances, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Config]:
    """Two shards; every killed move is made good, and its bucket moved back."""
    with open_world(test_instances, tmp_path_factory.mktemp("killed")) as config:
        yield config


def is_ended(config: Config) -> bool:
    """Whether recovery has left nothing prepared, and no backend of the killed process has anything open."""
    asyncio.run(recover(config))
    return not any(ask(config, shard, LEFT)[0][0] for shard in (0, 1))


async def recover(config: Config) -> None:
    """What a controller does with transactions that were left."""
    recovery = Recovery(config, lambda line: None)
    recovery.grace_s = 0.0
    try:
        await recovery.run_round()
    finally:
        recovery.close()


@pytest.mark.parametrize("point", MOVE_NAMES)
def test_killed_at_a_control_point_the_bucket_is_whole_on_one_shard(case: Case, config: Config, point: str) -> None:
    bucket = BUCKETS[0]
    home = owners(config, bucket).index(1)
    before = rows_of(config, home, bucket)
    assert all(before.values())
    words = [str(config.path.parent), *(shard.dsn for shard in config.shards), str(bucket), str(home)]
    ended = subprocess.run(
        [sys.executable, "-m", "tests.support.move_world", *words],
        env={**os.environ, "FORESHARD_CRASH_AT": point},
        check=False,
        timeout=DEADLINE_S,
    )
    assert ended.returncode == -signal.SIGKILL
    place = 1 - home if point in DECIDED else home
    wait_until(lambda: is_ended(config))
    assert rows_of(config, place, bucket) == before
    assert not any(rows_of(config, 1 - place, bucket).values())
    assert owners(config, bucket) == [int(shard == place) for shard in (0, 1)]
    data = f"whole on the {'target' if place != home else 'source'}, which owns it; nothing prepared or open"
    case.record("a process with the transfer alone", f"`{point}`", [NOBODY], data)


def test_what_was_killed_is_done_the_next_time(case: Case, config: Config) -> None:
    for bucket in BUCKETS[:2]:
        home = owners(config, bucket).index(1)
        before = rows_of(config, home, bucket)
        run(config, bucket, small, home)
        assert rows_of(config, 1 - home, bucket) == before
    data = "whole on the target, which owns it"
    case.record("nothing: the moves again after all these", "two buckets", [NOBODY], data)
