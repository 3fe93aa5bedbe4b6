"""Transactions over several shards whose proxy, backends or controller die at any step happen wholly or not at all.

FORESHARD_FAULT_S makes the bank's run longer than the suite's few seconds; FORESHARD_FAULT_SEED makes it another.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest

from foreshard.proxy.admin.simple_query import ask
from foreshard.proxy.errors import ForeshardError, SqlError
from foreshard.proxy.wire.commit import CONTROL_POINTS
from tests.support.messages import query
from tests.support.postgres import Shards, TestInstances
from tests.support.proxy import Proxy, command_line
from tests.support.raw import Closed, RawConnection, error_of, kinds
from tests.support.routers import Routers
from tests.support.sharded import PREPARED, SCHEMA, SHARD_COUNT, TABLES, prepared_count
from tests.support.verified import assert_verified
from tests.support.waiting import process_state, wait_until

RUN_S = float(os.environ.get("FORESHARD_FAULT_S", "12"))
SEED = int(os.environ.get("FORESHARD_FAULT_SEED", "1"))
CLIENTS = 6
POOL_SIZE = 3  # fewer than clients: transactions under way join shards beyond it
ACCOUNTS = 30
OPENING = 1000
KILLS_MAX = max(4, RUN_S // 15)  # the supervisor waits longer before each start
FIRST_KEY = "SELECT min(id) FROM root"
ANY_BACKEND = """
SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = current_database()
AND backend_type = 'client backend' ORDER BY random() LIMIT 1
"""
END_WRITERS = """SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()
  AND pid <> pg_backend_pid() AND backend_type = 'client backend' AND usename = current_user"""
# Codes of tickets are claimed wherever their homes are; parcels are away from home, two of three.
CLAIMING_SCHEMA = f"""{SCHEMA}
CREATE TABLE ticket (id bigserial PRIMARY KEY, code text UNIQUE, n integer NOT NULL DEFAULT 0);
CREATE TABLE parcel (code text PRIMARY KEY);
CREATE TABLE wrap (id bigserial PRIMARY KEY, code text NOT NULL REFERENCES parcel DEFERRABLE INITIALLY DEFERRED);
"""
CLAIMING_TABLES = {
    **TABLES,
    "ticket": {"key": "id", "unique": ["code"]},
    "parcel": {"key": "code", "placement": "cost"},
    "wrap": {"key": "id", "parent": "parcel", "via": "code"},
}
WEIGH = {"table": "parcel", "on": ["insert"], "function": "functions:weigh", "profile": {"cpu": "5ms"}}
SECTIONS: dict[str, Any] = {"placement": {"policy": "least-loaded"}, "triggers": {"weigh": WEIGH}}
CLEAR = """SET session_replication_role = replica; UPDATE root SET tag = 'before' WHERE tag <> 'before';
DELETE FROM ticket WHERE code NOT LIKE 'kept%'; UPDATE ticket SET n = 0;
DELETE FROM foreshard.claim WHERE key NOT LIKE 'kept%';
TRUNCATE parcel, wrap, foreshard.claim_pending, foreshard.away, foreshard.decision, foreshard.outbox,
  foreshard.outbox_image"""
# They meet tickets that are there on other shards, and make new ones beside them.
UPSERTS = (
    "INSERT INTO ticket (code) VALUES ('kept 0'), ('code 0'), ('kept 1'), ('code 1'), ('kept 2')"
    " ON CONFLICT (code) DO UPDATE SET n = ticket.n + 1 RETURNING code",
    "INSERT INTO ticket (code) VALUES ('kept 1'), ('code 2'), ('code 1') ON CONFLICT DO NOTHING RETURNING code",
)
KEPT = 3
CLAIMED = "SELECT 'public.ticket.code', code FROM ticket UNION ALL SELECT 'public.parcel.code', code FROM parcel"
MET = "SELECT n FROM ticket WHERE code LIKE 'kept%'"
PARCELS = [f"p{number}" for number in range(6)]
UNDONE = {"40P01", "40001"}  # the client was told that nothing happened


class World(Routers):
    """Routers over tables with claims and with rows away from home; what a test leaves is cleared for the next."""

    def clear(self) -> None:
        self.shards.execute(CLEAR)


@pytest.fixture(scope="module")
def made(test_instances: TestInstances, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    shards = test_instances.create(SHARD_COUNT)
    shards.execute(CLAIMING_SCHEMA)
    world = World(shards, tmp_path_factory.mktemp("two-phase"), CLAIMING_TABLES, **SECTIONS)
    with world.router() as proxy, proxy.server.connect() as client:
        for key in range(1, ACCOUNTS + 1):
            client.rows(f"INSERT INTO root (id, tag) VALUES ({key}, 'before')")
        for number in range(KEPT):
            client.rows(f"INSERT INTO ticket (code) VALUES ('kept {number}')")
    yield world
    test_instances.drop(shards)


@pytest.fixture
def world(made: World) -> World:
    made.clear()
    return made


def script(shards: Shards, point: str) -> list[str]:
    """A transaction that passes the point: rows of each shard, upserts by claims of several, and rows away."""
    texts = []
    for shard in range(SHARD_COUNT):
        key = shards.query(FIRST_KEY, on=shard)[0][0]
        texts.append(f"UPDATE root SET tag = 'after' WHERE id = {key}")
    texts += UPSERTS
    texts[:0] = [f"INSERT INTO parcel (code) VALUES ('parcel {number}')" for number in range(4)]
    if point == "claims-trying":  # who writes one shard only
        texts = ["INSERT INTO ticket (code) VALUES ('code ' || 0)"]  # the text does not tell the claim's home
    if point == "commit-undoing":  # one shard cannot prepare
        texts.append("INSERT INTO wrap (code) VALUES ('nowhere')")
    return ["BEGIN", *texts, "COMMIT"]


def run(client: RawConnection, texts: list[str]) -> None:
    for text in texts:
        client.query(text)


def changed(shards: Shards, point: str) -> list[object]:
    """On how many rows of each shard that transaction has happened; the claims have, too, or neither."""
    keys, claims = (
        sorted(str(row) for shard in range(SHARD_COUNT) for row in shards.query(ask, on=shard))
        for ask in (CLAIMED, "SELECT name, key FROM foreshard.claim")
    )
    assert keys == claims
    sql = "SELECT count(*) FROM root WHERE tag = 'after'"
    counts = [shards.query(sql, on=shard)[0][0] for shard in range(SHARD_COUNT)]
    made = len(keys) - KEPT
    assert made in ((0, 1) if point == "claims-trying" else (counts[0] and 7,))
    met = [int(str(row[0])) for shard in range(SHARD_COUNT) for row in shards.query(MET, on=shard)]
    assert sum(met) == (0 if point == "claims-trying" else KEPT * int(str(counts[0])))
    return [made] if point == "claims-trying" else counts


def parcels_away(shards: Shards) -> int:
    sql = "SELECT count(*) FROM foreshard.away"
    return sum(int(str(shards.query(sql, on=shard)[0][0])) for shard in range(SHARD_COUNT))


@pytest.mark.parametrize("point", CONTROL_POINTS)
def test_a_router_killed_at_any_step_of_a_transaction_leaves_all_or_nothing(world: World, point: str) -> None:
    with world.router(FORESHARD_CRASH_AT=point) as proxy:
        with proxy.server.connect() as client, pytest.raises(Closed):
            run(client, script(world.shards, point))
        assert proxy.wait_for_end() == -signal.SIGKILL
    wait_until(lambda: not world.is_writing())
    world.recover(proxy)
    counts = {"commit-deciding": [0, 1], "claims-trying": [0, 1], "commit-decided": [1], "commit-finished": [1]}
    found = changed(world.shards, point)
    assert found in [[count] * len(found) for count in counts.get(point, [0])]
    assert_verified(proxy.configuration)


@pytest.mark.parametrize("point", CONTROL_POINTS)
def test_a_router_that_was_stopped_finds_what_recovery_did_meanwhile(world: World, point: str) -> None:
    with world.router(FORESHARD_STOP_AT=point) as proxy, proxy.server.connect() as client:
        texts = script(world.shards, point)
        client.send(b"".join(map(query, texts)))
        (pid,) = proxy.router_pids()
        wait_until(lambda: process_state(pid) == "T")
        if point in ("commit-deciding", "claims-trying"):  # what it has sent arrives
            wait_until(lambda: not world.is_writing())
        world.recover(proxy)
        os.kill(pid, signal.SIGCONT)
        *before, answer = [client.read_until() for _ in texts]
        assert not any("E" in kinds(each) for each in before)
        assert parcels_away(world.shards) > 0 or point in ("claims-trying", "commit-prepared", "commit-undoing")
        refused = {"commit-prepared": "40001", "commit-undoing": "23503"}.get(point)
        if refused:
            assert error_of(answer)["C"] == refused
        else:
            assert kinds(answer) == "CZ"
        found = changed(world.shards, point)
        assert found == [0 if refused else 1] * len(found)
        assert world.count(PREPARED) == 0
        assert client.value("SELECT 1") == "1"
    assert_verified(proxy.configuration)


@pytest.mark.parametrize(("point", "shard"), [(point, at % SHARD_COUNT) for at, point in enumerate(CONTROL_POINTS)])
def test_a_shard_that_loses_its_sessions_at_any_step_leaves_all_or_nothing(
    world: World, point: str, shard: int
) -> None:
    with world.router(FORESHARD_STOP_AT=point) as proxy:
        with proxy.server.connect() as client:
            texts = script(world.shards, point)
            client.send(b"".join(map(query, texts)))
            (pid,) = proxy.router_pids()
            wait_until(lambda: process_state(pid) == "T")
            world.shards.query(END_WRITERS, on=shard)
            os.kill(pid, signal.SIGCONT)
            was_told = False
            with contextlib.suppress(Closed):
                *_, answer = [client.read_until() for _ in texts]
                was_told = [message.body for message in answer if message.kind == b"C"] == [b"COMMIT\0"]
        wait_until(lambda: not world.is_writing())
        world.recover(proxy)
        found = changed(world.shards, point)
        assert found in [[count] * len(found) for count in ([1] if was_told else [0, 1])]
    assert_verified(proxy.configuration)


@pytest.mark.parametrize("point", ["commit-prepared", "commit-decided"])
def test_what_a_router_left_prepared_is_shown_and_ended_within_seconds(
    three_shards: Shards, tmp_path: Path, point: str
) -> None:
    three_shards.execute(CLAIMING_SCHEMA)
    sections = {"workers": {"per_shard": 0}, "limits": {"commit_timeout": "1s"}, **SECTIONS}
    armed = {"FORESHARD_CRASH_AT": point}  # the next router passes no such point
    with Proxy(three_shards.dsns, tmp_path, tables=CLAIMING_TABLES, environment=armed, **sections) as proxy:
        with proxy.server.connect() as client, pytest.raises(Closed):
            run(
                client, ["BEGIN", *(f"INSERT INTO parcel (code) VALUES ('p{number}')" for number in range(6)), "COMMIT"]
            )
        wait_until(lambda: shown_prepared(proxy) == (), 30)
        codes, claims = (
            sorted(str(row[0]) for shard in range(SHARD_COUNT) for row in three_shards.query(sql, on=shard))
            for sql in ("SELECT code FROM parcel", "SELECT key FROM foreshard.claim")
        )
        assert codes == claims == (PARCELS if point == "commit-decided" else [])
        assert_verified(proxy.configuration)


def shown_prepared(proxy: Proxy) -> Sequence[object] | None:
    """SHOW TWO_PHASE; None while no router answers."""
    try:
        return ask(proxy.server.host, proxy.server.port, proxy.server.user, "foreshard", "SHOW TWO_PHASE").rows
    except (OSError, ForeshardError, SqlError):
        return None


class Teller:
    """One client that transfers between accounts until told to stop; it knows which transfers were acknowledged."""

    def __init__(self, proxy: Proxy, name: int, keys: list[int], seed: int) -> None:
        self.proxy = proxy
        self.name = name
        self.keys = keys
        self.draw = random.Random(seed * 100 + name)
        self.acknowledged: list[str] = []
        self.refused: list[str] = []
        self.unknown = 0
        self.connection: RawConnection | None = None

    def run(self, stopping: threading.Event) -> None:
        number = 0
        while not stopping.is_set():
            number += 1
            source, target = self.draw.sample(self.keys, 2)
            amount = self.draw.randint(1, 9)
            # The mark is on a third shard as often as not, and says what the balances must be.
            mark = f"{self.name}.{number} {source} {target} {amount}"
            try:
                if self.connection is None:
                    self.connection = self.proxy.server.connect()
                (self.acknowledged if self.transfer(source, target, amount, mark) else self.refused).append(mark)
            except (Closed, OSError, AssertionError):  # AssertionError: start-up was refused
                self.unknown += 1
                self.leave()
                stopping.wait(0.05)
        self.leave()

    def leave(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    def transfer(self, source: int, target: int, amount: int, mark: str) -> bool:
        """True: told that it is committed; False: told that it is not. Closed when it was told neither."""
        assert self.connection is not None
        statements = [
            f"UPDATE root SET n = n - {amount} WHERE id = {source}",
            f"UPDATE root SET n = n + {amount} WHERE id = {target}",
            f"INSERT INTO plain (tag) VALUES ('{mark}')",
        ]
        self.draw.shuffle(statements)  # any shard may be the one that decides
        for statement in ["BEGIN", *statements, "COMMIT"]:
            answer = self.connection.query(statement)
            errors = [message.fields for message in answer if message.kind == b"E"]
            if errors:
                if statement == "COMMIT" and errors[0]["C"] not in UNDONE:
                    raise Closed
                self.connection.query("ROLLBACK")
                return False
        return True


class Killer:
    """Kills routers, controllers and backends, one after the other, at random moments."""

    def __init__(self, proxy: Proxy, shards: Shards, seed: int) -> None:
        self.proxy = proxy
        self.shards = shards
        self.draw = random.Random(seed)
        self.kills: dict[str, int] = {}

    def run(self, stopping: threading.Event) -> None:
        while not stopping.wait(self.draw.uniform(0.1, 0.6)):
            what = self.draw.choice(["router", "controller", "shard", "backend", "backend", "backend"])
            if self.kills.get(what, 0) >= KILLS_MAX and what != "backend":
                continue
            self.kills[what] = self.kills.get(what, 0) + 1
            if what in ("backend", "shard"):
                with contextlib.suppress(psycopg.Error):
                    self.hurt_shard(self.draw.randrange(SHARD_COUNT), crashes=what == "shard")
                continue
            for pid in self.proxy.pids():
                if f"\0{what}\0".encode() in command_line(pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)

    def hurt_shard(self, shard: int, crashes: bool) -> None:
        """End one server process; killed by SIGKILL, it takes the whole server down, which recovers from its log."""
        for (pid,) in self.shards.query(ANY_BACKEND, on=shard):
            if crashes:
                os.kill(int(str(pid)), signal.SIGKILL)
            else:
                self.shards.query(f"SELECT pg_terminate_backend({pid})", on=shard)


@pytest.fixture
def bank(test_instances: TestInstances, tmp_path: Path) -> Iterator[tuple[Proxy, Shards, list[int]]]:
    shards = test_instances.create(SHARD_COUNT)
    shards.execute(SCHEMA)
    with Proxy(shards.dsns, tmp_path, tables=TABLES, workers={"per_shard": 0}, pool={"size": POOL_SIZE}) as proxy:
        with proxy.server.connect() as client:
            for key in range(1, ACCOUNTS + 1):
                client.rows(f"INSERT INTO root (id, n) VALUES ({key}, {OPENING})")
        yield proxy, shards, list(range(1, ACCOUNTS + 1))
    test_instances.drop(shards)


@pytest.mark.parametrize("seed", [SEED])
def test_transfers_happen_wholly_or_not_at_all_whatever_is_killed(
    bank: tuple[Proxy, Shards, list[int]], seed: int
) -> None:
    proxy, shards, keys = bank
    stopping, killing = threading.Event(), threading.Event()
    tellers = [Teller(proxy, name, keys, seed) for name in range(CLIENTS)]
    killer = Killer(proxy, shards, seed)
    with ThreadPoolExecutor(CLIENTS + 1) as threads:
        running = [threads.submit(teller.run, stopping) for teller in tellers]
        running.append(threads.submit(killer.run, killing))
        killing.wait(RUN_S)
        killing.set()
        done = sum(len(teller.acknowledged) for teller in tellers)
        wait_until(lambda: sum(len(teller.acknowledged) for teller in tellers) > done)  # it works again
        stopping.set()
        for task in running:
            task.result()
    wait_until(lambda: prepared_count(shards) == 0)  # by the controller alone
    on_first = {row[0] for row in shards.query("SELECT id FROM root", on=0)}
    marks = {str(row[0]) for row in shards.query("SELECT tag FROM plain")}
    acknowledged = {mark for teller in tellers for mark in teller.acknowledged}
    # The instances of tests may lose commits when they crash (synchronous_commit), but for those over several shards.
    durable = {mark for mark in acknowledged if not {int(word) for word in mark.split()[1:3]} <= on_first}
    refused = {mark for teller in tellers for mark in teller.refused}
    told = f"{len(acknowledged)} transfers, {len(refused)} refused, kills {killer.kills}"
    print(told, f"{sum(teller.unknown for teller in tellers)} unknown, {len(marks - acknowledged)} of them happened")
    assert durable - marks == set(), told
    assert refused & marks == set(), told
    balances = dict.fromkeys(keys, OPENING)
    for mark in marks:
        source, target, amount = map(int, mark.split()[1:])
        balances[source] -= amount
        balances[target] += amount
    found = {row[0]: row[1] for shard in range(SHARD_COUNT) for row in shards.query("SELECT id, n FROM root", on=shard)}
    assert found == balances, told
    assert_verified(proxy.configuration)
