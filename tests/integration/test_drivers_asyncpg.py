"""asyncpg works through the proxy as it does without."""

from __future__ import annotations

import asyncio
import datetime
import decimal
import uuid
from collections.abc import AsyncIterator

import asyncpg
import pytest

from tests.support.servers import Pair

CLIENTS = 30


@pytest.fixture(params=["direct", "proxied"])
async def connection(request: pytest.FixtureRequest, small_pair: Pair) -> AsyncIterator[asyncpg.Connection]:
    """A connection to each side in turn: what holds on one must hold on the other."""
    made = await asyncpg.connect(getattr(small_pair, request.param).dsn)
    try:
        await made.execute("DROP TABLE IF EXISTS thing")
        await made.execute(
            "CREATE TABLE thing (id int PRIMARY KEY, name text, at timestamptz, tags text[], price numeric)"
        )
        yield made
    finally:
        await made.close()


async def test_values_of_many_types_round_trip(connection: asyncpg.Connection) -> None:
    values = [
        1, 2**40, 1.5, True, "text é", b"\0\1", decimal.Decimal("1.23"), uuid.UUID(int=7),
        datetime.datetime(2024, 1, 2, 3, 4, 5, tzinfo=datetime.UTC), datetime.date(2024, 1, 2), [1, 2, 3], None,
    ]  # fmt: skip
    types = [
        "int4",
        "int8",
        "float8",
        "bool",
        "text",
        "bytea",
        "numeric",
        "uuid",
        "timestamptz",
        "date",
        "int4[]",
        "text",
    ]
    columns = ", ".join(f"${index}::{name}" for index, name in enumerate(types, 1))
    assert list(await connection.fetchrow(f"SELECT {columns}", *values)) == values


async def test_prepared_statements_are_reused(connection: asyncpg.Connection) -> None:
    statement = await connection.prepare("SELECT $1::int * 2 AS twice")
    assert [attribute.name for attribute in statement.get_attributes()] == ["twice"]
    assert [await statement.fetchval(number) for number in range(20)] == [2 * number for number in range(20)]


async def test_the_statement_cache_serves_and_evicts(small_pair: Pair) -> None:
    client = await asyncpg.connect(small_pair.proxied.dsn, statement_cache_size=5)
    for turn in range(3):
        for number in range(12):
            assert await client.fetchval(f"SELECT {number} + $1::int", turn) == number + turn
    await client.close()


async def test_executemany_stores_all_or_nothing(connection: asyncpg.Connection) -> None:
    await connection.executemany("INSERT INTO thing (id, name) VALUES ($1, $2)", [(n, f"n{n}") for n in range(500)])
    assert await connection.fetchval("SELECT count(*) FROM thing") == 500
    with pytest.raises(asyncpg.UniqueViolationError):
        await connection.executemany("INSERT INTO thing (id) VALUES ($1)", [(600,), (1,)])
    assert await connection.fetchval("SELECT count(*) FROM thing") == 500


async def test_cursors_fetch_in_portions(connection: asyncpg.Connection) -> None:
    async with connection.transaction():
        found = [row[0] async for row in connection.cursor("SELECT generate_series(1, 1000)", prefetch=70)]
        assert found == list(range(1, 1001))
        cursor = await connection.cursor("SELECT generate_series(1, 100)")
        assert [row[0] for row in await cursor.fetch(3)] == [1, 2, 3]
        await cursor.forward(10)
        assert (await cursor.fetchrow())[0] == 14


async def test_nested_transactions_roll_back_alone(connection: asyncpg.Connection) -> None:
    async with connection.transaction():
        await connection.execute("INSERT INTO thing (id) VALUES (1)")
        lost = connection.transaction()
        await lost.start()
        await connection.execute("INSERT INTO thing (id) VALUES (2)")
        await lost.rollback()
        with pytest.raises(asyncpg.DivisionByZeroError):
            async with connection.transaction():
                await connection.execute("SELECT 1/0")
    assert await connection.fetch("SELECT id FROM thing") == [(1,)]


async def test_isolation_levels_hold(connection: asyncpg.Connection) -> None:
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        assert await connection.fetchval("SHOW transaction_isolation") == "repeatable read"
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            await connection.execute("INSERT INTO thing (id) VALUES (1)")


async def test_copy_in_both_directions(connection: asyncpg.Connection) -> None:
    rows = [(number, f"name {number}", None, ["a", "b"], decimal.Decimal(number)) for number in range(2000)]
    assert await connection.copy_records_to_table("thing", records=rows) == "COPY 2000"
    parts = []

    async def take(data: bytes) -> None:
        parts.append(data)

    assert await connection.copy_from_query("SELECT id FROM thing ORDER BY id", output=take) == "COPY 2000"
    assert b"".join(parts).split() == [b"%d" % number for number in range(2000)]


async def test_types_of_the_database_are_introspected(connection: asyncpg.Connection) -> None:
    """asyncpg reads the catalog with recursive queries, and sets jit off before them in some versions."""
    await connection.execute("DROP TYPE IF EXISTS mood CASCADE")
    await connection.execute("CREATE TYPE mood AS ENUM ('fine', 'bad')")
    assert await connection.fetchval("SELECT $1::mood[]", ["fine", "bad"]) == ["fine", "bad"]
    await connection.execute("DROP TYPE mood")


async def test_errors_carry_their_fields_and_the_session_goes_on(connection: asyncpg.Connection) -> None:
    await connection.execute("INSERT INTO thing (id) VALUES (1)")
    with pytest.raises(asyncpg.UniqueViolationError) as caught:
        await connection.execute("INSERT INTO thing (id) VALUES ($1)", 1)
    assert caught.value.constraint_name == "thing_pkey"
    assert await connection.fetchval("SELECT 1") == 1


async def test_a_timeout_cancels_the_query_and_the_session_goes_on(connection: asyncpg.Connection) -> None:
    for _ in range(3):
        with pytest.raises(TimeoutError):
            await connection.execute("SELECT pg_sleep(60)", timeout=0.05)
        assert await connection.fetchval("SELECT 1") == 1


async def test_a_canceled_task_cancels_its_query(connection: asyncpg.Connection) -> None:
    task = asyncio.create_task(connection.execute("SELECT pg_sleep(60)"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await connection.fetchval("SELECT 1") == 1


async def test_a_pool_of_clients_larger_than_the_pool_of_backends(small_pair: Pair) -> None:
    """Acquire and release send RESET and UNLISTEN, which must not disturb anyone."""
    small_pair.direct.run("DROP TABLE IF EXISTS total", "CREATE TABLE total (n int)", "INSERT INTO total VALUES (0)")
    async with asyncpg.create_pool(small_pair.proxied.dsn, min_size=CLIENTS, max_size=CLIENTS) as pool:

        async def work(number: int) -> None:
            async with pool.acquire() as client, client.transaction():
                assert await client.fetchval("SELECT $1::int", number) == number
                await client.execute("UPDATE total SET n = n + $1", number)

        await asyncio.gather(*(work(number) for number in range(300)))
        assert await pool.fetchval("SELECT n FROM total") == sum(range(300))


async def test_server_settings_at_connect_hold_or_are_refused(small_pair: Pair) -> None:
    try:
        client = await asyncpg.connect(
            small_pair.proxied.dsn, server_settings={"application_name": "mine", "jit": "off"}
        )
    except asyncpg.FeatureNotSupportedError:
        return
    assert await client.fetchval("SHOW application_name") == "mine"
    assert await client.fetchval("SHOW jit") == "off"
    await client.close()
