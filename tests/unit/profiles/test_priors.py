"""What a call is expected to cost before anyone has measured it."""

from __future__ import annotations

import pytest

from foreshard.proxy.config import ProfilePrior, TriggerConfig
from foreshard.proxy.profiles import ceilings_of, first_known, geometric_mean, registered_prior


def test_the_geometric_mean_is_per_resource_over_what_is_known_and_not_zero() -> None:
    found = geometric_mean([(1.0, None, 0.0, None), (4.0, 3.0, None, None)])
    assert found == pytest.approx((2.0, 3.0, None, None))


def test_the_mean_of_nothing_is_unknown() -> None:
    assert geometric_mean([]) == (None, None, None, None)


def test_the_first_known_choice_wins_per_resource() -> None:
    assert first_known((None, 2.0, None, None), (1.0, 9.0, 0.0, None)) == (1.0, 2.0, 0.0, None)


def test_registered_costs_and_limits_come_from_the_configuration() -> None:
    trigger = TriggerConfig(
        name="t",
        table="document",
        on=("insert",),
        function="m:f",
        timeout_s=10.0,
        memory_bytes_max=1000,
        profile=ProfilePrior(cpu_s=0.005),
    )
    assert registered_prior(trigger.profile) == (0.005, None, None, None)
    assert ceilings_of(trigger) == (10.0, 10_000.0, None, None)
