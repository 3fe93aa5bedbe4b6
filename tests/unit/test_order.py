"""The order in which the suite's files are run names files that are there."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import LONGEST, name_of

TESTS = Path(__file__).resolve().parents[1]


def test_every_long_file_is_there_once() -> None:
    names = [name_of(path) for path in TESTS.rglob("test_*.py")]
    assert [names.count(name) for name in LONGEST] == [1] * len(LONGEST)
    assert len(set(LONGEST)) == len(LONGEST)
