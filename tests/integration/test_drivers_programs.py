"""psql and pgbench work through the proxy as they do without."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from foreshard.proxy.embedded import find_binaries
from tests.support.servers import Pair, Server

SETUP = (
    "DROP SCHEMA IF EXISTS shop CASCADE",
    "CREATE SCHEMA shop",
    "CREATE TABLE shop.customer (id serial PRIMARY KEY, name text NOT NULL UNIQUE, since date DEFAULT '2020-01-01')",
    "CREATE TABLE shop.purchase (id bigint PRIMARY KEY, customer_id int REFERENCES shop.customer,"
    " total numeric CHECK (total > 0))",
    "CREATE VIEW shop.large AS SELECT * FROM shop.purchase WHERE total > 100",
    "CREATE FUNCTION shop.twice(n int) RETURNS int LANGUAGE sql AS 'SELECT n * 2'",
    "CREATE TYPE shop.mood AS ENUM ('fine', 'bad')",
    "INSERT INTO shop.customer (name) VALUES ('Ann'), ('Bob')",
    "COMMENT ON TABLE shop.customer IS 'who buys'",
)
BACKSLASH = [
    r"\d", r"\d+", r"\dt", r"\dt+ shop.*", r"\d shop.customer", r"\d+ shop.purchase", r"\dv shop.*", r"\di shop.*",
    r"\ds shop.*", r"\df shop.*", r"\dT shop.*", r"\dn", r"\dn+ shop", r"\du", r"\l", r"\dp shop.*", r"\dx", r"\dd",
    r"\sf shop.twice", r"\sv shop.large", r"\conninfo", r"\dconfig work_mem",
    r"SELECT 1 AS a \gdesc", r"SELECT $1::int \bind 5 \g", r"SELECT 1 \; SELECT 2 \g", r"SELECT 'x' AS v \gset",
    r"SELECT format('SELECT %s', n) FROM generate_series(1, 3) n \gexec", r"\lo_list",
    r"\x \\ SELECT 1 AS a, 2 AS b",
]  # fmt: skip
# What tab completion asks for `SELECT * FROM sh<TAB>` and its like, from psql's own list of schema queries.
COMPLETION = [
    "SELECT n.nspname FROM pg_catalog.pg_namespace n WHERE substring(n.nspname, 1, 2) = 'sh' LIMIT 1000",
    "SELECT c.relname, NULL::pg_catalog.text FROM pg_catalog.pg_class c"
    " WHERE c.relkind IN ('r', 'S', 'v', 'm', 'f', 'p')"
    " AND (c.relname) LIKE 'cust%' AND pg_catalog.pg_table_is_visible(c.oid)"
    " AND c.relnamespace <> (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = 'pg_catalog')"
    " UNION ALL SELECT NULL::pg_catalog.text, n.nspname FROM pg_catalog.pg_namespace n"
    " WHERE n.nspname LIKE 'sh%' AND n.nspname NOT LIKE E'pg\\\\_%' LIMIT 1000",
    "SELECT a.attname FROM pg_catalog.pg_attribute a, pg_catalog.pg_class c WHERE c.oid = a.attrelid"
    " AND a.attnum > 0 AND NOT a.attisdropped AND (c.relname) = 'customer' ORDER BY 1",
]


def run_program(name: str, server: Server, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [find_binaries().folder / name, "-h", server.host, "-p", str(server.port), "-U", server.user, *words]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=120, check=False)


def psql(server: Server, script: str, *words: str) -> str:
    """Output and errors of a script, with the port and process ids that may differ taken out."""
    done = run_program("psql", server, "-X", "-q", *words, server.database, stdin=script)
    return (done.stdout + done.stderr).replace(str(server.port), "PORT")


@pytest.mark.parametrize("command", BACKSLASH)
def test_backslash_commands_of_psql_print_the_same(pair: Pair, command: str) -> None:
    pair.direct.run(*SETUP)
    expected = psql(pair.direct, command + "\n")
    heard = psql(pair.proxied, command + "\n")
    if "conninfo" in command:
        assert re.findall(r"(?m)^ *(.+?) +\|", heard) == re.findall(r"(?m)^ *(.+?) +\|", expected)
    else:
        assert heard == expected


@pytest.mark.parametrize("query", COMPLETION, ids=["schemas", "tables", "columns"])
def test_tab_completion_of_psql_finds_the_same(pair: Pair, query: str) -> None:
    pair.direct.run(*SETUP)
    expected = psql(pair.direct, query + ";\n")
    assert "(0 rows)" not in expected
    assert psql(pair.proxied, query + ";\n") == expected


def test_a_script_in_one_transaction_prints_the_same(pair: Pair) -> None:
    script = "SELECT 1;\nCREATE TABLE shop.made (a int);\nINSERT INTO shop.made VALUES (1);\nSELECT * FROM shop.made;\n"
    outputs = []
    for server in pair:
        pair.direct.run(*SETUP)
        outputs.append(psql(server, script, "-1"))
    assert outputs[0] == outputs[1]


def test_error_positions_and_on_error_rollback_print_the_same(pair: Pair) -> None:
    script = (
        "SELECT no_such FROM shop.customer;\n\\set ON_ERROR_ROLLBACK on\nBEGIN;\nSELECT 1/0;\nSELECT 2;\nCOMMIT;\n"
        "\\set FETCH_COUNT 2\nSELECT n FROM generate_series(1, 7) n;\n\\errverbose\n"
    )
    pair.direct.run(*SETUP)
    assert psql(pair.proxied, script) == psql(pair.direct, script)


def test_copy_by_psql_in_both_directions(pair: Pair, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.write_text("".join(f"{number}\t1\t{number}.5\n" for number in range(1, 3000)))
    for server in pair:
        pair.direct.run(*SETUP)
        copied = tmp_path / "copied"
        psql(server, f"\\copy shop.purchase from '{data}'\n\\copy (TABLE shop.purchase ORDER BY id) to '{copied}'\n")
        assert copied.read_text() == data.read_text()


def test_options_of_psql_at_connect(pair: Pair) -> None:
    """psql sends client_encoding and application_name at start-up."""
    done = run_program("psql", pair.proxied, "-X", "-A", "-t", "-c", "SHOW application_name", pair.proxied.database)
    assert done.stdout == "psql\n"


@pytest.mark.parametrize("mode", ["simple", "extended", "prepared"])
def test_pgbench_runs_in_every_mode(small_pair: Pair, mode: str) -> None:
    server = small_pair.proxied
    made = run_program("pgbench", server, "-i", "-q", server.database)
    assert made.returncode == 0, made.stderr
    for script in ("select-only", "tpcb-like", "simple-update"):
        ran = run_program(
            "pgbench",
            server,
            "-n",
            "-b",
            script,
            "-M",
            mode,
            "-c",
            "10",
            "-t",
            "30",
            "--random-seed=7",
            server.database,
        )
        assert ran.returncode == 0, ran.stderr
        assert "actually processed: 300/300" in ran.stdout
        assert "failed transactions: 0 " in ran.stdout
    with small_pair.direct.connect() as direct:
        sums = "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(delta) FROM pgbench_history)"
        assert direct.value(sums) == "t"


def test_pgbench_pipelines(small_pair: Pair, tmp_path: Path) -> None:
    script = tmp_path / "script.sql"
    lines = ["\\startpipeline", *(f"SELECT {number};" for number in range(10)), "\\endpipeline", "SELECT 1;"]
    script.write_text("\n".join(lines) + "\n")
    server = small_pair.proxied
    for mode in ("extended", "prepared"):
        ran = run_program(
            "pgbench", server, "-n", "-M", mode, "-c", "8", "-t", "20", "-f", str(script), server.database
        )
        assert ran.returncode == 0, ran.stderr
        assert "failed transactions: 0 " in ran.stdout


def test_pg_dump_reads_everything(pair: Pair) -> None:
    pair.direct.run(*SETUP)
    dumps = [run_program("pg_dump", server, "-n", "shop", server.database) for server in pair]
    kept = [[line for line in dump.stdout.splitlines() if "restrict" not in line] for dump in dumps]
    assert dumps[0].returncode == 0
    assert kept[1] == kept[0] or "0A000" in dumps[1].stderr or "not built" in dumps[1].stderr
