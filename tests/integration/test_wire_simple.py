"""The simple query protocol answers through the proxy as it does without."""

from __future__ import annotations

import pytest

from tests.support import messages
from tests.support.conversation import Step, assert_same, hear, simple
from tests.support.raw import transcript
from tests.support.servers import Pair

ITEMS = (
    "DROP TABLE IF EXISTS item",
    "CREATE TABLE item (id integer PRIMARY KEY, name text, price numeric(10, 2), data bytea)",
    "INSERT INTO item SELECT n, 'item ' || n, n * 1.5, decode(lpad(to_hex(n), 4, '0'), 'hex')"
    " FROM generate_series(1, 100) n",
)

CONVERSATIONS = {
    "constant": ["SELECT 1"],
    "no columns": ["SELECT"],
    "null and empty string": ["SELECT NULL, '', 'x'"],
    "many types": [
        "SELECT 1::int2, 2::int8, 1.5::float4, 'a'::text, '{1,2}'::int[], now() > '2000-01-01', '1 d'::interval"
    ],
    "a table": ["SELECT * FROM item ORDER BY id"],
    "no rows": ["SELECT * FROM item WHERE id < 0"],
    "empty": [""],
    "only white space": [" \n\t "],
    "only a comment": ["-- nothing", "/* nothing /* nested */ */"],
    "only semicolons": [";;"],
    "several statements": ["SELECT 1; SELECT 2; SELECT 3"],
    "several with an empty one": ["SELECT 1;; SELECT 2;"],
    "error in the middle of several": ["SELECT 1; SELECT 1/0; SELECT 3", "SELECT 4"],
    "several that write are one transaction": [
        "INSERT INTO item VALUES (200); INSERT INTO item VALUES (201); SELECT 1/0",
        "SELECT count(*) FROM item",
    ],
    "begin among several": ["BEGIN; INSERT INTO item VALUES (200); COMMIT; SELECT 1/0", "SELECT count(*) FROM item"],
    "begin left open by several": [
        "SELECT 1; BEGIN",
        "INSERT INTO item VALUES (200)",
        "ROLLBACK",
        "SELECT count(*) FROM item",
    ],
    "syntax error": ["SELEC 1", "SELECT 2"],
    "unknown table": ["SELECT * FROM no_such_table"],
    "unknown column": ["SELECT no_such_column FROM item"],
    "error while rows flow": ["SELECT 1 / (50 - id) FROM item ORDER BY id"],
    "insert update delete": [
        "INSERT INTO item VALUES (101, 'new', 1, NULL)",
        "UPDATE item SET name = 'changed' WHERE id > 99",
        "DELETE FROM item WHERE id <= 10",
        "SELECT count(*), max(name) FROM item",
    ],
    "returning": [
        "INSERT INTO item VALUES (101, 'a'), (102, 'b') RETURNING id, name",
        "DELETE FROM item WHERE id > 100 RETURNING *",
    ],
    "unique violation": ["INSERT INTO item VALUES (1)", "SELECT 1"],
    "transaction committed": [
        "BEGIN",
        "UPDATE item SET name = 'x' WHERE id = 1",
        "COMMIT",
        "SELECT name FROM item WHERE id = 1",
    ],
    "transaction rolled back": ["BEGIN", "DELETE FROM item", "ROLLBACK", "SELECT count(*) FROM item"],
    "failed transaction": ["BEGIN", "SELECT 1/0", "SELECT 1", "COMMIT", "SELECT 2"],
    "failed transaction rolled back": ["BEGIN", "SELECT 1/0", "ROLLBACK", "SELECT 2"],
    "savepoints": [
        "BEGIN",
        "UPDATE item SET name = 'kept' WHERE id = 1",
        "SAVEPOINT one",
        "UPDATE item SET name = 'lost' WHERE id = 1",
        "SELECT 1/0",
        "ROLLBACK TO one",
        "SELECT name FROM item WHERE id = 1",
        "RELEASE one",
        "ROLLBACK TO one",
        "COMMIT",
        "SELECT name FROM item WHERE id = 1",
    ],
    "transaction options": [
        "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY",
        "SHOW transaction_isolation",
        "DELETE FROM item",
        "ROLLBACK",
        "START TRANSACTION READ WRITE",
        "SHOW transaction_read_only",
        "END",
    ],
    "commit and chain": ["BEGIN", "COMMIT AND CHAIN", "SELECT 1", "ROLLBACK AND CHAIN", "COMMIT"],
    "commit outside of a transaction": ["COMMIT", "ROLLBACK", "SAVEPOINT s"],
    "begin twice": ["BEGIN", "BEGIN", "COMMIT"],
    "keywords in any case": ["bEgIn", "select 1", "cOmMiT"],
    "transaction behind a comment": ["/* a */ BEGIN -- b", "SELECT 1", "/* c */ COMMIT"],
    "set local": ["BEGIN", "SET LOCAL timezone = 'Asia/Tokyo'", "SHOW timezone", "COMMIT", "SHOW timezone"],
    "notice": ["DO $$ BEGIN RAISE NOTICE 'hello %', 1; RAISE WARNING 'careful'; END $$"],
    "notice of a missing table": ["DROP TABLE IF EXISTS no_such_table"],
    "error with detail and hint": [
        "DO $$ BEGIN RAISE EXCEPTION 'bad' USING ERRCODE = 'FS001', DETAIL = 'some', HINT = 'try', COLUMN = 'c'; END $$"
    ],
    "ddl": [
        "CREATE TABLE made (a int)",
        "ALTER TABLE made ADD b text",
        "INSERT INTO made VALUES (1, 'x')",
        "TABLE made",
        "DROP TABLE made",
    ],
    "create table as": ["CREATE TABLE made AS SELECT 1 AS a", "SELECT * FROM made", "DROP TABLE made"],
    "explain": ["EXPLAIN (COSTS OFF) SELECT * FROM item WHERE id = 1"],
    "catalog": ["SELECT relname FROM pg_class WHERE relname = 'item'", "SELECT 'item'::regclass"],
    "show": ["SHOW server_version", "SHOW transaction_isolation"],
    "values": ["VALUES (1, 'a'), (2, 'b')"],
    "cursor in a transaction": [
        "BEGIN",
        "DECLARE c CURSOR FOR SELECT id FROM item ORDER BY id",
        "FETCH 3 FROM c",
        "MOVE 10 IN c",
        "FETCH 2 FROM c",
        "CLOSE c",
        "COMMIT",
    ],
    "vacuum": ["VACUUM item", "BEGIN", "VACUUM item", "ROLLBACK"],
    "dollar quotes and escapes": [
        "SELECT $$a'b$$, E'\\n', U&'\\0041', 'it''s', $q$;$q$, \"id\" FROM item WHERE id = 1"
    ],
    "unterminated quote": ["SELECT 'abc", "SELECT 1"],
    "unicode": ["SELECT 'žluťoučký kůň', '🐘'"],
    "large row": ["SELECT repeat('x', 3000000)"],
    "large statement": [f"SELECT length('{'y' * 2_000_000}')"],
    "many rows": ["SELECT n, repeat('z', 50) FROM generate_series(1, 20000) n"],
    "deep nesting": ["SELECT " + "(" * 200 + "1" + ")" * 200],
    "copy out": ["COPY (SELECT id, name FROM item ORDER BY id) TO STDOUT", "COPY item TO STDOUT (FORMAT binary)"],
    "copy out of nothing": ["COPY (SELECT 1 WHERE false) TO STDOUT"],
    "copy error": ["COPY (SELECT 1/0) TO STDOUT", "SELECT 1"],
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_answers_are_equal(either_pair: Pair, name: str) -> None:
    assert_same(either_pair, simple(*CONVERSATIONS[name]), ITEMS)


@pytest.mark.parametrize("name", ["several statements", "failed transaction", "returning", "copy out", "notice"])
def test_a_sender_of_single_bytes_is_answered_alike(either_pair: Pair, name: str) -> None:
    assert_same(either_pair, simple(*CONVERSATIONS[name]), ITEMS, bytewise=True)


def test_queries_sent_at_once_are_answered_in_order(either_pair: Pair) -> None:
    statements = ["SELECT 1", "SELECT 1/0", "BEGIN", "SELECT 2", "", "COMMIT", "SELECT 3; SELECT 4"]
    data = b"".join(messages.query(statement) for statement in statements)
    assert_same(either_pair, [Step(data, len(statements))])


def copy_in(statement: str, *data: bytes, end: bytes = messages.COPY_DONE) -> list[Step]:
    copied = b"".join(map(messages.copy_data, data))
    return [Step(messages.query(statement), until=b"GZ"), Step(copied + end)]


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param(copy_in("COPY item (id, name) FROM STDIN", b"200\ta\n201\t", b"b\n"), id="two chunks"),
        pytest.param(copy_in("COPY item (id) FROM STDIN"), id="no data"),
        pytest.param(copy_in("COPY item (id) FROM STDIN", b"200\n", end=messages.copy_fail("why")), id="given up"),
        pytest.param(copy_in("COPY item (id) FROM STDIN", b"1\n"), id="unique violation"),
        pytest.param(copy_in("COPY item (id) FROM STDIN", b"nonsense\n"), id="malformed row"),
        pytest.param(copy_in("COPY item (id) FROM STDIN", *[b"%d\n" % n for n in range(200, 3000)]), id="many chunks"),
        pytest.param(copy_in("COPY item (id, name) FROM STDIN", b"200\t" + b"x" * 3_000_000 + b"\n"), id="large row"),
        pytest.param(
            [Step(messages.query("SELECT 1; COPY item (id) FROM STDIN; SELECT 2"), until=b"GZ"),
             Step(messages.copy_data(b"300\n") + messages.COPY_DONE)],
            id="among several statements",
        ),
        pytest.param(
            [Step(messages.query("COPY item (id) FROM STDIN; COPY item (id) FROM STDIN"), until=b"GZ"),
             Step(messages.copy_data(b"300\n") + messages.COPY_DONE, until=b"GZ"),
             Step(messages.copy_data(b"301\n") + messages.COPY_DONE)],
            id="twice in one string",
        ),
        pytest.param(
            [Step(messages.query("COPY no_such_table FROM STDIN"), until=b"GZ"),
             Step(messages.copy_data(b"1\n") + messages.COPY_DONE + messages.query("SELECT 1"))],
            id="refused, its data ignored",
        ),
    ],
)  # fmt: skip
def test_copy_in_is_answered_alike(either_pair: Pair, steps: list[Step]) -> None:
    assert_same(either_pair, [*steps, *simple("SELECT count(*), max(length(name)) FROM item")], ITEMS)


def test_copy_in_inside_a_transaction_is_answered_alike(either_pair: Pair) -> None:
    steps = [
        *simple("BEGIN"),
        *copy_in("COPY item (id) FROM STDIN", b"200\n"),
        *simple("SELECT count(*) FROM item", "ROLLBACK", "SELECT count(*) FROM item"),
    ]
    assert_same(either_pair, steps, ITEMS)


def test_data_sent_without_waiting_for_copy_in_is_taken(either_pair: Pair) -> None:
    data = messages.query("COPY item (id) FROM STDIN") + messages.copy_data(b"200\n") + messages.COPY_DONE
    assert_same(either_pair, [Step(data + messages.query("SELECT count(*) FROM item"), 2)], ITEMS)


def test_parameter_status_follows_a_local_change(either_pair: Pair) -> None:
    steps = simple("BEGIN", "SET LOCAL application_name = 'changed'", "COMMIT")
    heard = assert_same(either_pair, steps)
    assert sum(line.startswith("S ") for line in heard) == 2


def test_function_call_is_answered_alike_or_refused(either_pair: Pair) -> None:
    with either_pair.direct.connect() as connection:
        oid = int(connection.value("SELECT 'md5(text)'::regprocedure::oid"))
    steps = [Step(messages.function_call(oid, [b"abc"])), *simple("SELECT 1")]
    expected, heard = hear(either_pair.direct, steps), hear(either_pair.proxied, steps)
    assert heard == expected or ("0A000" in heard[0] and heard[1:] == expected[1:])


def test_terminate_closes_the_connection_without_an_answer(either_pair: Pair) -> None:
    for server in either_pair:
        with server.connect() as connection:
            connection.send(messages.TERMINATE)
            assert transcript(connection.read_to_end()) == []
