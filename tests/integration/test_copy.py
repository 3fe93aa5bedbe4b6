"""COPY of sharded tables, both ways, as one PostgreSQL does it."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from tests.support.messages import COPY_DONE, SYNC, copy_data, copy_fail, extended, query
from tests.support.postgres import TestInstances
from tests.support.raw import Message, RawConnection, kinds
from tests.support.sharded import SHARD_COUNT
from tests.support.twins import Twins, twins

SIGNATURE = b"PGCOPY\n\xff\r\n\0"


@pytest.fixture(scope="module")
def pair(test_instances: TestInstances, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twins]:
    with twins(test_instances, tmp_path_factory.mktemp("copy"), pool={"size": 3}) as made:
        yield made


@pytest.fixture(autouse=True)
def nothing_is_left(pair: Twins) -> Iterator[None]:
    yield
    with pair.deployed.server.connect() as client:
        client.rows("DELETE FROM root WHERE tag <> 'kept'")
    pair.deployed.come_to_rest()
    pair.assert_equal_rows()


def binary_rows(data: bytes) -> list[bytes]:
    """The rows of COPY data in binary format, which has one header and one trailer."""
    assert data.startswith(SIGNATURE + bytes(8))
    assert data.endswith(b"\xff\xff")
    rows, at = [], 19
    while at < len(data) - 2:
        start = at
        (count,) = struct.unpack_from("!h", data, at)
        at += 2
        for _ in range(count):
            (size,) = struct.unpack_from("!i", data, at)
            at += 4 + max(size, 0)
        rows.append(data[start:at])
    assert at == len(data) - 2
    return sorted(rows)


def essence(answer: list[Message]) -> list[str]:
    """Types of messages, the lines of COPY sorted, tags and SQLSTATEs; runs of data are one."""
    data = b"".join(message.body for message in answer if message.kind == b"d")
    lines = binary_rows(data) if data.startswith(SIGNATURE) else sorted(data.splitlines(True))
    told = [message for message in answer if message.kind not in b"d12n"]
    shown = [message.fields["C"] if message.kind == b"E" else repr(message.body) for message in told]
    return [kinds(told), *map(repr, lines), *shown]


@pytest.mark.parametrize("by_extended", [False, True], ids=["simple", "extended"])
@pytest.mark.parametrize(
    "sql",
    [
        "COPY root TO STDOUT",
        "COPY root (tag, n) TO STDOUT WITH (FORMAT csv, FORCE_QUOTE *)",
        "COPY public.root (n) TO STDOUT (DELIMITER ',', NULL 'none')",
        "COPY child TO STDOUT",
        "COPY root (nothing) TO STDOUT",
        "COPY root (n) TO STDOUT (DELIMITER 'too long')",
        "COPY plain (tag, n) TO STDOUT",
        "COPY root TO STDOUT WITH (FORMAT csv, HEADER)",
        "COPY root (n, tag) TO STDOUT WITH (HEADER)",
        "COPY child TO STDOUT WITH (FORMAT csv, HEADER)",
        "COPY root (id, tag, n) TO STDOUT WITH (FORMAT binary)",
        "COPY child TO STDOUT WITH (FORMAT binary)",
        "COPY (SELECT id FROM root WHERE n < 0) TO STDOUT (FORMAT binary)",
        "COPY root (n) TO STDOUT (FORMAT binary, HEADER)",
        "COPY (SELECT n, tag FROM root WHERE id = {a}) TO STDOUT",
        "COPY (SELECT n, tag FROM root WHERE id IN ({a}, {b}, {c})) TO STDOUT (FORMAT csv, HEADER)",
        "COPY (SELECT n, tag FROM root WHERE n > 10) TO STDOUT (FORMAT binary)",
        "COPY (SELECT n, tag FROM root ORDER BY n DESC, tag LIMIT 7) TO STDOUT (FORMAT csv)",
        "COPY (SELECT count(*), sum(n) FROM root WHERE id = {a}) TO STDOUT",
        "COPY (SELECT count(*), sum(n) FROM root) TO STDOUT (FORMAT csv, HEADER)",
        "COPY (SELECT nothing FROM root) TO STDOUT",
        "COPY (SELECT 1) TO STDOUT",
    ],
)
def test_copy_out_gives_the_rows_of_all_shards(pair: Twins, sql: str, by_extended: bool) -> None:
    sql = pair.fill_in(sql)
    with pair.connect() as both:
        asked = extended(sql) + SYNC if by_extended else query(sql)
        proxied, direct = (essence(client.ask(asked) + client.query("SELECT 1")) for client in both)
        assert proxied == direct


def copy_in(client: RawConnection, sql: str, *messages: bytes, by_extended: bool = False) -> list[Message]:
    """Start a COPY, send messages, and read to ReadyForQuery."""
    client.send(extended(sql) + SYNC if by_extended else query(sql))
    answer = client.read_until(b"GZ")
    if answer[-1].kind == b"G":
        client.send(*messages, SYNC if by_extended else b"")
        answer += client.read_until()
    return answer


@pytest.mark.parametrize("by_extended", [False, True], ids=["simple", "extended"])
def test_copied_rows_without_keys_are_placed_together(pair: Twins, by_extended: bool) -> None:
    with pair.deployed.server.connect() as client:
        data = [copy_data(b"".join(b"copied\t%d\n" % n for n in range(part, part + 100))) for part in (0, 100, 200)]
        told = copy_in(client, "COPY root (tag, n) FROM STDIN", *data, COPY_DONE, by_extended=by_extended)
        assert b"COPY 300\0" in [message.body for message in told]
        found = client.rows("SELECT id, n FROM root WHERE tag = 'copied'")
        assert sorted(int(row[1] or 0) for row in found) == list(range(300))
        for key, number in found[:5]:
            assert client.rows(f"SELECT n FROM root WHERE id = {int(key or 0)}") == [[number]]
    counts = [pair.deployed.shards.query("SELECT count(*) FROM root WHERE tag = 'copied'", on=shard)[0][0]
              for shard in range(SHARD_COUNT)]  # fmt: skip
    assert sorted(counts) == [0, 0, 300]


def test_what_is_given_up_or_wrong_leaves_nothing(pair: Twins) -> None:
    sql = "COPY root (tag, n) FROM STDIN"
    with pair.connect() as both:
        for messages in ((copy_data(b"x\t1\n"), copy_fail("why not")), (copy_data(b"x\tnone\n"), COPY_DONE)):
            proxied, direct = (essence(copy_in(client, sql, *messages)) for client in both)
            assert proxied == direct
        client = both[0]
        client.rows("BEGIN")
        copy_in(client, sql, copy_data(b"x\t1\n"), COPY_DONE)
        client.rows("ROLLBACK")
    client = pair.deployed.server.connect()
    client.send(query(sql), copy_data(b"x\t1\n"))
    client.abort()
    pair.deployed.come_to_rest()
    assert pair.deployed.count("root", "x") == 0
