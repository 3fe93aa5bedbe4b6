"""DDL through the proxy: as one PostgreSQL answers it, on every shard or on none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.messages import SYNC, extended, query
from tests.support.postgres import Shards, TestInstances
from tests.support.proxy import Proxy
from tests.support.raw import Message, error_of, kinds
from tests.support.servers import Server
from tests.support.twins import comparable
from tests.support.verified import assert_verified

SHARD_COUNT = 3
SCHEMA = """
CREATE TABLE root (id bigserial PRIMARY KEY, tag text, n integer NOT NULL DEFAULT 0);
CREATE TABLE child (id bigserial PRIMARY KEY, root_id bigint NOT NULL REFERENCES root ON DELETE CASCADE, tag text);
CREATE TABLE language (code text PRIMARY KEY, title text);
CREATE TABLE plain (id bigserial PRIMARY KEY, tag text, n integer NOT NULL DEFAULT 0);
"""
TABLES = {
    "root": {"key": "id"},
    "child": {"key": "id", "parent": "root", "via": "root_id"},
    "language": {"reference": True},
    "later": {"key": "id"},
    "below": {"key": "id", "parent": "later", "via": "later_id"},
    "place": {"reference": True},
}
# What a shard has, less what is Foreshard's own.
SHAPE = """
SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid = c.oid
WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast', 'foreshard') AND a.attnum > 0
  AND NOT a.attisdropped AND c.relname NOT LIKE 'plain%' AND c.relname NOT LIKE '%foreshard%'
  AND c.relname NOT LIKE '%bucket%'
ORDER BY 1, 2
"""


class Scene(NamedTuple):
    """A deployment, and one PostgreSQL with the same schema."""

    proxy: Proxy
    direct: Server
    shards: Shards

    def shapes(self) -> list[list[tuple[object, ...]]]:
        return [list(map(tuple, self.shards.query(SHAPE, on=shard))) for shard in range(SHARD_COUNT)]

    def has(self, name: str) -> list[bool]:
        """On which shards there is a relation of the name."""
        sql = f"SELECT to_regclass('{name}') IS NOT NULL"
        return [bool(self.shards.query(sql, on=shard)[0][0]) for shard in range(SHARD_COUNT)]


@pytest.fixture(scope="module")
def scene(test_instances: TestInstances, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    shards, reference = test_instances.create(SHARD_COUNT), test_instances.create(1)
    for database in (shards, reference):
        database.execute(SCHEMA)
    folder: Path = tmp_path_factory.mktemp("ddl")
    with Proxy(shards.dsns, folder, tables=TABLES, workers={"per_shard": 0}) as proxy:
        yield Scene(proxy, Server.of_dsn(reference.dsns[0]), shards)
        assert_verified(proxy.configuration)
    test_instances.drop(shards)
    test_instances.drop(reference)


@pytest.fixture(autouse=True)
def shards_are_alike(scene: Scene) -> Iterator[None]:
    yield
    found = scene.shapes()
    assert found[0] == found[1] == found[2]


CONVERSATIONS: dict[str, Sequence[str]] = {
    "columns": [
        "ALTER TABLE root ADD COLUMN size integer", "INSERT INTO root (tag, size) VALUES ('a', 3)",
        "UPDATE root SET size = 5", "SELECT tag, size FROM root", "ALTER TABLE root ALTER size TYPE bigint",
        "SELECT DISTINCT size FROM root ORDER BY size", "ALTER TABLE root RENAME COLUMN size TO width",
        "SELECT tag, width FROM root", "ALTER TABLE root DROP COLUMN width", "SELECT width FROM root",
        "ALTER TABLE root DROP COLUMN IF EXISTS width", "DELETE FROM root",
    ],
    "indexes": [
        "CREATE INDEX by_tag ON root (tag)", "CREATE INDEX by_tag ON root (tag)",
        "CREATE INDEX IF NOT EXISTS by_tag ON root (tag)", "ALTER INDEX by_tag RENAME TO by_that",
        "DROP INDEX by_that", "DROP INDEX by_that",
    ],
    "indexes made concurrently": [
        "CREATE INDEX CONCURRENTLY by_n ON root (n)", "CREATE INDEX CONCURRENTLY by_n ON root (n)",
        "SELECT count(*) FROM root", "BEGIN",
        "CREATE INDEX CONCURRENTLY by_m ON root (n)", "ROLLBACK", "DROP INDEX CONCURRENTLY by_n",
        "DROP INDEX CONCURRENTLY by_n",
    ],
    "constraints": [
        "ALTER TABLE root ADD CONSTRAINT positive CHECK (n >= 0)", "INSERT INTO root (tag, n) VALUES ('x', -1)",
        "ALTER TABLE root DROP CONSTRAINT positive", "INSERT INTO root (tag, n) VALUES ('x', -1)",
        "ALTER TABLE root ADD CONSTRAINT positive CHECK (n >= 0)", "DELETE FROM root",
        "ALTER TABLE root ALTER tag SET DEFAULT 'none'", "INSERT INTO root (n) VALUES (1) RETURNING tag",
        "ALTER TABLE root ALTER tag DROP DEFAULT", "TRUNCATE root CASCADE", "SELECT count(*) FROM root",
    ],
    "types and functions": [
        "CREATE TYPE mood AS ENUM ('sad', 'glad')", "ALTER TYPE mood ADD VALUE 'mad'",
        "ALTER TABLE root ADD COLUMN mood mood DEFAULT 'sad'", "INSERT INTO root (tag) VALUES ('m') RETURNING mood",
        "DROP TYPE mood", "ALTER TABLE root DROP COLUMN mood", "DROP TYPE mood", "DROP TYPE mood",
        "CREATE DOMAIN short AS text CHECK (length(VALUE) < 5)", "ALTER TABLE root ADD COLUMN s short",
        "UPDATE root SET s = 'longer'", "DROP DOMAIN short CASCADE", "DELETE FROM root",
        "CREATE FUNCTION twice(i integer) RETURNS integer IMMUTABLE LANGUAGE sql AS 'SELECT i * 2'",
        "ALTER TABLE root ADD COLUMN d integer GENERATED ALWAYS AS (twice(n)) STORED",
        "INSERT INTO root (n) VALUES (4) RETURNING d", "DELETE FROM root", "ALTER TABLE root DROP COLUMN d",
        "DROP FUNCTION twice(integer)", "CREATE SCHEMA other", "COMMENT ON SCHEMA other IS 'x'", "DROP SCHEMA other",
    ],
    "views": [
        "CREATE VIEW roots AS SELECT id, tag FROM root", "DROP VIEW roots", "CREATE VIEW one AS SELECT 1 AS x",
        "SELECT x FROM one", "DROP VIEW one",
    ],
    "a table from nothing": [
        "SELECT * FROM later", "CREATE TABLE later (id bigserial PRIMARY KEY, tag text)",
        "INSERT INTO later (tag) VALUES ('a'), ('b')", "SELECT tag FROM later ORDER BY tag",
        "CREATE TABLE below (id bigserial PRIMARY KEY, later_id bigint REFERENCES later, n integer)",
        "SELECT count(*) FROM below",
        "DROP TABLE later", "DROP TABLE below, later", "SELECT * FROM later",
        "CREATE TABLE place (code text PRIMARY KEY, title text)", "INSERT INTO place VALUES ('x', 'X')",
        "SELECT * FROM place", "DROP TABLE place",
    ],
    "transactions": [
        "BEGIN", "ALTER TABLE root ADD COLUMN a integer", "INSERT INTO root (tag, a) VALUES ('t', 1)",
        "SELECT tag, a FROM root", "SAVEPOINT s", "ALTER TABLE root ADD COLUMN b integer DEFAULT 3",
        "SELECT tag, a, b FROM root", "ROLLBACK TO s", "SELECT tag, a FROM root", "COMMIT", "SELECT tag, a FROM root",
        "BEGIN", "ALTER TABLE root DROP COLUMN a", "SELECT * FROM language", "ROLLBACK", "SELECT tag, a FROM root",
        "ALTER TABLE root DROP COLUMN a", "DELETE FROM root",
        "BEGIN", "CREATE TABLE later (id bigserial PRIMARY KEY, tag text)", "INSERT INTO later (tag) VALUES ('c')",
        "SELECT tag FROM later", "COMMIT", "SELECT tag FROM later", "DROP TABLE later",
    ],
    "errors": [
        "ALTER TABLE root ADD COLUMN tag text", "BEGIN", "ALTER TABLE root ADD COLUMN z integer",
        "ALTER TABLE root DROP COLUMN nothing", "SELECT 1", "COMMIT", "SELECT z FROM root",
        "CREATE INDEX nix ON root (nothing)", "ALTER TABLE root ADD CONSTRAINT c CHECK (nothing > 0)",
    ],
    "grants and comments": [
        "COMMENT ON TABLE root IS 'the roots'", "COMMENT ON COLUMN root.tag IS 'a tag'",
        "GRANT SELECT ON root TO PUBLIC", "REVOKE SELECT ON root FROM PUBLIC", "COMMENT ON TABLE root IS NULL",
    ],
    "strings": [
        "ALTER TABLE root ADD COLUMN p integer; INSERT INTO root (tag, p) VALUES ('s', 1); SELECT tag, p FROM root",
        "ALTER TABLE root ADD COLUMN q integer; SELECT 1 / 0", "SELECT q FROM root",
        "ALTER TABLE root DROP COLUMN p; DELETE FROM root",
    ],
    "plain tables": [
        "CREATE TABLE plain2 (id serial, code text REFERENCES language)", "INSERT INTO plain2 (code) VALUES (NULL)",
        "SELECT * FROM plain2", "DROP TABLE plain2",
    ],
}  # fmt: skip


@pytest.mark.parametrize("by_extended", [False, True], ids=["simple", "extended"])
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_ddl_answers_as_one_postgresql(scene: Scene, name: str, by_extended: bool) -> None:
    with scene.proxy.server.connect() as proxied, scene.direct.connect() as direct:
        for sql in CONVERSATIONS[name]:
            if by_extended and name == "strings":
                continue
            asked = extended(sql) + SYNC if by_extended else query(sql)
            answers = [comparable(client.ask(asked)) for client in (proxied, direct)]
            assert [*map(told, answers[0])] == [*map(told, answers[1])], sql


def told(line: str) -> str:
    """A line of a transcript without the detail and hint of an error, which may show keys."""
    return " | ".join(part for part in line.split(" | ") if part[0] not in "DH") if line[0] == "E" else line


def test_an_index_made_concurrently_says_on_which_shards_it_has_failed(scene: Scene) -> None:
    scene.shards.execute("CREATE TABLE in_the_way (n integer); CREATE INDEX by_n ON in_the_way (n)", on=1)
    with scene.proxy.server.connect() as client:
        told = error_of(client.query("CREATE INDEX CONCURRENTLY by_n ON root (n)"))
        assert told["C"] == "42P07"
        assert "done on s0; failed on s1; not begun on s2" in told["D"]
        assert "DROP INDEX IF EXISTS" in told["H"]
        scene.shards.execute("DROP TABLE in_the_way", on=1)
        client.rows("CREATE INDEX CONCURRENTLY IF NOT EXISTS by_n ON root (n)")
        assert scene.has("by_n") == [True] * SHARD_COUNT
        client.rows("DROP INDEX by_n")


REFUSED = (
    "ALTER TABLE root RENAME TO other",
    "ALTER TABLE root RENAME COLUMN id TO key",
    "ALTER TABLE root DROP COLUMN id",
    "ALTER TABLE root ALTER id TYPE text",
    "ALTER TABLE root ALTER id DROP DEFAULT",
    "ALTER TABLE child DROP COLUMN root_id",
    "ALTER TABLE root DISABLE TRIGGER ALL",
    "CREATE UNIQUE INDEX ON root (tag)",
    "CREATE UNIQUE INDEX CONCURRENTLY ON root (tag)",
    "ALTER TABLE root ADD UNIQUE (tag)",
    "CREATE TABLE plain3 (root_id bigint REFERENCES root)",
    "ALTER TABLE plain ADD COLUMN root_id bigint REFERENCES root",
    "ALTER TABLE root ADD COLUMN p bigint REFERENCES plain",
    "ALTER TABLE root DROP CONSTRAINT root_pkey CASCADE",
    "DROP TABLE root CASCADE",
    "DROP TABLE root, plain",
    "DROP SCHEMA public CASCADE",
    "ALTER TABLE language ADD COLUMN made timestamptz DEFAULT now()",
    "ALTER TABLE language ADD COLUMN number serial",
    "CREATE TABLE later (id integer PRIMARY KEY, tag text UNIQUE)",
    "CREATE TABLE later (tag text)",
    "CREATE TABLE heir () INHERITS (root)",
    "ALTER SEQUENCE root_id_seq RESTART",
    "TRUNCATE root, plain",
)


@pytest.mark.parametrize("sql", REFUSED)
def test_what_would_break_the_sharding_is_refused_and_changes_nothing(scene: Scene, sql: str) -> None:
    before = scene.shapes()
    with scene.proxy.server.connect() as client:
        for asked in (query(sql), extended(sql) + SYNC):
            told = error_of(client.ask(asked))
            assert told["C"] in ("0A000", "42P01", "2BP01"), told
        assert client.value("SELECT 1") == "1"
    assert scene.shapes() == before


def test_schema_foreshard_is_foreshards_own(scene: Scene) -> None:
    with scene.proxy.server.connect() as client:
        for sql in ("DROP TABLE foreshard.outbox", "CREATE TABLE foreshard.x ()", "DROP SCHEMA foreshard CASCADE"):
            assert error_of(client.query(sql))["C"] == "42501"


def test_setval_of_a_dump_leaves_no_shard_behind_its_keys(scene: Scene) -> None:
    with scene.proxy.server.connect() as client:
        for number in range(40):
            client.rows(f"INSERT INTO root (tag) VALUES ('counted {number}')")
        last = "SELECT last_value FROM root_id_seq"
        highest = [int(str(scene.shards.query(last, on=shard)[0][0])) for shard in range(SHARD_COUNT)]
        answer = client.query("SELECT pg_catalog.setval('public.root_id_seq', 1, true)")
        assert error_of_none(answer)
        found = [int(str(scene.shards.query(last, on=shard)[0][0])) for shard in range(SHARD_COUNT)]
        assert all(now >= before or before == 1 for now, before in zip(found, highest, strict=True))
        for number in range(40):
            client.rows(f"INSERT INTO root (tag) VALUES ('counted again {number}')")
        client.rows("BEGIN")
        client.rows("SELECT setval('child_id_seq', 1000)")
        client.rows("ROLLBACK")
        client.rows("DELETE FROM root WHERE tag LIKE 'counted%'")


def error_of_none(answer: Sequence[Message]) -> bool:
    return "E" not in kinds(answer)
