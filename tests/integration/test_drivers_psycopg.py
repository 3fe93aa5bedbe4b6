"""psycopg 3 works through the proxy as it does without."""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from psycopg.rows import dict_row

from tests.support.servers import Pair

CLIENTS = 20


@pytest.fixture(params=["direct", "proxied"])
def connection(request: pytest.FixtureRequest, small_pair: Pair) -> Iterator[psycopg.Connection]:
    """A connection to each side in turn: what holds on one must hold on the other."""
    with psycopg.connect(getattr(small_pair, request.param).dsn, autocommit=True) as made:
        made.execute("DROP TABLE IF EXISTS thing")
        made.execute("CREATE TABLE thing (id int PRIMARY KEY, name text)")
        yield made


@pytest.mark.parametrize("binary", [False, True], ids=["text", "binary"])
def test_values_of_many_types_round_trip(connection: psycopg.Connection, binary: bool) -> None:
    values = [1, 2**40, 1.5, True, "é", b"\0\1", decimal.Decimal("1.23"), datetime.date(2024, 1, 2), [1, 2], None]
    form = "%b" if binary else "%t"
    types = ["int4", "int8", "float8", "bool", "text", "bytea", "numeric", "date", "int4[]", "text"]
    sql = "SELECT " + ", ".join(f"{form}::{name}" for name in types)
    with connection.cursor(binary=binary) as cursor:
        assert list(cursor.execute(sql, values).fetchone() or ()) == values


def test_the_simple_protocol_by_a_client_side_cursor(connection: psycopg.Connection) -> None:
    with psycopg.ClientCursor(connection) as cursor:
        cursor.execute("INSERT INTO thing VALUES (%s, %s)", (1, "it's"))
        assert cursor.execute("SELECT * FROM thing WHERE name = %s", ("it's",)).fetchall() == [(1, "it's")]
        cursor.execute("SELECT 1; SELECT 2")
        assert cursor.fetchall() == [(1,)]
        assert cursor.nextset()
        assert cursor.fetchall() == [(2,)]


def test_statements_are_prepared_after_the_threshold(connection: psycopg.Connection) -> None:
    connection.prepare_threshold = 2
    for number in range(20):
        assert connection.execute("SELECT %s::int + 1", (number,)).fetchone() == (number + 1,)
    assert connection.execute("SELECT %s::text", ("now",), prepare=True).fetchone() == ("now",)


def test_prepared_statements_are_evicted_and_come_back(connection: psycopg.Connection) -> None:
    connection.prepare_threshold = 0
    connection.prepared_max = 3
    for turn in range(3):
        for number in range(8):
            assert connection.execute(f"SELECT {number} + %s::int", (turn,)).fetchone() == (number + turn,)


def test_pipeline_mode_answers_in_order(connection: psycopg.Connection) -> None:
    with connection.pipeline():
        cursors = [connection.execute("SELECT %s::int", (number,)) for number in range(100)]
    assert [cursor.fetchone() for cursor in cursors] == [(number,) for number in range(100)]


def test_an_error_in_a_pipeline_skips_to_its_end(connection: psycopg.Connection) -> None:
    def run() -> None:
        with connection.pipeline() as pipeline:
            connection.execute("INSERT INTO thing VALUES (1)")
            connection.execute("SELECT 1/0")
            connection.execute("INSERT INTO thing VALUES (2)")
            pipeline.sync()

    with pytest.raises(psycopg.errors.DivisionByZero):
        run()
    assert connection.execute("SELECT count(*) FROM thing").fetchone() == (0,)


def test_executemany_uses_a_pipeline(connection: psycopg.Connection) -> None:
    with connection.cursor() as cursor:
        rows = [(number, str(number)) for number in range(300)]
        cursor.executemany("INSERT INTO thing VALUES (%s, %s) RETURNING id", rows, returning=True)
        found = []
        while True:
            found += cursor.fetchall()
            if not cursor.nextset():
                break
    assert found == [(number,) for number in range(300)]


def test_server_side_cursors_fetch_in_portions(connection: psycopg.Connection) -> None:
    with connection.transaction(), connection.cursor(name="portions") as cursor:
        cursor.itersize = 30
        cursor.execute("SELECT generate_series(1, 200)")
        assert [row[0] for row in cursor] == list(range(1, 201))


def test_copy_in_both_directions(connection: psycopg.Connection) -> None:
    with connection.cursor() as cursor:
        with cursor.copy("COPY thing FROM STDIN") as copy:
            for number in range(1000):
                copy.write_row((number, f"name {number}"))
        with cursor.copy("COPY (SELECT * FROM thing ORDER BY id) TO STDOUT (FORMAT binary)") as copy:
            copy.set_types(["int4", "text"])
            assert list(copy.rows()) == [(number, f"name {number}") for number in range(1000)]


def test_a_failed_copy_stores_nothing(connection: psycopg.Connection) -> None:
    def run() -> None:
        with connection.cursor() as cursor, cursor.copy("COPY thing FROM STDIN") as copy:
            copy.write_row((1, "a"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run()
    assert connection.execute("SELECT count(*) FROM thing").fetchone() == (0,)


def test_transactions_and_savepoints(connection: psycopg.Connection) -> None:
    with connection.transaction():
        connection.execute("INSERT INTO thing VALUES (1)")
        with pytest.raises(psycopg.errors.UniqueViolation), connection.transaction():
            connection.execute("INSERT INTO thing VALUES (1)")
        with connection.transaction(force_rollback=True):
            connection.execute("INSERT INTO thing VALUES (2)")
    assert connection.execute("SELECT id FROM thing").fetchall() == [(1,)]


def test_implicit_transactions_of_the_dbapi(small_pair: Pair) -> None:
    small_pair.direct.run("DROP TABLE IF EXISTS thing", "CREATE TABLE thing (id int PRIMARY KEY, name text)")
    with psycopg.connect(small_pair.proxied.dsn) as client:
        client.execute("INSERT INTO thing VALUES (1)")
        client.rollback()
        client.execute("INSERT INTO thing VALUES (2)")
        client.commit()
        assert client.execute("SELECT id FROM thing").fetchall() == [(2,)]


def test_cancel_by_the_driver(connection: psycopg.Connection) -> None:
    with ThreadPoolExecutor(1) as executor:
        running = executor.submit(connection.execute, "SELECT pg_sleep(60)")
        while not running.done():
            connection.cancel_safe()
        with pytest.raises(psycopg.errors.QueryCanceled):
            running.result()
    assert connection.execute("SELECT 1").fetchone() == (1,)


def test_notices_and_descriptions_arrive(connection: psycopg.Connection) -> None:
    heard: list[str | None] = []
    connection.add_notice_handler(lambda diagnostic: heard.append(diagnostic.message_primary))
    connection.execute("DO $$ BEGIN RAISE NOTICE 'hello'; END $$")
    assert heard == ["hello"]
    with connection.cursor(row_factory=dict_row) as cursor:
        assert cursor.execute("SELECT 1 AS one, 'x' AS two").fetchone() == {"one": 1, "two": "x"}


def test_many_threads_over_few_backends(small_pair: Pair) -> None:
    def work(index: int) -> int:
        with psycopg.connect(small_pair.proxied.dsn, autocommit=True, prepare_threshold=1) as client:
            return sum(client.execute("SELECT %s::int * %s", (index, turn)).fetchone()[0] for turn in range(20))  # type: ignore[index]

    with ThreadPoolExecutor(CLIENTS) as executor:
        assert list(executor.map(work, range(CLIENTS))) == [index * 190 for index in range(CLIENTS)]


async def test_asynchronous_connections(small_pair: Pair) -> None:
    async with await psycopg.AsyncConnection.connect(small_pair.proxied.dsn, autocommit=True) as client:
        async with client.pipeline():
            cursors = [await client.execute("SELECT %s::int", (number,)) for number in range(50)]
        assert [await cursor.fetchone() for cursor in cursors] == [(number,) for number in range(50)]
