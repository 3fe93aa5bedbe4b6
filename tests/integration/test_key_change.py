"""Rows change keys that clients gave them, as in one PostgreSQL or not at all, and are deleted and inserted again."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, LiteralString, NamedTuple, cast

import psycopg
import pytest

from tests.support.postgres import TestInstances
from tests.support.proxy import Proxy
from tests.support.verified import assert_verified

SCHEMA = """
CREATE TYPE mood AS ENUM ('sad', 'ok');
CREATE TABLE account (name varchar(9) PRIMARY KEY, code integer UNIQUE);
CREATE TABLE orders (tenant text, number integer, note text, PRIMARY KEY (tenant, number));
CREATE TABLE line (tenant text, number integer, place integer, PRIMARY KEY (tenant, number, place),
                   FOREIGN KEY (tenant, number) REFERENCES orders);
CREATE TABLE parent (name text PRIMARY KEY);
CREATE TABLE child (id bigserial PRIMARY KEY, name text NOT NULL REFERENCES parent);
CREATE TABLE branch (name text PRIMARY KEY, size integer);
CREATE TABLE leaf (id text PRIMARY KEY, name text NOT NULL REFERENCES branch ON DELETE CASCADE);
CREATE TABLE stem (name text PRIMARY KEY);
CREATE TABLE bud (id text PRIMARY KEY, name text NOT NULL REFERENCES stem ON UPDATE CASCADE);
CREATE TABLE wide (id integer GENERATED ALWAYS AS IDENTITY, "Key" varchar(9) PRIMARY KEY, at timestamptz,
                   price numeric(6,2) DEFAULT 3, twice numeric GENERATED ALWAYS AS (price * 2) STORED,
                   tags text[], mood mood, raw bytea);
CREATE TABLE priced (code integer PRIMARY KEY, note text, email text UNIQUE);
"""
TABLES = {
    "account": {"key": "name", "unique": ["code"]},
    "orders": {"key": ["tenant", "number"]},
    "line": {"key": ["tenant", "number", "place"]},
    "parent": {"key": "name"},
    "child": {"key": "id"},
    "branch": {"key": "name"},
    "leaf": {"key": "id", "unique": ["id"]},
    "stem": {"key": "name"},
    "bud": {"key": "id", "unique": ["id"]},
    "wide": {"key": "Key"},
    "priced": {"key": "code", "placement": "cost", "unique": ["email"]},
}
ALL = ("account", "orders", "line", "parent", "branch", "leaf", "stem", "bud", "wide", "priced")
NAMES = [f"name {number}" for number in range(9)]


class World(NamedTuple):
    proxied: psycopg.Connection
    direct: psycopg.Connection

    def both(self, text: str, *values: Any) -> Any:
        """The answer of both, which must be one."""
        found, expected = (answer(connection, text, values) for connection in self)
        assert found == expected, (text, values)
        return found

    def right_or_refused(self, text: str, *values: Any) -> bool:
        """Whether the proxy answered; then as one PostgreSQL does."""
        found = answer(self.proxied, text, values)
        if found[1] == "0A000":
            return False
        expected = answer(self.direct, text, values)
        # Of two things that are wrong, the old shard finds one before the new one can find the other.
        both_wrong = found == (None, "23503") and expected == (None, "23505")
        assert found == expected or both_wrong, (text, values)
        return True

    def assert_equal_rows(self) -> None:
        for table in ALL:
            self.both(f"SELECT * FROM {table}")


def answer(connection: psycopg.Connection, text: str, values: tuple[Any, ...]) -> tuple[Any, ...]:
    try:
        cursor = connection.execute(cast(LiteralString, text), values or None)
    except psycopg.Error as error:
        return None, error.sqlstate
    return (sorted(cursor.fetchall(), key=repr) if cursor.description else None), cursor.statusmessage


@pytest.fixture(scope="module")
def served(test_instances: TestInstances, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    shards, reference = test_instances.create(3), test_instances.create(1)
    shards.execute(SCHEMA)
    reference.execute(SCHEMA.replace("email text UNIQUE", "email text UNIQUE DEFERRABLE INITIALLY DEFERRED"))
    with Proxy(shards.dsns, tmp_path_factory.mktemp("change"), tables=TABLES, workers={"per_shard": 0}) as proxy:
        with (
            psycopg.connect(proxy.server.dsn, autocommit=True) as proxied,
            psycopg.connect(reference.dsns[0], autocommit=True) as direct,
        ):
            yield World(proxied, direct)
        assert_verified(proxy.configuration)
    test_instances.drop(shards)
    test_instances.drop(reference)


@pytest.fixture
def world(served: World) -> World:
    for table in ("line", "orders", "account", "child", "parent", "leaf", "branch", "bud", "stem", "wide", "priced"):
        served.both(f"DELETE FROM {table}")
    for number, name in enumerate(NAMES):
        served.both("INSERT INTO account VALUES (%s, %s)", name, number)
        served.both("INSERT INTO orders VALUES (%s, 1, 'note')", name)
        for table in ("parent", "stem"):
            served.both(f"INSERT INTO {table} VALUES (%s)", name)
        served.both("INSERT INTO branch VALUES (%s, %s)", name, number)
        served.both(
            'INSERT INTO wide (id, "Key", at, tags, mood, raw) OVERRIDING SYSTEM VALUE '
            "VALUES (%s, %s, '2026-02-03 04:05:06.789+02', '{a,\"b \",null}', 'ok', '\\x00ff')",
            *(number, name),
        )
        served.both("INSERT INTO priced VALUES (%s, %s, %s)", number, name, f"{name}@x")
    served.both("INSERT INTO line VALUES ('name 1', 1, 1), ('name 2', 1, 7)")
    served.both("INSERT INTO leaf VALUES ('l1', 'name 1'), ('l2', 'name 2')")
    served.both("INSERT INTO bud VALUES ('b1', 'name 1')")
    return served


FORMS = [
    "UPDATE account SET name = {new} WHERE name = {old} RETURNING *",
    "UPDATE account AS a SET name = {new}, code = a.code + 100 WHERE a.name = {old} RETURNING a.code, upper(a.name)",
    "UPDATE account SET name = {new} WHERE name IN ({old}, 'name 3')",
    "UPDATE account SET name = NULL WHERE name = {old}",
    "UPDATE account SET name = {new}, code = (SELECT max(b.code) + 50 FROM account b WHERE b.name = {old})"
    " WHERE name = {old}",
    "UPDATE account SET name = 'much too long for it' WHERE name = {old}",
    "UPDATE account SET name = name || 'x' WHERE code = {n} RETURNING name",
    "UPDATE account SET name = substr(name || 'yyyy', 1, 9), code = code WHERE code % 3 = {n} % 3",
    "UPDATE account SET (code, name) = (code + 1000, {new}) WHERE name = {old} AND code > 0",
    "UPDATE orders SET tenant = {new} WHERE tenant = {old} AND number = 1 RETURNING *",
    "UPDATE orders SET number = {n}, note = 'x' WHERE tenant = {old} AND number = 1",
    "UPDATE orders SET tenant = {new}, number = {n} WHERE tenant = {old} AND number = 1",
    "UPDATE orders o SET note = 'n', (tenant, number) = ROW({new}, {n}) WHERE o.tenant = {old} AND o.number = 1",
    "UPDATE line SET place = {n} WHERE tenant = 'name 1' AND number = 1 RETURNING *",
    "UPDATE line SET tenant = {new} WHERE tenant = {old} AND number = 1 AND place = 1 RETURNING *",
    "UPDATE line SET tenant = {new}, place = {n} WHERE place = 7",
    "UPDATE parent SET name = {new} WHERE name = {old}",
    "UPDATE branch SET name = {new} WHERE name = {old} RETURNING name, size",
    "UPDATE branch SET name = {old}, size = size + 1 WHERE name = {old} RETURNING *",
    "UPDATE leaf SET name = {new} WHERE id = 'l1' RETURNING *",
    "UPDATE leaf SET name = {new} WHERE name = {old}",
    "UPDATE stem SET name = {new} WHERE name = {old}",
    'UPDATE wide SET "Key" = {new} WHERE "Key" = {old} RETURNING *',
    "UPDATE wide AS w SET \"Key\" = {new}, price = DEFAULT, mood = 'sad', at = '2026-01-01' WHERE w.\"Key\" = {old}"
    " RETURNING w.*, twice + 1 AS more",
    "UPDATE wide SET \"Key\" = {new}, tags = tags || 'c', raw = '\\x01', price = 2.345 WHERE \"Key\" = {old}",
    'UPDATE wide SET "Key" = {new}, price = 99999999 WHERE "Key" = {old}',
    "UPDATE priced SET code = {n} WHERE code = {m} RETURNING *",
    "UPDATE priced SET code = {n}, email = {new} WHERE code = {m}",
    "UPDATE priced SET code = code + 20 WHERE note = {old} RETURNING code",
]


@pytest.mark.parametrize("form", ["literals", "parameters", "transactions"])
def test_keys_change_as_in_one_postgresql_or_are_refused(world: World, form: str) -> None:
    chance = random.Random(f"keys {form}")
    refused = []
    for turn in range(150):
        text = chance.choice(FORMS)
        names = {
            "new": chance.choice([*NAMES, *(f"new {n}" for n in range(20))]),
            "old": chance.choice(NAMES),
            "n": turn if chance.random() < 0.5 else chance.randrange(9),
            "m": chance.randrange(9),
        }
        if form == "parameters":
            used = [word.partition("}")[0] for word in text.split("{")[1:]]
            text, values = (
                text.format_map(dict.fromkeys(names, "%s")).replace(" % 3", " %% 3"),
                [names[w] for w in used],
            )
        else:
            shown = {name: f"'{value}'" if isinstance(value, str) else str(value) for name, value in names.items()}
            text, values = text.format_map(shown), []
        if form != "transactions":
            if not world.right_or_refused(text, *values):
                refused.append(text)
            continue
        world.both("BEGIN")
        world.both("UPDATE branch SET size = 100 WHERE name = 'name 4'")
        world.both("SAVEPOINT s")
        if not world.right_or_refused(text):
            refused.append(text)
            world.direct.execute("ROLLBACK TO s")
            world.proxied.execute("ROLLBACK TO s")
        elif world.proxied.info.transaction_status == psycopg.pq.TransactionStatus.INERROR or chance.random() < 0.3:
            world.both("ROLLBACK TO s")
        world.both("UPDATE branch SET size = size + 1 WHERE name = 'name 4' RETURNING *")
        world.both(chance.choice(["COMMIT", "COMMIT", "ROLLBACK"]))
    assert len(refused) < 8, refused
    world.assert_equal_rows()


@pytest.mark.parametrize(
    "text",
    [
        "UPDATE parent SET name = 'x' || size FROM branch WHERE branch.name = parent.name",
        "UPDATE stem SET name = 'other' WHERE name = 'name 1'",
        "UPDATE child SET id = 7 WHERE name = 'name 1'",
        "UPDATE branch SET name = 'x' || size",
        "EXPLAIN ANALYZE UPDATE account SET name = name || 'x'",
    ],
)
def test_changes_that_might_go_wrong_are_refused(world: World, text: str) -> None:
    assert answer(world.proxied, text, ()) == (None, "0A000")
    world.assert_equal_rows()


def test_a_generated_key_keeps_its_row_with_the_parent(world: World) -> None:
    (key,) = world.proxied.execute("INSERT INTO child (name) VALUES ('name 1') RETURNING id").fetchone() or (0,)
    assert answer(world.proxied, "UPDATE child SET name = 'name 1' WHERE id = %s", (key,)) == (None, "UPDATE 1")
    for name in NAMES[2:]:
        assert answer(world.proxied, "UPDATE child SET name = %s WHERE id = %s", (name, key)) == (None, "0A000")
    assert answer(world.proxied, "EXPLAIN UPDATE account SET name = 'x' WHERE name = 'name 1'", ())[0]
    world.proxied.execute("DELETE FROM child")


@pytest.mark.parametrize("is_one_transaction", [True, False])
def test_rows_are_deleted_and_inserted_again(world: World, is_one_transaction: bool) -> None:
    for turn in range(3):
        for number, name in enumerate(NAMES):
            if is_one_transaction:
                world.both("BEGIN")
            world.both("DELETE FROM account WHERE name = %s RETURNING code", name)
            world.both(
                "INSERT INTO account VALUES (%s, %s) RETURNING *", NAMES[number - 1 - turn] + "x"[: turn % 2], 50
            )
            world.both("DELETE FROM account WHERE code = 50")
            world.both("INSERT INTO account VALUES (%s, %s) RETURNING *", name, number)
            if is_one_transaction:
                world.both("COMMIT")
        world.assert_equal_rows()
