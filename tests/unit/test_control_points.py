"""Every control point of the code is declared, and every declared one is hit by a test that kills there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from foreshard.proxy.triggers import points
from foreshard.proxy.wire import commit

ROOT = Path(__file__).resolve().parents[2]
# Declared where, and in which tests: all of them are armed there with FORESHARD_CRASH_AT.
DECLARED = {
    "NAMES": (points.NAMES, "test_triggers_kill.py"),
    "RECOVERY_NAMES": (points.RECOVERY_NAMES, "test_recovery_killed.py"),
    "SPREAD_NAMES": (points.SPREAD_NAMES, "test_spread_killed.py"),
    "SCHEMA_NAMES": (points.SCHEMA_NAMES, "test_ddl_killed.py"),
    "MOVE_NAMES": (points.MOVE_NAMES, "test_move_killed.py"),
    "MOVER_NAMES": (points.MOVER_NAMES, "test_moves_killed.py"),
    "HOLD_NAMES": (points.HOLD_NAMES, "test_moves_killed.py"),
    "INTAKE_NAMES": (points.INTAKE_NAMES, "test_intake_killed.py"),
    "LIST_NAMES": (points.LIST_NAMES, "test_shards_killed.py"),
    "GATE_NAMES": (points.GATE_NAMES, "test_gate_killed.py"),
    "SNAPSHOT_POINTS": (commit.SNAPSHOT_POINTS, "test_gate_killed.py"),
    "CONTROL_POINTS": (commit.CONTROL_POINTS, "test_two_phase.py"),
}


def named_in_code() -> set[str]:
    """The names with which the code calls control_point, and those in tuples called POINTS, which it hands on."""
    sources = [path for folder in ("_core", "proxy") for path in (ROOT / folder).rglob("*.py*")]
    texts = [path.read_text() for path in sources if path.suffix in (".py", ".pyx")]
    handed_on = [found for text in texts for found in re.findall(r"^POINTS = \((.*)\)$", text, re.MULTILINE)]
    called = {name for text in texts for name in re.findall(r'control_point\(\s*"([^"]+)"', text)}
    return called | {name for found in handed_on for name in re.findall(r'"([^"]+)"', found)}


def test_every_control_point_is_declared_and_every_declared_one_is_there() -> None:
    declared = [name for names, _ in DECLARED.values() for name in names]
    assert sorted(declared) == sorted(named_in_code())


@pytest.mark.parametrize("declaration", DECLARED)
def test_every_control_point_is_killed_at(declaration: str) -> None:
    _, test = DECLARED[declaration]
    text = (ROOT / "tests" / "fault" / test).read_text()
    assert re.search(rf"^from [\w.]+ import .*\b{declaration}\b", text, re.MULTILINE)
    if declaration != "NAMES":  # which a worker is armed with by its world
        assert "CRASH_AT" in text or "crash_at" in text
    uses = re.sub(r"^from .*$", "", text, flags=re.MULTILINE)
    assert re.search(rf"\b{declaration}\b", uses)


def test_no_two_control_points_have_one_name() -> None:
    declared = [name for names, _ in DECLARED.values() for name in names]
    assert len(set(declared)) == len(declared)
