"""The console through a running proxy, as psql and drivers see it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import asyncpg
import psycopg
import pytest

from foreshard._core.two_phase import make_gid, new_id
from foreshard.proxy.admin.command_explain import login_of
from foreshard.proxy.admin.console import COMMANDS
from foreshard.proxy.config import load_config
from foreshard.proxy.embedded import find_binaries
from tests.support.postgres import Shards, TestInstances
from tests.support.serving import Serving, run_command
from tests.support.waiting import wait_until

TABLES = {"document": {"key": "id"}, "symbol": {"key": "id", "parent": "document", "via": "document_id"}}
SCHEMA = """
CREATE TABLE document (id bigserial PRIMARY KEY, body text);
CREATE TABLE symbol (id bigserial PRIMARY KEY, document_id bigint NOT NULL REFERENCES document, name text);
"""


@pytest.fixture(scope="module")
def shards(test_instances: TestInstances) -> Iterator[Shards]:
    made: Shards = test_instances.create(2)
    made.execute(SCHEMA)
    yield made
    test_instances.drop(made)


@pytest.fixture(scope="module")
def serving(shards: Shards, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with Serving(tmp_path_factory.mktemp("console"), shards.dsns, tables=TABLES).apply() as running:
        yield running


def explain(serving: Serving, sql: str) -> str:
    """What `foreshard explain` prints."""
    done = run_command("explain", serving.path, sql)
    assert done.returncode == 0, done.stderr
    return done.stdout


def dsn_of(serving: Serving) -> str:
    """The proxy, with the user and database of its first shard."""
    user, database = login_of(load_config(serving.path))
    return f"postgresql://{user}@{serving.host}:{serving.port}/{database}"


def console_dsn(serving: Serving) -> str:
    return f"postgresql://operator@{serving.host}:{serving.port}/foreshard"


def psql(serving: Serving, *commands: str) -> subprocess.CompletedProcess[str]:
    words = [word for command in commands for word in ("-c", command)]
    program = find_binaries().folder / "psql"
    return subprocess.run([program, "-X", console_dsn(serving), *words], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", [*COMMANDS, "HELP"])
def test_psql_shows_every_command(serving: Serving, name: str) -> None:
    done = psql(serving, f"show {name.lower()};")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].startswith("(") or "rows)" in done.stdout or "row)" in done.stdout


def test_psql_hears_an_error_with_its_hint_and_goes_on(serving: Serving) -> None:
    done = psql(serving, "SHOW NOTHING", "SHOW VERSION")
    assert "ERROR:  there is nothing called 'NOTHING' to show" in done.stderr
    assert "HINT:  SHOW HELP" in done.stderr
    assert "Foreshard" in done.stdout


def test_psycopg_reads_rows_with_their_types(serving: Serving) -> None:
    with psycopg.connect(console_dsn(serving), autocommit=True) as connection:
        rows = connection.execute("SHOW SHARDS").fetchall()
        assert [row[:2] for row in rows] == [(0, "s0"), (1, "s1")]
        assert sum(row[7] for row in rows) == 4096


def test_two_phase_shows_what_is_prepared_until_it_is_ended(serving: Serving, shards: Shards) -> None:
    ((cluster,),) = shards.query("SELECT cluster FROM foreshard.shard_info")
    id = new_id()
    gid = make_gid(str(cluster), "s0", id, "s1")
    shards.execute(f"BEGIN; CREATE TABLE prepared (n int); PREPARE TRANSACTION '{gid}'", on=1)
    with psycopg.connect(console_dsn(serving), autocommit=True, prepare_threshold=None) as console:
        (row,) = console.execute("SHOW TWO_PHASE").fetchall()
        assert row[:6] == ("s1", gid, id, "s0", "s1", "app")
        assert row[7] in ("waiting", "rolling back")
        wait_until(lambda: not console.execute("SHOW TWO_PHASE").fetchall())  # the controller has rolled it back
    assert shards.query("SELECT to_regclass('prepared')", on=1) == [(None,)]


async def test_the_extended_protocol_is_refused_with_a_hint(serving: Serving) -> None:
    connection = await asyncpg.connect(console_dsn(serving))
    try:
        with pytest.raises(asyncpg.FeatureNotSupportedError) as caught:
            await connection.fetch("SHOW POOLS")
        assert "simple" in str(caught.value.hint)
    finally:
        await connection.close()


def test_a_client_in_a_transaction_shows_in_clients_pools_and_servers(serving: Serving) -> None:
    with psycopg.connect(dsn_of(serving)) as client, psycopg.connect(console_dsn(serving), autocommit=True) as console:
        (pid,) = client.execute("SELECT pg_backend_pid()").fetchone() or (0,)
        pools = {row[2]: row for row in console.execute("SHOW POOLS").fetchall()}
        assert pools["s0"][3] == 1
        servers = console.execute("SHOW SERVERS")
        column = [entry.name for entry in servers.description or ()].index("remote_pid")
        assert pid in [row[column] for row in servers.fetchall()]
        assert len(console.execute("SHOW CLIENTS").fetchall()) == 2


def test_explain_prints_the_decision(serving: Serving) -> None:
    said = explain(serving, "INSERT INTO document (body) VALUES ('some text')")
    assert said.splitlines()[0].startswith("Place by predicted cost: s")
    assert "Features: rows 1" in said
    assert "Candidates:" in said


def test_explain_of_a_keyed_read_names_one_shard(serving: Serving) -> None:
    said = explain(serving, f"SELECT body FROM document WHERE id = {2**52 + 5}")
    assert said.splitlines()[0] in ("By key: s0", "By key: s1")


def test_explain_of_a_write_without_a_choice_says_what_holds_it(serving: Serving) -> None:
    update = explain(serving, "UPDATE document SET body = lower(body) WHERE id = 5")
    child = explain(serving, "INSERT INTO symbol (document_id, name) VALUES (5, 'n')")
    assert "Reason: found by its key" in update
    assert "counted without being evaluated: 1" in update
    assert "Reason: it follows its parent" in child
    assert "Candidates" not in update + child


def test_explain_of_a_refused_statement_has_the_hint_of_its_error(serving: Serving) -> None:
    sql = "INSERT INTO document (id, body) VALUES (1, 'a'), (DEFAULT, 'b')"
    with (
        psycopg.connect(dsn_of(serving), autocommit=True) as connection,
        pytest.raises(psycopg.errors.FeatureNotSupported) as caught,
    ):
        connection.execute(sql)
    hint = str(caught.value.diag.message_hint)
    assert f"Hint: {hint}" in explain(serving, sql)
    assert "Operation" not in explain(serving, sql)


def test_explain_of_a_wrong_statement_is_one_error(serving: Serving) -> None:
    done = run_command("explain", serving.path, "SELEC 1")
    assert done.returncode == 1
    assert "SQLSTATE 42601" in done.stderr
    assert "declared table" not in done.stderr
    assert "names a declared table" in run_command("explain", serving.path, "SELEC document").stderr


async def test_explain_takes_parameters_from_drivers_that_describe_first(serving: Serving) -> None:
    connection = await asyncpg.connect(dsn_of(serving))
    try:
        rows = await connection.fetch("EXPLAIN (FORESHARD) SELECT body FROM document WHERE id = $1", 2**52 + 5)
        assert rows[0][0] in ("By key: s0", "By key: s1")
        rows = await connection.fetch("EXPLAIN (FORESHARD) INSERT INTO document (body) VALUES ($1)", "x" * 500)
        assert "size 508 bytes" in "\n".join(row[0] for row in rows)
        rows = await connection.fetch("EXPLAIN (FORESHARD) SELECT body FROM document WHERE id = ANY($1)", [5, 6, 7])
        assert "Buckets: " in "\n".join(row[0] for row in rows)
    finally:
        await connection.close()
