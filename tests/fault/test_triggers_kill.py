"""Kill -9 of executors, workers and PostgreSQL backends: no event is lost, no effect in the database is doubled."""

from __future__ import annotations

import os
import random
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from foreshard.proxy.embedded import EmbeddedCluster
from foreshard.proxy.triggers.points import NAMES
from tests.support.postgres import Shards
from tests.support.trigger_world import TriggerWorld, trigger_world
from tests.support.verified import assert_verified

SEED = 20261122
ROWS = 60
FUNCTIONS = """
def keep(event):
    event.execute(
        "INSERT INTO effect (event, function, operation, key, value) VALUES ($1, $2, $3, $4, $5)",
        event.id, event.function, event.operation, event.key, event.new["body"],
    )

def timed(event):
    import time
    if event.key == 7 and event.attempt == 1:
        time.sleep(3600)
    keep(event)
"""
TRIGGERS = {
    "keep": {"on": ["insert", "update"], "attempts_max": 50},
    "timed": {"timeout": "100ms", "attempts_max": 50},
}


def write(world: TriggerWorld) -> None:
    """ROWS rows, each inserted and then updated."""
    world.execute(f"INSERT INTO document SELECT n, 'p', 'first' FROM generate_series(1, {ROWS}) AS n")
    world.execute("UPDATE document SET body = 'second'")


def check_exactly_once(world: TriggerWorld) -> None:
    """Every change has its effects once and in order, its measurement, and nothing is left."""
    world.wait_drained()
    assert world.query("SELECT count(*) FROM foreshard.dead_letter") == [(0,)]
    assert world.query("SELECT count(*) FROM foreshard.outbox_image") == [(0,)]
    assert world.query("SELECT function, count(*), count(DISTINCT event) FROM effect GROUP BY 1 ORDER BY 1") == [
        ("keep", 2 * ROWS, 2 * ROWS),
        ("timed", ROWS, ROWS),
    ]
    assert world.query(
        "SELECT DISTINCT array_agg(value ORDER BY id) FROM effect WHERE function = 'keep' GROUP BY key"
    ) == [(["first", "second"],)]
    assert world.query("SELECT count(*) FROM foreshard.measurement") == [(3 * ROWS,)]
    assert_verified(world.config)


@pytest.mark.parametrize("point", NAMES)
def test_killed_at_a_control_point_every_effect_happens_once(tmp_path: Path, one_shard: Shards, point: str) -> None:
    with trigger_world(tmp_path, one_shard, FUNCTIONS, TRIGGERS) as world:
        write(world)
        armed = world.start_worker(crash_at=point)
        if point == "failure-found":  # in the supervisor: the whole worker ends
            assert armed.wait(60) == -signal.SIGKILL
            world.start_worker()
        check_exactly_once(world)
        ended = "executor ended: the process was ended by SIGKILL"
        assert point == "failure-found" or ended in world.logs()


def test_executors_and_workers_killed_at_random_every_effect_happens_once(tmp_path: Path, one_shard: Shards) -> None:
    chance = random.Random(SEED)
    with trigger_world(tmp_path, one_shard, FUNCTIONS, TRIGGERS) as world:
        write(world)
        running = [world.start_worker(), world.start_worker()]
        for _ in range(12):
            done = world.query("SELECT count(*) FROM effect")[0][0]
            goal = min(done + chance.randrange(1, 20), 3 * ROWS)
            world.wait_for(
                lambda goal=goal: world.query("SELECT count(*) FROM effect")[0][0] >= goal, f"{goal} effects"
            )
            index = chance.randrange(len(running))
            if chance.random() < 0.5:
                os.kill(world.executor_pid(running[index]), signal.SIGKILL)
            else:
                running[index].kill()
                running[index].wait()
                running[index] = world.start_worker()
        check_exactly_once(world)


def test_executor_ends_with_its_killed_supervisor(tmp_path: Path, one_shard: Shards) -> None:
    functions = """
    import time
    def sleep(event):
        time.sleep(3600)
    """
    with trigger_world(tmp_path, one_shard, functions, {"sleep": {}}) as world:
        worker = world.start_worker()
        executor = world.executor_pid(worker)
        world.execute("INSERT INTO document VALUES (1, 'a', 'x')")
        worker.kill()
        worker.wait()
        world.wait_for(lambda: not is_alive(executor), "the executor's end")
        found = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'foreshard worker'"
        world.wait_for_rows(found, [(0,)])


def test_backends_killed_during_batches_every_effect_happens_once(tmp_path: Path, one_shard: Shards) -> None:
    with trigger_world(tmp_path, one_shard, FUNCTIONS, TRIGGERS) as world:
        write(world)
        world.start_worker()
        for goal in (5, 40, 80, 120):
            world.wait_for(
                lambda goal=goal: world.query("SELECT count(*) FROM effect")[0][0] >= goal, f"{goal} effects"
            )
            world.query(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'foreshard worker'"
            )
        check_exactly_once(world)


def is_alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_postgres_killed_during_batches_every_effect_happens_once(tmp_path: Path, own_shard: EmbeddedCluster) -> None:
    (shard,) = own_shard.start()
    with trigger_world(tmp_path, Shards((shard,)), FUNCTIONS, TRIGGERS) as world:
        write(world)
        world.start_worker()
        for goal in (10, 60, 110):
            world.wait_for(
                lambda goal=goal: world.query("SELECT count(*) FROM effect")[0][0] >= goal, f"{goal} effects"
            )
            for pid in own_shard.pids().values():
                os.kill(pid, signal.SIGKILL)
            assert own_shard.start() == (shard,)
        check_exactly_once(world)


@pytest.fixture
def own_shard() -> Iterator[EmbeddedCluster]:
    """One instance that syncs its WAL and that a test may kill."""
    with tempfile.TemporaryDirectory(prefix="foreshard-test-") as folder:
        Path(folder).chmod(0o755)  # another user runs PostgreSQL when we are root
        cluster = EmbeddedCluster(Path(folder) / "data", 1)
        try:
            yield cluster
        finally:
            cluster.stop()
