"""Uniqueness under fire: clients of two proxies fight over a few keys while proxies, backends and shards are killed.

At the end the shards themselves are asked: no value is there twice, no acknowledged row is lost, nothing is left over.
FORESHARD_SOAK_SECONDS makes the run longer than the suite's; FORESHARD_FAULT_SEED makes it another.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from tests.support.ledger import Row, problems, wrong_looks
from tests.support.postgres import Shards, TestInstances
from tests.support.proxy import Proxy
from tests.support.two_proxies import hurt, two_proxies
from tests.support.unique_clients import Client
from tests.support.unique_roots import CLAIMED, LEFT, SCHEMA, SECTIONS, TABLES, row_of
from tests.support.verified import assert_verified
from tests.support.waiting import wait_until

RUN_S = float(os.environ.get("FORESHARD_SOAK_SECONDS", "15"))
SEED = int(os.environ.get("FORESHARD_FAULT_SEED", "1"))
CLIENTS = 16
SHARD_COUNT = 3
RECOVERED_S = 30.0  # how soon nothing is prepared any more, on a loaded machine
ANY_BACKEND = """
SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = current_database()
AND backend_type = 'client backend' ORDER BY random() LIMIT 1
"""


@pytest.fixture(scope="module")
def instances() -> Iterator[TestInstances]:
    """Instances of our own, whose postmasters may be killed; what they acknowledge outlives their processes."""
    made = TestInstances(SHARD_COUNT)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def shards(instances: TestInstances) -> Iterator[Shards]:
    made = instances.create(SHARD_COUNT)
    name = made.dsns[0].rpartition("/")[2]
    made.execute(f"ALTER DATABASE {name} SET synchronous_commit = on")
    made.execute(SCHEMA)
    yield made
    instances.drop(made)


class Fire:
    """Hurts whatever there is, at random moments, until told to stop."""

    def __init__(self, proxies: tuple[Proxy, Proxy], shards: Shards, instances: TestInstances, seed: int) -> None:
        self.proxies = proxies
        self.shards = shards
        self.instances = instances
        self.draw = random.Random(seed)
        self.done: Counter[str] = Counter()

    def run(self, stopping: threading.Event) -> None:
        ways = [
            self.kill_router, self.stop_router, self.stop_router, self.kill_controller, self.end_backend,
            self.end_backend, self.end_backend, self.crash_shard, self.kill_postmaster,
        ]  # fmt: skip
        while not stopping.wait(self.draw.uniform(0.1, 0.8)):
            way = self.draw.choice(ways)
            self.done[way.__name__] += 1
            with contextlib.suppress(psycopg.Error):
                way(stopping)

    def kill_router(self, stopping: threading.Event) -> None:
        hurt(self.draw.choice(self.proxies), "router", signal.SIGKILL)
        stopping.wait(0.5)

    def stop_router(self, stopping: threading.Event) -> None:
        """For a moment, or for so long that recovery ends what it has begun."""
        hit = hurt(self.draw.choice(self.proxies), "router", signal.SIGSTOP)
        stopping.wait(self.draw.choice([0.05, 0.3, 5.0]))
        for pid in hit:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def kill_controller(self, _: threading.Event) -> None:
        hurt(self.draw.choice(self.proxies), "controller", signal.SIGKILL)

    def end_backend(self, _: threading.Event) -> None:
        shard = self.draw.randrange(SHARD_COUNT)
        for (pid,) in self.shards.query(ANY_BACKEND, on=shard):
            self.shards.query(f"SELECT pg_terminate_backend({pid})", on=shard)

    def crash_shard(self, _: threading.Event) -> None:
        """A server process killed takes the others with it; the postmaster starts anew from the log."""
        for (pid,) in self.shards.query(ANY_BACKEND, on=self.draw.randrange(SHARD_COUNT)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(str(pid)), signal.SIGKILL)

    def kill_postmaster(self, _: threading.Event) -> None:
        self.instances.crash(self.draw.randrange(SHARD_COUNT))


def left_rows(shards: Shards) -> list[Row]:
    """Every row of every shard, asked of the shards themselves."""
    return [
        row_of(table, *(None if value is None else str(value) for value in row))
        for table, sql in LEFT.items()
        for shard in range(SHARD_COUNT)
        for row in shards.query(sql, on=shard)
    ]


def at_rest(shards: Shards) -> bool:
    """Every shard answers, and nothing is prepared, or about to be, on any."""
    sql = """SELECT (SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database())
      + (SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
         AND backend_type = 'client backend' AND backend_xid IS NOT NULL)"""
    try:
        return all(shards.query(sql, on=shard) == [(0,)] for shard in range(SHARD_COUNT))
    except psycopg.Error:
        return False


def assert_claims_match(shards: Shards) -> None:
    """Each value has one claim, each claim its value, and none is pending."""
    wanted: list[tuple[object, ...]] = []
    found: list[tuple[object, ...]] = []
    for shard in range(SHARD_COUNT):
        wanted += shards.query(CLAIMED, on=shard)
        found += shards.query("SELECT name, key FROM foreshard.claim", on=shard)
        assert shards.query("SELECT * FROM foreshard.claim_pending", on=shard) == []
    assert sorted(map(repr, found)) == sorted(map(repr, wanted))


@pytest.mark.parametrize("seed", [SEED])
def test_no_key_is_there_twice_and_no_acknowledged_row_is_lost(
    instances: TestInstances, shards: Shards, tmp_path: Path, seed: int
) -> None:
    with two_proxies(shards.dsns, tmp_path, TABLES, pool={"size": 20}, **SECTIONS) as proxies:
        clients = [Client(proxies, number, seed) for number in range(CLIENTS)]
        fire = Fire(proxies, shards, instances, seed)
        burning, stopping = threading.Event(), threading.Event()
        with ThreadPoolExecutor(CLIENTS + 1) as threads:
            running = [threads.submit(client.run, stopping) for client in clients]
            fighting = threads.submit(fire.run, burning)
            try:
                end_s = time.monotonic() + RUN_S
                wait_until(lambda: time.monotonic() > end_s or any(map(done_for, running)), RUN_S + 60)
                burning.set()
                fighting.result()
                before = [client.counts["happened"] for client in clients]
                wait_until(  # everybody is served again
                    lambda: (
                        any(map(done_for, running))
                        or all(client.counts["happened"] > count for client, count in zip(clients, before, strict=True))
                    )
                )
            finally:
                burning.set()
                stopping.set()
            for task in running:
                task.result()
        wait_until(lambda: at_rest(shards), RECOVERED_S)
        counts = sum((client.counts for client in clients), Counter[str]())
        deeds = sum((client.deeds for client in clients), Counter[str]())
        told = f"seed {seed}: {dict(counts)}; {dict(deeds)}; fire {dict(fire.done)}"
        print(told)
        acts = [act for client in clients for act in client.acts]
        assert problems(acts, left_rows(shards)) == [], told
        assert list(wrong_looks(acts, [look for client in clients for look in client.looks])) == [], told
        assert_claims_match(shards)
        assert_verified(proxies[0].configuration)


def done_for(task: object) -> bool:
    """A client that ended before it was told to has failed."""
    return task.done()  # type: ignore[attr-defined,no-any-return]
