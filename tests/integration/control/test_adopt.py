"""An existing database becomes the only shard: proposed, applied and served without a row changed.

The same database stands twice: once before Foreshard as it always was, once adopted. Statements go to both, and both
must answer alike; only keys that Foreshard generates differ, so statements name rows by what is in them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from foreshard._core.buckets import PLACED_FLAG
from foreshard.proxy.__main__ import main
from foreshard.proxy.config import load_config
from foreshard.proxy.control import is_applied
from tests.support import shop
from tests.support.postgres import Shards, TestInstances
from tests.support.proxy import Proxy
from tests.support.verified import assert_verified, verdict_of

READS = [
    "SELECT * FROM customer WHERE id = 17",
    "SELECT * FROM orders WHERE id IN (77, 78, 1500)",
    "SELECT * FROM order_item WHERE id = 4242",
    "SELECT order_id, paid FROM payment WHERE order_id = 77 ORDER BY 2",
    "SELECT count(*), sum(total), avg(total) FROM orders",
    "SELECT c.name, sum(o.total) FROM customer c JOIN orders o ON o.customer_id = c.id GROUP BY c.id ORDER BY 2, 1",
    "SELECT p.title, i.quantity FROM order_item i JOIN product p ON p.id = product_id WHERE order_id = 77 ORDER BY 1",
    "SELECT * FROM order_total WHERE order_id = 12",
    "SELECT DISTINCT country FROM customer ORDER BY 1",
    "SELECT id, rank() OVER (PARTITION BY customer_id ORDER BY total DESC, id) FROM orders ORDER BY 1 LIMIT 50",
    "WITH big AS (SELECT customer_id, sum(total) AS t FROM orders GROUP BY 1) SELECT count(*) FROM big WHERE t > 100",
    "SELECT a.event, c.email FROM audit a JOIN customer c ON c.id = a.customer_id WHERE a.id < 10 ORDER BY a.id",
    "SELECT id FROM customer WHERE id < 5 UNION SELECT id FROM product WHERE id < 9 ORDER BY 1",
    "SELECT e.event FROM audit e LEFT JOIN customer c ON c.id = e.customer_id WHERE c.id IS NULL ORDER BY e.id",
    "SELECT * FROM coupon ORDER BY id",
    "SELECT 1 / 0 FROM customer WHERE id = 1",
    "SELECT nothing FROM customer",
]
WRITES = [
    "UPDATE customer SET name = 'changed' WHERE id = 17",
    "UPDATE customer SET name = 'by email' WHERE email = 'c5@example.com' RETURNING id, name",
    "UPDATE orders SET status = 'shipped' WHERE customer_id = 17",
    "UPDATE order_item SET quantity = quantity + 1 WHERE id BETWEEN 100 AND 120",
    "DELETE FROM order_item WHERE id = 5",
    "DELETE FROM payment WHERE paid < 20",
    "INSERT INTO customer (email, country) VALUES ('new@example.com', 'at') RETURNING email, created_at",
    "INSERT INTO customer (email, country) VALUES ('m1@example.com', 'at'), ('m2@example.com', 'de')",
    "INSERT INTO customer (id, email, country) VALUES (100000, 'given@example.com', 'fr') RETURNING id",
    "INSERT INTO customer (email, country) VALUES ('c5@example.com', 'at')",
    "INSERT INTO customer (email, country) VALUES ('c6@example.com', 'it') ON CONFLICT (email) DO UPDATE SET name = ''",
    "INSERT INTO customer (email, country) VALUES ('x@example.com', 'nowhere')",
    "INSERT INTO orders (customer_id, status) VALUES (17, 'lost')",
    "INSERT INTO orders (customer_id, placed_on) VALUES (17, '2026-11-01'), (18, '2026-11-02') RETURNING status",
    "INSERT INTO orders (id, customer_id) VALUES (200000, 17)",
    "INSERT INTO orders (id, customer_id) VALUES (77, 17)",
    "INSERT INTO order_item (order_id, product_id, quantity, price) VALUES (77, 2, 3, 5) ON CONFLICT DO NOTHING",
    "INSERT INTO order_item (order_id, product_id, quantity, price) SELECT id, 3, 1, 1 FROM orders"
    " WHERE customer_id = 18 ON CONFLICT DO NOTHING",
    "INSERT INTO order_item (order_id, product_id, quantity, price) SELECT id, 1, 2, 4 FROM orders"
    " WHERE placed_on >= '2026-11-01'",
    "WITH made AS (INSERT INTO orders (customer_id, placed_on) SELECT id, '2026-12-24' FROM customer"
    " WHERE email = 'new@example.com' RETURNING id) INSERT INTO order_item (order_id, product_id, quantity, price)"
    " SELECT id, 4, 1, 9 FROM made",
    "INSERT INTO payment (order_id, paid) VALUES (77, 12.50), (78, 1)",
    "INSERT INTO product (sku, title, price) VALUES ('new', 'New', 5)",
    "UPDATE product SET price = price * 2 WHERE id = 5",
    "INSERT INTO audit (customer_id, event) VALUES (5, 'seen'), (NULL, 'nobody')",
    "INSERT INTO audit (customer_id, event) VALUES (5000000, 'nobody')",
    "INSERT INTO coupon (code, percent) VALUES ('extra', 5) RETURNING id",
    "MERGE INTO customer c USING (VALUES ('c9@example.com'), ('none@example.com')) AS v(e) ON c.email = v.e"
    " WHEN MATCHED THEN UPDATE SET name = 'merged' WHEN NOT MATCHED THEN INSERT (email, country) VALUES (v.e, 'jp')",
    "DELETE FROM orders WHERE customer_id = 40",
    "DELETE FROM customer WHERE id = 41",
    "DELETE FROM audit WHERE customer_id = 42 RETURNING event",
    "TRUNCATE import_line",
]
WITH_PARAMETERS: list[tuple[str, tuple[object, ...]]] = [
    ("SELECT * FROM customer WHERE id = %s", (23,)),
    ("SELECT * FROM order_item WHERE order_id = %s ORDER BY product_id", (1234,)),
    ("SELECT count(*) FROM orders WHERE customer_id = ANY (%s)", ([1, 2, 3, 290],)),
    ("UPDATE orders SET status = %s WHERE id = %s", ("paid", 1300)),
    ("UPDATE order_item SET quantity = %s WHERE id = %s RETURNING amount", (7, 5000)),
    ("INSERT INTO payment (order_id, paid) VALUES (%s, %s) RETURNING order_id", (1300, 8)),
    ("INSERT INTO customer (email, country) VALUES (%s, %s)", (None, "at")),
    ("DELETE FROM order_item WHERE order_id = %s AND product_id = %s", (1400, 3)),
]
# Rows without their own keys, and with their parents told by what is in those: equal however keys were made.
CONTENTS = {
    "customer": "SELECT email, name, country, notes, created_at FROM customer",
    "orders": "SELECT c.email, o.status, o.total, o.placed_on FROM orders o JOIN customer c ON c.id = o.customer_id",
    "order_item": "SELECT c.email, o.placed_on, i.product_id, i.quantity, i.price, i.amount FROM order_item i"
    " JOIN orders o ON o.id = i.order_id JOIN customer c ON c.id = o.customer_id",
    "payment": "SELECT p.order_id, p.reference, p.paid FROM payment p",
    "product": "SELECT sku, title, price, tags FROM product",
    "audit": "SELECT c.email, a.event, a.at FROM audit a LEFT JOIN customer c ON c.id = a.customer_id",
    **{name: f"SELECT * FROM {name}" for name in ("country", "coupon", "setting", "import_line")},
}


def all_rows(dsn: str) -> dict[str, list[str]]:
    """Every row of every table as text."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        return {
            name: [row[0] for row in connection.execute(f"SELECT t::text FROM {name} AS t ORDER BY 1").fetchall()]
            for name in shop.TABLES
        }


def contents(connection: psycopg.Connection[Any]) -> dict[str, list[str]]:
    """What is in every table, whatever the generated keys."""
    return {name: sorted(map(str, connection.execute(sql).fetchall())) for name, sql in CONTENTS.items()}


def answer(connection: psycopg.Connection[Any], sql: str, values: tuple[object, ...] | None, binary: bool) -> object:
    """Rows, tag and SQLSTATE of a statement."""
    try:
        done = connection.execute(sql, values, binary=binary)
        rows = done.fetchall() if done.description else None
        return rows, done.statusmessage, None
    except psycopg.Error as error:
        return None, None, error.sqlstate


class Twins:
    """The database as it was, and the adopted one behind its proxy."""

    def __init__(self, shards: Shards, untouched: Shards, folder: Path) -> None:
        for database in (shards, untouched):
            database.execute(shop.SCHEMA + shop.FILLING)
        self.dsn, self.untouched = shards.dsns[0], untouched.dsns[0]
        self.before = all_rows(self.dsn)
        self.file = folder / "adopted.yaml"
        assert main(["adopt", self.dsn, "--write", str(self.file)]) == 0
        sections = yaml.safe_load(self.file.read_text())
        self.proxy = Proxy(
            shards.dsns, folder / "proxy", tables=sections["tables"], workers={"per_shard": 0}, apply=False
        )


@pytest.fixture(scope="module")
def twins(test_instances: TestInstances, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twins]:
    shards, untouched = test_instances.create(1), test_instances.create(1)
    yield Twins(shards, untouched, tmp_path_factory.mktemp("adopt"))
    test_instances.drop(shards)
    test_instances.drop(untouched)


def test_the_proposal_is_what_plan_accepts_and_apply_changes_no_row(
    twins: Twins, capsys: pytest.CaptureFixture[str]
) -> None:
    assert [(table.name, table.parent) for table in load_config(twins.file).tables] == [
        ("customer", None), ("orders", "customer"), ("order_item", "orders"), ("payment", "orders"),
        ("country", None), ("product", None),
    ]  # fmt: skip
    assert main(["plan", "-s", "-c", str(twins.file)]) == 1
    assert "before a second shard" in capsys.readouterr().out
    assert all_rows(twins.dsn) == twins.before
    twins.proxy.run_command("apply")
    assert all_rows(twins.dsn) == twins.before
    assert asyncio.run(is_applied(load_config(twins.file)))
    assert_verified(twins.file)


@pytest.mark.parametrize("binary", [False, True], ids=["simple protocol, text", "extended protocol, binary"])
def test_the_adopted_database_answers_as_the_untouched_one_does(twins: Twins, binary: bool) -> None:
    with (
        twins.proxy as proxy,
        psycopg.connect(proxy.server.dsn, autocommit=True) as adopted,
        psycopg.connect(twins.untouched, autocommit=True) as untouched,
    ):
        statements: list[tuple[str, tuple[object, ...] | None]] = [(sql, None) for sql in [*READS, *WRITES, *READS]]
        for sql, values in [*statements, *WITH_PARAMETERS]:
            assert answer(adopted, sql, values, binary) == answer(untouched, sql, values, binary), sql
        assert contents(adopted) == contents(untouched)
        made = adopted.execute("SELECT min(id) FROM customer WHERE email = 'new@example.com'").fetchone()
        assert made is not None
        assert made[0] >= PLACED_FLAG
    assert_verified(twins.file)
    assert verdict_of(twins.file).rows > 8000


def test_keys_of_several_columns_are_proposed_as_the_database_has_them(
    one_shard: Shards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one_shard.execute(
        "CREATE TABLE bill (tenant int, number text, note text, PRIMARY KEY (tenant, number));"
        "CREATE TABLE entry (tenant int NOT NULL, number text NOT NULL, place int, PRIMARY KEY (tenant, number, place),"
        "  FOREIGN KEY (number, tenant) REFERENCES bill (number, tenant));"
        "CREATE TABLE visit (place int, at bigserial, PRIMARY KEY (place, at));"
        "INSERT INTO bill SELECT n % 7, 'n' || n FROM generate_series(1, 3000) AS n;"
        "INSERT INTO entry SELECT tenant, number, m FROM bill, generate_series(1, 3) AS m;"
        "INSERT INTO visit SELECT n % 50 FROM generate_series(1, 3000) AS n; ANALYZE"
    )
    rows = "SELECT md5(string_agg(t::text, ',' ORDER BY t::text)) FROM (TABLE entry) AS t"
    before = one_shard.query(rows)
    file = tmp_path / "adopted.yaml"
    assert main(["adopt", one_shard.dsns[0], "--write", str(file)]) == 0
    capsys.readouterr()
    found = {table.name: (table.key_columns, table.parent, table.via_columns) for table in load_config(file).tables}
    assert found == {
        "bill": (("tenant", "number"), None, ()),
        "entry": (("tenant", "number", "place"), "bill", ("tenant", "number")),
        "visit": (("place",), None, ()),
    }
    assert main(["apply", "-c", str(file)]) == 0
    assert one_shard.query(rows) == before
    assert_verified(file)
