"""Shards come and go under clients that keep ledgers: `foreshard shards add`, `drain`, `remove`, `weight`."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.support.moving import MOVED_BY_HAND, SCHEMA, TABLES, MovingWorld
from tests.support.postgres import Shards, TestInstances
from tests.support.proxy import Proxy
from tests.support.verified import assert_verified
from tests.support.waiting import wait_until

SHARD_COUNT = 4
CLIENTS = 4
MORE = """
CREATE TABLE country (code text PRIMARY KEY, name text NOT NULL);
CREATE TABLE city (id bigint PRIMARY KEY, country text NOT NULL REFERENCES country);
INSERT INTO country SELECT 'c' || n, 'country ' || n FROM generate_series(1, 500) AS n;
INSERT INTO city SELECT n, 'c' || 1 + n % 500 FROM generate_series(1, 2000) AS n;
INSERT INTO document (owner, n) SELECT -1, n FROM generate_series(1, 3000) AS n;
INSERT INTO symbol (document_id, name) SELECT n, 'old' FROM generate_series(1, 3000) AS n;
INSERT INTO person SELECT 'old' || n, -1 FROM generate_series(1, 1000) AS n;
CREATE TABLE note (id serial PRIMARY KEY, text text);
"""
GROWING = {**TABLES, "country": {"reference": True}, "city": {"key": "id"}}


@pytest.fixture
def shards(test_instances: TestInstances) -> Iterator[Shards]:
    made, another = test_instances.create(SHARD_COUNT - 1), test_instances.create(1)
    every = Shards((*made.shards, *another.shards))
    every.execute(SCHEMA + MORE, on=0)
    yield every
    test_instances.drop(made)
    test_instances.drop(another)


class Countries:
    """One client that goes on writing a reference table, and remembers."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.names: dict[str, str] = {}
        self.errors: list[str] = []
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self.run)

    def run(self) -> None:
        with psycopg.connect(self.proxy.server.dsn, autocommit=True) as connection:
            number = 0
            while not self.stopping.wait(0.002):
                number += 1
                code, name = f"n{number % 50}", f"name {number}"
                try:
                    connection.execute(
                        "INSERT INTO country VALUES (%s, %s) ON CONFLICT (code) DO UPDATE SET name = excluded.name",
                        (code, name),
                    )
                except psycopg.Error as error:
                    self.errors.append(str(error))
                else:
                    self.names[code] = name

    def __enter__(self) -> Countries:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self.thread.join()


def buckets(world: MovingWorld) -> list[int]:
    found = Counter(world.owners().values())
    return [found[index] for index in range(SHARD_COUNT)]


def test_a_database_that_is_used_grows_to_four_shards(shards: Shards, tmp_path: Path) -> None:
    with Proxy(shards.dsns[:1], tmp_path, tables=GROWING, **MOVED_BY_HAND) as proxy:
        world = MovingWorld(shards, [proxy], CLIENTS, 7)
        world.start()
        with Countries(proxy) as countries, psycopg.connect(proxy.server.dsn, autocommit=True) as listener:
            listener.execute("LISTEN news")
            for index in range(1, SHARD_COUNT):
                before = buckets(world)
                said = proxy.run_command("shards", "add", f"s{index}", "--dsn", shards.dsns[index], "--buckets", "40")
                assert f"shard s{index} is one of the deployment" in said
                after = buckets(world)
                assert after[index] == 40
                assert [now <= then for now, then in zip(after[:index], before[:index], strict=True)] == [True] * index
            shards.execute("NOTIFY news, 'from the last'", on=3)
            (heard,) = listener.notifies(timeout=10, stop_after=1)
            assert heard.payload == "from the last"
        world.stop()
        assert not countries.errors, countries.errors[:3]
        (moved,) = shards.query("SELECT count(*) FROM foreshard.move WHERE state = 'done'")[0]
        assert moved == 120
        with psycopg.connect(proxy.server.dsn, autocommit=True) as client:
            assert client.execute("SELECT count(*), sum(n) FROM document WHERE owner = -1").fetchall() == [
                (3000, 3000 * 3001 // 2)
            ]
            assert client.execute("SELECT count(*) FROM person WHERE owner = -1").fetchall() == [(1000,)]
            assert client.execute("SELECT count(*) FROM city JOIN country ON code = country").fetchall() == [(2000,)]
            assert client.execute("SELECT count(*) FROM note").fetchall() == [(0,)]
        listed = proxy.run_command("shards", "list").splitlines()
        assert [line.split()[1] for line in listed[1:]] == ["s0", "s1", "s2", "s3"]
    world.check()
    for dsn in shards.dsns:
        with psycopg.connect(dsn) as connection:
            rows = dict(connection.execute("SELECT code, name FROM country WHERE code LIKE 'n%'").fetchall())
            assert rows == countries.names
    assert_verified(proxy.configuration)


def test_a_shard_is_drained_and_removed(shards: Shards, tmp_path: Path) -> None:
    with Proxy(shards.dsns[:1], tmp_path, tables=GROWING, **MOVED_BY_HAND) as proxy:
        for index in (1, 2):
            proxy.run_command("shards", "add", f"s{index}", "--dsn", shards.dsns[index], "--buckets", "25")
        world = MovingWorld(shards, [proxy], CLIENTS, 8)
        world.start()
        with Countries(proxy) as countries:
            assert "has 0 buckets" in proxy.run_command("shards", "drain", "s2")
            assert buckets(world)[2] == 0
            assert "can go" in proxy.run_command("shards", "remove", "s2")
            # Another database, of another name, has the place from now on.
            proxy.run_command("shards", "add", "s3", "--dsn", shards.dsns[3], "--buckets", "10")
            assert buckets(world)[2] == 10
            shards.execute("DROP SCHEMA foreshard CASCADE; DROP TABLE document, symbol, person, country, city", on=2)
        world.stop()
        assert not countries.errors, countries.errors[:3]
        assert [line.split()[1] for line in proxy.run_command("shards", "list").splitlines()[1:]] == ["s0", "s1", "s3"]
    world.shards = Shards((*shards.shards[:2], shards.shards[3]))
    world.check()
    assert_verified(proxy.configuration)


def test_a_shard_in_the_middle_is_removed(shards: Shards, tmp_path: Path) -> None:
    with Proxy(shards.dsns[:1], tmp_path, tables=GROWING, **MOVED_BY_HAND) as proxy:
        for index in (1, 2):
            proxy.run_command("shards", "add", f"s{index}", "--dsn", shards.dsns[index], "--buckets", "15")
        proxy.run_command("shards", "drain", "s1")
        proxy.run_command("shards", "remove", "s1")
        small = Shards((shards.shards[0], shards.shards[2]))

        def is_served() -> bool:
            try:
                with psycopg.connect(proxy.server.dsn, autocommit=True) as client:
                    return client.execute("SELECT count(*) FROM document").fetchall() == [(3000,)]
            except psycopg.Error:
                return False

        wait_until(is_served)
        world = MovingWorld(small, [proxy], CLIENTS, 9)
        world.start()
        for _ in range(3):
            world.plan(world.bucket(), shard_count=2)
        world.wait_moved()
        world.stop()
    world.check()
    assert set(world.owners().values()) == {0, 1}
    assert_verified(proxy.configuration)
