"""The balance bench on real shards, without the shards."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from bench.balance import burning
from bench.balance.real import REPEATED, SEEDS, plan_runs
from foreshard.proxy.placement import POLICIES


def test_every_policy_runs_once_and_the_important_ones_with_every_seed() -> None:
    planned = plan_runs(5)
    assert len(set(planned)) == len(planned)
    for mix in ("A", "B"):
        for policy in POLICIES:
            seeds = [seed for run_mix, seed, run_policy in planned if (run_mix, run_policy) == (mix, policy)]
            assert seeds == [5 + i for i in range(SEEDS if policy in REPEATED else 1)]


@pytest.mark.parametrize(
    ("function", "row", "cost_s"),
    [
        (burning.burn_payload, {"payload": "x" * 1000, "noise": 0.5}, 0.0025),
        (burning.burn_tags, {"tags": [1, 1, 1, 1], "noise": 2.0}, 0.004),
    ],
)
def test_a_row_burns_what_its_columns_say(function: object, row: dict[str, object], cost_s: float) -> None:
    assert callable(function)
    before_s = time.thread_time()
    function(SimpleNamespace(new=row))
    assert time.thread_time() - before_s >= cost_s
