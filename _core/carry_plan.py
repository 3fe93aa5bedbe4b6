"""How an INSERT whose rows come from a query is carried out where no shard can do it alone: the router runs the query
and inserts its rows with statements of its own, in one transaction.

`$1`, `$2`, ... of the query's text are the client's parameters `select_params`; those of an INSERT's text are the
client's `tail_params`, and behind them the values of the rows, one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass

TEXT_OID, UNKNOWN_OID = 25, 705
USER_OID_MIN = 16384  # types from here up have another OID on each shard
# Types whose cast to text is their output: integers, oid, name, floats, numeric, uuid, dates and times.
WRITTEN_AS_TEXT = frozenset((20, 21, 23, 26, 19, 700, 701, 1700, 2950, 1082, 1083, 1114, 1184, 1186, 1266))


@dataclass(frozen=True)
class CarryPlan:
    """The texts of one statement. Part of its Template."""

    select: bytes
    select_params: tuple[int, ...]  # indexes of the client's parameters
    select_types: tuple[int, ...]  # the type OID of each where the client leaves it open; 0: the shard tells
    head: bytes  # INSERT INTO ... (columns)
    tail: bytes  # ON CONFLICT and RETURNING
    tail_params: tuple[int, ...]
    untyped: tuple[int, ...] = ()  # columns that take the type of what they are inserted into; below 0: from the end
    texts: tuple[int, ...] = ()  # columns that go to a key that is a text
    width: int = 0  # columns of the query; 0: not known before it runs
    is_whole: bool = False  # one statement must see all rows: it may not change a row twice
    is_move: bool = False  # an UPDATE of keys: the query is a DELETE

    def insert(self, rows: int, columns: int) -> bytes:
        """The text that inserts so many rows."""
        number = len(self.tail_params) + 1
        found = []
        for _ in range(rows):
            found.append(b"(" + b",".join([b"$%d" % (number + column) for column in range(columns)]) + b")")
            number += columns
        return b"%s VALUES %s %s" % (self.head, b",".join(found), self.tail)

    def declared_type(self, column: int, columns: int, oid: int) -> int:
        """The type that an INSERT declares for the values of a query's column of type `oid`; 0: the target's own.

        A text that says where its row lives is read from the bytes, so what PostgreSQL would make a text of is sent as
        one, where that is no more than its output.
        """
        if oid >= USER_OID_MIN or oid == UNKNOWN_OID or self.is_untyped(column, columns):
            return 0
        return TEXT_OID if column in self.texts and oid in WRITTEN_AS_TEXT else oid

    def is_untyped(self, column: int, columns: int) -> bool:
        """Whether a column's values are constants whose type the target says."""
        return column in self.untyped or column - columns in self.untyped
