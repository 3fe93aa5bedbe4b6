"""MERGE, row locks, writes in WITH and foreign keys over several shards, told as one PostgreSQL tells it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

import pytest

from tests.support.messages import SYNC, extended, query
from tests.support.postgres import TestInstances
from tests.support.raw import Message, error_of, kinds
from tests.support.twins import Twins, comparable, twins

TABLES = """
CREATE TABLE colour (id integer PRIMARY KEY, name text);
CREATE TABLE item (code text PRIMARY KEY, note text, colour_id integer REFERENCES colour);
CREATE TABLE part (
  id bigserial PRIMARY KEY, child_id bigint NOT NULL REFERENCES child DEFERRABLE INITIALLY DEFERRED, tag text);
CREATE TABLE leaf (id bigserial PRIMARY KEY, root_id bigint NOT NULL REFERENCES root ON DELETE CASCADE, tag text);
INSERT INTO colour SELECT n, 'colour ' || n FROM generate_series(1, 9) AS n;
"""
DECLARED = {
    "item": {"key": "code"},
    "colour": {"reference": True},
    "part": {"key": "id", "parent": "child", "via": "child_id"},
    "leaf": {"key": "id", "parent": "root", "via": "root_id"},
}
EVERYTHING = (
    "SELECT tag, n FROM root",
    "SELECT root_id, tag FROM child",
    "SELECT root_id, tag FROM leaf",
    "SELECT tag FROM part",
    "SELECT * FROM item",
)


@pytest.fixture(scope="module")
def pair(test_instances: TestInstances, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twins]:
    folder = tmp_path_factory.mktemp("statements")
    with twins(test_instances, folder, schema=TABLES, tables=DECLARED, pool={"size": 4}) as made:
        yield made


@pytest.fixture(autouse=True)
def nothing_is_left(pair: Twins) -> Iterator[None]:
    """After each test: the same rows, no open and no prepared transaction."""
    yield
    pair.deployed.come_to_rest()
    with pair.connect() as (proxied, direct):
        found = [[sorted(client.rows(sql), key=str) for sql in EVERYTHING] for client in (proxied, direct)]
        for client in (proxied, direct):
            for table in ("part", "child", "leaf", "item"):
                client.query(f"DELETE FROM {table}")
            client.query("DELETE FROM root WHERE id > 60")
            client.query("UPDATE root SET tag = 'kept', n = id")
        assert found[0] == found[1]


CONVERSATIONS: dict[str, Sequence[str]] = {
    "merge by key": [
        "MERGE INTO root USING (VALUES ({a}, 'x')) AS s (id, tag) ON root.id = s.id "
        "WHEN MATCHED THEN UPDATE SET tag = s.tag WHEN NOT MATCHED THEN INSERT (id, tag) VALUES (s.id, s.tag)",
        "MERGE INTO root USING (SELECT 1001 AS id, 'new' AS tag) AS s ON root.id = s.id "
        "WHEN MATCHED THEN UPDATE SET tag = s.tag WHEN NOT MATCHED THEN INSERT (id, tag) VALUES (s.id, s.tag)",
        "MERGE INTO root USING (SELECT 1001 AS id, 'newer' AS tag) AS s ON root.id = s.id "
        "WHEN MATCHED THEN UPDATE SET tag = s.tag WHEN NOT MATCHED THEN INSERT (id, tag) VALUES (s.id, s.tag) "
        "RETURNING merge_action(), root.id, root.tag",
        "SELECT id, tag FROM root WHERE id IN (1001, {a})",
        "MERGE INTO item USING (VALUES ('k', 'v')) AS s ON item.code = s.column1 "
        "WHEN NOT MATCHED THEN INSERT VALUES (s.column1, s.column2)",
    ],
    "merge of rows that live together": [
        "INSERT INTO leaf (root_id, tag) SELECT id, 'l' || n FROM root WHERE n % 2 = 0",
        "MERGE INTO child USING leaf ON child.root_id = leaf.root_id WHEN MATCHED THEN UPDATE SET tag = leaf.tag "
        "WHEN NOT MATCHED THEN INSERT (root_id, tag) VALUES (leaf.root_id, leaf.tag)",
        "MERGE INTO child USING (SELECT id AS r, tag || n AS t FROM root WHERE n < 30) AS s ON child.root_id = s.r "
        "WHEN MATCHED AND s.r % 4 = 0 THEN DELETE WHEN MATCHED THEN UPDATE SET tag = s.t "
        "WHEN NOT MATCHED THEN INSERT (root_id, tag) VALUES (s.r, t) RETURNING merge_action(), child.root_id",
        "MERGE INTO child USING root ON child.root_id = root.id AND root.n < 10 WHEN NOT MATCHED BY SOURCE THEN DELETE",
        "MERGE INTO leaf USING colour ON leaf.tag = 'l' || colour.id WHEN MATCHED THEN UPDATE SET tag = colour.name",
        "MERGE INTO leaf USING colour ON leaf.tag = colour.name WHEN NOT MATCHED BY SOURCE THEN DELETE",
        "MERGE INTO leaf USING root ON leaf.root_id = root.id WHEN MATCHED THEN UPDATE SET tag = 1 / (n - 2)",
        "SELECT root_id, tag FROM child",
    ],
    "locks": [
        "SELECT * FROM root FOR UPDATE",
        "SELECT id FROM root WHERE n > 50 FOR NO KEY UPDATE OF root",
        "SELECT tag, n FROM root WHERE id IN ({a}, {b}, {d}) FOR KEY SHARE NOWAIT",
        "SELECT tag, n FROM root ORDER BY n DESC FOR UPDATE",
        "SELECT tag, n FROM root ORDER BY n DESC LIMIT 5 FOR SHARE",
        "SELECT r.n FROM root r JOIN child c ON c.root_id = r.id ORDER BY r.n FOR UPDATE OF r SKIP LOCKED",
        "SELECT n FROM root WHERE n > 1000 FOR UPDATE",
        "SELECT count(*) FROM root FOR UPDATE",
        *("BEGIN", "SELECT tag FROM root FOR UPDATE", "UPDATE root SET n = n + 1", "SAVEPOINT s"),
        *("SELECT tag FROM root WHERE 1 / (n - 7) < 2 FOR UPDATE", "ROLLBACK TO s", "COMMIT"),
    ],
    "writes in WITH": [
        "WITH c AS (INSERT INTO child (root_id, tag) VALUES ({a}, 'w') RETURNING root_id, tag) SELECT * FROM c",
        "WITH c AS (DELETE FROM child WHERE root_id = {a} RETURNING *) "
        "INSERT INTO leaf (root_id, tag) SELECT root_id, tag || '!' FROM c RETURNING root_id, tag",
        "WITH u AS (UPDATE root SET tag = 'u' WHERE id = {b} RETURNING id) "
        "UPDATE leaf SET tag = 'v' WHERE root_id = {b}",
        "WITH l AS (DELETE FROM leaf WHERE root_id = {a}), c AS (DELETE FROM child WHERE root_id = {a}) SELECT 1",
        "WITH r AS (INSERT INTO root (tag, n) VALUES ('placed', 1) RETURNING id), "
        "c AS (INSERT INTO child (root_id, tag) SELECT id, 'of placed' FROM r RETURNING id) "
        "INSERT INTO part (child_id, tag) SELECT id, 'of child' FROM c",
        "WITH r AS (INSERT INTO root (tag) VALUES ('second') RETURNING id, tag) "
        "INSERT INTO leaf (root_id, tag) VALUES ((SELECT id FROM r), 'leaf') RETURNING tag",
        "SELECT r.tag, c.tag, p.tag FROM root r JOIN child c ON c.root_id = r.id JOIN part p ON p.child_id = c.id",
        "SELECT r.tag, l.tag FROM root r JOIN leaf l ON l.root_id = r.id",
        "DELETE FROM part",
        "DELETE FROM root WHERE tag IN ('placed', 'second')",
    ],
    "other tables beside": [
        "INSERT INTO leaf (root_id, tag) SELECT id, 'l' || n FROM root WHERE n < 20",
        "UPDATE root SET tag = l.tag FROM leaf l WHERE l.root_id = root.id AND l.tag > 'l5' RETURNING root.id, l.tag",
        "UPDATE leaf SET tag = c.name FROM colour c WHERE leaf.tag = 'l' || c.id",
        "DELETE FROM leaf USING root r WHERE r.id = leaf.root_id AND r.n % 3 = 0",
        "DELETE FROM leaf WHERE tag IN (SELECT name FROM colour WHERE id < 4) RETURNING tag",
        "UPDATE root SET n = (SELECT count(*) FROM leaf WHERE leaf.root_id = root.id)",
        "DELETE FROM leaf USING root r, colour c WHERE r.id = leaf.root_id AND r.n = 1 AND c.name = leaf.tag",
        "UPDATE root SET tag = 'k' WHERE id IN ({a}, {b}, {c}, {d})",
        "SELECT tag, n FROM root",
    ],
    "foreign keys": [
        "INSERT INTO child (root_id, tag) VALUES ({a}, 'x'), (5000, 'orphan'), ({b}, 'y')",
        "INSERT INTO child (root_id, tag) VALUES ({a}, 'x'), ({b}, 'y'), ({d}, 'z')",
        "INSERT INTO item VALUES ('a', 'x', 1), ('b', 'y', 2), ('c', 'z', 99), ('d', 'w', 3)",
        "INSERT INTO item VALUES ('a', 'x', 1), ('b', 'y', 2), ('c', 'z', 9), ('d', 'w', 3)",
        "UPDATE item SET colour_id = 77 WHERE code IN ('a', 'b', 'c', 'd')",
        "DELETE FROM colour WHERE id = 2",
        "INSERT INTO part (child_id, tag) SELECT id, tag FROM child",
        *("BEGIN", "DELETE FROM child WHERE root_id = {a}", "DELETE FROM part WHERE tag = 'x'", "COMMIT"),
        *("BEGIN", "DELETE FROM child WHERE root_id = {b}", "SELECT tag FROM part", "COMMIT", "SELECT tag FROM child"),
        *("BEGIN", "DELETE FROM child", "SELECT tag FROM part", "COMMIT", "SELECT tag FROM child"),
        *("BEGIN", "DELETE FROM child", "DELETE FROM part", "COMMIT"),
        "INSERT INTO leaf (root_id, tag) SELECT id, 'l' FROM root WHERE id IN ({a}, {b}, {c}, {d})",
        "DELETE FROM root WHERE id IN (1001, 1002)",
        *("BEGIN", "DELETE FROM root WHERE id IN ({a}, {b})", "SELECT root_id, tag FROM child"),
        *("SELECT root_id, tag FROM leaf", "ROLLBACK", "SELECT root_id, tag FROM leaf"),
    ],
}


@pytest.mark.parametrize("by_extended", [False, True], ids=["simple", "extended"])
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_statement_answers_as_one_postgresql(pair: Twins, name: str, by_extended: bool) -> None:
    with pair.connect() as (proxied, direct):
        for text in CONVERSATIONS[name]:
            sql = pair.fill_in(text)
            asked = extended(sql) + SYNC if by_extended else query(sql)
            told, expected = proxied.ask(asked), direct.ask(asked)
            if " ORDER BY " in sql:
                assert [one.body for one in told if one.kind == b"D"] == [
                    one.body for one in expected if one.kind == b"D"
                ], sql
            assert answer(told) == answer(expected), sql


def answer(told: list[Message]) -> list[str]:
    """The lines less rows before an error, and less the row that it is about: which comes first is open."""
    lines = [
        " | ".join(part for part in line.split(" | ") if part[0] != "D" or line[0] != "E") for line in comparable(told)
    ]
    failed = any(line[0] == "E" for line in lines)
    return [line for line in lines if not (failed and line[0] == "D")]


def test_locked_rows_of_all_shards_are_refused_to_others_or_left_out(pair: Twins) -> None:
    with pair.deployed.server.connect() as first, pair.deployed.server.connect() as second:
        first.query("BEGIN")
        assert len(first.rows("SELECT id FROM root FOR UPDATE")) == 60
        assert error_of(second.query("SELECT id FROM root FOR UPDATE NOWAIT"))["C"] == "55P03"
        assert second.rows("SELECT id FROM root FOR UPDATE SKIP LOCKED") == []
        assert second.rows("SELECT id FROM root ORDER BY n FOR SHARE SKIP LOCKED") == []
        assert error_of(second.query("SELECT id FROM root LIMIT 1 FOR UPDATE SKIP LOCKED"))["C"] == "0A000"
        first.query("COMMIT")
        assert len(second.rows("SELECT id FROM root FOR UPDATE NOWAIT")) == 60


def test_lockers_of_all_shards_never_wait_for_each_other_in_a_ring(pair: Twins) -> None:
    failures: list[str] = []

    def lock_all() -> None:
        with pair.deployed.server.connect() as client:
            for turn in range(12):
                answers = client.query("BEGIN") + client.query("SELECT id FROM root FOR UPDATE")
                answers += client.query(f"UPDATE root SET n = {turn} WHERE id < 4") + client.query("COMMIT")
                failures.extend(message.fields["C"] for message in answers if message.kind == b"E")

    threads = [threading.Thread(target=lock_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    with pair.connect() as (_, direct):
        direct.query("UPDATE root SET n = 11 WHERE id < 4")


def test_deleting_parents_takes_their_children_on_every_shard(pair: Twins) -> None:
    keys = pair.fill_in("{a}, {b}, {d}")
    with pair.connect() as both:
        for client in both:
            client.query(f"INSERT INTO child (root_id, tag) SELECT id, 'c' FROM root WHERE id IN ({keys})")
            client.query(f"INSERT INTO leaf (root_id, tag) SELECT id, 'l' FROM root WHERE id IN ({keys})")
            client.query("BEGIN")
            assert kinds(client.query(f"DELETE FROM root WHERE id IN ({keys})")) == "CZ"
            assert client.rows("SELECT id FROM child") == client.rows("SELECT id FROM leaf") == []
            client.query("ROLLBACK")


@pytest.mark.parametrize("form", [query, lambda sql: extended(sql) + SYNC])
def test_a_setting_is_told_once_however_many_shards_follow_it(pair: Twins, form: Callable[[str], bytes]) -> None:
    texts = [
        *("SET TimeZone = 'Asia/Tokyo'", "SELECT count(*) FROM root", "SELECT id FROM root ORDER BY id LIMIT 3"),
        *("SET DateStyle = 'German'", "UPDATE root SET n = n", "SELECT n FROM root WHERE id = {a}"),
        *("SELECT n FROM root WHERE id = {d}", "BEGIN", "SET LOCAL IntervalStyle = 'iso_8601'"),
        *("SELECT n FROM root WHERE id IN ({a}, {b}, {d}) ORDER BY n", "COMMIT", "SELECT sum(n) FROM root"),
        *("BEGIN", "SET TimeZone = 'UTC'", "SELECT max(n) FROM root", "ROLLBACK", "RESET ALL"),
        "SELECT min(n) FROM root",
    ]
    told: list[list[tuple[str, bytes]]] = []
    with pair.connect() as both:
        for connection in both:
            answers = [(text, connection.ask(form(pair.fill_in(text)))) for text in texts]
            told.append([(text, each.body) for text, answer in answers for each in answer if each.kind == b"S"])
    assert told[0] == told[1]
