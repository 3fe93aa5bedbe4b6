"""What the demo says at its end."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from foreshard.proxy.demo.display import Display
from foreshard.proxy.demo.report import FunctionFigures, Report, by_function
from foreshard.proxy.demo.run import title_of
from foreshard.proxy.placement import Spread

PROFILES = {
    "index_document on insert": FunctionFigures(150, 1.1, 2.5, 3.25),
    "index_document on update": FunctionFigures(50, 1.2, 2.4, 1.0),
    "idle on insert": FunctionFigures(0, None, None, 0.0),
}
REPORT = Report(
    rows=100,
    inserted=100,
    updates=50,
    found=100,
    misplaced=0,
    outbox_left=0,
    dead_letters=0,
    effects_lost=0,
    effects_repeated=0,
    findings=0,
    reconnects=0,
    seconds=1.5,
    rows_per_shard={"s0": 60, "s1": 40},
    cost_s_per_shard={"s0": 1.0, "s1": 3.0},
    policy="bounded",
    balance_inserts={"bounded": 1.0},
    balance={"bounded": 1.01, "key-hash": 1.3},
    key_hash_expected_inserts=Spread(1.25, 1.1, 1.5),
    key_hash_expected=Spread(1.2, 1.05, 1.4),
    functions=by_function(PROFILES),
    profiles=PROFILES,
)


def test_a_good_run_has_no_failures() -> None:
    assert REPORT.failures() == []


@pytest.mark.parametrize(
    "change",
    [
        {"found": 99},
        {"misplaced": 1},
        {"outbox_left": 1},
        {"dead_letters": 1},
        {"effects_lost": 1},
        {"effects_repeated": 1},
        {"findings": 1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_anything_wrong_is_a_failure_with_its_count(change: dict[str, int]) -> None:
    (failure,) = msgspec.structs.replace(REPORT, **change).failures()
    assert failure.startswith("1 ")


def test_the_file_has_the_figures_by_name(tmp_path: Path) -> None:
    REPORT.write(tmp_path / "report.json")
    read = json.loads((tmp_path / "report.json").read_text())
    assert {"rows", "found", "misplaced", "outbox_left", "dead_letters", "balance", "functions"} <= set(read)
    assert read["key_hash_expected"] == {"median": 1.2, "low": 1.05, "high": 1.4}
    assert read["functions"]["index_document"] == {"calls": 200, "median_q": 1.2, "p95_q": 2.5, "cpu_seconds": 4.25}
    assert read["profiles"]["index_document on insert"]["calls"] == 150


def test_tables_are_plain_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    REPORT.show(Display())
    shown = capsys.readouterr().out
    assert "s1            40     3.00  75.0 %" in shown
    assert "key-hash, expected" in shown
    assert "1.05-1.40" in shown
    assert "first inserts" in shown
    assert "\x1b" not in shown


def test_a_run_over_what_is_there_tells_nothing_of_first_inserts(capsys: pytest.CaptureFixture[str]) -> None:
    msgspec.structs.replace(REPORT, balance_inserts=None, key_hash_expected_inserts=None).show(Display())
    shown = capsys.readouterr().out
    assert "first inserts" not in shown
    assert "key-hash" in shown


@pytest.mark.parametrize(
    ("inserts", "updates", "title"),
    [(3, 0, "Inserting documents"), (3, 3, "Inserting, and updating, zipfian"), (0, 3, "Updating, zipfian")],
)
def test_steps_are_called_what_they_do(inserts: int, updates: int, title: str) -> None:
    assert title_of(inserts, updates) == title
