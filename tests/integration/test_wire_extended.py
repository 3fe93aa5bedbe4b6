"""The extended query protocol answers through the proxy as it does without."""

from __future__ import annotations

import struct

import pytest

from tests.integration.test_wire_simple import ITEMS
from tests.support.conversation import Step, assert_same, simple, synced
from tests.support.messages import (
    BINARY,
    COPY_DONE,
    FLUSH,
    SYNC,
    bind,
    close_portal,
    close_statement,
    copy_data,
    copy_fail,
    describe_portal,
    describe_statement,
    execute,
    extended,
    parse,
    query,
)
from tests.support.servers import Pair

INT4, INT8, TEXT_OID = 23, 20, 25
BY_ID = "SELECT id, name FROM item WHERE id = $1"
SERIES = "SELECT n FROM generate_series(1, 10) n"

CONVERSATIONS: dict[str, list[Step]] = {
    "unnamed": [synced(extended("SELECT $1::int + 1", [b"41"]))],
    "unnamed reused across syncs": [
        synced(parse("SELECT $1::int")),
        synced(bind([b"1"]), execute()),
        synced(bind([b"2"]), execute()),
    ],
    "named": [
        synced(parse(BY_ID, "s")),
        synced(bind([b"7"], name="s"), execute()),
        synced(bind([b"8"], name="s"), execute()),
    ],
    "describe a statement": [synced(parse(BY_ID, "s"), describe_statement("s"))],
    "describe a statement without rows": [synced(parse("UPDATE item SET name = $1", "s"), describe_statement("s"))],
    "describe a portal": [synced(parse(BY_ID), bind([b"7"]), describe_portal(), execute())],
    "only parse": [synced(parse(BY_ID))],
    "only sync": [synced(), synced()],
    "parameter types given": [
        synced(parse("SELECT $1, $2", types=[INT4, TEXT_OID]), bind([b"1", b"a"]), describe_portal(), execute())
    ],
    "binary parameter": [
        synced(parse(BY_ID, types=[INT4]), bind([struct.pack("!i", 9)], formats=[BINARY]), execute()),
    ],
    "binary result": [synced(parse(BY_ID), bind([b"9"], results=[BINARY, 0]), describe_portal(), execute())],
    "binary everything": [
        synced(
            parse("SELECT $1::int8, $2::text"),
            bind([struct.pack("!q", 5), b"x"], formats=[BINARY], results=[BINARY]),
            execute(),
        ),
    ],
    "null parameter": [synced(extended("SELECT $1::text IS NULL", [None]))],
    "empty query": [synced(extended(""))],
    "comment": [synced(extended("-- nothing"))],
    "insert returning": [synced(extended("INSERT INTO item VALUES ($1, $2) RETURNING *", [b"300", b"new"]))],
    "error in parse skips until sync": [
        synced(parse("SELEC"), bind(), execute(), parse("SELECT 1"), bind(), execute()),
        synced(extended("SELECT 2")),
    ],
    "error in bind skips until sync": [
        synced(parse("SELECT $1::int"), bind([b"x"]), execute(), extended("SELECT 1")),
        synced(extended("SELECT 2")),
    ],
    "error in execute skips until sync": [
        synced(extended("SELECT 1/$1::int", [b"0"]), extended("SELECT 1")),
        synced(extended("SELECT 2")),
    ],
    "too few values": [synced(parse("SELECT $1::int"), bind([]), execute()), synced(extended("SELECT 1"))],
    "too many values": [synced(parse("SELECT $1::int"), bind([b"1", b"2"]), execute())],
    "unknown statement": [synced(bind(name="nobody"), execute()), synced(describe_statement("nobody"))],
    "unknown portal": [synced(execute("nobody")), synced(describe_portal("nobody"))],
    "unnamed statement never parsed": [synced(bind(), execute())],
    "close unknown": [synced(close_statement("nobody"), close_portal("nobody"))],
    "close a statement": [
        synced(parse(BY_ID, "s")),
        synced(close_statement("s")),
        synced(bind([b"1"], name="s"), execute()),
        synced(parse("SELECT 'again'", "s"), bind(name="s"), execute()),
    ],
    "name taken": [
        synced(parse(BY_ID, "s")),
        synced(parse("SELECT 1", "s")),
        synced(bind([b"1"], name="s"), execute()),
    ],
    "name free after an error": [
        synced(parse("SELEC", "s")),
        synced(parse("SELECT 1", "s"), bind(name="s"), execute()),
    ],
    "parse before an error keeps the statement": [
        synced(parse("SELECT 1", "s"), parse("SELEC", "t")),
        synced(bind(name="s"), execute()),
    ],
    "parse after an error is skipped": [
        synced(parse("SELEC", "t"), parse("SELECT 1", "s")),
        synced(bind(name="s"), execute()),
    ],
    "close after an error is skipped": [
        synced(parse("SELECT 1", "s")),
        synced(parse("SELEC"), close_statement("s")),
        synced(bind(name="s"), execute()),
    ],
    "two statements in a parse": [synced(extended("SELECT 1; SELECT 2"))],
    "several executes are one transaction": [
        synced(extended("INSERT INTO item VALUES (300)"), extended("SELECT 1/0")),
        synced(extended("SELECT count(*) FROM item")),
    ],
    "several executes succeed": [
        synced(extended("INSERT INTO item VALUES (300)"), extended("SELECT count(*) FROM item"), extended("SELECT 3"))
    ],
    "row limit": [synced(parse(SERIES), bind(), execute(rows_max=4), execute(rows_max=4), execute(rows_max=4))],
    "row limit equal to the rows": [synced(parse(SERIES), bind(), execute(rows_max=10), execute())],
    "portal lost at sync": [synced(parse(SERIES), bind(portal="p"), execute("p", 2)), synced(execute("p", 2))],
    "portal kept in a transaction": [
        *simple("BEGIN"),
        synced(parse(SERIES), bind(portal="p"), execute("p", 2)),
        synced(execute("p", 3)),
        synced(execute("p"), close_portal("p")),
        synced(execute("p")),
        *simple("COMMIT"),
    ],
    "portal name taken": [synced(parse(SERIES), bind(portal="p"), bind(portal="p"))],
    "two portals in turns": [
        synced(parse(SERIES), bind(portal="p"), bind(portal="q"), execute("p", 1), execute("q", 2), execute("p", 3)),
    ],
    "statement closed under its portal": [
        synced(parse(SERIES, "s"), bind(name="s", portal="p"), close_statement("s"), execute("p", 2)),
    ],
    "flush": [
        Step(parse(BY_ID) + describe_statement() + FLUSH, until=b"T"),
        Step(bind([b"3"]) + execute() + FLUSH, until=b"C"),
        Step(SYNC),
    ],
    "flush after an error": [Step(parse("SELEC") + FLUSH, until=b"E"), Step(bind() + execute() + FLUSH + SYNC)],
    "flush with nothing before": [Step(FLUSH + SYNC)],
    "transaction by extended": [
        synced(extended("BEGIN")),
        synced(extended("UPDATE item SET name = 'x' WHERE id = 1")),
        synced(extended("SELECT 1/0")),
        synced(extended("SELECT 1")),
        synced(extended("ROLLBACK")),
        synced(extended("SELECT name FROM item WHERE id = 1")),
    ],
    "transaction in one pipeline": [
        synced(
            extended("BEGIN"), extended("DELETE FROM item"), extended("ROLLBACK"), extended("SELECT count(*) FROM item")
        ),
    ],
    "savepoints by extended": [
        synced(extended("BEGIN")),
        synced(extended("SAVEPOINT a"), extended("DELETE FROM item")),
        synced(extended("ROLLBACK TO SAVEPOINT a"), extended("SELECT count(*) FROM item")),
        synced(extended("COMMIT")),
    ],
    "prepared transaction control": [
        synced(parse("BEGIN", "b"), parse("COMMIT", "c"), parse("UPDATE item SET name = $1 WHERE id = 1", "u")),
        synced(bind(name="b"), execute()),
        synced(bind([b"x"], name="u"), execute()),
        synced(bind(name="c"), execute()),
        synced(bind(name="b"), execute()),
        synced(bind(name="c"), execute()),
    ],
    "simple ends unnamed": [synced(parse("SELECT 1")), *simple("SELECT 2"), synced(bind(), execute())],
    "simple keeps named": [synced(parse("SELECT 1", "s")), *simple("SELECT 2"), synced(bind(name="s"), execute())],
    "mixed in one send": [
        Step(extended("SELECT 1") + SYNC + query("SELECT 2; SELECT 3") + extended("SELECT 4") + SYNC, 3),
    ],
    "simple without a sync before it": [Step(extended("SELECT 1") + query("SELECT 2"), 1), synced()],
    "pipeline of syncs": [Step(b"".join(extended("SELECT $1::int", [b"%d" % n]) + SYNC for n in range(50)), 50)],
    "pipeline with an error": [
        Step(b"".join(extended("SELECT 10 / $1::int", [b"%d" % n]) + SYNC for n in range(-3, 3)), 6),
    ],
    "prepared pipeline with an error": [
        Step(
            parse("SELECT 10 / $1::int", "s")
            + b"".join(bind([b"%d" % n], name="s") + execute() + SYNC for n in (1, 0, 2))
            + close_statement("s")
            + SYNC,
            4,
        ),
    ],
    "result type of a plan changes": [
        synced(parse("SELECT * FROM item WHERE id = 1", "s"), bind(name="s"), execute()),
        *simple("ALTER TABLE item ADD COLUMN more integer"),
        synced(bind(name="s"), execute()),
        *simple("ALTER TABLE item DROP COLUMN more"),
    ],
    "copy out": [synced(extended("COPY (SELECT id FROM item ORDER BY id) TO STDOUT"))],
    "copy in": [
        Step(parse("COPY item (id) FROM STDIN") + bind() + execute() + SYNC, until=b"G"),
        Step(copy_data(b"300\n") + COPY_DONE + SYNC),
        *simple("SELECT count(*) FROM item"),
    ],
    "copy in at once": [
        Step(parse("COPY item (id) FROM STDIN") + bind() + execute() + copy_data(b"300\n") + COPY_DONE + SYNC),
        *simple("SELECT count(*) FROM item"),
    ],
    "copy in given up": [
        Step(parse("COPY item (id) FROM STDIN") + bind() + execute() + FLUSH, until=b"G"),
        Step(copy_data(b"300\n") + copy_fail("why") + SYNC),
        *simple("SELECT count(*) FROM item"),
    ],
    "large parameter": [synced(extended("SELECT length($1), md5($1)", [b"x" * 5_000_000], types=[TEXT_OID]))],
    "many parameters": [
        synced(extended("SELECT " + " + ".join(f"${n}::int" for n in range(1, 1001)), [b"1"] * 1000)),
    ],
    "long statement name": [synced(parse("SELECT 1", "n" * 300), bind(name="n" * 300), execute())],
    "notice": [synced(extended("DO $$ BEGIN RAISE NOTICE 'hello'; END $$"))],
    "vacuum alone": [synced(extended("VACUUM item"))],
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_answers_are_equal(either_pair: Pair, name: str) -> None:
    assert_same(either_pair, CONVERSATIONS[name], ITEMS)


@pytest.mark.parametrize(
    "name", ["named", "binary result", "error in bind skips until sync", "pipeline with an error", "copy in"]
)
def test_a_sender_of_single_bytes_is_answered_alike(either_pair: Pair, name: str) -> None:
    assert_same(either_pair, CONVERSATIONS[name], ITEMS, bytewise=True)


def test_repeating_every_conversation_on_one_connection_changes_nothing(either_pair: Pair) -> None:
    """Statement caches on both levels are warm the second time."""
    for name in ("unnamed", "binary parameter", "insert returning", "row limit", "transaction in one pipeline"):
        steps = [*CONVERSATIONS[name], *simple("DELETE FROM item WHERE id = 300")]
        assert_same(either_pair, [*steps, *steps, *steps], ITEMS)


@pytest.mark.parametrize("size", [8190, 8191, 8192, 8193, 16384, 65535, 65536, 65537, 131072, 1_000_003])
def test_values_around_buffer_sizes_come_back_whole(either_pair: Pair, size: int) -> None:
    value = bytes(33 + index % 90 for index in range(size))
    assert_same(either_pair, [synced(extended("SELECT $1::text, length($1)", [value])), synced(extended("SELECT 1"))])
