"""What EXPLAIN (FORESHARD) says of its parameters' types."""

from __future__ import annotations

import pytest

from foreshard.proxy.routing import Planner
from tests.support.routes import CATALOG


@pytest.mark.parametrize(
    ("sql", "types"),
    [
        ("select 1", ()),
        ("select * from document where id = $1", (20,)),
        ("select * from document d where $2 = d.id and path = $1", (25, 20)),
        ("select * from document where id = any($1) limit $2", (1016, 20)),
        ("select * from document where id in ($1, $2) and size between $3 and 5", (20, 20, 23)),
        (
            "insert into document (path, size, meta) values ($1, $2, $3), ($4, lower($5)::int, null)",
            (25, 23, 3802, 25, 25),
        ),
        ("insert into document values ($1, $2)", (20, 25)),
        ("update document set price = $2, tags = $3 where id = $1", (20, 1700, 1009)),
        ("update document set path = $1::uuid::text where id = $2::int4", (2950, 23)),
        ("delete from document where id = $2", (25, 20)),
        ("select $1::int8[], $2", (1016, 25)),
        ("select * from plain where id = $1", (25,)),
        ("update document set path = $1", (25,)),
    ],
)
def test_parameters_have_the_types_of_casts_and_columns_else_text(sql: str, types: tuple[int, ...]) -> None:
    template = Planner(CATALOG).plan(f"explain (foreshard) {sql}".encode())
    assert template.parameters == types
