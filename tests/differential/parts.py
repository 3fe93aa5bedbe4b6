"""MERGE and writes in WITH drawn at random: statements that do several things to several rows or tables."""

from __future__ import annotations

import random
from collections.abc import Callable

from tests.differential.pieces import MARK, NOTHING, Made, Piece, Statement, Value, joined, piece
from tests.differential.schema import BY_NAME, CHILDREN, SQL_TYPES, TABLES, Table
from tests.differential.values import column_value, given_key
from tests.differential.writes import Writes

GIVEN = tuple(table for table in TABLES if table.kind in ("root", "child") and not table.is_generated)
ACTIONS = ("UPDATE", "UPDATE", "UPDATE", "UPDATE", "DELETE", "DO NOTHING")


class Parts:
    """Draws such statements with the values of `writes`."""

    def __init__(self, draw: random.Random, writes: Writes) -> None:
        self.draw = draw
        self.writes = writes
        self.in_transaction = False

    # MERGE

    def merge(self, *, in_transaction: bool) -> Statement:
        """Mostly one row by its key, as an upsert; rows of a parent; keys that the database makes; other tables."""
        self.in_transaction = in_transaction
        makers: list[tuple[int, Callable[[], Statement]]] = [
            (8, self.merge_row),
            (2, self.merge_rows),
            (3, self.merge_related),
            (2, self.merge_made),
            (1, self.merge_by_source),
            (2, self.merge_local),
        ]
        weights, chosen = zip(*makers, strict=True)
        found: Statement = self.draw.choices(chosen, weights=weights)[0]()
        return found

    def merge_row(self) -> Statement:
        """The upsert of one row."""
        return self.upsert(self.draw.choice(GIVEN), 1)

    def merge_rows(self) -> Statement:
        """The upsert of several rows, whose keys belong to several shards."""
        return self.upsert(self.draw.choice(GIVEN), self.draw.choice((2, 3, 5)))

    def upsert(self, table: Table, count: int) -> Statement:
        column = self.draw.choice(table.free_columns())
        names = [*table.key, column]
        rows: list[Piece] = []
        keys: list[tuple[str | None, ...]] = []
        while len(rows) < count:
            values = [given_key(self.draw, table, name) for name in table.key]
            if tuple(value.text for value in values) in keys:  # a row must not be changed twice
                continue
            keys.append(tuple(value.text for value in values))
            cells = [piece(value) for value in values] + [self.cell(table, column)]
            rows.append(piece("(", joined(", ", cells), ")"))
        alone = count == 1
        source = piece("(VALUES ", joined(", ", rows), f") AS v({', '.join(names)})")
        if alone and self.draw.random() < 0.3:
            cells = [*rows[0].parts[1].parts] if isinstance(rows[0].parts[1], Piece) else []
            listed = [part for part in cells if isinstance(part, Piece)]
            shown = [piece(one, f" AS {name}") for one, name in zip(listed, names, strict=True)]
            source = piece("(SELECT ", joined(", ", shown), ") AS v")
        tie = " AND ".join(f"t.{name} = v.{name}" for name in table.key)
        clauses = [f" WHEN MATCHED{self.condition(table)} THEN {self.action(table, column)}"]
        if self.draw.random() < 0.85:
            values_text = ", ".join(f"v.{name}" for name in names)
            clauses.append(f" WHEN NOT MATCHED THEN INSERT ({', '.join(names)}) VALUES ({values_text})")
        sql = piece(f"MERGE INTO {table.name} t USING ", source, f" ON {tie}", "".join(clauses), self.returning(table))
        return Statement("merge row" if alone else "merge rows", sql)

    def cell(self, table: Table, column: str) -> Piece:
        """A value whose type is certain."""
        value = column_value(self.draw, table, column)
        return piece("CAST(", value, f" AS {SQL_TYPES[table.columns[column]]})")

    def action(self, table: Table, column: str) -> str:
        word = self.draw.choice(ACTIONS)
        return f"UPDATE SET {column} = v.{column}" if word == "UPDATE" else word

    def condition(self, table: Table) -> str:
        """What a matched row must meet besides."""
        if self.draw.random() < 0.7:
            return ""
        return f" AND t.{self.draw.choice(table.free_columns())} IS NOT NULL"

    def returning(self, table: Table) -> Piece:
        if self.draw.random() < 0.7:
            return NOTHING
        first = self.draw.choice(list(table.columns))
        return piece(" RETURNING " + self.draw.choice((f"merge_action(), t.{first}", "t.*", f"v.*, t.{first} AS x")))

    def merge_related(self) -> Statement:
        """Rows of a child and its parents."""
        child = self.draw.choice(CHILDREN)
        parent = BY_NAME[child.parent]
        column = self.draw.choice([name for name in child.free_columns() if child.columns[name] in ("int", "text")])
        tie = f"t.{child.via} = s.{parent.key[0]}"
        which = piece(f" AND s.{parent.key[0]} = ", self.writes.key_value(parent))
        if self.draw.random() < 0.5:
            which = piece(" AND ", self.writes.test(parent, "s."))
        change = piece(f"UPDATE SET {column} = ", column_value(self.draw, child, column).bare(self.draw))
        action = self.draw.choice((change, change, piece("DELETE"), piece("DO NOTHING")))
        head = f"MERGE INTO {child.name} t USING {parent.name} s ON {tie}"
        return Statement("merge related", piece(head, which, " WHEN MATCHED THEN ", action, self.shown(child)))

    def shown(self, table: Table) -> str:
        return self.draw.choice(("", "", f" RETURNING merge_action(), t.{table.key[0]}"))

    def merge_made(self) -> Statement:
        """New rows whose keys the database makes."""
        mark = self.writes.world.new_mark()
        if self.draw.random() < 0.5:
            level = column_value(self.draw, BY_NAME["account"], "level")
            source = piece("(VALUES (", Value(MARK, mark), "::text, ", level, ")) AS v(mark, n)")
            head = piece("MERGE INTO account t USING ", source)
            tail = " ON t.mark = v.mark WHEN MATCHED THEN UPDATE SET level = v.n"
            tail += " WHEN NOT MATCHED THEN INSERT (mark, level) VALUES (v.mark, v.n)"
            return self.made("account", piece(head, tail), mark)
        account = BY_NAME["account"]
        head = piece(f"MERGE INTO orders t USING account s ON t.account_id = s.id AND t.title = '{mark}' ")
        tail = piece("WHEN NOT MATCHED AND s.id = ", self.writes.key_value(account), " THEN ")
        new = piece("INSERT (mark, account_id, title) VALUES (", Value(MARK, mark), ", s.id, 'merged')")
        return self.made("orders", piece(head, tail, new), mark)

    def made(self, name: str, sql: Piece, mark: str) -> Statement:
        if not self.in_transaction and self.draw.random() < 0.5:
            return Statement("merge made", sql, makes=((name, mark),))
        return Statement("merge made", piece(sql, " RETURNING t.id, t.mark"), "none", Made(name, 0, 1))

    def merge_by_source(self) -> Statement:
        """What is not in the source goes."""
        table = self.draw.choice([one for one in GIVEN if len(one.key) == 1])
        keys = [piece("(", given_key(self.draw, table, table.key[0]), ")") for _ in range(3)]
        source = piece("(VALUES ", joined(", ", keys), f") AS v(k) ON t.{table.key[0]} = v.k")
        head = piece(f"MERGE INTO {table.name} t USING ", source)
        test = self.writes.test(table, "t.")
        return Statement("merge by source", piece(head, " WHEN NOT MATCHED BY SOURCE AND ", test, " THEN DELETE"))

    def merge_local(self) -> Statement:
        """Reference and plain tables."""
        code = given_key(self.draw, BY_NAME["country"], "code")
        rank = column_value(self.draw, BY_NAME["country"], "rank")
        number = given_key(self.draw, BY_NAME["memo"], "id")
        shapes = [
            piece("MERGE INTO memo t USING country c ON t.body = c.code WHEN MATCHED THEN DELETE"),
            piece("MERGE INTO memo t USING ledger c ON t.id = c.id WHEN MATCHED THEN UPDATE SET body = c.body"),
            piece(
                *("MERGE INTO memo t USING (VALUES (", number, ")) AS v(id) ON t.id = v.id WHEN MATCHED THEN UPDATE "),
                "SET body = 'merged' WHEN NOT MATCHED THEN INSERT (id, body) VALUES (v.id, 'new')",
            ),
            piece(
                *("MERGE INTO country t USING (VALUES (", code, ", ", rank, ")) AS v(code, rank) ON t.code = v.code "),
                "WHEN MATCHED THEN UPDATE SET rank = v.rank ",
                "WHEN NOT MATCHED THEN INSERT VALUES (v.code, 'new', v.rank)",
            ),
        ]
        return Statement("merge local", self.draw.choice(shapes))

    # Writes in WITH

    def with_write(self, *, in_transaction: bool) -> Statement:
        """Rows that a write gives to the statement around it: of one key, of many shards, or of two tables."""
        self.in_transaction = in_transaction
        makers: list[tuple[int, Callable[[], Statement]]] = [
            (4, self.with_given),
            (3, self.with_wide),
            (3, self.with_made),
            (3, self.with_children),
            (2, self.with_transfer),
            (1, self.with_archive),
        ]
        weights, chosen = zip(*makers, strict=True)
        found: Statement = self.draw.choices(chosen, weights=weights)[0]()
        return found

    def inner(self, table: Table, where: Piece) -> Piece:
        """A write whose rows are returned."""
        if self.draw.random() < 0.35:
            return piece(f"DELETE FROM {table.name}", where, " RETURNING *")
        return piece(f"UPDATE {table.name} SET ", self.writes.assignments(table), where, " RETURNING *")

    def with_given(self) -> Statement:
        """By key; what it gave is shown or counted."""
        table = self.writes.any_table()
        where = piece(" WHERE ", self.writes.by_key(table))
        shown = self.draw.choice(("SELECT * FROM w", "SELECT count(*) FROM w", f"SELECT {table.key[0]} AS k FROM w"))
        return Statement("with row", piece("WITH w AS (", self.inner(table, where), f") {shown}"))

    def with_wide(self) -> Statement:
        """The same for rows of several shards."""
        table = self.writes.any_table()
        where = self.writes.condition(table)
        shown = self.draw.choice(("SELECT * FROM w", "SELECT count(*) FROM w", "SELECT * FROM w WHERE false"))
        return Statement("with rows", piece("WITH w AS (", self.inner(table, where), f") {shown}"))

    def with_made(self) -> Statement:
        """A new row, and what is made of its key."""
        mark, other = self.writes.world.new_mark(), self.writes.world.new_mark()
        level = column_value(self.draw, BY_NAME["account"], "level")
        head = piece(
            *("WITH w AS (INSERT INTO account (mark, level) VALUES (", Value(MARK, mark), ", ", level),
            ") RETURNING id, mark) ",
        )
        if self.in_transaction or self.draw.random() < 0.4:
            return Statement("with made", piece(head, "SELECT id, mark FROM w"), "none", Made("account", 0, 1))
        tail = piece("INSERT INTO orders (mark, account_id, title) SELECT ", Value(MARK, other), ", id, mark FROM w")
        return Statement("with made", piece(head, tail), makes=(("account", mark), ("orders", other)))

    def with_children(self) -> Statement:
        """A row and what belongs to it."""
        child = self.draw.choice(CHILDREN)
        parent = BY_NAME[child.parent]
        key = self.writes.key_value(parent)
        inner = self.inner(child, piece(f" WHERE {child.via} = ", key))
        shapes = [
            piece(f"UPDATE {parent.name} SET ", self.writes.assignments(parent), f" WHERE {parent.key[0]} = ", key),
            piece(f"SELECT * FROM {parent.name} WHERE {parent.key[0]} = ", key),
            piece(f"SELECT p.*, (SELECT count(*) FROM w) AS n FROM {parent.name} p WHERE p.{parent.key[0]} = ", key),
        ]
        return Statement("with children", piece("WITH w AS (", inner, ") ", self.draw.choice(shapes)))

    def with_transfer(self) -> Statement:
        """From one row to another, which may be on another shard."""
        account = BY_NAME["account"]
        taken, given = self.writes.key_value(account), self.writes.key_value(account)
        head = piece("WITH w AS (UPDATE account SET balance = balance - 1 WHERE id = ", taken, " RETURNING id) ")
        change = piece("UPDATE account SET balance = balance + 1 WHERE id = ", given)
        if taken.text == given.text:
            return Statement("with row", piece(head, "SELECT id FROM w"))
        tail = self.draw.choice((change, piece(change, " AND EXISTS (SELECT 1 FROM w)")))
        return Statement("with transfer", piece(head, tail))

    def with_archive(self) -> Statement:
        """From one table into another one."""
        seat = BY_NAME["seat"]
        where = piece(" WHERE no = ", self.writes.key_value(seat))
        shapes = [
            piece("DELETE FROM ledger WHERE score > 3 RETURNING *) INSERT INTO memo (id, body) SELECT 1000 + id, body"),
            piece("DELETE FROM seat", where, " RETURNING *) INSERT INTO ledger (body, score) SELECT title, no"),
        ]
        conflict = " FROM w ON CONFLICT DO NOTHING"
        return Statement("with archive", piece("WITH w AS (", self.draw.choice(shapes), conflict))
