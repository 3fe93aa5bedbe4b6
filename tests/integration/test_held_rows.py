"""A write of several shards gives its rows when all have done their part: an error comes alone, as PostgreSQL's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.messages import SYNC, bind, describe_portal, execute, extended, parse, query
from tests.support.postgres import TestInstances
from tests.support.raw import RawConnection
from tests.support.twins import Twins, comparable, twins

SCHEMA = """
CREATE TABLE word (name text PRIMARY KEY, n integer UNIQUE, other text);
CREATE TABLE country (code text PRIMARY KEY, n integer UNIQUE);
CREATE FUNCTION speak() RETURNS trigger LANGUAGE plpgsql AS
  $$ BEGIN RAISE NOTICE 'changed %', new.name; RETURN new; END $$;
CREATE TABLE loud (name text PRIMARY KEY, n integer);
CREATE TABLE turn (name text PRIMARY KEY, n integer);
CREATE TRIGGER speak BEFORE UPDATE ON loud FOR EACH ROW EXECUTE FUNCTION speak();
"""
TABLES = {
    "word": {"key": "name", "placement": "cost", "unique": ["n"]},
    "country": {"reference": True},
    "loud": {"key": "name"},
    "turn": {"key": "name"},
}
WORDS = 24
FAILING = {
    "one row of many": "UPDATE word SET other = 100 / (n - {n}) RETURNING name, other",
    "a key that is taken": "UPDATE word SET name = CASE n WHEN {n} THEN 'w1' ELSE name || 'z' END WHERE n > 1"
    " RETURNING name, n",
    "a claimed value that is taken": "UPDATE word SET n = CASE n WHEN {n} THEN 1 ELSE n + 1000 END WHERE n > 1"
    " RETURNING name, n",
    "a deletion": "DELETE FROM word WHERE n > 3 AND 1 / (n - {n}) < 5 RETURNING name",
    "an insertion": "INSERT INTO word (name, n) SELECT 'x' || g, g FROM generate_series(100, 120) AS g"
    " UNION ALL SELECT 'x', {n} RETURNING name",
    "rows of an insertion": "INSERT INTO word (name, n) VALUES ('x1', 101), ('x2', 102), ('x3', {n}), ('x4', 104)"
    " RETURNING name",
    "a key among rows": "INSERT INTO word (name, n) VALUES ('x1', 101), ('w{n}', 102), ('x3', 103), ('x4', 104)"
    " RETURNING name",
    "one row with a key": "INSERT INTO word (name, n) VALUES ('w{n}', 102) RETURNING name",
    "one row with a claimed value": "INSERT INTO word (name, n) VALUES ('x1', {n}) RETURNING name",
    "one row changed": "UPDATE word SET n = 1 WHERE name = 'w{n}' RETURNING name",
    "within": "WITH gone AS (DELETE FROM word WHERE n > 3 AND 1 / (n - {n}) < 5 RETURNING name, n)"
    " SELECT name, n FROM gone",
    "a reference table": "UPDATE country SET n = CASE n WHEN {n} THEN 1 ELSE n + 1000 END WHERE n > 1 RETURNING code",
}
# In a transaction of the client's, a value that another shard holds is told by COMMIT.
AT_COMMIT = {"a claimed value that is taken", "an insertion", "rows of an insertion", "one row with a claimed value",
             "one row changed"}  # fmt: skip


@pytest.fixture(scope="module")
def pair(test_instances: TestInstances, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twins]:
    with twins(test_instances, tmp_path_factory.mktemp("held"), SCHEMA, tables=TABLES) as made:
        with made.connect() as both:
            for connection in both:
                for table in ("word (name, n)", "country (code, n)", "loud (name, n)", "turn (name, n)"):
                    rows = ", ".join(f"('w{n}', {n})" for n in range(1, WORDS + 1))
                    connection.rows(f"INSERT INTO {table} VALUES {rows}")
        yield made


def ask_both(pair: Twins, *messages: bytes) -> list[str]:
    """What both answer, apart from the order of rows."""
    with pair.connect() as both:
        answers = [_answer(connection, messages) for connection in both]
    assert answers[0] == answers[1], messages
    return answers[0]


def _answer(connection: RawConnection, messages: tuple[bytes, ...]) -> list[str]:
    connection.send(*messages)
    rounds = sum(message[:1] in b"QS" for message in messages)
    return [line for _ in range(rounds) for line in comparable(connection.read_until())]


@pytest.mark.parametrize("name", FAILING)
def test_an_error_comes_before_any_row(pair: Twins, name: str) -> None:
    for number in (7, 13, 18, WORDS):
        text = FAILING[name].format(n=number)
        forms = [[query(text)], [extended(text), SYNC], [query(f"BEGIN; {text}; COMMIT")]]
        for messages in forms[: 2 if name in AT_COMMIT else 3]:
            lines = ask_both(pair, *messages)
            assert any(line.startswith("E") for line in lines), lines
            assert not any(line[0] in "D" for line in lines), lines
        if name not in AT_COMMIT:
            ask_both(pair, query("BEGIN"), extended(text), SYNC, query("ROLLBACK"))
        ask_both(pair, parse(text, "kept"), SYNC, bind([], name="kept"), describe_portal(), execute(), SYNC)
    ask_both(pair, query("SELECT name, n, other FROM word"), query("SELECT code, n FROM country"))


@pytest.mark.parametrize(
    "text",
    [
        "UPDATE word SET other = name || '!' RETURNING name, n, other",
        "WITH changed AS (UPDATE word SET other = 'w' RETURNING name, n) SELECT n, name FROM changed",
        "DELETE FROM word WHERE n > 20 RETURNING *",
        "DELETE FROM word WHERE n > 20 RETURNING name",
        "UPDATE country SET n = n + 100 RETURNING code, n",
    ],
)
def test_rows_come_with_their_description(pair: Twins, text: str) -> None:
    lines = ask_both(pair, query(text))
    assert lines[0][0] == "T"
    ask_both(pair, extended(text), SYNC, query(f"BEGIN; {text}; COMMIT"))
    ask_both(pair, parse(text), bind([], results=(1,)), describe_portal(), execute(), SYNC)


def test_notices_of_all_shards_come_before_the_rows(pair: Twins) -> None:
    for text in ("UPDATE loud SET n = n + 1 RETURNING name", "UPDATE loud SET n = n + 1"):
        with pair.connect() as both:
            for connection in both:
                connection.send(query(text))
                kinds = [message.kind for message in connection.read_until()]
                assert kinds.count(b"N") == WORDS
                assert b"D" not in kinds[: len(kinds) - kinds[::-1].index(b"N")]


def test_more_rows_than_are_held_come_as_they_are_made(pair: Twins) -> None:
    """Four times what is held, and none is lost."""
    text = "UPDATE loud SET n = n + 1 RETURNING name, repeat('x', 12000000)"
    with pair.connect() as both:
        for connection in both:
            rows = connection.rows(text)
            assert sorted(row[0] or b"" for row in rows) == sorted(b"w%d" % n for n in range(1, WORDS + 1))
            assert {len(row[1] or b"") for row in rows} == {12_000_000}


def test_keys_may_be_exchanged_where_one_postgres_goes_row_by_row(pair: Twins) -> None:
    text = f"UPDATE turn SET name = 'w' || n % {WORDS} + 1 RETURNING name, n"
    with pair.connect() as (proxied, direct):
        found = {(row[0], row[1]) for row in proxied.rows(text)}
        assert found == {(b"w%d" % (n % WORDS + 1), b"%d" % n) for n in range(1, WORDS + 1)}
        assert {(row[0], row[1]) for row in proxied.rows("SELECT name, n FROM turn")} == found
        direct.send(query(text))
        assert "23505" in {message.fields.get("C") for message in direct.read_until() if message.kind == b"E"}
