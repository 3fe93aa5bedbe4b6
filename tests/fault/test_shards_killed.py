"""`foreshard shards` killed at every control point, and a router as it follows: the deployment is as it was, or as it
was to be, and the same command goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import LiteralString

import psycopg
import pytest

from foreshard.proxy.triggers.points import LIST_NAMES
from tests.support.moving import GROWING, MOVED_BY_HAND, OLD, SCHEMA, MovingWorld
from tests.support.postgres import Shards, TestInstances
from tests.support.proxy import ROOT, Proxy
from tests.support.verified import assert_verified
from tests.support.waiting import wait_until

COUNTS: LiteralString = "SELECT (SELECT count(*) FROM document WHERE owner = -1), (SELECT count(*) FROM country)"
IS_PREPARED = "SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database()"
BEHIND = ("shards-decided", "shards-finished", "shards-planned")  # the deployment has the shard


@pytest.fixture
def shards(test_instances: TestInstances) -> Iterator[Shards]:
    made = test_instances.create(3)
    made.execute(SCHEMA + OLD, on=0)
    yield made
    test_instances.drop(made)


def shards_command(proxy: Proxy, *words: str, crash_at: str = "") -> tuple[int, str]:
    """Exit code and output of `foreshard shards`."""
    command = [sys.executable, "-m", "foreshard.proxy", "shards", "-c", str(proxy.configuration), *words]
    environment = {**os.environ, **({"FORESHARD_CRASH_AT": crash_at} if crash_at else {})}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def listed(proxy: Proxy) -> list[str]:
    code, said = shards_command(proxy, "list")
    assert code == 0, said
    return [line.split()[1] for line in said.splitlines()[1:]]


def counted(proxy: Proxy) -> tuple[int, int] | None:
    """What a client sees; None while it cannot connect."""
    try:
        with psycopg.connect(proxy.server.dsn, autocommit=True) as client:
            row = client.execute(COUNTS).fetchone()
            return None if row is None else (row[0], row[1])
    except psycopg.Error:
        return None


@pytest.mark.parametrize("point", [name for name in LIST_NAMES if name != "shards-noticed"])
def test_a_command_that_adds_a_shard_is_killed(shards: Shards, tmp_path: Path, point: str) -> None:
    with Proxy(shards.dsns[:1], tmp_path, tables=GROWING, **MOVED_BY_HAND) as proxy:
        world = MovingWorld(shards, [proxy], 2, 1 + LIST_NAMES.index(point))
        world.start()
        words = ("add", "s1", "--dsn", shards.dsns[1], "--buckets", "5")
        code, said = shards_command(proxy, *words, crash_at=point)
        assert code == -signal.SIGKILL, said
        assert listed(proxy) == (["s0", "s1"] if point in BEHIND else ["s0"])
        assert counted(proxy) == (100, 50)
        code, said = shards_command(proxy, *words)
        assert code == 0, said
        assert listed(proxy) == ["s0", "s1"]
        world.stop()
        assert counted(proxy) == (100, 50)
        wait_until(lambda: all(shards.query(IS_PREPARED, on=index) == [(0,)] for index in (0, 1)))
    world.shards = Shards(shards.shards[:2])
    world.check()
    assert set(world.owners().values()) == {0, 1}
    assert_verified(proxy.configuration)


@pytest.mark.parametrize("point", ["shards-locked", "shards-prepared", "shards-decided", "shards-finished"])
def test_a_command_that_removes_a_shard_is_killed(shards: Shards, tmp_path: Path, point: str) -> None:
    """The one in the middle: the last takes its place."""
    with Proxy(shards.dsns[:1], tmp_path, tables=GROWING, **MOVED_BY_HAND) as proxy:
        for index, buckets in ((1, "0"), (2, "5")):
            code, said = shards_command(proxy, "add", f"s{index}", "--dsn", shards.dsns[index], "--buckets", buckets)
            assert code == 0, said
        code, said = shards_command(proxy, "remove", "s1", crash_at=point)
        assert code == -signal.SIGKILL, said
        if point not in BEHIND:
            assert listed(proxy) == ["s0", "s1", "s2"]
            wait_until(lambda: shards_command(proxy, "remove", "s1")[0] == 0)
        wait_until(lambda: counted(proxy) == (100, 50))
        assert listed(proxy) == ["s0", "s2"]
        small = Shards((shards.shards[0], shards.shards[2]))
        world = MovingWorld(small, [proxy], 2, 5)
        wait_until(lambda: set(world.owners().values()) == {0, 1})
        world.start()
        world.plan(world.bucket(), shard_count=2)
        world.wait_moved()
        world.stop()
    world.check()
    assert_verified(proxy.configuration)


def test_a_router_is_killed_as_it_follows(shards: Shards, tmp_path: Path) -> None:
    environment = {"FORESHARD_CRASH_AT": "shards-noticed"}
    with Proxy(shards.dsns[:1], tmp_path, tables=GROWING, environment=environment, **MOVED_BY_HAND) as proxy:
        code, said = shards_command(proxy, "add", "s1", "--dsn", shards.dsns[1], "--buckets", "5")
        assert code == 0, said
        assert "killed by SIGKILL" in proxy.log.read_text()
        wait_until(lambda: counted(proxy) == (100, 50))
    assert_verified(proxy.configuration)
