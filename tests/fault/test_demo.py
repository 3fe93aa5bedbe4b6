"""The demo, small: as it is, with a worker killed in the middle, and with the whole proxy killed in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from foreshard.proxy.embedded import EmbeddedCluster
from tests.support.postgres import open_folder
from tests.support.serving import command_line, descendants, free_port
from tests.support.waiting import wait_until, wait_until_gone


class Demo:
    """One data directory and the demos run on it."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.figures = data / "figures.json"

    def start(self, rows: int, updates: int) -> subprocess.Popen[str]:
        words = ["demo", "--once", "--rows", rows, "--updates", updates, "--data", self.data, "--json", self.figures]
        command = [sys.executable, "-m", "foreshard.proxy", *map(str, words), "--listen", f"127.0.0.1:{free_port()}"]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def finish(self, process: subprocess.Popen[str], code: int = 0) -> str:
        """Wait for the end, which must have this exit code; what it said."""
        said, _ = process.communicate(timeout=300)
        assert process.returncode == code, said + self.logs()
        return said

    def check_figures(self) -> dict[str, Any]:
        """The figures of the last run, in which everything must be right."""
        figures: dict[str, Any] = json.loads(self.figures.read_text())
        assert figures["found"] == figures["rows"]
        for name in ("misplaced", "outbox_left", "dead_letters", "effects_lost", "effects_repeated", "findings"):
            assert figures[name] == 0, name
        return figures

    def acknowledged(self) -> int:
        """Rows that clients were told of."""
        journal = self.data / "acknowledged.tsv"
        return len(journal.read_text().splitlines()) if journal.exists() else 0

    def logs(self) -> str:
        files = [self.data / "serve.log", *sorted((self.data / "run").glob("*.log"))]
        return "\n".join(f"{file.name}:\n{file.read_text()[-3000:]}" for file in files if file.exists())


@pytest.fixture
def demo() -> Iterator[Demo]:
    with open_folder("demo") as data:
        try:
            yield Demo(data)
        finally:
            EmbeddedCluster(data / "shards", 3).stop()


def test_the_demo_finds_every_row_and_its_second_run_reuses_them(demo: Demo) -> None:
    said = demo.finish(demo.start(rows=60, updates=30))
    figures = demo.check_figures()
    assert (figures["rows"], figures["inserted"], figures["updates"]) == (60, 60, 30)
    assert sum(figures["rows_per_shard"].values()) == 60
    assert {"bounded", "key-hash", "cost-hash"} <= set(figures["balance"])
    assert {name: entry["calls"] for name, entry in figures["functions"].items()} == {
        f"{name}_document": 90 for name in ("compress", "index", "shingle")
    }
    assert {name: entry["calls"] for name, entry in figures["profiles"].items()} == {
        f"{name}_document on {operation}": calls
        for name in ("compress", "index", "shingle")
        for operation, calls in (("insert", 60), ("update", 30))
    }
    assert "60 of 60" in said
    assert "first inserts" in said
    again = demo.finish(demo.start(rows=60, updates=5))
    assert "reusing them" in again
    figures = demo.check_figures()
    assert (figures["rows"], figures["inserted"]) == (60, 0)
    assert "first inserts" not in again
    assert "Inserting" not in again
    assert figures["balance_inserts"] is None
    assert all(entry["median_q"] is not None for entry in figures["functions"].values())


def test_ctrl_c_ends_the_demo_with_a_word_about_its_data(demo: Demo) -> None:
    process = demo.start(rows=120, updates=40)
    wait_until(lambda: demo.acknowledged() > 10)
    process.send_signal(signal.SIGINT)
    assert f"The data stays in {demo.data}" in demo.finish(process, 130).splitlines()[-1]


def test_a_worker_killed_in_the_middle_loses_and_repeats_nothing(demo: Demo) -> None:
    process = demo.start(rows=120, updates=40)
    wait_until(lambda: demo.acknowledged() > 30)
    workers = [int(path.stem.rpartition("-")[2]) for path in (demo.data / "run").glob("wake-*.sock")]
    os.kill(workers[0], signal.SIGKILL)
    demo.finish(process)
    assert demo.check_figures()["rows"] == 120
    assert "killed by SIGKILL" in (demo.data / "serve.log").read_text()


@pytest.mark.parametrize("rows", [30, 59], ids=["rows are written", "figures are asked for"])
def test_the_router_killed_in_the_middle_loses_and_repeats_nothing(demo: Demo, rows: int) -> None:
    process = demo.start(rows=120, updates=40)
    wait_until(lambda: demo.acknowledged() > rows)
    os.kill(router_of(demo), signal.SIGKILL)
    demo.finish(process)
    assert demo.check_figures()["rows"] >= 120
    assert demo.check_figures()["reconnects"] > 0


def test_the_whole_proxy_killed_in_the_middle_loses_and_repeats_nothing(demo: Demo) -> None:
    process = demo.start(rows=120, updates=40)
    wait_until(lambda: demo.acknowledged() > 30)
    supervisor = int((demo.data / "run" / "supervisor.pid").read_text())
    children = [pid for pid in descendants(supervisor) if b"foreshard.proxy" in command_line(pid)]
    assert len(children) >= 5
    os.kill(supervisor, signal.SIGKILL)
    demo.finish(process, 1)
    wait_until_gone(supervisor, *children)
    assert demo.acknowledged() < 120
    demo.finish(demo.start(rows=120, updates=40))
    # Acknowledged rows of the killed run are among those that must be found.
    assert demo.check_figures()["rows"] >= 120


def router_of(demo: Demo) -> int:
    """Process id of the router."""
    supervisor = int((demo.data / "run" / "supervisor.pid").read_text())
    (found,) = [pid for pid in descendants(supervisor) if b"\0router\0" in command_line(pid)]
    return found
