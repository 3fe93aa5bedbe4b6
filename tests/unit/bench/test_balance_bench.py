"""The workloads of the balance bench are what they say, and the rule keeps its promise on them."""

from __future__ import annotations

import numpy as np
import pytest

from bench.balance.predictions import learn_costs, predict_costs
from bench.balance.simulate import run_policy
from bench.balance.workload import CHILD, INSERT, MIXES, UPDATE, make_workload


@pytest.mark.parametrize("mix", MIXES)
def test_workloads_follow_from_the_seed(mix: str) -> None:
    first, second = make_workload(mix, 3, 2000, 200), make_workload(mix, 3, 2000, 200)
    assert np.array_equal(first.executed, second.executed)
    assert np.array_equal(first.root, second.root)
    assert not np.array_equal(first.executed, make_workload(mix, 4, 2000, 200).executed)


@pytest.mark.parametrize("mix", MIXES)
def test_writes_hit_roots_that_exist(mix: str) -> None:
    workload = make_workload(mix, 1, 5000, 100)
    existing = 100 + np.cumsum(workload.kind == INSERT)
    assert (workload.root >= 0).all()
    assert (workload.root < existing).all()
    inserted = workload.root[workload.kind == INSERT]
    assert inserted.tolist() == list(range(100, 100 + len(inserted)))
    shares = [float(np.mean(workload.kind == kind)) for kind in (INSERT, CHILD, UPDATE)]
    assert shares == pytest.approx(MIXES[mix], abs=0.03)


def test_costs_are_log_normal_as_fitted() -> None:
    logs = np.log(make_workload("A", 1, 50_000, 100).executed)
    assert logs.mean() == pytest.approx(-0.38 - 0.045, abs=0.05)
    assert logs.std() == pytest.approx(2.36, abs=0.03)


def test_updates_are_skewed_as_ycsb_is() -> None:
    workload = make_workload("B", 1, 50_000, 10_000)
    counts = np.bincount(workload.root[workload.kind == UPDATE])
    assert 0.03 < counts.max() / counts.sum() < 0.06


def test_mix_e_has_few_kinds_of_row_and_mix_c_keeps_a_rows_cost() -> None:
    fixed = make_workload("E", 1, 5000, 100)
    assert len(np.unique(fixed.cost)) == len(np.unique(fixed.features[:, 2])) == 24
    workload = make_workload("C", 1, 5000, 100)
    for root in range(100, 110):
        mine = (workload.root == root) & (workload.kind != CHILD)
        assert len(np.unique(workload.cost[mine])) == 1


def test_learned_predictions_are_close_once_warm() -> None:
    workload = make_workload("A", 1, 6000, 100)
    predicted, cost = learn_costs(workload)[3000:], workload.cost[3000:]
    errors = np.maximum(predicted / cost, cost / predicted)
    assert np.median(errors) < 1.15
    # Single rows can be far off: tiny ones by the floor of 2 % of the mean, huge ones of functions that are not linear.
    assert predicted.sum() / cost.sum() == pytest.approx(1, abs=0.35)


def test_made_up_errors_keep_the_mean_cost() -> None:
    workload = make_workload("A", 1, 50_000, 100)
    assert np.array_equal(predict_costs(workload, "noise-free"), workload.cost)
    ratio = predict_costs(workload, "error 100 %") / workload.cost
    assert ratio.mean() == pytest.approx(1, abs=0.03)
    assert np.abs(ratio - 1).mean() == pytest.approx(0.68, abs=0.05)


@pytest.mark.parametrize("mix", ["B", "E"])
def test_bounded_is_more_even_than_hashing_keys(mix: str) -> None:
    outcomes = {}
    for policy in ("bounded", "key-hash"):
        found = []
        for seed in (1, 2, 3):
            workload = make_workload(mix, seed, 6000, 600)
            found.append(run_policy(workload, predict_costs(workload, "noise-free"), policy, 8).max_over_mean)
        outcomes[policy] = sum(found)
    assert outcomes["bounded"] < outcomes["key-hash"]
