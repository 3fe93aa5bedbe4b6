"""Random sessions of several clients at once over three shards with few backends.

Every client checks every answer against a model (tests/support/sessions.py). Afterwards nothing may be left: no open
transaction, no lent backend, no waiting client, and no row of what failed, was rolled back or left undone.
FORESHARD_SOAK_SECONDS makes it run longer.
"""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections.abc import Iterator

import pytest

from tests.support.postgres import TestInstances
from tests.support.sessions import Session
from tests.support.sharded import SHARD_COUNT, Deployment, deployment

CLIENTS = 8
SECONDS = float(os.environ.get("FORESHARD_SOAK_SECONDS", "10"))
SEED = int(os.environ.get("FORESHARD_SEED", "20"))


@pytest.fixture(scope="module")
def deployed(test_instances: TestInstances, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Fewer backends than clients, so that they wait for each other, and may have to give up."""
    pool = {"size": 3, "wait_timeout": "500ms"}
    with deployment(test_instances, tmp_path_factory.mktemp("random"), pool=pool) as made:
        yield made


def run_sessions(deployed: Deployment, seed: int, seconds: float) -> list[Session]:
    """Lead all sessions until the time is over; the first failure is raised, with what that client had said."""
    end = time.monotonic() + seconds
    sessions = [Session(deployed.server, deployed.keys, number, seed) for number in range(CLIENTS)]
    failures: list[str] = []

    def lead(session: Session) -> None:
        try:
            while time.monotonic() < end and not failures:
                session.run()
            session.end()
        except BaseException:
            failures.append("\n".join([f"seed {seed}", *session.said[-12:], traceback.format_exc()]))
            session.connection.close()

    threads = [threading.Thread(target=lead, args=(session,)) for session in sessions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0] + deployed.proxy.log_text()
    return sessions


def rows_of_tags(deployed: Deployment) -> dict[str, int]:
    """How many rows each tag has, over all tables and shards."""
    found: dict[str, int] = {}
    for shard in range(SHARD_COUNT):
        for table in ("root", "child", "plain"):
            for (tag,) in deployed.shards.query(f"SELECT tag FROM {table} WHERE tag <> 'kept'", on=shard):
                found[str(tag)] = found.get(str(tag), 0) + 1
    return found


def test_random_sessions_get_what_one_postgres_would_give_and_leave_nothing(deployed: Deployment) -> None:
    sessions = run_sessions(deployed, SEED, SECONDS)
    deployed.come_to_rest()
    found = rows_of_tags(deployed)
    assert set(found.values()) == {1}
    for session in sessions:
        assert session.model.present
        assert session.model.present <= found.keys(), sorted(session.model.present - found.keys())
        assert not session.model.absent & found.keys(), sorted(session.model.absent & found.keys())
