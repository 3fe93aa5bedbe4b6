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
CREATE TABLE account (name varchar(9) PRIMARY KEY, code integer UNIQUE);
CREATE TABLE orders (tenant text, number integer, note text, PRIMARY KEY (tenant, number));
CREATE TABLE line (tenant text, number integer, place integer, PRIMARY KEY (tenant, number, place),
                   FOREIGN KEY (tenant, number) REFERENCES orders);
CREATE TABLE parent (name text PRIMARY KEY);
CREATE TABLE child (id bigserial PRIMARY KEY, name text NOT NULL REFERENCES parent);
"""
TABLES = {
    "account": {"key": "name", "unique": ["code"]},
    "orders": {"key": ["tenant", "number"]},
    "line": {"key": ["tenant", "number", "place"]},
    "parent": {"key": "name"},
    "child": {"key": "id"},
}
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
        assert found == answer(self.direct, text, values), (text, values)
        return True

    def assert_equal_rows(self) -> None:
        for table in ("account", "orders", "line", "parent"):
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
    reference.execute(SCHEMA)
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
    for table in ("line", "orders", "account", "child", "parent"):
        served.both(f"DELETE FROM {table}")
    for number, name in enumerate(NAMES):
        served.both("INSERT INTO account VALUES (%s, %s)", name, number)
        served.both("INSERT INTO orders VALUES (%s, 1, 'note')", name)
        served.both("INSERT INTO parent VALUES (%s)", name)
    served.both("INSERT INTO line VALUES ('name 1', 1, 1)")
    return served


def test_keys_change_as_in_one_postgresql_or_are_refused(world: World) -> None:
    chance = random.Random(2326)
    answered = 0
    for turn in range(120):
        old, new = chance.choice(NAMES), chance.choice([*NAMES, *(f"new {n}" for n in range(20))])
        text, values = chance.choice(
            [
                ("UPDATE account SET name = %s WHERE name = %s RETURNING *", (new, old)),
                (f"UPDATE account SET name = '{new}', code = code + 100 WHERE name = '{old}'", ()),
                ("UPDATE account SET name = %s WHERE name IN (%s, 'name 3')", (new, old)),
                ("UPDATE account SET name = NULL WHERE name = %s", (old,)),
                ("UPDATE account SET name = %s WHERE name = 'nobody'", (None,)),
                ("UPDATE orders SET tenant = %s WHERE tenant = %s AND number = 1 RETURNING *", (new, old)),
                ("UPDATE orders SET number = %s, note = 'x' WHERE tenant = %s AND number = 1", (turn, old)),
                ("UPDATE orders SET tenant = %s, number = %s WHERE tenant = %s AND number = 1", (new, turn, old)),
                ("UPDATE line SET place = %s WHERE tenant = 'name 1' AND number = 1 RETURNING *", (turn,)),
                ("UPDATE account SET name = 'much too long for it' WHERE name = %s", (old,)),
            ]
        )  # fmt: skip
        answered += world.right_or_refused(text, *values)
    assert 40 < answered < 120, answered
    world.assert_equal_rows()


@pytest.mark.parametrize(
    "text",
    [
        "UPDATE account SET name = name || 'x' WHERE name = 'name 1'",
        "UPDATE account SET name = 'x'",
        "UPDATE parent SET name = 'x' WHERE name = 'name 1'",
        "UPDATE child SET name = 'name 2' WHERE name = 'name 1'",
        "UPDATE child SET id = 7 WHERE name = 'name 1'",
        "UPDATE orders SET tenant = 'x' WHERE tenant = 'name 1'",
        "UPDATE line SET tenant = 'name 2' WHERE tenant = 'name 1' AND number = 1",
    ],
)
def test_changes_that_might_move_rows_are_refused(world: World, text: str) -> None:
    assert answer(world.proxied, text, ()) == (None, "0A000")
    world.assert_equal_rows()


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
