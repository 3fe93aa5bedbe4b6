"""`foreshard serve` started while one shard is down: the others are served, and that one is taken in when it comes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from foreshard.proxy.embedded import EmbeddedCluster
from tests.support.postgres import open_folder
from tests.support.serving import Serving, run_command
from tests.support.verified import assert_verified
from tests.support.waiting import wait_until

SCHEMA = """
CREATE TABLE root (id bigserial PRIMARY KEY, tag text);
CREATE TABLE handled (id bigserial PRIMARY KEY, root_id bigint);
"""
FUNCTIONS = """
def handle(event):
    event.execute("INSERT INTO handled (root_id) VALUES ($1)", event.new["id"])
"""
LOST = "s2"


class World:
    """Three embedded shards, the last of which is stopped and started, and what serves them."""

    def __init__(self, folder: Path) -> None:
        self.cluster = EmbeddedCluster(folder / "shards", 3, durable=False)
        self.dsns = [shard.dsn for shard in self.cluster.start()]
        for dsn in self.dsns:
            with psycopg.connect(dsn, autocommit=True) as connection:
                connection.execute(SCHEMA)
        (folder / "functions.py").write_text(FUNCTIONS)
        trigger = {"table": "root", "on": ["insert"], "function": "functions:handle"}
        self.serving = Serving(
            folder, self.dsns, tables={"root": {"key": "id"}}, triggers={"handle": trigger}, workers={"per_shard": 1}
        )

    def connect(self) -> psycopg.Connection[tuple[object, ...]]:
        """A client."""
        database = self.dsns[0].rpartition("/")[2]
        dsn = f"postgresql://app@{self.serving.host}:{self.serving.port}/{database}"
        return psycopg.connect(dsn, autocommit=True)

    def on_lost(self, sql: str) -> list[tuple[object, ...]]:
        """Rows of a query on the shard that is lost, asked directly."""
        with psycopg.connect(self.dsns[2], autocommit=True) as connection:
            return connection.execute(sql).fetchall()


@pytest.fixture
def world() -> Iterator[World]:
    with open_folder("absent") as folder:
        made = World(folder)
        try:
            yield made
        finally:
            if made.serving._process is not None:
                made.serving.kill()
            made.cluster.stop(immediate=True)


def insert(client: psycopg.Connection[tuple[object, ...]], tag: str) -> int:
    """One row; its key."""
    row = client.execute("INSERT INTO root (tag) VALUES (%s) RETURNING id", (tag,)).fetchone()
    assert row is not None
    return int(str(row[0]))


def test_a_shard_that_is_down_at_the_start_is_taken_in_when_it_comes(world: World) -> None:
    world.serving.apply()
    with world.serving, world.connect() as client:
        there: list[int] = []
        while not there:
            for number in range(64):
                insert(client, str(number))
            there = [int(str(row[0])) for row in world.on_lost("SELECT id FROM root")]
        wait_until(lambda: len(world.on_lost("SELECT FROM handled")) == len(there))
    world.cluster.stop([LOST])
    with world.serving:
        assert "shard s2" in world.serving.said()
        assert "serving without it" in world.serving.said()
        with world.connect() as client:
            mine = [insert(client, f"without {number}") for number in range(64)]
            assert len(set(mine)) == 64
            with pytest.raises(psycopg.OperationalError, match="cannot connect to shard s2") as told:
                client.execute("SELECT tag FROM root WHERE id = %s", (there[0],))
            assert told.value.sqlstate == "08006"
            assert told.value.diag.message_hint is not None
            assert client.execute("SELECT count(*) FROM root WHERE id = %s", (mine[0],)).fetchone() == (1,)
        for command in ("plan", "apply", "verify", "check"):
            done = run_command(command, world.serving.path)
            assert done.returncode != 0
            assert LOST in done.stdout + done.stderr
        world.cluster.start()
        wait_until(lambda: f"shard {LOST}: is there and has been checked" in world.serving.said())
        wait_until(lambda: f"shard {LOST} is there and in use" in world.serving.said())
        with world.connect() as client:
            with client.transaction():
                client.execute("UPDATE root SET tag = 'both' WHERE id = ANY (%s)", ([there[0], mine[0]],))
            both = client.execute("SELECT count(*) FROM root WHERE tag = 'both'").fetchone()
            assert both == (2,)
            before = len(world.on_lost("SELECT FROM root"))
            while len(world.on_lost("SELECT FROM root")) == before:
                insert(client, "again")
        wait_until(lambda: world.on_lost("SELECT (SELECT count(*) FROM handled) >= count(*) FROM root") == [(True,)])
    assert_verified(world.serving.path)


def test_a_shard_that_comes_without_what_it_needs_is_refused_until_it_has_it(world: World) -> None:
    world.serving.apply()
    with psycopg.connect(world.dsns[2], autocommit=True) as connection:
        connection.execute("ALTER TABLE root ADD COLUMN more text")
    world.cluster.stop([LOST])
    with world.serving:
        world.cluster.start()
        wait_until(lambda: "root: has 2 columns on shard s0" in world.serving.said())
        with world.connect() as client:
            for number in range(64):
                insert(client, str(number))
            with pytest.raises(psycopg.OperationalError, match="not in use yet"):
                client.execute("UPDATE root SET tag = 'x' WHERE tag = 'y'")
        with psycopg.connect(world.dsns[2], autocommit=True) as connection:
            connection.execute("ALTER TABLE root DROP COLUMN more")
        wait_until(lambda: f"shard {LOST} is there and in use" in world.serving.said())
    assert_verified(world.serving.path)
