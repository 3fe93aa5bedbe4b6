"""Statements that invite a plausible wrong answer: each is answered as one database answers it, or with 0A000.

Writes run in a transaction of their own, which then reads every row before it is rolled back.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.test_differential import REFUSED, comparable
from tests.support.messages import SYNC, extended, query
from tests.support.postgres import TestInstances
from tests.support.proxy import Proxy
from tests.support.raw import Message, RawConnection, error_of, kinds
from tests.support.servers import Pair, Server
from tests.support.statements import SCHEMA, TABLES

DOCUMENTS, SYMBOLS = 24, 48
MORE_SCHEMA = """
CREATE VIEW titles AS SELECT id, title FROM document;
CREATE VIEW harmless AS SELECT body FROM note;
CREATE FUNCTION count_documents() RETURNS bigint LANGUAGE sql AS 'SELECT count(*) FROM document';
CREATE FUNCTION count_documents_in_plpgsql() RETURNS bigint LANGUAGE plpgsql AS
  'BEGIN RETURN (SELECT count(*) FROM public.document); END';
CREATE FUNCTION twice(n bigint) RETURNS bigint LANGUAGE sql IMMUTABLE AS 'SELECT n * 2';
CREATE SCHEMA other;
CREATE TABLE other.document (id bigint PRIMARY KEY, title text);
INSERT INTO other.document VALUES (1, 'not sharded');
INSERT INTO note VALUES (1, 'one'), (2, 'two');
"""
CHANCE = (
    "SELECT array_agg(id) FROM document WHERE id IN ({a}, {b})",
    "SELECT id FROM document LIMIT 3",
    "SELECT id FROM document FETCH FIRST ROW ONLY",
    "SELECT id FROM document OFFSET 3",
    "SELECT * FROM (SELECT id FROM document LIMIT 1) x",
    "COPY (SELECT id FROM document) TO STDOUT",
)
# {a}, {b}, {c}: keys of documents on three shards; {s}: key of a symbol of {a}; {x}: an explicit key.
READS = """
SELECT * FROM document WHERE id = {a}
SELECT * FROM public.document WHERE id = {a}
SELECT * FROM "document" WHERE "id" = {a}
SELECT * FROM DOCUMENT WHERE ID = {a}
SELECT * FROM other.document WHERE id = 1
SELECT d.* FROM document AS d WHERE d.id = {a}
SELECT d.x FROM document d(x) WHERE d.x = {a}
SELECT document FROM document WHERE id = {a}
SELECT * FROM ONLY document WHERE id = {a}
TABLE document
SELECT * FROM document WHERE id = {a} OR id = {b}
SELECT * FROM document WHERE id = {a} AND id = {b}
SELECT * FROM document WHERE id = {a} OR score > 3
SELECT * FROM document WHERE NOT id = {a}
SELECT * FROM document WHERE NOT (id <> {a})
SELECT * FROM document WHERE id <> {a}
SELECT * FROM document WHERE id > {a}
SELECT * FROM document WHERE id BETWEEN {a} AND {a}
SELECT * FROM document WHERE id IN ({a}, {b}, {c})
SELECT * FROM document WHERE id NOT IN ({a}, {b})
SELECT * FROM document WHERE id = ANY (ARRAY[{a}, {b}])
SELECT * FROM document WHERE id = ANY ('{{{a},{c}}}')
SELECT * FROM document WHERE id = ALL (ARRAY[{a}])
SELECT * FROM document WHERE id = ALL (ARRAY[]::bigint[])
SELECT * FROM document WHERE id = ANY (ARRAY[]::bigint[])
SELECT * FROM document WHERE id = ANY (NULL::bigint[])
SELECT * FROM document WHERE id <> ANY (ARRAY[{a}])
SELECT * FROM document WHERE {a} IN (id, score)
SELECT * FROM document WHERE id IN ({a}, score)
SELECT * FROM document WHERE (id, score) = ({a}, 3)
SELECT * FROM document WHERE (id, score) IN (({a}, 3), ({b}, 4))
SELECT * FROM document WHERE id + 0 = {a}
SELECT * FROM document WHERE id = {a} + 0
SELECT * FROM document WHERE id::text = '{a}'
SELECT * FROM document WHERE id = '{a}'
SELECT * FROM document WHERE id = '  {a} '
SELECT * FROM document WHERE id = {a}.0
SELECT * FROM document WHERE id = {a}::numeric
SELECT * FROM document WHERE id = {a}::text::bigint
SELECT * FROM document WHERE id = +{a}
SELECT * FROM document WHERE id = - -{a}
SELECT * FROM document WHERE id = 0x{hexa}
SELECT * FROM document WHERE id = (SELECT {a})
SELECT * FROM document WHERE id = (SELECT max(id) FROM document)
SELECT * FROM document WHERE id = abs({a})
SELECT * FROM document WHERE id = twice({a})
SELECT * FROM document WHERE id IS NOT DISTINCT FROM {a}
SELECT * FROM document WHERE id IS NULL
SELECT * FROM document WHERE id = NULL
SELECT * FROM document WHERE id IN (NULL, {a})
SELECT * FROM document WHERE id NOT IN (NULL, {a})
SELECT * FROM document WHERE id = {a} IS TRUE
SELECT * FROM document WHERE (id = {a}) = true
SELECT * FROM document WHERE (id = {a}) = false
SELECT * FROM document WHERE CASE WHEN id = {a} THEN true ELSE score > 5 END
SELECT * FROM document WHERE coalesce(id = {a}, true)
SELECT * FROM document WHERE true
SELECT * FROM document WHERE false
SELECT id = {a} FROM document
SELECT count(*) FROM document
SELECT count(*) FROM document WHERE id = {a}
SELECT count(*) FROM document WHERE id IN ({a}, {b})
SELECT max(score) FROM document WHERE id IN ({a}, {b})
SELECT array_agg(id) FROM document WHERE id IN ({a}, {b})
SELECT 1 FROM document HAVING count(*) > 0
SELECT DISTINCT score FROM document
SELECT DISTINCT ON (score) score FROM document WHERE id IN ({a}, {b})
SELECT id FROM document ORDER BY id
SELECT id FROM document WHERE id IN ({a}, {b}) ORDER BY id DESC
SELECT title FROM document ORDER BY id
SELECT id FROM document LIMIT 3
SELECT id FROM document FETCH FIRST ROW ONLY
SELECT id FROM document OFFSET 3
SELECT id FROM document LIMIT ALL
SELECT id FROM document ORDER BY id LIMIT 0
SELECT id, row_number() OVER (ORDER BY id) FROM document
SELECT id, count(*) OVER () FROM document WHERE id IN ({a}, {b})
SELECT id, rank() OVER (ORDER BY score) FROM document WHERE id = {a}
SELECT generate_series(1, 3), id FROM document WHERE id = {a}
SELECT (SELECT count(*) FROM document)
SELECT (SELECT count(*) FROM symbol WHERE document_id = d.id) FROM document d
SELECT (SELECT count(*) FROM document e WHERE e.score = d.score) FROM document d WHERE id = {a}
SELECT EXISTS (SELECT 1 FROM document WHERE id = {a})
SELECT EXISTS (SELECT 1 FROM document)
SELECT 1 WHERE EXISTS (SELECT 1 FROM document WHERE id = {b})
SELECT * FROM note WHERE EXISTS (SELECT 1 FROM document WHERE id = {b})
SELECT * FROM note WHERE id IN (SELECT score FROM document)
SELECT * FROM (SELECT id FROM document WHERE id = {a}) x
SELECT * FROM (SELECT id FROM document LIMIT 1) x
SELECT * FROM (SELECT 5 AS id) document WHERE id = {a}
SELECT * FROM (VALUES ({a}::bigint, 'x')) document(id, title) WHERE id = {a}
WITH d AS (SELECT * FROM document WHERE id = {a}) SELECT title FROM d
WITH document AS (SELECT 7 AS id) SELECT * FROM document
WITH document AS (SELECT 7 AS id) SELECT * FROM public.document WHERE id = {a}
WITH n AS (SELECT * FROM note) SELECT d.id, n.id FROM document d, n WHERE d.id = {b}
WITH RECURSIVE r AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM r WHERE n < 3) SELECT n FROM r, document WHERE id = {b}
SELECT id FROM document WHERE id = {a} UNION SELECT id FROM document WHERE id = {b}
SELECT id FROM document WHERE id = {a} UNION ALL SELECT id FROM document WHERE id = {b}
SELECT id FROM document UNION ALL SELECT id FROM symbol
SELECT id FROM document EXCEPT SELECT document_id FROM symbol
SELECT id FROM document INTERSECT SELECT id FROM document
SELECT d.id, n.id FROM document d, note n WHERE d.id = {b}
SELECT d.id, n.id FROM document d JOIN note n ON n.id = d.score
SELECT d.id, l.name FROM document d JOIN language l ON l.code = d.code
SELECT d.id, l.name FROM document d LEFT JOIN language l ON l.code = d.code
SELECT d.id, l.name FROM document d RIGHT JOIN language l ON l.code = d.code
SELECT d.id, l.name FROM document d FULL JOIN language l ON l.code = d.code
SELECT d.id, l.name FROM language l LEFT JOIN document d ON l.code = d.code
SELECT l.name FROM language l WHERE EXISTS (SELECT 1 FROM document d WHERE d.code = l.code)
SELECT d.id, l.name FROM document d RIGHT JOIN language l ON l.code = d.code AND d.id = {a}
SELECT d.id, l.name FROM document d CROSS JOIN language l
SELECT d.id, s.id FROM document d JOIN symbol s ON s.document_id = d.id
SELECT d.id, s.id FROM document d JOIN symbol s ON s.document_id = d.id WHERE d.id = {a}
SELECT d.id, s.id FROM document d JOIN symbol s ON s.document_id = d.id WHERE s.id = {s}
SELECT d.id, s.id FROM document d LEFT JOIN symbol s ON s.document_id = d.id
SELECT d.id, s.id FROM document d LEFT JOIN symbol s ON s.document_id = d.id AND d.id = {a}
SELECT d.id, s.id FROM document d LEFT JOIN symbol s ON s.document_id = {b} WHERE d.id = {a}
SELECT d.id, s.id FROM symbol s RIGHT JOIN document d ON s.document_id = d.id AND s.document_id = {a}
SELECT d.id, s.id FROM document d FULL JOIN symbol s ON s.document_id = d.id WHERE d.id = {a}
SELECT d.id, s.id FROM document d JOIN symbol s USING (id)
SELECT d.id, s.id FROM document d NATURAL JOIN symbol s WHERE d.id = {a}
SELECT d.id, s.id FROM document d, symbol s WHERE d.id = {a} AND s.document_id = {b}
SELECT d.id, s.id FROM document d, symbol s WHERE d.id = {a}
SELECT d.id, e.id FROM document d, document e WHERE d.id = {a} AND e.id = {b}
SELECT d.id, e.id FROM document d, document e WHERE d.id = {a} AND e.score = d.score
SELECT d.id, e.id FROM document d JOIN document e ON e.id = d.id
SELECT s.id, t.id FROM symbol s JOIN symbol t ON s.document_id = t.document_id
SELECT s.id, t.id FROM symbol s JOIN symbol t ON s.name = t.name
SELECT d.id, x.c FROM document d, LATERAL (SELECT count(*) AS c FROM symbol s WHERE s.document_id = d.id) x
SELECT d.id, x.c FROM document d, LATERAL (SELECT count(*) AS c FROM symbol) x WHERE d.id = {a}
SELECT * FROM symbol WHERE document_id = {a}
SELECT * FROM symbol WHERE document_id IN ({a}, {b})
SELECT * FROM symbol WHERE id = {s}
SELECT * FROM symbol WHERE id = {s} AND document_id = {b}
SELECT * FROM symbol WHERE id = {s} OR document_id = {b}
SELECT * FROM symbol WHERE id = 12345
SELECT * FROM symbol WHERE document_id = {x}
SELECT * FROM document WHERE id = {x}
SELECT * FROM document WHERE id IN ({x}, {a})
SELECT * FROM titles
SELECT * FROM titles WHERE id = {a}
SELECT * FROM harmless
SELECT count_documents()
SELECT count_documents_in_plpgsql()
SELECT twice(21)
SELECT * FROM language
SELECT count(*) FROM language
SELECT * FROM language, note
SELECT * FROM document TABLESAMPLE BERNOULLI (100) WHERE id = {a}
SELECT * FROM document WHERE id = {a} FOR UPDATE
SELECT * FROM document FOR UPDATE
SELECT * FROM document WHERE id = {a} FOR SHARE SKIP LOCKED
SELECT title INTO TEMP picked FROM document WHERE id = {b}
CREATE TEMP TABLE picked AS SELECT * FROM document
CREATE TEMP VIEW picked AS SELECT * FROM document
SELECT ctid IS NULL FROM document WHERE id = {b}
SELECT tableoid::regclass FROM document
SELECT pg_relation_size('document') < 0
SELECT query_to_xml('SELECT id FROM document', true, false, '')::text
SELECT nextval('document_id_seq') > 0
SELECT currval('document_id_seq')
SELECT lastval()
COPY document TO STDOUT
COPY (SELECT id FROM document) TO STDOUT
COPY (SELECT id FROM note ORDER BY id) TO STDOUT
EXPLAIN (COSTS OFF) SELECT * FROM document WHERE id = {b}
DECLARE c CURSOR FOR SELECT * FROM document
PREPARE p AS SELECT * FROM document WHERE id = {b}
DO $$ BEGIN PERFORM count(*) FROM document; END $$
VACUUM document
ANALYZE document
LOCK TABLE document
CREATE INDEX ON document (title)
ALTER TABLE document ADD COLUMN more int
COMMENT ON TABLE document IS 'x'
SELECT 1; SELECT id FROM document WHERE id = {b}
SELECT id FROM document WHERE id = {a}; SELECT id FROM document WHERE id = {b}
"""
WRITES = """
INSERT INTO document (title) VALUES ('x')
INSERT INTO document DEFAULT VALUES
INSERT INTO document (title) SELECT 'x' FROM generate_series(1, 3)
INSERT INTO document (title) SELECT 'x' FROM document WHERE id = {a}
INSERT INTO document SELECT id + 1, title FROM document
INSERT INTO document (id, title) VALUES (77, 'x')
INSERT INTO document (id, title) VALUES (77, 'x'), (78, 'y')
INSERT INTO document (id, title) VALUES (DEFAULT, 'x')
INSERT INTO document (id, title) VALUES (NULL, 'x')
INSERT INTO document (id, title) VALUES ({a}, 'again')
INSERT INTO document (id, title) VALUES ({x}, 'again')
INSERT INTO document (id, title) VALUES ({x}, 'again') ON CONFLICT DO NOTHING
INSERT INTO document (id, title) VALUES ({x}, 'again') ON CONFLICT (id) DO UPDATE SET title = excluded.title
INSERT INTO document (id, title) VALUES ({x}, 'again') ON CONFLICT (id) DO UPDATE SET id = 5
INSERT INTO document (id, title) VALUES (40 + 2, 'x')
INSERT INTO document (id, title) VALUES ((SELECT 42), 'x')
INSERT INTO document (id, title) OVERRIDING SYSTEM VALUE VALUES (79, 'x')
INSERT INTO symbol (document_id, name) VALUES ({a}, 'x')
INSERT INTO symbol (document_id, name) VALUES ({a}, 'x'), ({b}, 'y')
INSERT INTO symbol (document_id, name) VALUES (NULL, 'x')
INSERT INTO symbol (name) VALUES ('x')
INSERT INTO symbol (id, document_id) VALUES (5, {a})
INSERT INTO symbol (document_id, name) SELECT id, 'x' FROM document WHERE id = {a}
INSERT INTO symbol (document_id, name) SELECT id, 'x' FROM document
INSERT INTO symbol (document_id, name) VALUES (123456, 'no parent')
INSERT INTO language VALUES ('go', 'Go')
INSERT INTO note SELECT 99, title FROM document WHERE id = {b}
INSERT INTO note SELECT 99, 'x'
INSERT INTO titles VALUES (5, 'x')
UPDATE document SET title = 'x' WHERE id = {a}
UPDATE document SET title = 'x' WHERE id = {a} OR id = {b}
UPDATE document SET title = 'x' WHERE id IN ({a}, {b})
UPDATE document SET title = 'x' WHERE id = {a} AND id = {b}
UPDATE document SET title = 'x'
UPDATE document SET id = 5 WHERE id = {a}
UPDATE document SET (id, title) = (5, 'x') WHERE id = {a}
UPDATE document SET title = n.body FROM note n WHERE document.id = {b} AND n.id = 1
UPDATE document SET title = l.name FROM language l WHERE document.id = {b} AND l.code = document.code
UPDATE document SET title = s.name FROM symbol s WHERE s.document_id = document.id AND document.id = {a}
UPDATE document SET title = e.title FROM document e WHERE document.id = {a} AND e.id = {b}
UPDATE document SET title = (SELECT max(title) FROM document) WHERE id = {a}
UPDATE document d SET title = 'x' WHERE d.id = {a}
UPDATE document SET title = 'x' WHERE NOT id = {a}
UPDATE symbol SET document_id = {b} WHERE document_id = {a}
UPDATE symbol SET name = 'x' WHERE document_id = {a}
UPDATE symbol SET name = 'x' WHERE id = {s}
UPDATE symbol SET name = 'x' WHERE id = {s} AND document_id = {b}
UPDATE language SET name = 'x'
UPDATE note SET body = 'x' WHERE id IN (SELECT score FROM document)
UPDATE note SET body = 'x' WHERE id = 1
UPDATE titles SET title = 'x' WHERE id = {a}
DELETE FROM document WHERE id = {a}
DELETE FROM document WHERE id <> {a}
DELETE FROM document
DELETE FROM document WHERE id = ANY (ARRAY[{a}, {b}])
DELETE FROM document USING note WHERE document.id = {b} AND note.id = 1
DELETE FROM document WHERE id = {a} AND NOT EXISTS (SELECT 1 FROM symbol WHERE document_id = document.id)
DELETE FROM document WHERE id = {a} AND NOT EXISTS (SELECT 1 FROM symbol WHERE name = 'x')
DELETE FROM symbol
DELETE FROM symbol WHERE document_id = {a}
DELETE FROM language
DELETE FROM note
TRUNCATE document CASCADE
TRUNCATE note
WITH gone AS (DELETE FROM document WHERE id = {a} RETURNING *) SELECT count(*) FROM gone
WITH gone AS (DELETE FROM document WHERE id = {a} RETURNING *) INSERT INTO note SELECT 98, title FROM gone
WITH made AS (INSERT INTO document (title) VALUES ('x') RETURNING title) SELECT * FROM made
WITH one AS (UPDATE document SET title = 'x' WHERE id = {a}) UPDATE document SET title = 'x' WHERE id = {b}
WITH v AS (SELECT {b}::bigint AS id) UPDATE document SET title = 'x' FROM v WHERE document.id = v.id
MERGE INTO document USING note ON document.id = note.id WHEN MATCHED THEN DELETE
MERGE INTO document d USING (SELECT {a}::bigint AS id) s ON d.id = s.id WHEN MATCHED THEN UPDATE SET title = 'x'
COPY document (title) FROM STDIN
UPDATE document SET title = 'x' WHERE id = {a}; UPDATE document SET title = 'x' WHERE id = {b}
UPDATE document SET title = 'x' WHERE id = {a}; UPDATE document SET title = 'y' WHERE id = {a}
"""
# Keys that a shard makes differ from the reference's, so what was inserted is compared without its key.
LOOK = {
    "document": "SELECT CASE WHEN id < 1000 OR title <> 'x' THEN id END, title, score, code FROM document",
    "symbol": "SELECT document_id, name, weight FROM symbol",
    "language": "SELECT * FROM language",
    "note": "SELECT * FROM note",
}


class Scene:
    """Both sides filled alike, and the keys to speak of."""

    def __init__(self, sides: Pair, keys: dict[str, object]) -> None:
        self.sides = sides
        self.keys = keys


def insert_both(proxied: RawConnection, reference: RawConnection, sql: str, columns: str) -> list[int]:
    """Insert through the proxy, then the returned rows into the reference; the keys."""
    table = sql.split()[2]
    rows = [[(value or b"").decode() for value in row] for row in proxied.rows(f"{sql} RETURNING {columns}")]
    for row in rows:
        reference.rows(f"INSERT INTO {table} ({columns}) VALUES ({', '.join(repr(value) for value in row)})")
    return [int(row[0]) for row in rows]


@pytest.fixture(scope="module")
def scene(test_instances: TestInstances, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """The reference database and the proxy over three shards, with equal rows."""
    shards, reference = test_instances.create(3), test_instances.create(1)
    for database in (shards, reference):
        database.execute(SCHEMA)
    shards.execute(MORE_SCHEMA, on=0)
    reference.execute(MORE_SCHEMA)
    reference.execute("ALTER SEQUENCE document_id_seq RESTART 5000; ALTER SEQUENCE symbol_id_seq RESTART 5000")
    with Proxy(shards.dsns, tmp_path_factory.mktemp("right"), tables=TABLES, workers={"per_shard": 0}) as proxy:
        sides = Pair(Server.of_dsn(reference.dsns[0]), proxy.server)
        with sides.proxied.connect() as proxied, sides.direct.connect() as direct:
            keys: list[int] = []
            for number in range(DOCUMENTS):
                sql = f"INSERT INTO document (title, score, code) VALUES ('title {number}', {number % 7}, 'py')"
                keys += insert_both(proxied, direct, sql, "id, title, score, code")
            symbols = []
            for number in range(SYMBOLS):
                sql = f"INSERT INTO symbol (document_id, name) VALUES ({keys[number // 2]}, 'name {number % 5}')"
                symbols += insert_both(proxied, direct, sql, "id, document_id, name")
            insert_both(proxied, direct, "INSERT INTO document (id, title, score, code) VALUES (7, 'seven', 1, 'c')",
                        "id, title, score, code")  # fmt: skip
        homes = {}
        for index in range(3):
            for row in shards.query("SELECT id FROM document WHERE id > 1000 ORDER BY id", on=index):
                homes.setdefault(index, row[0])
        named = {"a": homes[1], "b": homes[2], "c": homes[0], "x": 7, "hexa": f"{homes[1]:x}"}
        (first,) = shards.query(f"SELECT min(id) FROM symbol WHERE document_id = {homes[1]}", on=1)
        yield Scene(sides, {**named, "s": first[0]})
    test_instances.drop(shards)
    test_instances.drop(reference)


def ask(connection: RawConnection, sql: str, by_extended: bool) -> list[Message]:
    """The answer up to ReadyForQuery; a COPY FROM that begins is given up."""
    connection.send(*((extended(sql), SYNC) if by_extended else (query(sql),)))
    answer = connection.read_until(b"ZG")
    if answer[-1].kind == b"G":
        connection.send(b"f\0\0\0\x09why?\0", SYNC if by_extended else b"")
        answer += connection.read_until()
    return answer


def essence(answer: list[Message], ordered: bool) -> list[str]:
    """What counts of an answer; of an error without rows before it, not by which message of the client it was heard."""
    found = kinds(answer)
    return [f"E {error_of(answer)['C']}"] if "E" in found and "D" not in found else comparable(answer, ordered)


def is_refused(answer: list[Message]) -> bool:
    """Refused, and nothing of the statement was answered before."""
    return "E" in kinds(answer) and error_of(answer)["C"] == REFUSED


@pytest.mark.parametrize("by_extended", [False, True], ids=["simple", "extended"])
@pytest.mark.parametrize("sql", READS.strip().splitlines())
def test_a_read_is_right_or_refused(scene: Scene, sql: str, by_extended: bool) -> None:
    statement = sql.format(**scene.keys)
    answers = []
    for server in scene.sides:
        with server.connect() as connection:
            answers.append(ask(connection, statement, by_extended))
    if not is_refused(answers[1]):
        ordered = "ORDER BY" in sql and "OVER" not in sql
        found = [essence(answer, ordered) for answer in reversed(answers)]
        if sql in CHANCE:  # which rows, or in which order, is not said: only how many can be compared
            found = [[line[: line.startswith("T") * 99 + 1] for line in lines] for lines in found]
        assert found[0] == found[1]


@pytest.mark.parametrize("by_extended", [False, True], ids=["simple", "extended"])
@pytest.mark.parametrize("sql", WRITES.strip().splitlines())
def test_a_write_is_right_or_refused(scene: Scene, sql: str, by_extended: bool) -> None:
    statement = sql.format(**scene.keys)
    answers, rows = [], []
    for server in scene.sides:
        with server.connect() as connection:
            connection.rows("BEGIN")
            answers.append(ask(connection, statement, by_extended))
            if answers[-1][-1].body == b"T":
                rows.append({table: sorted(map(repr, connection.rows(look))) for table, look in LOOK.items()})
            connection.rows("ROLLBACK")
    if not is_refused(answers[1]):
        assert essence(answers[1], False) == essence(answers[0], False)
        assert rows[:1] == rows[1:]


def test_after_it_all_nothing_has_changed(scene: Scene) -> None:
    found = []
    for server in scene.sides:
        with server.connect() as connection:
            found.append({table: sorted(map(repr, connection.rows(look))) for table, look in LOOK.items()})
    assert found[0] == found[1]
    assert len(found[0]["document"]) == DOCUMENTS + 1
