"""COPY FROM STDIN over several shards when something breaks: all of it or nothing, and memory stays bounded."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

import psycopg
import pytest

from tests.integration.test_copy_in import START, TEXT, query_of, told
from tests.support.messages import COPY_DONE, copy_data
from tests.support.postgres import TestInstances
from tests.support.raw import RawConnection, error_of, kinds, send_cancel
from tests.support.sharded import SHARD_COUNT, Deployment, deployment
from tests.support.waiting import wait_until

PAUSED_BYTES_MAX = 96 << 20
COPY = "COPY root FROM STDIN"


@pytest.fixture(scope="module")
def deployed(test_instances: TestInstances, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployment(test_instances, tmp_path_factory.mktemp("copy"), pool={"size": 2}) as made:
        yield made


@pytest.fixture(autouse=True)
def nothing_is_left(deployed: Deployment) -> Iterator[None]:
    yield
    deployed.come_to_rest()
    with deployed.server.connect() as client:
        assert client.rows("SELECT count(*) FROM root WHERE id >= 1000") == [[b"0"]]


def begin(deployed: Deployment, *messages: bytes) -> RawConnection:
    """A client in the middle of a COPY."""
    client = deployed.server.connect()
    client.send(query_of(COPY))
    assert client.read_message().kind == b"G"
    client.send(*messages)
    return client


def copying(deployed: Deployment) -> list[int]:
    """On which shards a COPY is running."""
    sql = (
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'COPY root%' AND state = 'active'"
        " AND datname = current_database()"
    )
    return [shard for shard in range(SHARD_COUNT) if deployed.shards.query(sql, on=shard)[0][0]]


def test_a_cancel_in_the_middle_ends_it_on_every_shard(deployed: Deployment) -> None:
    with begin(deployed, copy_data(TEXT)) as client:
        wait_until(lambda: len(copying(deployed)) == SHARD_COUNT)
        send_cancel(*client.address, client.pid, client.secret)
        client.send(copy_data(TEXT))  # PostgreSQL looks for a cancel request when data comes
        assert error_of(client.read_until())["C"] == "57014"
        client.send(copy_data(TEXT), COPY_DONE)  # what was on its way is ignored
        assert kinds(client.query("SELECT 1")) == "TDCZ"


@pytest.mark.parametrize("shard", range(SHARD_COUNT))
def test_a_backend_that_dies_in_the_middle_takes_all_with_it(deployed: Deployment, shard: int) -> None:
    with begin(deployed, copy_data(TEXT)) as client:
        wait_until(lambda: shard in copying(deployed))
        deployed.shards.query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'COPY root%'", on=shard
        )
        assert client.read_to_end()[-1].fields["C"] == "08006"


def test_an_error_at_the_end_of_one_shard_undoes_the_others(deployed: Deployment) -> None:
    with begin(deployed, copy_data(START + START), COPY_DONE) as client:
        assert error_of(client.read_until())["C"] == "23505"
        assert kinds(client.query("SELECT 1")) == "TDCZ"


def test_a_shard_that_waits_for_a_lock_stops_the_client_and_not_the_router(deployed: Deployment) -> None:
    chunk = b"".join(b"%d\t%s\t1\n" % (n, b"x" * 900) for n in range(2000, 2060))
    before = resident_bytes(deployed.router_pid)
    with psycopg.connect(deployed.shards.dsns[0]) as holder:
        holder.execute("LOCK TABLE root IN ACCESS EXCLUSIVE MODE")
        client = deployed.server.connect()
        client.send(query_of("COPY root FROM STDIN"))
        sender = threading.Thread(target=send_much, args=(client, chunk), daemon=True)
        sender.start()
        wait_until(lambda: is_blocked(deployed))
        assert resident_bytes(deployed.router_pid) - before < PAUSED_BYTES_MAX
        with deployed.server.connect() as other:
            assert other.rows("SELECT 1") == [[b"1"]]
        client.abort()
        sender.join()
        holder.rollback()


def send_much(client: RawConnection, chunk: bytes) -> None:
    """More than sockets hold; nobody wakes a sender whose socket is closed under it, so it waits a short time only."""
    client.socket.settimeout(3.0)
    with contextlib.suppress(OSError):
        for _ in range(4000):
            client.send(copy_data(chunk))


def is_blocked(deployed: Deployment) -> bool:
    """Whether a COPY waits on the first shard."""
    sql = (
        "SELECT count(*) FROM pg_locks JOIN pg_database AS held ON held.oid = database"
        " WHERE NOT granted AND datname = current_database()"
    )
    return bool(deployed.shards.query(sql, on=0)[0][0])


def resident_bytes(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_several_clients_copy_at_once_with_fewer_backends_than_they_want(deployed: Deployment) -> None:
    answers: dict[int, list[str]] = {}

    def work(number: int) -> None:
        with begin(deployed) as client:
            rows = b"".join(b"%d\tof %d\t1\n" % (key, number) for key in range(10000 * number, 10000 * number + 300))
            client.send(copy_data(rows), COPY_DONE)
            answers[number] = told(client.read_until())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer[0] for answer in answers.values()] == [r"C b'COPY 300\x00'"] * 8
    with deployed.server.connect() as client:
        assert client.rows("SELECT count(*) FROM root WHERE id >= 10000") == [[b"2400"]]
        client.rows("DELETE FROM root WHERE id >= 10000")
