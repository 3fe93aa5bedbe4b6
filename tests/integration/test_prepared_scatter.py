"""Merged reads by extended query whose Sync came along: one message to each shard, one PostgreSQL's answers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.messages import SYNC, bind, describe_portal, execute, extended, parse, query
from tests.support.postgres import TestInstances
from tests.support.raw import transcript
from tests.support.twins import Twins, twins

COUNT = parse("SELECT count(*), sum(n) FROM root WHERE n > $1", name="s", types=[23])
RUN = bind([b"7"], name="s") + execute() + SYNC
DESCRIBED = bind([b"7"], name="s") + describe_portal() + execute() + SYNC
UNSYNCED = RUN[: -len(SYNC)]
DIVIDE = "SELECT sum(10 / (n - {a})) FROM root"  # in the initial rows n is the key: fails on one shard
MALFORMED = bind([b"seven"], name="s") + describe_portal() + execute() + SYNC


@pytest.fixture(scope="module")
def pair(test_instances: TestInstances, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twins]:
    with twins(test_instances, tmp_path_factory.mktemp("scatter")) as made:
        yield made


def conversations(pair: Twins) -> dict[str, list[bytes | str]]:
    """What is sent one after the other; a text is a simple Query."""
    insert = "INSERT INTO plain (tag, n) VALUES ('scatter', 1)"
    failing = extended(pair.fill_in(DIVIDE)) + SYNC
    return {
        "prepared": [COUNT + SYNC, RUN, DESCRIBED, RUN],
        "all at once": [COUNT + RUN, RUN, DESCRIBED + RUN],
        "a value that is none": [COUNT + SYNC, MALFORMED, RUN],
        "a column that is none": [extended("SELECT count(nothing) FROM root") + SYNC, RUN],
        "one shard fails": [failing, COUNT + RUN, failing, RUN],
        "in a transaction": ["BEGIN", COUNT + RUN, DESCRIBED, RUN, "COMMIT"],
        "failing in a transaction": ["BEGIN", COUNT + RUN, failing, RUN, "ROLLBACK", RUN],
        "back to a savepoint": ["BEGIN", "SAVEPOINT s", failing, "ROLLBACK TO s", COUNT + RUN, "COMMIT"],
        "behind a write": [extended(insert) + failing, "SELECT count(*) FROM plain WHERE tag = 'scatter'"],
        "several in a segment": [COUNT + SYNC, UNSYNCED + DESCRIBED, UNSYNCED + failing],
    }


def test_prepared_merges_answer_as_one_postgres(pair: Twins) -> None:
    for name, parts in conversations(pair).items():
        with pair.connect() as sides:
            found = [
                [transcript(side.ask(query(part) if isinstance(part, str) else part)) for part in parts]
                for side in sides
            ]
        assert found[0] == found[1], name


def test_a_read_that_comes_in_pieces_is_answered_the_same(pair: Twins) -> None:
    with pair.connect() as sides:
        found = []
        for side in sides:
            side.ask(COUNT + SYNC)
            side.send_bytewise(DESCRIBED + RUN)
            found.append([transcript(side.read_until()), transcript(side.read_until())])
    assert found[0] == found[1]
