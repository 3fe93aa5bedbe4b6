"""Drivers and programs copy through the proxy as they do without: psycopg, asyncpg, psql, pg_dump."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import psycopg
import pytest

from tests.integration.test_drivers_programs import psql, run_program
from tests.support.postgres import TestInstances
from tests.support.twins import Twins, twins

KEYS = range(1000, 1400)


@pytest.fixture(scope="module")
def pair(test_instances: TestInstances, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twins]:
    with twins(test_instances, tmp_path_factory.mktemp("copy"), pool={"size": 3}) as made:
        yield made


@pytest.fixture(autouse=True)
def nothing_is_left(pair: Twins) -> Iterator[None]:
    yield
    pair.assert_equal_rows()
    with pair.connect() as both:
        for client in both:
            client.rows("DELETE FROM root WHERE tag <> 'kept'")
    pair.deployed.come_to_rest()


@pytest.mark.parametrize("form", ["text", "binary"])
def test_psycopg_writes_rows_and_reads_them_back(pair: Twins, form: str) -> None:
    found = []
    for dsn in (pair.deployed.server.dsn, pair.reference.dsn):
        with psycopg.connect(dsn) as connection, connection.cursor() as cursor:
            with cursor.copy(f"COPY root (id, tag, n) FROM STDIN (FORMAT {form})".encode()) as copy:
                copy.set_types(["int8", "text", "int4"])
                for key in KEYS:
                    copy.write_row((key, f"row\n{key}", key))
            assert cursor.rowcount == len(KEYS)
            connection.commit()
            with cursor.copy(
                f"COPY (SELECT id, tag, n FROM root WHERE n > 999) TO STDOUT (FORMAT {form})".encode()
            ) as copy:
                copy.set_types(["int8", "text", "int4"])
                found.append(sorted(copy.rows()))
    assert found[0] == found[1]
    assert len(found[0]) == len(KEYS)


def test_psycopg_gives_up_in_the_middle(pair: Twins) -> None:
    with psycopg.connect(pair.deployed.server.dsn) as connection, connection.cursor() as cursor:
        with pytest.raises(ZeroDivisionError), cursor.copy("COPY root (id, tag) FROM STDIN") as copy:
            copy.write_row((5000, str(1 // 0)))
        connection.rollback()
        assert cursor.execute("SELECT count(*) FROM root WHERE id = 5000").fetchone() == (0,)


def test_asyncpg_copies_records(pair: Twins) -> None:
    async def work(dsn: str) -> list[object]:
        connection = await asyncpg.connect(dsn)
        try:
            rows = [(key, f"row {key}", key) for key in KEYS]
            told: list[object] = [
                await connection.copy_records_to_table("root", records=rows, columns=["id", "tag", "n"])
            ]
            async with connection.transaction():
                told.append(await connection.copy_records_to_table("root", records=[(9000, "x", 1)]))
            with pytest.raises(asyncpg.UniqueViolationError):
                await connection.copy_records_to_table("root", records=[(9001, "x", 1), (9000, "x", 1)])
            told.append(await connection.fetchval("SELECT count(*) FROM root WHERE id >= 1000"))
            parts: list[bytes] = []

            async def take(part: bytes) -> None:
                parts.append(part)

            told.append(await connection.copy_from_table("root", columns=["n"], output=take, format="csv", header=True))
            told.append(b"".join(parts).count(b"n\n"))
            return told
        finally:
            await connection.close()

    assert asyncio.run(work(pair.deployed.server.dsn)) == asyncio.run(work(pair.reference.dsn))


def test_psql_copies_files_in_and_out(pair: Twins, tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("tag,id\n" + "".join(f'"row, {key}",{key}\n' for key in KEYS))
    bare = "COPY root (id, tag) FROM STDIN;\n1\tx\n\\.\nSELECT 1;\n"
    script = f"\\copy root (tag, id) FROM '{file}' (FORMAT csv, HEADER match)\n{bare}"
    printed = [psql(server, script) for server in (pair.deployed.server, pair.reference)]
    assert printed[0] == printed[1]
    out = tmp_path / "out.csv"
    query = "SELECT tag, id FROM root WHERE id >= 1000"
    printed[0] = psql(pair.deployed.server, f"\\copy ({query}) TO '{out}' CSV HEADER\n")
    assert printed[0] == ""
    assert sorted(out.read_text().splitlines()) == sorted(file.read_text().splitlines())


def test_a_dump_is_restored_through_the_proxy(pair: Twins) -> None:
    server = pair.deployed.server
    with server.connect() as client:
        for key in range(1, 21):
            client.rows(f"INSERT INTO child (root_id, tag) VALUES ({key}, 'of {key}')")
        client.rows("INSERT INTO root (tag, n) SELECT 'made', n FROM generate_series(1, 5) AS n")
        before = [sorted(client.rows(f"SELECT * FROM {table}")) for table in ("root", "child", "plain")]
        dump = run_program(
            "pg_dump", server, "--data-only", "--no-sync", "-t", "root", "-t", "child", "-t", "plain", server.database
        )
        assert dump.stderr == ""
        client.rows("DELETE FROM root")
        client.rows("DELETE FROM plain")
        restored = psql(server, dump.stdout, "-v", "ON_ERROR_STOP=1")
        assert "ERROR" not in restored, restored
        assert [sorted(client.rows(f"SELECT * FROM {table}")) for table in ("root", "child", "plain")] == before
        for key in (1, 33, 60):
            assert client.rows(f"SELECT count(*) FROM root WHERE id = {key}") == [[b"1"]]
        client.rows("DELETE FROM child")
        client.rows("DELETE FROM root WHERE tag = 'made'")
