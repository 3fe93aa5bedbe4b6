"""Scripts drawn at random: statements, transactions with savepoints and errors, pipelines, strings of several.

What is drawn how often follows applications, not what is easy. Of 102 statements 45 read (14 of them nested at random,
14 by key), 50 write (18 INSERT, 14 UPDATE, 6 DELETE, 5 writes of related tables, 2 each INSERT ... SELECT, MERGE and
writes in WITH, 1 changes a key), 2 lock, 5 fail. One in seven begins a transaction of up to 12 units; of the units 7 %
are strings of several statements, 10 % pipelines, 3 % COPY FROM. Tables are equally likely, but for account, orders and
item (four, four and three times). The report counts what was drawn, by kind.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from tests.differential.definitions import Definitions
from tests.differential.parts import Parts
from tests.differential.pieces import MARK, SIMPLE, Form, Piece, Statement, Unit, Value, joined, piece
from tests.differential.queries import Queries
from tests.differential.schema import BY_NAME, CHILDREN, TABLES
from tests.differential.writes import World, Writes, initial_rows

PREPARED_MAX = 30
DDL_SHARE = 0.005  # of what begins outside of transactions
BRINGS_KEY = (
    *(f"INSERT INTO {name} (id" for name in ("item", "street", "orders", "show")),
    *("INSERT INTO coupon", "UPDATE coupon"),
)  # each time another one
BEGINS = (
    *("BEGIN",) * 8,
    "START TRANSACTION",
    "BEGIN ISOLATION LEVEL READ COMMITTED",
    "BEGIN READ WRITE",
    "BEGIN READ ONLY",
    "BEGIN ISOLATION LEVEL REPEATABLE READ",
    "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
)


class Script:
    """Draws one unit after the other from one seed, knowing what the world holds and the transaction's status."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.world = World()
        self.writes = Writes(self.draw, self.world)
        self.parts = Parts(self.draw, self.writes)
        self.definitions = Definitions(self.draw, self.writes)
        self.queries = Queries(self.draw, self.writes.routing_value)
        self.savepoints: list[str] = []
        self.left = 0  # units until the transaction ends
        self.prepared: list[Unit] = []
        self.cursors: list[tuple[str, str]] = []  # name, and what the order of its rows is
        self.ahead: list[Statement] = []  # of a transaction that is drawn as a whole
        self.makers: list[tuple[int, Callable[[], Statement]]] = [
            (14, self.read_by_key),
            (12, self.read_all),
            (14, self.queries.statement),
            (5, self.read_related),
            (18, self.insert),
            (2, self.writes.insert_select),
            (14, self.writes.update),
            (5, self.writes.update_joined),
            (6, self.writes.delete),
            (3, self.writes.change_key),
            (2, self.merge),
            (2, self.with_write),
            (2, self.writes.lock),
            (5, self.writes.failing),
        ]

    def next_unit(self, status: str) -> Unit:
        """The next unit; `status` is the transaction's."""
        if self.ahead and status != "E":
            return Unit.single(self.ahead.pop(0), Form(by_extended=self.draw.random() < 0.4))
        self.ahead.clear()
        if status == "I":
            self.left = 0
            self.savepoints.clear()
            self.cursors.clear()
            if self.draw.random() < DDL_SHARE:
                self.ahead = self.definitions.transaction()
                return Unit.single(self.ahead.pop(0))
            if self.draw.random() < 0.14:
                self.left = self.draw.randint(1, 12)
                return control(self.draw.choice(BEGINS), self.draw)
            return self.unit(in_transaction=False)
        self.left -= 1
        if status == "E" and self.draw.random() < 0.8:
            return self.recover()
        if self.left < 0:
            return control(self.draw.choice(("COMMIT", "COMMIT", "COMMIT", "END", "ROLLBACK")), self.draw)
        if status == "T" and self.draw.random() < 0.16:
            return self.savepoint()
        if status == "T" and self.draw.random() < 0.1:
            return self.cursor()
        return self.unit(in_transaction=True)

    def recover(self) -> Unit:
        if self.savepoints and self.draw.random() < 0.8:
            name = self.draw.choice(self.savepoints)
            del self.savepoints[self.savepoints.index(name) + 1 :]
            return control(f"ROLLBACK TO SAVEPOINT {name}", self.draw)
        return control(self.draw.choice(("ROLLBACK", "COMMIT")), self.draw)

    def savepoint(self) -> Unit:
        roll = self.draw.random()
        if self.savepoints and roll < 0.4:
            name = self.draw.choice(self.savepoints)
            cut = self.savepoints.index(name)
            if roll < 0.2:
                del self.savepoints[cut:]
                return control(f"RELEASE SAVEPOINT {name}", self.draw)
            del self.savepoints[cut + 1 :]
            return control(f"ROLLBACK TO {name}", self.draw)
        self.savepoints.append(f"p{len(self.savepoints)}")
        return control(f"SAVEPOINT {self.savepoints[-1]}", self.draw)

    def cursor(self) -> Unit:
        """A cursor: declared, read, closed."""
        form = Form(by_extended=self.draw.random() < 0.4)
        if not self.cursors or self.draw.random() < 0.3:
            name = f"c{len(self.cursors)}"
            query = self.draw.choice((self.read_by_key, self.read_all, self.queries.statement))()
            self.cursors.append((name, "all" if query.order == "all" else "count"))
            sql = piece(f"DECLARE {name} {self.draw.choice(('', 'SCROLL ', 'NO SCROLL '))}CURSOR FOR ", query.sql)
            return Unit.single(Statement("cursor", sql), SIMPLE)
        name, order = self.draw.choice(self.cursors)
        if self.draw.random() < 0.2:
            return Unit.single(Statement("cursor", piece(f"CLOSE {name}")), form)
        word = self.draw.choice(("FETCH", "FETCH 3 FROM", "FETCH ALL FROM", "FETCH NEXT FROM", "MOVE 2 FROM"))
        return Unit.single(Statement("cursor", piece(f"{word} {name}"), order), form)

    def unit(self, *, in_transaction: bool) -> Unit:
        """One statement, a string of several, or a pipeline."""
        self.in_transaction = in_transaction
        roll = self.draw.random()
        if roll < 0.07:
            statements = tuple(self.several())
            return Unit(statements, tuple(SIMPLE for _ in statements))
        if roll < 0.17:
            statements = tuple(self.several())
            return Unit(statements, tuple(Form.drawn(self.draw, 1.0) for _ in statements), is_pipeline=True)
        if roll < 0.25 and self.prepared:
            again = self.again()
            if not (in_transaction and again.statements[0].makes):
                return again
        if self.draw.random() < 0.03:
            copied, lines = self.writes.copy_in(in_transaction=in_transaction)
            return Unit((copied,), (SIMPLE,), copy_rows=lines)
        statement = self.statement()
        if statement.is_select and self.draw.random() < 0.06:
            return self.limited(statement)
        if statement.is_select and statement.kind != "select for update" and self.draw.random() < 0.04:
            copied = piece("COPY (", statement.sql, ") TO STDOUT", self.draw.choice(("", " (FORMAT csv, HEADER)")))
            return Unit.single(Statement("copy out", copied, statement.order))
        unit = Unit.single(statement, Form.drawn(self.draw))
        brings_key = str(next(statement.sql.walk())).startswith(BRINGS_KEY)
        is_prepared = unit.forms[0].is_named and unit.forms[0].by_extended
        if is_prepared and not brings_key and not (in_transaction and statement.makes):
            self.prepared = [*self.prepared[-PREPARED_MAX:], unit]
        return unit

    def limited(self, statement: Statement) -> Unit:
        """A SELECT of which an Execute takes some rows."""
        form = replace(Form.drawn(self.draw, 1.0), rows_max=self.draw.choice((1, 2, 5, 300)))
        order = "all" if statement.order == "all" else "count"
        kind = statement.kind if statement.kind == "select for update" else "select limited"
        return Unit.single(replace(statement, kind=kind, order=order), form)

    def again(self) -> Unit:
        """A prepared statement once more, with other values."""
        unit = self.draw.choice(self.prepared)
        old = unit.statements[0]
        marks: dict[str, str] = {}

        def change(value: Value) -> Value:
            if value.type == MARK:
                marks[value.text or ""] = self.world.new_mark()
                return replace(value, text=marks[value.text or ""])
            return value.redrawn(self.draw)

        sql = old.sql.mapped(change)
        makes = tuple((table, marks[mark]) for table, mark in old.makes)
        return Unit((replace(old, sql=sql, makes=makes),), unit.forms)

    def several(self) -> list[Statement]:
        """Statements that are sent together: their new rows' keys must come back by RETURNING."""
        before, self.in_transaction = self.in_transaction, True
        found = [self.statement() for _ in range(self.draw.randint(2, 4))]
        self.in_transaction = before
        return found

    def statement(self) -> Statement:
        weights, makers = zip(*self.makers, strict=True)
        made: Statement = self.draw.choices(makers, weights=weights)[0]()
        return made

    def insert(self) -> Statement:
        return self.writes.insert(in_transaction=self.in_transaction)

    def merge(self) -> Statement:
        return self.parts.merge(in_transaction=self.in_transaction)

    def with_write(self) -> Statement:
        return self.parts.with_write(in_transaction=self.in_transaction)

    # Reads that are common in applications

    def read_by_key(self) -> Statement:
        table = self.draw.choice(TABLES)
        key = table.key[0]
        columns = self.draw.choice(("*", ", ".join(self.draw.sample(list(table.columns), 2)), "count(*)", "1 AS one"))
        roll = self.draw.random()
        if roll < 0.6:
            test = self.writes.by_key(table)
        elif roll < 0.8:
            keys = [piece(self.writes.key_value(table)) for _ in range(self.draw.randint(1, 5))]
            test = piece(f"{key} IN (", joined(", ", keys), ")")
        elif table.parent:
            test = piece(f"{table.via} = ", self.writes.parent_value(table))
        else:
            test = piece(self.writes.by_key(table), " AND ", self.writes.test(table, ""))
        return Statement("select by key", piece(f"SELECT {columns} FROM {table.name} WHERE ", test))

    def read_all(self) -> Statement:
        """Rows or aggregates of one table: concatenated and merged reads."""
        table = self.draw.choice(TABLES)
        where = self.writes.condition(table) if self.draw.random() < 0.6 else Piece(())
        kinds = [name for name, kind in table.columns.items() if kind not in ("json",)]
        column = self.draw.choice(kinds)
        direction = self.draw.choice(("", " DESC", " NULLS FIRST", " DESC NULLS LAST"))
        limit = self.draw.choice(
            ("", f" LIMIT {self.draw.randint(0, 8)}", f" LIMIT {self.draw.randint(1, 8)} OFFSET 2")
        )
        shapes = [
            (f"SELECT * FROM {table.name}", "", "none"),
            (f"SELECT * FROM {table.name}", f" ORDER BY {column}{direction}, {', '.join(table.key)}{limit}", "all"),
            (f"SELECT {column} FROM {table.name}", f" ORDER BY {', '.join(table.key)}{direction}{limit}", "all"),
            (f"SELECT DISTINCT {column} FROM {table.name}", f" ORDER BY {column}{direction}{limit}", "all"),
            (f"SELECT {column}, count(*) FROM {table.name}", f" GROUP BY {column}", "none"),
            (f"SELECT {column}, count(*) AS n FROM {table.name}", f" GROUP BY 1 ORDER BY n DESC, 1{limit}", "all"),
            (
                f"SELECT count(*), count({column}), min({table.key[0]}::text), max({column}::text) FROM {table.name}",
                "",
                "none",
            ),
            (f"SELECT * FROM {table.name}", " LIMIT 3", "count"),
        ]
        numbers = [name for name, kind in table.columns.items() if kind in ("int", "num")]
        if numbers:
            number = self.draw.choice(numbers)
            shapes.append(
                (f"SELECT sum({number}), avg({number}), min({number}) AS least FROM {table.name}", "", "none")
            )
            shapes.append(
                (
                    f"SELECT {column}, avg({number}) FROM {table.name}",
                    f" GROUP BY {column} HAVING count(*) >= 1 ORDER BY {column}",
                    "all",
                )
            )
        head, tail, order = self.draw.choice(shapes)
        return Statement("select all", piece(head, where, tail), order)

    def read_related(self) -> Statement:
        """Parents and children, by key and over all shards."""
        child = self.draw.choice(CHILDREN)
        parent = BY_NAME[child.parent]
        tie = f"c.{child.via} = p.{parent.key[0]}"
        join = self.draw.choice(("JOIN", "LEFT JOIN", "RIGHT JOIN"))
        key = f"p.{parent.key[0]}"
        shapes = [
            (
                f"SELECT {key}, c.id FROM {parent.name} p {join} {child.name} c ON {tie}",
                f" ORDER BY {key}, c.id",
                "all",
            ),
            (
                f"SELECT {key}, count(c.id) AS n FROM {parent.name} p LEFT JOIN {child.name} c ON {tie}",
                f" GROUP BY {key} ORDER BY n DESC, {key}",
                "all",
            ),
            (f"SELECT count(*) FROM {parent.name} p {join} {child.name} c ON {tie}", "", "none"),
            (f"SELECT p.*, (SELECT count(*) FROM {child.name} c WHERE {tie}) FROM {parent.name} p", "", "none"),
        ]
        head, tail, order = self.draw.choice(shapes)
        where = Piece(())
        if self.draw.random() < 0.4:
            where = piece(f" WHERE {key} = ", self.writes.key_value(parent))
        elif self.draw.random() < 0.4:
            where = piece(" WHERE ", self.writes.test(parent, "p."))
        return Statement("select related", piece(head, where, tail), order)


def control(text: str, draw: random.Random) -> Unit:
    """A transaction command."""
    form = Form(by_extended=draw.random() < 0.4)
    return Unit.single(Statement("control", piece(text)), form)


def fill_units(seed: int, script: Script) -> list[Unit]:
    """The rows that a script begins with."""
    draw = random.Random(f"fill {seed}")
    writes = Writes(draw, script.world)
    return [Unit.single(statement) for statement in initial_rows(draw, writes)]
