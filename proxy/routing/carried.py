"""An INSERT taken apart for the router to carry its rows: the query's text, and what stands around it.

The texts are the statement's own, cut between tokens; only parameters get new numbers. A statement that is written in a
way that is not understood for certain is refused with the reason why no shard can carry it out alone.
"""

from __future__ import annotations

from foreshard._core.carry_plan import USER_OID_MIN, CarryPlan
from foreshard._core.typed_keys import KeyType
from foreshard.proxy.catalog import Table
from foreshard.proxy.errors import SqlError, not_built
from foreshard.proxy.routing.rows import value_rows
from foreshard.proxy.routing.text import Text
from foreshard.proxy.routing.tokens import OddText, Token, Tokens
from foreshard.proxy.routing.tree import Node, strings, unwrap, walk

# Names that without a length mean a length of one.
UNCASTABLE = frozenset(("character", "bit"))


def plan_carry(text: Text, node: Node, columns: list[str], table: Table | None, problem: SqlError) -> CarryPlan:
    """How the rows of an InsertStmt are carried; `problem` when they cannot be."""
    try:
        return InsertCut(text, node).plan(columns, table)
    except OddText:
        raise problem from None


class Cut:
    """One statement, to be cut between its tokens."""

    def __init__(self, text: Text, node: Node) -> None:
        self.node = node
        self.sql = text.sql
        self.tokens = Tokens(text)
        self.items = self.tokens.items
        self.source = 0

    def find(self, words: tuple[bytes, ...], start: int) -> int:
        """The first place outside of brackets where these words stand."""
        for index in range(start, len(self.items) - len(words) + 1):
            if self.items[index].depth == 0 and self.words(index, len(words)) == words:
                return index
        raise OddText

    def words(self, index: int, count: int) -> tuple[bytes, ...]:
        """The words of some tokens."""
        return tuple(token.word for token in self.items[index : index + count])

    def expect(self, index: int, word: bytes) -> None:
        """OddText unless a token is that word."""
        if self.words(index, 1) != (word,):
            raise OddText

    def last(self, word: bytes, following: bytes, stop: int) -> int:
        """The last place outside of brackets where a clause starts."""
        for index in range(stop - 1, self.source, -1):
            is_clause = self.items[index].depth == 0 and self.items[index].word == word
            if is_clause and (not following or self.words(index + 1, 1) == (following,)):
                return index
        raise OddText

    def renumbered(self, tokens: list[Token], casts: tuple[bytes, ...] = ()) -> tuple[bytes, tuple[int, ...]]:
        """A text whose parameters are $1, $2, ..., and which of the client's they are; each value of a row cast."""
        numbers = sorted({int(token.word[1:]) for token in tokens if is_param(token)})
        pieces: list[bytes] = []
        column = 0
        for token in tokens:
            written = self.sql[token.start : token.stop]
            pieces.append(b" " if pieces and token.spaced else b"")
            if is_param(token):
                pieces.append(b"$%d" % (numbers.index(int(token.word[1:])) + 1))
            elif casts and token.depth == 0 and token.word == b"(":
                column = 0
                pieces.append(b"((")
            elif casts and token.depth == 0 and token.word == b")":
                pieces.append(casts[column] + b")")
            elif casts and token.depth == 1 and token.word == b",":
                pieces.append(casts[column] + b", (")
                column += 1
            else:
                pieces.append(written)
        return b"".join(pieces), tuple(number - 1 for number in numbers)


class InsertCut(Cut):
    """One INSERT and where its parts lie."""

    def __init__(self, text: Text, node: Node) -> None:
        super().__init__(text, node)
        self.insert = self.find((b"insert", b"into"), 0)
        self.source = self.find_source()
        self.stop = self.find_tail()
        if self.source >= self.stop:
            raise OddText

    def find_source(self) -> int:
        """The token that the query starts with."""
        relation = self.node["relation"]
        path = [relation[name] for name in ("catalogname", "schemaname", "relname") if name in relation]
        index = self.insert + 2
        for position, name in enumerate(path):
            word = self.items[index].word
            shown = word[1:-1].replace(b'""', b'"') if word.startswith(b'"') else word
            if shown.decode("utf-8", "replace") not in (name, name.lower()):
                raise OddText
            index += 1
            if position < len(path) - 1:
                self.expect(index, b".")
                index += 1
        if "alias" in relation:
            self.expect(index, b"as")
            index += 2
        if "cols" in self.node:
            self.expect(index, b"(")
            index = next(at for at in range(index + 1, len(self.items)) if self.items[at].depth == 0) + 1
        if self.words(index, 1) == (b"overriding",):
            index += 3
        return index

    def find_tail(self) -> int:
        """The token behind the query: ON CONFLICT, RETURNING, or the end."""
        stop = len(self.items)
        if "returningList" in self.node:
            stop = self.last(b"returning", b"", stop)
        if "onConflictClause" in self.node:
            stop = self.last(b"on", b"conflict", stop)
        return stop

    def plan(self, columns: list[str], table: Table | None) -> CarryPlan:
        """The texts."""
        select = [*self.items[: self.insert], *self.items[self.source : self.stop]]
        self.check_with()
        casts = self.casts(columns, table) if value_rows(self.node) is not None else ()
        select_text, select_params = self.renumbered(select, casts)
        tail_text, tail_params = self.renumbered(self.items[self.stop :])
        source = unwrap(self.node["selectStmt"])[1]
        untyped, types = read_constants(source, columns, table)
        return CarryPlan(
            select=select_text,
            select_params=select_params,
            select_types=tuple(types.get(index, 0) for index in select_params),
            head=self.sql[self.items[self.insert].start : self.items[self.source - 1].stop],
            tail=tail_text,
            tail_params=tail_params,
            untyped=untyped,
            texts=text_keys(columns, table),
            width=len(casts) or width_of(source, self.node),
            is_whole=self.node.get("onConflictClause", {}).get("action") == "ONCONFLICT_UPDATE",
        )

    def check_with(self) -> None:
        """WITH moves in front of the query, and nothing behind it may need it."""
        clause = self.node.get("withClause")
        if not clause:
            return
        names = {unwrap(item)[1]["ctename"] for item in clause["ctes"]}
        tail = {token.word.strip(b'"').decode("utf-8", "replace") for token in self.items[self.stop :]}
        if names & tail or "withClause" in unwrap(self.node["selectStmt"])[1]:
            raise not_built(
                "WITH in an INSERT ... SELECT over several shards", "Write it inside the SELECT, and nowhere else."
            )

    def casts(self, columns: list[str], table: Table | None) -> tuple[bytes, ...]:
        """The types that the values of VALUES become in INSERT: alone, each column of it would have one of its own."""
        rows = value_rows(self.node) or []
        width = max((len(row) for row in rows), default=0)
        known = [table.column(name) if table is not None else None for name in columns[:width]]
        names = [column.type_name if column is not None else "" for column in known]
        if width > len(names) or any(not name or name.removesuffix("[]") in UNCASTABLE for name in names):
            raise OddText
        if any(unwrap(cell)[0] == "SetToDefault" for row in rows for cell in row):
            raise OddText
        return tuple(b")::" + name.encode() for name in names)


def is_param(token: Token) -> bool:
    """Whether a token is $n."""
    return token.literal < 0 and token.word[:1] == b"$" and token.word[1:].isdigit()


def read_constants(source: Node, columns: list[str], table: Table | None) -> tuple[tuple[int, ...], dict[int, int]]:
    """Columns of a query that are constants without a type of their own, and the types of bare parameters in them.

    In INSERT ... SELECT PostgreSQL gives those the type of the column they go to, in a SELECT it makes them text.
    """
    values = [unwrap(target)[1].get("val") for target in source.get("targetList", [])]
    stars = [index for index, value in enumerate(values) if has_star(value)]
    uses: dict[int, int] = {}
    for _, fields in ((kind, fields) for kind, fields in walk(source) if kind == "ParamRef"):
        uses[fields.get("number", 0)] = uses.get(fields.get("number", 0), 0) + 1
    untyped: list[int] = []
    types: dict[int, int] = {}
    bare: dict[int, list[int]] = {}
    for index, value in enumerate(values):
        kind, fields = unwrap(value)
        is_constant = kind == "A_Const" and ("sval" in fields or bool(fields.get("isnull")))
        if not is_constant and kind != "ParamRef":
            continue
        if stars and stars[0] < index < stars[-1]:
            raise not_built("a constant between stars in INSERT ... SELECT over several shards", "Cast it to its type.")
        position = index if not stars or index < stars[0] else index - len(values)
        if is_constant:
            untyped.append(position)
        else:
            bare.setdefault(fields.get("number", 0), []).append(position)
    for number, positions in bare.items():
        if uses[number] > len(positions):
            continue  # its other use says the type
        column = table.column(columns[positions[0]]) if table is not None and 0 <= positions[0] < len(columns) else None
        if column is None:
            raise not_built(
                f"${number} as a column of INSERT ... SELECT over several shards", f"Write its type: ${number}::text."
            )
        types[number - 1] = column.type_oid if column.type_oid < USER_OID_MIN else 0
        if column.type_oid >= USER_OID_MIN:
            untyped += positions
    return tuple(untyped), types


def width_of(source: Node, node: Node) -> int:
    """How many columns a query has; 0 when that is not known."""
    values = [unwrap(target)[1].get("val") for target in source.get("targetList", [])]
    return len(node.get("cols", [])) if not values or any(has_star(value) for value in values) else len(values)


def text_keys(columns: list[str], table: Table | None) -> tuple[int, ...]:
    """The columns that say where a row lives and are texts."""
    if table is None:
        return ()
    routing = (*table.key_columns, *table.via_columns)
    return tuple(
        index
        for index, column in enumerate(columns)
        if column in routing and table.type_of(column) is KeyType.TYPE_TEXT
    )


def has_star(value: Node | None) -> bool:
    """Whether a target stands for several columns."""
    fields = unwrap(value)[1].get("fields", []) if unwrap(value)[0] == "ColumnRef" else []
    return len(strings(fields)) < len(fields)
