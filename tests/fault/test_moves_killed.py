"""Kill -9 and SIGSTOP while buckets move under clients: moves end by themselves, and what clients were told is true."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from foreshard.proxy.triggers.points import HOLD_NAMES, MOVE_NAMES, MOVER_NAMES
from tests.support.fault_matrix import ENDED, Case, end_moves
from tests.support.moving import MOVED_BY_HAND, TABLES, MovingWorld, moving_shards
from tests.support.postgres import Shards, TestInstances
from tests.support.proxy import Proxy
from tests.support.raw import RawConnection, error_of, kinds
from tests.support.two_proxies import children, hurt, two_proxies
from tests.support.waiting import wait_until, wait_until_gone

SHARD_COUNT = 3
CLIENTS = 3
SYMBOLS = 6000  # of one document: its bucket is moved the large way
ENDING = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"
SILENT_S = 12.0  # longer than a router is waited for
CALLED = {"move": "the balancer", "hold": "the router"}  # who passes control points with such names
POINTS = [name for name in (*MOVE_NAMES, *MOVER_NAMES, *HOLD_NAMES) if name != "move-fenced"]


@pytest.fixture(scope="module")
def shards(test_instances: TestInstances) -> Iterator[Shards]:
    yield from moving_shards(test_instances, SHARD_COUNT)


@pytest.fixture
def fresh(test_instances: TestInstances) -> Iterator[Shards]:
    yield from moving_shards(test_instances, SHARD_COUNT)


def restarts(proxy: Proxy) -> int:
    """How often the supervisor has started a child again."""
    return proxy.log.read_text().count("starting it again")


@pytest.mark.parametrize("point", POINTS)
def test_a_process_is_killed_at_a_control_point(case: Case, shards: Shards, tmp_path: Path, point: str) -> None:
    with Proxy(
        shards.dsns, tmp_path, tables=TABLES, **MOVED_BY_HAND, environment={"FORESHARD_CRASH_AT": point}
    ) as proxy:
        world = MovingWorld(shards, [proxy], CLIENTS, 10 + POINTS.index(point))
        world.start()
        bucket = world.bucket()
        if point in ("move-copied", "move-caught-up"):
            key = world.key_in(bucket)
            with proxy.server.connect() as client:
                client.rows(f"INSERT INTO symbol (document_id) SELECT {key} FROM generate_series(1, {SYMBOLS})")
            world.note_symbols(key, SYMBOLS)
        world.plan(bucket)
        wait_until(lambda: restarts(proxy) > 0)
        world.plan(world.bucket())  # and the next one is made as if nothing had been
        world.wait_moved()
        time.sleep(0.2)
        world.stop()
        assert restarts(proxy) == 1
    where = f"`{point}`, which a router passes as it starts: before there are clients"
    where = where if point == "hold-taken" else f"`{point}`"
    end_moves(case, world, CALLED[point.partition("-")[0]], where, may_break=point in HOLD_NAMES)


def test_a_stopped_router_is_fenced_and_tells_nothing_wrong_when_it_goes_on(
    case: Case, shards: Shards, tmp_path: Path
) -> None:
    with two_proxies(shards.dsns, tmp_path, TABLES, **MOVED_BY_HAND) as proxies:
        world = MovingWorld(shards, proxies, 4, 41)
        world.start()
        stopped = hurt(proxies[1], "router", signal.SIGSTOP)
        assert len(stopped) == 1
        buckets = [world.bucket() for _ in range(3)]
        for bucket in buckets:
            world.plan(bucket)
        world.wait_moved()
        time.sleep(SILENT_S / 10)
        os.kill(stopped[0], signal.SIGCONT)
        time.sleep(2.0)
        world.plan(world.bucket())
        world.wait_moved()
        world.stop()
        of_the_other = [client for client in world.clients if client.proxy is proxies[0]]
        assert all(not client.errors and client.breaks == 1 for client in of_the_other)
    end_moves(case, world, "a proxy's router (SIGSTOP)", "three moves begun while it is stopped")


def test_a_mover_that_dies_as_it_fences_is_followed_by_another(case: Case, shards: Shards, tmp_path: Path) -> None:
    armed = {"FORESHARD_CRASH_AT": "move-fenced"}
    with two_proxies(shards.dsns, tmp_path, TABLES, **MOVED_BY_HAND, first=armed, second=armed) as proxies:
        world = MovingWorld(shards, proxies, 4, 42)
        world.start()
        stopped = hurt(proxies[1], "router", signal.SIGSTOP)
        world.plan(world.bucket())
        wait_until(lambda: sum(map(restarts, proxies)) > 0)
        world.wait_moved()
        os.kill(stopped[0], signal.SIGCONT)
        time.sleep(1.0)
        world.stop()
    end_moves(case, world, "the balancer, and another proxy's router (SIGSTOP)", "`move-fenced`")


@pytest.mark.parametrize("word", ["router", "balancer", "controller"])
def test_processes_are_killed_again_and_again(case: Case, shards: Shards, tmp_path: Path, word: str) -> None:
    with two_proxies(shards.dsns, tmp_path, TABLES, **MOVED_BY_HAND) as proxies:
        world = MovingWorld(shards, proxies, 4, 50 + len(word))
        world.start()
        for number in range(5):
            world.plan(world.bucket())
            time.sleep(world.draw.uniform(0.0, 0.3))
            victim = proxies[number % 2]
            for pid in children(victim, word):
                os.kill(pid, signal.SIGKILL)
            world.wait_moved()
        world.stop()
    end_moves(
        case, world, f"the {word}", "two proxies by turns, five times, anywhere in a move", may_break=word == "router"
    )


def test_a_statement_that_outlives_its_router_does_not_write_behind_a_move(
    case: Case, shards: Shards, tmp_path: Path
) -> None:
    with two_proxies(shards.dsns, tmp_path, TABLES, **MOVED_BY_HAND) as proxies:
        world = MovingWorld(shards, proxies, 2, 61)
        world.start()
        bucket = world.bucket()
        key = world.key_in(bucket)
        world.stop()
        (source,) = (index for index in range(SHARD_COUNT) if world.has_document(index, key))
        with proxies[0].server.connect() as lost:
            # It waits in a function of the shard, and would insert then.
            slow(lost, key)
            wait_until(lambda: running(shards, source) == 1)
            for pid in children(proxies[0], "router"):
                os.kill(pid, signal.SIGKILL)
            target = world.plan(bucket)
            world.wait_moved()
            assert lost.read_to_end() == []
        assert running(shards, source) == 0
        assert world.has_document(target, key)
        assert not shards.query(f"SELECT id FROM symbol WHERE document_id = {key} AND name = 'late'", on=source)
    end_moves(
        case, world, "a router, a statement of its client's still running", "before the move begins", seen=[ENDED]
    )


def slow(client: RawConnection, key: int) -> None:
    """Begin an INSERT that takes long on its shard."""
    sql = f"INSERT INTO symbol (document_id, name) VALUES ({key}, 'late' || left(pg_sleep(20)::text, 0))"
    client.send(b"Q" + (len(sql) + 5).to_bytes(4, "big") + sql.encode() + b"\0")


def running(shards: Shards, on: int) -> int:
    """How many such INSERTs run on a shard."""
    sql = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'INSERT%pg_sleep%' AND state = 'active'"
    return int(str(shards.query(sql, on=on)[0][0]))


def test_a_shard_dies_while_its_buckets_move(
    case: Case, shards: Shards, test_instances: TestInstances, tmp_path: Path
) -> None:
    with Proxy(shards.dsns, tmp_path, tables=TABLES, **MOVED_BY_HAND) as proxy:
        world = MovingWorld(shards, [proxy], CLIENTS, 70)
        world.start()
        for index in range(SHARD_COUNT):
            bucket = world.bucket()
            world.plan(bucket)
            time.sleep(world.draw.uniform(0.02, 0.15))
            test_instances.crash(index)
            world.wait_moved()
        with proxy.server.connect() as client:
            wait_until(lambda: "E" not in kinds(client.query("SELECT count(*) FROM document")))
        world.stop()
    end_moves(case, world, "each shard in turn", "anywhere in a move")


def test_a_proxy_is_restarted_while_buckets_move(case: Case, shards: Shards, tmp_path: Path) -> None:
    with two_proxies(shards.dsns, tmp_path, TABLES, **MOVED_BY_HAND) as proxies:
        world = MovingWorld(shards, proxies, 4, 80)
        world.start()
        for proxy in proxies:
            for _ in range(3):
                world.plan(world.bucket())
            proxy.stop()
            proxy.start()
            world.wait_moved()
        world.stop()
    for client in world.clients:
        assert not {error for error in client.errors if not error.startswith(("57P01", "08006"))}, client.errors
    end_moves(case, world, "a proxy (SIGTERM), started anew", "with three moves planned, each of two proxies")


def test_without_the_control_database_traffic_goes_on_and_moves_stop(case: Case, fresh: Shards, tmp_path: Path) -> None:
    *dsns, control = fresh.dsns
    name = control.rpartition("/")[2]
    server = control.rpartition("/")[0] + "/postgres"
    with Proxy(dsns, tmp_path, tables=TABLES, control=control, **MOVED_BY_HAND) as proxy:
        world = MovingWorld(fresh, [proxy], CLIENTS, 90, control=2)
        world.start()
        world.plan(world.bucket(), shard_count=2)
        world.wait_moved()
        console_server = proxy.server._replace(database="foreshard")
        with psycopg.connect(server, autocommit=True) as admin, console_server.connect() as console:
            world.plan(world.bucket(), shard_count=2)
            admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
            admin.execute(ENDING, (name,))
            acts = sum(client.acts for client in world.clients)
            time.sleep(2.0)
            assert sum(client.acts for client in world.clients) > acts
            assert error_of(console.query("SHOW MOVES"))["C"] == "08006"
            admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        world.wait_moved()
        world.stop()
    end_moves(case, world, "the control database, for 2 s", "with a move planned", may_break=False)


def test_the_supervisor_is_killed_and_started_anew(case: Case, shards: Shards, tmp_path: Path) -> None:
    with Proxy(shards.dsns, tmp_path, tables=TABLES, **MOVED_BY_HAND) as proxy:
        world = MovingWorld(shards, [proxy], CLIENTS, 95)
        world.start()
        for _ in range(3):
            world.plan(world.bucket())
        assert proxy.process is not None
        family = proxy.pids()
        proxy.process.kill()
        proxy.wait_for_end()
        wait_until_gone(*family)
        proxy.start()
        world.wait_moved()
        world.stop()
    end_moves(case, world, "the supervisor", "with three moves planned")
