"""COPY FROM STDIN split by shard, as one PostgreSQL takes it: rows, tags, errors, transactions, both protocols."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from tests.integration.test_copy import copy_in
from tests.support.messages import COPY_DONE, copy_data, copy_fail
from tests.support.postgres import TestInstances
from tests.support.raw import Message, RawConnection, error_of, kinds
from tests.support.sharded import SHARD_COUNT
from tests.support.twins import Twins, twins

SIGNATURE = b"PGCOPY\n\xff\r\n\0" + bytes(8)
BOTH = pytest.mark.parametrize("by_extended", [False, True], ids=["simple", "extended"])


@pytest.fixture(scope="module")
def pair(test_instances: TestInstances, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twins]:
    with twins(test_instances, tmp_path_factory.mktemp("copy"), pool={"size": 3}) as made:
        yield made


@pytest.fixture(autouse=True)
def nothing_is_left(pair: Twins) -> Iterator[None]:
    yield
    pair.assert_equal_rows()
    assert_rows_at_home(pair)
    with pair.connect() as both:
        for client in both:
            client.rows("DELETE FROM root WHERE tag IS DISTINCT FROM 'kept'")
    pair.deployed.come_to_rest()


def assert_rows_at_home(pair: Twins) -> None:
    """Every root is found by its key, and its children with it."""
    sql = "SELECT count(*) FROM root WHERE foreshard.bucket_of(id) % 1 = 0"
    assert sum(int(str(pair.deployed.shards.query(sql, on=shard)[0][0])) for shard in range(SHARD_COUNT)) >= 60
    with pair.deployed.server.connect() as client:
        for (key,) in client.rows("SELECT id FROM root WHERE tag IS DISTINCT FROM 'kept' LIMIT 40"):
            assert client.rows(f"SELECT count(*) FROM root WHERE id = {int(key or 0)}") == [[b"1"]]


def told(answer: list[Message]) -> list[str]:
    """What a client hears: types, tags, errors with their context."""
    lines = []
    for message in answer:
        if message.kind == b"E":
            fields = message.fields
            lines.append(" | ".join(f"{code} {fields[code]}" for code in "CMDHW" if code in fields))
        elif message.kind not in b"12n":
            lines.append(f"{message.kind.decode()} {message.body!r}")
    return lines


def compare(pair: Twins, sql: str, *messages: bytes, by_extended: bool = False) -> list[str]:
    """The same COPY on both; what both say."""
    with pair.connect() as both:
        answers = [told(copy_in(client, sql, *messages, by_extended=by_extended)) for client in both]
        assert answers[0] == answers[1]
        assert [kinds(client.query("SELECT 1")) for client in both] == ["TDCZ"] * 2
    return answers[0]


def binary(*rows: tuple[int | None, bytes | None, int | None], trailer: bytes = b"\xff\xff") -> bytes:
    """Rows of (id, tag, n)."""
    made = SIGNATURE
    for key, tag, n in rows:
        made += struct.pack("!h", 3)
        for value in (
            None if key is None else struct.pack("!q", key), tag, None if n is None else struct.pack("!i", n)
        ):  # fmt: skip
            made += struct.pack("!i", -1) if value is None else struct.pack("!i", len(value)) + value
    return made + trailer


TEXT = b"".join(b"%d\tcopied\\t%d\t%d\n" % (n, n, n) for n in range(1000, 1300))
CSV = b"".join(b'%d,%d,"co""p\nied, %d"\n' % (n, n, n) for n in range(1000, 1300))
GOOD = [
    ("COPY root (id, tag, n) FROM STDIN", TEXT),
    ("COPY root FROM STDIN", TEXT),
    ("COPY root FROM STDIN", TEXT[:-1]),
    ("COPY root FROM STDIN", TEXT.replace(b"\n", b"\r\n")),
    ("COPY root FROM STDIN", TEXT.replace(b"\n", b"\r")),
    ("COPY root FROM STDIN", TEXT + b"\\.\nwhat comes behind is not read\n"),
    ("COPY root FROM STDIN", b""),
    ("COPY root (n, id, tag) FROM STDIN WITH (FORMAT csv)", CSV),
    ("COPY root (n, id, tag) FROM STDIN CSV HEADER", b'n,"id\n",tag\n' + CSV),
    ("COPY root (n, id, tag) FROM STDIN WITH (FORMAT csv, HEADER match)", b"n,id,tag\n" + CSV),
    ("COPY root (n, id, tag) FROM STDIN WITH (FORMAT csv, HEADER)", b"n,id,tag\n"),
    ("COPY root (tag, id) FROM STDIN (DELIMITER '|', NULL 'none', HEADER)", b"a|b\n" + b"none|1001\nx\\|y|1002\n"),
    ("COPY root (tag, id) FROM STDIN (FORMAT csv, QUOTE '''', ESCAPE '\\')", b"'it\\'s',1001\n,'1002'\n"),
    ("COPY root (tag, id) FROM STDIN (FORMAT csv, NULL '-', FORCE_NULL (tag))", b'"-",1001\nx,1002\n'),
    ("COPY root (tag, id) FROM STDIN (FORMAT csv, FORCE_NOT_NULL (tag), ENCODING 'utf8')", b",1001\nx,1002\n"),
    ("COPY root (id, tag, n) FROM STDIN (DEFAULT 'D')", b"1001\tx\tD\n1002\ty\t2\n"),
    ("COPY root (id, tag, n) FROM STDIN WHERE n % 2 = 0", TEXT),
    (
        "COPY root (id, tag, n) FROM STDIN (ON_ERROR ignore, LOG_VERBOSITY silent)",
        b"1001\tx\t1\n1002\ty\tz\n1003\t\t3\n",
    ),
    ("COPY root FROM STDIN (FORMAT binary)", binary(*((n, b"copied", n) for n in range(1000, 1300)))),
    ("COPY BINARY root FROM STDIN", binary((1000, None, 1), (1002, b"x", 2), trailer=b"")),
    ("COPY BINARY root FROM STDIN", binary()),
]


@BOTH
@pytest.mark.parametrize(("sql", "data"), GOOD)
def test_rows_arrive_as_in_one_postgres(pair: Twins, sql: str, data: bytes, by_extended: bool) -> None:
    pieces = [copy_data(data[at : at + 700]) for at in range(0, len(data), 700)]
    assert compare(pair, sql, *pieces, COPY_DONE, by_extended=by_extended)[-2].startswith("C b'COPY ")


@pytest.mark.parametrize("size", [1, 2, 3, 13])
def test_rows_may_be_cut_anywhere(pair: Twins, size: int) -> None:
    data = TEXT[:600]
    pieces = [copy_data(data[at : at + size]) for at in range(0, len(data), size)]
    compare(pair, "COPY root FROM STDIN", *pieces, COPY_DONE)


# Rows 1 to 4 are on different shards, so that a shard's own line is another one than the client's.
START = b"1001\ta\t1\n1002\tb\t2\n1003\tc\t3\n1004\td\t4\n"
TWICE = b"3001\ta\t1\n3002\tb\t2\n1003\tc\t3\n3004\td\t4\n"
BAD = [
    ("COPY root FROM STDIN", START + b"1005\te\tnot a number\n1006\tf\t6\n"),
    ("COPY root FROM STDIN", START + b"1005\te\n1006\tf\t6\n"),
    ("COPY root FROM STDIN", START + b"1005\te\t5\t6\n"),
    ("COPY root FROM STDIN", START + b"1003\te\t5\n"),
    ("COPY root FROM STDIN", START + b"1005\te\t\\N\n"),
    ("COPY root FROM STDIN", START + b"1005\te\t5\r\n"),
    ("COPY root FROM STDIN", START + b"1005\te\t5\n\xff\n"),
    ("COPY root FROM STDIN", START + b"1005\t\xff\t5\n"),
    ("COPY root FROM STDIN (HEADER match)", b"id\ttag\tm\n" + START),
    ("COPY root (nothing) FROM STDIN", START),
    ("COPY root (id, id) FROM STDIN", START),
    ("COPY root FROM STDIN (DELIMITER 'too long')", START),
    ("COPY root FROM STDIN (FORMAT csv, QUOTE 'xx')", START),
    ("COPY root FROM STDIN (FORMAT csv)", b'1001,a,1\n1002,b,2\n1003,"c\n\n,3\n'),
    ("COPY root FROM STDIN (FORMAT csv)", b'1001,a,1\n1002,"b\n",2\n1003,c,x\n'),
    ("COPY root FROM STDIN (FORMAT binary)", binary((1001, b"a", 1), (1002, b"b", 2), (1003, b"c", None))),
    ("COPY root FROM STDIN (FORMAT binary)", binary((1001, b"a", 1)) + b"more"),
    ("COPY root FROM STDIN (FORMAT binary)", binary((1001, b"a", 1), (1002, b"b", 2), trailer=b"")[:-2]),
    ("COPY root FROM STDIN (FORMAT binary)", b"not binary at all"),
    ("COPY root FROM STDIN (FORMAT binary)", b""),
]


@BOTH
@pytest.mark.parametrize(("sql", "data"), BAD)
def test_what_is_wrong_is_told_as_one_postgres_does(pair: Twins, sql: str, data: bytes, by_extended: bool) -> None:
    compare(pair, sql, copy_data(data), COPY_DONE, by_extended=by_extended)


@BOTH
@pytest.mark.parametrize("key", [b"x", b"", b"99999999999999999999", b"1.5"])
def test_a_key_that_is_none_is_told_with_its_line(pair: Twins, key: bytes, by_extended: bool) -> None:
    with pair.connect() as both:
        data = copy_data(START + key + b"\te\t5\n")
        proxied, direct = (
            error_of(copy_in(client, "COPY root FROM STDIN", data, COPY_DONE, by_extended=by_extended))
            for client in both
        )
        assert (proxied["C"], proxied["M"]) == (direct["C"], direct["M"])
        assert proxied["W"] == "COPY root, line 5"
        assert [kinds(client.query("SELECT 1")) for client in both] == ["TDCZ"] * 2


@BOTH
def test_a_key_that_is_null_is_told_with_its_line(pair: Twins, by_extended: bool) -> None:
    with pair.deployed.server.connect() as client:
        for sql, data in (("COPY root FROM STDIN", b"\\N\te\t5\n"), ("COPY child (root_id) FROM STDIN", b"\\N\n")):
            found = error_of(copy_in(client, sql, copy_data(data), COPY_DONE, by_extended=by_extended))
            assert (found["C"], found["W"].endswith(", line 1")) == ("23502", True)


@BOTH
def test_children_live_with_their_parents(pair: Twins, by_extended: bool) -> None:
    data = b"".join(b"%d\tof %d\n" % (key, key) for key in range(1, 61) for _ in range(3))
    for _tag in ("a", "b"):
        compare(pair, "COPY child (root_id, tag) FROM STDIN", copy_data(data), COPY_DONE, by_extended=by_extended)
    with pair.connect() as both:
        sql = "SELECT root_id, count(*) FROM child JOIN root ON root.id = root_id GROUP BY root_id ORDER BY root_id"
        assert both[0].rows(sql) == both[1].rows(sql) == [[b"%d" % key, b"6"] for key in range(1, 61)]
        for client in both:
            client.rows("DELETE FROM child")
    compare(pair, "COPY child (root_id, tag) FROM STDIN", copy_data(b"1\tx\n999999\ty\n"), COPY_DONE)


def test_given_keys_of_children_must_name_their_parents_bucket(pair: Twins) -> None:
    with pair.deployed.server.connect() as client:
        for key in (1, 2, 3):
            client.rows(f"INSERT INTO child (root_id, tag) VALUES ({key}, 'x')")
        rows = client.rows("SELECT id, root_id FROM child ORDER BY root_id")
        client.rows("DELETE FROM child")
        sql = "COPY child (tag, id, root_id) FROM STDIN"
        data = b"".join(b"x\t%s\t%s\n" % (key, parent) for key, parent in rows)
        assert told(copy_in(client, sql, copy_data(data), COPY_DONE))[-2] == r"C b'COPY 3\x00'"
        assert client.rows("SELECT id, root_id FROM child ORDER BY root_id") == rows
        found = error_of(copy_in(client, sql, copy_data(b"x\t%s\t2\n" % rows[0][0]), COPY_DONE))
        assert (found["C"], found["W"]) == ("23514", "COPY child, line 1")
        assert error_of(copy_in(client, sql, copy_data(b"x\t7\t2\n"), COPY_DONE))["C"] == "0A000"
        client.rows("DELETE FROM child")


@BOTH
def test_a_transaction_holds_what_was_copied(pair: Twins, by_extended: bool) -> None:
    with pair.connect() as both:
        for end in ("ROLLBACK", "COMMIT"):
            answers = []
            for client in both:
                found = client.query("BEGIN") + client.query("INSERT INTO root (id, tag) VALUES (2000, 'first')")
                found += copy_in(client, "COPY root FROM STDIN", copy_data(TEXT), COPY_DONE, by_extended=by_extended)
                found += client.query("SELECT count(*) FROM root WHERE id >= 1000")
                found += client.query("SAVEPOINT s")
                found += copy_in(client, "COPY root FROM STDIN", copy_data(TWICE), COPY_DONE, by_extended=by_extended)
                found += client.query("SELECT 1") + client.query("ROLLBACK TO s") + client.query(end)
                found += client.query("SELECT count(*) FROM root WHERE id >= 1000")
                answers.append(told(found))
            assert answers[0] == answers[1]


@BOTH
def test_copyfail_ends_the_copy_and_leaves_nothing(pair: Twins, by_extended: bool) -> None:
    for messages in ((copy_data(START), copy_fail("why not")), (copy_fail("at once"),)):
        compare(pair, "COPY root FROM STDIN", *messages, by_extended=by_extended)
    assert pair.deployed.count("root", "a") == 0


def test_what_is_not_built_says_so(pair: Twins) -> None:
    with pair.deployed.server.connect() as client:
        for sql in (
            "COPY root FROM STDIN; SELECT 1",
            "COPY root FROM STDIN (ENCODING 'latin1')",
            "COPY root FROM '/tmp/file'",
            "COPY root FROM PROGRAM 'cat'",
        ):
            assert error_of(client.query(sql))["C"] == "0A000", sql
            assert kinds(client.query("SELECT 1")) == "TDCZ"


def test_a_client_that_leaves_in_the_middle_leaves_nothing(pair: Twins) -> None:
    for end in (RawConnection.abort, RawConnection.close):
        client = pair.deployed.server.connect()
        assert copy_in_begun(client, "COPY root FROM STDIN") == "G"
        client.send(copy_data(TEXT))
        end(client)
        pair.deployed.come_to_rest()
    with pair.deployed.server.connect() as other:
        assert other.rows("SELECT count(*) FROM root WHERE id >= 1000") == [[b"0"]]


def copy_in_begun(client: RawConnection, sql: str) -> str:
    """Start a COPY; what the server says first."""
    client.send(query_of(sql))
    return client.read_message().kind.decode()


def query_of(sql: str) -> bytes:
    return b"Q" + struct.pack("!i", len(sql) + 5) + sql.encode() + b"\0"


def test_every_copied_row_becomes_one_event(
    test_instances: TestInstances, tmp_path_factory: pytest.TempPathFactory
) -> None:
    functions = {"seen": {"table": "root", "on": ["insert"], "function": "functions:seen"}}
    folder = tmp_path_factory.mktemp("events")
    (folder / "functions.py").write_text("def seen(event):\n    pass\n")
    with twins(test_instances, folder, triggers=functions) as made:
        made.deployed.shards.execute("DELETE FROM foreshard.outbox; DELETE FROM foreshard.outbox_image")
        with made.deployed.server.connect() as client:
            assert told(copy_in(client, "COPY root FROM STDIN", copy_data(START), COPY_DONE))[-2] == r"C b'COPY 4\x00'"
            assert error_of(copy_in(client, "COPY root FROM STDIN", copy_data(START), COPY_DONE))["C"] == "23505"
        rows = [
            row
            for shard in range(SHARD_COUNT)
            for row in made.deployed.shards.query("SELECT operation, row_key FROM foreshard.outbox", on=shard)
        ]
        assert sorted(rows) == [("insert", str(key)) for key in range(1001, 1005)]
