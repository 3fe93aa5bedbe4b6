"""The text that shards run for a merged read, and how their answers are put together."""

from __future__ import annotations

import pytest

from foreshard._core.lexer import lift
from foreshard._core.merge_plan import Combine, MergePlan
from foreshard._core.template import RouteKind, Template
from foreshard.proxy.routing import Planner
from tests.support.routes import CATALOG


def plan(sql: str) -> Template:
    return Planner(CATALOG).plan(sql.encode())


def shards_text(sql: str) -> str:
    merge = plan(sql).merge
    assert merge is not None, plan(sql).refusal
    return merge.check_text(sql.encode(), lift(sql.encode())[1]).decode()


TEXTS = {
    "select count(*) from document": "select count(*) from document",
    "select id from document limit 3;": "select id from document LIMIT 3::pg_catalog.int8",
    "select path from document order by size desc": "select size, path from document ORDER BY 1 DESC NULLS FIRST",
    "select path p, - size as n from document order by 2, p nulls first": None,
    "select - size as size from document order by size": "select - size, - size as size from document "
    "ORDER BY 1 NULLS LAST",
    "select distinct size from document limit $2": "select distinct size, size from document "
    "ORDER BY 1 NULLS LAST LIMIT $2::pg_catalog.int8",
    "select size /* a */ from document -- b\norder by size fetch next 2 rows only": "select size, size from document "
    "ORDER BY 1 NULLS LAST LIMIT 2::pg_catalog.int8",
    "select size, count(*) from document group by 1 having max(size) > 3": "select size, max(size), "
    "(3)::pg_catalog.int4, size, count(*) from document group by 4 ORDER BY 1 NULLS LAST",
    "select avg(size) from document where path = 'it''s' and size is distinct from 3": "select sum(size), count(size), "
    "avg(size) from document where path = 'it''s' and size is distinct from 3",
    "with x as (select 1) select id from document order by id": "with x as (select 1) select id, id from document "
    "ORDER BY 1 NULLS LAST",
    "select d.id, count(*) from document d join symbol s on s.document_id = d.id group by d.id limit 1": "select d.id, "
    "count(*) from document d join symbol s on s.document_id = d.id group by d.id LIMIT 1::pg_catalog.int8",
}


@pytest.mark.parametrize("sql", TEXTS)
def test_shards_run_the_clients_text_with_hidden_columns(sql: str) -> None:
    expected = TEXTS[sql]
    if expected is None:
        assert plan(sql).merge is None
    else:
        assert shards_text(sql) == expected


def test_a_plan_serves_every_text_that_differs_in_literals_only() -> None:
    first, second = (
        b"select id from document where size < %s order by size - %s limit %s" % values
        for values in ((b"5", b"1", b"7"), (b"12345", b"99", b"100"))
    )
    merge = plan(first.decode()).merge
    assert merge is not None
    assert not plan(first.decode()).is_exact
    assert merge.check_text(second, lift(second)[1]) == (
        b"select size - 99, id from document where size < 12345 ORDER BY 1 NULLS LAST LIMIT 100::pg_catalog.int8"
    )


def test_an_average_is_made_of_hidden_sums_and_counts() -> None:
    merge = plan("select avg(size), sum(size) from document").merge
    assert merge is not None
    assert merge.hidden == 2
    assert merge.group == 0
    assert {(column, kind) for column, kind, _ in merge.combines} == {
        *((column, int(Combine.COMBINE_SUM)) for column in (0, 1, 3)),
        (2, int(Combine.COMBINE_AVG)),
    }


FINISHED = {
    "select sum(size) / count(*) from document where id > 5": (
        "select sum(size), count(*) from document where id > 5",
        "SELECT  pg_catalog.sum(foreshard_1)::pg_catalog.int8 / pg_catalog.sum(foreshard_2)::pg_catalog.int8  "
        'AS "?column?" FROM (',
        ") AS foreshard_parts(foreshard_1, foreshard_2)",
    ),
    "select size s, count(distinct id) from document group by s having count(*) > 3 order by 2 desc limit 7": (
        "select size, id, count(*) from document GROUP BY 1, 2",
        'SELECT foreshard_1 AS "s",  pg_catalog.count(DISTINCT foreshard_2)  AS "count" FROM (',
        ") AS foreshard_parts(foreshard_1, foreshard_2, foreshard_3) GROUP BY foreshard_1 HAVING "
        " pg_catalog.sum(foreshard_3)::pg_catalog.int8 > 3 ORDER BY 2 DESC NULLS FIRST LIMIT 7",
    ),
    "select coalesce(avg(size) filter (where id > 1), 0) from document": (
        "select pg_catalog.sum(size) filter (where id > 1), pg_catalog.count(size) filter (where id > 1) from document",
        "SELECT coalesce( (pg_catalog.sum(foreshard_1)::pg_catalog.numeric / NULLIF(pg_catalog.sum(foreshard_2), 0)) "
        ', 0) AS "coalesce" FROM (',
        ") AS foreshard_parts(foreshard_1, foreshard_2)",
    ),
    "select array_agg(distinct size) || 1 from document": (
        "select pg_catalog.array_agg(DISTINCT size) from document",
        "SELECT  (SELECT pg_catalog.array_agg(DISTINCT foreshard_list.v1) FROM ROWS FROM (pg_catalog.unnest(('{' || "
        "pg_catalog.string_agg(pg_catalog.substr(foreshard_1, 2, pg_catalog.length(foreshard_1) - 2), ',') || '}')"
        '::pg_catalog.int4[])) AS foreshard_list(v1)) || 1 AS "?column?" FROM (',
        ") AS foreshard_parts(foreshard_1)",
    ),
}


@pytest.mark.parametrize("sql", FINISHED)
def test_what_the_router_cannot_put_together_a_shard_does(sql: str) -> None:
    merge = plan(sql).merge
    assert merge is not None
    assert merge.finish is not None
    literals = lift(sql.encode())[1]
    whole = (
        shards_text(sql),
        *(MergePlan(pieces).check_text(sql.encode(), literals).decode() for pieces in merge.finish),
    )
    assert whole == FINISHED[sql]


@pytest.mark.parametrize(
    "sql",
    [
        "select path from document order by path",  # an order that only its collation knows
        "select path, count(*) from document group by path",
        "select meta from document order by meta",
        "select stddev(price::float8) from document",
        "select count(distinct path) from document",  # equal only if their collation says so
        "select percentile_cont(0.5) within group (order by size) from document",
        "select array_agg(tags) from document",  # lists of arrays
        "select array_agg(path order by path) from document",  # in an order that only its collation knows
        "select count(*) + $1 from document",
        "select count(*) + (select 1) from document",
        "select stddev(size) + 1 from document",
        "select distinct size from document order by price",  # an error in PostgreSQL
        "select count(*) from document order by size",  # as well
        "select size, rank() over (order by size) from document order by 1",
        "select id from document order by size using <",
        "select id from document order by id fetch first 3 rows with ties",
        "select id from document limit 1 + 1",
        "select size from document group by rollup (size)",
        "select string_agg(path, path) from document",
        "select *, - size as size from document order by size",
        "(select id from document) order by id",
        "select id from document where path = $$x$$ order by id",
    ],
)
def test_what_cannot_be_merged_exactly_is_refused(sql: str) -> None:
    found = plan(sql)
    assert found.merge is None
    assert found.kind == RouteKind.ROUTE_REFUSE
    assert found.refusal is not None
    assert found.refusal.sqlstate == "0A000"
