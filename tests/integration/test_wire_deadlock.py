"""Clients that lock rows of two shards crosswise: one of them hears 40P01, the other goes on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.messages import SYNC, extended, query
from tests.support.postgres import TestInstances
from tests.support.raw import RawConnection, error_of, kinds
from tests.support.sharded import Deployment, deployment
from tests.support.waiting import wait_until

WAITING = "SELECT count(*) FROM pg_locks WHERE NOT granted"


@pytest.fixture(scope="module")
def deployed(test_instances: TestInstances, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployment(test_instances, tmp_path_factory.mktemp("deadlock")) as made:
        yield made


def update(key: int) -> str:
    return f"UPDATE root SET n = n + 1 WHERE id = {key}"


def wait_until_waiting(deployed: Deployment, shard: int) -> None:
    """Some process of the shard waits for a lock."""
    wait_until(lambda: deployed.shards.query(WAITING, on=shard) != [(0,)])


def commit(client: RawConnection) -> str:
    """The tag of the answer to COMMIT."""
    answer = client.query("COMMIT")
    return next(message.body[:-1].decode() for message in answer if message.kind == b"C")


@pytest.mark.parametrize("by_extended", [False, True], ids=["simple", "extended"])
def test_of_two_that_lock_crosswise_the_younger_hears_of_a_deadlock(deployed: Deployment, by_extended: bool) -> None:
    near, far = deployed.keys[0][0], deployed.keys[1][0]
    before = deployed.shards.query(f"SELECT n FROM root WHERE id = {far}", on=1)
    with deployed.server.connect() as older, deployed.server.connect() as younger:
        for client, key in ((older, near), (younger, far)):
            client.rows("BEGIN")
            client.rows(update(key))
        older.send(extended(update(far)) + SYNC if by_extended else query(update(far)))
        wait_until_waiting(deployed, 1)
        error = error_of(younger.ask(extended(update(near)) + SYNC if by_extended else query(update(near))))
        assert (error["C"], error["M"]) == ("40P01", "deadlock detected over shards s0, s1")
        assert f"that of client {younger.pid} is the youngest" in error["D"]
        assert commit(younger) == "ROLLBACK"
        assert "E" not in kinds(older.read_until())
        assert commit(older) == "COMMIT"
        assert younger.value("SELECT 1") == "1"
    after = deployed.shards.query(f"SELECT n FROM root WHERE id = {far}", on=1)
    assert int(str(after[0][0])) == int(str(before[0][0])) + 1
    deployed.come_to_rest()


def test_a_savepoint_survives_a_deadlock(deployed: Deployment) -> None:
    near, far = deployed.keys[0][1], deployed.keys[1][1]
    with deployed.server.connect() as older, deployed.server.connect() as younger:
        for client, key in ((older, near), (younger, far)):
            client.rows("BEGIN")
            client.rows("SAVEPOINT first")
            client.rows(update(key))
            client.rows("SAVEPOINT second")
        older.send(query(update(far)))
        wait_until_waiting(deployed, 1)
        assert error_of(younger.query(update(near)))["C"] == "40P01"
        younger.rows("ROLLBACK TO first")  # gives its locks up
        older.read_until()
        assert commit(older) == "COMMIT"
        younger.rows(update(near))
        assert commit(younger) == "COMMIT"
    deployed.come_to_rest()
