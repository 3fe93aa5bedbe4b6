"""UPDATE of keys, taken apart for rows whose new home is another shard."""

from __future__ import annotations

import pytest

from foreshard._core.carry_plan import CarryPlan
from foreshard._core.template import RouteKind
from foreshard.proxy.routing.planner import Planner
from tests.support.routes import CATALOG


def plan(sql: str) -> CarryPlan:
    template = Planner(CATALOG).plan(sql.encode())
    assert template.kind in (RouteKind.ROUTE_KEYED, RouteKind.ROUTE_CARRY), template.reason
    assert isinstance(template.carry, CarryPlan)
    return template.carry


@pytest.mark.parametrize(
    ("sql", "select", "head", "tail"),
    [
        (
            """UPDATE "Sales"."Account" SET no = 7 WHERE no = 5""",
            """DELETE FROM "Sales"."Account" WHERE no = 5 RETURNING """
            """CASE WHEN foreshard.may_leave("Account".*, 2) THEN 7 END , "Account"."owner\"""",
            """INSERT INTO "Sales"."Account" ("no", "owner") OVERRIDING SYSTEM VALUE""",
            "",
        ),
        (
            """UPDATE "Sales"."Account" AS a SET owner = a.owner || $2, no = $3 WHERE a.no = $1 RETURNING a.*, $2""",
            """DELETE FROM "Sales"."Account" AS a WHERE a.no = $1 RETURNING """
            """CASE WHEN foreshard.may_leave("a".*, 2) THEN $3 END , a.owner || $2""",
            """INSERT INTO "Sales"."Account" AS "a" ("no", "owner") OVERRIDING SYSTEM VALUE""",
            "RETURNING a.*, $1",
        ),
        (
            """UPDATE "Sales"."Account" SET (owner, no) = (DEFAULT, no + 1) WHERE owner IS DISTINCT FROM 'x'""",
            """DELETE FROM "Sales"."Account" WHERE owner IS DISTINCT FROM 'x' RETURNING """
            """CASE WHEN foreshard.may_leave("Account".*, 2) THEN no + 1 END""",
            """INSERT INTO "Sales"."Account" ("no") OVERRIDING SYSTEM VALUE""",
            "",
        ),
    ],
)
def test_a_delete_returns_the_new_row_and_an_insert_takes_it(sql: str, select: str, head: str, tail: str) -> None:
    found = plan(sql)
    assert [found.select.decode(), found.head.decode(), found.tail.decode()] == [select, head, tail]
    assert found.is_move


def test_parameters_keep_their_clients_numbers() -> None:
    found = plan("""UPDATE "Sales"."Account" SET no = $4, owner = $2 WHERE no = $3 RETURNING $1::text""")
    assert (found.select_params, found.tail_params) == ((1, 2, 3), (0,))
    assert found.select_types == (25, 0, 20)


@pytest.mark.parametrize(
    "sql",
    [
        """UPDATE ONLY "Sales"."Account" SET no = no + 1""",
        """UPDATE "Sales"."Account" SET (no, owner) = (SELECT 1, 'x')""",
        """UPDATE "Sales"."Account" SET no = no + 1 RETURNING (SELECT 1)""",
        """UPDATE document SET id = id + 1""",
        """UPDATE symbol SET document_id = document_id + 1""",
    ],
)
def test_what_is_not_understood_for_certain_is_refused(sql: str) -> None:
    template = Planner(CATALOG).plan(sql.encode())
    assert template.kind == RouteKind.ROUTE_REFUSE
    assert template.refusal.sqlstate == "0A000"
