"""The rebalancer on real shards: a hot shard is relieved, orders are followed, and what was decided can be read."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from foreshard._core.buckets import bucket_of
from tests.support.moving import SCHEMA, TABLES, MovingWorld
from tests.support.postgres import Shards, TestInstances
from tests.support.proxy import Proxy
from tests.support.verified import assert_verified
from tests.support.waiting import wait_until

SHARD_COUNT = 2
HOT = 8
EAGER = {"capacity": {"cpu": 0.05}}  # a shard that can do little has much to do soon


@pytest.fixture(scope="module")
def shards(test_instances: TestInstances) -> Iterator[Shards]:
    made = test_instances.create(SHARD_COUNT)
    made.execute(SCHEMA)
    yield made
    test_instances.drop(made)


@pytest.fixture(scope="module")
def proxy(shards: Shards, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    folder = tmp_path_factory.mktemp("rebalance")
    with Proxy(shards.dsns, folder, tables=TABLES, workers={"per_shard": 0}, placement=EAGER) as proxy:
        yield proxy
    assert_verified(proxy.configuration)


def hot_rows(proxy: Proxy, shard: int) -> list[int]:
    """Documents in different buckets of one shard."""
    found: dict[int, int] = {}
    with proxy.server.connect() as client:
        while len(found) < HOT:
            key = int(client.value("INSERT INTO document (owner) VALUES (0) RETURNING id"))
            if bucket_of(key) not in found and shard_of(proxy, key) == shard:
                found[bucket_of(key)] = key
            client.rows("DISCARD ALL")  # the next row gets another bucket
    return list(found.values())


def shard_of(proxy: Proxy, key: int) -> int:
    with proxy.server.connect() as client:
        told = client.rows(f"EXPLAIN (FORESHARD) SELECT n FROM document WHERE id = {key}")
    return int(b"s1" in b" ".join(row[0] or b"" for row in told))


class Load:
    """Clients that update some rows without end."""

    def __init__(self, proxy: Proxy, keys: list[int]) -> None:
        self.proxy = proxy
        self.keys = keys
        self.stopping = threading.Event()
        self.count = 0
        self.thread = threading.Thread(target=self.run)

    def run(self) -> None:
        with self.proxy.server.connect() as client:
            while not self.stopping.is_set():
                client.rows(f"UPDATE document SET n = n + 1 WHERE id = {self.keys[self.count % len(self.keys)]}")
                self.count += 1
                time.sleep(0.001)

    def __enter__(self) -> Load:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self.thread.join()


def test_a_shard_that_is_asked_for_more_than_its_share_is_relieved(shards: Shards, proxy: Proxy) -> None:
    world = MovingWorld(shards, [proxy], 0, 0)
    keys = hot_rows(proxy, 0)
    proxy.run_command("rebalance", "--pause")
    with Load(proxy, keys) as load:
        told = proxy.run_command("rebalance", "--dry-run")
        assert "s0 -> s1" in told
        assert "then 1." in told
        time.sleep(8.0)
        assert not world.states()
        assert "buckets move" in proxy.run_command("rebalance", "--resume")
        wait_until(lambda: len([state for state in world.states() if state[4] == "done"]) >= HOT // 4, 60.0)
        world.wait_moved()
    owners = world.owners()
    moved = {bucket_of(key) for key in keys if owners[bucket_of(key)] == 1}
    assert HOT // 4 <= len(moved) <= HOT // 2 + 1
    assert {int(str(state[1])) for state in world.states()} == moved  # nothing else
    decisions = shards.query("SELECT verdict, fullest, expected, moves FROM foreshard.rebalance_decision")
    assert any(verdict == "moving" and int(str(moves)) > 0 for verdict, _, _, moves in decisions)
    with proxy.server.connect() as client:
        total = client.value("SELECT sum(n) FROM document")
    assert int(total) == load.count


def test_a_bucket_is_moved_by_hand(shards: Shards, proxy: Proxy) -> None:
    world = MovingWorld(shards, [proxy], 0, 0)
    with proxy.server.connect() as client:
        key = int(client.value("INSERT INTO document (owner) VALUES (0) RETURNING id"))
    bucket = bucket_of(key)
    target = 1 - world.owners()[bucket]
    told = proxy.run_command("rebalance", "--move", str(bucket), f"s{target}")
    assert told.startswith(f"planned: bucket {bucket}")
    world.wait_moved()
    assert "is on" in proxy.run_command("rebalance", "--move", str(bucket), f"s{target}")
    assert shard_of(proxy, key) == target
