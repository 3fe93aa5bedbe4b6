"""Reference tables written through the proxy: the same rows on every shard, told as one PostgreSQL tells it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pytest

from foreshard.proxy.control.fence import ROUTER_CLASS
from tests.support.messages import SYNC, bind, describe_portal, execute, extended, parse, query
from tests.support.postgres import Shards, TestInstances
from tests.support.proxy import Proxy
from tests.support.raw import error_of
from tests.support.servers import Server
from tests.support.twins import comparable
from tests.support.waiting import wait_until

SHARD_COUNT = 3
SCHEMA = """
CREATE TABLE language (code text PRIMARY KEY, title text, rank integer NOT NULL DEFAULT 7, seen timestamptz,
                       made timestamptz DEFAULT now());
CREATE TABLE region (id bigserial PRIMARY KEY, name text);
CREATE TABLE document (id bigserial PRIMARY KEY, code text REFERENCES language, n integer);
"""
TABLES = {"document": {"key": "id"}, "language": {"reference": True}, "region": {"reference": True}}
COLUMNS = "(code, title, rank, seen, made)"


class Scene(NamedTuple):
    """A deployment, and one PostgreSQL with the same rows."""

    proxied: Server
    direct: Server
    shards: Shards

    def languages(self) -> list[list[tuple[object, ...]]]:
        """The rows of each shard."""
        sql = "SELECT code, title, rank, seen, made FROM language ORDER BY code"
        return [list(map(tuple, self.shards.query(sql, on=shard))) for shard in range(SHARD_COUNT)]


@pytest.fixture(scope="module")
def scene(test_instances: TestInstances, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    shards, reference = test_instances.create(SHARD_COUNT), test_instances.create(1)
    for database in (shards, reference):
        database.execute(SCHEMA)
    with Proxy(shards.dsns, tmp_path_factory.mktemp("same"), tables=TABLES, workers={"per_shard": 0}) as proxy:
        yield Scene(proxy.server, Server.of_dsn(reference.dsns[0]), shards)
    test_instances.drop(shards)
    test_instances.drop(reference)


@pytest.fixture(autouse=True)
def every_shard_has_the_same(scene: Scene) -> Iterator[None]:
    yield
    found = scene.languages()
    assert found[0] == found[1] == found[2]


CONVERSATIONS: dict[str, Sequence[str]] = {
    "insert": [
        f"INSERT INTO language {COLUMNS} VALUES ('py', 'Python', 1, NULL, NULL), ('c', 'C', 2, '2020-01-01Z', NULL)",
        f"INSERT INTO language {COLUMNS} VALUES ('rs', upper('rust'), 1 + 2, NULL, '2021-02-03Z') RETURNING code",
        "INSERT INTO language (code, title, made) VALUES ('go', 'Go', NULL)", "SELECT * FROM language",
    ],
    "update": [
        "UPDATE language SET rank = rank + 1 WHERE code = 'py' RETURNING *", "UPDATE language SET title = lower(title)",
        "UPDATE language SET rank = 0 WHERE code = 'none'", "SELECT * FROM language",
    ],
    "upsert": [
        f"INSERT INTO language {COLUMNS} VALUES ('py', 'P', 1, NULL, NULL) ON CONFLICT DO NOTHING RETURNING code",
        f"INSERT INTO language {COLUMNS} VALUES ('py', 'P', 1, NULL, NULL) ON CONFLICT (code) DO UPDATE SET rank = 9",
    ],
    "errors": [
        f"INSERT INTO language {COLUMNS} VALUES ('py', 'again', 1, NULL, NULL)", "UPDATE language SET rank = NULL",
        "UPDATE language SET rank = 1 / (rank - rank)", "SELECT 1",
    ],
    "in a transaction": [
        *("BEGIN", "UPDATE language SET rank = 5", "SAVEPOINT s", "DELETE FROM language WHERE code = 'py'"),
        *("SELECT count(*) FROM language", "ROLLBACK TO s", "UPDATE language SET title = 'x' RETURNING title"),
        *("COMMIT", "SELECT * FROM language"),
    ],
    "rolled back": ["BEGIN", "DELETE FROM language", "ROLLBACK", "SELECT * FROM language"],
    "delete": ["DELETE FROM language WHERE rank > 6 RETURNING code", "SELECT * FROM language"],
}  # fmt: skip


@pytest.mark.parametrize("by_extended", [False, True], ids=["simple", "extended"])
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_write_answers_as_one_postgresql(scene: Scene, name: str, by_extended: bool) -> None:
    with scene.proxied.connect() as proxied, scene.direct.connect() as direct:
        if name == "insert":
            for client in (proxied, direct):
                client.rows("DELETE FROM language")
        for sql in CONVERSATIONS[name]:
            asked = extended(sql) + SYNC if by_extended else query(sql)
            assert comparable(proxied.ask(asked)) == comparable(direct.ask(asked)), sql


def test_parameters_reach_every_shard(scene: Scene) -> None:
    sql = f"INSERT INTO language {COLUMNS} VALUES ($1, $2, $3, $4, $5) ON CONFLICT (code) DO UPDATE SET rank = $3"
    values = [b"p1", b"title", (3).to_bytes(4, "big"), b"2020-01-01Z", None]
    with scene.proxied.connect() as proxied, scene.direct.connect() as direct:
        answers = []
        for client in (proxied, direct):
            asked = bind(values, formats=[0, 0, 1, 0, 0], name="s"), describe_portal(), execute(), SYNC
            answers.append(comparable(client.ask(parse(sql, "s"), *asked) + client.ask(*asked)))
        assert answers[0] == answers[1]
        values[3] = b" Now "
        proxied.ask(bind(values, formats=[0, 0, 1, 0, 0], name="s"), execute(), SYNC)  # one shard tells the time


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE language SET rank = document.n FROM document WHERE document.code = language.code",
        "DELETE FROM language WHERE code IN (SELECT code FROM document)",
    ],
)
def test_what_the_first_shard_cannot_compute_is_refused(scene: Scene, sql: str) -> None:
    with scene.proxied.connect() as client:
        for asked in (query(sql), extended(sql) + SYNC):
            assert error_of(client.ask(asked))["C"] == "0A000"


def test_writers_of_one_table_leave_the_same_rows_everywhere(scene: Scene) -> None:
    with scene.proxied.connect() as client:
        client.rows("DELETE FROM language")
        client.rows(f"INSERT INTO language {COLUMNS} VALUES ('n', '', 0, NULL, NULL)")
    failures: list[str] = []

    def write(number: int) -> None:
        with scene.proxied.connect() as client:
            for turn in range(12):
                answers = client.query(f"UPDATE language SET title = md5(title || '{number}'), rank = rank + 1")
                answers += client.query(f"INSERT INTO language {COLUMNS} VALUES ('{number}.{turn}', '', 0, NULL, NULL)")
                failures.extend(str(message.fields) for message in answers if message.kind == b"E")

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    with scene.proxied.connect() as client:
        assert client.value("SELECT rank FROM language WHERE code = 'n'") == "48"


def test_a_client_that_leaves_in_the_middle_leaves_the_same_rows(scene: Scene) -> None:
    for asked in (query("UPDATE language SET rank = rank + 1"), extended("UPDATE language SET rank = rank + 1")):
        client = scene.proxied.connect()
        client.send(asked)
        client.abort()
    others = f"classid NOT IN (0, {ROUTER_CLASS})"  # than those of routers and the leader
    busy = f"SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ExclusiveLock' AND {others}"
    wait_until(lambda: all(scene.shards.query(busy, on=shard)[0][0] == 0 for shard in range(SHARD_COUNT)))
