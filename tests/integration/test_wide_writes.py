"""Statements that write rows of several shards: all of them or none, and told as one PostgreSQL tells it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from tests.support.messages import SYNC, bind, describe_portal, execute, extended, parse, query
from tests.support.postgres import TestInstances
from tests.support.raw import error_of, kinds
from tests.support.sharded import ROOTS, SHARD_COUNT
from tests.support.twins import Twins, comparable, twins


@pytest.fixture(scope="module")
def pair(test_instances: TestInstances, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twins]:
    with twins(test_instances, tmp_path_factory.mktemp("wide"), pool={"size": 3}) as made:
        made.deployed.shards.execute("CREATE UNIQUE INDEX child_tag ON child (root_id, tag)")
        made.reference.run("CREATE UNIQUE INDEX child_tag ON child (root_id, tag)")
        yield made


@pytest.fixture(autouse=True)
def nothing_is_left(pair: Twins) -> Iterator[None]:
    """After each test: the same rows, no open and no prepared transaction."""
    yield
    pair.deployed.come_to_rest()
    pair.assert_equal_rows()


CONVERSATIONS: dict[str, Sequence[str]] = {
    "every row": ["UPDATE root SET n = n + 1", "SELECT 1"],
    "every row, returned": ["UPDATE root SET n = n + 1 RETURNING id, n AS number"],
    "some rows": ["UPDATE root SET n = n + 1 WHERE n % 3 = 0 RETURNING *"],
    "no row": ["UPDATE root SET n = 0 WHERE n = -7 RETURNING *", "DELETE FROM root WHERE n = -7"],
    "several keys": ["UPDATE root SET n = n + 1 WHERE id IN ({a}, {b}, {d}) RETURNING id"],
    "several keys of one shard": ["UPDATE root SET n = n + 1 WHERE id IN ({a}, {c})"],
    "keys in an array": ["UPDATE root SET n = n + 1 WHERE id = ANY ('{{{a},{b}}}') RETURNING n"],
    "a range": ["DELETE FROM root WHERE id > 1000 RETURNING id", "UPDATE root SET n = 5 WHERE id BETWEEN 3 AND 20"],
    "a child's row by its key": ["UPDATE child SET tag = 'x' WHERE id = 5", "DELETE FROM child WHERE id IN (5, 6)"],
    "a join inside the group": ["UPDATE root SET n = 1 FROM child WHERE child.root_id = root.id RETURNING root.id"],
    "a sub-select inside the group": [
        "DELETE FROM root WHERE n < -5 AND NOT EXISTS (SELECT 1 FROM child WHERE root_id = root.id)",
    ],
    "an error of every shard": ["UPDATE root SET n = 1 / (n - n)", "SELECT 1"],
    "an error of one shard": ["UPDATE root SET n = 1 / (id - {b}) WHERE id <> 0", "SELECT 1"],
    "an error of one shard by key": ["UPDATE root SET n = 1 / (id - {b}) WHERE id IN ({a}, {b}, {d})", "SELECT 1"],
    "no such column": ["UPDATE root SET nothing = 1", "DELETE FROM root WHERE nothing = 1"],
    "in a transaction": [
        *("BEGIN", "UPDATE root SET n = 3", "SELECT n FROM root WHERE id = {a}", "DELETE FROM root WHERE id < 0"),
        *("COMMIT", "SELECT n FROM root WHERE id IN ({a}, {b})"),
    ],
    "rolled back": ["BEGIN", "UPDATE root SET n = 99", "ROLLBACK", "SELECT n FROM root WHERE id IN ({a}, {b})"],
    "a savepoint": [
        *("BEGIN", "UPDATE root SET n = 4 WHERE id = {a}", "SAVEPOINT s", "UPDATE root SET n = 99", "ROLLBACK TO s"),
        *("UPDATE root SET n = n + 1 RETURNING n", "COMMIT", "SELECT n FROM root"),
    ],
    "an error in a transaction": [
        *("BEGIN", "UPDATE root SET n = 4", "SAVEPOINT s", "UPDATE root SET n = 1 / (id - {b})", "SELECT 1"),
        *("ROLLBACK TO s", "UPDATE root SET n = 6 WHERE id IN ({a}, {b})", "COMMIT", "SELECT n FROM root"),
    ],
    "rows of several shards": [
        "INSERT INTO root (id, tag, n) VALUES (1001, 'new', 1), (1002, 'it''s (', 2), (1003, NULL, 3), (1004, 'é', 4)",
        "SELECT id, tag, n FROM root WHERE id > 1000", "DELETE FROM root WHERE id > 1000",
    ],
    "rows returned in their order": [
        "INSERT INTO root (id, tag) VALUES (1004, 'd'), (1001, 'a'), (1003, 'c'), (1002, 'b'), (1009, 'i') RETURNING *",
        "INSERT INTO root (id, tag) VALUES (1004, 'D'), (1001, 'A'), (1005, 'E') ON CONFLICT DO NOTHING RETURNING id",
        "INSERT INTO root (id, tag) VALUES (1004, 'D'), (1002, 'A'), (1006, 'F'), (1007, 'G') "
        "ON CONFLICT (id) DO UPDATE SET tag = excluded.tag RETURNING id, tag",
        "DELETE FROM root WHERE id > 1000",
    ],
    "rows of several parents": [
        "INSERT INTO child (root_id, tag) VALUES ({a}, 'x'), ({b}, 'x'), ({d}, 'y'), ({c}, 'x'), ({a}, 'z')"
        " RETURNING root_id, tag",
        "SELECT root_id, tag FROM child", "UPDATE child SET tag = tag || '!' RETURNING tag",
        "DELETE FROM child RETURNING root_id",
    ],
    "a row that is there, on the second shard": [
        "INSERT INTO root (id, tag) VALUES (1001, 'x'), (1002, 'x'), (1003, 'x'), (1004, 'x'), ({b}, 'x')",
        "SELECT id FROM root WHERE id > 1000",
    ],
    "a parent that is not there": ["INSERT INTO child (root_id, tag) VALUES ({a}, 'x'), ({b}, 'x'), (77777, 'x')"],
    "no parents, and a value twice": [
        "INSERT INTO child (root_id, tag) VALUES (77777, 'x'), (77778, 'x'), (77779, 'x'), ({a}, 'x'), ({a}, 'x')",
        "INSERT INTO child (root_id, tag) VALUES (77777, 'x'), (77778, 'x'), (77779, 'x'), ({b}, 'x'), ({b}, 'x')"
        " RETURNING root_id",
        "INSERT INTO child (root_id, tag) VALUES (77777, 'x'), (77778, 'x'), (77779, 'x'), ({b}, 'y')", "SELECT 1",
    ],
    "a value that is none": ["INSERT INTO root (id, n) VALUES (1001, 1), (1002, 2), (1003, 'three'), (1004, 4)"],
    "split in a transaction": [
        *("BEGIN", "INSERT INTO root (id) VALUES (1001), (1002), (1003), (1004)", "SAVEPOINT s"),
        *("INSERT INTO root (id) VALUES (1005), (1006), (1007), ({b})", "ROLLBACK TO s"),
        *("INSERT INTO root (id) VALUES (1005), (1006), (1007), (1008) RETURNING id", "COMMIT"),
        *("SELECT id FROM root WHERE id > 1000", "DELETE FROM root WHERE id > 1000"),
    ],
    "MERGE of constants": [
        "INSERT INTO root (id, tag) VALUES (1001, 'a'), (1003, 'c')",
        "MERGE INTO root r USING (VALUES (1004, 'D'), (1001, 'A'), (1003, 'it''s ('), (1002, 'B')) AS v(id, tag) "
        "ON r.id = v.id WHEN MATCHED THEN UPDATE SET tag = v.tag "
        "WHEN NOT MATCHED THEN INSERT (id, tag) VALUES (v.id, v.tag) RETURNING merge_action(), r.id, v.tag",
        "MERGE INTO root r USING (VALUES (1004, 'D'), (1001, 'A'), (1005, 'E')) AS v(id, tag) ON r.id = v.id "
        "WHEN MATCHED THEN DELETE",
        "MERGE INTO root r USING (VALUES (1004, 1), (1001, 0), (1005, 1)) AS v(id, n) ON r.id = v.id "
        "WHEN NOT MATCHED THEN INSERT (id, n) VALUES (v.id, nullif(v.n, 0))",
        "SELECT id, tag FROM root WHERE id > 1000", "DELETE FROM root WHERE id > 1000",
    ],
    "writes in WITH, shown": [
        "WITH w AS (UPDATE root SET n = n + 1 WHERE n % 2 = 0 RETURNING *) SELECT id, n FROM w WHERE n > 3",
        "WITH w AS (UPDATE root SET n = n + 1 RETURNING id, n) SELECT n AS number, id FROM w WHERE false", "SELECT 1",
    ],
    "writes in WITH, merged": [
        "WITH w AS (UPDATE root SET n = n + 1 WHERE n % 3 = 0 RETURNING *) SELECT count(*), count(tag) AS tags FROM w",
        "WITH w AS (UPDATE root SET n = n - 1 WHERE n = -7 RETURNING *) SELECT count(*) FROM w",
    ],
    "writes in WITH by keys": [
        "WITH w AS (UPDATE root SET n = n + 2 WHERE id = {a}) UPDATE root SET n = n + 5 WHERE id = {b} RETURNING id, n",
        "WITH w AS (UPDATE root SET n = n + 2 WHERE id = {a} RETURNING id) SELECT id FROM w",
        "WITH w AS (UPDATE root SET n = 1 / (n - n) WHERE id = {a}) UPDATE root SET n = 1 WHERE id = {b}", "SELECT 1",
    ],
    "writes in WITH of a group": [
        "INSERT INTO child (root_id, tag) VALUES ({a}, 'w'), ({b}, 'w'), ({d}, 'v')",
        "WITH w AS (DELETE FROM child WHERE tag = 'v') UPDATE child SET tag = 'u' WHERE tag = 'w' RETURNING root_id",
        "WITH w AS (DELETE FROM child RETURNING root_id, tag) "
        "INSERT INTO child (root_id, tag) SELECT root_id, tag || '!' FROM w RETURNING root_id, tag",
        "WITH w AS (DELETE FROM child RETURNING *) SELECT count(*) FROM w",
    ],
    "read only, no row": ["BEGIN READ ONLY", "INSERT INTO plain (tag) SELECT tag FROM root WHERE n = -7", "ROLLBACK"],
    "read only": ["BEGIN READ ONLY", "UPDATE root SET n = 4", "ROLLBACK"],
}  # fmt: skip


@pytest.mark.parametrize("by_extended", [False, True], ids=["simple", "extended"])
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_write_answers_as_one_postgresql(pair: Twins, name: str, by_extended: bool) -> None:
    with pair.connect() as (proxied, direct):
        for text in CONVERSATIONS[name]:
            sql = pair.fill_in(text)
            asked = extended(sql) + SYNC if by_extended else query(sql)
            assert rows_or_error(comparable(proxied.ask(asked))) == rows_or_error(comparable(direct.ask(asked))), sql


def test_what_a_write_in_with_returns_does_not_reach_another_shard(pair: Twins) -> None:
    change = (
        "WITH w AS (UPDATE root SET n = n + 2 WHERE id = {a} RETURNING id) UPDATE root SET n = n + 5 WHERE id = {%s}"
    )
    with pair.connect() as (proxied, direct):
        refused = pair.fill_in(change % "b" + " AND EXISTS (SELECT 1 FROM w)")
        assert error_of(proxied.query(refused))["C"] == "0A000"
        same = pair.fill_in(change % "c" + " AND EXISTS (SELECT 1 FROM w) RETURNING n")
        assert comparable(proxied.query(same)) == comparable(direct.query(same))


def rows_or_error(lines: list[str]) -> list[str]:
    """Rows of the shards before the one that failed are heard; PostgreSQL, which fails first, gives none."""
    return [line for line in lines if line[0] != "D"] if any(line[0] == "E" for line in lines) else lines


@pytest.mark.parametrize(
    "texts",
    [
        ("UPDATE root SET n = n + 1", "UPDATE root SET n = n + 1 WHERE id = {a}", "SELECT n FROM root"),
        ("UPDATE root SET n = n + 1 WHERE id = {a}", "UPDATE root SET n = n + 1", "DELETE FROM root WHERE n = -7"),
        ("UPDATE root SET n = n + 1", "UPDATE root SET n = 1 / (id - {b})"),
        ("SELECT 1", "UPDATE root SET n = n + 1", "SELECT 1 / 0"),
    ],
)
def test_pipelines_and_strings_of_writes_are_whole(pair: Twins, texts: Sequence[str]) -> None:
    filled = [pair.fill_in(text) for text in texts]
    with pair.connect() as (proxied, direct):
        for asked in (b"".join(extended(text) for text in filled) + SYNC, query("; ".join(filled))):
            assert rows_or_error(comparable(proxied.ask(asked))) == rows_or_error(comparable(direct.ask(asked)))


def test_parameters_reach_every_shard(pair: Twins) -> None:
    with pair.connect() as both:
        answers = []
        for client in both:
            asked = parse("UPDATE root SET n = $1 WHERE id = ANY ($2) RETURNING id, n", "s", [23, 1016])
            keys = pair.fill_in("{{{a},{b},{d}}}").encode()
            told = client.ask(asked, bind([b"7", keys], name="s"), describe_portal(), execute(), SYNC)
            told += client.ask(bind([b"8", keys], name="s"), execute(), SYNC)
            answers.append(comparable(told))
        assert answers[0] == answers[1]


def test_rows_with_parameters_go_where_they_belong(pair: Twins) -> None:
    sql = (
        "INSERT INTO root (id, tag, n) VALUES ($1, $2, $9), ($3, 'text', $4), ($5, $2, 3), ($6, $7, $8), ($10, $2, $9)"
        " ON CONFLICT (id) DO UPDATE SET n = $11 RETURNING id, tag, n"
    )
    number = [int(key).to_bytes(8, "big") for key in (1001, 1002, 1003, 1004, 1005)]
    values = [number[0], b"two", number[1], b"4", number[2], number[3], None, b"8", b"9", number[4], b"11"]
    formats = [1, 0, 1, 0, 1, 1, 0, 0, 0, 1, 0]
    with pair.connect() as both:
        answers = []
        for client in both:
            told = client.ask(
                parse(sql, "s"), bind(values, name="s", formats=formats), describe_portal(), execute(), SYNC
            )
            for results in ([0], [1]):
                told += client.ask(bind(values, name="s", formats=formats, results=results), execute(), SYNC)
            told += client.query("SELECT id, tag, n FROM root WHERE id IN (1001, 1002, 1003, 1004, 1005)")
            told += client.query("DELETE FROM root WHERE id > 1000")
            answers.append(comparable(told))
        assert answers[0] == answers[1]


def test_rows_come_back_in_the_order_in_which_they_were_given(pair: Twins) -> None:
    keys = [1000 + 7 * index % 101 for index in range(1, 101)]
    sql = f"INSERT INTO root (id) VALUES {', '.join(f'({key})' for key in keys)} RETURNING id"
    with pair.deployed.server.connect() as client:
        for asked in (query(sql), extended(sql) + SYNC):
            told = client.ask(asked)
            assert [int(message.values[0] or 0) for message in told if message.kind == b"D"] == keys
            assert client.query("DELETE FROM root WHERE id > 1000")[0].body == b"DELETE 100\0"


def test_an_error_says_where_it_is_in_the_clients_text(pair: Twins) -> None:
    sql = "INSERT INTO root (id, n) VALUES (1001, 1), (1002, 2), (1003, 'é'), (1004, 4), (1005, 5), (1006, 6)"
    with pair.connect() as both:
        told = [error_of(client.query(sql)) for client in both]
        assert told[0]["P"] == told[1]["P"]


def test_a_row_limit_means_nothing_without_rows(pair: Twins) -> None:
    with pair.connect() as both:
        for client in both:
            told = client.ask(parse("UPDATE root SET n = 11"), bind(), execute(rows_max=1), SYNC)
            assert kinds(told) == "12CZ"
            assert told[-2].body == b"UPDATE 60\0"


@pytest.mark.parametrize("sql", ["UPDATE root SET n = 12 RETURNING n", "SELECT 12 AS n FROM root FOR UPDATE"])
@pytest.mark.parametrize("limits", [(25, 25, 25), (60, 1, 1), (1, 0), (100, 100), (0, 0), (20, 20, 20, 20)])
def test_a_row_limit_of_a_write_gives_the_rest_later(pair: Twins, limits: Sequence[int], sql: str) -> None:
    asked = b"".join(execute(rows_max=limit) for limit in limits)
    with pair.connect() as both:
        told = [client.ask(parse(sql), bind(), describe_portal(), asked, SYNC) for client in both]
        assert comparable(told[0]) == comparable(told[1])


def test_a_client_that_leaves_in_the_middle_leaves_nothing(pair: Twins) -> None:
    for asked in (query("UPDATE root SET n = -3"), extended("UPDATE root SET n = -3"), query("BEGIN")):
        client = pair.deployed.server.connect()
        client.send(asked)
        if asked == query("BEGIN"):
            client.read_until()
            client.query("UPDATE root SET n = -3")
        client.abort()
    pair.deployed.come_to_rest()
    with pair.connect() as (proxied, direct):
        if proxied.value(pair.fill_in("SELECT n FROM root WHERE id = {a}")) == "-3":  # the first was quick enough
            direct.rows("UPDATE root SET n = -3")


def test_every_row_of_a_wide_write_becomes_one_event(
    test_instances: TestInstances, tmp_path_factory: pytest.TempPathFactory
) -> None:
    functions = {"seen": {"table": "root", "on": ["insert", "update", "delete"], "function": "functions:seen"}}
    folder = tmp_path_factory.mktemp("events")
    (folder / "functions.py").write_text("def seen(event):\n    pass\n")
    with twins(test_instances, folder, triggers=functions) as made:
        made.deployed.shards.execute("DELETE FROM foreshard.outbox; DELETE FROM foreshard.outbox_image")
        with made.deployed.server.connect() as client:
            client.rows(
                "INSERT INTO root (id, tag) VALUES (1001, 'x'), (1002, 'x'), (1003, 'x'), (1004, 'x'), (1005, 'x')"
            )
            client.rows("UPDATE root SET n = n + 1")
            assert kinds(client.ask(extended("DELETE FROM root WHERE tag = 'x'") + SYNC)) == "12nCZ"
            client.query("BEGIN; UPDATE root SET n = 0; ROLLBACK")
            client.query(made.fill_in("UPDATE root SET n = 1 / (id - {b})"))
        found: dict[str, list[str]] = {}
        for shard in range(SHARD_COUNT):
            sql = "SELECT operation, row_key FROM foreshard.outbox"
            for operation, key in made.deployed.shards.query(sql, on=shard):
                found.setdefault(str(operation), []).append(str(key))
        new = ["1001", "1002", "1003", "1004", "1005"]
        kept = [str(key) for key in range(1, ROOTS + 1)]
        assert {operation: sorted(keys) for operation, keys in found.items()} == {
            "insert": new,
            "update": sorted(new + kept),
            "delete": new,
        }
