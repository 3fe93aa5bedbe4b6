"""Keys of several columns: rows live where the hash of all of them says, and answers are those of one PostgreSQL."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, LiteralString, NamedTuple, cast

import psycopg
import pytest

from foreshard._core.buckets import initial_map
from foreshard._core.typed_keys import home_of_texts
from foreshard.proxy.catalog.model import KEY_TYPES_BY_NAME
from tests.support.postgres import Shards, TestInstances
from tests.support.proxy import Proxy
from tests.support.verified import assert_verified

SHARDS = 3
# Values as PostgreSQL prints them under the test's settings.
VALUES = {
    "bigint": ["1", "-7", "4503599627370497", "9223372036854775807"],
    "integer": ["0", "-2147483648", "17"],
    "smallint": ["-1", "300"],
    "text": ["", "a b", "it''s", "Ärger"],
    "uuid": ["58756dfc-5482-4f57-9359-951542249fbe", "00112233-4455-8677-8899-aabbccddeeff"],
    "bytea": ["\\x", "\\x00ff10"],
    "date": ["2026-01-31", "1999-12-31"],
    "timestamp without time zone": ["2026-01-31 12:30:00", "1969-07-20 20:17:40.5"],
    "timestamp with time zone": ["2026-01-31 12:30:00+00", "2000-01-01 00:00:00+00"],
}
ORDERS = """
CREATE TABLE orders (tenant text, number integer, note text, PRIMARY KEY (tenant, number));
CREATE TABLE line (tenant text, number integer, place integer, item text, PRIMARY KEY (tenant, number, place),
                   FOREIGN KEY (tenant, number) REFERENCES orders ON DELETE CASCADE);
CREATE TABLE mark (id bigserial PRIMARY KEY, tenant text NOT NULL, number integer NOT NULL, place integer NOT NULL,
                   what text, FOREIGN KEY (tenant, number, place) REFERENCES line ON DELETE CASCADE);
CREATE TABLE document (tenant bigint, id bigserial, title text, PRIMARY KEY (tenant, id));
CREATE TABLE page (tenant bigint, document_id bigint, number integer, body text,
                   PRIMARY KEY (tenant, document_id, number),
                   FOREIGN KEY (tenant, document_id) REFERENCES document ON DELETE CASCADE);
"""
TABLES = {
    "orders": {"key": ["tenant", "number"]},
    "line": {"key": ["tenant", "number", "place"]},
    "mark": {"key": "id"},
    "document": {"key": "tenant"},
    "page": {"key": ["tenant", "document_id", "number"]},
}
TENANTS = [f"tenant {number}" for number in range(12)]


SHORT = {"timestamp without time zone": "timestamp", "timestamp with time zone": "timestamptz"}
PAIRS = {
    f"{SHORT.get(first, first)}_{SHORT.get(second, second)}": (first, second) for first in VALUES for second in VALUES
}


class World(NamedTuple):
    shards: Shards
    proxied: psycopg.Connection
    direct: psycopg.Connection

    def both(self, text: str, *values: Any, is_sorted: bool = True) -> Any:
        """The answer of both, which must be one: rows, count of rows and error."""
        found = [answer(connection, text, values) for connection in (self.proxied, self.direct)]
        if is_sorted:
            found = [(sorted(rows, key=repr) if rows is not None else None, *rest) for rows, *rest in found]
        assert found[0] == found[1], text
        return found[0][0]

    def assert_equal_rows(self) -> None:
        for table in ("orders", "line", "document", "page"):
            self.both(f"SELECT * FROM {table}")
        self.both("SELECT tenant, number, place, what FROM mark")


def answer(connection: psycopg.Connection, text: str, values: tuple[Any, ...]) -> tuple[Any, ...]:
    try:
        cursor = connection.execute(cast(LiteralString, text), values or None)
    except psycopg.Error as error:
        return None, error.sqlstate
    return (cursor.fetchall() if cursor.description else None), cursor.statusmessage


@pytest.fixture(scope="module")
def world(test_instances: TestInstances, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    shards, reference = test_instances.create(SHARDS), test_instances.create(1)
    pairs = "".join(
        f"CREATE TABLE {name} (one {first}, two {second}, PRIMARY KEY (one, two));"
        for name, (first, second) in PAIRS.items()
    )
    shards.execute(ORDERS + pairs)
    reference.execute(ORDERS + pairs)
    tables = {**TABLES, **{name: {"key": ["one", "two"]} for name in PAIRS}}
    with (
        Proxy(shards.dsns, tmp_path_factory.mktemp("composite"), tables=tables, workers={"per_shard": 0}) as proxy,
        psycopg.connect(proxy.server.dsn, autocommit=True) as proxied,
        psycopg.connect(reference.dsns[0], autocommit=True) as direct,
    ):
        for connection in (proxied, direct):
            connection.execute("SET TimeZone TO 'UTC'")
        yield World(shards, proxied, direct)
        assert_verified(proxy.configuration)
    test_instances.drop(shards)
    test_instances.drop(reference)


@pytest.mark.parametrize("name", PAIRS)
def test_rows_live_where_the_hash_of_both_columns_says(world: World, name: str) -> None:
    owners = initial_map(SHARDS)
    types = PAIRS[name]
    families = [KEY_TYPES_BY_NAME[each] for each in types]
    for first in VALUES[types[0]]:
        for second in VALUES[types[1]]:
            assert world.both(f"INSERT INTO {name} VALUES ('{first}', '{second}') RETURNING one::text, two::text")
            plain = [text.replace("''", "'").encode() for text in (first, second)]
            bucket = home_of_texts(families, plain)
            assert isinstance(bucket, int), bucket
            where = f"one = '{first}' AND two = '{second}'"
            held = [world.shards.query(f"SELECT count(*) FROM {name} WHERE {where}", on=n)[0][0] for n in range(SHARDS)]
            assert held == [int(shard == owners[bucket]) for shard in range(SHARDS)], (first, second)
            assert world.both(f"SELECT one::text, two::text FROM {name} WHERE two = '{second}' AND one = '{first}'")
    world.both(f"SELECT one::text, two::text FROM {name}")
    world.both(f"DELETE FROM {name}")


def fill(world: World) -> None:
    for table in ("orders", "document"):
        world.both(f"DELETE FROM {table}")
    for number, tenant in enumerate(TENANTS):
        for order in range(3):
            world.both("INSERT INTO orders VALUES (%s, %s, %s)", tenant, order, f"note {order}")
            world.both("INSERT INTO line VALUES (%s, %s, 1, 'a'), (%s, %s, 2, 'b')", tenant, order, tenant, order)
            world.both("INSERT INTO mark (tenant, number, place, what) VALUES (%s, %s, 1, 'x')", tenant, order)
        world.both("INSERT INTO document VALUES (%s, 1, 'first'), (%s, 2, 'second')", number, number)
        world.both("INSERT INTO page VALUES (%s, 1, 1, 'body'), (%s, 2, 1, 'more')", number, number)


def test_children_live_with_their_parents(world: World) -> None:
    fill(world)
    for shard in range(SHARDS):
        for table, parent, columns in (
            ("line", "orders", ("tenant", "number")),
            ("mark", "line", ("tenant", "number", "place")),
            ("page", "document", ("tenant",)),
        ):
            same = " AND ".join(f"parent.{name} = child.{name}" for name in columns)
            sql = f"SELECT count(*) FROM {table} child WHERE NOT EXISTS (SELECT FROM {parent} parent WHERE {same})"
            assert world.shards.query(sql, on=shard) == [(0,)]
    spread = [world.shards.query("SELECT count(*) FROM orders", on=shard)[0][0] for shard in range(SHARDS)]
    assert min(spread) > 0, spread
    world.assert_equal_rows()


READS = [
    "SELECT * FROM orders WHERE tenant = %(t)s AND number = %(n)s",
    "SELECT * FROM orders WHERE (tenant, number) = (%(t)s, %(n)s)",
    "SELECT * FROM orders WHERE (tenant, number) IN ((%(t)s, 1), ('tenant 3', %(n)s))",
    "SELECT * FROM orders WHERE tenant IN (%(t)s, 'tenant 4') AND number IN (0, 2)",
    "SELECT * FROM orders WHERE tenant = %(t)s AND number = ANY('{0,1}'::int[])",
    "SELECT * FROM orders WHERE tenant = ANY('{tenant 1,tenant 2}'::text[]) AND number = %(n)s",
    "SELECT * FROM orders WHERE tenant = %(t)s",
    "SELECT * FROM orders WHERE number = %(n)s",
    "SELECT * FROM orders WHERE tenant = %(t)s AND number = NULL",
    "SELECT * FROM orders WHERE tenant = %(t)s AND (number = 1 OR number = 2)",
    "SELECT o.note, l.item FROM orders o JOIN line l USING (tenant, number) WHERE tenant = %(t)s AND number = %(n)s",
    "SELECT o.note, l.item FROM orders o JOIN line l ON o.tenant = l.tenant AND o.number = l.number",
    "SELECT o.note, l.item FROM orders o JOIN line l ON o.tenant = l.tenant WHERE l.tenant = %(t)s AND l.number = 1",
    "SELECT o.note, m.what FROM orders o JOIN mark m USING (tenant, number)",
    "SELECT l.item, m.what FROM line l JOIN mark m USING (tenant, number, place) WHERE l.tenant = %(t)s AND number = 2",
    "SELECT count(*) FROM orders o JOIN line l USING (tenant, number)",
    "SELECT tenant, count(*) FROM line GROUP BY tenant",
    "SELECT tenant, number, count(*) FROM line GROUP BY tenant, number",
    "SELECT count(*) FROM orders o WHERE EXISTS (SELECT FROM line l WHERE l.tenant = o.tenant AND l.number = o.number)",
    "SELECT count(*) FROM orders o WHERE EXISTS (SELECT FROM line l WHERE l.tenant = o.tenant AND l.place = 2)",
    "SELECT d.title, p.body FROM document d JOIN page p ON p.tenant = d.tenant AND p.document_id = d.id",
    "SELECT d.title, p.body FROM document d JOIN page p ON p.tenant = d.tenant WHERE d.tenant = 3",
    "SELECT * FROM document WHERE tenant = 3 AND id = 2",
    "SELECT * FROM document WHERE id = 2",
]


@pytest.mark.parametrize("text", READS)
def test_reads_by_all_columns_or_some_are_right(world: World, text: str) -> None:
    if not world.both("SELECT * FROM orders"):
        fill(world)
    for number, tenant in enumerate(TENANTS[:5]):
        written = text % {"t": f"'{tenant}'", "n": str(number % 3)} if "%(" in text else text
        found = answer(world.proxied, written, ())
        if found[1] == "0A000":
            pytest.fail(f"refused: {written}")
        world.both(written)


def test_random_writes_leave_the_same_rows(world: World) -> None:
    fill(world)
    chance = random.Random(2211)
    for _ in range(150):
        tenant, other = chance.choice(TENANTS), chance.choice(TENANTS)
        number, place = chance.randrange(4), chance.randrange(1, 4)
        text, values = chance.choice(
            [
                ("INSERT INTO orders VALUES (%s, %s, 'new') RETURNING *", (tenant, number)),
                ("INSERT INTO orders VALUES (%s, %s, 'a'), (%s, 9, 'b') RETURNING *", (tenant, number, other)),
                ("INSERT INTO orders VALUES (%s, %s, 'up') ON CONFLICT (tenant, number) DO UPDATE SET note = 'kept' "
                 "RETURNING *", (tenant, number)),
                ("INSERT INTO orders VALUES (%s, %s, 'up') ON CONFLICT DO NOTHING", (tenant, number)),
                ("UPDATE orders SET note = note || '!' WHERE tenant = %s AND number = %s RETURNING *",
                 (tenant, number)),
                ("UPDATE orders SET note = 'all' WHERE tenant = %s", (tenant,)),
                ("DELETE FROM orders WHERE tenant = %s AND number = %s", (tenant, number)),
                ("INSERT INTO line VALUES (%s, %s, %s, 'i') RETURNING item", (tenant, number, place)),
                ("UPDATE line SET item = 'j' WHERE tenant = %s AND number = %s AND place = %s",
                 (tenant, number, place)),
                ("DELETE FROM line WHERE tenant = %s AND place = %s", (tenant, place)),
                ("INSERT INTO mark (tenant, number, place, what) VALUES (%s, %s, %s, 'm') RETURNING what",
                 (tenant, number, place)),
                ("INSERT INTO document VALUES (%s, %s, 't') RETURNING *", (number, place)),
                ("INSERT INTO page VALUES (%s, %s, %s, 'p')", (number, place, chance.randrange(3))),
                ("DELETE FROM document WHERE tenant = %s AND id = %s", (number, place)),
            ]
        )  # fmt: skip
        world.both(text, *values)
    world.assert_equal_rows()


def test_a_key_with_a_null_is_refused_as_by_postgresql(world: World) -> None:
    assert world.both("INSERT INTO orders VALUES (NULL, 1, 'x')") is None
    assert world.both("INSERT INTO orders (tenant) VALUES ('only')") is None
    assert world.both("INSERT INTO orders VALUES ('a', 'no number', 'x')") is None


def test_copied_rows_are_split_by_all_columns(world: World) -> None:
    fill(world)
    for connection in (world.proxied, world.direct):
        with connection.cursor().copy("COPY orders (note, number, tenant) FROM STDIN") as copy:
            for number in range(20, 60):
                copy.write_row((f"copied {number}", number, TENANTS[number % len(TENANTS)]))
        with connection.cursor().copy("COPY line FROM STDIN") as copy:
            for number in range(20, 60):
                copy.write_row((TENANTS[number % len(TENANTS)], number, 1, "copied"))
    world.assert_equal_rows()
    assert world.both("SELECT note FROM orders WHERE number = 33 AND tenant = %s", TENANTS[33 % len(TENANTS)])
