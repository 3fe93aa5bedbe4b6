"""Connections ended, shards crashed and stopped while a bucket moves under clients and workers: nothing is lost."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import psycopg
import pytest

from foreshard.proxy.control.moves import MOVE_LOCK
from tests.support.fault_matrix import Case, end_moves
from tests.support.moving import TABLES, MovingWorld, moving_shards
from tests.support.postgres import Shards, TestInstances
from tests.support.proxy import Proxy, descendants
from tests.support.raw import Closed, kinds
from tests.support.two_proxies import children
from tests.support.waiting import wait_until

SHARD_COUNT = 3
CLIENTS = 3
STOPPED_S = 1.5
EFFECT = "CREATE TABLE effect (document_id bigint NOT NULL);"
FUNCTIONS = """
def keep(event):
    event.execute("INSERT INTO effect (document_id) VALUES ($1)", event.key)
"""
TRIGGERS = {"keep": {"table": "document", "on": ["insert"], "function": "functions:keep", "attempts_max": 50}}
OURS = "test of moves"
CUT = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
    f"AND backend_type = 'client backend' AND application_name <> '{OURS}' AND pid <> pg_backend_pid() AND "
)
POSTMASTER = r"SELECT split_part(pg_read_file('postmaster.pid'), E'\n', 1)"
FLIPPING = "SELECT count(*) FROM foreshard.move WHERE state = 'flipping' AND problem <> ''"
HELD_UP = "in a flip that is held up, then anywhere in the next move"
ALL, SOURCE, TARGET, UNINVOLVED, CONTROL = "all", "source", "target", "uninvolved", "control"
PLACES = (SOURCE, TARGET, UNINVOLVED)


@dataclass(frozen=True)
class Cut:
    """Connections that are ended: on which shards, which of pg_stat_activity, and whether clients may notice."""

    victim: str
    on: str
    condition: str
    may_break: bool = False


CUTS = {
    "hold of the source": Cut("the router's hold of the source", SOURCE, "application_name LIKE '%hold'", True),
    "hold of the target": Cut("the router's hold of the target", TARGET, "application_name LIKE '%hold'", True),
    "hold of a third": Cut("the router's hold of a third shard", UNINVOLVED, "application_name LIKE '%hold'", True),
    "backends on the source": Cut(
        "the router's backends on the source", SOURCE, "pid IN (SELECT pid FROM foreshard.enlisted)", True
    ),
    "backends on the target": Cut(
        "the router's backends on the target", TARGET, "pid IN (SELECT pid FROM foreshard.enlisted)", True
    ),
    "mover on the source": Cut("the mover's connections to the source", SOURCE, "application_name LIKE '%mover'"),
    "mover on the target": Cut("the mover's connections to the target", TARGET, "application_name LIKE '%mover'"),
    "balancer": Cut("the balancer's connections to the control database", CONTROL, "application_name LIKE '%balancer'"),
    "controller": Cut("the controller's connections", ALL, "application_name LIKE '%controller'"),
    "worker": Cut("the workers' connections", ALL, "application_name LIKE '%worker'"),
    "everything on the source": Cut("every connection to the source", SOURCE, "true", True),
    "everything on the target": Cut("every connection to the target", TARGET, "true", True),
}


@pytest.fixture(scope="module")
def shards(test_instances: TestInstances) -> Iterator[Shards]:
    yield from moving_shards(test_instances, SHARD_COUNT, EFFECT)


@pytest.fixture(scope="module")
def proxy(shards: Shards, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """One proxy with workers for all tests here."""
    folder = tmp_path_factory.mktemp("cut")
    (folder / "functions.py").write_text(FUNCTIONS)
    with Proxy(
        shards.dsns, folder, tables=TABLES, triggers=TRIGGERS, workers={"per_shard": 1}, rebalance={"automatic": False}
    ) as made:
        yield made


class Disturbed:
    """A world whose moves are disturbed at a known moment, and anywhere."""

    def __init__(self, shards: Shards, proxy: Proxy, seed: int) -> None:
        self.shards = shards
        self.proxy = proxy
        self.world = MovingWorld(shards, [proxy], CLIENTS, seed)
        self.world.start()

    def places(self, on: str, source: int, target: int) -> list[int]:
        """The shards that a word means."""
        third = 3 - source - target
        return {ALL: [0, 1, 2], SOURCE: [source], TARGET: [target], UNINVOLVED: [third], CONTROL: [0]}[on]

    def run(self, on: str, disturb: Callable[[int], None]) -> None:
        """Two moves: one that cannot flip before it was disturbed, and one that is disturbed anywhere."""
        for number in range(2):
            bucket = self.world.bucket()
            source = self.world.owners()[bucket]
            with self.held_up(source) if number == 0 else contextlib.nullcontext():
                target = self.world.plan(bucket)
                if number == 0:
                    wait_until(lambda: self.shards.query(FLIPPING) == [(1,)])
                else:
                    time.sleep(self.world.draw.uniform(0.0, 0.1))
                for index in self.places(on, source, target):
                    disturb(index)
            self.world.wait_moved()

    @contextlib.contextmanager
    def held_up(self, source: int) -> Iterator[None]:
        """No flip takes a bucket of this shard meanwhile."""
        with contextlib.closing(
            psycopg.connect(self.shards.dsns[source], autocommit=True, application_name=OURS)
        ) as connection:
            connection.execute(f"SELECT pg_advisory_lock_shared({MOVE_LOCK})")
            yield

    def end(self, case: Case, victim: str, where: str, *, may_break: bool) -> None:
        """Everything goes on as before, every function has run once for each row."""
        wait_until(self.is_answered)
        self.world.stop()
        wait_until(lambda: not any(self.count("foreshard.outbox")))
        assert sum(self.count("foreshard.dead_letter")) == 0
        effects = [key for index in range(SHARD_COUNT) for key in self.keys("SELECT document_id FROM effect", index)]
        rows = [key for index in range(SHARD_COUNT) for key in self.keys("SELECT id FROM document", index)]
        assert sorted(effects) == sorted(rows)
        end_moves(case, self.world, victim, where, may_break=may_break)

    def is_answered(self) -> bool:
        """Whether a client gets an answer of all shards."""
        try:
            with self.proxy.server.connect() as client:
                return "E" not in kinds(client.query("SELECT count(*) FROM document"))
        except (OSError, Closed, AssertionError):
            return False

    def count(self, table: str) -> list[int]:
        """Rows of a table, by shard."""
        return [len(self.keys(f"SELECT 1 FROM {table}", index)) for index in range(SHARD_COUNT)]

    def keys(self, sql: str, index: int) -> list[int]:
        return [int(str(key)) for (key,) in self.shards.query(sql, on=index)]


@pytest.mark.parametrize("name", CUTS)
def test_connections_are_ended(case: Case, shards: Shards, proxy: Proxy, name: str) -> None:
    cut = CUTS[name]
    disturbed = Disturbed(shards, proxy, 100 + list(CUTS).index(name))
    ended = []

    def disturb(index: int) -> None:
        ended.extend(shards.query(CUT + cut.condition, on=index))

    disturbed.run(cut.on, disturb)
    assert ended
    disturbed.end(case, cut.victim, HELD_UP, may_break=cut.may_break)


@pytest.mark.parametrize("on", PLACES)
def test_a_shard_crashes(case: Case, shards: Shards, proxy: Proxy, test_instances: TestInstances, on: str) -> None:
    disturbed = Disturbed(shards, proxy, 200 + PLACES.index(on))
    disturbed.run(on, test_instances.crash)
    called = {UNINVOLVED: "a shard that has no part in the move"}.get(on, f"the {on} shard")
    disturbed.end(case, f"{called} (kill -9)", HELD_UP, may_break=True)


@pytest.mark.parametrize("on", [SOURCE, TARGET])
def test_a_shard_answers_nothing_for_a_while(case: Case, shards: Shards, proxy: Proxy, on: str) -> None:
    disturbed = Disturbed(shards, proxy, 300 + PLACES.index(on))

    def disturb(index: int) -> None:
        postmaster = int(str(shards.query(POSTMASTER, on=index)[0][0]))
        pids = [postmaster, *descendants(postmaster)]
        send_signal(pids, signal.SIGSTOP)
        time.sleep(STOPPED_S)  # the fault's own length
        send_signal(pids, signal.SIGCONT)

    disturbed.run(on, disturb)
    disturbed.end(case, f"the {on} shard (SIGSTOP for {STOPPED_S:g} s)", HELD_UP, may_break=False)


def send_signal(pids: list[int], number: signal.Signals) -> None:
    """To all that still run."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def test_workers_are_killed(case: Case, shards: Shards, proxy: Proxy) -> None:
    disturbed = Disturbed(shards, proxy, 401)
    disturbed.run(SOURCE, lambda index: send_signal(children(proxy, "worker"), signal.SIGKILL))
    disturbed.end(case, "the workers", HELD_UP, may_break=False)


def test_a_client_vanishes_in_a_transaction_that_has_the_bucket_open(case: Case, shards: Shards, proxy: Proxy) -> None:
    disturbed = Disturbed(shards, proxy, 402)
    world = disturbed.world
    for _ in range(3):
        bucket = world.bucket()
        lost = proxy.server.connect()
        lost.query("BEGIN")
        assert "E" not in kinds(lost.query(f"UPDATE document SET n = n + 1000 WHERE id = {world.key_in(bucket)}"))
        world.plan(bucket)
        wait_until(lambda: shards.query(FLIPPING) == [(1,)])
        lost.abort()
        world.wait_moved()
    disturbed.end(
        case, "a client's connection (reset)", "the move waits for its transaction, three times", may_break=False
    )
