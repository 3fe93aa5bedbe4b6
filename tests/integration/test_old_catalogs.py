"""No router plans by an old catalog once a change of the schema is committed, through whichever proxy it was made."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.messages import query
from tests.support.postgres import Shards, TestInstances
from tests.support.proxy import Proxy
from tests.support.raw import error_of, kinds
from tests.support.two_proxies import two_proxies
from tests.support.verified import assert_verified
from tests.support.waiting import wait_until

SHARD_COUNT = 3
WRITERS = 4
CHANGES = 6
SCHEMA = """
CREATE TABLE thing (extra bigint, id bigint PRIMARY KEY, n bigint);
CREATE TABLE box (id bigserial PRIMARY KEY, note text);
CREATE TABLE plain (id bigint PRIMARY KEY, note text);
"""
TABLES = {"thing": {"key": "id"}, "box": {"key": "id"}}
# The first column goes, another comes at the end: three values stand for other columns than before.
TURN = "ALTER TABLE thing DROP COLUMN {0}, ADD COLUMN {1} bigint"
WAITING = "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'relation'"
PERMITTED = {"40001"}


class World(NamedTuple):
    """Two proxies over the same shards."""

    one: Proxy
    two: Proxy
    shards: Shards

    def waiting(self) -> int:
        return sum(int(str(self.shards.query(WAITING, on=index)[0][0])) for index in range(SHARD_COUNT))


@pytest.fixture(scope="module")
def world(test_instances: TestInstances, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    shards = test_instances.create(SHARD_COUNT)
    shards.execute(SCHEMA)
    with two_proxies(shards.dsns, tmp_path_factory.mktemp("old-catalogs"), TABLES) as (one, two):
        yield World(one, two, shards)
        assert_verified(one.configuration)
    test_instances.drop(shards)


def insert_steadily(proxy: Proxy, number: int, stopping: threading.Event) -> list[str]:
    """INSERTs without column names until told to stop; the errors."""
    found = []
    with proxy.server.connect() as client:
        at = number * 1_000_000
        while not stopping.is_set():
            at += 10
            answer = client.query(f"INSERT INTO thing VALUES ({at}, {at + 3}, {at + 7})")
            found += [error_of(answer)["C"]] if "E" in kinds(answer) else []
    return found


def test_rows_without_column_names_go_where_the_new_columns_say(world: World) -> None:
    stopping = threading.Event()
    with ThreadPoolExecutor(WRITERS) as pool, world.one.server.connect() as changer:
        try:
            proxies = (world.one, world.two)
            jobs = [pool.submit(insert_steadily, proxies[n % 2], n + 1, stopping) for n in range(WRITERS)]
            columns = ["extra", "n"]
            for turn in range(CHANGES):  # the key comes first, then second, then first ...
                goes, comes = columns.pop(0), f"c{turn}"
                changer.rows(TURN.format(goes, comes))
                columns.append(comes)
        finally:
            stopping.set()
        errors = {code for job in jobs for code in job.result()}
    assert errors <= PERMITTED
    assert_verified(world.one.configuration)


def test_a_statement_that_waited_for_a_change_is_done_if_it_means_the_same_and_refused_if_not(world: World) -> None:
    with (
        world.one.server.connect() as changer,
        world.two.server.connect() as other,
        world.one.server.connect() as third,
    ):
        for sql, code in (
            ("ALTER TABLE box ADD COLUMN one int DEFAULT 1", ""),
            ("ALTER TABLE box DROP COLUMN note, ADD COLUMN two int", "40001"),
        ):
            changer.rows("BEGIN")
            changer.rows(sql)
            for client in (other, third):
                client.send(query("INSERT INTO box DEFAULT VALUES RETURNING true"))
            wait_until(lambda: world.waiting() == 2)
            changer.rows("COMMIT")
            for client in (other, third):
                answer = client.read_until()
                assert (error_of(answer)["C"] if "E" in kinds(answer) else "") == code
        assert other.value("SELECT count(two) FROM box") == "0"


def test_a_view_that_begins_to_read_a_sharded_table_is_never_answered_by_one_shard(world: World) -> None:
    with world.one.server.connect() as changer, world.two.server.connect() as other:
        changer.rows("INSERT INTO plain VALUES (1, 'p')")
        changer.rows("INSERT INTO thing (id) SELECT n FROM generate_series(900001, 900030) AS n")
        changer.rows("CREATE VIEW shown AS SELECT id FROM plain")
        assert other.value("SELECT count(*) FROM shown") == "1"
        changer.query("CREATE OR REPLACE VIEW shown AS SELECT id FROM thing WHERE id BETWEEN 900001 AND 900030")
        answer = other.query("SELECT count(*) FROM shown")
        if "E" in kinds(answer):
            assert error_of(answer)["C"] == "0A000"
        else:
            assert answer[1].values == [b"30"] or answer[1].values == [b"1"]


def test_a_router_that_does_not_follow_makes_the_change_fail(world: World) -> None:
    (pid,) = world.two.router_pids()
    with world.one.server.connect() as changer:
        os.kill(pid, signal.SIGSTOP)
        try:
            answer = changer.query("ALTER TABLE box ADD COLUMN lost int")
        finally:
            os.kill(pid, signal.SIGCONT)
        assert error_of(answer)["C"] == "55P03"
        assert changer.value("SELECT count(*) FROM box") != ""
        changer.rows("ALTER TABLE box ADD COLUMN found int")
    with world.two.server.connect() as other:
        assert other.value("SELECT count(found) FROM box") == "0"


def test_filled_tables_are_spread_while_clients_write_and_read_them(
    test_instances: TestInstances, tmp_path: Path
) -> None:
    shards = test_instances.create(SHARD_COUNT)
    shards.execute("CREATE TABLE item (id bigint PRIMARY KEY, n int NOT NULL); ", on=0)
    shards.execute("INSERT INTO item SELECT n, 1 FROM generate_series(1, 3000) AS n", on=0)
    first = Proxy(shards.dsns, tmp_path / "before", tables={"other": {"key": "id"}})  # everything else is applied
    assert first.process is None
    tables = {"other": {"key": "id"}, "item": {"key": "id"}}
    stopping, totals = threading.Event(), set()
    with Proxy(shards.dsns, tmp_path / "now", tables=tables, apply=False, workers={"per_shard": 0}) as proxy:

        def read() -> None:
            with proxy.server.connect() as client:
                while not stopping.is_set():
                    answer = client.query("SELECT sum(n) FROM item WHERE id <= 3000")
                    totals.add(error_of(answer)["C"] if "E" in kinds(answer) else str(answer[1].values[0]))

        def write() -> int:
            made = 0
            with proxy.server.connect() as client:
                for key in range(3001, 9000):
                    if stopping.is_set():
                        break
                    answer = client.query(f"INSERT INTO item VALUES ({key}, 0)")
                    made += "E" not in kinds(answer)
                    totals.update([error_of(answer)["C"]] if "E" in kinds(answer) else [])
            return made

        with ThreadPoolExecutor(2) as pool:
            jobs = [pool.submit(read), pool.submit(write)]
            try:
                proxy.run_command("apply")
            finally:
                stopping.set()
            jobs[0].result()
            made = jobs[1].result()
        with proxy.server.connect() as client:
            assert client.value("SELECT count(*) FROM item") == str(3000 + made)
            assert client.value("SELECT count(*) FROM item WHERE id = 1234") == "1"
        assert totals <= {"b'3000'", "40001"}
        assert min(int(str(shards.query("SELECT count(*) FROM item", on=index)[0][0])) for index in range(3)) > 500
        assert_verified(proxy.configuration)
    test_instances.drop(shards)
