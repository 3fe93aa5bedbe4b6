"""Statements drawn at random over a fixed sharded schema, as text with holes and typed values for the holes.

The same statement can be sent by the simple protocol (values as literals) or the extended one (values as parameters,
text or binary). Statements that may be answered with 0A000 for now say why in `refusable`.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

SCHEMA = """
CREATE TABLE document (id bigserial PRIMARY KEY, title text, score integer NOT NULL DEFAULT 5, code text);
CREATE TABLE symbol (id bigserial PRIMARY KEY, document_id bigint NOT NULL REFERENCES document ON DELETE CASCADE,
                     name text, weight double precision);
CREATE TABLE language (code text PRIMARY KEY, name text);
CREATE TABLE note (id integer PRIMARY KEY, body text);
INSERT INTO language VALUES ('py', 'Python'), ('c', 'C'), ('rs', 'Rust');
"""
TABLES = {
    "document": {"key": "id"},
    "symbol": {"key": "id", "parent": "document", "via": "document_id"},
    "language": {"reference": True},
}
CODES = ("py", "c", "rs", "none")
OIDS = {"bigint": 20, "integer": 23, "text": 25, "bigint[]": 1016}
MALFORMED = "SELEC 1"
MERGE = "needs merging over shards"
EXPLICIT_CHILD = "explicit child key"


@dataclass(frozen=True)
class Value:
    """One value and its type."""

    type: str
    value: int | str | tuple[int, ...] | None

    @property
    def text(self) -> bytes | None:
        if self.value is None:
            return None
        if isinstance(self.value, tuple):
            return ("{" + ",".join(map(str, self.value)) + "}").encode()
        return str(self.value).encode()

    @property
    def binary(self) -> bytes | None:
        match self.value:
            case None:
                return None
            case int():
                return struct.pack("!q" if self.type == "bigint" else "!i", self.value)
            case str():
                return self.value.encode()
            case items:
                head = (
                    struct.pack("!iiiii", 1, 0, OIDS["bigint"], len(items), 1)
                    if items
                    else struct.pack("!iii", 0, 0, 20)
                )
                return head + b"".join(struct.pack("!iq", 8, item) for item in items)

    def literal(self, style: int) -> str:
        """As SQL, in one of several spellings."""
        text = self.text
        if text is None:
            return f"NULL::{self.type}"
        quoted = "'" + text.decode().replace("'", "''") + "'"
        if isinstance(self.value, int):
            # Before `::` a minus sign would apply to the result of the cast.
            bare = str(self.value) if self.value >= 0 else quoted
            cast = f"CAST({quoted} AS {self.type})"
            return [str(self.value), str(self.value), quoted, f"{bare}::{self.type}", cast][style % 5]
        return f"{quoted}::{self.type}" if self.type != "text" else quoted


@dataclass(frozen=True)
class Statement:
    """SQL with `{}` where each value goes."""

    sql: str
    values: tuple[Value, ...] = ()
    ordered: bool = False
    refusable: str | None = None
    # For INSERTs whose keys the database makes: the same statement with a place for the keys, which come first per row.
    keyed_sql: str | None = None
    row_values: int = 0  # values per row of such an INSERT
    rows: int = 0

    def as_literals(self, style: int) -> str:
        return self.sql.format(*(value.literal(style + index) for index, value in enumerate(self.values)))

    def as_parameters(self) -> str:
        return self.sql.format(*(f"${index}" for index in range(1, len(self.values) + 1)))

    def with_keys(self, keys: Sequence[int]) -> Statement:
        """The INSERT with explicit keys, for a database that does not place rows."""
        assert self.keyed_sql is not None
        values: list[Value] = []
        for index, key in enumerate(keys):
            values += [Value("bigint", key), *self.values[index * self.row_values : (index + 1) * self.row_values]]
        return replace(self, sql=self.keyed_sql, values=tuple(values), keyed_sql=None)


@dataclass
class World:
    """The keys that exist, as far as the generator must know; refreshed from the reference database."""

    documents: list[int] = field(default_factory=list)
    symbols: list[tuple[int, int]] = field(default_factory=list)


def big(value: int | None) -> Value:
    return Value("bigint", value)


def words(draw: random.Random) -> Value:
    return Value(
        "text", draw.choice(["", "plain", "it's", "naïve", "a\\b", "percent %s", "x" * 500, f"t{draw.randrange(99)}"])
    )


def a_document(draw: random.Random, world: World) -> Value:
    """Mostly a key that exists; sometimes one that does not, or no bigint at all would have."""
    if world.documents and draw.random() < 0.9:
        return big(draw.choice(world.documents))
    return big(draw.choice([0, -1, 42, 2**52, 2**52 + 12345, 2**53, 2**63 - 1, -(2**63)]))


def a_symbol(draw: random.Random, world: World) -> Value:
    if world.symbols and draw.random() < 0.9:
        return big(draw.choice(world.symbols)[0])
    return big(draw.choice([7, 2**52 + (17 << 40) + 3]))


def several(draw: random.Random, world: World) -> list[Value]:
    return [a_document(draw, world) for _ in range(draw.randint(1, 6))]


def holes(count: int) -> str:
    return ", ".join(["{}"] * count)


def select_by_key(draw: random.Random, world: World) -> Statement:
    columns = draw.choice(["*", "id, title", "title, score * 2 AS twice", "count(*)", "max(score), min(title)", "1"])
    extra, values = draw.choice(
        [("", ()), (" AND score > {}", (Value("integer", 3),)), (" AND title <> {}", (words(draw),))]
    )
    shape = draw.choice(
        ["SELECT {0} FROM document WHERE id = {{}}{1}", "SELECT {0} FROM document d WHERE {{}} = d.id{1}"]
    )
    lock = draw.choice(["", "", "", " FOR UPDATE"]) if "(" not in columns else ""
    return Statement(shape.format(columns, extra) + lock, (a_document(draw, world), *values))


def select_by_keys(draw: random.Random, world: World) -> Statement:
    keys = several(draw, world)
    columns = draw.choice(["*", "id, score", "upper(title), code"])
    if draw.random() < 0.5:
        return Statement(f"SELECT {columns} FROM document WHERE id IN ({holes(len(keys))})", tuple(keys))
    items = tuple(key.value for key in keys if isinstance(key.value, int))
    return Statement(f"SELECT {columns} FROM document WHERE id = ANY({{}})", (Value("bigint[]", items),))


def select_merged(draw: random.Random, world: World) -> Statement:
    tail = draw.choice(
        ["ORDER BY id", "ORDER BY title, id LIMIT 2", "LIMIT 100", "GROUP BY id", "GROUP BY id HAVING count(*) > 0"]
    )
    keys = several(draw, world)
    sql = f"SELECT id FROM document WHERE id IN ({holes(len(keys))}) {tail}"
    return Statement(sql, tuple(keys), ordered="ORDER BY id" in tail)


def select_children(draw: random.Random, world: World) -> Statement:
    parent = a_document(draw, world)
    return draw.choice(
        [
            Statement("SELECT * FROM symbol WHERE document_id = {}", (parent,)),
            Statement("SELECT name, weight FROM symbol WHERE id = {}", (a_symbol(draw, world),)),
            Statement("SELECT id FROM symbol WHERE document_id = {} ORDER BY id", (parent,), ordered=True),
            Statement("SELECT count(*), sum(weight) FROM symbol WHERE document_id = {}", (parent,)),
        ]
    )


def select_join(draw: random.Random, world: World) -> Statement:
    parent = a_document(draw, world)
    shapes = [
        "SELECT d.title, s.name FROM document d JOIN symbol s ON s.document_id = d.id WHERE d.id = {}",
        "SELECT d.title, s.name FROM document d, symbol s WHERE s.document_id = d.id AND d.id = {}",
        "SELECT d.id, s.id AS symbol FROM document d LEFT JOIN symbol s ON s.document_id = d.id WHERE d.id = {}",
        "SELECT d.id, s.name FROM document d JOIN symbol s ON s.document_id = d.id WHERE s.document_id = {}",
        "SELECT d.id, l.name FROM document d JOIN language l ON l.code = d.code WHERE d.id = {}",
        "SELECT d.id, l.name FROM document d LEFT JOIN language l USING (code) WHERE d.id = {}",
        "SELECT d.title, count(s.id) FROM document d LEFT JOIN symbol s ON s.document_id = d.id WHERE d.id = {}"
        " GROUP BY d.title",
    ]
    return Statement(draw.choice(shapes), (parent,))


def select_nested(draw: random.Random, world: World) -> Statement:
    shapes = [
        "SELECT title FROM document WHERE id = {} AND EXISTS (SELECT 1 FROM symbol WHERE document_id = document.id)",
        "WITH d AS (SELECT * FROM document WHERE id = {}) SELECT title FROM d",
        "SELECT (SELECT name FROM language WHERE code = document.code) FROM document WHERE id = {}",
        "SELECT x.title FROM (SELECT * FROM document WHERE id = {}) x",
        "SELECT id FROM document WHERE id = {} UNION ALL SELECT 1 WHERE false",
        "SELECT title FROM document WHERE id = {} OR false",
    ]
    return Statement(draw.choice(shapes), (a_document(draw, world),), refusable="nested")


def select_all(draw: random.Random, world: World) -> Statement:
    return draw.choice(
        [
            Statement("SELECT id, title FROM document"),
            Statement("SELECT id FROM document WHERE score > {}", (Value("integer", draw.randrange(10)),)),
            Statement("SELECT id, lower(name) FROM symbol WHERE weight >= 0.5"),
            Statement("SELECT d.id, s.name FROM document d JOIN symbol s ON s.document_id = d.id WHERE d.score > 2"),
            Statement("SELECT count(*) FROM document"),
            Statement("SELECT id FROM document ORDER BY id LIMIT 5", ordered=True),
            Statement("SELECT DISTINCT code FROM document"),
            Statement("SELECT code, sum(score) FROM document GROUP BY code"),
            Statement(
                "SELECT id FROM symbol WHERE id IN (SELECT min(id) FROM symbol GROUP BY document_id)", refusable=MERGE
            ),
        ]
    )


def select_other(draw: random.Random, world: World) -> Statement:
    return draw.choice(
        [
            Statement("SELECT * FROM language ORDER BY code", ordered=True),
            Statement("SELECT name FROM language WHERE code = {}", (Value("text", draw.choice(CODES)),)),
            Statement("SELECT * FROM note WHERE id = {}", (Value("integer", draw.randrange(30)),)),
            Statement("SELECT n.body, l.name FROM note n, language l WHERE n.id = {}", (Value("integer", 3),)),
            Statement("SELECT {} + 1 AS a, {} AS b", (Value("integer", draw.randrange(9)), words(draw))),
            Statement("SELECT relname FROM pg_class WHERE relname IN ('document', 'note') ORDER BY 1", ordered=True),
        ]
    )


def insert_documents(draw: random.Random, world: World) -> Statement:
    rows = draw.choice([1, 1, 1, 2, 5])
    values: list[Value] = []
    for _ in range(rows):
        values += [words(draw), Value("integer", draw.randrange(10)), Value("text", draw.choice(CODES))]
    plain, keyed = ", ".join(["({}, {}, {})"] * rows), ", ".join(["({}, {}, {}, {})"] * rows)
    tail = "RETURNING id, title, score, code"
    return Statement(
        f"INSERT INTO document (title, score, code) VALUES {plain} {tail}",
        tuple(values),
        keyed_sql=f"INSERT INTO document (id, title, score, code) VALUES {keyed} {tail}",
        row_values=3,
        rows=rows,
    )


def insert_symbols(draw: random.Random, world: World) -> Statement:
    rows = draw.choice([1, 1, 3])
    parents = [a_document(draw, world)] * rows
    if rows > 1 and draw.random() < 0.3:
        parents = [a_document(draw, world) for _ in range(rows)]
    values = [value for parent in parents for value in (parent, words(draw))]
    tail = "RETURNING id, document_id, name"
    return Statement(
        f"INSERT INTO symbol (document_id, name) VALUES {', '.join(['({}, {})'] * rows)} {tail}",
        tuple(values),
        keyed_sql=f"INSERT INTO symbol (id, document_id, name) VALUES {', '.join(['({}, {}, {})'] * rows)} {tail}",
        row_values=2,
        rows=rows,
    )


def insert_explicit(draw: random.Random, world: World) -> Statement:
    key = big(draw.choice([*range(1, 40), 2**53 + 5, -17]))
    values = (key, words(draw))
    return draw.choice(
        [
            Statement("INSERT INTO document (id, title) VALUES ({}, {}) RETURNING *", values),
            Statement("INSERT INTO document (id, title) VALUES ({}, {})", values),
            Statement("INSERT INTO note VALUES ({}, {})", (Value("integer", draw.randrange(40)), words(draw))),
            Statement(
                "INSERT INTO symbol (id, document_id) VALUES ({}, {})",
                (key, a_document(draw, world)),
                refusable=EXPLICIT_CHILD,
            ),
        ]
    )


def update_rows(draw: random.Random, world: World) -> Statement:
    keys = several(draw, world)
    one, child = keys[0], a_symbol(draw, world)
    return draw.choice(
        [
            Statement("UPDATE document SET score = score + 1 WHERE id = {}", (one,)),
            Statement(
                "UPDATE document SET title = {}, score = {} WHERE id = {} RETURNING *",
                (words(draw), Value("integer", 4), one),
            ),
            Statement("UPDATE symbol SET weight = 1.5 WHERE document_id = {} RETURNING id, weight", (one,)),
            Statement("UPDATE symbol SET name = {} WHERE id = {}", (words(draw), child)),
            Statement(f"UPDATE document SET score = 0 WHERE id IN ({holes(len(keys))})", tuple(keys)),
            Statement("UPDATE document SET score = 1 WHERE score = 0"),
            Statement("UPDATE document SET id = id + 1 WHERE id = {}", (one,), refusable="changed key"),
            Statement("UPDATE note SET body = {} WHERE id = {}", (words(draw), Value("integer", draw.randrange(40)))),
        ]
    )


def delete_rows(draw: random.Random, world: World) -> Statement:
    one, child = a_document(draw, world), a_symbol(draw, world)
    return draw.choice(
        [
            Statement("DELETE FROM document WHERE id = {} RETURNING id", (one,)),
            Statement("DELETE FROM symbol WHERE document_id = {} AND name = {}", (one, words(draw))),
            Statement("DELETE FROM symbol WHERE id = {} RETURNING *", (child,)),
            Statement("DELETE FROM document WHERE id = ANY({})", (Value("bigint[]", (one.value,)),), refusable=None),
            Statement("DELETE FROM note WHERE id > {}", (Value("integer", 30),)),
            Statement("DELETE FROM symbol WHERE weight > 100"),
        ]
    )


def failing(draw: random.Random, world: World) -> Statement:
    one = big(draw.choice(world.documents)) if world.documents else big(1)
    return draw.choice(
        [
            Statement("SELECT 1 / (score - score) FROM document WHERE id = {}", (one,)),
            Statement("SELECT no_such_column FROM document WHERE id = {}", (one,)),
            Statement("SELECT * FROM no_such_table"),
            Statement("UPDATE document SET score = NULL WHERE id = {}", (one,)),
            Statement("INSERT INTO symbol (document_id, name) VALUES ({}, {})", (big(2**52 + 999), words(draw))),
            Statement(
                "INSERT INTO document (id, title) VALUES ({}, {})", (one, words(draw)), refusable="explicit placed key"
            ),
            Statement(MALFORMED),
            Statement("SELECT title FROM document WHERE id = {} AND title = 1", (one,)),
        ]
    )


KINDS = {
    select_by_key: 10,
    select_by_keys: 8,
    select_merged: 2,
    select_children: 8,
    select_join: 8,
    select_nested: 3,
    select_all: 4,
    select_other: 5,
    insert_documents: 6,
    insert_symbols: 10,
    insert_explicit: 4,
    update_rows: 10,
    delete_rows: 3,
    failing: 4,
}


def draw_statement(draw: random.Random, world: World) -> Statement:
    """One statement of a kind drawn by weight."""
    (kind,) = draw.choices(list(KINDS), weights=list(KINDS.values()))
    return kind(draw, world)
