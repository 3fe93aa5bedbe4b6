"""Every statement of cases/*.txt has the route that stands below it."""

from __future__ import annotations

from pathlib import Path

import pytest

from foreshard.proxy.catalog import Catalog
from foreshard.proxy.routing import Planner
from tests.support.routes import CATALOG, QUERY_CATALOG, describe

CASES = Path(__file__).parent / "cases"
MARK = "    => "


def read_cases(name: str) -> list[tuple[str, str]]:
    """Pairs of statement and route; a statement may have several lines."""
    cases, statement = [], []
    for line in (CASES / name).read_text().splitlines():
        if line.startswith(MARK):
            cases.append(("\n".join(statement), line.removeprefix(MARK)))
            statement = []
        elif line and not line.startswith("#"):
            statement.append(line)
    assert not statement, f"{name}: no route for {statement}"
    return cases


CATALOGS = {"plain.txt": Catalog(), "query.txt": QUERY_CATALOG}


@pytest.mark.parametrize("name", sorted(path.name for path in CASES.glob("*.txt")))
def test_every_statement_goes_where_the_cases_say(name: str) -> None:
    planner = Planner(CATALOGS.get(name, CATALOG))
    wrong = [
        f"{sql}\n  expected {route}\n  found    {found}"
        for sql, route in read_cases(name)
        if (found := describe(planner.plan(sql.encode()))) != route
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", ["reads.txt", "joins.txt", "writes.txt", "other.txt"])
def test_every_refusal_says_what_would_work(name: str) -> None:
    for sql, route in read_cases(name):
        refusal = Planner(CATALOG).plan(sql.encode()).refusal
        if refusal is not None and refusal.sqlstate == "0A000":
            assert refusal.hint, f"{sql}: {route}"


def test_white_space_comments_and_case_of_key_words_change_no_route() -> None:
    planner = Planner(CATALOG)
    for sql, route in read_cases("joins.txt"):
        spaced = "/* id = 1 */\n" + sql.replace(" from ", "\n FROM/**/\t", 1) + " -- where id = 2"
        assert describe(planner.plan(spaced.encode())) == route, spaced
