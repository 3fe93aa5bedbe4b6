"""Random sessions of several clients at once over three shards with few backends.

Every client checks every answer against a model (tests/support/sessions.py). Afterwards nothing may be left: no open
transaction, no lent backend, no waiting client, and no row of what failed, was rolled back or left undone.
FORESHARD_SOAK_SECONDS makes it run longer, FORESHARD_SEED otherwise.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.support.postgres import TestInstances
from tests.support.sessions import assert_truth, lead_sessions
from tests.support.sharded import Deployment, deployment

CLIENTS = 8
SECONDS = float(os.environ.get("FORESHARD_SOAK_SECONDS", "8"))
SEED = os.environ.get("FORESHARD_SEED", "20")


@pytest.fixture(scope="module")
def deployed(test_instances: TestInstances, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Fewer backends than clients, so that they wait for each other, and may have to give up."""
    pool = {"size": 3, "wait_timeout": "500ms"}
    with deployment(test_instances, tmp_path_factory.mktemp("random"), pool=pool) as made:
        yield made


def test_random_sessions_get_what_one_postgres_would_give_and_leave_nothing(deployed: Deployment) -> None:
    assert_truth(deployed, lead_sessions(deployed, CLIENTS, SEED, SECONDS))
