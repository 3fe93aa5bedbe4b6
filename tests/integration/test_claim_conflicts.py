"""ON CONFLICT on tables with columns that are unique over all shards: as in one PostgreSQL, or refused."""

from __future__ import annotations

import random
from typing import LiteralString, cast

import psycopg
import pytest

from tests.support.postgres import TestInstances
from tests.support.proxy import Proxy
from tests.support.verified import assert_verified

SCHEMA = "CREATE TABLE account (name text PRIMARY KEY, code integer UNIQUE, note text, UNIQUE (note, name));"
STATEMENTS = [
    "INSERT INTO account (name, code) VALUES ('{n}', {c}) ON CONFLICT (name) DO NOTHING",
    "INSERT INTO account (name, code) VALUES ('{n}', {c}) ON CONFLICT (name) DO UPDATE SET code = excluded.code"
    " RETURNING *",
    "INSERT INTO account (name, code) VALUES ('{n}', {c}) ON CONFLICT ON CONSTRAINT account_pkey DO UPDATE"
    " SET note = 'again' WHERE account.code <> 3 RETURNING *",
    "INSERT INTO account VALUES ('{n}', {c}, 'x') ON CONFLICT (note, name) DO UPDATE SET code = NULL",
    "INSERT INTO account VALUES ('{n}', {c}), ('{m}', {d}) ON CONFLICT (name) DO UPDATE SET code = excluded.code",
    "INSERT INTO account VALUES ('{n}', {c}) ON CONFLICT (code) DO NOTHING",
    "INSERT INTO account VALUES ('{n}', {c}) ON CONFLICT (code) DO UPDATE SET note = 'taken' RETURNING *",
    "INSERT INTO account VALUES ('{n}', {c}) ON CONFLICT DO NOTHING",
    "INSERT INTO account VALUES ('{n}', {c})",
    "UPDATE account SET code = {c} WHERE name = '{n}'",
    "DELETE FROM account WHERE name = '{n}'",
]


def answer(connection: psycopg.Connection, text: str) -> tuple[object, ...]:
    try:
        cursor = connection.execute(cast(LiteralString, text))
    except psycopg.Error as error:
        return None, error.sqlstate
    return (sorted(cursor.fetchall(), key=repr) if cursor.description else None), cursor.statusmessage


def test_conflicts_are_those_of_one_postgresql_or_refused(
    test_instances: TestInstances, tmp_path_factory: pytest.TempPathFactory
) -> None:
    shards, reference = test_instances.create(3), test_instances.create(1)
    shards.execute(SCHEMA)
    reference.execute(SCHEMA)
    tables = {"account": {"key": "name", "unique": ["code"]}}
    chance = random.Random(2328)
    refused: set[str] = set()
    with Proxy(shards.dsns, tmp_path_factory.mktemp("conflicts"), tables=tables, workers={"per_shard": 0}) as proxy:
        with (
            psycopg.connect(proxy.server.dsn, autocommit=True) as proxied,
            psycopg.connect(reference.dsns[0], autocommit=True) as direct,
        ):
            for _ in range(250):
                statement = chance.choice(STATEMENTS)
                one, two = chance.sample(range(8), 2)
                text = statement.format(n=f"name {one}", m=f"name {two}", c=chance.randrange(6), d=chance.randrange(6))
                found = answer(proxied, text)
                if found[1] == "0A000":
                    refused.add(statement)
                else:
                    assert found == answer(direct, text), text
            assert answer(proxied, "SELECT * FROM account") == answer(direct, "SELECT * FROM account")
        assert refused == {text for text in STATEMENTS if "CONFLICT (code)" in text or "CONFLICT DO" in text}
        assert_verified(proxy.configuration)
    test_instances.drop(shards)
    test_instances.drop(reference)
