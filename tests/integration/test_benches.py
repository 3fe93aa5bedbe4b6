"""Every benchmark runs small, so that none of them rots."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import Options
from bench.__main__ import discover, main, run_bench


@pytest.mark.parametrize("name", discover())
def test_bench_runs_small_and_writes_its_result(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run_bench(name, Options(small=True, out=tmp_path))
    written = json.loads(path.read_text())
    assert (written["bench"], written["seed"], written["small"]) == (name, 1, True)
    assert {"machine", "versions"} <= written.keys()
    assert capsys.readouterr().out


def test_the_command_prints_machine_versions_and_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["micro", "--small", "--seed", "7", "--out", str(tmp_path / "new")]) == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("machine", "versions", "seed      7", "jump hash"))
    assert (tmp_path / "new" / "micro.json").exists()


def test_the_command_fails_when_a_bench_finds_what_must_not_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.moves.run", lambda options: {"failures": ["2 acknowledged writes are lost"]})
    assert main(["moves", "--small", "--out", str(tmp_path)]) == 1
    assert "FAILED: 2 acknowledged writes are lost" in capsys.readouterr().out
    assert (tmp_path / "moves.json").exists()


def test_an_unknown_bench_is_refused_with_the_names_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["nothing"])
    assert stopped.value.code == 2
    assert "there are balance" in capsys.readouterr().err
