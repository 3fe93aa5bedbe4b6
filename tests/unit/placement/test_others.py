"""Loads that several proxies keep of the same shards: what they tell each other adds up to what is there."""

from __future__ import annotations

import pytest

from foreshard.proxy.placement import Placer, SharedState
from foreshard.proxy.placement.others import OthersLoad, Told, add_up, let_go, own_load, take_over

NAMES = ("a", "b")


def exchange(*states: SharedState) -> None:
    """Each tells and hears, all at one moment."""
    owns = [own_load(state, NAMES) for state in states]
    for state, own in zip(states, owns, strict=True):
        take_over(state, own, [other.told for other in owns if other is not own], NAMES, 1.0)


def pair() -> tuple[SharedState, SharedState]:
    return SharedState.private(2), SharedState.private(2)


def test_each_knows_the_load_of_both() -> None:
    one, two = pair()
    Placer(one).charge_known(0, 10.0)
    Placer(two).charge_known(1, 4.0)
    two.add_measured(1, 3.0, settled=1.0)
    exchange(one, two)
    assert one.loads() == two.loads() == [10.0, 3.0 + 4.0 - 1.0]
    assert (one.proxies, one.heard_s) == (2, 1.0)


def test_what_one_placed_and_the_other_measured_counts_once() -> None:
    one, two = pair()
    Placer(one).charge_known(0, 10.0)
    exchange(one, two)
    two.add_measured(0, 12.0, settled=10.0)
    assert two.loads()[0] == 12.0
    exchange(one, two)
    assert one.loads() == two.loads() == [12.0, 0.0]
    assert two.shard(0).others_pending == 10.0
    assert one.shard(0).others_pending == -10.0


def test_what_waits_is_shared_by_those_who_count_it() -> None:
    one, two = pair()
    for state, cost in ((one, 30.0), (two, 10.0)):
        Placer(state).charge_known(0, cost)
    exchange(one, two)
    waiting = 6.0  # all else was rolled back, or fired nothing
    for state in (one, two):
        state.settle_all(0, state.shard(0).placed - waiting / state.proxies)
    exchange(one, two)
    assert one.loads() == two.loads() == [waiting, 0.0]


def test_own_placements_that_nobody_was_told_of_count_for_every_proxy() -> None:
    states = [SharedState.private(2) for _ in range(3)]
    placer = Placer(states[0], seed=1)
    placer.charge_known(0, 5.0)
    exchange(*states)
    assert states[0].loads() == [5.0, 0.0]
    placer.charge_known(0, 2.0)
    assert states[0].loads() == [5.0 + 3 * 2.0, 0.0]
    exchange(*states)
    assert [state.loads() for state in states] == [[7.0, 0.0]] * 3


def test_a_proxy_that_is_alone_counts_its_own_once() -> None:
    state = SharedState.private(2)
    Placer(state).charge_known(0, 5.0)
    exchange(state)
    Placer(state).charge_known(0, 5.0)
    assert state.loads() == [10.0, 0.0]


def test_telling_twice_changes_nothing() -> None:
    one, two = pair()
    Placer(one).charge_known(0, 10.0)
    exchange(one, two)
    exchange(one, two)
    assert one.loads() == two.loads() == [10.0, 0.0]


def test_rows_that_others_placed_put_a_shard_out() -> None:
    one, two = pair()
    for placed in (one, two):
        for _ in range(400):
            Placer(placed, "key-hash").place_known(0.0, only_shard=0)
    fresh, _ = pair()
    assert crowded(fresh) == {0: False, 1: False}
    exchange(fresh, one, two)
    assert crowded(fresh) == {0: True, 1: False}


def crowded(state: SharedState) -> dict[int, bool]:
    """Whether too many rows are on a shard, as the candidates of some rows tell."""
    told = [Placer(state, seed=seed).explain([1, 1, 1, 1], []) for seed in range(8)]
    return dict(sorted((each["shard"], each["crowded"]) for one in told for each in one["candidates"]))


def test_load_that_only_others_have_seen_steers_new_rows() -> None:
    one, two = pair()
    for _ in range(50):
        Placer(one).charge_known(0, 1.0)
    exchange(one, two)
    placer = Placer(two, seed=1)
    chosen = [placer.place_known(1.0) for _ in range(40)]
    assert chosen.count(1) > 30


def test_shards_go_by_name_and_may_be_more_or_fewer() -> None:
    others = [Told(("b", "c"), (1.0, 9.0), (2.0, 9.0), (3.0, 9.0)), Told(("b", "a", "d"), (10.0,), (20.0,), (30.0,))]
    assert add_up(others, NAMES) == [OthersLoad(), OthersLoad(11.0, 22.0, 33.0)]


def test_who_is_not_heard_any_more_leaves_what_was_measured() -> None:
    one, two = pair()
    Placer(two).charge_known(0, 10.0)
    two.add_measured(0, 3.0, settled=1.0)
    exchange(one, two)
    Placer(one).charge_known(0, 1.0)
    assert one.loads()[0] == pytest.approx(3.0 + 9.0 + 2 * 1.0)
    let_go(one)
    assert one.loads() == [3.0 + 1.0, 0.0]
    assert one.proxies == 1


def test_there_is_at_least_one_proxy() -> None:
    with pytest.raises(ValueError, match="at least one"):
        SharedState.private(1).set_proxies(0, 0.0)
