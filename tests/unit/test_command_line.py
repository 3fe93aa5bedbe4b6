"""The command line: words in any order, and what is said of words that are none."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from foreshard.proxy.__main__ import COMMANDS, build_command_parser, main

WORDS = (("pause",), ("index_document",), ("-c", "f.yaml"), ("--shard", "s0"), ("--debug",))


@pytest.mark.parametrize("order", list(itertools.permutations(WORDS[2:])))
@pytest.mark.parametrize("places", list(itertools.combinations(range(5), 2)))
def test_options_may_stand_anywhere(order: tuple[tuple[str, ...], ...], places: tuple[int, int]) -> None:
    options = iter(order)
    positional = iter(WORDS[:2])
    words = [word for place in range(5) for word in next(positional if place in places else options)]
    arguments = build_command_parser("triggers").parse_intermixed_args(words)
    assert (arguments.action, arguments.function, arguments.shard) == ("pause", "index_document", "s0")
    assert (arguments.config, arguments.debug) == (Path("f.yaml"), True)


def test_a_function_may_be_left_out_where_all_are_meant() -> None:
    arguments = build_command_parser("triggers").parse_intermixed_args(["list", "-c", "f.yaml"])
    assert (arguments.action, arguments.function) == ("list", None)


def test_an_unknown_command_is_told_the_commands_that_are_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["nosuch"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "'serve'" in said
    assert "'router'" not in said
    assert "'controller'" not in said


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_its_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: foreshard {name} ")
    assert "configuration file" not in said


def test_plan_leaves_embedded_shards_that_do_not_exist_to_apply(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "f.yaml"
    path.write_text("embedded: {shards: 2, data: ./data}\n")
    assert main(["plan", "-c", str(path)]) == 1
    said = capsys.readouterr().out
    assert f"embedded shards s0, s1 below {tmp_path / 'data'} do not exist yet" in said
    assert f"foreshard apply -c {path}" in said
    assert main(["check", "-c", str(path)]) == 1
    assert "have never been started: run `foreshard apply`" in capsys.readouterr().err
    assert main(["verify", "-c", str(path)]) == 2
    assert list(tmp_path.iterdir()) == [path]
