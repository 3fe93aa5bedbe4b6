"""Two proxies on the same shards: what one promises its clients holds whatever the other's do, or the other dies of.

FORESHARD_SOAK_SECONDS makes the runs longer.
"""

from __future__ import annotations

import asyncio
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

import pytest

from foreshard.proxy.config import load_config
from foreshard.proxy.control.recovery import Recovery
from tests.support.messages import query
from tests.support.postgres import Shards, TestInstances
from tests.support.proxy import Proxy
from tests.support.raw import Closed, Message, RawConnection, error_of, kinds
from tests.support.sharded import SCHEMA, SHARD_COUNT, TABLES, prepared_count
from tests.support.two_phase import TwoPhaseWorld
from tests.support.two_proxies import hurt, two_proxies
from tests.support.verified import assert_verified
from tests.support.waiting import wait_until

RUN_S = float(os.environ.get("FORESHARD_SOAK_SECONDS", "6"))
ACCOUNTS = 40
OPENING = 100
TELLERS = 4  # per proxy
READERS = 2
FIRST_KEYS = "SELECT id FROM root ORDER BY id"
WAITING = "SELECT count(*) FROM pg_locks WHERE NOT granted"
# Run by every process that finds it on its path.
NO_GATE = """
from foreshard.proxy.control import shard_gate
async def look_at_nothing(self):
    return True
shard_gate.HOLD = shard_gate.HOLD.replace("IN SHARE MODE", "IN ACCESS SHARE MODE")
shard_gate.ShardGate._is_settled = look_at_nothing
"""
# Somebody else's fault, or that of whoever kills: tried again.
TRANSIENT = {"40001", "40P01", "55P03", "08006", "57P01", "57P02", "57P03", "53300", "08007"}


@pytest.fixture
def shards(test_instances: TestInstances) -> Iterator[Shards]:
    made = test_instances.create(SHARD_COUNT)
    made.execute(SCHEMA)
    yield made
    test_instances.drop(made)


def fill(proxy: Proxy, shards: Shards) -> list[list[int]]:
    """Accounts; their keys by shard."""
    with proxy.server.connect() as client:
        for key in range(1, ACCOUNTS + 1):
            client.rows(f"INSERT INTO root (id, n) VALUES ({key}, {OPENING})")
    shards.execute("CHECKPOINT")
    return [[int(str(row[0])) for row in shards.query(FIRST_KEYS, on=shard)] for shard in range(SHARD_COUNT)]


def update(key: int) -> str:
    return f"UPDATE root SET n = n + 1 WHERE id = {key}"


@pytest.mark.parametrize("older_is_first", [True, False])
def test_of_two_clients_of_two_proxies_that_lock_crosswise_one_hears_of_a_deadlock(
    shards: Shards, tmp_path: Path, older_is_first: bool
) -> None:
    with two_proxies(shards.dsns, tmp_path, TABLES) as proxies:
        keys = fill(proxies[0], shards)
        near, far = keys[0][0], keys[1][0]
        order = proxies if older_is_first else proxies[::-1]
        with order[0].server.connect() as older, order[1].server.connect() as younger:
            for client, key in ((older, near), (younger, far)):
                client.rows("BEGIN")
                client.rows(update(key))
            older.send(query(update(far)))
            wait_until(lambda: shards.query(WAITING, on=1) != [(0,)])
            error = error_of(younger.query(update(near)))
            assert (error["C"], error["M"]) == ("40P01", "deadlock detected over shards s0, s1")
            younger.rows("ROLLBACK")
            assert "E" not in kinds(older.read_until())
            older.rows("COMMIT")
        wait_until(lambda: prepared_count(shards) == 0)
        assert_verified(proxies[0].configuration)


class Bank:
    """Clients of both proxies that move money, and clients that add it up."""

    def __init__(self, proxies: tuple[Proxy, Proxy], seed: int) -> None:
        self.proxies = proxies
        self.seed = seed
        self.stopping = threading.Event()
        self.transfers = 0
        self.totals = 0
        self.wrong: list[list[int]] = []
        self.errors: Counter[str] = Counter()

    def check(self, answer: list[Message]) -> None:
        """An error that may happen."""
        told = error_of(answer)
        self.errors[told["C"]] += 1
        if told["C"] not in TRANSIENT:
            self.stopping.set()
        assert told["C"] in TRANSIENT, told

    def move(self, number: int) -> None:
        """Transfers until stopped; the lower key first, as a well-behaved program does, or not."""
        draw = random.Random(self.seed * 1000 + number)
        connection: RawConnection | None = None
        while not self.stopping.is_set():
            one, two = draw.sample(range(1, ACCOUNTS + 1), 2)
            amount = draw.randint(-9, 9)
            take, give = (
                f"UPDATE root SET n = n {sign} {amount} WHERE id = {key}" for sign, key in (("-", one), ("+", two))
            )
            try:
                connection = connection or enter(self.proxies[number % 2])
                for text in ["BEGIN", take, give, "COMMIT"]:
                    answer = connection.query(text)
                    if "E" in kinds(answer):
                        self.check(answer)
                        connection.query("ROLLBACK")
                        break
                else:
                    self.transfers += 1
            except (Closed, OSError):
                connection = leave(connection)
                self.stopping.wait(0.05)
        leave(connection)

    def add_up(self, number: int) -> None:
        """Totals until stopped, or one is wrong."""
        connection: RawConnection | None = None
        while not self.stopping.is_set():
            try:
                if connection is None:
                    connection = enter(self.proxies[number % 2])
                    connection.rows("SET foreshard.snapshot = on")
                answer = connection.query("SELECT sum(n), count(*) FROM root" if number % 3 else "SELECT n FROM root")
            except (Closed, OSError):
                connection = leave(connection)
                self.stopping.wait(0.05)
                continue
            if "E" in kinds(answer):
                self.check(answer)
                continue
            rows = [[int(value or 0) for value in message.values] for message in answer if message.kind == b"D"]
            expected = [ACCOUNTS * OPENING, ACCOUNTS]
            found = rows[0] if number % 3 else [sum(row[0] for row in rows), len(rows)]
            self.totals += 1
            if found != expected:
                self.wrong.append(found)
                self.stopping.set()
        leave(connection)


def enter(proxy: Proxy) -> RawConnection:
    """A connection; Closed when the proxy lets nobody in at the moment."""
    try:
        return proxy.server.connect()
    except AssertionError as error:
        raise Closed from error


def leave(connection: RawConnection | None) -> None:
    if connection is not None:
        connection.close()


def disturb(proxies: tuple[Proxy, Proxy], stopping: threading.Event, seed: int) -> list[str]:
    """Kill and stop routers and controllers of both proxies at random moments."""
    draw = random.Random(seed)
    done = []
    while not stopping.wait(draw.uniform(0.3, 1.0)):
        proxy, word = draw.choice(proxies), draw.choice(["router", "router", "controller"])
        if draw.random() < 0.4:
            hit = hurt(proxy, word, signal.SIGSTOP)
            stopping.wait(draw.uniform(0.1, 1.5))
            for pid in hit:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
            done.append(f"stop {word}")
        else:
            hurt(proxy, word, signal.SIGKILL)
            done.append(f"kill {word}")
            stopping.wait(1.0)  # the supervisor starts it again
    return done


@pytest.mark.parametrize("disturbed", [False, True], ids=["in peace", "under fire"])
def test_no_total_is_wrong_while_clients_of_another_proxy_move_money(
    shards: Shards, tmp_path: Path, disturbed: bool
) -> None:
    with two_proxies(shards.dsns, tmp_path, TABLES, pool={"size": 12}) as proxies:
        fill(proxies[0], shards)
        bank = Bank(proxies, seed=1)
        with ThreadPoolExecutor(2 * TELLERS + 2 * READERS + 1) as threads:
            running = [threads.submit(bank.move, number) for number in range(2 * TELLERS)]
            running += [threads.submit(bank.add_up, number) for number in range(2 * READERS)]
            if disturbed:
                trouble = threads.submit(disturb, proxies, bank.stopping, 1)
            try:
                bank.stopping.wait(RUN_S)
                before = (bank.transfers, bank.totals)
                wait_until(lambda: bank.stopping.is_set() or (bank.transfers > before[0] and bank.totals > before[1]))
            finally:
                bank.stopping.set()
            for task in running:
                task.result()
            told = f"{bank.transfers} transfers, {bank.totals} totals, {dict(bank.errors)}"
            told += f", {trouble.result()}" if disturbed else ""
        print(told)
        assert bank.wrong == [], told
        wait_until(lambda: prepared_count(shards) == 0)
        found = sum(int(str(shards.query("SELECT sum(n) FROM root", on=shard)[0][0])) for shard in range(SHARD_COUNT))
        assert found == ACCOUNTS * OPENING, told
        assert_verified(proxies[0].configuration)


def test_totals_are_wrong_where_the_gate_keeps_nobody_out(shards: Shards, tmp_path: Path) -> None:
    """What the test above would find: the second router locks in a mode that is in nobody's way."""
    (tmp_path / "sitecustomize.py").write_text(NO_GATE)
    open_gate = {"PYTHONPATH": str(tmp_path)}
    with two_proxies(shards.dsns, tmp_path, TABLES, second=open_gate, pool={"size": 12}) as proxies:
        fill(proxies[0], shards)
        bank = Bank(proxies, seed=1)
        with ThreadPoolExecutor(2 * TELLERS + READERS) as threads:
            running = [threads.submit(bank.move, number) for number in range(2 * TELLERS)]
            running += [threads.submit(bank.add_up, 2 * number + 1) for number in range(READERS)]
            try:
                wait_until(lambda: bank.wrong or bank.stopping.is_set())
            finally:
                bank.stopping.set()
            for task in running:
                task.result()
        assert bank.wrong, f"{bank.transfers} transfers, {bank.totals} totals"
        print(f"{bank.wrong} after {bank.transfers} transfers, {bank.totals} totals")


def test_two_controllers_that_recover_the_same_transactions_end_each_once(shards: Shards, tmp_path: Path) -> None:
    config = load_config(Proxy(shards.dsns, tmp_path / "one", tables=TABLES).configuration)  # applied, not started
    world = TwoPhaseWorld(shards)
    committed = [world.prepare(name=f"c{number}") for number in range(10)]
    aborted = [world.prepare(name=f"a{number}") for number in range(10)]
    for id in committed:
        world.decide(id)

    async def race() -> list[int]:
        both = [Recovery(config, print) for _ in range(2)]
        try:
            for recovery in both:
                recovery.grace_s = 0.0
            return list(await asyncio.gather(*(recovery.run_round() for recovery in both)))
        finally:
            for recovery in both:
                recovery.close()

    ended = asyncio.run(race())
    deadline_s = time.monotonic() + 30
    while world.prepared():
        assert time.monotonic() < deadline_s
        ended += asyncio.run(race())
    assert sum(ended) == 2 * len(committed + aborted)
    for number in range(10):
        assert (world.marks(f"c{number}"), world.marks(f"a{number}")) == ([1, 2], [])
    assert {world.decisions()[id] for id in aborted} == {"abort"}
