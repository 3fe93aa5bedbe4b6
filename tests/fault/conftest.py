"""Fixtures of the fault tests."""

from __future__ import annotations

import pytest

from tests.support.fault_matrix import Case


@pytest.fixture
def case(request: pytest.FixtureRequest) -> Case:
    """The test's row of the fault matrix."""
    return Case(f"{request.path.stem}::{request.node.name}")
