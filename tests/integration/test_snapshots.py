"""One snapshot over all shards: while money moves between them, no total is ever wrong.

FORESHARD_SOAK_SECONDS makes the transfers go on for longer.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.messages import SYNC, extended, query
from tests.support.postgres import TestInstances
from tests.support.raw import Message, RawConnection, error_of, kinds, send_cancel
from tests.support.sharded import ROOTS, SHARD_COUNT, Deployment, deployment
from tests.support.waiting import wait_until

SECONDS = float(os.environ.get("FORESHARD_SOAK_SECONDS", "1.5"))
BALANCES = "SELECT n FROM root"
THROUGH_NODE = "SELECT a.n FROM root a JOIN root b ON b.n - b.n + b.id = a.id"  # a join over groups
WRITERS = 4
EXPECTED = sum(range(1, ROOTS + 1))


@pytest.fixture(scope="module")
def deployed(test_instances: TestInstances, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployment(test_instances, tmp_path_factory.mktemp("snapshots"), pool={"size": 12}) as made:
        yield made


def transfer(client: RawConnection, draw: random.Random, *, at_once: bool) -> None:
    """Move some between two accounts: in a transaction of several statements, or in one string.

    Rows are locked in the order of their keys, so transfers never wait for each other in a circle.
    """
    one, two = sorted(draw.sample(range(1, ROOTS + 1), 2))
    amount = draw.randrange(-100, 100)
    take = f"UPDATE root SET n = n - {amount} WHERE id = {one}"
    give = f"UPDATE root SET n = n + {amount} WHERE id = {two}"
    texts = [f"{take}; {give}"] if at_once else ["BEGIN", take, give, "COMMIT"]
    for text in texts:
        if "E" in kinds(client.query(text)):
            client.query("ROLLBACK")
            return


def total(answer: list[Message]) -> int:
    found = [int(message.values[0] or 0) for message in answer if message.kind == b"D"]
    assert len(found) == ROOTS, kinds(answer)
    return sum(found)


def ask_simply(client: RawConnection) -> list[int]:
    return [total(client.ask(query(BALANCES)))]


def ask_extended(client: RawConnection) -> list[int]:
    return [total(client.ask(extended(BALANCES), SYNC))]


def ask_in_a_transaction(client: RawConnection) -> list[int]:
    client.rows("BEGIN")
    first = client.rows("SELECT n FROM root WHERE id = 1")
    totals = [total(client.query(BALANCES)), total(client.ask(extended(BALANCES), SYNC))]
    assert client.rows("SELECT n FROM root WHERE id = 1") == first
    client.rows("COMMIT")
    return totals


def ask_in_a_string(client: RawConnection) -> list[int]:
    answer = client.query(f"{BALANCES}; SELECT n AS again FROM root")
    middle = next(index for index, message in enumerate(answer) if message.kind == b"C")
    return [total(answer[:middle]), total(answer[middle:])]


def ask_the_node(client: RawConnection) -> list[int]:
    return [total(client.ask(query(THROUGH_NODE))), total(client.ask(extended(THROUGH_NODE), SYNC))]


def ask_every_tier(client: RawConnection) -> list[int]:
    """What the node sees is what the shards' own sessions see, to the row."""
    client.rows("BEGIN")
    found = sorted(client.rows(THROUGH_NODE))
    assert sorted(client.rows(BALANCES)) == found
    for key in (1, 2, 3):
        assert client.rows(f"SELECT n FROM root WHERE id = {key}")[0] in found
    assert client.rows("SELECT sum(n) FROM root") == [[b"%d" % EXPECTED]]
    assert sorted(client.rows(THROUGH_NODE)) == found
    client.rows("COMMIT")
    return [sum(int(row[0] or 0) for row in found)]


def ask_the_node_in_a_string(client: RawConnection) -> list[int]:
    answer = client.query(f"{THROUGH_NODE}; {BALANCES}")
    middle = next(index for index, message in enumerate(answer) if message.kind == b"C")
    return [total(answer[:middle]), total(answer[middle:])]


ASKS = [
    *(ask_simply, ask_extended, ask_in_a_transaction, ask_in_a_string),
    *(ask_the_node, ask_every_tier, ask_the_node_in_a_string),
]


@pytest.mark.parametrize("ask", ASKS)
def test_no_total_is_wrong_while_money_moves(deployed: Deployment, ask: Callable[[RawConnection], list[int]]) -> None:
    end = time.monotonic() + SECONDS

    def write(number: int) -> None:
        draw = random.Random(number)
        with deployed.server.connect() as client:
            while time.monotonic() < end:
                transfer(client, draw, at_once=number % 2 == 0)

    def read(_: int) -> int:
        with deployed.server.connect() as client:
            client.rows("SET foreshard.snapshot = on")
            count = 0
            while time.monotonic() < end:
                for found in ask(client):
                    assert found == EXPECTED
                    count += 1
            return count

    with ThreadPoolExecutor() as executor:
        writers = [executor.submit(write, number) for number in range(WRITERS)]
        readers = [executor.submit(read, number) for number in range(2)]
        assert all(reader.result() > 0 for reader in readers)
        for writer in writers:
            writer.result()
    deployed.come_to_rest()
    with deployed.server.connect() as client:
        assert total(client.query(BALANCES)) == EXPECTED


def test_a_repeatable_read_transaction_sees_every_shard_as_of_its_first_statement(deployed: Deployment) -> None:
    asks = [f"SELECT n FROM root WHERE id = {keys[0]}" for keys in deployed.keys]
    writes = [f"UPDATE root SET n = n + 1000 WHERE id = {keys[0]}" for keys in deployed.keys]
    with deployed.server.connect() as client, deployed.server.connect() as other:
        before = [other.value(ask) for ask in asks]
        for begin in (
            "BEGIN ISOLATION LEVEL REPEATABLE READ",
            "BEGIN; SET TRANSACTION ISOLATION LEVEL REPEATABLE READ",
        ):
            client.query(begin)
            assert client.value(asks[0]) == before[0]
            for write in writes:
                other.rows(write)
            assert [client.value(ask) for ask in asks] == before
            assert error_of(client.query(writes[1]))["C"] == "40001"
            client.rows("ROLLBACK")
            for write in writes:
                other.rows(write.replace("+", "-"))


def test_snapshots_wait_for_what_a_dead_router_left_in_doubt(deployed: Deployment) -> None:
    """Decided on one shard, prepared on the other: no total before recovery has ended it."""
    shards, (one, two) = deployed.shards, (keys[0] for keys in deployed.keys[:2])
    cluster = str(shards.query("SELECT cluster FROM foreshard.shard_info")[0][0])
    name = "0" * 31 + "1"
    gid = f"foreshard/{cluster}/{shards.shards[0].name}/{name}/{shards.shards[1].name}"
    os.kill(deployed.router_pid, signal.SIGKILL)
    shards.execute(f"BEGIN; UPDATE root SET n = n + 500 WHERE id = {two}; PREPARE TRANSACTION '{gid}'", on=1)
    shards.execute(
        f"BEGIN; UPDATE root SET n = n - 500 WHERE id = {one};"
        f"INSERT INTO foreshard.decision (id, outcome) VALUES ('{name}', 'commit'); COMMIT",
        on=0,
    )
    wait_until(lambda: answers(deployed))
    with deployed.server.connect() as client:
        client.rows("SET foreshard.snapshot = on")
        client.send(query(BALANCES))
        send_cancel(*client.address, client.pid, client.secret)
        heard = client.read_until()
        assert "E" not in kinds(heard) or error_of(heard)["C"] == "57014"
        assert total(client.query(BALANCES)) == EXPECTED
    deployed.come_to_rest()


def answers(deployed: Deployment) -> bool:
    try:
        with deployed.server.connect() as client:
            return len(client.rows("SELECT n FROM root WHERE id = 1")) == 1
    except (OSError, AssertionError, EOFError, ConnectionError):
        return False


def test_the_setting_is_the_sessions_own(deployed: Deployment) -> None:
    with deployed.server.connect() as client:
        assert error_of(client.query("SET foreshard.snapshot = perhaps"))["C"] == "22023"
        assert error_of(client.query("SET foreshard.bucket = 1"))["C"] == "42501"
        client.rows("BEGIN")
        assert error_of(client.query("SET foreshard.snapshot = on"))["C"] == "25001"
        client.rows("ROLLBACK")
        for on, off in (("on", "RESET foreshard.snapshot"), ("1", "RESET ALL"), ("true", "DISCARD ALL")):
            isolation = "SELECT current_setting('transaction_isolation') FROM root WHERE id = 1"
            assert kinds(client.ask(extended(f"SET foreshard.snapshot = {on}"), SYNC)) == "12nCZ"
            client.rows("BEGIN")
            assert client.value(isolation) == "repeatable read"
            client.rows("COMMIT")
            client.rows(off)
            client.rows("BEGIN")
            assert client.value(isolation) == "read committed"
            client.rows("COMMIT")
    assert SHARD_COUNT == 3
    deployed.come_to_rest()
