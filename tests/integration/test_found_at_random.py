"""Cases that random scripts (tests/differential) have found, each by itself."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.messages import SYNC, bind, execute, extended, parse
from tests.support.postgres import TestInstances
from tests.support.raw import Message, kinds
from tests.support.twins import Twins, comparable, twins


@pytest.fixture(scope="module")
def sides(test_instances: TestInstances, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twins]:
    """Three shards, and one PostgreSQL with the same rows."""
    with twins(test_instances, tmp_path_factory.mktemp("random"), pool={"size": 3}) as made:
        yield made


def test_a_merged_read_does_not_repeat_the_rows_of_the_insert_before_it(sides: Twins) -> None:
    insert = sides.fill_in("INSERT INTO child (root_id, tag) VALUES ({a}, 'x'), ({b}, 'x'), ({d}, 'x')")
    read = "SELECT n, count(*) FROM root GROUP BY n ORDER BY n DESC LIMIT 3"
    with sides.connect() as (proxied, direct):
        assert kinds(proxied.ask(extended(insert), SYNC)).endswith("CZ")
        assert comparable(proxied.ask(extended(read), SYNC)) == comparable(direct.ask(extended(read), SYNC))
        assert proxied.value("SELECT count(*) FROM child WHERE tag = 'x'") == "3"


def test_a_read_only_transaction_commits_though_it_tried_to_write_on_several_shards(sides: Twins) -> None:
    write = sides.fill_in("UPDATE root SET n = 0 WHERE id IN ({a}, {b})")
    for begin in ("BEGIN READ ONLY", "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", "begin transaction read  only"):
        with sides.connect() as (proxied, direct):
            for sql in (begin, "SAVEPOINT s", write, "ROLLBACK TO s", "SELECT count(*) FROM root", "COMMIT"):
                assert codes(proxied.query(sql)) == codes(direct.query(sql)), sql


def test_statements_of_a_string_before_a_failing_one_are_answered(sides: Twins) -> None:
    fine = sides.fill_in("SELECT n FROM root WHERE id = {a}")
    for failing in ("INSERT INTO root (id) VALUES (NULL)", "SELECT * FROM root WHERE id = 'x'", "SELECT 1 / 0"):
        with sides.connect() as (proxied, direct):
            for sql in (f"{fine}; {failing}", f"BEGIN; {fine}; {failing}", "ROLLBACK", f"{failing}; {fine}"):
                assert codes(proxied.query(sql)) == codes(direct.query(sql)), sql


def codes(answer: list[Message]) -> list[str]:
    """The answer, of errors only the SQLSTATE."""
    return [
        f"E {message.fields['C']}" if message.kind == b"E" else line
        for message, line in zip(answer, comparable(answer), strict=True)
    ]


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
def test_an_execute_that_gets_as_many_rows_as_it_asked_for_leaves_its_portal_open(sides: Twins, rows: int) -> None:
    for sql in ("SELECT count(*) FROM root", "SELECT n FROM root ORDER BY n LIMIT 3"):
        message = parse(sql) + bind() + execute(rows_max=rows) + execute(rows_max=rows) + SYNC
        with sides.connect() as (proxied, direct):
            assert comparable(proxied.ask(message)) == comparable(direct.ask(message)), sql
