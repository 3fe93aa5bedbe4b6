"""Cycles in wait graphs over several shards, and who has to give way."""

from __future__ import annotations

import random

import pytest

from foreshard.proxy.control.waits import (
    PREPARED,
    Cycle,
    Node,
    OpenTransaction,
    Wait,
    choose_victim,
    find_cycles,
    lasting,
)

# Clients 1, 2, 3; client c has process 10 * c + s on shard s.
FIRST, SECOND, THIRD = (
    OpenTransaction(client, frozenset((shard, 10 * client + shard) for shard in range(3))) for client in (1, 2, 3)
)


def wait(shard: int, waiter: int, *blockers: int) -> Wait:
    """Client `waiter` waits on a shard for other clients."""
    pids = tuple(10 * blocker + shard for blocker in blockers)
    return Wait((shard, 10 * waiter + shard), "t", pids)


def nodes_of(cycles: list[Cycle]) -> list[set[Node]]:
    return [set(cycle.nodes) for cycle in cycles]


def test_two_transactions_that_wait_crosswise_are_a_cycle() -> None:
    cycles = find_cycles([FIRST, SECOND], [wait(0, 1, 2), wait(1, 2, 1)])
    assert nodes_of(cycles) == [{1, 2}]
    assert cycles[0].shards == {0, 1}


def test_a_cycle_through_three_transactions_is_found() -> None:
    waits = [wait(0, 1, 2), wait(1, 2, 3), wait(2, 3, 1)]
    assert nodes_of(find_cycles([FIRST, SECOND, THIRD], waits)) == [{1, 2, 3}]


def test_a_cycle_through_a_process_of_somebody_else_is_found() -> None:
    waits = [wait(0, 1, 2), Wait((1, 21), "t", (999,)), Wait((1, 999), "t", (11,))]
    assert nodes_of(find_cycles([FIRST, SECOND], waits)) == [{1, 2, (1, 999)}]


@pytest.mark.parametrize(
    "waits",
    [
        [],
        [wait(0, 1, 2)],
        [wait(0, 1, 2), wait(1, 1, 2)],
        [wait(0, 1, 2), wait(1, 2, 3)],
        [wait(0, 1, 1)],
        [wait(0, 1, 2), wait(0, 2, 1)],  # on one shard: PostgreSQL's own
        [Wait((0, 77), "t", (78,)), Wait((1, 78), "t", (77,))],  # equal numbers on two shards are two processes
    ],
)
def test_what_is_no_cycle_over_shards_is_none(waits: list[Wait]) -> None:
    assert find_cycles([FIRST, SECOND, THIRD], waits) == []


def test_cycles_without_a_common_member_are_all_found() -> None:
    others = [OpenTransaction(client, frozenset(((0, 10 * client), (1, 10 * client + 1)))) for client in (4, 5)]
    waits = [wait(0, 1, 2), wait(1, 2, 1), wait(0, 4, 5), wait(1, 5, 4)]
    assert sorted(map(sorted, nodes_of(find_cycles([FIRST, SECOND, *others], waits)))) == [[1, 2], [4, 5]]


def test_a_wait_for_a_prepared_part_is_one_for_its_coordinator() -> None:
    committing = OpenTransaction(1, FIRST.places, "aa")
    waits = [wait(1, 1, 2), Wait((0, 20), "t", (PREPARED,), "aa")]
    assert nodes_of(find_cycles([committing, SECOND], waits)) == [{1, 2}]
    assert find_cycles([FIRST, SECOND], waits) == []


def test_only_what_both_looks_saw_counts() -> None:
    before = [wait(0, 1, 2, 3), wait(1, 2, 1), wait(2, 3, 1)]
    now = [wait(0, 1, 3), Wait((1, 21), "later", (11,)), wait(2, 3, 1)]
    assert lasting(before, now) == [wait(0, 1, 3), wait(2, 3, 1)]
    prepared = Wait((0, 20), "t", (PREPARED,), "aa")
    assert lasting([prepared], [Wait((0, 20), "t", (PREPARED,), "bb")])[0].blocking_id == ""


def test_the_youngest_gives_way() -> None:
    (cycle,) = find_cycles([FIRST, SECOND, THIRD], [wait(0, 1, 2), wait(1, 2, 1)])
    everybody = [FIRST, SECOND, THIRD]
    started_s = {(0, 10): 30.0, (1, 11): 20.0, (0, 20): 10.0, (1, 21): 40.0, (0, 30): 50.0}
    assert choose_victim(cycle, everybody, started_s) is FIRST  # it has begun on shard 1, at 20
    assert choose_victim(cycle, everybody, {**started_s, (2, 12): 5.0}) is SECOND
    assert choose_victim(cycle, everybody, {}) is SECOND  # nothing is known: the one that connected last


def simple_cycles(edges: dict[tuple[int, int], int]) -> list[list[int]]:
    """Every cycle without a repeated node, found by trying all paths from its smallest node."""
    found = []

    def follow(path: list[int]) -> None:
        for waiter, blocker in edges:
            if waiter == path[-1] and blocker == path[0]:
                found.append(list(path))
            elif waiter == path[-1] and blocker > path[0] and blocker not in path:
                follow([*path, blocker])

    for start in {waiter for waiter, _ in edges}:
        follow([start])
    return found


@pytest.mark.parametrize("seed", range(200))
def test_random_graphs_have_the_cycles_that_trying_all_paths_finds(seed: int) -> None:
    source = random.Random(seed)
    clients = range(1, source.randrange(3, 9))
    transactions = [OpenTransaction(c, frozenset((s, 10 * c + s) for s in range(3))) for c in clients]
    edges: dict[tuple[int, int], int] = {}
    waits = []
    for waiter in clients:
        blockers = [blocker for blocker in source.sample(clients, source.randrange(0, 3)) if blocker != waiter]
        shard = source.randrange(3)
        waits.append(wait(shard, waiter, *blockers))
        edges |= {(waiter, blocker): shard for blocker in blockers}
    cycles = simple_cycles(edges)
    over_shards = [
        set(cycle)
        for cycle in cycles
        if len({edges[pair] for pair in zip(cycle, [*cycle[1:], cycle[0]], strict=True)}) > 1
    ]
    found = nodes_of(find_cycles(transactions, waits))
    assert all(cycle in over_shards for cycle in found)
    # A cycle on one shard may hide another until PostgreSQL has broken it.
    assert bool(found) == bool(over_shards) or len(over_shards) < len(cycles)
