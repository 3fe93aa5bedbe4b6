"""An UPDATE of keys taken apart, for rows whose new home is another shard: deleted there, and inserted here.

    UPDATE t SET key = X, n = n + 1 WHERE key = Y RETURNING n
      DELETE FROM t WHERE key = Y RETURNING "t"."a", X, "t"."n" + 1     the new row, as the old shard computes it
      INSERT INTO t (a, key, n) OVERRIDING SYSTEM VALUE VALUES ... RETURNING n

The router carries the rows from one to the other (wire/carrying.pyx), in the transaction of the client's statement. As
in PostgreSQL where an UPDATE takes a row to another partition, the triggers that fire are those of DELETE and INSERT.
"""

from __future__ import annotations

from foreshard._core.carry_plan import CarryPlan
from foreshard.proxy.catalog import Table
from foreshard.proxy.catalog.model import Column
from foreshard.proxy.errors import SqlError
from foreshard.proxy.routing.carried import Cut, read_constants, text_keys
from foreshard.proxy.routing.text import Text
from foreshard.proxy.routing.tokens import OddText, Token
from foreshard.proxy.routing.tree import Node, unwrap, walk

Value = tuple[list[Token], Node]  # an expression of SET: its tokens, and what the parser made of it
DEFAULT = "SetToDefault"


def plan_move(text: Text, node: Node, table: Table, problem: SqlError) -> CarryPlan:
    """How rows of an UpdateStmt move; `problem` when its text is not understood for certain."""
    try:
        return Move(text, node, table).plan()
    except OddText:
        raise problem from None


class Move(Cut):
    """One UPDATE and where its parts lie."""

    def __init__(self, text: Text, node: Node, table: Table) -> None:
        super().__init__(text, node)
        self.table = table
        self.update = self.find((b"update",), 0)
        self.set = self.find((b"set",), self.update)
        self.source = self.update
        self.stop = len(self.items)
        if "returningList" in node:
            self.stop = self.last(b"returning", b"", self.stop)
        self.where = self.clause(b"where", self.stop)
        self.origin = self.clause(b"from", self.where)
        relation = node["relation"]
        self.name = quoted(relation.get("alias", {}).get("aliasname") or relation["relname"])

    def clause(self, word: bytes, stop: int) -> int:
        """Where a clause behind SET starts; `stop` when it is not there."""
        for index in range(self.set + 1, stop):
            if self.items[index].depth == 0 and self.items[index].word == word and not self.tokens.is_name(index):
                return index
        return stop

    def plan(self) -> CarryPlan:
        """The texts."""
        self.check_tail()
        given = self.assigned()
        columns = [column for column in self.table.columns if not self.is_filled_in(column, given)]
        if not columns:
            raise OddText
        names = [column.name for column in columns]
        select_text, select_params = self.renumbered_delete(columns, given)
        tail_text, tail_params = self.renumbered(self.items[self.stop :])
        nodes = [{"ResTarget": {"val": given[name][1] if name in given else {}}} for name in names]
        source: Node = {name: self.node.get(name) for name in ("whereClause", "fromClause", "withClause")}
        untyped, types = read_constants({**source, "targetList": nodes}, names, self.table)
        return CarryPlan(
            select=select_text,
            select_params=select_params,
            select_types=tuple(types.get(index, 0) for index in select_params),
            head=self.head(names),
            tail=tail_text,
            tail_params=tail_params,
            untyped=untyped,
            texts=text_keys(names, self.table),
            width=len(names),
            is_move=True,
        )

    def check_tail(self) -> None:
        """RETURNING is that of the INSERT, which knows no other table."""
        returned = self.node.get("returningList", [])
        if returned and ("fromClause" in self.node or any(kind == "SubLink" for kind, _ in walk(returned))):
            raise OddText
        if any(token.word == b"only" for token in self.items[self.update : self.set]):
            raise OddText

    def is_filled_in(self, column: Column, given: dict[str, Value]) -> bool:
        """Whether the new shard gives a column its value."""
        is_default = column.name in given and unwrap(given[column.name][1])[0] == DEFAULT
        if column.is_generated and column.name in given and not is_default:
            raise OddText  # an error that PostgreSQL shall give
        return is_default or (column.is_generated and bool(column.default_text))

    def assigned(self) -> dict[str, Value]:
        """What SET gives each of its columns."""
        targets = [unwrap(target)[1] for target in self.node.get("targetList", [])]
        found: dict[str, Value] = {}
        for start, stop in self.tokens.split(self.set + 1, self.origin):
            several = self.items[start].word == b"("
            values = self.several(start, stop) if several else [self.items[start + 2 : stop]]
            if not several and self.words(start + 1, 1) != (b"=",):
                raise OddText
            for tokens in values:
                if len(found) == len(targets) or not tokens:
                    raise OddText
                fields = targets[len(found)]
                if "indirection" in fields or fields["name"] in found:
                    raise OddText
                found[fields["name"]] = (tokens, value_of(fields))
        if len(found) != len(targets):
            raise OddText
        return found

    def several(self, start: int, stop: int) -> list[list[Token]]:
        """The values of (a, b) = (x, y)."""
        names_end = self.closing(start)
        self.expect(names_end + 1, b"=")
        row = names_end + 2
        row += self.words(row, 1) == (b"row",)
        self.expect(row, b"(")
        if self.closing(row) != stop - 1:
            raise OddText
        return [self.items[one:end] for one, end in self.tokens.split(row + 1, stop - 1)]

    def closing(self, start: int) -> int:
        """The bracket that closes the one at a token."""
        depth = self.items[start].depth
        for index in range(start + 1, len(self.items)):
            if self.items[index].depth == depth:
                return index
        raise OddText

    def renumbered_delete(self, columns: list[Column], given: dict[str, Value]) -> tuple[bytes, tuple[int, ...]]:
        """The DELETE, which returns the new row, once foreign keys let the old one go."""
        parts: list[bytes | list[Token]] = [
            self.items[: self.update],
            b"DELETE FROM",
            self.items[self.update + 1 : self.set],
        ]
        if self.origin < self.where:
            parts += [b"USING", self.items[self.origin + 1 : self.where]]
        parts += [self.items[self.where : self.stop], b"RETURNING"]
        for index, column in enumerate(columns):
            head = (
                b","
                if index
                else b"CASE WHEN foreshard.may_leave(%s.*, %d) THEN"
                % (
                    self.name,
                    len(self.table.columns),
                )
            )
            value = given[column.name][0] if column.name in given else None
            parts += [head, b"%s.%s" % (self.name, quoted(column.name)) if value is None else value]
            if not index:
                parts.append(b"END")
        return self.spelled(parts)

    def spelled(self, parts: list[bytes | list[Token]]) -> tuple[bytes, tuple[int, ...]]:
        """The text of some parts, with parameters $1, $2, ..., and which of the client's they are."""
        tokens = [token for part in parts if not isinstance(part, bytes) for token in part]
        _, chosen = self.renumbered(tokens)
        number = {b"$%d" % (index + 1): b"$%d" % (place + 1) for place, index in enumerate(chosen)}
        pieces: list[bytes] = []
        for part in parts:
            if isinstance(part, bytes):
                pieces.append(b" " + part)
                continue
            for index, token in enumerate(part):
                written = self.sql[token.start : token.stop]
                blank = b" " if token.spaced or index == 0 else b""
                pieces.append(blank + (number.get(token.word, written) if token.literal < 0 else written))
        return b"".join(pieces).strip(), chosen

    def head(self, names: list[str]) -> bytes:
        """The INSERT up to VALUES."""
        alias = self.node["relation"].get("alias", {}).get("aliasname")
        renamed = b" AS " + quoted(alias) if alias else b""
        columns = b", ".join(quoted(name) for name in names)
        table = quoted(self.table.schema) + b"." + quoted(self.table.name)
        return b"INSERT INTO %s%s (%s) OVERRIDING SYSTEM VALUE" % (table, renamed, columns)


def value_of(fields: Node) -> Node:
    """The expression that a column of SET is given."""
    kind, value = unwrap(fields.get("val"))
    if kind != "MultiAssignRef":
        return dict(fields.get("val", {}))
    source, row = unwrap(value.get("source"))
    arguments = row.get("args", []) if source == "RowExpr" else []
    if len(arguments) < value.get("ncolumns", 1):
        raise OddText
    return dict(arguments[value.get("colno", 1) - 1])


def quoted(name: str) -> bytes:
    """A name as SQL."""
    return b'"' + name.replace('"', '""').encode() + b'"'
