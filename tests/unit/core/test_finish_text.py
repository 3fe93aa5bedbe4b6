"""Rows of shards as rows of SQL."""

from __future__ import annotations

import pytest

from foreshard._core.errors import SqlError
from foreshard._core.finish_text import check_parts

TYPES = (b"pg_catalog.int8", b"pg_catalog.text")


def test_the_first_row_is_cast_and_values_are_escape_strings() -> None:
    rows = [[b"1", b"it's"], [None, b"back\\slash"], [b"-3", b""]]
    assert check_parts(rows, TYPES) == (
        b"VALUES (E'1'::pg_catalog.int8, E'it''s'::pg_catalog.text), (NULL, E'back\\\\slash'), (E'-3', E'')"
    )


def test_null_in_the_first_row_has_its_type() -> None:
    assert check_parts([[None, None]], TYPES) == b"VALUES (NULL::pg_catalog.int8, NULL::pg_catalog.text)"


def test_no_rows_are_a_select_of_none() -> None:
    assert check_parts([], TYPES) == b"SELECT NULL::pg_catalog.int8, NULL::pg_catalog.text WHERE false"


def test_a_row_of_another_width_is_an_error() -> None:
    with pytest.raises(SqlError, match="malformed"):
        check_parts([[b"1"]], TYPES)
