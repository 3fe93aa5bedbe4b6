"""`foreshard triggers` against a real shard and worker."""

from __future__ import annotations

from pathlib import Path

import pytest

from foreshard.proxy.__main__ import main
from tests.support.postgres import Shards
from tests.support.trigger_world import trigger_world

FUNCTIONS = """
    from pathlib import Path
    def picky(event):
        if not Path(__file__).with_name("mended").exists():
            raise ValueError("not mended")
        event.execute("INSERT INTO effect (key) VALUES ($1)", event.key)
    def plain(event):
        event.execute("INSERT INTO effect (key) VALUES ($1)", -event.key)
"""


def test_dead_letters_are_listed_and_replayed(
    tmp_path: Path, one_shard: Shards, capsys: pytest.CaptureFixture[str]
) -> None:
    with trigger_world(tmp_path, one_shard, FUNCTIONS, {"picky": {"attempts_max": 1}, "plain": {}}) as world:
        world.start_worker()
        world.execute("INSERT INTO document SELECT n, 'a', 'x' FROM generate_series(1, 3) AS n")
        world.wait_drained()
        assert main(["triggers", "list", "-c", str(world.path)]) == 0
        listed = capsys.readouterr().out.splitlines()
        assert listed[1].split() == ["s0", "picky", "running", "0", "0", "-", "3", "ValueError:", "not", "mended"]
        assert listed[2].split() == ["s0", "plain", "running", "0", "0", "-", "0", "-"]
        (tmp_path / "mended").touch()
        number = str(world.query("SELECT id FROM foreshard.dead_letter WHERE row_key = '2'")[0][0])
        assert main(["triggers", "replay", "-c", str(world.path), "--shard", "s0", "--id", number]) == 0
        assert "s0: 1 dead letters put back" in capsys.readouterr().out
        world.wait_drained()
        assert world.query("SELECT key FROM effect WHERE key > 0") == [(2,)]
        assert main(["triggers", "replay", "picky", "-c", str(world.path)]) == 0
        world.wait_drained()
        assert world.query("SELECT key FROM effect WHERE key > 0 ORDER BY 1") == [(1,), (2,), (3,)]
        assert world.query("SELECT count(*) FROM foreshard.dead_letter") == [(0,)]


def test_events_of_a_paused_function_wait_and_the_others_do_not(
    tmp_path: Path, one_shard: Shards, capsys: pytest.CaptureFixture[str]
) -> None:
    with trigger_world(tmp_path, one_shard, FUNCTIONS, {"picky": {}, "plain": {}}) as world:
        (tmp_path / "mended").touch()
        assert main(["triggers", "-c", str(world.path), "pause", "picky"]) == 0
        world.start_worker()
        world.execute("INSERT INTO document VALUES (1, 'a', 'x')")
        world.wait_for_rows("SELECT key FROM effect", [(-1,)])
        assert main(["triggers", "list", "picky", "-c", str(world.path)]) == 0
        assert "paused" in capsys.readouterr().out
        assert world.query("SELECT function FROM foreshard.outbox") == [("picky",)]
        assert main(["triggers", "resume", "-c", str(world.path), "--shard", "s0", "picky"]) == 0
        world.wait_drained()
        assert world.query("SELECT key FROM effect ORDER BY 1") == [(-1,), (1,)]


def test_wrong_words_are_answered_with_the_right_ones(
    tmp_path: Path, one_shard: Shards, capsys: pytest.CaptureFixture[str]
) -> None:
    with trigger_world(tmp_path, one_shard, FUNCTIONS, {"picky": {}}) as world:
        assert main(["triggers", "pause", "pickie", "-c", str(world.path)]) == 1
        assert capsys.readouterr().err == "foreshard: which function? picky\n"
        for action in ("replay", "list"):
            assert main(["triggers", action, "pickie", "-c", str(world.path)]) == 1
            assert capsys.readouterr().err == "foreshard: which function? picky\n"
        assert main(["triggers", "list", "-c", str(world.path), "--shard", "s9"]) == 2
        assert capsys.readouterr().err == "foreshard: --shard s9: the shards are s0\n"
        assert main(["worker", "-c", str(world.path), "--shard", "s9"]) == 2
        assert "the shards in" in capsys.readouterr().err
        world.execute("DROP TABLE foreshard.outbox")
        assert main(["triggers", "list", "-c", str(world.path)]) == 1
        assert "run `foreshard apply`" in capsys.readouterr().err
