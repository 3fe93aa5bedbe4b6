"""Learning costs: the same behaviour of the compiled learner and of the plain reference."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from foreshard._core.model import Learner
from tests.reference.model import Learner as Reference

UNKNOWN = (None, None, None, None)
Measured = tuple[float | None, float | None, float | None, float | None]


@pytest.fixture(params=[Learner, Reference], ids=["compiled", "reference"])
def make(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Makes a learner of one of the implementations."""
    made: Callable[..., Any] = request.param
    return made


def cpu(seconds: float) -> Measured:
    return (seconds, None, None, None)


def rows(seed: int, count: int) -> Iterator[tuple[float, float, float, float]]:
    """Features of rows of very different sizes."""
    random = np.random.default_rng(seed)
    for _ in range(count):
        size = random.lognormal(6, 1)
        yield (1.0, size, 3.0 + random.poisson(5), float(random.integers(1, 5)))


def test_before_any_measurement_the_prior_predicts(make: Callable[..., Any]) -> None:
    learner = make(priors=(0.005, None, None, None))
    assert learner.predict((1, 100, 3, 1)) == (0.005, 0, 0, 0)
    assert learner.q_error() is None


def test_the_first_measurement_sets_the_scale(make: Callable[..., Any]) -> None:
    learner = make(priors=(100.0, None, None, None))
    learner.update((1, 100, 3, 1), cpu(0.002))
    assert learner.predict((1, 100, 3, 1))[0] == pytest.approx(0.002)


def test_a_linear_cost_is_found(make: Callable[..., Any]) -> None:
    learner = make()
    for x in rows(1, 1000):
        learner.update(x, cpu(0.001 + 2e-6 * x[1] + 1e-4 * x[2]))
    for x in rows(2, 50):
        assert learner.predict(x)[0] == pytest.approx(0.001 + 2e-6 * x[1] + 1e-4 * x[2], rel=0.02)


def test_noise_and_outliers_do_not_mislead_it(make: Callable[..., Any]) -> None:
    learner = make()
    random = np.random.default_rng(3)
    for x in rows(3, 2000):
        noise = random.lognormal(-0.045, 0.3) * (10 if random.random() < 0.01 else 1)
        learner.update(x, cpu((0.001 + 2e-6 * x[1]) * noise))
    q = [max(a / b, b / a) for a, b in ((learner.predict(x)[0], 0.001 + 2e-6 * x[1]) for x in rows(4, 200))]
    assert np.quantile(q, 0.95) < 1.2
    assert learner.q_error()[0] == pytest.approx(math.exp(0.3 * 0.6745), rel=0.15)  # the noise itself


def test_no_coefficient_is_negative_though_cost_falls_with_size(make: Callable[..., Any]) -> None:
    learner = make()
    for x in rows(5, 500):
        learner.update(x, cpu(1.0 / (1 + x[1])))
    assert min(learner.predict((1, 0, 0, 0))[0], learner.predict((1, 1e9, 0, 0))[0]) > 0


def test_resources_are_learned_apart(make: Callable[..., Any]) -> None:
    learner = make()
    for x in rows(6, 500):
        learner.update(x, (0.01, 1000 * x[1], None, 5.0))
    assert learner.predict((1, 200, 5, 1)) == pytest.approx((0.01, 2e5, 0, 5.0), rel=0.02)
    assert learner.resource_samples() == (500, 500, 0, 500)
    assert learner.means()[2] is None


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -1.0])
def test_an_unknown_measurement_is_skipped_and_never_zero(make: Callable[..., Any], value: float | None) -> None:
    learner = make()
    for x in itertools.islice(rows(7, 100), 100):
        learner.update(x, cpu(0.01))
        learner.update(x, (value, None, None, None))
    assert learner.predict((1, 100, 5, 1))[0] == pytest.approx(0.01)
    assert learner.samples == 100


def test_a_measurement_without_any_known_resource_changes_nothing(make: Callable[..., Any]) -> None:
    learner = make(priors=(0.5, None, None, None))
    learner.update((1, 10, 1, 1), UNKNOWN)
    assert learner.samples == 0
    assert learner.predict((1, 10, 1, 1))[0] == 0.5


def test_zeros_are_costs_and_the_first_that_is_not_sets_the_scale(make: Callable[..., Any]) -> None:
    learner = make()
    for _ in range(9):
        learner.update((1, 100, 3, 1), (None, None, 0.0, None))
    assert learner.predict((1, 100, 3, 1))[2] == 0
    learner.update((1, 100, 3, 1), (None, None, 4096.0, None))
    assert 100 < learner.predict((1, 100, 3, 1))[2] < 2000


@pytest.mark.parametrize(("share", "tolerance"), [(0.5, 0.15), (0.2, 0.3), (0.05, 0.35)])
def test_a_cost_that_most_calls_do_not_have_is_learned_as_its_mean_and_is_no_drift(
    make: Callable[..., Any], share: float, tolerance: float
) -> None:
    learner = make()
    random = np.random.default_rng(20)
    told = []
    for number, x in enumerate(rows(20, 3000)):
        memory = 1e6 * random.lognormal(-0.045, 0.3) * (random.random() < share)
        learner.update(x, (0.01 * random.lognormal(0, 0.2), memory, None, None))
        if number >= 500:
            told.append(learner.predict((1, 400, 8, 1))[1])
    assert np.mean(told) == pytest.approx(share * 1e6, rel=tolerance)
    assert learner.resets() <= 3
    assert learner.q_error()[1] < 1.6  # of the scalar: the CPU dominates


def test_predictions_stay_between_floor_and_ceiling(make: Callable[..., Any]) -> None:
    learner = make(ceilings=(30.0, None, None, None))
    for x in rows(8, 300):
        learner.update(x, cpu(1e-3 * x[1]))
    assert learner.predict((0, 0, 0, 0))[0] == pytest.approx(0.02 * learner.means()[0])
    assert learner.predict((1, 1e15, 0, 0))[0] == 30.0


def test_the_scalar_is_the_dominant_resource_after_capacity(make: Callable[..., Any]) -> None:
    learner = make(capacities=(2.0, 1e9, 100.0, 1.0))
    learner.update((1, 1, 1, 1), (1.0, 1e8, 500.0, None))
    assert learner.predict_scalar((1, 1, 1, 1)) == pytest.approx(5.0)


def test_it_recovers_within_a_hundred_samples_when_cost_grows_fivefold(make: Callable[..., Any]) -> None:
    learner = make()
    random = np.random.default_rng(9)
    for number, x in enumerate(rows(9, 1100)):
        factor = 5.0 if number >= 1000 else 1.0
        learner.update(x, cpu(factor * (0.001 + 2e-6 * x[1]) * random.lognormal(-0.045, 0.3)))
    assert learner.resets() >= 1
    off = [learner.predict(x)[0] / (5 * (0.001 + 2e-6 * x[1])) for x in rows(10, 100)]
    assert 1 / 1.5 < min(off) <= max(off) < 1.5


@pytest.mark.parametrize("noise", [0.05, 0.3])
def test_a_stationary_cost_seldom_looks_like_drift(make: Callable[..., Any], noise: float) -> None:
    learner = make()
    random = np.random.default_rng(11)
    for x in rows(11, 5000):
        learner.update(x, cpu((0.001 + 2e-6 * x[1]) * random.lognormal(0, noise)))
    assert learner.resets() <= 1


def test_a_profile_that_predicts_badly_counts_as_its_mean_until_it_is_reliable_again(make: Callable[..., Any]) -> None:
    learner = make()
    random = np.random.default_rng(12)
    for x in rows(12, 500):
        learner.update(x, cpu(0.01 * random.lognormal(0, 2)))
    assert learner.degraded
    assert learner.q_error()[1] > 4
    assert learner.predict((1, 1, 1, 1)) == learner.predict((1, 1e6, 50, 9))
    for x in rows(13, 600):
        learner.update(x, cpu(0.001 + 2e-6 * x[1]))
    assert not learner.degraded
    assert learner.predict((1, 1000, 5, 1))[0] == pytest.approx(0.003, rel=0.2)


def test_a_model_that_is_far_off_for_one_call_in_ten_is_kept_since_it_beats_the_mean(make: Callable[..., Any]) -> None:
    learner = make()
    random = np.random.default_rng(18)
    for _ in range(800):
        size = random.lognormal(8, 2)
        works = random.random() < 0.9  # the others cost next to nothing, and no feature says which they are
        learner.update((1, size, 1, 1), cpu(1e-4 + works * 2e-6 * size))
    assert learner.q_error()[1] > 4
    assert not learner.degraded
    assert learner.predict((1, 1e6, 1, 1))[0] > 5 * learner.predict((1, 1e4, 1, 1))[0]


def test_the_upper_bound_covers_about_95_of_100_calls(make: Callable[..., Any]) -> None:
    learner = make()
    random = np.random.default_rng(14)
    covered = 0
    for number, x in enumerate(rows(14, 4000)):
        cost = (0.001 + 2e-6 * x[1]) * random.lognormal(0, 0.4)
        covered += number >= 1000 and cost <= learner.upper_bound(x)
        learner.update(x, cpu(cost))
    assert 0.93 < covered / 3000 < 0.97


def test_both_implementations_say_the_same() -> None:
    compiled, reference = Learner((30, None, None, None)), Reference((30, None, None, None))
    random = np.random.default_rng(15)
    for number, x in enumerate(rows(15, 3000)):
        drift = 4.0 if number > 1500 else 1.0
        measured = (
            None if random.random() < 0.1 else drift * 1e-5 * x[1] * random.lognormal(0, 0.5),
            x[1] ** 1.5,
            4096.0 * (random.random() < 0.2),
            None,
        )
        assert compiled.update(x, measured) == pytest.approx(reference.update(x, measured), rel=1e-6)
        assert compiled.upper_bound(x) == pytest.approx(reference.upper_bound(x), rel=1e-6)
        assert compiled.degraded == reference.degraded
    assert compiled.resets() == reference.resets() > 0
    for resource in (None, 0, 1, 2):
        assert compiled.q_error(resource) == pytest.approx(reference.q_error(resource), rel=1e-6)


def test_features_that_are_no_numbers_count_as_nothing(make: Callable[..., Any]) -> None:
    learner = make()
    learner.update((1, math.nan, -5, math.inf), cpu(0.01))
    assert all(math.isfinite(value) for value in learner.predict((1, math.nan, -math.inf, math.inf)))


def trained(count: int = 300) -> Learner:
    learner = Learner()
    for x in rows(18, count):
        learner.update(x, (0.001 + 2e-6 * x[1], 1000.0, None, 0.0))
    return learner


def test_a_restored_learner_goes_on_as_if_nothing_had_happened() -> None:
    learner, restored = trained(), Learner()
    assert restored.restore(json.loads(json.dumps(learner.state())))
    assert restored.state() == learner.state()
    for x in rows(19, 50):
        assert restored.update(x, cpu(1e-5 * x[1])) == learner.update(x, cpu(1e-5 * x[1]))


def test_q_errors_go_on_after_a_restart() -> None:
    learner, restored = trained(), Learner()
    assert restored.restore(json.loads(json.dumps(learner.state())))
    x = (1.0, 300.0, 6.0, 2.0)
    for resource in (None, 0):
        assert restored.q_error(resource) == pytest.approx(learner.q_error(resource), rel=1e-3)
    assert restored.upper_bound(x) == pytest.approx(learner.upper_bound(x), rel=1e-3)


def test_a_state_kept_without_q_errors_is_of_use_all_the_same() -> None:
    state = trained().state()
    for part in (state, *state["fits"]):
        part.pop("ratios")
    del state["mean_ratios"]
    restored = Learner()
    assert restored.restore(state)
    assert restored.q_error() is None
    assert restored.predict((1.0, 300.0, 6.0, 2.0)) == trained().predict((1.0, 300.0, 6.0, 2.0))


def damage(state: dict[str, Any], how: str) -> dict[str, Any]:
    """A kept state that something happened to."""
    first = state["fits"][0]
    if how == "nan":
        first["gram"][1][1] = math.nan
    elif how == "negative":
        first["coefficients"][0] = -1.0
    elif how == "missing":
        del first["mean"]
    elif how == "short":
        first["moment"] = [1.0]
    elif how == "ratio":
        state["ratios"][3] = math.inf
    elif how == "ratios":
        state["mean_ratios"] = [0] * 257
    elif how == "fewer":
        state["fits"] = state["fits"][:3]
    else:
        first["evidence"] = -1.0
    return state


@pytest.mark.parametrize(
    "how", ["nan", "negative", "missing", "short", "fewer", "ratio", "ratios", "negative evidence"]
)
def test_a_damaged_state_is_refused_and_changes_nothing(how: str) -> None:
    learner = trained()
    before = learner.state()
    assert not learner.restore(damage(trained(50).state(), how))
    assert learner.state() == before


@pytest.mark.parametrize("state", [{}, {"samples": "many"}, {"samples": 1, "degraded": False, "fits": 7}])
def test_something_else_is_no_state(state: dict[str, Any]) -> None:
    assert not Learner().restore(state)


def test_published_models_predict_what_the_learner_does() -> None:
    learner = trained()
    x = (1.0, 300.0, 6.0, 2.0)
    for resource, (coefficients, floor, ceiling, mean) in enumerate(learner.models()):
        value = min(max(sum(a * b for a, b in zip(coefficients, x, strict=True)), floor), ceiling)
        assert value == pytest.approx(learner.predict(x)[resource])
        assert (mean > 0) == (learner.predict(x)[resource] > 0)


def test_capacities_must_be_above_zero() -> None:
    with pytest.raises(ValueError, match="above 0"):
        Learner(capacities=(1.0, 0.0, 1.0, 1.0))
