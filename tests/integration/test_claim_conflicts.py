"""ON CONFLICT on tables with columns that are unique over all shards: as in one PostgreSQL, or refused."""

from __future__ import annotations

import concurrent.futures
import datetime
import random
import re
from collections.abc import Iterator
from typing import LiteralString, NamedTuple, cast

import psycopg
import pytest

from tests.support.postgres import TestInstances
from tests.support.proxy import Proxy
from tests.support.verified import assert_verified

SCHEMA = """
CREATE TABLE account (name text PRIMARY KEY, code integer UNIQUE, note text, UNIQUE (note, name));
CREATE TABLE member (id bigserial PRIMARY KEY, email varchar(12) UNIQUE, day date UNIQUE, n integer DEFAULT 0);
CREATE TABLE seat (id bigserial PRIMARY KEY, hall varchar(8), place integer, n integer DEFAULT 0, UNIQUE (hall, place));
CREATE TABLE parcel (code text PRIMARY KEY, label text UNIQUE, place integer, row integer, n integer DEFAULT 0,
  UNIQUE (place, row));
CREATE TABLE wrap (id bigserial PRIMARY KEY, code text NOT NULL REFERENCES parcel ON DELETE CASCADE, tag text UNIQUE,
  n integer DEFAULT 0);
CREATE TABLE letter (code text PRIMARY KEY, name text NOT NULL REFERENCES account, n integer DEFAULT 0);
"""
TABLES = {
    "account": {"key": "name", "unique": ["code"]},
    "member": {"key": "id", "unique": ["email", "day"]},
    "seat": {"key": "id", "unique": ["hall, place"]},
    "letter": {"key": "code", "unique": ["code"]},
    "parcel": {"key": "code", "placement": "cost", "unique": ["label", "place, row"]},
    "wrap": {"key": "id", "parent": "parcel", "via": "code", "unique": ["tag"]},
}
# Sends parcels to each shard in turn: two of three away from home.
SECTIONS = {
    "placement": {"policy": "least-loaded"},
    "triggers": {
        "weigh": {"table": "parcel", "on": ["insert"], "function": "functions:weigh", "profile": {"cpu": "5ms"}}
    },
}
STATEMENTS = [
    "INSERT INTO account (name, code) VALUES ('{n}', {c}) ON CONFLICT (name) DO NOTHING",
    "INSERT INTO account (name, code) VALUES ('{n}', {c}) ON CONFLICT (name) DO UPDATE SET code = excluded.code"
    " RETURNING *",
    "INSERT INTO account (name, code) VALUES ('{n}', {c}) ON CONFLICT ON CONSTRAINT account_pkey DO UPDATE"
    " SET note = 'again' WHERE account.code <> 3 RETURNING *",
    "INSERT INTO account VALUES ('{n}', {c}, 'x') ON CONFLICT (note, name) DO UPDATE SET code = NULL",
    "INSERT INTO account VALUES ('{n}', {c}), ('{m}', {d}) ON CONFLICT (name) DO UPDATE SET note = 'both'",
    "INSERT INTO account VALUES ('{n}', {c}) ON CONFLICT (code) DO NOTHING",
    "INSERT INTO account VALUES ('{n}', {c}) ON CONFLICT (code) DO UPDATE SET note = 'taken' RETURNING *",
    "INSERT INTO account VALUES ('{n}', {c}) ON CONFLICT DO NOTHING",
    "INSERT INTO account VALUES ('{n}', NULL, 'x') ON CONFLICT (code) DO UPDATE SET note = 'taken'",
    "INSERT INTO account VALUES ('{n}', {c}), ('{m}', {d}) ON CONFLICT (code) DO NOTHING",
    "INSERT INTO member (email, n) VALUES ('{n}', 1) ON CONFLICT (email) DO UPDATE SET n = member.n + 1 RETURNING n",
    "INSERT INTO member (email, day) VALUES ('{n}', '2026-02-0{x}') ON CONFLICT DO NOTHING RETURNING email",
    "INSERT INTO member (email, day) VALUES ('{n}', '2026-02-0{x}') ON CONFLICT (day) DO UPDATE SET n = 7 RETURNING n",
    "INSERT INTO member (email) VALUES ('{n}   ') ON CONFLICT (email) DO NOTHING",
    "INSERT INTO member (email) VALUES (upper('{n}')) ON CONFLICT (email) DO NOTHING",
    "INSERT INTO member (email, n) VALUES ('name ' || {c} + {d} / 2, {c}), ('{m}', 2), (substr('{n}', 1), 1 + 2)"
    " ON CONFLICT (email) DO UPDATE SET n = member.n + excluded.n WHERE member.n < 50 RETURNING email, n",
    "INSERT INTO account VALUES ('{n}', 2 * {c} - 3), (lower('{m}'), {d}) ON CONFLICT (code) DO NOTHING RETURNING *",
    "INSERT INTO seat (hall, place) VALUES ('h\"\\ {x}', {c} + 1), (NULL, 3) ON CONFLICT DO NOTHING RETURNING n",
    "INSERT INTO account VALUES ('{n}', {c}), ('{m}', {d}) ON CONFLICT (code) DO UPDATE SET note = 'two' RETURNING *",
    "INSERT INTO account VALUES ('{n}', {c}, 'q'), ('{m}', {c}, 'q') ON CONFLICT (code) DO NOTHING RETURNING *",
    "INSERT INTO account VALUES ('{n}', {c}), ('{m}', NULL), ('{n}s', {d}) ON CONFLICT DO NOTHING RETURNING *",
    "INSERT INTO account VALUES ('{n}', {c}), ('{m}', {d}) ON CONFLICT (code) DO UPDATE SET code = 9",
    "INSERT INTO member (email, n) VALUES ('{n}', 1), ('{m}', 2), ('{n}', 3) ON CONFLICT (email) DO NOTHING"
    " RETURNING email, n",
    "INSERT INTO member (n, email) VALUES (1, '{n}'), (2, '{m}'), (3, NULL) ON CONFLICT (email) DO UPDATE"
    " SET n = member.n + excluded.n, email = excluded.email RETURNING n, email",
    "INSERT INTO member (email) VALUES ('{n}'), ('{m}'), ('{n} ') ON CONFLICT (email) DO UPDATE SET n = 8",
    "INSERT INTO member (email, day) VALUES ('{n}', '2026-02-0{x}'), ('{m}', '2026-02-01'), ('{n}', '2026-02-04')"
    " ON CONFLICT DO NOTHING RETURNING email, day",
    "INSERT INTO letter VALUES ('l{c}', '{n}'), ('l{d}', '{m}') ON CONFLICT (code) DO UPDATE SET n = 5 RETURNING *",
    "INSERT INTO member (email, n) SELECT name, code FROM account WHERE code < 3 ON CONFLICT (email) DO UPDATE"
    " SET n = member.n + 1 RETURNING email, n",
    "INSERT INTO account SELECT email, n FROM member WHERE n BETWEEN 1 AND 3 AND email LIKE 'name%' ORDER BY email, n"
    " ON CONFLICT DO NOTHING RETURNING *",
    "INSERT INTO seat (hall, place) VALUES ('h\"\\ {x}', {c}), (NULL, 3), ('h\"\\ {x}  ', {d})"
    " ON CONFLICT (hall, place) DO UPDATE SET n = seat.n + 1 RETURNING hall, place, n",
    "INSERT INTO seat (hall, place) VALUES ('h\"\\ {x}', {c}) ON CONFLICT DO NOTHING",
    "INSERT INTO seat (hall, place) SELECT email, n FROM member WHERE length(email) < 8 ON CONFLICT DO NOTHING",
    "INSERT INTO parcel VALUES ('p{c}', '{n}')",
    "INSERT INTO parcel VALUES ('p{c}', '{n}', {d}, {x}) ON CONFLICT (code) DO UPDATE SET n = parcel.n + 1 RETURNING *",
    "INSERT INTO parcel VALUES ('p{c}', '{n}') ON CONFLICT (label) DO NOTHING RETURNING code",
    "INSERT INTO parcel VALUES ('p{c}', '{n}') ON CONFLICT (label) DO UPDATE SET n = parcel.n + 1 RETURNING code, n",
    "INSERT INTO parcel VALUES ('p{c}', '{n}', {d}, {x}) ON CONFLICT DO NOTHING",
    "INSERT INTO parcel VALUES ('p{c}', '{n}', {d}, {x}) ON CONFLICT (row, place) DO UPDATE SET n = 3 RETURNING code",
    "INSERT INTO parcel (code, label) VALUES ('p{c}', '{n}'), ('p{d}', '{m}'), ('p{c}{d}', NULL)"
    " ON CONFLICT (label) DO UPDATE SET n = parcel.n + 10 RETURNING code, label, n",
    "INSERT INTO parcel (code, label) VALUES ('p{c}', '{n}'), ('p{d}{x}', '{m}'), ('p{d}{c}', '{n}')"
    " ON CONFLICT (label) DO NOTHING RETURNING label",
    "INSERT INTO parcel (label, code) VALUES ('{n}', 'p{c}'), ('{m}', 'p{d}{x}') ON CONFLICT DO NOTHING RETURNING code",
    "INSERT INTO parcel (code, label) VALUES ('p' || {c}, upper('{n}')) ON CONFLICT (label) DO UPDATE SET n = 9",
    "INSERT INTO wrap (code, tag) VALUES ('p{c}', 't{x}') ON CONFLICT (tag) DO UPDATE SET n = wrap.n + 1 RETURNING n",
    "INSERT INTO wrap (code, tag) VALUES ('p{c}', 't{x}'), ('p{d}', 't{c}') ON CONFLICT (tag) DO NOTHING RETURNING tag",
    "UPDATE parcel SET label = '{m}' WHERE code = 'p{c}'",
    "UPDATE parcel SET label = NULL WHERE label = '{m}'",
    "DELETE FROM parcel WHERE code = 'p{c}'",
    "DELETE FROM parcel WHERE label = '{n}'",
    "DELETE FROM wrap WHERE tag = 't{x}'",
    "DELETE FROM seat WHERE place = {c}",
    "DELETE FROM member WHERE email = '{n}'",
    "UPDATE member SET email = NULL WHERE email = '{n}'",
    "INSERT INTO letter VALUES ('l{c}', '{n}') ON CONFLICT (code) DO UPDATE SET n = letter.n + 1 RETURNING *",
    "INSERT INTO letter VALUES ('l{c}', '{n}') ON CONFLICT DO NOTHING",
    "DELETE FROM letter WHERE code = 'l{c}'",
    "INSERT INTO account VALUES ('{n}', {c})",
    "UPDATE account SET code = {c} WHERE name = '{n}'",
    "DELETE FROM account WHERE name = '{n}'",
]


UPSERTS = [
    *(text for text in STATEMENTS if "member" in text and "(day)" not in text and "upper" not in text),
    # Of others it is told at COMMIT that a value is taken.
    *(text for text in STATEMENTS if " parcel " in text and re.search("[(]label[)]|NOTHING|DELETE", text)),
    "INSERT INTO letter VALUES ('l{c}', 'kept') ON CONFLICT (code) DO UPDATE SET n = letter.n + 1 RETURNING *",
    "DELETE FROM letter WHERE code = 'l{c}'",
]  # fmt: skip
EVERYTHING = (
    "SELECT * FROM account",
    "SELECT email, day, n FROM member",
    "SELECT hall, place, n FROM seat",
    "SELECT * FROM letter",
    "SELECT * FROM parcel",
    "SELECT code, tag, n FROM wrap",
)


class World(NamedTuple):
    proxied: psycopg.Connection
    direct: psycopg.Connection
    dsn: str

    def both(self, text: str, values: tuple[object, ...] | None = None) -> bool:
        """Whether the proxy answered; then as one PostgreSQL does."""
        found = answer(self.proxied, text, values)
        if found[1] == "0A000":
            return False
        assert found == answer(self.direct, text, values), text
        return True


def answer(connection: psycopg.Connection, text: str, values: tuple[object, ...] | None = None) -> tuple[object, ...]:
    try:
        cursor = connection.execute(cast(LiteralString, text), values)
    except psycopg.Error as error:
        return None, error.sqlstate
    return (sorted(cursor.fetchall(), key=repr) if cursor.description else None), cursor.statusmessage


@pytest.fixture(scope="module")
def world(test_instances: TestInstances, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    shards, reference = test_instances.create(3), test_instances.create(1)
    shards.execute(SCHEMA)
    reference.execute(SCHEMA)
    folder = tmp_path_factory.mktemp("conflicts")
    with Proxy(shards.dsns, folder, tables=TABLES, workers={"per_shard": 0}, **SECTIONS) as proxy:
        with (
            psycopg.connect(proxy.server.dsn, autocommit=True) as proxied,
            psycopg.connect(reference.dsns[0], autocommit=True) as direct,
        ):
            yield World(proxied, direct, proxy.server.dsn)
        assert_verified(proxy.configuration)
    test_instances.drop(shards)
    test_instances.drop(reference)


def fill_in(chance: random.Random, statement: str) -> str:
    one, two = chance.sample(range(8), 2)
    numbers = {"c": chance.randrange(6), "d": chance.randrange(6), "x": chance.randrange(1, 5)}
    return statement.format(n=f"name {one}", m=f"name {two}", **numbers)


def test_conflicts_are_those_of_one_postgresql_or_refused(world: World) -> None:
    chance = random.Random(2328)
    refused: set[str] = set()
    for _ in range(1000):
        statement = chance.choice(STATEMENTS)
        if not world.both(fill_in(chance, statement)):
            refused.add(statement)
    for text in EVERYTHING:
        assert world.both(text)
    assert refused == {text for text in STATEMENTS if "SET code = 9" in text}


def test_upserts_of_a_transaction_meet_the_rows_of_the_transaction(world: World) -> None:
    chance = random.Random(2329)
    world.both("INSERT INTO account VALUES ('kept', 700)")
    for _ in range(40):
        assert world.both("BEGIN")
        for place in range(chance.randrange(1, 7)):
            assert world.both(fill_in(chance, chance.choice(UPSERTS)))
            if place == 2:
                assert world.both("SAVEPOINT s")
        if place > 2 and chance.random() < 0.5:
            assert world.both("ROLLBACK TO s")
            assert world.both(fill_in(chance, UPSERTS[0]))
        assert world.both(chance.choice(["COMMIT", "COMMIT", "ROLLBACK"]))
    for text in EVERYTHING:
        assert world.both(text)


@pytest.mark.parametrize("binary", [False, True])
def test_upserts_by_parameters(world: World, binary: bool) -> None:
    upsert = (
        "INSERT INTO member (email, n) VALUES (%s, %s) ON CONFLICT (email) DO UPDATE SET n = excluded.n RETURNING n"
    )
    day = "INSERT INTO member (day) VALUES (%s) ON CONFLICT DO NOTHING RETURNING day"
    for turn in range(12):
        assert world.both(upsert, (f"p{turn % 5}{binary}", turn))
        assert world.both(day.replace("%s", "%b") if binary else day, (datetime.date(2026, 3, 1 + turn % 4),))
    assert world.both(upsert, (None, 1))
    seat = "INSERT INTO seat (hall, place) VALUES (%s, %s), (%s, %s) ON CONFLICT (place, hall) DO UPDATE SET n = 2"
    for turn in range(8):
        values = (f'g"{turn % 3}', turn % 2, 'g"1', turn % 3)
        assert world.both(seat.replace("%s", "%b") if binary else seat, values)
    several = upsert.replace("(%s, %s)", "(%s, %s), (%s, %s), (%s, %s)")
    for turn in range(10):
        assert world.both(several, (f"p{turn % 5}{binary}", 1, f"r{turn % 4}{binary}", 2, f"p{turn % 3}{binary}", 3))
        days = [datetime.date(2026, 3, 1 + turn * each % 9) for each in (1, 2, 3)]
        assert world.both(day.replace("(%s)", "(%b), (%b), (%b)" if binary else "(%s), (%s), (%s)"), tuple(days))
    parcels = (
        "INSERT INTO parcel (code, label, n) VALUES (%s, %s, %s), (%s, %s, %s) ON CONFLICT (label) DO UPDATE"
        " SET n = parcel.n + excluded.n RETURNING code, label, n"
    )
    for turn in range(10):
        one, two = (f"b{turn}{binary}", f"L{turn % 3}", turn), (f"c{turn}{binary}", f"L{3 + turn % 4}{binary}", 1)
        assert world.both(parcels.replace("%s", "%b") if binary else parcels, (*one, *two))
    with world.proxied.pipeline(), world.proxied.cursor() as cursor:
        for turn in range(8):
            cursor.execute(cast(LiteralString, upsert), (f"q{turn % 3}", turn))
    with world.direct.pipeline(), world.direct.cursor() as cursor:
        for turn in range(8):
            cursor.execute(cast(LiteralString, upsert), (f"q{turn % 3}", turn))
    assert world.both(EVERYTHING[1])


@pytest.mark.parametrize(
    ("upsert", "found"),
    [
        ("INSERT INTO member (email, n) VALUES ('one', 1)", "member WHERE email = 'one'"),
        ("INSERT INTO parcel (code, label, n) VALUES ('{client}.{turn}', 'one', 1)", "parcel WHERE label = 'one'"),
    ],
)
def test_upserts_of_one_value_at_once_make_one_row(world: World, upsert: str, found: str) -> None:
    table, _, column, _, _ = found.split()
    upsert += f" ON CONFLICT ({column}) DO UPDATE SET n = {table}.n + 1"

    def run(number: int) -> None:
        with psycopg.connect(world.dsn, autocommit=True) as client:
            for turn in range(10):
                client.execute(cast(LiteralString, upsert.format(client=number, turn=turn)))

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        list(pool.map(run, range(6)))
    assert world.proxied.execute(cast(LiteralString, f"SELECT n FROM {found}")).fetchall() == [(60,)]
    world.proxied.execute(cast(LiteralString, f"DELETE FROM {found}"))
