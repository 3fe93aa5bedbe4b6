"""DDL whose router, or whose backend on a shard, dies at any step has happened on every shard or on none."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
from collections.abc import Iterator

import psycopg
import pytest

from foreshard.proxy.config import load_config
from foreshard.proxy.control import read_catalog
from foreshard.proxy.triggers.points import SCHEMA_NAMES
from tests.support.messages import query
from tests.support.postgres import TestInstances
from tests.support.proxy import Proxy
from tests.support.raw import Closed, kinds
from tests.support.routers import Routers
from tests.support.sharded import SCHEMA, SHARD_COUNT, TABLES
from tests.support.verified import assert_verified
from tests.support.waiting import process_state, wait_until

COMMIT_POINTS = ("commit-voting", "commit-prepared", "commit-deciding", "commit-decided", "commit-finished")
POINTS = (*(name for name in SCHEMA_NAMES if name not in ("schema-alone", "schema-noticed")), *COMMIT_POINTS)
DECIDED = ("commit-decided", "commit-finished", "schema-followed")
NAMES = [f"later_{number}" for number in range(40)]
SHAPE = """
SELECT c.relname::text, a.attname::text, format_type(a.atttypid, a.atttypmod), a.attnotnull
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid = c.oid
WHERE n.nspname = 'public' AND a.attnum > 0 AND NOT a.attisdropped AND c.relname NOT LIKE 'plain%' ORDER BY 1, 2
"""
APPLIED = "SELECT object FROM foreshard.applied WHERE object LIKE '%public.%' AND object LIKE '%key%' ORDER BY 1"
KILL = """SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database()
  AND pid <> pg_backend_pid() AND backend_type = 'client backend' AND backend_xid IS NOT NULL"""


class World(Routers):
    """Applied shards, and the names of declared tables that nobody has made yet."""

    names = itertools.cycle(NAMES)

    def all_alike(self) -> None:
        """Every shard has the same tables, and what was made for them."""
        for sql in (SHAPE, APPLIED):
            first, *others = [self.shards.query(sql, on=index) for index in range(SHARD_COUNT)]
            assert others == [first] * (SHARD_COUNT - 1)

    def has(self, name: str) -> bool:
        return self.shards.query(f"SELECT to_regclass('{name}') IS NOT NULL", on=1) == [(True,)]


@pytest.fixture(scope="module")
def world(test_instances: TestInstances, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    shards = test_instances.create(SHARD_COUNT)
    shards.execute(SCHEMA)
    tables = {**TABLES, **{name: {"key": "id"} for name in NAMES}}
    made = World(shards, tmp_path_factory.mktemp("ddl-killed"), tables)
    with made.router() as proxy, proxy.server.connect() as client:
        for key in range(1, 31):
            client.rows(f"INSERT INTO root (id, tag) VALUES ({key}, 'before')")
    yield made
    assert_verified(proxy.configuration)
    test_instances.drop(shards)


def script(name: str) -> str:
    """A declared table is made and sharded, and an older one changed, in one transaction."""
    made = f"CREATE TABLE {name} (id bigserial PRIMARY KEY, tag text)"
    return f"BEGIN; {made}; ALTER TABLE root ADD {name} int DEFAULT 7; COMMIT"


def check_outcome(world: World, name: str, proxy: Proxy, is_decided: bool | None) -> None:
    """All of it, or nothing; and a router that starts then plans by what is there."""
    world.recover(proxy)
    world.all_alike()
    has_happened = world.has(name)
    assert is_decided in (None, has_happened)
    catalog = asyncio.run(read_catalog(load_config(proxy.configuration)))
    assert (f"public.{name}" in catalog.tables) == has_happened
    assert (f"public.{name}" in catalog.pending) != has_happened
    columns = [column.name for column in catalog.tables["public.root"].columns]
    assert (name in columns) == has_happened


@pytest.mark.parametrize("point", POINTS)
def test_a_router_killed_at_any_step_of_ddl_leaves_all_or_nothing(world: World, point: str) -> None:
    name = next(world.names)
    with world.router(FORESHARD_CRASH_AT=point) as proxy:
        with proxy.server.connect() as client, pytest.raises(Closed):
            client.query(script(name))
        assert proxy.wait_for_end() == -signal.SIGKILL
    wait_until(lambda: not world.is_writing())
    check_outcome(world, name, proxy, None if point == "commit-deciding" else point in DECIDED)


@pytest.mark.parametrize(("point", "shard"), [(point, index % SHARD_COUNT) for index, point in enumerate(POINTS[:-2])])
def test_a_backend_killed_at_any_step_of_ddl_leaves_all_or_nothing(world: World, point: str, shard: int) -> None:
    name = next(world.names)
    with world.router(FORESHARD_STOP_AT=point) as proxy:
        (pid,) = proxy.router_pids()
        with proxy.server.connect() as client:
            client.send(query(script(name)))
            wait_until(lambda: process_state(pid) == "T")
            with psycopg.connect(world.shards.dsns[shard], autocommit=True) as connection:
                connection.execute(KILL)
            os.kill(pid, signal.SIGCONT)
            with contextlib.suppress(Closed):
                answer = client.read_until()
                assert answer[-1].kind == b"Z"
        wait_until(lambda: not world.is_writing())
        check_outcome(world, name, proxy, None)
        with proxy.server.connect() as client:  # the same router goes on, by the catalog that is true now
            wait_until(lambda: ("E" not in kinds(client.query(f"SELECT count(*) FROM {name}"))) == world.has(name))
            assert client.value("SELECT count(*) FROM root") == "30"


def test_a_router_killed_between_shards_of_an_index_made_concurrently_goes_on_there(world: World) -> None:
    with world.router(FORESHARD_CRASH_AT="schema-alone") as proxy:
        with proxy.server.connect() as client, pytest.raises(Closed):
            client.query("CREATE INDEX CONCURRENTLY root_tag ON root (tag)")
        assert proxy.wait_for_end() == -signal.SIGKILL
    has = "SELECT (to_regclass('root_tag') IS NOT NULL)::int"
    assert [world.shards.query(has, on=index)[0][0] for index in range(SHARD_COUNT)] == [1, 0, 0]
    with world.router() as proxy, proxy.server.connect() as client:
        client.rows("CREATE INDEX CONCURRENTLY IF NOT EXISTS root_tag ON root (tag)")
    assert world.count(has) == SHARD_COUNT


def test_a_router_killed_as_it_follows_ddl_of_another_starts_with_what_is_true(world: World) -> None:
    name = next(world.names)
    with world.router() as one, world.router(FORESHARD_CRASH_AT="schema-noticed") as two:
        with one.server.connect() as client:
            client.rows(f"CREATE TABLE {name} (id bigserial PRIMARY KEY, tag text)")
        assert two.wait_for_end() == -signal.SIGKILL
    with world.router() as two, two.server.connect() as client:
        assert client.value(f"SELECT count(*) FROM {name}") == "0"
