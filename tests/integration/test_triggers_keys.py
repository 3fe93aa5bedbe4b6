"""Trigger functions behind the proxy on tables whose keys clients give and change: each change is heard of once, on its
shard, by key.

A changed key is a delete of the old one and an insert of the new one, whether the row stays on its shard or goes to
another.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import psycopg
import pytest

from tests.support.postgres import Shards, TestInstances
from tests.support.proxy import Proxy
from tests.support.verified import assert_verified
from tests.support.waiting import wait_until

SHARD_COUNT = 3
SCHEMA = """
CREATE TABLE orders (tenant text, number integer, note text, PRIMARY KEY (tenant, number));
CREATE TABLE basket (tenant text, number integer, PRIMARY KEY (tenant, number));
CREATE TABLE mark (id bigserial PRIMARY KEY, tenant text NOT NULL, number integer NOT NULL, what text,
                   FOREIGN KEY (tenant, number) REFERENCES basket);
CREATE TABLE parcel (code text PRIMARY KEY, note text UNIQUE);
CREATE TABLE heard (id bigserial PRIMARY KEY, shard text, function text, operation text, key text,
                    old jsonb, new jsonb);
"""
TABLES = {
    "orders": {"key": ["tenant", "number"]},
    "basket": {"key": ["tenant", "number"]},
    "mark": {"key": "id"},
    "parcel": {"key": "code", "placement": "cost", "unique": ["note"]},
}
FUNCTIONS = '''
import json

def hear(event):
    """Notes on its own shard what it was told."""
    event.execute(
        "INSERT INTO heard (shard, function, operation, key, old, new) VALUES ($1, $2, $3, $4, $5, $6)",
        event.shard, event.function, event.operation, json.dumps(event.key), *map(json.dumps, (event.old, event.new)),
    )

weigh = hear

def follow(event):
    """Gives a new basket a child, whose key is generated where the basket is."""
    tenant, number = event.key
    event.execute("INSERT INTO mark (tenant, number, what) VALUES ($1, $2, 'seen')", tenant, number)
'''
EVERY = ["insert", "update", "delete"]
TRIGGERS = {
    "hear": {"table": "orders", "on": EVERY, "function": "functions:hear"},
    "weigh": {"table": "parcel", "on": EVERY, "function": "functions:weigh", "profile": {"cpu": "5ms"}},
    "follow": {"table": "basket", "on": ["insert"], "function": "functions:follow"},
}
HEARD = "SELECT function, operation, key::jsonb, old, new, shard FROM heard ORDER BY id"
WAITING = "SELECT (SELECT count(*) FROM foreshard.outbox) + (SELECT count(*) FROM foreshard.dead_letter)"
TENANTS = ["a", 'b, "c"', "d'e", "Ä"]


class World(NamedTuple):
    shards: Shards
    client: psycopg.Connection

    def heard(self, function: str) -> dict[str, list[tuple[Any, ...]]]:
        """By key: what a function was told of, on which shard, in the order in which each shard's worker told it."""
        wait_until(lambda: all(self.shards.query(WAITING, on=shard) == [(0,)] for shard in range(SHARD_COUNT)))
        found = defaultdict(list)
        for shard in range(SHARD_COUNT):
            for name, operation, key, old, new, where in self.shards.query(HEARD, on=shard):
                assert where == f"s{shard}"
                if name == function:
                    found[json.dumps(key)].append((operation, old, new, shard))
        return found

    def shard_of(self, table: str, condition: str) -> int:
        counts = [
            self.shards.query(f"SELECT count(*) FROM {table} WHERE {condition}", on=shard)[0][0]
            for shard in range(SHARD_COUNT)
        ]
        assert sorted(map(int, map(str, counts))) == [0, 0, 1]
        return counts.index(1)


@pytest.fixture(scope="module")
def served(test_instances: TestInstances, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    shards = test_instances.create(SHARD_COUNT)
    shards.execute(SCHEMA)
    folder = tmp_path_factory.mktemp("keys")
    (folder / "functions.py").write_text(FUNCTIONS)
    sections: dict[str, Any] = {"placement": {"policy": "least-loaded"}, "triggers": TRIGGERS}
    with Proxy(shards.dsns, folder, tables=TABLES, workers={"per_shard": 1}, **sections) as proxy:
        with psycopg.connect(proxy.server.dsn, autocommit=True) as client:
            yield World(shards, client)
        assert_verified(proxy.configuration)
    test_instances.drop(shards)


@pytest.fixture
def world(served: World) -> World:
    served.client.execute("DELETE FROM orders")
    served.client.execute("DELETE FROM parcel")
    served.heard("hear")
    served.shards.execute("TRUNCATE heard")
    return served


def order(tenant: str, number: int, note: str) -> dict[str, Any]:
    return {"tenant": tenant, "number": number, "note": note}


def test_each_change_of_rows_with_keys_of_two_columns_is_heard_once_and_in_order(world: World) -> None:
    draw = random.Random(7)
    rows: dict[tuple[str, int], str] = {}
    expected: dict[str, list[tuple[Any, ...]]] = defaultdict(list)
    for turn in range(120):
        key, goal = ((draw.choice(TENANTS), draw.randrange(4)) for _ in range(2))
        note, is_undone = f"note {turn}", draw.random() < 0.2
        before, after = dict(rows), dict(rows)
        text, values = "DELETE FROM orders WHERE tenant = %s AND number = %s", list[Any](key)
        if key not in rows:
            text, values = "INSERT INTO orders VALUES (%s, %s, %s)", [*key, note]
            after[key] = note
        elif goal not in rows and draw.random() < 0.5:
            where = " WHERE tenant = %s AND number = %s"
            text, values = "UPDATE orders SET tenant = %s, number = %s, note = %s" + where, [*goal, note, *key]
            del after[key]
            after[goal] = note
        elif draw.random() < 0.5:
            text, values = "UPDATE orders SET note = %s WHERE tenant = %s AND number = %s", [note, *key]
            after[key] = note
        else:
            del after[key]
        with world.client.transaction(force_rollback=is_undone):
            assert world.client.execute(text, values).rowcount == 1
        if is_undone:
            continue
        rows = after
        for each in {key, goal}:
            old, new = (None if each not in some else order(*each, some[each]) for some in (before, after))
            if old != new:
                operation = "insert" if old is None else "delete" if new is None else "update"
                expected[json.dumps(each)].append((operation, old, new))
    found = world.heard("hear")
    assert {key: [told[:3] for told in some] for key, some in found.items()} == expected
    assert all(len({shard for *_, shard in some}) == 1 for some in found.values())  # keys at home
    assert len({shard for some in found.values() for *_, shard in some}) == SHARD_COUNT
    for tenant, number in rows:
        quoted = tenant.replace("'", "''")
        where = f"tenant = '{quoted}' AND number = {number}"
        assert world.shard_of("orders", where) == found[json.dumps([tenant, number])][0][3]


def test_functions_give_rows_with_such_keys_children(world: World) -> None:
    keys = [(tenant, number) for tenant in TENANTS for number in range(2)]
    for key in keys:
        world.client.execute("INSERT INTO basket VALUES (%s, %s)", key)
    world.heard("follow")
    found = world.client.execute("SELECT tenant, number FROM basket JOIN mark USING (tenant, number)").fetchall()
    assert sorted(found) == sorted(keys)


def test_rows_that_are_placed_by_cost_and_change_their_keys_are_heard_where_they_were_and_where_they_are(
    world: World,
) -> None:
    places = {}
    for number in range(9):
        world.client.execute("INSERT INTO parcel VALUES (%s, %s)", (f"p{number}", f"n{number}"))
        places[number] = world.shard_of("parcel", f"code = 'p{number}'")
    world.client.execute("UPDATE parcel SET note = 'x' || note WHERE code = 'p4'")
    for number in range(6):
        world.client.execute("UPDATE parcel SET code = %s WHERE code = %s", (f"q{number}", f"p{number}"))
    world.client.execute("DELETE FROM parcel WHERE code = 'p8'")
    found = world.heard("weigh")
    for number in range(9):
        first = {"code": f"p{number}", "note": f"n{number}"}
        told = [("insert", None, first, places[number])]
        last = dict(first)
        if number == 4:
            last = {**first, "note": "xn4"}
            told.append(("update", first, last, places[number]))
        if number < 6 or number == 8:
            told.append(("delete", last, None, places[number]))
        assert found.pop(json.dumps(f"p{number}")) == told
        if number < 6:
            place = world.shard_of("parcel", f"code = 'q{number}'")
            assert found.pop(json.dumps(f"q{number}")) == [("insert", None, {**last, "code": f"q{number}"}, place)]
    assert not found
    assert len(set(places.values())) > 1


def test_a_row_that_comes_back_to_its_key_within_a_transaction_is_deleted_and_inserted(world: World) -> None:
    """Each statement is an event, as in one PostgreSQL; what the transaction leaves is the last one's."""
    world.client.execute("INSERT INTO orders VALUES ('a', 0, 'first')")
    with world.client.transaction():
        world.client.execute("UPDATE orders SET tenant = 'b, \"c\"', number = 3 WHERE tenant = 'a' AND number = 0")
        world.client.execute("UPDATE orders SET tenant = 'a', number = 0 WHERE tenant = 'b, \"c\"' AND number = 3")
    operations = {key: [told[0] for told in some] for key, some in world.heard("hear").items()}
    assert operations == {'["a", 0]': ["insert", "delete", "insert"], json.dumps(['b, "c"', 3]): ["insert", "delete"]}
