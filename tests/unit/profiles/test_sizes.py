"""Complexity to expect of a row of some size."""

from __future__ import annotations

import pytest

from foreshard.proxy.profiles.sizes import Sizes


def test_nothing_is_expected_before_the_first_row() -> None:
    assert Sizes().complexity_at(100) is None


def test_rows_of_one_complexity_keep_it_at_any_size() -> None:
    sizes = Sizes()
    for size in (100, 5000, 200):
        sizes.add(size, 9)
    assert sizes.complexity_at(1_000_000) == pytest.approx(9)


def test_complexity_that_grows_with_size_is_expected_to_grow_on() -> None:
    sizes = Sizes()
    for size in range(10, 3000, 7):
        sizes.add(size, 4 + size / 8)
    assert sizes.complexity_at(800) == pytest.approx(104)
    assert sizes.complexity_at(10_000) == pytest.approx(1254)


def test_rows_of_one_size_and_rows_below_the_line_give_no_nonsense() -> None:
    sizes = Sizes()
    sizes.add(100, 3)
    sizes.add(100, 5)
    assert sizes.complexity_at(7) == pytest.approx(4)
    sizes.add(10_000, 5000)
    assert sizes.complexity_at(0) == 0
