"""What EXPLAIN (FORESHARD) says of a merged read."""

from __future__ import annotations

from foreshard.proxy.admin.explain import Explanation, explain_lines
from foreshard.proxy.routing import Planner
from tests.support.routes import CATALOG


def lines_of(sql: str, shards: tuple[str, ...] = ("s0", "s1")) -> list[str]:
    template = Planner(CATALOG).plan(sql.encode())
    told: Explanation = {"route": "scatter", "operation": "select", "shards": shards, "merge": template.merge}
    return explain_lines(told, ["s0", "s1"])


def test_sorting_and_limits_are_told() -> None:
    assert lines_of("select path from document order by size desc limit 3") == [
        "All shards, rows merged: s0, s1",
        "  Operation: select",
        "  Merge:",
        "    Each shard is asked: select size, path from document ORDER BY 1 DESC NULLS FIRST "
        "LIMIT <literal>::pg_catalog.int8",
        "    Rows are taken from the shards in order of column 1 DESC NULLS FIRST",
        "    LIMIT <literal> count the merged rows",
        "    The first 1 columns are not shown",
    ]


def test_totals_are_told() -> None:
    assert "    Rows of all shards become one: sum of column 1, greatest of column 2" in lines_of(
        "select count(*), max(size) from document"
    )


def test_the_text_that_a_shard_finishes_is_told() -> None:
    told = lines_of("select sum(size) / count(*) from document")
    assert told[-1].startswith("    One shard puts them together: SELECT")
    assert "FROM (rows)" in told[-1]


def test_rows_of_one_shard_are_not_merged() -> None:
    assert lines_of("select count(*) from document", ("s1",))[0] == "All shards, rows concatenated: s1"
