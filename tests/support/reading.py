"""A schema of two groups with many types, its rows, and SELECTs over it: written by hand, and drawn at random."""

from __future__ import annotations

import random
from typing import ClassVar

SCHEMA = """
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE DOMAIN price AS numeric(10, 2) CHECK (VALUE >= 0);
CREATE TYPE place AS (town varchar(20), zip char(6));
CREATE TABLE genre (code text PRIMARY KEY, label text, rank integer);
CREATE TABLE author (id bigserial PRIMARY KEY, name text, mood mood, score integer, rate numeric(8, 3), born date,
  weight double precision, shy boolean, home place);
CREATE TABLE book (id bigserial PRIMARY KEY, author_id bigint NOT NULL REFERENCES author, title varchar(20),
  cost price, tags text[], meta jsonb, code char(4), at timestamptz, span interval, genre text, raw bytea);
CREATE TABLE shop (id bigserial PRIMARY KEY, name text, city text COLLATE "C", size smallint);
CREATE TABLE sale (id bigserial PRIMARY KEY, shop_id bigint NOT NULL REFERENCES shop, title varchar(20),
  amount numeric, day date, n real);
CREATE TABLE note (id bigserial PRIMARY KEY, body text, score integer);
CREATE VIEW gifted AS SELECT id, name, score FROM author WHERE score > 4;
CREATE VIEW takings AS SELECT s.city, count(*) AS sales, sum(x.amount) AS total
  FROM shop s JOIN sale x ON x.shop_id = s.id GROUP BY s.city;
CREATE VIEW gifted_books AS SELECT g.name, b.title FROM gifted g JOIN book b ON b.author_id = g.id;
CREATE VIEW note_bodies AS SELECT upper(body) AS body, score FROM note;
CREATE FUNCTION doubled(n integer) RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT n * 2';
CREATE FUNCTION authors_of(low integer) RETURNS bigint LANGUAGE plpgsql STABLE AS
  'BEGIN RETURN (SELECT count(*) FROM author WHERE score >= low); END';
"""
TABLES = {
    "author": {"key": "id"},
    "book": {"key": "id", "parent": "author", "via": "author_id"},
    "shop": {"key": "id"},
    "sale": {"key": "id", "parent": "shop", "via": "shop_id"},
    "genre": {"reference": True},
}
GENRES = ("INSERT INTO genre VALUES ('a', 'Art', 2), ('b', 'Biology', 1), ('c', NULL, 3), ('d', 'Drama', NULL)",)
NOTES = "INSERT INTO note (body, score) SELECT 'name ' || n, n % 5 FROM generate_series(1, 12) AS n"
AUTHORS, SHOPS = 30, 12


def literal(draw: random.Random, *choices: object) -> str:
    """One of the values as SQL, one time in eight NULL."""
    chosen = draw.choice(choices)
    if draw.random() < 0.125:
        return "NULL"
    return str(chosen) if isinstance(chosen, int | float) else "'" + str(chosen).replace("'", "''") + "'"


def author_row(draw: random.Random, number: int) -> str:
    """The values of a new author, after its key."""
    return ", ".join(
        (
            literal(draw, f"name {number % 9}", f"Ärger {number}", "it's"),
            literal(draw, "sad", "ok", "happy"),
            literal(draw, *range(-2, 9)),
            literal(draw, 1.5, 2.125, -3, 100.001, 0),
            literal(draw, "2001-02-03", "1999-12-31", "2024-02-29"),
            literal(draw, 0.1, 1e300, -2.5, "NaN", "Infinity", 1 / 3),
            literal(draw, "t", "f"),
            literal(draw, "(Ulm,89073)", '("Bad Kissingen",97688)'),
        )
    )


def book_row(draw: random.Random, number: int) -> str:
    """The values of a new book, after its own key and its author's."""
    return ", ".join(
        (
            literal(draw, f"title {number % 7}", "name 3", "Zebra"),
            literal(draw, 1, 2.5, 9.99, 120),
            literal(draw, "{}", "{a,b}", '{b,"c d",NULL}'),
            literal(draw, "{}", '{"k": 1}', '{"k": [1, 2, {"x": null}]}', "3"),
            literal(draw, "ab", "abcd", "x"),
            literal(draw, "2024-01-01 10:00+00", "2024-07-01 23:30:00.123456+02", "1990-05-05 00:00-05"),
            literal(draw, "1 day 02:03:04", "-3 months", "00:00:00.5"),
            literal(draw, "a", "b", "z"),
            literal(draw, "\\x00ff", "\\x"),
        )
    )


def shop_row(draw: random.Random, number: int) -> str:
    """The values of a new shop, after its key."""
    return ", ".join(
        (
            literal(draw, f"shop {number}", f"name {number % 9}"),
            literal(draw, "Ulm", "ulm", "Bonn", "Ährental"),
            literal(draw, 1, 2, 3, 30000),
        )
    )


def sale_row(draw: random.Random, number: int) -> str:
    """The values of a new sale, after its own key and its shop's."""
    return ", ".join(
        (
            literal(draw, f"title {number % 7}", "none"),
            literal(draw, 1, 2.50, 10.0001, -4),
            literal(draw, "2024-01-01", "2024-01-02", "1999-12-31"),
            literal(draw, 0.1, 1.5, 3),
        )
    )


# Every clause of SELECT, over tables that are never on one shard together. A line each.
READS = """
SELECT a.name, s.name FROM author a JOIN shop s ON s.name = a.name ORDER BY a.id, s.id
SELECT a.id, s.id FROM author a LEFT JOIN shop s ON s.name = a.name AND s.size > 1 ORDER BY a.id, s.id
SELECT a.id, s.id FROM author a FULL JOIN shop s ON s.name = a.name ORDER BY a.id NULLS FIRST, s.id DESC NULLS LAST
SELECT array_agg(DISTINCT left(name, 2) ORDER BY left(name, 2)) FROM author
SELECT string_agg(DISTINCT left(name, 1), ',' ORDER BY left(name, 1)) FROM author
SELECT a.id, n.id FROM author a CROSS JOIN note n WHERE n.score = a.score ORDER BY 1, 2
SELECT a.id, n.id FROM note n LEFT JOIN author a ON n.score = a.score ORDER BY 2, 1
SELECT n.*, b.title FROM note n JOIN book b ON b.title = n.body ORDER BY n.id, b.id
SELECT * FROM author a JOIN shop s USING (name) ORDER BY a.id, s.id
SELECT * FROM (SELECT name FROM author) a NATURAL JOIN (SELECT name FROM shop) s ORDER BY 1
SELECT b.*, g.label FROM book b JOIN genre g ON g.code = b.genre JOIN sale x ON x.title = b.title ORDER BY b.id, x.id
SELECT a.* FROM author a, shop s WHERE s.name = a.name ORDER BY a.id
SELECT a, s FROM author a JOIN shop s ON s.name = a.name ORDER BY a.id, s.id
SELECT a.id, a.name, count(*) FROM author a JOIN shop s ON s.name = a.name GROUP BY a.id ORDER BY a.id
SELECT n.id, n.body, count(b.id) FROM note n LEFT JOIN book b ON b.title = n.body GROUP BY n.id ORDER BY n.id
SELECT id, row_number() OVER (ORDER BY score NULLS LAST, id), rank() OVER (ORDER BY score) FROM author ORDER BY id
SELECT id, sum(cost) OVER (PARTITION BY author_id ORDER BY id ROWS BETWEEN 1 PRECEDING AND CURRENT ROW) FROM book \
ORDER BY id
SELECT id, lag(day) OVER w, lead(amount, 2, 0) OVER w, ntile(3) OVER w FROM sale WINDOW w AS (ORDER BY day, id) \
ORDER BY id
SELECT mood, avg(score) OVER (PARTITION BY mood), count(*) FILTER (WHERE shy) OVER () FROM author ORDER BY id
WITH t AS (SELECT title, count(*) AS n FROM book GROUP BY title) SELECT * FROM t JOIN sale s USING (title) ORDER BY s.id
WITH t AS MATERIALIZED (SELECT * FROM author) SELECT count(*), sum(t.score) FROM t JOIN t u ON u.score = t.score
WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r WHERE n < 5) SELECT r.n, a.id FROM r JOIN author a ON \
a.score = r.n ORDER BY 1, 2
WITH RECURSIVE r(n) AS (SELECT min(score) FROM author UNION SELECT a.score FROM author a, r WHERE a.score = r.n + 1) \
SELECT * FROM r ORDER BY 1
WITH a AS (SELECT 1 AS x), b AS (SELECT x + 1 AS y FROM a) SELECT y, (SELECT count(*) FROM author) FROM b
SELECT name FROM author UNION SELECT name FROM shop ORDER BY 1
SELECT name FROM author UNION ALL SELECT body FROM note ORDER BY 1
SELECT name FROM author INTERSECT SELECT name FROM shop ORDER BY 1
SELECT score FROM author INTERSECT ALL SELECT score FROM note ORDER BY 1
SELECT name FROM author EXCEPT SELECT name FROM shop ORDER BY 1 DESC
SELECT score FROM note EXCEPT ALL SELECT score FROM author ORDER BY 1
(SELECT id FROM author ORDER BY score, id LIMIT 2) UNION ALL (SELECT id FROM shop ORDER BY id DESC LIMIT 2)
SELECT title, genre, count(*), grouping(title, genre) FROM book GROUP BY ROLLUP (title, genre) ORDER BY 1, 2, 4
SELECT mood, shy, count(*) FROM author GROUP BY CUBE (mood, shy) ORDER BY 1, 2, 3
SELECT title, code, sum(cost) FROM book GROUP BY GROUPING SETS ((title), (code), ()) ORDER BY 1, 2, 3
SELECT a.id, l.title FROM author a, LATERAL (SELECT title FROM sale WHERE n > a.score ORDER BY id LIMIT 1) l ORDER BY 1
SELECT a.id, l.c FROM author a LEFT JOIN LATERAL (SELECT count(*) AS c FROM shop WHERE size > a.score) l ON true \
ORDER BY 1
SELECT id, (SELECT count(*) FROM shop s WHERE s.name = a.name) FROM author a ORDER BY id
SELECT id FROM author WHERE score = (SELECT max(score) FROM author) ORDER BY id
SELECT id FROM author WHERE score > ALL (SELECT score FROM note WHERE score < 3) ORDER BY id
SELECT id FROM author WHERE name IN (SELECT name FROM shop) ORDER BY id
SELECT id FROM author WHERE name NOT IN (SELECT name FROM shop WHERE name IS NOT NULL) ORDER BY id
SELECT id FROM author a WHERE EXISTS (SELECT FROM sale x JOIN book b ON b.title = x.title WHERE b.author_id = a.id) \
ORDER BY id
SELECT id FROM author a WHERE NOT EXISTS (SELECT FROM book b WHERE b.author_id <> a.id AND b.cost > a.score) ORDER BY id
SELECT ARRAY(SELECT name FROM shop ORDER BY id), (SELECT array_agg(score ORDER BY id) FROM author)
SELECT count(*), count(name), count(DISTINCT score), sum(rate), avg(score), min(born), max(weight), bool_or(shy) \
FROM author JOIN note USING (score)
SELECT string_agg(name, ', ' ORDER BY name DESC, id), jsonb_agg(score ORDER BY id) FROM author
SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY score), mode() WITHIN GROUP (ORDER BY mood) FROM author
SELECT DISTINCT a.mood, s.city FROM author a, shop s ORDER BY 1, 2
SELECT DISTINCT ON (title) title, id FROM sale ORDER BY title, id DESC
SELECT a.score FROM author a JOIN note n USING (score) GROUP BY a.score HAVING count(*) > 1 ORDER BY 1
SELECT a.id, s.id FROM author a, shop s ORDER BY a.id, s.id LIMIT 5 OFFSET 7
SELECT a.score FROM author a, shop s WHERE s.size = 1 ORDER BY a.score FETCH FIRST 2 ROWS WITH TIES
SELECT mood FROM author UNION SELECT 'ok'::mood ORDER BY 1
SELECT mood, mood > 'sad' FROM author JOIN note USING (score) ORDER BY mood DESC, id, 2
SELECT city, name FROM shop UNION SELECT name, name FROM author ORDER BY 1, 2
SELECT s.city FROM shop s JOIN author a ON a.name > s.city ORDER BY s.city, a.id
SELECT code, code || '|', length(code), octet_length(code) FROM book b JOIN note n ON n.id = b.cost ORDER BY b.id
SELECT cost, cost * 3, cost::text, tags, tags[1], meta, meta -> 'k', raw, span, span * 2 FROM book b, (SELECT 1 FROM \
shop LIMIT 1) s ORDER BY b.id
SELECT b.at, b.at::date, b.at::text, extract(hour FROM b.at), date_trunc('day', b.at) FROM book b, note n WHERE n.id \
= 1 ORDER BY b.id
SELECT weight, weight::text, rate, n::text, n FROM author a LEFT JOIN sale s ON s.amount = a.score ORDER BY a.id, s.id
SELECT home, (home).town, (home).zip FROM author, (SELECT 1 FROM note LIMIT 1) x ORDER BY id
SELECT t.tag, count(*) FROM book b, unnest(b.tags) AS t(tag), note n WHERE n.id < 3 GROUP BY 1 ORDER BY 1
SELECT b.id, e.key FROM book b JOIN note n ON n.score = 1, jsonb_each(CASE jsonb_typeof(b.meta) WHEN 'object' THEN \
b.meta ELSE '{}' END) e ORDER BY 1, 2
SELECT generate_series(1, 2), a.id FROM author a JOIN note USING (score) ORDER BY 2, 1
SELECT CASE WHEN a.score > 3 THEN s.city ELSE a.name END FROM author a, shop s ORDER BY a.id, s.id
SELECT coalesce(a.name, s.name, 'none'), nullif(a.score, s.size) FROM author a FULL JOIN shop s ON a.score = s.size \
ORDER BY a.id, s.id
SELECT * FROM gifted ORDER BY id
SELECT * FROM takings ORDER BY city
SELECT * FROM gifted_books ORDER BY 1, 2
SELECT g.name, n.body FROM gifted g JOIN note_bodies n USING (score) ORDER BY g.id, n.body
SELECT t.* FROM takings t JOIN author a ON a.name = t.city OR a.score = t.sales ORDER BY t.city, a.id
SELECT doubled(a.score), s.id FROM author a JOIN shop s ON doubled(s.size) = a.score ORDER BY a.id, s.id
SELECT authors_of(3), authors_of(NULL)
SELECT count(*) FROM author WHERE score IN (VALUES (1), (2), (NULL))
SELECT * FROM (VALUES (1, 'x'), (2, 'y')) v(score, y) JOIN author a USING (score) JOIN note n USING (score) ORDER BY \
a.id, n.id
SELECT a.id FROM author a JOIN author b ON b.score = a.score + 1 ORDER BY a.id, b.id
SELECT 1 / (score - score) FROM author JOIN note USING (score)
SELECT title::integer FROM book JOIN note ON note.id = 1
SELECT nothing FROM author JOIN note USING (score)
SELECT a.id FROM author a JOIN note n ON n.body
SELECT a.name, count(*) FROM author a JOIN note USING (score)
SELECT count(*) FROM author WHERE random() < 2
SELECT count(*) FROM (SELECT now() - at FROM book) x WHERE now() IS NOT NULL
TABLE author ORDER BY id
SELECT grouping(a.id), count(*) FROM author a JOIN note USING (score) GROUP BY a.id ORDER BY a.id
""".strip().splitlines()


class Reads:
    """Draws SELECTs. Whatever it draws has a determined result, as a set of rows at least."""

    TABLES: ClassVar[dict[str, dict[str, tuple[str, ...]]]] = {
        "author": {"text": ("name",), "number": ("score", "rate"), "other": ("mood", "born", "shy", "weight")},
        "book": {"text": ("title", "genre"), "number": ("cost",), "other": ("code", "tags", "at", "meta")},
        "shop": {"text": ("name", "city"), "number": ("size",), "other": ()},
        "sale": {"text": ("title",), "number": ("amount", "n"), "other": ("day",)},
        "genre": {"text": ("code", "label"), "number": ("rank",), "other": ()},
        "note": {"text": ("body",), "number": ("score",), "other": ()},
        "gifted": {"text": ("name",), "number": ("score",), "other": ()},
    }

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.count = 0

    def statement(self) -> str:
        """One SELECT whose rows come in no particular order."""
        makes = (self.join, self.join, self.grouped, self.combined, self.windowed, self.nested, self.cte)
        return self.draw.choice(makes)()

    def alias(self) -> str:
        self.count += 1
        return f"t{self.count}"

    def source(self) -> tuple[str, str, str]:
        """A FROM item, its alias, and its table."""
        table, alias = self.draw.choice(list(self.TABLES)), self.alias()
        return f"{table} {alias}", alias, table

    def column(self, alias: str, table: str, *kinds: str) -> str:
        """A column of one of the kinds; a constant when the table has none."""
        found = [name for kind in kinds for name in self.TABLES[table][kind]]
        return f"{alias}.{self.draw.choice(found)}" if found else "1"

    def any_column(self, alias: str, table: str) -> str:
        return self.column(alias, table, "text", "number", "other")

    def condition(self, sources: list[tuple[str, str]], depth: int = 1) -> str:
        """A condition over the sources."""
        alias, table = self.draw.choice(sources)
        number, text = self.column(alias, table, "number"), self.column(alias, table, "text")
        choices = [
            f"{number} > {self.draw.randint(-3, 6)}",
            f"{number} BETWEEN 0 AND {self.draw.randint(0, 9)}",
            f"{text} LIKE '%{self.draw.choice('aeim3')}%'",
            f"{text} IS NOT NULL",
            f"{self.any_column(alias, table)} IS NULL",
            f"NOT ({number} = {self.draw.randint(0, 4)})",
        ]
        if depth:
            item, other, other_table = self.source()
            inner = self.condition([(other, other_table)], depth - 1)
            choices += [
                f"EXISTS (SELECT FROM {item} WHERE {self.column(other, other_table, 'number')} = {number} AND {inner})",
                f"{text} IN (SELECT {self.column(other, other_table, 'text')} FROM {item} WHERE {inner})",
                f"{number} >= (SELECT avg({self.column(other, other_table, 'number')}) FROM {item} WHERE {inner})",
                f"({self.condition(sources, 0)} OR {self.condition(sources, 0)})",
            ]
        return self.draw.choice(choices)

    def joined(self) -> tuple[str, list[tuple[str, str]]]:
        """FROM with two or three tables."""
        text, alias, table = self.source()
        sources = [(alias, table)]
        for _ in range(self.draw.choice((1, 1, 2))):
            item, other, other_table = self.source()
            kind = self.draw.choice(("JOIN", "LEFT JOIN", "RIGHT JOIN", "FULL JOIN"))
            same = self.draw.choice(("text", "number"))
            before = self.draw.choice(sources)
            text += f" {kind} {item} ON {self.column(other, other_table, same)} = {self.column(*before, same)}"
            sources.append((other, other_table))
        return text, sources

    def join(self) -> str:
        text, sources = self.joined()
        columns = ", ".join(self.any_column(*self.draw.choice(sources)) for _ in range(3))
        distinct = self.draw.choice(("", "", "DISTINCT "))
        return f"SELECT {distinct}{columns} FROM {text} WHERE {self.condition(sources)}"

    def grouped(self) -> str:
        text, sources = self.joined()
        key = self.any_column(*self.draw.choice([one for one in sources if one[1] != "book"] or sources))
        number = self.column(*self.draw.choice(sources), "number")
        having = self.draw.choice(("", " HAVING count(*) > 1"))
        form = self.draw.choice((key, f"ROLLUP ({key})", f"GROUPING SETS (({key}), ())"))
        if key == "1" or key.endswith((".meta", ".weight")):
            key, form = "1 + 0", "()"
        return (
            f"SELECT {key}, count(*), sum({number}::numeric), min({number}), count(DISTINCT {number}) FROM {text} "
            f"WHERE {self.condition(sources)} GROUP BY {form}{having}"
        )

    def simple(self, kind: str) -> str:
        item, alias, table = self.source()
        return f"SELECT {self.column(alias, table, kind)} FROM {item} WHERE {self.condition([(alias, table)])}"

    def combined(self) -> str:
        kind = self.draw.choice(("text", "number"))
        cast = "text" if kind == "text" else "numeric"
        operation = self.draw.choice(("UNION", "UNION ALL", "INTERSECT", "EXCEPT", "EXCEPT ALL"))
        sides = (f"SELECT x::{cast} FROM ({self.simple(kind)}) AS q(x)" for _ in range(2))
        return f" {operation} ".join(sides)

    def windowed(self) -> str:
        text, sources = self.joined()
        part, number = (
            self.column(*self.draw.choice(sources), "text"),
            self.column(*self.draw.choice(sources), "number"),
        )
        call = self.draw.choice(("count(*)", f"sum({number}::numeric)", f"max({number})", "rank()"))
        order = f" ORDER BY {number}" if call == "rank()" else ""
        return f"SELECT {part}, {number}, {call} OVER (PARTITION BY {part}{order}) FROM {text}"

    def nested(self) -> str:
        item, alias, table = self.source()
        other, name, other_table = self.source()
        inner = self.condition([(alias, table), (name, other_table)], 0)
        return f"SELECT {self.any_column(alias, table)}, (SELECT count(*) FROM {other} WHERE {inner}) FROM {item}"

    def cte(self) -> str:
        name = self.alias()
        item, alias, table = self.source()
        key = "code" if table == "genre" else "id"
        common = f"WITH {name}(x) AS (SELECT x::text FROM ({self.simple('text')}) AS q(x))"
        on = f"{name}.x = {self.column(alias, table, 'text')}"
        return f"{common} SELECT {alias}.{key}, {name}.x FROM {item} LEFT JOIN {name} ON {on}"
