"""Fixtures of the tests that talk to PostgreSQL without and with the proxy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.postgres import TestInstances
from tests.support.proxy import Proxy
from tests.support.servers import Pair, Server
from tests.support.statements import SCHEMA, TABLES

SMALL_POOL_SIZE = 2


def running_pair(test_instances: TestInstances, directory: Path, **sections: Any) -> Iterator[tuple[Pair, Proxy]]:
    """A fresh database on one shard and a proxy in front of it, with no table declared."""
    shards = test_instances.create(1)
    with Proxy(shards.dsns, directory, **{"workers": {"per_shard": 0}, **sections}) as proxy:
        yield Pair(Server.of_dsn(shards.dsns[0]), proxy.server), proxy
    test_instances.drop(shards)


@pytest.fixture(scope="session")
def pair(test_instances: TestInstances, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """One database, direct and through a proxy that many tests share."""
    for made, _ in running_pair(test_instances, tmp_path_factory.mktemp("pair")):
        yield made


@pytest.fixture(scope="session")
def small_pair(test_instances: TestInstances, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """The same with two backends at most, so that clients must take turns."""
    pool = {"size": SMALL_POOL_SIZE}
    for made, _ in running_pair(test_instances, tmp_path_factory.mktemp("small"), pool=pool):
        yield made


@pytest.fixture(scope="session")
def sharded_pair(test_instances: TestInstances, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """The default shard's database, direct and through a proxy with declared tables over three shards.

    What these tables are does not matter: plain tables must be answered as ever beside them.
    """
    shards = test_instances.create(3)
    shards.execute(SCHEMA)
    with Proxy(shards.dsns, tmp_path_factory.mktemp("sharded"), tables=TABLES, workers={"per_shard": 0}) as proxy:
        yield Pair(Server.of_dsn(shards.dsns[0]), proxy.server)
    test_instances.drop(shards)


@pytest.fixture(scope="session", params=["pair", "sharded_pair"])
def either_pair(request: pytest.FixtureRequest) -> Pair:
    """Without and with declared tables."""
    made: Pair = request.getfixturevalue(request.param)
    return made
