"""What the moves bench would find wrong, and how it counts, without shards."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from bench.moves import truth
from bench.moves.command import FULL, SMALL
from bench.moves.driving import Made
from bench.moves.figures import pauses
from bench.moves.load import Done
from bench.moves.phases import Length, Phase, Run, choose, split_moves
from bench.moves.probe import Probed
from bench.moves.world import Account, Size, World

ACCOUNTS = [(1, 2, 1), (2, 0, 0)]  # id, n, probed
ENTRIES = [(10, 1), (11, 1), (12, 2)]  # id, account


def found_in(
    monkeypatch: pytest.MonkeyPatch, accounts: list[tuple[int, int, int]], entries: list[tuple[int, int]]
) -> tuple[int, int]:
    """What is lost and doubled when shards have these rows, and clients were told of those above."""

    def read(_dsns: object, sql: str, columns: int) -> truth.Rows:
        return np.array(accounts if sql == truth.ACCOUNTS else entries, dtype=np.int64).reshape(-1, columns)

    monkeypatch.setattr(truth, "read", read)
    done = Done(owned=[{1: Account(n=2, entries=2)}, {2: Account(entries=1)}], entries=[11, 12])
    found = truth.check([], done, Probed(written=Counter({1: 1})))
    return found.lost, found.doubled


def test_rows_that_are_as_acknowledged_are_found_right(monkeypatch: pytest.MonkeyPatch) -> None:
    assert found_in(monkeypatch, ACCOUNTS, ENTRIES) == (0, 0)


@pytest.mark.parametrize(
    ("accounts", "entries"),
    [
        (ACCOUNTS[:1], ENTRIES),
        ([(1, 1, 1), (2, 0, 0)], ENTRIES),
        ([(1, 2, 0), (2, 0, 0)], ENTRIES),
        (ACCOUNTS, ENTRIES[1:]),
        (ACCOUNTS, [(10, 1), (99, 1), (12, 2)]),
    ],
    ids=["row", "update", "probe's update", "entry of the beginning", "acknowledged entry"],
)
def test_what_is_lost_is_found(
    monkeypatch: pytest.MonkeyPatch, accounts: list[tuple[int, int, int]], entries: list[tuple[int, int]]
) -> None:
    lost, doubled = found_in(monkeypatch, accounts, entries)
    assert lost > 0
    assert doubled == 0


@pytest.mark.parametrize(
    ("accounts", "entries"),
    [
        ([*ACCOUNTS, (2, 0, 0)], ENTRIES),
        ([*ACCOUNTS, (3, 0, 0)], ENTRIES),
        ([(1, 3, 1), (2, 0, 0)], ENTRIES),
        (ACCOUNTS, [*ENTRIES, (10, 1)]),
    ],
    ids=["row", "row of nobody", "update", "entry"],
)
def test_what_is_doubled_is_found(
    monkeypatch: pytest.MonkeyPatch, accounts: list[tuple[int, int, int]], entries: list[tuple[int, int]]
) -> None:
    lost, doubled = found_in(monkeypatch, accounts, entries)
    assert lost == 0
    assert doubled > 0


def test_the_longest_write_of_a_move_is_one_that_lies_in_it() -> None:
    move = Made(7, Size.SMALL, 0, 1, "done", "small", 5, 0, 1, 0.2, "", begun_s=10.0, ended_s=10.5)
    probed = Probed(began_s=[1.0, 9.9, 10.2, 10.4, 11.0], took_s=[0.01, 0.05, 0.1, 0.3, 9.0])
    run = Run(phases=[Phase(False, 0.5, 2.0), Phase(True, 9.0, 12.0)], moves=[move], probed=probed)
    (found,) = pauses(run, 1)
    assert found["write_longest_s"] == 0.3
    assert found["write_longest_quiet_s"] in (0.0, 0.01)


@pytest.mark.parametrize("length", [FULL, SMALL], ids=["full", "small"])
def test_each_phase_moves_its_part_of_every_size(length: Length) -> None:
    draw = random.Random(1)
    world = World([], {Size.SMALL: list(range(90))})
    for size, counts in length.rows.items():
        world.buckets[size] = [1000 * list(Size).index(size) + number for number in range(len(counts))]
    phases = split_moves(length, draw)
    assert Counter(size for sizes in phases for size in sizes) == length.moves
    for sizes in phases:
        chosen = choose(world, sizes, draw)
        assert [size for _, size in chosen] == sizes
        assert all(bucket in world.buckets[size] for bucket, size in chosen)
        assert len(set(chosen)) == len(chosen)
