"""Random statements, run where their routes say on three shards, answer as one PostgreSQL with all the rows does."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator

import psycopg
import pytest
from psycopg.rows import tuple_row

from foreshard._core.buckets import bucket_of, make_placed_key
from foreshard._core.lexer import LITERAL_NUMERIC, lift
from foreshard._core.template import RouteKind, Template
from foreshard.proxy.errors import SqlError
from foreshard.proxy.routing import Planner
from tests.support.postgres import Shards
from tests.support.random_sql import SqlMaker
from tests.support.routes import CATALOG

SCHEMA = """
CREATE TABLE document (id bigint PRIMARY KEY, path text, size int, price numeric, body text, tags text[], meta jsonb);
CREATE TABLE symbol (id bigint PRIMARY KEY, document_id bigint, name text);
CREATE TABLE usage (id bigint PRIMARY KEY, symbol_id bigint, line int);
CREATE TABLE note (id bigint PRIMARY KEY, document_id bigint, remark text);
CREATE TABLE language (code text, title text, rank int);
"""
STATEMENTS_PER_SEED = 400
Connections = list[psycopg.Connection[tuple[object, ...]]]


class World:
    """The same rows twice: spread over three shards by bucket, and all in one database."""

    def __init__(self, shards: Connections, whole: psycopg.Connection[tuple[object, ...]], seed: int) -> None:
        self.shards = shards
        self.whole = whole
        self.chance = random.Random(seed)
        self.keys: dict[str, list[int]] = {"document": [], "symbol": [], "usage": [], "note": [], "language": [1, 2, 3]}
        for connection in (*shards, whole):
            connection.execute(SCHEMA)
        self.fill()

    def shard_of(self, bucket: int) -> int:
        return bucket % len(self.shards)

    def insert(self, table: str, row: tuple[object, ...], bucket: int | None) -> None:
        """Put a row into the whole, and on the bucket's shard, or on all."""
        marks = ", ".join(["%s"] * len(row))
        shards = self.shards if bucket is None else [self.shards[self.shard_of(bucket)]]
        for connection in (*shards, self.whole):
            connection.execute(f"INSERT INTO {table} VALUES ({marks})", row)

    def child_key(self, table: str, bucket: int) -> int:
        """A placed key in the parent's bucket, or an old one that says nothing."""
        number = len(self.keys[table]) + 1
        key = number if self.chance.random() < 0.3 else make_placed_key(bucket, number)
        self.keys[table].append(key)
        return key

    def fill(self) -> None:
        for number in range(1, 25):
            placed = make_placed_key(self.chance.randrange(4096), number)
            key = placed if number % 2 else self.chance.choice([number, -number])
            bucket = bucket_of(key)
            self.keys["document"].append(key)
            name = self.chance.choice("abcdefxyz")
            self.insert("document", (key, name, number % 5, number, name * 3, [name], None), bucket)
            for _ in range(self.chance.randrange(3)):
                symbol = self.child_key("symbol", bucket)
                self.insert("symbol", (symbol, key, self.chance.choice("abcdefxyz")), bucket)
                for _ in range(self.chance.randrange(3)):
                    self.insert("usage", (self.child_key("usage", bucket), symbol, number % 4), bucket)
            if self.chance.random() < 0.6:
                self.insert("note", (self.child_key("note", bucket), key, self.chance.choice("abcxyz")), bucket)
        for number, code in enumerate("abz"):
            self.insert("language", (code, code * 2, number), None)

    def targets(self, template: Template, sql: bytes) -> Connections | None:
        """Where the route sends a statement; None when it is refused."""
        if template.kind == RouteKind.ROUTE_REFUSE:
            return None
        if template.kind == RouteKind.ROUTE_SCATTER:
            return self.shards
        if template.kind == RouteKind.ROUTE_ANY:
            return [self.chance.choice(self.shards)]
        assert template.kind == RouteKind.ROUTE_KEYED, sql
        _, places, _ = lift(sql)
        literals = [(sql[at : at + size], 2 if kind <= LITERAL_NUMERIC else 3) for at, size, kind in places]
        found = template.check_locate(literals, [])
        assert isinstance(found, list) or found == "every"
        indexes = sorted({self.shard_of(bucket) for bucket in found}) if isinstance(found, list) else [0, 1, 2]
        if len(indexes) > 1 and template.one_shard_refusal is not None:
            return None
        return [self.shards[index] for index in indexes]


def answer(connections: Connections, sql: str) -> list[str]:
    """All rows of all connections, in one order; the SQLSTATE when one fails. Changes are undone."""
    rows: list[str] = []
    for connection in connections:
        try:
            rows += [repr(row) for row in connection.execute(sql.encode()).fetchall()]
        except psycopg.Error as error:
            return [f"error {error.sqlstate}"]
        finally:
            connection.rollback()
    return sorted(rows)


@pytest.fixture
def connections(three_shards: Shards, one_shard: Shards) -> Iterator[Connections]:
    opened = [psycopg.connect(dsn, row_factory=tuple_row) for dsn in (*three_shards.dsns, *one_shard.dsns)]
    yield opened
    for connection in opened:
        connection.close()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_random_statements_answer_as_one_postgres_does(connections: Connections, seed: int) -> None:
    world = World(connections[:3], connections[3], seed)
    for connection in connections:
        connection.commit()
    maker, planner = SqlMaker(seed, world.keys), Planner(CATALOG)
    routes: Counter[str] = Counter()
    for number in range(STATEMENTS_PER_SEED):
        sql = maker.select() if number % 4 else maker.write()
        template = planner.plan(sql.encode())
        try:
            targets = world.targets(template, sql.encode())
        except SqlError as error:  # a key that PostgreSQL refuses too, or one that names no bucket where one must
            targets = None
            routes[error.sqlstate] += 1
        if targets is None:
            routes["refused"] += 1
            continue
        if template.merge is not None and len(targets) > 1:
            routes["merged"] += 1  # their answers are not simply put together: test_merge asks them
            continue
        routes[RouteKind(template.kind).name] += 1
        expected = answer([world.whole], sql)
        assert answer(targets, sql) == expected, f"seed {seed}: {sql}"
    assert not {"22P02", "23502", "08P01"} & set(routes), routes
    assert routes["ROUTE_KEYED"] > STATEMENTS_PER_SEED // 20, routes
    assert routes["ROUTE_SCATTER"] > STATEMENTS_PER_SEED // 20, routes
