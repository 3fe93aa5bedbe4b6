"""Tables with keys that clients give, of every type, answer over three shards as one PostgreSQL does.

The same statements go to both, as literals in the simple protocol and as parameters in text and binary format. What the
proxy answers with 0A000 is counted by kind and not sent to the reference.
"""

from __future__ import annotations

import random
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta, timezone
from typing import NamedTuple

import psycopg
import pytest

from tests.support.postgres import Shards, TestInstances
from tests.support.proxy import Proxy
from tests.support.servers import Pair, Server

STATEMENTS = 160
REFUSED = "0A000"
TEXTS = ["a", "A", "a ", " a", "é", "日本語", "it's", "''", "\\", "a\\b", "", "NULL", "{x}", "x" * 300, '"', "%s"]
SHORT = ["a", "b ", "c  ", "d      ", "éééé", "ééééé", "toolong", "    ", "x'y"]
EPOCH = datetime(2000, 1, 1, 12, 30, 15, 123456)


def zoned(number: int) -> datetime:
    return (EPOCH + timedelta(hours=number)).replace(tzinfo=timezone(timedelta(minutes=30 * (number % 9 - 4))))


KEYS: dict[str, Callable[[int], object]] = {
    "text": lambda number: TEXTS[number % len(TEXTS)],
    "varchar": lambda number: TEXTS[-1 - number % len(TEXTS)],
    "varchar(4)": lambda number: SHORT[number % len(SHORT)],
    "uuid": lambda number: uuid.UUID(int=number << 64 | (8 if number % 2 else 4) << 76 | 2 << 62),
    "integer": lambda number: (number - 6) * 1_000_003,
    "smallint": lambda number: (number - 6) * 1_003,
    "bigint": lambda number: (number - 6) * 10**11,
    "bytea": lambda number: bytes(range(number * 7, number * 7 + number % 6)),
    "date": lambda number: date(2000, 1, 1) + timedelta(days=(number - 6) * 321),
    "timestamp": lambda number: EPOCH + timedelta(seconds=(number - 6) * 12345),
    "timestamptz": zoned,
}
SCHEMA = "".join(
    f"""
    CREATE TABLE root{number} (id {name} PRIMARY KEY, n integer NOT NULL DEFAULT 0);
    CREATE TABLE child{number} (id bigserial PRIMARY KEY, root_id {name} NOT NULL REFERENCES root{number}, tag text);
    """
    for number, name in enumerate(KEYS)
)
TABLES = {f"{name}{number}": {"key": "id"} for number in range(len(KEYS)) for name in ("root", "child")}


class World(NamedTuple):
    sides: Pair
    shards: Shards


@pytest.fixture(scope="module")
def world(test_instances: TestInstances, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The reference database, and the proxy over three shards."""
    shards, reference = test_instances.create(3), test_instances.create(1)
    shards.execute(SCHEMA)
    reference.execute(SCHEMA)
    with Proxy(shards.dsns, tmp_path_factory.mktemp("keys"), tables=TABLES, workers={"per_shard": 0}) as proxy:
        yield World(Pair(Server.of_dsn(reference.dsns[0]), proxy.server), shards)
    test_instances.drop(shards)
    test_instances.drop(reference)


def draw(chance: random.Random, table: int, make: Callable[[int], object]) -> tuple[str, list[object]]:
    """A statement about a key or two, and its values."""
    key, other = make(chance.randrange(12)), make(chance.randrange(12))
    root, child = f"root{table}", f"child{table}"
    childless = f"NOT EXISTS (SELECT FROM {child} c WHERE c.root_id = {root}.id)"
    statements: list[tuple[str, list[object]]] = [
        (f"INSERT INTO {root} (id, n) VALUES (%s, 1) RETURNING *", [key]),
        (f"INSERT INTO {root} (id, n) VALUES (%s, 1) ON CONFLICT (id) DO UPDATE SET n = {root}.n + 1", [key]),
        (f"INSERT INTO {root} VALUES (%s, 5) ON CONFLICT DO NOTHING RETURNING n", [key]),
        (f"INSERT INTO {child} (root_id, tag) VALUES (%s, 'x') RETURNING root_id, tag", [key]),
        (f"SELECT * FROM {root} WHERE id = %s", [key]),
        (f"SELECT n, id FROM {root} WHERE id IN (%s, %s)", [key, other]),
        (f"SELECT * FROM {root} WHERE id = ANY(%s)", [[key, other]]),
        (f"SELECT * FROM {root} WHERE id = %s OR id = %s", [key, other]),
        (f"SELECT r.n, c.tag FROM {root} r LEFT JOIN {child} c ON c.root_id = r.id WHERE r.id = %s", [key]),
        (f"SELECT count(*) FROM {child} WHERE root_id = %s", [key]),
        (f"SELECT root_id, tag FROM {child}", []),
        (f"UPDATE {root} SET n = n + 1 WHERE id = %s RETURNING n", [key]),
        (f"UPDATE {child} SET tag = tag || 'y' WHERE root_id = %s", [key]),
        *[(f"UPDATE {root} SET id = %s, n = n + 2 WHERE id = %s AND {childless} RETURNING n, id", [key, other])] * 2,
        (f"DELETE FROM {child} WHERE root_id = %s", [key]),
        (f"DELETE FROM {root} WHERE id = %s AND n > 1", [key]),
        (f"SELECT * FROM {root} WHERE id = %s FOR UPDATE", [key]),
    ]
    return chance.choice(statements)


def ask(connection: psycopg.Connection, form: str, sql: str, values: list[object]) -> tuple[str, object]:
    """SQLSTATE, and tag with rows."""
    cursor: psycopg.Cursor[tuple[object, ...]]
    cursor = psycopg.ClientCursor(connection) if form == "literals" else connection.cursor(binary=form == "binary")
    try:
        cursor.execute(sql.encode(), values)
    except psycopg.Error as error:
        return error.sqlstate or "", None
    rows = sorted(map(repr, cursor.fetchall())) if cursor.description else []
    return "", (cursor.statusmessage, rows)


@pytest.mark.parametrize("name", list(KEYS))
def test_random_statements_answer_as_one_postgres(world: World, name: str) -> None:
    number = list(KEYS).index(name)
    chance = random.Random(number)
    refused: Counter[str] = Counter()
    compared = 0
    with (
        psycopg.connect(world.sides.direct.dsn, autocommit=True) as reference,
        psycopg.connect(world.sides.proxied.dsn, autocommit=True) as proxied,
    ):
        for _ in range(STATEMENTS):
            sql, values = draw(chance, number, KEYS[name])
            form = chance.choice(["literals", "text", "binary"])
            found = ask(proxied, form, sql, values)
            if found[0] == REFUSED:
                refused[sql] += 1
                # An escaped literal of a key says nothing to the planner.
                assert form == "literals", (sql, values, form)
                assert "\\" in str(values), (sql, values)
                continue
            assert found == ask(reference, form, sql, values), (sql, values, form)
            compared += 1
        left = [side.execute(f"SELECT * FROM root{number}".encode()).fetchall() for side in (reference, proxied)]
    assert sorted(map(repr, left[0])) == sorted(map(repr, left[1]))
    assert compared > STATEMENTS * 0.9, refused


@pytest.mark.parametrize("name", list(KEYS))
def test_every_row_lies_where_its_key_says(world: World, name: str) -> None:
    number = list(KEYS).index(name)
    with psycopg.connect(world.sides.proxied.dsn, autocommit=True) as proxied:
        for key in {KEYS[name](number) for number in range(12)}:
            ask(proxied, "binary", f"INSERT INTO root{number} (id, n) VALUES (%s, 1)", [key])
    owners = [owner for (owner,) in world.shards.query("SELECT shard FROM foreshard.bucket_map ORDER BY bucket")]
    buckets = [
        (shard, bucket)
        for shard in range(3)
        for (bucket,) in world.shards.query(f"SELECT foreshard.bucket_of(id) FROM root{number}", on=shard)
    ]
    assert buckets
    assert [shard for shard, _ in buckets] == [owners[int(str(bucket))] for _, bucket in buckets]


MALFORMED = [
    ("uuid", "not a uuid", "22P02"),
    ("integer", "99999999999", "22003"),
    ("smallint", "x", "22P02"),
    ("bytea", "\\xabc", "22023"),
    ("bytea", "\\xzz", "22023"),
    ("bytea", "\\q", "22P02"),
    ("date", "2026-02-30", "22008"),
    ("timestamp", "2026-13-01", "22008"),
]


@pytest.mark.parametrize(("name", "text", "sqlstate"), MALFORMED)
def test_a_malformed_key_is_told_as_postgres_tells_it(world: World, name: str, text: str, sqlstate: str) -> None:
    number = list(KEYS).index(name)
    for sql in (f"SELECT * FROM root{number} WHERE id = %s", f"INSERT INTO root{number} (id) VALUES (%s)"):
        for side in world.sides:
            with psycopg.connect(side.dsn, autocommit=True) as connection:
                assert ask(connection, "text", sql, [text]) == (sqlstate, None)


def test_a_date_as_people_write_it_is_found_and_not_inserted_by_guess(world: World) -> None:
    number = list(KEYS).index("date")
    with psycopg.connect(world.sides.proxied.dsn, autocommit=True) as connection:
        connection.execute(f"INSERT INTO root{number} VALUES ('2031-07-04', 1)".encode())
        found = connection.execute(f"SELECT n FROM root{number} WHERE id = 'July 4, 2031'".encode()).fetchall()
        assert found == [(1,)]
        assert ask(connection, "text", f"INSERT INTO root{number} VALUES (%s, 1)", ["July 5, 2031"])[0] == REFUSED
