"""Rows that an INSERT over several shards returns come in the order of its rows, whatever ON CONFLICT leaves out."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from tests.support.messages import SYNC, bind, describe_portal, execute, extended, parse, query
from tests.support.postgres import TestInstances
from tests.support.raw import transcript
from tests.support.twins import Twins, twins

SCHEMA = """
CREATE TABLE word (name text PRIMARY KEY, n integer DEFAULT 0, code uuid);
CREATE TABLE spot (hall text, place integer, day date, note text, PRIMARY KEY (hall, place));
CREATE TABLE line (id bigserial PRIMARY KEY, word text NOT NULL REFERENCES word, place integer, note text,
  UNIQUE (word, place));
CREATE TABLE member (name varchar(6) PRIMARY KEY, email text UNIQUE, n integer DEFAULT 0);
"""
TABLES = {
    "word": {"key": "name"},
    "spot": {"key": ["hall", "place"]},
    "line": {"key": "id", "parent": "word", "via": "word"},
    "member": {"key": "name", "unique": ["email"]},
}
# {rows} are seven rows made of the words behind it.
STATEMENTS = {
    "a key": ("INSERT INTO word (name, n) VALUES {rows} ON CONFLICT DO NOTHING RETURNING name, n", "'w{a}', {b}"),
    "every column": ("INSERT INTO word VALUES {rows} ON CONFLICT (name) DO NOTHING RETURNING *", "'w{a}', {b}, NULL"),
    "nothing of the key": (
        "INSERT INTO word (n, name) VALUES {rows} ON CONFLICT DO NOTHING RETURNING n * 2 AS twice; -- end",
        "{b}, 'w{a}'",
    ),
    "only some updated": (
        "INSERT INTO word (name, n) VALUES {rows} ON CONFLICT (name) DO UPDATE SET n = 1 + excluded.n"
        " WHERE word.n % 2 = 0 RETURNING name, word.n, 'a;b' /* ; */ ",
        "'w{each}', {b}",
    ),
    "a column of the conflict updated": (
        "INSERT INTO line (word, place, note) VALUES {rows} ON CONFLICT (word, place) DO UPDATE"
        " SET place = line.place + 100, note = line.note || line.place"
        " RETURNING word, place, note",
        "'w{c}', {each}, 'n{b}'",
    ),
    "a column of the conflict as it was sent": (
        "INSERT INTO line (word, place, note) VALUES {rows} ON CONFLICT (word, place) DO UPDATE"
        " SET place = excluded.place, note = 'again' WHERE line.note < 'n5' RETURNING word, place, note",
        "'w{c}', {each}, 'n{b}'",
    ),
    "all updated, more columns sent": (
        "INSERT INTO spot VALUES {rows} ON CONFLICT (hall, place) DO UPDATE SET note = spot.note || 'x'"
        " RETURNING place, hall, note",
        "'hall {c}', {each}, '2026-02-0{d}', 'note {b}'",
    ),
    "several columns": (
        "INSERT INTO spot VALUES {rows} ON CONFLICT (hall, place) DO NOTHING RETURNING place, hall, note",
        "'hall {c}', {d}, '2026-02-0{d}', 'note {b}'",
    ),
    "a child by a unique index": (
        "INSERT INTO line (word, place, note) VALUES {rows} ON CONFLICT (word, place) DO NOTHING RETURNING word, note",
        "'w{c}', {d}, 'n{b}'",
    ),
    "a child by no target": (
        "INSERT INTO line (place, word) VALUES {rows} ON CONFLICT DO NOTHING RETURNING place, word",
        "{d}, 'w{c}'",
    ),
    "a claimed column": (
        "INSERT INTO member (name, email) VALUES {rows} ON CONFLICT (email) DO NOTHING RETURNING name, email",
        "'m{each}{b}', 'e{d}'",
    ),
    "spaces at the end": (
        "INSERT INTO member (name) VALUES {rows} ON CONFLICT (name) DO NOTHING RETURNING name",
        "'name{d}   '",
    ),
}
EMPTYING = ("DELETE FROM line", "DELETE FROM word WHERE length(name) > 2 OR name = 'w9'", "DELETE FROM spot")


@pytest.fixture(scope="module")
def pair(test_instances: TestInstances, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twins]:
    with twins(test_instances, tmp_path_factory.mktemp("order"), SCHEMA, tables=TABLES) as made:
        with made.connect() as both:
            for connection in both:
                for number in range(1, 21):
                    connection.rows(f"INSERT INTO word (name) VALUES ('w{number}')")
        yield made


def rows_of(chance: random.Random, form: str, count: int = 7) -> list[str]:
    found = []
    for each in chance.sample(range(30), count):
        numbers = {"a": chance.randrange(30), "b": chance.randrange(100), "c": chance.randrange(1, 9)}
        found.append(form.format(d=chance.randrange(1, 6), each=each, **numbers))
    return found


def ask_both(pair: Twins, *messages: bytes) -> None:
    """Both answer the same, rows in one order, in one session."""
    rounds = sum(message[:1] in b"QS" for message in messages)
    with pair.connect() as both:
        answers: list[list[str]] = []
        for connection in both:
            connection.send(*messages)
            answers.append([line for _ in range(rounds) for line in transcript(connection.read_until())])
    assert answers[0] == answers[1], messages


@pytest.mark.parametrize("name", STATEMENTS)
def test_by_simple_query(pair: Twins, name: str) -> None:
    chance = random.Random(name)
    statement, form = STATEMENTS[name]
    for turn in range(8):
        rows = ", ".join(f"({row})" for row in rows_of(chance, form))
        ask_both(pair, query(statement.replace("{rows}", rows)))
        if turn % 3 == 2:
            for text in EMPTYING:
                ask_both(pair, query(text))


@pytest.mark.parametrize("formats", [(), (1,), (0, 1)])
def test_by_parameters(pair: Twins, formats: tuple[int, ...]) -> None:
    chance = random.Random(len(formats))
    rows = ", ".join(f"(${2 * n + 1}, ${2 * n + 2})" for n in range(6))
    text = f"INSERT INTO word (name, n) VALUES {rows} ON CONFLICT DO NOTHING RETURNING name, n"
    for turn in range(4):
        values = [b"%b%d" % (b"w" if n % 2 == 0 else b"", chance.randrange(40)) for n in range(12)]
        bound = bind(values, results=formats)
        ask_both(pair, parse(text), bound, execute(), SYNC)
        ask_both(pair, parse(text), bound, describe_portal(), execute(), SYNC)
        if turn == 2:
            ask_both(pair, query("DELETE FROM line"), query("DELETE FROM word WHERE name > 'w3'"))


def test_inside_transactions_and_by_prepared_statements(pair: Twins) -> None:
    ask_both(
        pair,
        query("BEGIN"),
        query("INSERT INTO word (name) VALUES ('x4'), ('x1'), ('x3'), ('x2') RETURNING name"),
        query("INSERT INTO word (name) VALUES ('x9'), ('x1'), ('x8'), ('x2') ON CONFLICT DO NOTHING RETURNING name"),
        parse("INSERT INTO word (name) VALUES ($1), ($2), ('x5') ON CONFLICT (name) DO NOTHING RETURNING name", "kept"),
        SYNC,
        bind([b"x6", b"x1"], name="kept"), describe_portal(), execute(), SYNC,
        bind([b"x11", b"x12"], name="kept"), execute(), SYNC,
        query("COMMIT"),
        query("SELECT count(*) FROM word WHERE name LIKE 'x%'"),
    )  # fmt: skip


def test_in_a_string_of_statements(pair: Twins) -> None:
    ask_both(
        pair,
        query(
            "INSERT INTO word (name) VALUES ('y4'), ('y1') RETURNING name;"
            "INSERT INTO word (name) VALUES ('y9'), ('y1'), ('y8'), ('y4') ON CONFLICT DO NOTHING RETURNING name;"
            "SELECT count(*) FROM word WHERE name LIKE 'y%'"
        ),
    )


def test_rows_that_nothing_tells_apart_come_shard_by_shard(pair: Twins) -> None:
    """DO UPDATE leaves some out, and changes what the others could be told by: each comes, in an order of its own."""
    names = [f"alike {word}" for word in range(8)]
    words = ", ".join(f"('{name}', {place}, 'told')" for name in names for place in (1, 2))
    text = (
        f"INSERT INTO line (word, place, note) VALUES {words} ON CONFLICT (word, place) DO UPDATE"
        " SET place = line.place * 2 + 1 WHERE line.place % 2 = 0 RETURNING word, place"
    )
    with pair.connect() as both:
        answers = []
        for connection in both:
            connection.rows("INSERT INTO word (name) VALUES " + ", ".join(f"('{name}')" for name in names))
            answers.append([sorted(connection.rows(text)) for _ in range(3)])
            connection.rows("DELETE FROM line WHERE word LIKE 'alike%'")
            connection.rows("DELETE FROM word WHERE name LIKE 'alike%'")
    assert answers[0] == answers[1]
    assert [len(rows) for rows in answers[0]] == [16, 8, 8]


def test_nothing_is_returned_where_every_row_is_there(pair: Twins) -> None:
    text = "INSERT INTO word (name) VALUES ('z1'), ('z2'), ('z3'), ('z4') ON CONFLICT DO NOTHING RETURNING name, n"
    ask_both(pair, query(text), query(text), extended(text), SYNC)
