"""Buckets move while the query node is asked: each answer is right, and nobody hears an error."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.moving import MOVED_BY_HAND, MovingWorld
from tests.support.node_clients import (
    ANSWERS,
    EACH,
    SCHEMA,
    TABLES,
    NodeClients,
    fill_accounts,
    read_alone,
    read_at_one_moment,
    read_twice,
    transfer,
)
from tests.support.postgres import Shards, TestInstances
from tests.support.proxy import Proxy
from tests.support.verified import assert_verified

SHARD_COUNT = 3
ROUNDS, MOVES_TOGETHER = 40, 3


@pytest.fixture
def shards(test_instances: TestInstances) -> Iterator[Shards]:
    made = test_instances.create(SHARD_COUNT)
    made.execute(SCHEMA)
    yield made
    test_instances.drop(made)


@pytest.fixture
def proxy(shards: Shards, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with Proxy(shards.dsns, tmp_path_factory.mktemp("node"), tables=TABLES, **MOVED_BY_HAND) as proxy:
        yield proxy


def test_answers_of_the_query_node_are_right_while_buckets_move(shards: Shards, proxy: Proxy) -> None:
    keys = fill_accounts(proxy.server)
    with proxy.server.connect() as client:
        for sql in (*ANSWERS, EACH):
            assert "Query node: query" in str(client.rows(f"EXPLAIN (FORESHARD) {sql}"))
    deeds = [transfer, transfer, read_alone, read_at_one_moment, read_twice]
    clients = NodeClients(proxy.server, keys, 1, deeds)
    world = MovingWorld(shards, [proxy], 0, 1)
    with clients.running():
        for _ in range(ROUNDS):
            for bucket in clients.buckets(MOVES_TOGETHER):
                world.plan(bucket)
            world.wait_moved()
    clients.check(may_break=False)
    assert {state[4] for state in world.states()} == {"done"}
    assert_verified(proxy.configuration)
