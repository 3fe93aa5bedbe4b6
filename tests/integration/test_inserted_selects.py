"""INSERT ... SELECT over several shards: shards that insert what they select, and rows that the router carries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from tests.support.messages import SYNC, bind, describe_portal, describe_statement, execute, extended, parse, query
from tests.support.postgres import TestInstances
from tests.support.twins import Twins, comparable, twins

TABLES = """
CREATE TABLE item (code text PRIMARY KEY, root_id bigint, note text, at date, price numeric(8,2));
CREATE TABLE copied (a integer, b text, c numeric(6,1));
CREATE TABLE colour (id integer PRIMARY KEY, name text);
CREATE UNIQUE INDEX child_tag ON child (root_id, tag);
"""


@pytest.fixture(scope="module")
def pair(test_instances: TestInstances, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twins]:
    tables = {"item": {"key": "code"}, "colour": {"reference": True}}
    folder = tmp_path_factory.mktemp("carried")
    with twins(test_instances, folder, schema=TABLES, tables=tables, pool={"size": 4}) as made:
        yield made


@pytest.fixture(autouse=True)
def nothing_is_left(pair: Twins) -> Iterator[None]:
    """After each test: the same rows, no open and no prepared transaction."""
    yield
    pair.deployed.come_to_rest()
    with pair.connect() as (proxied, direct):
        found = [[sorted(client.rows(sql), key=str) for sql in EVERYTHING] for client in (proxied, direct)]
        for client in (proxied, direct):
            for table in ("child", "item", "copied", "colour"):
                client.query(f"DELETE FROM {table}")
            client.query("DELETE FROM root WHERE tag <> 'kept'")
        assert found[0] == found[1]


EVERYTHING = (
    "SELECT tag, n FROM root",
    "SELECT root_id, tag FROM child",
    "SELECT * FROM item",
    "SELECT * FROM copied",
    "SELECT * FROM colour",
)
CONVERSATIONS: dict[str, Sequence[str]] = {
    "children of their parents": [
        "INSERT INTO child (root_id, tag) SELECT id, tag || n FROM root WHERE n > 20",
        "INSERT INTO child (root_id, tag) SELECT id, 'of ' || n FROM root WHERE id = {a} RETURNING root_id, tag",
        "INSERT INTO child (root_id, tag) SELECT root_id, tag || '''' FROM child RETURNING tag",
        "INSERT INTO child (root_id, tag) SELECT id, tag || n FROM root ON CONFLICT (root_id, tag) DO NOTHING",
        "INSERT INTO child (root_id, tag) SELECT id, tag || n FROM root ON CONFLICT (root_id, tag) "
        "DO UPDATE SET tag = excluded.tag || '+' RETURNING tag",
        "SELECT root_id, tag FROM child",
    ],
    "groups and joins that stay": [
        "INSERT INTO child (root_id, tag) SELECT id, generate_series(1, 2) FROM root WHERE n < 9",
        "INSERT INTO child (root_id, tag) SELECT root_id, count(*) || ' of' FROM child GROUP BY root_id",
        "INSERT INTO child (root_id, tag) SELECT DISTINCT root_id, 'd' FROM child ORDER BY 1",
        "INSERT INTO child (root_id, tag) SELECT r.id, r.tag || c.tag FROM root r JOIN child c ON c.root_id = r.id",
    ],
    "a limit": ["INSERT INTO child (root_id, tag) SELECT id, tag FROM root ORDER BY n DESC, id LIMIT 7"],
    "to other keys": [
        "INSERT INTO item (code, root_id, note) SELECT 'k' || id, id, tag FROM root",
        "INSERT INTO item (code, root_id, note) SELECT 'k' || id, id, tag FROM root",
        "INSERT INTO item (code, root_id, note) SELECT 'k' || id, n, tag FROM root WHERE n > 50 ON CONFLICT DO NOTHING",
        "INSERT INTO item (code, note) SELECT 'k' || id, 'new' FROM root WHERE n > 50 "
        "ON CONFLICT (code) DO UPDATE SET note = excluded.note || item.root_id RETURNING code, note",
        "INSERT INTO item (code, note) SELECT 'same', tag FROM root ON CONFLICT (code) DO UPDATE SET note = 'twice'",
        "SELECT code, note FROM item",
        "INSERT INTO item (code) SELECT code || '-' FROM item RETURNING code",
        "INSERT INTO child (root_id, tag) SELECT root_id, code FROM item",
    ],
    "by aggregates": [
        "INSERT INTO item (code, price) SELECT tag || n % 3, avg(n) FROM root GROUP BY 1",
        "INSERT INTO item (code, root_id) SELECT 'all', count(*) FROM root",
        "SELECT code, price FROM item",
    ],
    "constants and types": [
        "INSERT INTO item (code, root_id, at, price) SELECT 'c' || n, n, '2026-02-03', n * 1.237 FROM root",
        "INSERT INTO item (code, at) SELECT 'd' || n, NULL FROM root",
        "INSERT INTO item SELECT 'e' || id, id, tag, '2026-02-03', n FROM root",
        "INSERT INTO item (code, at) SELECT 'f' || n, 'no date' FROM root",
        "INSERT INTO item (code, at) SELECT 'f' || n, tag FROM root",
        "INSERT INTO item (code, price) SELECT 'g' || n, n * 1000000 FROM root",
        "INSERT INTO item (code) SELECT NULL FROM root",
    ],
    "to a plain table": [
        "INSERT INTO copied SELECT id, tag, n * 1.55 FROM root",
        "INSERT INTO copied (b) SELECT tag FROM root WHERE id = {b} RETURNING *",
        "INSERT INTO copied (c) SELECT avg(n) FROM root",
    ],
    "from a plain table": [
        "INSERT INTO root (tag, n) SELECT 'from plain', n FROM plain",
        "INSERT INTO child (root_id, tag) SELECT {a}, n FROM plain",
        "INSERT INTO item (code, note) SELECT n, 'x' FROM plain RETURNING note",
        "INSERT INTO child (root_id, tag) SELECT n, 'plain' FROM plain",
    ],
    "to generated keys": [
        "INSERT INTO root (tag, n) SELECT 'twin', n FROM root WHERE tag = 'kept' RETURNING n",
        "INSERT INTO root (tag, n) SELECT 'again', n FROM root WHERE n > 1000",
        "INSERT INTO root (tag) SELECT 'a' FROM generate_series(1, 700)",
        "INSERT INTO root (tag) SELECT 'b' FROM generate_series(1, 3), root",
    ],
    "to a reference table": [
        "INSERT INTO colour (id, name) SELECT n, tag FROM root WHERE id IN ({a}, {b}, {d})",
        "INSERT INTO colour (id, name) SELECT n, tag FROM root WHERE id IN ({a}, {b}, {d}) ON CONFLICT DO NOTHING",
        "SELECT * FROM colour ORDER BY id",
        "INSERT INTO child (root_id, tag) SELECT r.id, c.name FROM root r JOIN colour c ON c.id = r.n",
    ],
    "unions, WITH and values": [
        "INSERT INTO item (code, note) SELECT 'u' || id, tag FROM root UNION ALL SELECT 'v' || id, 'v' FROM root",
        "WITH big AS (SELECT id, n FROM root) INSERT INTO item (code, root_id) SELECT 'w' || id, n FROM big",
        "INSERT INTO item (code, note) WITH big AS (SELECT id FROM root) SELECT 'x' || id, 'x' FROM big RETURNING code",
        "INSERT INTO item (code, note) SELECT column1, column2 FROM (VALUES ('y', 'a'), ('z', 'b')) AS v",
    ],
    "errors": [
        "INSERT INTO item (code) SELECT 1 / (n - 30) FROM root WHERE n >= 30",
        "INSERT INTO item (code) SELECT nothing FROM root",
        "INSERT INTO item (code, root_id) SELECT tag, n FROM root",
        "INSERT INTO child (root_id, tag) SELECT id + 100000, 'no parent' FROM root",
        "INSERT INTO child (root_id, tag) SELECT CASE WHEN n < 30 THEN id END, 'no parent' FROM root",
    ],
    "in a transaction": [
        *("BEGIN", "INSERT INTO item (code, root_id) SELECT 'k' || id, id FROM root", "SAVEPOINT s"),
        *("INSERT INTO item (code, root_id) SELECT 'k' || id, id FROM root", "SELECT 1", "ROLLBACK TO s"),
        *(
            "INSERT INTO child (root_id, tag) SELECT id, tag FROM root RETURNING tag",
            "COMMIT",
            "SELECT count(*) FROM item",
        ),
    ],
    "values that a shard computes": [
        "INSERT INTO item (code, note) VALUES (lower('ABC'), upper('x'))",
        "INSERT INTO item (code, price, at) VALUES ('a' || 1, 1.25, '2026-01-02'), ('b' || 2, '2.555', now()::date) "
        "ON CONFLICT (code) DO UPDATE SET note = 'there' RETURNING code, price",
        "INSERT INTO child (root_id, tag) VALUES ({a} + 0, 'sum'), ((SELECT min(id) FROM root), 'least')",
        "INSERT INTO child (root_id, tag) VALUES ((SELECT id FROM root WHERE id = {b}), 'one') RETURNING root_id, tag",
        "INSERT INTO child (root_id, tag) VALUES (1 / 0, 'none')",
        "INSERT INTO child (root_id, tag) VALUES ('no number'::text, 'none')",
        "INSERT INTO item (code, price) VALUES (lower('LONG'), 123456789)",
    ],
    "explained": ["BEGIN", "INSERT INTO item (code) SELECT 'k' || id FROM root", "ROLLBACK"],
    "rolled back": [
        *("BEGIN", "INSERT INTO item (code, root_id) SELECT 'k' || id, id FROM root", "SELECT count(*) FROM item"),
        *("ROLLBACK", "SELECT count(*) FROM item"),
    ],
}


@pytest.mark.parametrize("by_extended", [False, True], ids=["simple", "extended"])
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_an_insert_of_selected_rows_answers_as_one_postgresql(pair: Twins, name: str, by_extended: bool) -> None:
    with pair.connect() as (proxied, direct):
        for text in CONVERSATIONS[name]:
            sql = pair.fill_in(text)
            asked = extended(sql) + SYNC if by_extended else query(sql)
            assert answer(proxied.ask(asked)) == answer(direct.ask(asked)), sql


def answer(told: list) -> list[str]:
    """The lines less rows before an error, and less the row that it is about: which comes first is open."""
    lines = [
        " | ".join(part for part in line.split(" | ") if part[0] != "D" or line[0] != "E")
        if "C23502" not in line
        else "E C23502"
        for line in comparable(told)
    ]
    failed = any(line[0] == "E" for line in lines)
    return [line for line in lines if not (failed and line[0] == "D")]


def test_parameters_are_those_of_the_clients_statement(pair: Twins) -> None:
    sql = (
        "INSERT INTO item (code, root_id, note) SELECT $3 || id, $2, note FROM (SELECT id, $1::text AS note FROM root)"
        " AS r WHERE id < $4 ON CONFLICT (code) DO UPDATE SET note = $5 RETURNING code, root_id, note"
    )
    values = [b"n", (77).to_bytes(8, "big"), b"key", (30).to_bytes(8, "big"), b"again"]
    with pair.connect() as both:
        answers = []
        for client in both:
            told = client.ask(parse(sql, "s"), describe_statement("s"), SYNC)
            for results in ([0], [1]):
                told += client.ask(
                    bind(values, name="s", formats=[0, 1, 0, 1, 0], results=results), describe_portal(), execute(), SYNC
                )
            told += client.ask(bind(values, name="s", formats=[0, 1, 0, 1, 0]), *[execute(rows_max=12)] * 4, SYNC)
            answers.append(comparable(told))
        assert answers[0] == answers[1]


@pytest.mark.parametrize(
    "texts",
    [
        ("INSERT INTO item (code) SELECT 'p' || id FROM root", "SELECT count(*) FROM item", "SELECT 1"),
        ("INSERT INTO item (code) SELECT 'p' || id FROM root", "INSERT INTO item (code) SELECT 'p' || id FROM root"),
        ("UPDATE root SET n = n + 1", "INSERT INTO item (code) SELECT 'p' || n FROM root", "SELECT 1 / 0"),
        (
            "INSERT INTO item (code) SELECT 'p' || id || 1 / (n - 5) FROM root",
            "INSERT INTO item (code) VALUES ('never')",
        ),
    ],
)
def test_pipelines_and_strings_with_carried_rows_are_whole(pair: Twins, texts: Sequence[str]) -> None:
    with pair.connect() as (proxied, direct):
        for asked in (b"".join(extended(text) for text in texts) + SYNC, query("; ".join(texts))):
            assert answer(proxied.ask(asked)) == answer(direct.ask(asked))
            for client in (proxied, direct):
                client.query("DELETE FROM item")
                client.query("UPDATE root SET n = id")


def test_many_rows_are_carried_and_split(pair: Twins) -> None:
    rows = ", ".join(f"({1000 + number}, 'many', {number})" for number in range(10_000))
    with pair.deployed.server.connect() as client:
        assert client.query(f"INSERT INTO root (id, tag, n) VALUES {rows}")[0].body == b"INSERT 0 10000\0"
        told = client.query("INSERT INTO item (code, root_id) SELECT 'm' || id, id FROM root WHERE tag = 'many'")
        assert told[0].body == b"INSERT 0 10000\0"
        assert client.value("SELECT count(DISTINCT root_id) FROM item") == "10000"
        assert client.query("DELETE FROM root WHERE tag = 'many'")[0].body == b"DELETE 10000\0"
        client.query("DELETE FROM item")


def test_a_route_is_explained_and_an_insert_too(pair: Twins) -> None:
    with pair.deployed.server.connect() as client:
        sql = "INSERT INTO item (code) SELECT 'k' || id FROM root"
        assert client.rows(f"EXPLAIN (FORESHARD) {sql}")
        assert b"Insert on item" in (client.rows(f"EXPLAIN {sql}")[0][0] or b"")
        assert client.value("SELECT count(*) FROM item") == "0"
