"""COPY FROM STDIN of rows whose parents are placed by cost: their claims say where the rows live."""

from __future__ import annotations

import contextlib
import random
import re
import struct
from collections.abc import Iterator

import psycopg
import pytest

from tests.integration.test_key_types import KEYS, SCHEMA
from tests.support.away_world import SHARD_COUNT, AwayWorld, away_world
from tests.support.postgres import TestInstances
from tests.support.verified import assert_verified

ROOTS = tuple(f"root{number}" for number in range(len(KEYS)))
CHILDREN = {f"child{number}": f"root{number}" for number in range(len(KEYS))}
PARENTS = 30


@pytest.fixture(scope="module")
def served(test_instances: TestInstances, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AwayWorld]:
    with away_world(test_instances, tmp_path_factory.mktemp("copied"), SCHEMA, ROOTS, CHILDREN) as world:
        for number, name in enumerate(KEYS):
            for side in (world.connect, world.connect_direct):
                with side() as connection:
                    for index in range(PARENTS):
                        insert = f"INSERT INTO root{number} (id, n) VALUES (%s, {index}) ON CONFLICT DO NOTHING"
                        with contextlib.suppress(psycopg.DataError):
                            connection.execute(insert.encode(), [KEYS[name](index)])
        yield world


@pytest.fixture
def world(served: AwayWorld) -> Iterator[AwayWorld]:
    """The deployment, checked at the end."""
    yield served
    served.check()


def told(error: psycopg.Error) -> tuple[str | None, ...]:
    """What an error says. Of keys that are none the proxy says more: it has to read them."""
    found = error.diag
    line = re.search(r"line \d+", found.context or "")
    more = () if found.sqlstate in {"23502", "22P02"} else (found.message_primary, found.message_detail, found.context)
    return found.sqlstate, line and line[0], *more


def copy_in(connection: psycopg.Connection, sql: str, pieces: list[bytes]) -> tuple[str | None, ...] | None:
    """Run it; the error, or None."""
    try:
        with connection.cursor() as cursor, cursor.copy(sql.encode()) as copy:
            for piece in pieces:
                copy.write(piece)
    except psycopg.Error as error:
        return told(error)
    return None


def children_of(connection: psycopg.Connection, number: int) -> list[str]:
    """The rows, but for their generated keys."""
    rows = connection.execute(f"SELECT root_id, tag FROM child{number}".encode()).fetchall()
    return sorted(map(repr, rows))


def cut(chance: random.Random, data: bytes) -> list[bytes]:
    """The data in pieces that end anywhere."""
    places = sorted(chance.sample(range(len(data)), min(8, len(data))))
    return [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]


def assert_with_parents(world: AwayWorld, number: int) -> None:
    """Every child is on the shard of its parent."""
    for shard in range(SHARD_COUNT):
        has_parent = f"EXISTS (SELECT FROM root{number} r WHERE r.id = c.root_id)"
        orphans = f"SELECT count(*) FROM child{number} c WHERE NOT {has_parent}"
        assert world.shards.query(orphans, on=shard) == [(0,)]


@pytest.mark.parametrize("form", ["text", "csv"])
@pytest.mark.parametrize("name", list(KEYS))
def test_rows_go_to_their_parents(world: AwayWorld, name: str, form: str) -> None:
    number, chance = list(KEYS).index(name), random.Random(name + form)
    with world.connect_direct() as reference, world.connect() as proxied:
        keys = [str(key) for (key,) in reference.execute(f"SELECT id::text FROM root{number}".encode())]
        assert world.away_count(f"root{number}") > 0
        for _ in range(3):
            lines = []
            for _ in range(200):
                key = chance.choice(keys)
                shown = key.replace("\\", "\\\\") if form == "text" else '"' + key.replace('"', '""') + '"'
                lines.append(shown + ("\t" if form == "text" else ",") + f"tag {chance.random()}")
            pieces = cut(chance, ("\n".join(lines) + "\n").encode())
            sql = f"COPY child{number} (root_id, tag) FROM STDIN (FORMAT {form})"
            assert copy_in(proxied, sql, pieces) is None
            assert copy_in(reference, sql, pieces) is None
        assert children_of(proxied, number) == children_of(reference, number)
    assert_with_parents(world, number)


@pytest.mark.parametrize("name", list(KEYS))
def test_binary_rows_go_to_their_parents(world: AwayWorld, name: str) -> None:
    number, chance = list(KEYS).index(name), random.Random(name)
    with world.connect_direct() as reference, world.connect() as proxied:
        query = f"COPY (SELECT id, 'binary ' || n FROM root{number} ORDER BY n) TO STDOUT (FORMAT binary)"
        with reference.cursor() as cursor, cursor.copy(query.encode()) as copy:
            data = b"".join(bytes(piece) for piece in copy)
        for pieces in ([data], cut(chance, data)):
            sql = f"COPY child{number} (root_id, tag) FROM STDIN (FORMAT binary)"
            assert copy_in(proxied, sql, pieces) is None
            assert copy_in(reference, sql, pieces) is None
        assert children_of(proxied, number) == children_of(reference, number)
    assert_with_parents(world, number)


BAD_LINES = {
    "no such parent": "{key}\tx\n999999999\ty\n{key}\tz\n",
    "no key": "{key}\tx\n\\N\ty\n",
    "no number": "{key}\tx\nnine\ty\n",
    "a column too few": "{key}\tx\n{key}\n",
    "a column too many": "{key}\tx\n{key}\ty\tz\n",
    "not UTF-8": "{key}\tx\n{key}\t\xff\n",
    "no end of line": "{key}\tx\n{key}\ty",
    "an end marker": "{key}\tx\n\\.\nnine\n",
    "nothing": "",
}


@pytest.mark.parametrize("name", BAD_LINES)
@pytest.mark.parametrize("in_transaction", [False, True])
def test_what_is_wrong_is_told_as_one_postgres_tells_it(world: AwayWorld, name: str, *, in_transaction: bool) -> None:
    number = list(KEYS).index("bigint")
    with world.connect_direct() as reference, world.connect() as proxied:
        key = KEYS["bigint"](3)
        data = BAD_LINES[name].format(key=key).encode("latin-1")
        answers = []
        for side in (reference, proxied):
            side.execute("BEGIN" if in_transaction else "SELECT 1")
            answers.append(copy_in(side, f"COPY child{number} (root_id, tag) FROM STDIN", [data]))
            if in_transaction:
                answers.append(str(side.info.transaction_status))
                side.execute("ROLLBACK")
            answers.append(children_of(side, number))
        half = len(answers) // 2
        assert answers[:half] == answers[half:]


def test_a_dump_is_restored(world: AwayWorld) -> None:
    """With the keys that the rows had: those name their parents' buckets."""
    number = list(KEYS).index("bigint")
    with world.connect_direct() as reference, world.connect() as proxied:
        rows = "".join(f"{KEYS['bigint'](row % PARENTS)}\trow {row}\n" for row in range(150)).encode()
        for side in (reference, proxied):
            assert copy_in(side, f"COPY child{number} (root_id, tag) FROM STDIN", [rows]) is None
        with proxied.cursor() as cursor, cursor.copy(f"COPY child{number} TO STDOUT".encode()) as copy:
            data = b"".join(bytes(piece) for piece in copy)
        before = proxied.execute(f"SELECT * FROM child{number}".encode()).fetchall()
        for pieces in ([data], [data[at : at + 1000] for at in range(0, len(data), 1000)]):
            proxied.execute(f"DELETE FROM child{number}".encode())
            assert copy_in(proxied, f"COPY child{number} FROM STDIN", pieces) is None
            assert sorted(proxied.execute(f"SELECT * FROM child{number}".encode()).fetchall()) == sorted(before)
        wrong = data.splitlines()[0].split(b"\t")
        other = next(line.split(b"\t")[1] for line in data.splitlines() if line.split(b"\t")[1] != wrong[1])
        failure = copy_in(proxied, f"COPY child{number} FROM STDIN", [b"\t".join([wrong[0], other, b"x\n"])])
        assert failure is not None
        assert failure[0] in {"23505", "23514"}  # another parent's bucket, or by chance the same shard's


@pytest.mark.parametrize("key", [b"caf\xe9", b"nul\\000", b"\\xff"])
def test_texts_that_are_none(world: AwayWorld, key: bytes) -> None:
    number = list(KEYS).index("text")
    with world.connect_direct() as reference, world.connect() as proxied:
        answers = []
        for side in (reference, proxied):
            failure = copy_in(side, f"COPY child{number} (root_id, tag) FROM STDIN", [b"a\tx\n", key + b"\ty\n"])
            assert failure is not None
            answers.append(failure[:2])
            assert side.execute("SELECT 1").fetchall() == [(1,)]
        assert answers[0] == answers[1]


@pytest.mark.parametrize("tail", [b"\xff\xfe\0\0", b"\0\x02\xff\xff\xff\xf0", b"\0\x02\0\0\0\x08", b"\xff\xffmore"])
def test_binary_data_that_is_none(world: AwayWorld, tail: bytes) -> None:
    number = list(KEYS).index("bigint")
    head = b"PGCOPY\n\xff\r\n\0" + bytes(8)
    row = b"\0\x02\0\0\0\x08" + struct.pack("!q", KEYS["bigint"](3)) + b"\0\0\0\x01x"
    with world.connect_direct() as reference, world.connect() as proxied:
        answers = []
        for side in (reference, proxied):
            sql = f"COPY child{number} (root_id, tag) FROM STDIN (FORMAT binary)"
            failure = copy_in(side, sql, [head + row + tail, b"and more" * 10])
            assert failure is not None
            answers.append((failure[0], children_of(side, number)))
        assert answers[0] == answers[1]


def test_behind_new_parents_in_one_transaction(world: AwayWorld) -> None:
    number = list(KEYS).index("bigint")
    parents = "".join(f"{key}\t1\n" for key in range(70000, 70100)).encode()
    rows = "".join(f"{key}\trow\n" for key in range(70000, 70100)).encode()
    with world.connect_direct() as reference, world.connect() as proxied:
        for side in (reference, proxied):
            with side.transaction():
                assert copy_in(side, f"COPY root{number} (id, n) FROM STDIN", [parents]) is None
                assert copy_in(side, f"COPY child{number} (root_id, tag) FROM STDIN", [rows]) is None
        assert children_of(proxied, number) == children_of(reference, number)
        proxied.execute("BEGIN")
        for key in range(70200, 70210):
            proxied.execute(f"INSERT INTO root{number} (id, n) VALUES ({key}, 1)".encode())
        refused = copy_in(proxied, f"COPY child{number} (root_id, tag) FROM STDIN", [b"70200\tx\n"])
        assert refused is not None
        assert refused[0] == "0A000"
        proxied.execute("ROLLBACK")
        for side in (reference, proxied):
            side.execute(f"DELETE FROM child{number} WHERE root_id >= 70000".encode())
            side.execute(f"DELETE FROM root{number} WHERE id >= 70000".encode())
    assert_with_parents(world, number)


def test_long_rows_and_many(world: AwayWorld) -> None:
    number = list(KEYS).index("text")
    with world.connect_direct() as reference, world.connect() as proxied:
        keys = [KEYS["text"](index) for index in range(PARENTS)]
        escaped = [str(key).replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n") for key in keys]
        long = "".join(f"{key}\t{'long' * 500_000}\n" for key in escaped[:6]).encode()
        many = "".join(f"{escaped[row % PARENTS]}\tmany {row}\n" for row in range(30_000)).encode()
        sql = f"COPY child{number} (root_id, tag) FROM STDIN"
        for data in (long, many):
            for side in (reference, proxied):
                pieces = [data[at : at + 30_000] for at in range(0, len(data), 30_000)]
                assert copy_in(side, sql, pieces) is None
        counts = f"SELECT root_id, count(*), sum(length(tag)) FROM child{number} GROUP BY 1"
        found = [sorted(map(repr, side.execute(counts.encode()).fetchall())) for side in (reference, proxied)]
        assert found[0] == found[1]
    assert_with_parents(world, number)


def test_a_shard_that_does_not_tell_is_told(world: AwayWorld) -> None:
    number = list(KEYS).index("bigint")
    with world.connect() as proxied:
        before = children_of(proxied, number)
        world.shards.execute("ALTER FUNCTION foreshard.claimed_bucket(text, bigint) RENAME TO gone", on=0)
        try:
            rows = "".join(f"{KEYS['bigint'](index)}\trow\n" for index in range(PARENTS)).encode()
            failure = copy_in(proxied, f"COPY child{number} (root_id, tag) FROM STDIN", [rows])
        finally:
            world.shards.execute("ALTER FUNCTION foreshard.gone(text, bigint) RENAME TO claimed_bucket", on=0)
        assert failure is not None
        assert failure[0] == "08006"
        assert children_of(proxied, number) == before


def test_verify_finds_nothing_wrong(world: AwayWorld) -> None:
    assert_verified(world.proxy.configuration)
