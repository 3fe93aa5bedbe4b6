"""`foreshard shards`: several proxies follow, embedded shards are added, drains taken back, what cannot be is told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import yaml

from tests.support.moving import GROWING, MOVED_BY_HAND, OLD, SCHEMA, MovingWorld
from tests.support.postgres import Shards, TestInstances
from tests.support.proxy import ROOT, Proxy, free_port
from tests.support.two_proxies import hurt, two_proxies
from tests.support.verified import assert_verified
from tests.support.waiting import wait_until


@pytest.fixture
def shards(test_instances: TestInstances) -> Iterator[Shards]:
    made = test_instances.create(3)
    made.execute(SCHEMA + OLD, on=0)
    yield made
    test_instances.drop(made)


def command_of(proxy: Proxy, *words: str) -> list[str]:
    return [sys.executable, "-m", "foreshard.proxy", "shards", "-c", str(proxy.configuration), *words]


def said_by(proxy: Proxy, *words: str) -> tuple[int, str]:
    """Exit code and output."""
    done = subprocess.run(command_of(proxy, *words), cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout + done.stderr


def test_every_proxy_follows(shards: Shards, tmp_path: Path) -> None:
    sections = {"rebalance": MOVED_BY_HAND["rebalance"]}
    with two_proxies(shards.dsns[:1], tmp_path, GROWING, **sections) as (one, two):
        world = MovingWorld(shards, [one, two], 4, 3)
        world.start()
        one.run_command("shards", "add", "s1", "--dsn", shards.dsns[1], "--buckets", "30")
        two.run_command("shards", "add", "s2", "--dsn", shards.dsns[2], "--buckets", "30")
        with psycopg.connect(two.server.dsn, autocommit=True) as client:
            client.execute("INSERT INTO country VALUES ('new', 'through two')")
        two.stop()  # and one that is started again has them all, although its file names one
        two.start()
        for proxy in (one, two):
            with psycopg.connect(proxy.server.dsn, autocommit=True) as client:
                assert client.execute("SELECT count(*) FROM document WHERE owner = -1").fetchone() == (100,)
        world.stop()
    world.check(may_break=True)  # of the clients of the one that was stopped
    for index in range(3):
        assert shards.query("SELECT name FROM country WHERE code = 'new'", on=index) == [("through two",)]
    assert_verified(one.configuration)


def test_a_drain_is_taken_back_and_watching_may_be_left(shards: Shards, tmp_path: Path) -> None:
    with Proxy(shards.dsns[:1], tmp_path, tables=GROWING, **MOVED_BY_HAND) as proxy:
        watching = subprocess.Popen(
            command_of(proxy, "add", "s1", "--dsn", shards.dsns[1]), cwd=ROOT, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        count = "SELECT count(*) FROM foreshard.bucket_map WHERE shard = 1"
        wait_until(lambda: int(str(shards.query(count)[0][0])) > 5)
        watching.send_signal(signal.SIGINT)
        said, _ = watching.communicate(timeout=30)
        assert watching.returncode == 130, said
        assert "the moves go on, and the same command watches them again" in said
        proxy.run_command("rebalance", "--pause")
        code, said = said_by(proxy, "add", "s1", "--buckets", "0")
        assert code == 0, said
        shards.execute("DELETE FROM foreshard.move WHERE state = 'planned'", on=0)
        draining = subprocess.Popen(command_of(proxy, "drain", "s1"), cwd=ROOT, stdout=subprocess.DEVNULL)
        wait_until(lambda: shards.query("SELECT is_draining FROM foreshard.shard WHERE index = 1") == [(True,)])
        wait_until(lambda: shards.query("SELECT count(*) > 0 FROM foreshard.move WHERE state = 'planned'") == [(True,)])
        assert "draining" in proxy.run_command("shards", "list")
        proxy.run_command("shards", "weight", "s1", "2")
        draining.send_signal(signal.SIGINT)
        draining.wait(30)
        assert shards.query("SELECT count(*) FROM foreshard.move WHERE state = 'planned'") == [(0,)]
        with psycopg.connect(proxy.server.dsn.rpartition("/")[0] + "/foreshard", autocommit=True) as console:
            wait_until(
                lambda: [row[5] for row in console.execute("SHOW SHARDS", prepare=False).fetchall()] == [1.0, 2.0]
            )
    assert_verified(proxy.configuration)


def test_what_cannot_be_is_told(shards: Shards, tmp_path: Path) -> None:
    with Proxy(shards.dsns[:1], tmp_path, tables=GROWING, **MOVED_BY_HAND) as proxy:
        for words, message in (
            (("add",), "which shard?"),
            (("add", "s1"), "where is it? --dsn says it"),
            (("add", "s1", "--dsn", "nowhere"), "--dsn nowhere"),
            (("add", "s1", "--dsn", shards.dsns[0]), "its database is that of shard s0"),
            (("drain", "s0"), "there is no other shard"),
            (("drain", "s7"), "no shard of that name; they are s0"),
            (("remove", "s0"), "the first shard"),
            (("weight", "s0", "0"), "a weight above 0"),
        ):
            code, said = said_by(proxy, *words)
            assert code == 2, said
            assert message in said
        shards.execute(SCHEMA + "INSERT INTO person VALUES ('there', 1)", on=1)
        code, said = said_by(proxy, "add", "s1", "--dsn", shards.dsns[1])
        assert (code, "public.person has rows there" in said) == (2, True), said
        shards.execute("DELETE FROM person", on=1)
        assert "one of the deployment" in proxy.run_command(
            "shards", "add", "s1", "--dsn", shards.dsns[1], "--buckets", "3"
        )
        code, said = said_by(proxy, "remove", "s1")
        assert (code, "s1 has 3 buckets" in said) == (1, True), said
        content = yaml.safe_load(proxy.configuration.read_text())
        content["shards"].append({"name": "s2", "dsn": shards.dsns[2]})
        proxy.configuration.write_text(yaml.safe_dump(content))
        proxy.stop()
        proxy.start()  # without it
        assert "s2 is none of the deployment" in proxy.log.read_text()
        assert "one of the deployment" in proxy.run_command("shards", "add", "s2", "--buckets", "1")
        code, said = said_by(proxy, "remove", "s2")
        assert (code, "s2 has 1 buckets" in said) == (1, True), said
    assert_verified(proxy.configuration)


def test_an_embedded_shard_is_added(tmp_path: Path) -> None:
    configuration = tmp_path / "foreshard.yaml"
    (tmp_path / "schema.sql").write_text(
        SCHEMA
        + "CREATE TABLE country (code text PRIMARY KEY, name text NOT NULL);"
        + "INSERT INTO country VALUES ('c', 'as made');"
    )
    port = free_port()
    content = {
        "listen": f"127.0.0.1:{port}", "run_directory": str(tmp_path / "run"), "schema": "schema.sql",
        "embedded": {"shards": 1, "data": str(tmp_path / "data")}, "tables": GROWING, **MOVED_BY_HAND,
    }  # fmt: skip
    configuration.write_text(yaml.safe_dump(content))
    base = [sys.executable, "-m", "foreshard.proxy"]

    def run(*words: str) -> str:
        command = [*base, *words, "-c", str(configuration)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=90, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def count() -> int:
        with psycopg.connect(f"postgresql://app@127.0.0.1:{port}/app", autocommit=True) as client:
            client.execute("INSERT INTO document (owner) VALUES (1)")
            row = client.execute("SELECT count(*) FROM document").fetchone()
            assert row is not None
            return int(row[0])

    def answers() -> bool:
        try:
            return count() > 0
        except psycopg.Error:
            return False

    run("apply")
    for turn in range(2):
        with (tmp_path / "log").open("ab") as log:
            serving = subprocess.Popen([*base, "serve", "-c", str(configuration)], cwd=ROOT, stdout=log, stderr=log)
        try:
            wait_until(answers)
            if not turn:
                assert "one of the deployment" in run("shards", "add", "s1", "--buckets", "5")
            assert [line.split()[1] for line in run("shards", "list").splitlines()[1:]] == ["s0", "s1"]
            assert count() > 1
        finally:
            serving.send_signal(signal.SIGTERM)
            assert serving.wait(30) in (0, -signal.SIGTERM)
        time.sleep(0.2)
        left = [
            pid for pid in os.listdir("/proc") if pid.isdigit() and Path(f"/proc/{pid}/cmdline").exists()
            and str(tmp_path / "data").encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]  # fmt: skip
        assert not left


def test_a_control_database_of_its_own_says_what_the_shards_say(
    shards: Shards, test_instances: TestInstances, tmp_path: Path
) -> None:
    apart = test_instances.create(1)
    owners = "SELECT shard, count(*) FROM foreshard.bucket_map GROUP BY 1 ORDER BY 1"
    with Proxy(shards.dsns[:1], tmp_path, tables=GROWING, control=apart.dsns[0], **MOVED_BY_HAND) as proxy:
        for index in (1, 2):
            proxy.run_command("shards", "add", f"s{index}", "--dsn", shards.dsns[index], "--buckets", "3")
        proxy.run_command("shards", "drain", "s1")
        proxy.run_command("shards", "remove", "s1")
        right = apart.query(owners)
        assert [shard for shard, _ in right] == [0, 1]
        apart.execute("UPDATE foreshard.bucket_map SET shard = 1 - shard")
        hurt(proxy, "balancer", signal.SIGKILL)
        wait_until(lambda: apart.query(owners) == right)
    assert_verified(proxy.configuration)
    test_instances.drop(apart)
