"""The world of the prediction bench is what it says, and the figures mean what they are called."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bench.prediction import q_errors, summarize
from bench.prediction.contestants import CONTESTANTS, Field, Rls
from bench.prediction.world import FUNCTIONS, make_events


def test_the_world_follows_from_the_seed() -> None:
    first, second = make_events(3, 2000), make_events(3, 2000)
    assert np.array_equal(first.measured, second.measured)
    assert np.array_equal(first.features, second.features)
    assert not np.array_equal(first.measured, make_events(4, 2000).measured)


def test_seventy_percent_of_the_functions_are_linear_and_ten_quadratic() -> None:
    kinds = make_events(1, 100).kinds
    assert [kinds.count(kind) for kind in ("linear", "n log n", "quadratic")] == [28, 8, 4]


def test_noise_has_mean_one_and_one_in_a_hundred_is_an_outlier() -> None:
    events = make_events(5, 100_000)
    ratio = events.measured / events.cost
    usual = ratio < 4
    assert np.mean(~usual) == pytest.approx(0.01, abs=0.002)
    assert ratio[usual].mean() == pytest.approx(1.0, abs=0.02)
    assert np.log(ratio[usual]).std() == pytest.approx(0.3, abs=0.02)


def test_functions_differ_by_orders_of_magnitude() -> None:
    events = make_events(6, 50_000)
    means = [events.cost[events.function == index].mean() for index in range(FUNCTIONS)]
    assert max(means) / min(means) > 100


def test_q_errors_and_wape_are_what_their_names_say() -> None:
    predicted, true = np.array([1.0, 4.0, 2.0]), np.array([2.0, 2.0, 2.0])
    assert q_errors(predicted, true).tolist() == [2.0, 2.0, 1.0]
    assert summarize(predicted, true)["wape"] == pytest.approx(3 / 6)


@pytest.mark.parametrize("name", CONTESTANTS)
def test_every_contestant_learns_a_constant_cost(name: str) -> None:
    field = Field(CONTESTANTS[name], 2)
    for _ in range(300):
        field.update(0, (1.0, 200.0, 5.0, 1.0), 0.02)
    assert field.predict(0, (1.0, 200.0, 5.0, 1.0)) == pytest.approx(0.02, rel=0.02)
    assert field.predict(1, (1.0, 200.0, 5.0, 1.0)) == pytest.approx(0.02)  # not measured: as the others


def test_the_floor_holds_for_every_contestant() -> None:
    field = Field(Rls, 1)
    for size in (1.0, 2.0, 3.0, 4.0):
        field.update(0, (1.0, size, 1.0, 1.0), 1.0 / size)
    assert field.predict(0, (1.0, 1e6, 1.0, 1.0)) > 0
    assert math.isfinite(field.predict(0, (1.0, 1e6, 1.0, 1.0)))
