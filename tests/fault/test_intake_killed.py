"""`apply` killed or stopped between any two steps of taking in claims for older rows: the next one ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from foreshard._core.buckets import initial_map
from foreshard.proxy.triggers.points import INTAKE_NAMES
from tests.support.postgres import Shards
from tests.support.proxy import Proxy
from tests.support.verified import assert_verified
from tests.support.waiting import process_state, wait_until

SHARD_COUNT = 3
ROWS = 40  # per shard
SCHEMA = "CREATE TABLE person (id bigserial PRIMARY KEY, email text)"
UNIQUE = {"person": {"key": "id", "unique": ["email"]}}
CLAIMS = "SELECT key FROM foreshard.claim"


@pytest.fixture
def filled(three_shards: Shards, tmp_path: Path) -> Proxy:
    """A deployment with rows, which is about to learn that their values are unique."""
    three_shards.execute(SCHEMA)
    Proxy(three_shards.dsns, tmp_path / "before", tables={"person": {"key": "id"}})
    owners = initial_map(SHARD_COUNT)
    for shard in range(SHARD_COUNT):
        three_shards.execute(
            f"SET foreshard.bucket = '{owners.index(shard)}'; INSERT INTO person (email) "
            f"SELECT 'mail ' || {shard} || '.' || n FROM generate_series(1, {ROWS}) AS n",
            on=shard,
        )
    return Proxy(three_shards.dsns, tmp_path / "after", tables=UNIQUE, apply=False)


def begin_apply(proxy: Proxy, **environment: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "foreshard.proxy", "apply", "-c", str(proxy.configuration)]
    return subprocess.Popen(command, env={**os.environ, **environment}, stdout=subprocess.DEVNULL)


def check(proxy: Proxy, shards: Shards, missing: set[str]) -> None:
    claims = sorted(str(row[0]) for shard in range(SHARD_COUNT) for row in shards.query(CLAIMS, on=shard))
    emails = {f"mail {shard}.{number}" for shard in range(SHARD_COUNT) for number in range(1, ROWS + 1)}
    assert claims == sorted(emails - missing)
    assert_verified(proxy.configuration)


@pytest.mark.parametrize("point", INTAKE_NAMES)
def test_apply_goes_on_where_one_was_killed(three_shards: Shards, filled: Proxy, point: str) -> None:
    assert begin_apply(filled, FORESHARD_CRASH_AT=point).wait(60) == -signal.SIGKILL
    filled.run_command("apply")
    check(filled, three_shards, set())


@pytest.mark.parametrize("point", INTAKE_NAMES)
def test_apply_that_was_stopped_finds_what_another_did_and_rows_that_have_gone(
    three_shards: Shards, filled: Proxy, point: str
) -> None:
    running = begin_apply(filled, FORESHARD_STOP_AT=point)
    gone: set[str] = set()
    try:
        wait_until(lambda: process_state(running.pid) == "T")
        if point == "intake-ended":  # no row is locked any more
            filled.run_command("apply")
            gone = {str(row[0]) for row in three_shards.query(CLAIMS + " WHERE key LIKE 'mail 0.%' LIMIT 1", on=0)}
            three_shards.execute(f"DELETE FROM person WHERE email = '{min(gone)}'", on=0)
        os.kill(running.pid, signal.SIGCONT)
        assert running.wait(60) == 0
    finally:
        running.kill()
        running.wait()
    check(filled, three_shards, gone)
