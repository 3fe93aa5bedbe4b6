"""What a schema file may not hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from foreshard.proxy.control.schema_file import read_schema_file
from foreshard.proxy.errors import ConfigError

COPY = "must not hold COPY from or to the client: use INSERT, or load the rows through the proxy"
TRANSACTION = "must not hold BEGIN, COMMIT or ROLLBACK: the file runs inside one transaction"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("CREATE TABLE a (id int);\n-- é\n\nCOPY a FROM STDIN;\n", [f":4: {COPY}"]),
        ("COPY a TO STDOUT", [f":1: {COPY}"]),
        ("BEGIN;\nCREATE TABLE a ();\nCOMMIT;\nROLLBACK", [f":{line}: {TRANSACTION}" for line in (1, 3, 4)]),
        ("SAVEPOINT a", [f":1: {TRANSACTION}"]),
        ("CREATE TABEL a;\ncopy a\nfrom stdin", [f":2: {COPY}"]),
    ],
)
def test_what_cannot_run_in_the_transaction_is_named_with_its_line(
    tmp_path: Path, text: str, expected: list[str]
) -> None:
    file = tmp_path / "schema.sql"
    file.write_text(text)
    with pytest.raises(ConfigError) as raised:
        read_schema_file(file)
    assert raised.value.problems == [f"{file}{problem}" for problem in expected]


@pytest.mark.parametrize(
    "text",
    ["", "COPY a FROM '/file'", "CREATE FUNCTION f() RETURNS void LANGUAGE plpgsql AS 'BEGIN END'", "SYNTAX ERROR"],
)
def test_the_rest_is_left_to_postgresql(tmp_path: Path, text: str) -> None:
    file = tmp_path / "schema.sql"
    file.write_text(text)
    assert read_schema_file(file) == text


def test_a_file_that_is_gone_or_no_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.sql: No such file"):
        read_schema_file(tmp_path / "none.sql")
    (tmp_path / "binary.sql").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        read_schema_file(tmp_path / "binary.sql")
