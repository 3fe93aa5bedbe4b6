"""Fixtures for the whole suite: real PostgreSQL shards, made once per test process and only when a test asks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.postgres import Shards, TestInstances

# Files that take longest, in that order: each is one worker's, so a long one that begins late leaves the others idle.
LONGEST = (
    "fault/test_two_phase", "fault/test_demo", "fault/test_wire_faults", "fault/test_two_proxies",
    "integration/test_benches", "integration/test_query_node", "integration/test_copy_in",
    "integration/test_composite_keys", "integration/test_right_or_refused", "fault/test_recovery_killed",
    "fault/test_spread_killed", "integration/test_wide_writes", "control/test_plan_and_apply",
    "integration/test_old_catalogs", "fault/test_uniqueness", "fault/test_ddl_killed", "fault/test_gate_killed",
    "differential/test_random_scripts", "fault/test_supervisor", "integration/test_wire_random",
    "fault/test_triggers_kill", "fault/test_copy_faults", "fault/test_wire_chaos", "integration/test_claims",
    "fault/test_controller_killed", "integration/test_wire_memory", "integration/test_triggers_worker",
    "integration/test_ddl", "integration/test_wire_pooling", "integration/test_differential",
    "integration/test_snapshots", "integration/test_claim_conflicts", "fault/test_move_killed",
)  # fmt: skip
PLACES = {name: place for place, name in enumerate(LONGEST)}


def pytest_configure(config: pytest.Config) -> None:
    """Have workers take files in the order below, not by their number of tests."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, then all others, which fill the gaps; within a file nothing changes."""
    items.sort(key=lambda item: PLACES.get(name_of(item.path), len(LONGEST)))


def name_of(path: Path) -> str:
    """A file as LONGEST names it."""
    return f"{path.parent.name}/{path.stem}"


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
