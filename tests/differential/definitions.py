"""Short transactions that change the schema, use what they have made, and take it back: by ROLLBACK, or by commands."""

from __future__ import annotations

import random
from typing import NamedTuple

from tests.differential.pieces import Piece, Statement, piece
from tests.differential.schema import BY_NAME, TABLES, Table
from tests.differential.writes import Writes


class Change(NamedTuple):
    """What is made, what is done with it, and what undoes it."""

    makes: Piece
    uses: list[Piece]
    undoes: Piece


class Definitions:
    """Draws such transactions with the values of `writes`."""

    def __init__(self, draw: random.Random, writes: Writes) -> None:
        self.draw = draw
        self.writes = writes

    def transaction(self) -> list[Statement]:
        """The statements of one, BEGIN and its end included."""
        table = self.draw.choice(TABLES)
        change = self.draw.choice((self.column, self.index, self.constraint, self.default, self.table, self.function))
        made = change(table)
        uses = [piece for piece in made.uses if self.draw.random() < 0.8]
        parts = [made.makes, *uses]
        ended = "ROLLBACK"
        if self.draw.random() < 0.4:
            parts, ended = [*parts, made.undoes], "COMMIT"
        found = [Statement("ddl", part) for part in parts]
        return [Statement("control", piece("BEGIN")), *found, Statement("control", piece(ended))]

    def key(self, table: Table) -> Piece:
        return piece(" WHERE ", self.writes.by_key(table))

    def column(self, table: Table) -> Change:
        name, key = table.name, self.key(table)
        return Change(
            piece(f"ALTER TABLE {name} ADD COLUMN extra integer DEFAULT 7"),
            [
                piece(f"UPDATE {name} SET extra = extra + 1", key),
                piece(f"SELECT extra, {table.key[0]} FROM {name}", key),
                piece(f"SELECT count(*), sum(extra) FROM {name}"),
                piece(f"SELECT * FROM {name}", key),
            ],
            piece(f"ALTER TABLE {name} DROP COLUMN extra"),
        )

    def index(self, table: Table) -> Change:
        column = self.draw.choice([name for name in table.free_columns() if table.columns[name] != "json"])
        return Change(
            piece(f"CREATE INDEX drawn ON {table.name} ({column})"),
            [piece(f"SELECT {column} FROM {table.name}", self.key(table)), piece(f"SELECT count(*) FROM {table.name}")],
            piece("DROP INDEX drawn"),
        )

    def constraint(self, table: Table) -> Change:
        column = self.draw.choice(table.free_columns())
        return Change(
            piece(f"ALTER TABLE {table.name} ADD CONSTRAINT drawn CHECK ({column} IS NOT NULL) NOT VALID"),
            [piece(f"UPDATE {table.name} SET {column} = NULL", self.key(table))],
            piece(f"ALTER TABLE {table.name} DROP CONSTRAINT drawn"),
        )

    def default(self, table: Table) -> Change:
        column = self.draw.choice([name for name in table.free_columns() if name != "code"])
        return Change(
            piece(f"ALTER TABLE {table.name} ALTER COLUMN {column} SET NOT NULL"),
            [piece(f"SELECT {column} FROM {table.name}", self.key(table)), piece(f"SELECT count(*) FROM {table.name}")],
            piece(f"ALTER TABLE {table.name} ALTER COLUMN {column} DROP NOT NULL"),
        )

    def table(self, _: Table) -> Change:
        return Change(
            piece("CREATE TABLE scratch (id integer PRIMARY KEY, code text REFERENCES country)"),
            [
                piece("INSERT INTO scratch SELECT rank + 100, code FROM country WHERE rank > 1 ON CONFLICT DO NOTHING"),
                piece("SELECT s.id, c.label FROM scratch s JOIN country c USING (code)"),
                piece("SELECT count(*) FROM scratch"),
            ],
            piece("DROP TABLE scratch"),
        )

    def function(self, _: Table) -> Change:
        account = BY_NAME["account"]
        return Change(
            piece("CREATE FUNCTION twice(integer) RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT 2 * $1'"),
            [piece("SELECT twice(level) FROM account", self.key(account)), piece("SELECT twice(rank) FROM country")],
            piece("DROP FUNCTION twice(integer)"),
        )
