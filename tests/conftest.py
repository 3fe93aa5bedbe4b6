"""Fixtures for the whole suite: real PostgreSQL shards, made once per test process and only when a test asks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.postgres import Shards, TestInstances


@pytest.fixture(scope="session")
def test_instances() -> Iterator[TestInstances]:
    """Three PostgreSQL instances that live as long as the test process."""
    instances = TestInstances()
    try:
        yield instances
    finally:
        instances.close()


@pytest.fixture
def one_shard(test_instances: TestInstances) -> Iterator[Shards]:
    """A fresh database on one shard."""
    made = test_instances.create(1)
    yield made
    test_instances.drop(made)


@pytest.fixture
def two_shards(test_instances: TestInstances) -> Iterator[Shards]:
    """Fresh databases on two shards."""
    made = test_instances.create(2)
    yield made
    test_instances.drop(made)


@pytest.fixture
def three_shards(test_instances: TestInstances) -> Iterator[Shards]:
    """Fresh databases on three shards."""
    made = test_instances.create(3)
    yield made
    test_instances.drop(made)
