"""`foreshard serve` under kills: children come back, nothing is left behind, embedded shards are adopted."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import yaml

from foreshard.proxy.embedded import EmbeddedCluster
from tests.support.postgres import Shards, open_folder
from tests.support.serving import Serving, descendants, run_command, wait_for_child
from tests.support.verified import assert_verified
from tests.support.waiting import is_running, wait_until, wait_until_gone


@pytest.fixture
def serving(one_shard: Shards, tmp_path: Path) -> Iterator[Serving]:
    """A proxy before one shard without declared tables, applied and not started; killed if a test leaves it."""
    made = Serving(tmp_path, one_shard.dsns).apply()
    yield made
    if made._process is not None:
        made.kill()
    assert_verified(made.path)


@pytest.mark.parametrize("word", ["router", "controller", "worker"])
def test_a_killed_child_is_started_again(serving: Serving, word: str) -> None:
    with serving:
        first = serving.child(word)
        os.kill(first, signal.SIGKILL)
        wait_until_gone(first)
        wait_for_child(serving, word, first)
        wait_until(serving.answers)
        assert "killed by SIGKILL; starting it again" in serving.said()


def test_sigterm_leaves_no_process_no_socket_and_no_pid(serving: Serving) -> None:
    with serving:
        assert len(descendants(serving.pid)) >= 3
    assert (serving.run_directory / "supervisor.pid").read_text() == ""
    assert list(serving.run_directory.glob("wake-*")) == []


def test_a_killed_supervisor_takes_its_children_along_and_a_new_one_starts(serving: Serving) -> None:
    serving.start()
    serving.kill()
    with serving:
        assert serving.answers()


def test_an_open_transaction_may_finish_after_sigterm(serving: Serving, one_shard: Shards) -> None:
    one_shard.execute("CREATE TABLE note (text text)")
    serving.start()
    database = one_shard.dsns[0].rpartition("/")[2]
    with psycopg.connect(f"postgresql://app@{serving.host}:{serving.port}/{database}") as connection:
        connection.execute("INSERT INTO note VALUES ('kept')")
        serving.signal(signal.SIGTERM)
        wait_until(lambda: not serving.is_listening())
        connection.commit()
    serving.stop()
    assert one_shard.query("SELECT text FROM note") == [("kept",)]


def test_a_second_supervisor_of_one_run_directory_is_refused(serving: Serving) -> None:
    with serving:
        done = run_command("serve", serving.path)
        assert done.returncode == 1
        assert f"process id {serving.pid}" in done.stderr
        assert serving.answers()


def test_a_port_in_use_is_named(serving: Serving, tmp_path: Path) -> None:
    with serving:
        other = tmp_path / "other.yaml"
        content = yaml.safe_load(serving.path.read_text())
        other.write_text(yaml.safe_dump({**content, "run_directory": "other-run"}))
        done = run_command("serve", other)
        assert done.returncode == 1
        assert f"cannot listen on 127.0.0.1:{serving.port}" in done.stderr


def test_shards_that_are_not_applied_are_refused_with_the_command_to_run(one_shard: Shards, tmp_path: Path) -> None:
    serving = Serving(tmp_path, one_shard.dsns)
    done = run_command("serve", serving.path)
    assert done.returncode == 1
    assert f"foreshard apply -c {serving.path}" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.fixture
def folder() -> Iterator[Path]:
    with open_folder("supervisor") as made:
        yield made


def test_embedded_shards_survive_a_kill_are_adopted_and_stop_with_the_proxy(folder: Path) -> None:
    cluster = EmbeddedCluster(folder / "shards", 1)
    serving = Serving(folder, embedded={"shards": 1, "data": "shards"}).apply()
    try:
        serving.start()
        cluster.start()  # adopts, so that we know its process
        before = cluster.pids()
        assert len(before) == 1
        serving.kill(survivors=before.values())
        assert all(is_running(pid) for pid in before.values())
        serving.start()
        assert cluster.pids() == before
        assert serving.answers("app", "SELECT 1")
        serving.stop()
        wait_until_gone(*before.values())
    finally:
        cluster.stop()
