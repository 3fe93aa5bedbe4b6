"""Random statements over sharded tables answer as one PostgreSQL that holds all the rows answers.

The reference database gets what the proxy got; rows whose keys the shards made are inserted there with those keys. Rows
are compared as multisets where SQL leaves their order open. What the proxy answers with 0A000 is counted, must be of a
kind that is documented as refused, and is not sent to the reference.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple, Self

import pytest

from tests.support.messages import BINARY, SYNC, bind, describe_portal, execute, parse, query
from tests.support.messages import TEXT as TEXT_FORMAT
from tests.support.postgres import TestInstances
from tests.support.proxy import Proxy
from tests.support.raw import Message, error_of, kinds, transcript
from tests.support.servers import Pair, Server
from tests.support.statements import MALFORMED, OIDS, SCHEMA, TABLES, Statement, World, draw_statement

SEEDS = range(6)
STATEMENTS = 250
REFUSED = "0A000"


@pytest.fixture(scope="module")
def sides(test_instances: TestInstances, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """The reference database and the proxy over three shards."""
    shards, reference = test_instances.create(3), test_instances.create(1)
    shards.execute(SCHEMA)
    reference.execute(SCHEMA)
    with Proxy(shards.dsns, tmp_path_factory.mktemp("differential"), tables=TABLES, pool={"size": 3}) as proxy:
        yield Pair(Server.of_dsn(reference.dsns[0]), proxy.server)
    test_instances.drop(shards)
    test_instances.drop(reference)


class Form(NamedTuple):
    """How a statement is sent."""

    by_extended: bool
    named: bool
    typed: bool  # parameter types given in Parse
    formats: tuple[int, ...]
    result_format: int
    literal_style: int

    @classmethod
    def drawn(cls, draw: random.Random, statement: Statement) -> Form:
        binary = draw.random() < 0.5
        formats = tuple(draw.choice([TEXT_FORMAT, BINARY]) if binary else TEXT_FORMAT for _ in statement.values)
        return cls(
            by_extended=draw.random() < 0.7,
            named=draw.random() < 0.5,
            typed=binary or draw.random() < 0.5,
            formats=formats,
            result_format=draw.choice([TEXT_FORMAT, BINARY]),
            literal_style=draw.randrange(5),
        )


class Side:
    """One client; remembers which statements it has prepared under which names."""

    def __init__(self, server: Server) -> None:
        self.connection = server.connect()
        self.names: dict[str, str] = {}
        self.status = "I"

    def ask(self, statement: Statement, form: Form) -> list[Message]:
        answer = self.connection.ask(self._encode(statement, form))
        self.status = answer[-1].body.decode()
        return answer

    def _encode(self, statement: Statement, form: Form) -> bytes:
        if not form.by_extended:
            return query(statement.as_literals(form.literal_style))
        sql = statement.as_parameters()
        types = [OIDS[value.type] for value in statement.values] if form.typed else []
        key = f"{sql} {types}"
        name = self.names.get(key, f"s{len(self.names)}") if form.named else ""
        prepare = b"" if form.named and key in self.names else parse(sql, name, types)
        values = [
            value.binary if code == BINARY else value.text
            for value, code in zip(statement.values, form.formats, strict=False)
        ]
        formats = form.formats if len(form.formats) == len(values) else ()
        ask = bind(values, name=name, formats=formats, results=[form.result_format]) + describe_portal() + execute()
        self._prepared = (key, name) if prepare and form.named else None
        return prepare + ask + SYNC

    def keep_prepared(self, answer: list[Message]) -> None:
        """A statement whose Parse succeeded stays, whatever came of its execution."""
        prepared = getattr(self, "_prepared", None)
        if prepared is not None and "1" in kinds(answer):
            self.names[prepared[0]] = prepared[1]
        self._prepared = None


def comparable(answer: list[Message], ordered: bool) -> list[str]:
    """The answer in a form equal for equal answers; errors by their SQLSTATE alone."""
    lines = []
    for message, line in zip(answer, transcript(answer), strict=True):
        lines.append(f"E {message.fields['C']}" if message.kind == b"E" else line)
    if not ordered:
        rows = iter(sorted(line for line in lines if line[0] in "Dd"))
        lines = [next(rows) if line[0] in "Dd" else line for line in lines]
    return [line for line in lines if line[0] not in "1N"]


class Differ:
    """Leads both sides through the same statements. Made per test, ended by its `with` block."""

    def __init__(self, sides: Pair, seed: int) -> None:
        self.draw = random.Random(seed)
        self.reference, self.proxied = Side(sides.direct), Side(sides.proxied)
        self.world = World()
        self.refused: Counter[str] = Counter()
        self.compared: Counter[str] = Counter()
        self.refresh()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.reference.connection.close()
        self.proxied.connection.close()

    def refresh(self) -> None:
        """Learn which keys exist."""
        look = self.reference.connection.rows
        self.world.documents = sorted(int(row[0] or 0) for row in look("SELECT id FROM document"))
        self.world.symbols = sorted(
            (int(row[0] or 0), int(row[1] or 0)) for row in look("SELECT id, document_id FROM symbol")
        )

    def step(self, statement: Statement) -> bool:
        """Run on both sides and compare; False when the proxy refused (then the reference has not seen it)."""
        if statement.sql == MALFORMED and self.proxied.status == "E":
            return True  # 42601 or 25P02: who refuses first is nobody's business
        form = Form.drawn(self.draw, statement)
        answer = self.proxied.ask(statement, form)
        self.proxied.keep_prepared(answer)
        if "E" in kinds(answer) and error_of(answer)["C"] == REFUSED:
            reason = statement.refusable
            assert reason is not None, f"{statement}\n{form}\n{error_of(answer)}"
            self.refused[reason] += 1
            return False
        expected = self._ask_reference(statement, form, answer)
        found = comparable(answer, statement.ordered)
        assert found == expected, f"{statement}\n{form}"
        self.compared["error" if "E" in kinds(answer) else statement.sql.split()[0]] += 1
        return True

    def _ask_reference(self, statement: Statement, form: Form, answer: list[Message]) -> list[str]:
        if statement.keyed_sql is None:
            expected = self.reference.ask(statement, form)
        else:
            keys = self._returned_keys(answer, form) or [-1 - index for index in range(statement.rows)]
            statement = statement.with_keys(keys)
            codes = form.formats * len(statement.values) if form.formats else ()
            form = form._replace(formats=codes[: len(statement.values)], typed=True)
            expected = self.reference.ask(statement, form)
        self.reference.keep_prepared(expected)
        return comparable(expected, statement.ordered)

    def _returned_keys(self, answer: list[Message], form: Form) -> list[int]:
        keys = []
        for message in answer:
            if message.kind == b"D":
                value = message.values[0] or b""
                binary = form.by_extended and form.result_format == BINARY
                keys.append(int.from_bytes(value, "big", signed=True) if binary else int(value))
        return keys

    def transact(self) -> None:
        """A transaction with savepoints, ended either way; a refusal rolls both sides back."""
        depth = 0
        self.step(Statement("BEGIN"))
        for _ in range(self.draw.randint(1, 8)):
            if self.draw.random() < 0.2:
                depth += 1
                going_on = self.step(Statement(f"SAVEPOINT p{depth}"))
            elif depth and (self.proxied.status == "E" or self.draw.random() < 0.2):
                going_on = self.step(Statement(f"ROLLBACK TO SAVEPOINT p{self.draw.randint(1, depth)}"))
            else:
                going_on = self.step(draw_statement(self.draw, self.world))
            if not going_on:
                assert self.proxied.status in "TE"
                break
        end = "ROLLBACK" if not going_on else self.draw.choice(["COMMIT", "COMMIT", "ROLLBACK"])
        for side in (self.reference, self.proxied):
            side.connection.query(end)
            side.status = "I"
        self.refresh()


@pytest.mark.parametrize("seed", SEEDS)
def test_random_statements_answer_as_one_database_does(sides: Pair, seed: int) -> None:
    with Differ(sides, seed) as differ:
        while differ.compared.total() < STATEMENTS:
            if differ.draw.random() < 0.15:
                differ.transact()
            else:
                differ.step(draw_statement(differ.draw, differ.world))
                if differ.draw.random() < 0.2:
                    differ.refresh()
    print(f"seed {seed}: compared {dict(differ.compared)}, refused {dict(differ.refused)}")


def test_after_it_all_every_row_is_found_by_its_key(sides: Pair) -> None:
    """Each row of the reference, asked for by key through the proxy; then all rows at once."""
    with sides.direct.connect() as reference, sides.proxied.connect() as proxied:
        for table in ("document", "symbol"):
            for row in reference.rows(f"SELECT * FROM {table}"):
                assert proxied.rows(f"SELECT * FROM {table} WHERE id = {(row[0] or b'').decode()}") == [row]
            assert sorted(proxied.rows(f"SELECT * FROM {table}")) == sorted(reference.rows(f"SELECT * FROM {table}"))


@pytest.mark.parametrize("value", ["NULL", "NULL::bigint", "'not a number'", "1.5", "99999999999999999999"])
def test_keys_that_are_no_keys_answer_as_postgres_does_or_are_refused(sides: Pair, value: str) -> None:
    for sql in (f"SELECT id FROM document WHERE id = {value}", f"SELECT id FROM document WHERE id IN ({value}, 1)"):
        answers = []
        for server in sides:
            with server.connect() as connection:
                answers.append(comparable(connection.query(sql), False))
        assert answers[1] == answers[0] or answers[1][0] == f"E {REFUSED}"
