"""COPY FROM STDIN into every kind of table: given keys of all types, composite ones, claims, reference tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.integration.test_copy import copy_in
from tests.support.messages import COPY_DONE, copy_data
from tests.support.postgres import Shards, TestInstances
from tests.support.proxy import Proxy
from tests.support.raw import RawConnection, error_of, kinds
from tests.support.servers import Server
from tests.support.verified import assert_verified

SHARD_COUNT = 3
BOTH = pytest.mark.parametrize("by_extended", [False, True], ids=["simple", "extended"])
SCHEMA = """
CREATE TABLE person (id bigserial PRIMARY KEY, email text UNIQUE);
CREATE TABLE letter (id bigserial PRIMARY KEY, person_id bigint NOT NULL REFERENCES person ON DELETE CASCADE, tag text);
CREATE TABLE account (name varchar(20) PRIMARY KEY, code uuid UNIQUE);
CREATE TABLE orders (tenant text, number integer, note text, PRIMARY KEY (tenant, number));
CREATE TABLE device (id uuid PRIMARY KEY, note text);
CREATE TABLE day (day date PRIMARY KEY, note text);
CREATE TABLE moment (at timestamptz PRIMARY KEY, note text);
CREATE TABLE blob (key bytea PRIMARY KEY, note text);
CREATE TABLE language (code text PRIMARY KEY, rank integer, seen timestamptz, made timestamptz DEFAULT now());
"""
TABLES = {
    "person": {"key": "id", "unique": ["email"]},
    "letter": {"key": "id", "parent": "person", "via": "person_id", "unique": ["id"]},
    "account": {"key": "name", "unique": ["code"]},
    "orders": {"key": ["tenant", "number"]},
    "device": {"key": "id"},
    "day": {"key": "day"},
    "moment": {"key": "at"},
    "blob": {"key": "key"},
    "language": {"reference": True},
}


class Scene(NamedTuple):
    proxy: Proxy
    reference: Server
    shards: Shards


@pytest.fixture(scope="module")
def scene(test_instances: TestInstances, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    shards, reference = test_instances.create(SHARD_COUNT), test_instances.create(1)
    for database in (shards, reference):
        database.execute(SCHEMA)
    with Proxy(shards.dsns, tmp_path_factory.mktemp("copy"), tables=TABLES, workers={"per_shard": 0}) as proxy:
        yield Scene(proxy, Server.of_dsn(reference.dsns[0]), shards)
    test_instances.drop(shards)
    test_instances.drop(reference)


@pytest.fixture(autouse=True)
def nothing_is_left(scene: Scene) -> Iterator[None]:
    yield
    assert_verified(scene.proxy.configuration)
    for server in (scene.proxy.server, scene.reference):
        with server.connect() as client:
            for table in TABLES:
                client.rows(f"DELETE FROM {table}")


def told(client: RawConnection, sql: str, data: bytes, by_extended: bool = False) -> str:
    """The tag of a COPY, or its SQLSTATE."""
    answer = copy_in(client, sql, copy_data(data), COPY_DONE, by_extended=by_extended)
    assert answer[-1].body == b"I"
    errors = [message.fields["C"] for message in answer if message.kind == b"E"]
    return errors[0] if errors else next(message.body.decode() for message in answer if message.kind == b"C")


KEYED = {
    "COPY orders FROM STDIN": b"".join(b"t%d\t%d\tx\n" % (n % 7, n) for n in range(100)),
    "COPY orders (note, number, tenant) FROM STDIN CSV": b"".join(
        b'"a,b",%d,"t %d"\n' % (n, n % 7) for n in range(100)
    ),
    "COPY device FROM STDIN": b"".join(b"{%032x}\tx\n" % (n << 90 | 7) for n in range(100)),
    "COPY day FROM STDIN": b"".join(b"2026-01-%02d\tx\n" % n for n in range(1, 29)) + b"infinity\ty\n",
    "COPY moment FROM STDIN": b"".join(b"2026-01-%02d 12:00:00+0%d\tx\n" % (n, n % 4) for n in range(1, 29)),
    "COPY blob FROM STDIN": b"".join(b"\\\\x%02xff\tx\n" % n for n in range(100)) + b"a\\\\\\\\b\ty\n",
    "COPY account (name) FROM STDIN": b"".join(b"name %d      \n" % n for n in range(50)),
}


@BOTH
@pytest.mark.parametrize("sql", KEYED)
def test_rows_are_where_their_keys_say(scene: Scene, sql: str, by_extended: bool) -> None:
    table = sql.split()[1]
    found = []
    for server in (scene.proxy.server, scene.reference):
        with server.connect() as client:
            found.append(
                (told(client, sql, KEYED[sql], by_extended), sorted(client.rows(f"SELECT * FROM {table}"), key=repr))
            )
    assert found[0] == found[1]
    assert found[0][0].startswith("COPY ")


def test_a_key_whose_meaning_settings_decide_is_refused_with_its_line(scene: Scene) -> None:
    with scene.proxy.server.connect() as client:
        for sql, data in (
            ("COPY day FROM STDIN", b"2026-01-01\tx\n01/02/2026\tx\n"),
            ("COPY moment FROM STDIN", b"2026-01-01 00:00Z\tx\n2026-01-02 00:00\tx\n"),
        ):
            found = error_of(copy_in(client, sql, copy_data(data), COPY_DONE))
            assert (found["C"], found["W"][-6:]) == ("0A000", "line 2")
            assert kinds(client.query("SELECT 1")) == "TDCZ"


@BOTH
def test_values_that_are_unique_are_claimed(scene: Scene, by_extended: bool) -> None:
    code = "58756dfc-5482-4f57-9359-9515422%05x"
    with scene.proxy.server.connect() as client:
        mails = b"".join(b"mail %d\n" % n for n in range(40))
        assert told(client, "COPY person (email) FROM STDIN", mails, by_extended) == "COPY 40\0"
        for n in range(5):
            assert told(client, "COPY person (email) FROM STDIN", b"new %d\nmail %d\n" % (n, n), by_extended) == "23505"
        rows = "".join(f"name {n}\t{code % n}\n" for n in range(30)).encode()
        assert told(client, "COPY account FROM STDIN", rows, by_extended) == "COPY 30\0"
        again = f"other\t{code % 7}\n".encode()
        assert told(client, "COPY account FROM STDIN", again, by_extended) == "23505"
        parents = [row[0] or b"" for row in client.rows("SELECT id FROM person")]
        letters = b"".join(b"%d\t%s\tx\n" % (n, parents[n]) for n in range(1, 20))
        assert told(client, "COPY letter FROM STDIN", letters, by_extended) == "COPY 19\0"
        assert told(client, "COPY letter FROM STDIN", b"7\t%s\tx\n" % parents[9], by_extended) == "23505"
        assert client.rows("SELECT count(*) FROM person") == [[b"40"]]


@BOTH
def test_reference_tables_get_the_same_rows_everywhere(scene: Scene, by_extended: bool) -> None:
    sql = "COPY language (code, rank, seen, made) FROM STDIN (FORMAT csv, HEADER)"
    data = b"c,r,s,m\n" + b"".join(b'"l,%d",%d,2026-01-01Z,\n' % (n, n) for n in range(50))
    with scene.proxy.server.connect() as client:
        assert told(client, sql, data, by_extended) == "COPY 50\0"
        rows = [scene.shards.query("SELECT * FROM language ORDER BY code", on=shard) for shard in range(SHARD_COUNT)]
        assert rows[0] == rows[1] == rows[2]
        assert len(rows[0]) == 50
        assert told(client, sql, b'c,r,s,m\nnew,1,,\n"l,3",3,,\n', by_extended) == "23505"
        assert client.rows("SELECT count(*) FROM language") == [[b"50"]]
        assert told(client, sql, b"c,r,s,m\nnew,1, Now ,\n", by_extended) == "COPY 1\0"  # one shard tells the time
        rows = [scene.shards.query("SELECT * FROM language ORDER BY code", on=shard) for shard in range(SHARD_COUNT)]
        assert rows[0] == rows[1] == rows[2]
