"""`foreshard plan`, `apply` and `check` as an operator calls them: output and exit codes."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from foreshard.proxy.__main__ import main
from tests.support.deployment import SCHEMA
from tests.support.postgres import Shards


@pytest.fixture
def file(one_shard: Shards, tmp_path: Path) -> str:
    """A configuration file over one shard."""
    (tmp_path / "schema.sql").write_text(SCHEMA)
    path = tmp_path / "foreshard.yaml"
    path.write_text(
        f"shards: [{{name: s0, dsn: '{one_shard.dsns[0]}'}}]\n"
        "schema: schema.sql\n"
        "tables:\n  document: {key: id}\n  symbol: {key: id}\n  language: {reference: true}\n"
        "triggers:\n  t: {table: document, on: [insert], function: 'm:f'}\n"
    )
    return str(path)


def test_plan_prints_sql_that_makes_what_is_lacking(
    file: str, one_shard: Shards, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "-c", file]) == 1
    printed = capsys.readouterr().out
    assert "-- note: public.symbol lives with public.document via document_id, by its foreign key" in printed
    with psycopg.connect(one_shard.dsns[0], autocommit=True) as connection:
        connection.execute(printed)
    assert one_shard.query("SELECT count(*) FROM foreshard.bucket_map") == [(4096,)]
    assert main(["apply", "-c", file]) == 0
    assert main(["plan", "-c", file]) == 0


def test_apply_reports_progress_then_nothing_to_do(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["apply", "-c", file]) == 0
    first = capsys.readouterr().out.splitlines()
    assert first[0].startswith("[1/1] shard s0, control database (127.0.0.1:")
    assert first[1].startswith("made ")
    assert main(["apply", "-c", file]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "nothing to do"
    assert main(["plan", "-c", file]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "nothing to do"


def test_a_summary_names_objects_only(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "-s", "-c", file]) == 1
    printed = capsys.readouterr().out
    assert "-- generated key of public.document" in printed
    assert "CREATE" not in printed


def test_a_refusal_is_exit_code_2_and_one_line_for_each_problem(
    file: str, one_shard: Shards, capsys: pytest.CaptureFixture[str]
) -> None:
    one_shard.execute(SCHEMA + "ALTER TABLE document DROP CONSTRAINT document_pkey CASCADE; ALTER TABLE symbol DROP id")
    assert main(["plan", "-c", file]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith(f"foreshard: {file}: tables.") for line in lines)


def test_a_mistake_in_the_file_is_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "f.yaml"
    path.write_text("listen: nowhere\n")
    assert main(["plan", "-c", str(path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_check_warns_of_what_tests_switch_off(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["apply", "-c", file]) == 0
    assert main(["check", "-q", "-c", file]) == 0
    printed = capsys.readouterr().out
    assert "warn  shard s0  fsync               off" in printed
    assert "ok, 3 warnings, 0 failures" in printed


def test_check_fails_for_a_user_without_privileges(
    file: str, one_shard: Shards, capsys: pytest.CaptureFixture[str]
) -> None:
    one_shard.execute(SCHEMA)
    role = one_shard.dsns[0].rpartition("/")[2] + "_poor"
    one_shard.execute(f"CREATE ROLE {role} LOGIN CONNECTION LIMIT 3")
    try:
        text = Path(file).read_text()
        Path(file).write_text(text.replace("//app@", f"//{role}@"))
        assert main(["check", "-c", file]) == 1
        printed = capsys.readouterr().out
        assert f"{role}: no" in printed
        assert printed.count("not the owner") == 3
        assert "clients will hear 53300" in printed
    finally:
        one_shard.execute(f"DROP ROLE {role}")


def test_check_goes_on_past_a_shard_that_is_down(
    file: str, one_shard: Shards, capsys: pytest.CaptureFixture[str]
) -> None:
    text = Path(file).read_text()
    Path(file).write_text(text.replace("shards: [", "shards: [{name: down, dsn: 'postgresql://app@127.0.0.1:1/x'}, "))
    assert main(["check", "-c", file]) == 1
    printed = capsys.readouterr().out
    assert "fail  shard down" in printed
    assert "gets no new ones" in printed
    assert "shard s0" in printed


def test_check_fails_when_a_reference_table_differs(
    three_shards: Shards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    three_shards.execute(SCHEMA + "INSERT INTO language VALUES ('py', 'Python'), ('c', 'C')")
    path = tmp_path / "f.yaml"
    shards = ", ".join(f"{{name: {shard.name}, dsn: '{shard.dsn}'}}" for shard in three_shards.shards)
    path.write_text(f"shards: [{shards}]\ntables: {{language: {{reference: true}}}}\n")
    assert main(["check", "-c", str(path)]) == 0
    three_shards.execute("UPDATE language SET name = 'Cython' WHERE code = 'py'", on=1)
    assert main(["check", "-c", str(path)]) == 1
    assert "fail  all shards  reference table public.language" in capsys.readouterr().out


def test_check_tells_what_keeps_buckets_from_moving(
    two_shards: Shards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    database = two_shards.dsns[0].rpartition("/")[2]
    role = f"{database}_mover"
    path = tmp_path / "f.yaml"
    dsns = [shard.dsn.replace("//app@", f"//{role}@") for shard in two_shards.shards]
    path.write_text(f"shards: [{{name: s0, dsn: '{dsns[0]}'}}, {{name: s1, dsn: '{dsns[1]}'}}]\n")
    two_shards.execute(f"CREATE ROLE {role} LOGIN; GRANT CREATE ON DATABASE {database} TO {role}")
    isolation = "SET default_transaction_isolation ="
    try:
        assert main(["check", "-q", "-c", str(path)]) == 0
        printed = capsys.readouterr().out
        assert printed.count("privilege to set session_replication_role") == 2
        assert f"GRANT SET ON PARAMETER session_replication_role TO {role}" in printed
        two_shards.execute(f"GRANT SET ON PARAMETER session_replication_role TO {role}")
        two_shards.execute(f"ALTER ROLE {role} {isolation} 'read uncommitted'")  # which is the same
        two_shards.execute(f"ALTER DATABASE postgres {isolation} serializable")  # somebody else's
        assert main(["check", "-q", "-c", str(path)]) == 0
        printed = capsys.readouterr().out
        assert "session_replication_role" not in printed
        assert "RESET default_transaction_isolation" not in printed
        two_shards.execute(f"ALTER ROLE {role} {isolation} serializable", on=1)
        two_shards.execute(f"ALTER DATABASE {database} {isolation} 'repeatable read'", on=1)
        two_shards.execute(f"ALTER ROLE app IN DATABASE {database} {isolation} 'repeatable read'", on=1)
        assert main(["check", "-q", "-c", str(path)]) == 0
        printed = capsys.readouterr().out
        for target in (f"ROLE {role}", f"DATABASE {database}", f"ROLE app IN DATABASE {database}"):
            assert f"ALTER {target} RESET default_transaction_isolation" in printed
    finally:
        two_shards.execute("ALTER DATABASE postgres RESET default_transaction_isolation")
        two_shards.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
