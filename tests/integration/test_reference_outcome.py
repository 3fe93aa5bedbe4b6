"""Reference tables whose rows the shard computes: the same on every shard, whatever expression made them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import pytest

from tests.support.messages import SYNC, extended, query
from tests.support.postgres import Shards, TestInstances
from tests.support.proxy import Proxy
from tests.support.raw import error_of
from tests.support.servers import Server
from tests.support.twins import comparable
from tests.support.verified import assert_verified

SHARD_COUNT = 3
SCHEMA = """
CREATE TYPE pair AS (a integer, b text);
CREATE TABLE event (id bigserial PRIMARY KEY, name text, made timestamptz DEFAULT clock_timestamp(),
                    dice float8 DEFAULT random(), token uuid DEFAULT gen_random_uuid());
CREATE TABLE counted (id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY, n integer,
                      doubled integer GENERATED ALWAYS AS (n * 2) STORED, changed timestamptz);
CREATE TABLE loose (tag text, n numeric, span interval, day date, blob bytea, list text[], one pair, what json);
CREATE TABLE area (code text PRIMARY KEY, title text);
CREATE TABLE town (id bigserial PRIMARY KEY, area text REFERENCES area ON UPDATE CASCADE ON DELETE CASCADE, n integer);
CREATE TABLE root (id bigserial PRIMARY KEY, area text REFERENCES area, n integer);
CREATE TABLE plain (id bigserial PRIMARY KEY, tag text);
CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN NEW.changed := clock_timestamp(); NEW.n := NEW.n + (random() * 1000)::integer; RETURN NEW; END $$;
CREATE TRIGGER touched BEFORE INSERT OR UPDATE ON counted FOR EACH ROW EXECUTE FUNCTION touch();
CREATE FUNCTION settle() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN INSERT INTO town (area, n) VALUES (NEW.code, (random() * 1000)::integer); RETURN NULL; END $$;
CREATE TRIGGER settled AFTER INSERT ON area FOR EACH ROW WHEN (NEW.title = 'settled') EXECUTE FUNCTION settle();
"""
NAMES = ("event", "counted", "loose", "area", "town")
TABLES = {"root": {"key": "id"}, **{name: {"reference": True} for name in NAMES}}


class Scene(NamedTuple):
    """A deployment, and one PostgreSQL with the same schema."""

    proxy: Proxy
    direct: Server
    shards: Shards

    def rows(self, table: str) -> list[list[str]]:
        """The rows of each shard."""
        sql = f"SELECT t::text FROM {table} AS t ORDER BY 1"
        return [[str(row[0]) for row in self.shards.query(sql, on=shard)] for shard in range(SHARD_COUNT)]


@pytest.fixture(scope="module")
def scene(test_instances: TestInstances, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    shards, reference = test_instances.create(SHARD_COUNT), test_instances.create(1)
    for database in (shards, reference):
        database.execute(SCHEMA)
    with Proxy(shards.dsns, tmp_path_factory.mktemp("outcome"), tables=TABLES, workers={"per_shard": 0}) as proxy:
        yield Scene(proxy, Server.of_dsn(reference.dsns[0]), shards)
        assert_verified(proxy.configuration)
    test_instances.drop(shards)
    test_instances.drop(reference)


@pytest.fixture(autouse=True)
def every_shard_has_the_same(scene: Scene) -> Iterator[None]:
    yield
    for table in NAMES:
        found = scene.rows(table)
        assert found[0] == found[1] == found[2], table


STATEMENTS: Sequence[str] = (
    "INSERT INTO event (name) VALUES ('a'), ('b') RETURNING name",
    "INSERT INTO event (name, made) VALUES ('c', now()), ('d', 'tomorrow')",
    "WITH w AS (UPDATE event SET dice = random() RETURNING name) SELECT count(*) FROM w",
    "WITH w AS (INSERT INTO event (name) VALUES ('w') RETURNING name) "
    "INSERT INTO plain (tag) SELECT name FROM w RETURNING tag",
    "WITH w AS (INSERT INTO event (name) VALUES ('w')) DELETE FROM event WHERE name = 'd' RETURNING name",
    "INSERT INTO event DEFAULT VALUES",
    "INSERT INTO event (id, name) VALUES (1000, DEFAULT) ON CONFLICT (id) DO UPDATE SET name = 'again', made = now()",
    "INSERT INTO event (id, name) VALUES (1000, 'x'), (2000, 'y') ON CONFLICT (id) DO UPDATE SET name = 'again'",
    "UPDATE event SET dice = random(), made = clock_timestamp() RETURNING name",
    "UPDATE event SET name = (SELECT tag FROM plain ORDER BY id LIMIT 1)",
    "UPDATE event SET name = plain.tag FROM plain WHERE plain.id = event.id",
    "UPDATE event SET id = id + 100000",
    "UPDATE event SET name = name WHERE false",
    "DELETE FROM event WHERE ctid = (SELECT min(ctid) FROM event) RETURNING 1",
    "INSERT INTO counted (n) VALUES (1), (2), (3)",
    "INSERT INTO counted (id, n) OVERRIDING SYSTEM VALUE VALUES (500, 1) RETURNING id",
    "UPDATE counted SET n = 0 WHERE id = 500",
    "DELETE FROM counted WHERE id IN (SELECT id FROM counted ORDER BY random() LIMIT 2)",
    "INSERT INTO loose SELECT md5(random()::text), random()::numeric, '1 month -3 days', '2020-01-02', '\\x00ff', "
    "ARRAY['a', NULL, '\"', E'\\n'], ROW(1, 'x,y')::pair, '{\"a\":  1}' FROM generate_series(1, 5)",
    "INSERT INTO loose (n) VALUES ('NaN'), (NULL), (NULL), (1.50)",
    "UPDATE loose SET tag = 'one' WHERE ctid = (SELECT min(ctid) FROM loose WHERE n IS NULL)",
    "UPDATE loose SET n = n + random()::numeric WHERE n IS NOT NULL",
    "DELETE FROM loose WHERE ctid = (SELECT max(ctid) FROM loose WHERE tag IS NOT NULL)",
    "INSERT INTO area VALUES ('n', 'north'), ('s', 'settled')",
    "INSERT INTO town (area, n) VALUES ('n', 1), ('n', 2)",
    "UPDATE area SET code = 'nn' WHERE code = 'n' RETURNING *",
    "MERGE INTO area USING (VALUES ('w', 'west'), ('nn', 'x')) AS v (code, title) ON area.code = v.code "
    "WHEN MATCHED THEN UPDATE SET title = v.title WHEN NOT MATCHED THEN INSERT VALUES (v.code, v.title)",
    "WITH gone AS (DELETE FROM plain WHERE id > 3 RETURNING tag) INSERT INTO event (name) SELECT tag FROM gone",
    "DELETE FROM area WHERE code = 'nn'",
    "DELETE FROM counted",
    "TRUNCATE loose",
    "TRUNCATE area, town, root",
)


@pytest.mark.parametrize("by_extended", [False, True], ids=["simple", "extended"])
def test_every_shard_has_the_rows_that_the_first_has_computed(scene: Scene, by_extended: bool) -> None:
    with scene.proxy.server.connect() as proxied, scene.direct.connect() as direct:
        for client in (proxied, direct):
            client.rows("DELETE FROM plain")
            client.rows("DELETE FROM event WHERE id >= 100000")  # of the other run: keys would collide, by row order
            for number in range(6):
                client.rows(f"INSERT INTO plain (id, tag) VALUES ({number}, 'p{number}')")
        for sql in STATEMENTS:
            asked = extended(sql) + SYNC if by_extended else query(sql)
            assert comparable(proxied.ask(asked)) == comparable(direct.ask(asked)), sql
            for table in NAMES:
                found = scene.rows(table)
                assert found[0] == found[1] == found[2], sql


def test_a_transaction_sees_what_it_has_written_on_every_shard_and_can_take_it_back(scene: Scene) -> None:
    with scene.proxy.server.connect() as client:
        client.rows("INSERT INTO area VALUES ('t', 'x')")
        for number in range(8):
            client.rows(f"INSERT INTO root (area, n) VALUES ('t', {number})")
        for sql in ("BEGIN", "UPDATE area SET title = random()::text", "SAVEPOINT s", "UPDATE area SET title = 'gone'"):
            client.rows(sql)
        client.rows("ROLLBACK TO s")
        assert len(client.rows("SELECT DISTINCT area.title FROM root JOIN area ON area.code = root.area")) == 1
        client.rows("INSERT INTO area VALUES ('u', now()::text)")
        client.rows("INSERT INTO root (area) SELECT 'u'")
        client.rows("COMMIT")
        before = scene.rows("area")
        for sql in ("BEGIN", "DELETE FROM town", "UPDATE area SET title = 'lost'", "ROLLBACK"):
            client.rows(sql)
        assert scene.rows("area") == before


def test_a_row_that_sharded_rows_of_other_shards_refer_to_stays(scene: Scene) -> None:
    with scene.proxy.server.connect() as client:
        client.rows("INSERT INTO area VALUES ('held', 'x') ON CONFLICT DO NOTHING")
        for _ in range(200):
            client.rows("INSERT INTO root (area) VALUES ('held')")
        scene.shards.execute("DELETE FROM root WHERE area = 'held'", on=0)
        for asked in (query("DELETE FROM area WHERE code = 'held'"), extended("DELETE FROM area WHERE code = 'held'")):
            told = client.ask(asked if asked[:1] == b"Q" else asked + SYNC)
            assert error_of(told)["C"] == "23503"
        client.rows("DELETE FROM root WHERE area = 'held'")
        client.rows("DELETE FROM area WHERE code = 'held'")


def test_settings_of_the_client_do_not_change_the_rows(scene: Scene) -> None:
    with scene.proxy.server.connect() as client:
        for setting in ("DateStyle = 'SQL, DMY'", "IntervalStyle = sql_standard", "TimeZone = 'Asia/Tokyo'"):
            client.rows(f"SET {setting}")
        client.rows("INSERT INTO loose (span, day) VALUES ('1-2 -3 4:05:06.7', '03/04/2021')")
        client.rows("INSERT INTO event (made) VALUES ('2021-03-04 05:06:07')")
        assert client.value("SHOW DateStyle") == "SQL, DMY"


def test_writers_at_the_same_time_leave_the_same_rows_everywhere(scene: Scene) -> None:
    failures: list[str] = []

    def write(number: int) -> None:
        with scene.proxy.server.connect() as client:
            for turn in range(10):
                for sql in (
                    f"INSERT INTO event (name) VALUES ('{number}.{turn}')",
                    "UPDATE event SET dice = random() WHERE id % 3 = 0",
                    f"DELETE FROM event WHERE name = '{number}.{turn - 2}'",
                ):
                    failures.extend(str(message.fields) for message in client.query(sql) if message.kind == b"E")

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.parametrize("form", [query, extended])
def test_a_row_locked_for_one_transaction_is_locked_on_every_shard(scene: Scene, form: Callable[[str], bytes]) -> None:
    lock = "SELECT code, title FROM area WHERE code = 'mine' FOR UPDATE"
    foreign_key = "INSERT INTO root (area, n) VALUES ('mine', 1)"
    with scene.proxy.server.connect() as owner, scene.proxy.server.connect() as other:
        owner.rows("INSERT INTO area VALUES ('mine', 'x'), ('other', 'y')")
        owner.rows("BEGIN")
        asked = form(lock)
        answer = owner.ask(asked if asked[:1] == b"Q" else asked + SYNC)
        assert [message.values for message in answer if message.kind == b"D"] == [[b"mine", b"x"]]
        assert [message.body for message in answer if message.kind == b"C"] == [b"SELECT 1\0"]
        for sql in (lock, "SELECT * FROM area WHERE code = 'mine' FOR SHARE", *[foreign_key] * SHARD_COUNT):
            other.rows("BEGIN")
            other.rows("SET LOCAL lock_timeout = '50ms'")
            assert error_of(other.query(sql))["C"] == "55P03", sql
            other.rows("ROLLBACK")
        owner.rows("UPDATE area SET title = 'z' WHERE code = 'mine'")
        owner.rows("COMMIT")
        assert other.rows(lock) == [[b"mine", b"z"]]
        other.rows("DELETE FROM area WHERE code IN ('mine', 'other')")


def test_shards_that_have_drifted_apart_are_told(scene: Scene) -> None:
    with scene.proxy.server.connect() as client:
        client.rows("INSERT INTO area VALUES ('drift', 'x')")
        scene.shards.execute("DELETE FROM area WHERE code = 'drift'", on=1)
        for sql in ("UPDATE area SET title = 'y' WHERE code = 'drift'", "DELETE FROM area WHERE code = 'drift'"):
            assert error_of(client.query(sql))["C"] == "XX001"
        scene.shards.execute("INSERT INTO area VALUES ('drift', 'x')", on=1)
        client.rows("DELETE FROM area WHERE code = 'drift'")
