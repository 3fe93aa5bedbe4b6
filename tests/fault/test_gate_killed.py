"""Routers killed or stopped while they keep commits over several shards out: those of other routers pass soon."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from foreshard.proxy.triggers.points import GATE_NAMES
from foreshard.proxy.wire.commit import SNAPSHOT_POINTS
from tests.support.messages import query
from tests.support.postgres import TestInstances
from tests.support.raw import Closed, RawConnection, error_of
from tests.support.routers import Routers
from tests.support.sharded import TABLES, Deployment, deployment
from tests.support.verified import assert_verified
from tests.support.waiting import process_state, wait_until

POINTS = (*GATE_NAMES, *SNAPSHOT_POINTS)
TOTAL = "SELECT sum(n) FROM root"
MOVED = (2, -1, -1)


class World(Routers):
    """A deployment whose proxy commits over shards, and where other routers open snapshots."""

    def __init__(self, one: Deployment, folder: Path) -> None:
        super().__init__(one.shards, folder, TABLES, is_applied=True)
        self.one = one

    def commit(self, client: RawConnection) -> None:
        """A transaction over all shards that leaves the total as it is."""
        client.rows("BEGIN")
        for keys, amount in zip(self.one.keys, MOVED, strict=True):
            client.rows(f"UPDATE root SET n = n + {amount} WHERE id = {keys[0]}")
        client.rows("COMMIT")


@pytest.fixture(scope="module")
def world(test_instances: TestInstances, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("gate-killed")
    with deployment(test_instances, folder / "one") as one:
        yield World(one, folder)
        one.come_to_rest()
        assert_verified(one.proxy.configuration)


@pytest.mark.parametrize("point", POINTS)
def test_commits_pass_when_a_router_has_died_with_the_gate_in_its_hands(world: World, point: str) -> None:
    with world.one.server.connect() as writer:
        total = writer.value(TOTAL)
        with world.router(FORESHARD_CRASH_AT=point) as proxy, proxy.server.connect() as reader:
            reader.rows("SET foreshard.snapshot = on")
            with pytest.raises(Closed):
                reader.query(TOTAL)
            assert proxy.wait_for_end() == -signal.SIGKILL
            world.commit(writer)
        writer.rows("SET foreshard.snapshot = on")
        assert writer.value(TOTAL) == total


@pytest.mark.parametrize("point", POINTS)
def test_commits_pass_a_router_that_stops_with_the_gate_in_its_hands_and_its_snapshots_do_not_count(
    world: World, point: str
) -> None:
    with (
        world.router(FORESHARD_STOP_AT=point) as proxy,
        world.one.server.connect() as writer,
        proxy.server.connect() as reader,
    ):
        total = writer.value(TOTAL)
        reader.rows("SET foreshard.snapshot = on")
        reader.send(query(TOTAL))
        (pid,) = proxy.router_pids()
        wait_until(lambda: process_state(pid) == "T")
        world.commit(writer)
        os.kill(pid, signal.SIGCONT)
        assert error_of(reader.read_until())["C"] == "40001"
        assert reader.value(TOTAL) == total
