"""Backends terminated, shards stopped and crashed, descriptors gone, clients that come and go: the relay goes on.

FORESHARD_SOAK_SECONDS makes each disturbance last longer and opens more connections, FORESHARD_SEED varies it.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import psycopg
import pytest

from tests.support.messages import TERMINATE, extended, query, startup
from tests.support.postgres import TestInstances
from tests.support.proxy import descendants, resident_bytes
from tests.support.raw import RawConnection, kinds
from tests.support.sessions import LOST, assert_truth, lead_sessions
from tests.support.sharded import SHARD_COUNT, Deployment, deployment
from tests.support.waiting import wait_until

CLIENTS = 6
SOAK_SECONDS = float(os.environ.get("FORESHARD_SOAK_SECONDS", "0"))
SECONDS = SOAK_SECONDS or 4.0
SEED = int(os.environ.get("FORESHARD_SEED", "1"))
CONNECTIONS = 20_000 if SOAK_SECONDS else 2_000
GROWTH_BYTES_MAX = 2 << 20
ROW_BYTES = 1000
RESULT_ROWS = range(256, 5120, 128)
BACKENDS = "datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
SENDING = f"{BACKENDS} AND state = 'active' AND wait_event IS DISTINCT FROM 'ClientWrite'"
POSTMASTER = r"SELECT split_part(pg_read_file('postmaster.pid'), E'\n', 1)"


@pytest.fixture(scope="module")
def deployed(test_instances: TestInstances, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Fewer backends than clients."""
    pool = {"size": 3, "wait_timeout": "1s", "connect_timeout": "2s"}
    with deployment(test_instances, tmp_path_factory.mktemp("faults"), pool=pool) as made:
        yield made


@pytest.fixture
def narrow(test_instances: TestInstances, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """One backend for each shard."""
    with deployment(test_instances, tmp_path_factory.mktemp("narrow"), pool={"size": 1}) as made:
        yield made


def terminate(deployed: Deployment, draw: random.Random) -> None:
    """End a backend in the middle of whatever it does."""
    sql = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {BACKENDS} ORDER BY random() LIMIT 1"
    deployed.shards.query(sql, on=draw.randrange(SHARD_COUNT))


def stop_for_a_while(deployed: Deployment, draw: random.Random) -> None:
    """Stop every process of a shard: it takes connections and answers nothing."""
    postmaster = int(str(deployed.shards.query(POSTMASTER, on=draw.randrange(SHARD_COUNT))[0][0]))
    pids = [postmaster, *descendants(postmaster)]
    send_signal(pids, signal.SIGSTOP)
    time.sleep(draw.random() * 0.5)  # the fault's own length, not a wait for anything
    send_signal(pids, signal.SIGCONT)


def send_signal(pids: list[int], number: signal.Signals) -> None:
    """To all that still run."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def crash(deployed: Deployment, draw: random.Random) -> None:
    """Kill one backend, upon which PostgreSQL ends all others and recovers."""
    shard = draw.randrange(SHARD_COUNT)
    with contextlib.suppress(psycopg.Error):  # it recovers from the crash before
        for (pid,) in deployed.shards.query(f"SELECT pid FROM pg_stat_activity WHERE {BACKENDS} LIMIT 1", on=shard):
            send_signal([int(str(pid))], signal.SIGKILL)
    wait_until(lambda: answers(deployed, shard))


def answers(deployed: Deployment, shard: int) -> bool:
    """True while the shard takes connections."""
    try:
        return bool(deployed.shards.query("SELECT 1", on=shard))
    except psycopg.Error:
        return False


@pytest.mark.parametrize(
    ("disturb", "is_durable"),
    [(terminate, True), (stop_for_a_while, True), (crash, False)],  # the tests' shards may lose commits in a crash
    ids=["backends terminated", "shards stopped", "shards crashed"],
)
def test_random_sessions_are_told_the_truth_whatever_fails(
    deployed: Deployment, disturb: Callable[[Deployment, random.Random], None], is_durable: bool
) -> None:
    draw = random.Random(SEED)
    seed = f"{disturb.__name__} {SEED}"  # tells apart the rows of one disturbance from those of another
    sessions = lead_sessions(deployed, CLIENTS, seed, SECONDS, lambda: disturb(deployed, draw))
    wait_until(lambda: all(answers(deployed, shard) for shard in range(SHARD_COUNT)))
    assert_truth(deployed, sessions, is_durable=is_durable)


def test_a_backend_that_waited_for_a_slow_client_serves_the_next(narrow: Deployment) -> None:
    """Whatever part of the result the client has not taken when the shard has sent its last byte."""
    server = narrow.server
    sql = f"SELECT repeat('x', {ROW_BYTES}) FROM generate_series(1, {{}})"
    with server.connect() as other:
        for rows in RESULT_ROWS:
            with RawConnection(server.host, server.port, receive_buffer_bytes=4096) as slow:
                slow.start(server.user, server.database)
                slow.send(query(sql.format(rows)))
                wait_until(lambda: not narrow.shards.query(f"SELECT 1 FROM pg_stat_activity WHERE {SENDING}"))
                other.send(query("SELECT 1"))
                assert kinds(slow.read_until()).count("D") == rows
                assert kinds(other.read_until()) == "TDCZ"


def come_and_go(deployed: Deployment, draw: random.Random) -> None:
    """One connection that ends at some point of its life, in some manner."""
    with deployed.server.open() as connection:
        name = f"program {draw.randrange(20) if draw.random() < 0.05 else 0}"
        told = startup({"user": deployed.server.user, "database": deployed.server.database, "application_name": name})
        manner = draw.randrange(8)
        if manner == 0:
            connection.send(told[: draw.randrange(len(told))])
        else:
            connection.send(told)
        if manner > 1:
            connection.read_until()
            connection.send(extended("SELECT id FROM root"), b"" if manner == 2 else query("BEGIN"))
        if manner > 3:
            connection.read_until()
        if manner == 4:
            connection.abort()
        elif manner > 5:
            connection.send(TERMINATE)


def test_short_connections_leave_nothing_in_memory(deployed: Deployment) -> None:
    draw = random.Random(SEED)
    for _ in range(CONNECTIONS // 4):
        come_and_go(deployed, draw)
    deployed.come_to_rest()
    before = resident_bytes(deployed.router_pid)
    for _ in range(CONNECTIONS):
        come_and_go(deployed, draw)
    deployed.come_to_rest()
    wait_until(lambda: len(deployed.pools()) <= SHARD_COUNT * 3)
    assert resident_bytes(deployed.router_pid) - before < GROWTH_BYTES_MAX


def test_a_router_out_of_descriptors_goes_on_when_some_are_free(deployed: Deployment) -> None:
    router = deployed.router_pid
    limits = resource.prlimit(router, resource.RLIMIT_NOFILE)
    with ExitStack() as stack, deployed.server.connect() as client:
        used = len(os.listdir(f"/proc/{router}/fd"))
        resource.prlimit(router, resource.RLIMIT_NOFILE, (used + 10, limits[1]))
        stack.callback(resource.prlimit, router, resource.RLIMIT_NOFILE, limits)
        many = [stack.enter_context(deployed.server.open()) for _ in range(40)]
        for each in many:
            each.send(startup({"user": "another", "database": deployed.server.database}))
        # The limit is one of numbers: some above it may have been in use before.
        wait_until(lambda: {int(name) for name in os.listdir(f"/proc/{router}/fd")} >= set(range(used + 10)))
        client.send(query("SELECT id FROM root"))  # with or without a backend for it
        assert client.read_until()[-1].kind == b"Z"
        for each in many[:30]:
            each.close()
        assert many[-1].read_message()
    deployed.come_to_rest()
    assert answers_through(deployed)


def answers_through(deployed: Deployment) -> bool:
    """True when a new client is served."""
    try:
        with deployed.server.connect() as connection:
            return connection.value("SELECT 1") == "1"
    except LOST:
        return False
