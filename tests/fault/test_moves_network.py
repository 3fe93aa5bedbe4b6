"""The network fails while buckets move: resets in the middle of messages, silence longer than a router's lease.

A relay (tests/support/relay) stands before each shard for everything that goes by the configuration; the test's own
questions go past it. Another stands before the control database, whose answers may be late, too.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.fault.test_moves_cut import EFFECT, FUNCTIONS, HELD_UP, SOURCE, TARGET, TRIGGERS, Disturbed
from tests.support.fault_matrix import Case, end_moves
from tests.support.moving import COUNT_OPEN, MOVED_BY_HAND, TABLES, MovingWorld, moving_shards
from tests.support.postgres import Shards, TestInstances
from tests.support.proxy import Proxy
from tests.support.relay import Relay
from tests.support.waiting import wait_until

SHARD_COUNT = 3
SILENT_S = 8.0  # longer than a router is waited for
DELAY_S = 0.2
RESET_MOVES = 4
RESET_TIMES = 4  # for each move: again and again, but not for ever
RESET_SHARE = 0.4
ENDS = {"goes on": "then all of it is delivered", "is reset": "then all of it is lost"}


@pytest.fixture(scope="module")
def shards(test_instances: TestInstances) -> Iterator[Shards]:
    yield from moving_shards(test_instances, SHARD_COUNT, EFFECT)


@pytest.fixture
def fresh(test_instances: TestInstances) -> Iterator[Shards]:
    yield from moving_shards(test_instances, SHARD_COUNT)


@contextlib.contextmanager
def relayed(dsns: Sequence[str]) -> Iterator[list[Relay]]:
    """A relay before each."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Relay(dsn, index)) for index, dsn in enumerate(dsns)]


@pytest.fixture(scope="module")
def relays(shards: Shards) -> Iterator[list[Relay]]:
    with relayed(shards.dsns) as made:
        yield made


@pytest.fixture(scope="module")
def proxy(relays: list[Relay], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """One proxy with workers for most tests here."""
    folder = tmp_path_factory.mktemp("network")
    (folder / "functions.py").write_text(FUNCTIONS)
    sections = {"triggers": TRIGGERS, "workers": {"per_shard": 1}, "rebalance": {"automatic": False}}
    with Proxy([relay.dsn for relay in relays], folder, tables=TABLES, **sections) as made:
        yield made


def be_silent(relays: Sequence[Relay], end: str) -> None:
    """Nothing goes through for a while."""
    for relay in relays:
        relay.silence()
    time.sleep(SILENT_S)  # the fault's own length
    for relay in relays:
        if end == "is reset":
            relay.reset_all()
        relay.go_on()


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("on", [SOURCE, TARGET])
def test_a_shard_is_silent(case: Case, shards: Shards, proxy: Proxy, relays: list[Relay], on: str, end: str) -> None:
    disturbed = Disturbed(shards, proxy, 500 + 10 * [SOURCE, TARGET].index(on) + list(ENDS).index(end))
    disturbed.run(on, lambda index: be_silent([relays[index]], end))
    victim = f"the network to the {on} shard: silent for {SILENT_S:g} s, {ENDS[end]}"
    disturbed.end(case, victim, HELD_UP, may_break=True)


@pytest.mark.parametrize("on", [SOURCE, TARGET])
def test_connections_to_a_shard_are_reset_again_and_again(
    case: Case, shards: Shards, proxy: Proxy, relays: list[Relay], on: str
) -> None:
    disturbed = Disturbed(shards, proxy, 520 + [SOURCE, TARGET].index(on))
    world = disturbed.world
    cut = sum(relay.resets for relay in relays)
    for _ in range(RESET_MOVES):
        bucket = world.bucket()
        source = world.owners()[bucket]
        target = world.plan(bucket)
        reset_again_and_again(world, relays[source if on == SOURCE else target])
        world.wait_moved()
    assert sum(relay.resets for relay in relays) > cut
    where = f"in the middle of messages, again and again in {RESET_MOVES} moves"
    disturbed.end(case, f"connections to the {on} shard (reset)", where, may_break=True)


def reset_again_and_again(world: MovingWorld, relay: Relay) -> None:
    """While a move is planned or under way."""
    for _ in range(RESET_TIMES):
        relay.reset_soon(RESET_SHARE)
        time.sleep(world.draw.uniform(0.05, 0.4))  # somewhere else in the move each time


@pytest.mark.parametrize("end", ENDS)
def test_a_proxy_is_cut_off_from_the_source(case: Case, fresh: Shards, tmp_path: Path, end: str) -> None:
    sections = {"tables": TABLES, "query_node": False, **MOVED_BY_HAND}
    with (
        relayed(fresh.dsns) as relays,
        Proxy(fresh.dsns, tmp_path / "one", **sections) as one,
        Proxy([relay.dsn for relay in relays], tmp_path / "two", apply=False, **sections) as two,
    ):
        world = MovingWorld(fresh, [one, two], 4, 560 + list(ENDS).index(end))
        world.start()
        bucket = world.bucket()
        source = world.owners()[bucket]
        world.plan(bucket)
        be_silent([relays[source]], end)
        world.wait_moved()
        world.plan(world.bucket())
        world.wait_moved()
        world.stop()
        of_the_other = [client for client in world.clients if client.proxy is one]
        assert all(not client.errors and client.breaks == 1 for client in of_the_other)
        assert "do not answer: their sessions are ended" in one.log_text()
        victim = f"the network of a proxy, another makes the move, to the source shard: silent for {SILENT_S:g} s"
        end_moves(case, world, f"{victim}, {ENDS[end]}", "with a move planned, then another move")


FAULTS = ("reset", "delayed", *ENDS)


@pytest.mark.parametrize("fault", FAULTS)
def test_the_network_to_the_control_database_fails(case: Case, fresh: Shards, tmp_path: Path, fault: str) -> None:
    *dsns, control = fresh.dsns
    with Relay(control) as relay, Proxy(dsns, tmp_path, tables=TABLES, control=relay.dsn, **MOVED_BY_HAND) as proxy:
        world = MovingWorld(fresh, [proxy], 3, 580 + FAULTS.index(fault), control=2)
        world.start()
        if fault == "delayed":
            relay.delay(DELAY_S)
        for _ in range(1 if fault in ENDS else RESET_MOVES):
            world.plan(world.bucket(), shard_count=2)
            if fault == "reset":
                reset_again_and_again(world, relay)
            elif fault in ENDS:
                wait_until(lambda: fresh.query(COUNT_OPEN, on=2) == [(1,)])
                acts = [client.acts for client in world.clients]
                be_silent([relay], fault)
                assert all(client.acts > before for client, before in zip(world.clients, acts, strict=True))
            world.wait_moved()
        relay.delay(0)
        world.plan(world.bucket(), shard_count=2)
        world.wait_moved()
        world.stop()
        called = "the network to the control database"
        victim = {
            "reset": "connections to the control database (reset)",
            "delayed": f"{called}: each byte {DELAY_S * 1000:g} ms late, each way",
        }.get(fault) or f"{called}: silent for {SILENT_S:g} s, {ENDS[fault]}"
        where = "with a move planned" if fault in ENDS else f"all the time of {RESET_MOVES} moves"
        end_moves(case, world, victim, where, may_break=False)
