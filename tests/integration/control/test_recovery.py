"""Recovery against real shards, without a relay: prepared transactions in every state a coordinator could leave."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import psycopg
import pytest
import pytest_asyncio

from foreshard.proxy.config import Config
from foreshard.proxy.control import apply
from foreshard.proxy.control.recovery import Recovery
from foreshard.proxy.control.recovery_shard import Finish, Prepared
from foreshard.proxy.errors import ConfigError
from tests.support.controlled import Gate, with_dsns
from tests.support.postgres import Shards
from tests.support.two_phase import TwoPhaseWorld


@pytest_asyncio.fixture
async def config(three_shards: Shards, tmp_path: Path) -> Config:
    made = Config(path=tmp_path / "foreshard.yaml", run_directory=tmp_path / "run", shards=three_shards.shards)
    await apply(made)
    return made


@pytest.fixture
def world(config: Config, three_shards: Shards) -> TwoPhaseWorld:
    return TwoPhaseWorld(three_shards)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest_asyncio.fixture
async def recovery(config: Config, world: TwoPhaseWorld, said: list[str]) -> AsyncIterator[Recovery]:
    made = eager(config, said)
    yield made
    made.close()


def eager(config: Config, said: list[str]) -> Recovery:
    """Recovery that waits for no coordinator, and looks for old decisions in every round."""
    made = Recovery(config, said.append)
    made.grace_s = 0.0
    made.clean_interval_s = 0.0
    return made


async def test_what_was_decided_is_committed_on_every_participant(
    recovery: Recovery, world: TwoPhaseWorld, said: list[str]
) -> None:
    id = world.prepare()
    world.decide(id)
    assert await recovery.run_round() == 2
    assert world.marks(id) == [1, 2]
    assert sorted(line.partition(",")[0] for line in said) == [
        f"shard s{index}: committed {world.gid(id, index)}" for index in (1, 2)
    ]
    assert world.decisions() == {id: "commit"}
    assert await recovery.run_round() == 0


async def test_what_was_not_decided_is_rolled_back_and_can_be_decided_no_more(
    recovery: Recovery, world: TwoPhaseWorld, three_shards: Shards
) -> None:
    id = world.prepare()
    coordinator = psycopg.connect(three_shards.dsns[0])
    coordinator.execute("INSERT INTO mark VALUES (%s)", [id])  # its work on the decision shard
    assert await recovery.run_round() == 2
    assert world.prepared() == []
    await recovery.run_round()
    assert world.decisions() == {id: "abort"}  # stays while the coordinator's transaction is open
    with pytest.raises(psycopg.errors.UniqueViolation):
        coordinator.execute("INSERT INTO foreshard.decision (id, outcome) VALUES (%s, 'commit')", [id])
    coordinator.close()
    assert world.marks(id) == []
    while world.decisions():
        await recovery.run_round()


async def test_a_transaction_that_somebody_aborted_is_rolled_back(recovery: Recovery, world: TwoPhaseWorld) -> None:
    id = world.prepare()
    world.decide(id, "abort")
    assert await recovery.run_round() == 2
    assert world.prepared() == []
    assert world.marks(id) == []


@pytest.mark.parametrize("commits", [True, False])
async def test_an_open_decision_is_waited_for(
    recovery: Recovery, world: TwoPhaseWorld, said: list[str], commits: bool
) -> None:
    id = world.prepare()
    coordinator = world.open_decision(id)
    assert await recovery.run_round() == 0
    assert await recovery.run_round() == 0
    assert said == [
        f"{world.gid(id, index)} is in doubt: the transaction that decides it is still open on shard s0"
        for index in (1, 2)
    ]
    assert len(world.prepared()) == 2
    if commits:
        coordinator.commit()
    coordinator.close()
    while world.prepared():
        await recovery.run_round()
    assert world.marks(id) == ([0, 1, 2] if commits else [])


async def test_a_young_transaction_is_left_to_its_coordinator(recovery: Recovery, world: TwoPhaseWorld) -> None:
    recovery.grace_s = 3600.0
    world.prepare()
    world.decide(world.prepare())
    assert await recovery.run_round() == 0
    assert len(world.prepared()) == 4


async def test_without_its_decision_shard_a_transaction_stays_in_doubt_until_that_is_back(
    config: Config, world: TwoPhaseWorld, said: list[str]
) -> None:
    committed, undecided = world.prepare(), world.prepare()
    elsewhere = world.prepare([1], decision=2)
    world.decide(committed)
    gate = Gate(config.shards[0].dsn)
    await gate.open()
    recovery = eager(with_dsns(config, {0: gate.dsn}), said)
    await gate.shut()
    try:
        assert await recovery.run_round() == 1  # the one that another shard decides
        assert world.gid(elsewhere, 1, 2) not in world.prepared()
        assert len(world.prepared()) == 4
        assert len([line for line in said if "is in doubt: shard s0, which decides it, is down" in line]) == 4
        await recovery.run_round()
        assert len([line for line in said if "is in doubt" in line]) == 4  # told once
        await gate.open()
        assert await recovery.run_round() == 4
        assert world.marks(committed) == [1, 2]
        assert world.marks(undecided) == []
    finally:
        recovery.close()
        await gate.shut()


async def test_a_participant_that_is_down_is_ended_when_it_is_back(
    config: Config, world: TwoPhaseWorld, said: list[str]
) -> None:
    id = world.prepare()
    world.decide(id, age_s=3600)
    gate = Gate(config.shards[1].dsn)
    await gate.open()
    recovery = eager(with_dsns(config, {1: gate.dsn}), said)
    await gate.shut()
    try:
        assert await recovery.run_round() == 1
        assert await recovery.run_round() == 0
        assert world.marks(id) == [2]
        assert world.decisions() == {id: "commit"}  # nobody knows what the shard that is down has prepared
        await gate.open()
        assert await recovery.run_round() == 1
        assert world.marks(id) == [1, 2]
        await recovery.run_round()
        assert world.decisions() == {}
    finally:
        recovery.close()
        await gate.shut()


async def test_a_decision_is_forgotten_when_it_is_old_and_nothing_is_prepared_under_it(
    recovery: Recovery, world: TwoPhaseWorld
) -> None:
    young, old, used = world.prepare(()), world.prepare(()), world.prepare()
    world.decide(young, age_s=50)
    world.decide(old, age_s=70, decision=2)
    world.decide(used, age_s=70)
    recovery.grace_s = 3600.0
    await recovery.run_round()
    assert world.decisions() == {young: "commit", used: "commit"}


async def test_names_that_are_not_this_clusters_are_left_alone(
    recovery: Recovery, world: TwoPhaseWorld, three_shards: Shards, said: list[str]
) -> None:
    id = world.prepare(())
    gids = [f"foreshard/another/s0/{id}/s1", "mine", f"foreshard/{world.cluster}/s0/x/s1"]
    for gid in gids:
        three_shards.execute(f"BEGIN; INSERT INTO mark VALUES ('{gid}'); PREPARE TRANSACTION '{gid}'", on=1)
    assert await recovery.run_round() == 0
    assert sorted(world.prepared()) == sorted(gids)
    assert said == []


async def test_a_decision_shard_that_is_not_configured_decides_nothing(
    recovery: Recovery, world: TwoPhaseWorld, said: list[str]
) -> None:
    world.names.append("s9")
    id = world.prepare([1], decision=3)
    world.names.pop()
    assert await recovery.run_round() == 0
    assert said == [
        f"foreshard/{world.cluster}/s9/{id}/s1 is in doubt: shard s9, which decides it, is not in the configuration"
    ]


async def test_a_database_that_is_another_shard_counts_as_down(
    config: Config, world: TwoPhaseWorld, said: list[str]
) -> None:
    id = world.prepare([1, 2])
    world.decide(id)
    swapped = eager(with_dsns(config, {0: config.shards[2].dsn, 2: config.shards[0].dsn}), said)
    try:
        assert await swapped.run_round() == 0
        assert "shard s0, which decides it, is down: its database says that it is shard s2" in said[0]
        assert len(world.prepared()) == 2
    finally:
        swapped.close()


async def test_somebody_elses_end_of_a_transaction_is_believed_only_when_it_is_not_listed(
    recovery: Recovery, world: TwoPhaseWorld
) -> None:
    id = world.prepare([1])
    link = recovery.links["s1"]
    gone = Prepared(world.gid(world.prepare(()), 1), "app", 10.0)
    assert await link.finish(gone, "commit") is Finish.GONE
    there = Prepared(world.gid(id, 1), "app", 10.0)
    assert await link.finish(there, "commit") is Finish.DONE
    assert await link.finish(there, "commit") is Finish.GONE
    assert world.marks(id) == [1]


async def test_another_roles_transaction_is_ended_by_becoming_that_role(
    config: Config, world: TwoPhaseWorld, three_shards: Shards, said: list[str]
) -> None:
    three_shards.execute("DROP ROLE IF EXISTS recoverer, client; CREATE ROLE recoverer LOGIN; CREATE ROLE client LOGIN")
    three_shards.execute("GRANT ALL ON ALL TABLES IN SCHEMA foreshard TO recoverer; GRANT INSERT ON mark TO client")
    world.shards = Shards(
        tuple(type(shard)(name=shard.name, dsn=shard.dsn.replace("app@", "client@")) for shard in three_shards.shards)
    )
    id = world.prepare([1, 2])
    world.shards = three_shards
    world.decide(id)
    three_shards.execute("GRANT client TO recoverer", on=1)
    dsns = {index: shard.dsn.replace("app@", "recoverer@") for index, shard in enumerate(config.shards)}
    recovery = eager(with_dsns(config, dsns), said)
    try:
        assert await recovery.run_round() == 1
        assert world.marks(id) == [1]
        doubts = [line for line in said if "is in doubt" in line]
        assert len(doubts) == 1
        assert 'shard s2 says: permission denied to set role "client"' in doubts[0]
        three_shards.execute("GRANT client TO recoverer", on=2)
        assert await recovery.run_round() == 1
        assert world.marks(id) == [1, 2]
    finally:
        recovery.close()
        three_shards.execute("DROP OWNED BY recoverer, client; DROP ROLE recoverer, client")


async def test_a_shard_gets_no_new_name_while_something_is_prepared(
    config: Config, world: TwoPhaseWorld, recovery: Recovery
) -> None:
    world.prepare([1])
    renamed = msgspec.structs.replace(config.shards[0], name="first")
    changed = msgspec.structs.replace(config, shards=(renamed, *config.shards[1:]))
    with pytest.raises(ConfigError, match=r"first is a new name, and transactions over several shards are prepared on"):
        await apply(changed)
    assert await recovery.run_round() == 1
    assert await apply(changed) > 0


@pytest.mark.parametrize("seed", range(3))
async def test_several_recoverers_and_the_coordinators_agree(
    config: Config, world: TwoPhaseWorld, seed: int, said: list[str]
) -> None:
    source = random.Random(seed)
    recoverers = [eager(config, said) for _ in range(4)]
    outcomes: dict[str, bool] = {}

    async def coordinate() -> None:
        """One transaction, whose coordinator stops anywhere or goes on while others recover."""
        decision = source.randrange(3)
        others = [index for index in range(3) if index != decision]
        id = await asyncio.to_thread(world.prepare, others, decision)
        if source.random() < 0.3:
            outcomes[id] = False  # gave up: it is never decided
            return
        async with await psycopg.AsyncConnection.connect(config.shards[decision].dsn) as connection:
            try:
                await connection.execute("INSERT INTO mark VALUES (%s)", [id])
                await connection.execute("INSERT INTO foreshard.decision (id, outcome) VALUES (%s, 'commit')", [id])
                await asyncio.sleep(0)
                if source.random() < 0.2:
                    await connection.rollback()
                    outcomes[id] = False
                    return
                await connection.commit()
                outcomes[id] = True
            except psycopg.errors.UniqueViolation:
                outcomes[id] = False

    try:
        coordinators = [asyncio.create_task(coordinate()) for _ in range(20)]
        while not all(task.done() for task in coordinators) or await asyncio.to_thread(world.prepared):
            await asyncio.gather(*(recoverer.run_round() for recoverer in recoverers))
        await asyncio.gather(*coordinators)
        for id, committed in outcomes.items():
            assert len(world.marks(id)) == (3 if committed else 0), id
    finally:
        for recoverer in recoverers:
            recoverer.close()
