"""SELECTs over several shards that are merged in the router answer as one PostgreSQL with the same rows answers."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from tests.integration.test_differential import comparable
from tests.support.merged_sql import DOCUMENT, SCHEMA, SYMBOL, TABLES, Drawer, Question, draw_row
from tests.support.messages import BINARY, SYNC, TEXT, bind, describe_portal, execute, parse, query
from tests.support.postgres import TestInstances
from tests.support.proxy import Proxy
from tests.support.raw import Message, RawConnection, error_of, kinds
from tests.support.servers import Pair, Server

DOCUMENTS, SYMBOLS = 90, 150
SEEDS = range(4)
QUESTIONS = 200


@pytest.fixture(scope="module")
def sides(test_instances: TestInstances, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """One database with all rows, and the proxy over four shards that hold the same."""
    shards, reference = test_instances.create(4), test_instances.create(1)
    shards.execute(SCHEMA)
    reference.execute(SCHEMA)
    with Proxy(shards.dsns, tmp_path_factory.mktemp("merge"), tables=TABLES, pool={"size": 3}) as proxy:
        pair = Pair(Server.of_dsn(reference.dsns[0]), proxy.server)
        with pair.direct.connect() as direct, pair.proxied.connect() as proxied:
            fill(direct, proxied, random.Random(1))
        yield pair
    test_instances.drop(shards)
    test_instances.drop(reference)


def fill(direct: RawConnection, proxied: RawConnection, draw: random.Random) -> None:
    """The same rows on both sides, with the keys that the shards make."""
    documents = []
    for _ in range(DOCUMENTS):
        documents.append(add(direct, proxied, "document", DOCUMENT, draw_row(draw, DOCUMENT)))
    for _ in range(SYMBOLS):
        values = [draw.choice(documents), *draw_row(draw, SYMBOL)]
        add(direct, proxied, "symbol", ("document_id", *SYMBOL), values)


def add(direct: RawConnection, proxied: RawConnection, table: str, columns: tuple[str, ...], values: list[str]) -> str:
    names, row = ", ".join(columns), ", ".join(values)
    [[key]] = proxied.rows(f"INSERT INTO {table} ({names}) VALUES ({row}) RETURNING id")
    assert key is not None
    direct.rows(f"INSERT INTO {table} (id, {names}) VALUES ({key.decode()}, {row})")
    return key.decode()


def ask(connection: RawConnection, question: Question, form: int | None, rows_max: int = 0) -> list[Message]:
    """By simple query (form None; parameters as literals), or extended with results in a format."""
    if form is None:
        sql = question.sql
        for index in range(len(question.values), 0, -1):
            sql = sql.replace(f"${index}", question.values[index - 1])
        return connection.ask(query(sql))
    values = [value.encode() for value in question.values]
    sent = parse(question.sql) + bind(values, results=[form]) + describe_portal() + execute("", rows_max) + SYNC
    return connection.ask(sent)


@pytest.mark.parametrize("seed", SEEDS)
def test_random_selects_are_merged_as_one_database_answers(sides: Pair, seed: int) -> None:
    drawer = Drawer(seed)
    refused = 0
    with sides.direct.connect() as direct, sides.proxied.connect() as proxied:
        for number in range(QUESTIONS):
            question = drawer.question()
            form = (None, TEXT, BINARY)[number % 3]
            answer = ask(proxied, question, form)
            if "E" in kinds(answer) and error_of(answer)["C"] == "0A000":
                refused += 1
                continue
            found, expected = (
                comparable(answer, question.ordered),
                comparable(ask(direct, question, form), question.ordered),
            )
            assert found == expected, f"seed {seed} {question} form {form}"
    print(f"seed {seed}: {refused} of {QUESTIONS} refused")
    assert refused <= QUESTIONS // 20
