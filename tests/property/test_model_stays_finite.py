"""Whatever is measured, and however features hang together, nothing the learner says is NaN, infinite or negative."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from foreshard._core.model import Learner
from tests.reference.model import Learner as Reference

WORLDS: dict[str, Callable[[np.random.Generator], tuple[tuple[float, ...], float]]] = {
    "collinear": lambda random: ((1.0, *[random.lognormal(5, 1)] * 3), random.lognormal(0, 0.3)),
    "dead": lambda random: ((1.0, random.lognormal(5, 1), 0.0, 0.0), random.lognormal(0, 0.3)),
    "constant": lambda random: ((1.0, 100.0, 3.0, 1.0), random.lognormal(0, 0.3)),
    "huge": lambda random: ((1.0, 1e6 * random.lognormal(5, 1), 1e12 * random.random(), 1.0), 1e-9 * random.random()),
    "wild": lambda random: (
        (1.0, 10.0 ** random.integers(-9, 18), random.random(), 0.0),
        10.0 ** random.integers(-20, 18),
    ),
    "then nothing": lambda random: ((1.0, random.random(), 0.0, 1.0), float(random.random() < 0.0005)),
}


@pytest.mark.parametrize("world", WORLDS)
def test_it_never_leaves_the_finite_numbers_in_100_000_updates(world: str) -> None:
    learner = Learner((1e6, None, None, None))
    random = np.random.default_rng(16)
    for number in range(100_000):
        x, cost = WORLDS[world](random)
        learner.update(x, (cost, cost * 1e9, None, 0.0))
        if number % 97 == 0:
            assert all(0 <= value < math.inf for value in learner.predict(x))
    models = learner.models()
    assert all(0 <= value < math.inf for model in models for value in (*model[0], model[1], model[3]))
    assert Learner().restore(learner.state())


@pytest.mark.parametrize("world", WORLDS)
def test_the_reference_never_leaves_the_finite_numbers_either(world: str) -> None:
    learner = Reference((1e6, None, None, None))
    random = np.random.default_rng(17)
    for _ in range(1500):
        x, cost = WORLDS[world](random)
        learner.update(x, (cost, cost * 1e9, None, 0.0))
        assert all(0 <= value < math.inf for value in learner.predict(x))


numbers = st.floats() | st.floats(0, 1e6) | st.none()


@example([((0.0,) * 4, (0.0, 0.0, None, None)), ((2.0**54, 0.0, 0.0, 0.0), (0.0, 0.0, 1.0, 2.3e-309))])
@given(st.lists(st.tuples(st.tuples(*[st.floats()] * 4), st.tuples(*[numbers] * 4)), max_size=60))
def test_any_floats_are_survived(calls: list[tuple[tuple[float, ...], tuple[float | None, ...]]]) -> None:
    learner = Learner()
    for features, measured in calls:
        assert 0 <= learner.update(features, measured) < math.inf
        assert all(0 <= value < math.inf for value in learner.predict(features))
    assert Learner().restore(learner.state())
