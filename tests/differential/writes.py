"""INSERT, UPDATE, DELETE and MERGE drawn at random over all kinds of tables, and statements that fail on purpose."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from tests.differential.pieces import MARK, NOTHING, Made, Piece, Statement, Value, joined, piece
from tests.differential.schema import BY_NAME, CHILDREN, GENERATED, SQL_TYPES, TABLES, Table
from tests.differential.values import KEY_POOLS, column_value, given_key, value_of

WRITTEN = tuple(table for table in TABLES for _ in range({"account": 4, "orders": 4, "item": 3}.get(table.name, 1)))


@dataclass
class World:
    """Which rows exist, as far as generators must know: marks of rows with made keys, keys of the others."""

    marks: dict[str, list[str]] = field(default_factory=dict)
    keys: dict[str, list[str]] = field(default_factory=dict)
    next_mark: int = 0

    def new_mark(self) -> str:
        self.next_mark += 1
        return f"m{self.next_mark}"


class Writes:
    """Draws writes from one seed's randomness and what the world holds."""

    def __init__(self, draw: random.Random, world: World) -> None:
        self.draw = draw
        self.world = world
        self.meets = False  # values that must be unique come from a pool in which they meet

    def any_table(self) -> Table:
        """A table, those that applications write most more often."""
        return self.draw.choice(WRITTEN)

    # Keys and conditions

    def key_value(self, table: Table) -> Value:
        """The key of a row that exists, mostly."""
        return self.some_key(table, table.key[0]).bare(self.draw)

    def some_key(self, table: Table, column: str) -> Value:
        if not table.is_generated:
            pool = tuple(self.world.keys.get(table.name, ())) if len(table.key) == 1 else ()
            if pool and self.draw.random() < 0.75:
                return Value(given_key(self.draw, table, column).type, self.draw.choice(pool), pool)
            return given_key(self.draw, table, column)
        marks = self.world.marks.get(table.name) or ["none"]
        pool = tuple(f"@{table.name}:{mark}@" for mark in (*marks[-20:], "none", "old"))
        return Value(SQL_TYPES[table.columns[column]], self.draw.choice(pool), pool)

    def routing_value(self, name: str, column: str) -> Value | None:
        """A value for a column of a table if it says where rows live: its key, or its parent's."""
        table = BY_NAME[name]
        if column == table.key[0]:
            return self.key_value(table)
        return self.parent_value(table) if column == table.via else None

    def parent_value(self, table: Table) -> Value:
        """The key of a parent, mostly one that exists."""
        found = self.key_value(BY_NAME[table.parent])
        return replace(found, type=SQL_TYPES[table.columns[table.via]])

    def condition(self, table: Table, alias: str = "") -> Piece:
        """WHERE of a write: by key, by parent, by other columns, or nothing at all."""
        dot = f"{alias}." if alias else ""
        roll, key = self.draw.random(), f"{dot}{table.key[0]}"
        if roll < 0.5:
            return piece(" WHERE ", self.by_key(table, dot))
        if roll < 0.62:
            keys = [piece(self.key_value(table)) for _ in range(self.draw.randint(1, 4))]
            return piece(f" WHERE {key} IN (", joined(", ", keys), ")")
        if table.parent and roll < 0.8:
            return piece(f" WHERE {dot}{table.via} = ", self.parent_value(table), self.more(table, dot))
        if roll < 0.97:
            return piece(" WHERE ", self.test(table, dot), self.more(table, dot))
        return NOTHING

    def by_key(self, table: Table, dot: str = "") -> Piece:
        """The whole key of one row."""
        values = [self.some_key(table, column).bare(self.draw) for column in table.key]
        if len(values) > 1 and self.draw.random() < 0.3:
            return piece(
                f"({', '.join(dot + name for name in table.key)}) = (", joined(", ", [piece(v) for v in values]), ")"
            )
        tests = [piece(f"{dot}{name} = ", value) for name, value in zip(table.key, values, strict=True)]
        return joined(" AND ", tests)

    def more(self, table: Table, dot: str) -> Piece:
        return piece(" AND ", self.test(table, dot)) if self.draw.random() < 0.3 else NOTHING

    def test(self, table: Table, dot: str) -> Piece:
        """A condition on a free column."""
        column = self.draw.choice(table.free_columns())
        kind = table.columns[column]
        if kind in ("array", "json") or self.draw.random() < 0.15:
            return piece(f"{dot}{column} IS {self.draw.choice(('NULL', 'NOT NULL'))}")
        operator = self.draw.choice(("=", "=", "<", ">") if kind not in ("bool", "bytea") else ("=",))
        value = value_of(self.draw, kind).bare(self.draw)
        return piece(f"{dot}{column} {operator} ", value)

    def returning(self, table: Table, share: float) -> Piece:
        if self.draw.random() > share:
            return NOTHING
        columns = list(table.columns)
        some = self.draw.sample(columns, self.draw.randint(1, min(4, len(columns))))
        return piece(" RETURNING " + self.draw.choice(("*", ", ".join(some), f"{some[0]} AS x, 1 + 1 AS two")))

    # INSERT

    def insert(self, table: Table | None = None, *, in_transaction: bool = True) -> Statement:
        """One row or several, with and without RETURNING and ON CONFLICT."""
        table = table or self.draw.choice(WRITTEN)
        rows = self.draw.choice((1, 1, 1, 1, 2, 3, 6))
        free = table.free_columns()
        columns = self.draw.sample(free, self.draw.randint(min(1, len(free)), len(free)))
        marks: list[str] = []
        heads = self.head_columns(table)
        conflict = self.conflict(table, heads, columns)
        self.meets = bool(conflict.parts)
        makers = [self.row(table, [*heads, *columns], marks) for _ in range(rows)]
        self.meets = False
        body = piece(f"INSERT INTO {table.name} ({', '.join([*heads, *columns])}) VALUES ", joined(", ", makers))
        kind = f"insert {'rows' if rows > 1 else 'row'}{' on conflict' if conflict.parts else ''} {table.kind}"
        if table.is_generated and table.key[0] not in heads:
            return self.making(table, kind, piece(body, conflict), marks, in_transaction)
        # Which rows DO NOTHING has left out nobody tells, so the others come in the order of the shards.
        order = "none" if conflict.parts and rows > 1 else "all"
        return Statement(kind, piece(body, conflict, self.returning(table, 0.4)), order)

    def making(self, table: Table, kind: str, body: Piece, marks: list[str], in_transaction: bool) -> Statement:
        """An INSERT whose keys the database makes: they come back by RETURNING, or are looked up afterwards."""
        if not in_transaction and self.draw.random() < 0.3:
            return Statement(kind, body, "all", makes=tuple((table.name, mark) for mark in marks))
        columns = list(table.columns)
        if self.draw.random() < 0.5:
            made = Made(table.name, columns.index(table.key[0]), columns.index("mark"))
            return Statement(kind, piece(body, " RETURNING *"), "all", made)
        return Statement(kind, piece(body, f" RETURNING {table.key[0]}, mark"), "all", Made(table.name, 0, 1))

    def head_columns(self, table: Table) -> list[str]:
        """Key, mark and parent, in the order in which they are given."""
        heads = [] if table.is_generated or table.name == "ledger" else list(table.key)
        if table.is_generated:
            heads = ["mark"]
            share = 0.06 if not table.parent or table.unique else 0.01
            if table.columns[table.key[0]] == "big" and self.draw.random() < share:
                heads = [table.key[0], "mark"]
        return [*heads, *([table.via] if table.via else [])]

    def row(self, table: Table, columns: list[str], marks: list[str]) -> Piece:
        """The values of one row."""
        found: list[Piece] = []
        for column in columns:
            if column == "mark":
                marks.append(self.world.new_mark())
                found.append(piece(Value(MARK, marks[-1])))
            elif column == table.via:
                found.append(piece(self.parent_value(table)))
            elif column in table.key:
                found.append(piece(self.new_key(table, column)))
            elif self.meets and (table.name, column) == ("coupon", "code"):
                found.append(piece(given_key(self.draw, table, column).bare(self.draw)))
            elif self.draw.random() < 0.06:
                found.append(piece("DEFAULT"))
            else:
                found.append(self.cell(table, column))
        return piece("(", joined(", ", found), ")")

    def cell(self, table: Table, column: str) -> Piece:
        value = column_value(self.draw, table, column).bare(self.draw)
        if table.columns[column] == "int" and self.draw.random() < 0.1 and value.text is not None:
            return piece(value, " + 1")
        return piece(value)

    def new_key(self, table: Table, column: str) -> Value:
        if table.parent:  # one that no other row has: what stands twice on two shards is found at COMMIT
            return Value("bigint", str(10_000 + int(self.world.new_mark()[1:])))
        if table.is_generated:  # an explicit bigint, at home by its hash
            number = self.draw.choice((self.draw.randrange(1, 500), 2**53 + self.draw.randrange(50)))
            return Value("bigint", str(number))
        return given_key(self.draw, table, column).bare(self.draw)

    def conflict(self, table: Table, heads: list[str], columns: list[str]) -> Piece:
        if table.name == "coupon" and "code" in columns:
            arbiter = ("code",)
        elif table.key[0] in heads and not table.unique:
            arbiter = table.key
        else:
            return NOTHING
        if self.draw.random() > 0.3:
            return NOTHING
        target = f"({', '.join(arbiter)})"
        if self.draw.random() < 0.5:
            return piece(f" ON CONFLICT {self.draw.choice((target, ''))} DO NOTHING".replace("  ", " "))
        column = self.draw.choice(columns)
        changes = [f"{column} = EXCLUDED.{column}"]
        if table.columns[column] == "int":
            changes.append(f"{column} = {table.name}.{column} + 1")
        where = f" WHERE {table.name}.{column} IS NOT NULL" if self.draw.random() < 0.2 else ""
        return piece(f" ON CONFLICT {target} DO UPDATE SET {self.draw.choice(changes)}{where}")

    def copy_in(self, *, in_transaction: bool) -> tuple[Statement, tuple[str, ...]]:
        """COPY FROM STDIN, and its rows."""
        tables = [table for table in TABLES if not (in_transaction and table.is_generated)]
        table = self.draw.choice(tables)
        heads = self.head_columns(table)
        columns = [*heads, *self.draw.sample(table.free_columns(), self.draw.randint(1, len(table.free_columns())))]
        marks: list[str] = []
        lines = []
        for _ in range(self.draw.choice((1, 3, 8))):
            cells = []
            for column in columns:
                if column == "mark":
                    marks.append(self.world.new_mark())
                    cells.append(marks[-1])
                    continue
                text = self.copied(table, column).text
                cells.append("\\N" if text is None else text.replace("\\", "\\\\"))
            lines.append("\t".join(cells))
        sql = piece(f"COPY {table.name} ({', '.join(columns)}) FROM STDIN")
        is_made = table.is_generated and table.key[0] not in heads
        makes = tuple((table.name, mark) for mark in marks) if is_made else ()
        return Statement("copy in", sql, makes=makes), tuple(lines)

    def copied(self, table: Table, column: str) -> Value:
        if column == table.via:
            return self.parent_value(table)
        return self.new_key(table, column) if column in table.key else column_value(self.draw, table, column)

    def insert_select(self) -> Statement:
        """INSERT ... SELECT; marks of new rows are made from the rows read."""
        mark, account = self.world.new_mark(), BY_NAME["account"]
        accounts = (
            f"INSERT INTO account (mark, owner, level) SELECT '{mark}-' || id, body, coalesce(score, 1) FROM ledger"
        )
        orders = f"INSERT INTO orders (mark, account_id, title, total) SELECT '{mark}-' || mark, id, owner, balance"
        items = f"INSERT INTO item (mark, orders_id, name) SELECT '{mark}-' || mark, id, title FROM orders"
        name, text = self.draw.choice(
            [
                ("account", piece(f"{accounts} WHERE id < ", Value("integer", "4"))),
                ("orders", piece(f"{orders} FROM account WHERE id = ", self.key_value(account))),
                ("orders", piece(f"{orders} FROM account WHERE level = ", value_of(self.draw, "int"))),
                ("item", piece(f"{items} WHERE account_id = ", self.key_value(account))),
                ("", self.insert_select_given()),
                ("", self.insert_select_given()),
            ]
        )
        if not name:
            return Statement("insert select", text)
        made = Made(name, 0, 1)
        return Statement("insert select", piece(text, f" RETURNING {BY_NAME[name].key[0]}, mark"), "none", made)

    def insert_select_given(self) -> Piece:
        """INSERT ... SELECT whose rows bring their keys, or into a plain table."""
        cities = "INSERT INTO city (name, size) SELECT 'as ' || title, rank FROM label WHERE code = "
        ledger = "INSERT INTO ledger (body, score) SELECT"
        return self.draw.choice(
            [
                piece("INSERT INTO meter (number, reading) SELECT id + 5000, score FROM ledger ON CONFLICT DO NOTHING"),
                piece(
                    cities, self.key_value(BY_NAME["label"]), " ON CONFLICT (name) DO UPDATE SET size = EXCLUDED.size"
                ),
                piece(f"{ledger} label, rank FROM country WHERE rank > 1 ORDER BY code RETURNING body, score"),
                piece(f"{ledger} owner, level FROM account WHERE id = ", self.key_value(BY_NAME["account"])),
            ]
        )

    # UPDATE, DELETE, MERGE, locks

    def assignments(self, table: Table, alias: str = "") -> Piece:
        free = [name for name in table.free_columns() if (table.name, name) != ("coupon", "code")]
        columns = self.draw.sample(free, self.draw.choice((1, 1, min(2, len(free)))))
        dot = f"{alias}." if alias else ""
        found = []
        for column in columns:
            kind = table.columns[column]
            if kind == "int" and self.draw.random() < 0.4:
                found.append(piece(f"{column} = {dot}{column} + ", Value("integer", "1", ("1", "2", "-1"))))
            elif kind == "text" and column != "country" and self.draw.random() < 0.2:
                found.append(piece(f"{column} = upper({dot}{column})"))
            else:
                found.append(piece(f"{column} = ", column_value(self.draw, table, column).bare(self.draw)))
        return joined(", ", found)

    def update(self) -> Statement:
        table = self.draw.choice(WRITTEN)
        condition = self.condition(table)
        sql = piece(f"UPDATE {table.name} SET ", self.assignments(table), condition, self.returning(table, 0.35))
        return Statement(f"update {table.kind}", sql)

    def update_joined(self) -> Statement:
        """UPDATE ... FROM and sub-selects, inside a group."""
        child = self.draw.choice(CHILDREN)
        parent = BY_NAME[child.parent]
        column = next(name for name in child.free_columns() if child.columns[name] in ("int", "text"))
        value = value_of(self.draw, child.columns[column])
        tie = f"c.{child.via} = p.{parent.key[0]}"
        shapes = [
            piece(
                f"UPDATE {child.name} c SET {column} = ",
                value,
                f" FROM {parent.name} p WHERE {tie} AND ",
                self.test(parent, "p."),
            ),
            piece(
                f"UPDATE {parent.name} p SET ",
                self.assignments(parent),
                f" WHERE EXISTS (SELECT 1 FROM {child.name} c WHERE {tie} AND ",
                self.test(child, "c."),
                ")",
            ),
            piece(
                f"DELETE FROM {child.name} c USING {parent.name} p WHERE {tie} AND p.{parent.key[0]} = ",
                self.key_value(parent),
                " AND ",
                self.test(child, "c."),
            ),
            piece(
                "UPDATE account a SET level = c.rank FROM country c WHERE c.code = a.country AND c.rank > 0 AND ",
                self.test(BY_NAME["account"], "a."),
            ),
            piece(
                "UPDATE account SET level = (SELECT count(*) FROM orders WHERE account_id = account.id) WHERE id = ",
                self.key_value(BY_NAME["account"]),
            ),
        ]
        return Statement("write joined", self.draw.choice(shapes))

    def delete(self) -> Statement:
        table = self.draw.choice(WRITTEN)
        condition = self.condition(table)
        if not condition.parts or self.draw.random() < 0.5:
            condition = piece(" WHERE ", self.by_key(table))
        return Statement(
            f"delete {table.kind}", piece(f"DELETE FROM {table.name}", condition, self.returning(table, 0.35))
        )

    def change_key(self) -> Statement:
        """An UPDATE of a key, of a part of one, or of the column that names the parent, known or computed."""
        if self.draw.random() < 0.2:
            return self.change_parent()
        table = self.draw.choice([table for table in TABLES if table.kind == "root" and not table.is_generated])
        column = self.draw.choice(table.key)
        value = piece(given_key(self.draw, table, column).bare(self.draw))
        below = [
            f"NOT EXISTS (SELECT 1 FROM {one.name} c WHERE c.{one.via} = {table.name}.{column})"
            for one in TABLES
            if one.parent == table.name
        ]
        if table.columns[column] == "text" and len(table.key) == 1 and not below and self.draw.random() < 0.2:
            value = piece(f"{column} || '{self.world.new_mark()}'")
        changes = [piece(f"{column} = ", value)]
        if self.draw.random() < 0.4:
            changes.append(self.assignments(table))
        # A key that is taken and rows below are two errors, of which one PostgreSQL tells the other first.
        tests = [self.by_key(table), *(piece(text) for text in below)]
        condition = piece(" WHERE ", joined(" AND ", tests), self.more(table, ""))
        sql = piece(f"UPDATE {table.name} SET ", joined(", ", changes), condition, self.returning(table, 0.4))
        return Statement("change key", sql)

    def change_parent(self) -> Statement:
        """A child goes to another parent, or to the one it has."""
        child = self.draw.choice(CHILDREN)
        value, condition = self.parent_value(child), piece(" WHERE ", self.by_key(child))
        if self.draw.random() < 0.5:
            condition = piece(f" WHERE {child.via} = ", value)
        sql = piece(f"UPDATE {child.name} SET {child.via} = ", value, condition, self.returning(child, 0.4))
        return Statement("change parent", sql)

    def lock(self) -> Statement:
        """SELECT ... FOR UPDATE and its like, of one table or of a row with its parent's."""
        word = self.draw.choice(("UPDATE", "UPDATE", "SHARE", "NO KEY UPDATE", "KEY SHARE"))
        more = self.draw.choice(("", "", "", " SKIP LOCKED", " NOWAIT"))
        if self.draw.random() < 0.25:
            child = self.draw.choice(CHILDREN)
            parent = BY_NAME[child.parent]
            which = self.draw.choice((" OF p", " OF c", ""))
            head = f"SELECT c.* FROM {parent.name} p JOIN {child.name} c ON c.{child.via} = p.{parent.key[0]} WHERE "
            test = self.draw.choice((piece(f"p.{parent.key[0]} = ", self.key_value(parent)), self.test(child, "c.")))
            return Statement("select for update", piece(head, test, f" FOR {word}{which}{more}"))
        table = self.draw.choice(WRITTEN)
        order = f" ORDER BY {', '.join(table.key)}" if self.draw.random() < 0.3 else ""
        if order and self.draw.random() < 0.4:
            order += f" LIMIT {self.draw.randint(1, 4)}"
        head = piece(f"SELECT * FROM {table.name}", self.condition(table))
        return Statement("select for update", piece(head, f"{order} FOR {word}{more}"), "all" if order else "none")

    # What fails

    def failing(self) -> Statement:
        """A statement that fails, on any database."""
        account, orders = BY_NAME["account"], BY_NAME["orders"]
        key, taken = self.key_value(account), self.key_value(BY_NAME["city"])
        mark = self.world.new_mark()
        made = Made("orders", 0, 1)
        shapes: list[Callable[[], Statement]] = [
            lambda: Statement("fail", piece("SELECT 1 / (level - level) FROM account WHERE level IS NOT NULL")),
            lambda: Statement("fail", piece("SELECT no_such_column FROM account WHERE id = ", key)),
            lambda: Statement("fail", piece("SELECT * FROM no_such_table")),
            lambda: Statement("fail", piece("UPDATE account SET level = NULL WHERE id = ", key)),
            lambda: Statement("fail", piece("UPDATE account SET level = 5000 WHERE id = ", key)),
            lambda: Statement("fail", piece("UPDATE orders SET quantity = -1")),
            lambda: Statement(
                "fail",
                piece(
                    "INSERT INTO orders (mark, account_id) VALUES (",
                    Value(MARK, mark),
                    ", ",
                    Value("bigint", "@account:none@"),
                    ") RETURNING id, mark",
                ),
                "all",
                made,
            ),
            lambda: Statement("fail", piece("INSERT INTO city (name) VALUES (", taken, "), (", taken, ")")),
            lambda: Statement("fail", piece("INSERT INTO city (name, size) VALUES (NULL, 1)")),
            lambda: Statement(
                "fail", piece("INSERT INTO account (mark, country) VALUES (", Value(MARK, mark), ", 'nowhere')")
            ),
            lambda: Statement("fail", piece("SELECT id FROM orders WHERE title = 1")),
            lambda: Statement("fail", piece("DELETE FROM country WHERE code = 'DE'")),
            lambda: Statement("fail", piece("SELECT 'x'::integer")),
            lambda: Statement("fail", piece("SELECT owner, count(*) FROM account")),
            lambda: Statement(
                "fail",
                piece("INSERT INTO seat (no, price) VALUES (", given_key(self.draw, BY_NAME["seat"], "no"), ", -1)"),
            ),
            lambda: Statement("fail", piece("SELEC 1")),
        ]
        assert orders.is_generated
        return self.draw.choice(shapes)()


def initial_rows(draw: random.Random, writes: Writes) -> list[Statement]:
    """What the tables hold before a script begins."""
    found: list[Statement] = []
    for table in (BY_NAME["country"], BY_NAME["currency"]):
        for key in KEY_POOLS[table.name][:5]:
            columns = table.free_columns()
            cells = [piece(value_of(draw, table.columns[column], null_share=0.1)) for column in columns]
            kind = piece(
                f"INSERT INTO {table.name} ({', '.join([table.key[0], *columns])}) VALUES ('{key}', ",
                joined(", ", cells),
                ")",
            )
            found.append(Statement("fill", kind))
    for table in TABLES:
        if table.kind == "reference":
            continue
        if table.name == "slot":  # those that bookings are for
            keys = ", ".join(f"('{room}', {no})" for room in "ab" for no in range(2))
            found.append(Statement("fill", piece(f"INSERT INTO slot (room, no) VALUES {keys}")))
        for _ in range(14 if table in GENERATED else 9):
            columns = table.free_columns()
            marks: list[str] = []
            heads = ["mark"] if table.is_generated else [] if table.name == "ledger" else list(table.key)
            heads += [table.via] if table.via else []
            row = writes.row(table, [*heads, *columns], marks)
            sql = piece(f"INSERT INTO {table.name} ({', '.join([*heads, *columns])}) VALUES ", row)
            if table.is_generated:
                writes.world.marks.setdefault(table.name, []).append(marks[0])
                sql = piece(sql, f" RETURNING {table.key[0]}, mark")
                found.append(Statement("fill", sql, "all", Made(table.name, 0, 1)))
            else:
                key = row.values()[0].text
                if table.name != "ledger" and key is not None:
                    writes.world.keys.setdefault(table.name, []).append(key)
                found.append(Statement("fill", piece(sql, " ON CONFLICT DO NOTHING")))
    return found
