"""No text is planned twice, and none is given another's route."""

from __future__ import annotations

import pytest

from foreshard._core.statement_cache import StatementCache
from foreshard._core.template import RouteKind, Template


class CountingPlanner:
    """Plans everything alike and remembers what it was asked."""

    def __init__(self, *, is_exact: bool = False) -> None:
        self.asked: list[bytes] = []
        self.is_exact = is_exact

    def plan(self, sql: bytes) -> Template:
        self.asked.append(sql)
        return Template(RouteKind.ROUTE_DEFAULT, is_exact=self.is_exact, text=sql)


def test_texts_that_differ_in_literals_are_planned_once() -> None:
    planner = CountingPlanner()
    cache = StatementCache(planner.plan)
    first = cache.lookup(b"select * from t where a = 1 and b = 'x'")
    assert cache.lookup(b"select * from t\nwhere a = 23456 and b = 'it''s' -- done") is first
    assert cache.lookup(b"select * from t where a = 1 and b = 'x'") is first
    assert len(planner.asked) == cache.miss_count == 1
    assert cache.hit_count == 2
    assert cache.lookup(b"select * from t where a = 1.5 and b = 'x'") is not first


def test_an_exact_plan_serves_its_very_text_only() -> None:
    planner = CountingPlanner(is_exact=True)
    cache = StatementCache(planner.plan)
    first, second = cache.lookup(b"set a = 1"), cache.lookup(b"set a = 2")
    assert first is not second
    assert cache.lookup(b"set a = 1") is first
    assert cache.lookup(b"set a = 2") is second
    assert len(planner.asked) == 2
    assert cache.lookup(b"set  a = 1") is not first


def test_an_exact_plan_without_literals_serves_every_spacing() -> None:
    planner = CountingPlanner(is_exact=True)
    cache = StatementCache(planner.plan)
    assert cache.lookup(b"begin") is cache.lookup(b" begin /* now */")
    assert len(cache) == 1


def test_odd_texts_are_planned_each_time() -> None:
    planner = CountingPlanner()
    cache = StatementCache(planner.plan)
    for _ in range(3):
        cache.lookup(b"select 'unterminated")
    assert len(planner.asked) == 3
    assert len(cache) == 0


@pytest.mark.parametrize("entries_max", [2, 3, 16])
def test_the_cache_holds_no_more_entries_than_allowed(entries_max: int) -> None:
    cache = StatementCache(CountingPlanner().plan, entries_max=entries_max)
    for number in range(200):
        text = f"select column_{number}".encode()
        found = cache.lookup(text)
        assert found.text == text
        assert len(cache) == min(number + 1, entries_max)
    assert cache.eviction_count == 200 - entries_max
    assert cache.size_bytes == sum(len(f"select column_{number}") for number in range(200 - entries_max, 200))


def test_the_cache_holds_no_more_bytes_than_allowed() -> None:
    cache = StatementCache(CountingPlanner().plan, bytes_max=1000)
    for number in range(100):
        cache.lookup(b"select " + b"x" * 90 + str(number).encode())
        assert cache.size_bytes <= 1000
    cache.lookup(b"select " + b"y" * 2000)
    assert cache.size_bytes <= 1000


def test_what_is_used_stays_while_others_come_and_go() -> None:
    planner = CountingPlanner()
    cache = StatementCache(planner.plan, entries_max=8)
    kept = cache.lookup(b"select kept")
    for number in range(100):
        cache.lookup(f"select column_{number}".encode())
        assert cache.lookup(b"select kept") is kept


def test_every_template_stays_right_under_eviction() -> None:
    for is_exact in (False, True):
        cache = StatementCache(CountingPlanner(is_exact=is_exact).plan, entries_max=7)
        for number in range(2000):
            text = f"select column_{number * 7919 % 23} + 1".encode()
            assert cache.lookup(text).text == text


def test_invalidate_forgets_everything_and_takes_the_new_planner() -> None:
    old, new = CountingPlanner(), CountingPlanner()
    cache = StatementCache(old.plan)
    before = cache.lookup(b"select 1")
    cache.invalidate(new.plan, 7)
    assert len(cache) == cache.size_bytes == 0
    assert cache.lookup(b"select 1") is not before
    assert before.text == b"select 1"
    assert new.asked == [b"select 1"]
    assert cache.catalog_version == 7


def test_an_error_of_the_planner_leaves_the_cache_as_it_was() -> None:
    def fail(sql: bytes) -> Template:
        raise ValueError(sql)

    cache = StatementCache(fail)
    with pytest.raises(ValueError, match="select 1"):
        cache.lookup(b"select 1")
    assert len(cache) == 0


def test_a_cache_of_fewer_than_two_entries_is_refused() -> None:
    with pytest.raises(ValueError, match="at least two"):
        StatementCache(CountingPlanner().plan, entries_max=1)
