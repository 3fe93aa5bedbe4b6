"""What a router counts as asked of buckets: rows where they go, reads where they look, costs beside the rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

from foreshard._core.buckets import bucket_of
from foreshard._core.shared import SharedState
from tests.support.messages import COPY_DONE, SYNC, copy_data, extended, query
from tests.support.postgres import Shards, TestInstances
from tests.support.proxy import Proxy
from tests.support.raw import RawConnection, kinds
from tests.support.sharded import SCHEMA, SHARD_COUNT, TABLES
from tests.support.verified import assert_verified

CPU_S = 0.002
PROFILE = {"cpu": "2ms"}
TRIGGERS = {"look": {"table": "root", "on": ["insert", "update"], "function": "functions:look", "profile": PROFILE}}


@pytest.fixture(scope="module")
def proxy(test_instances: TestInstances, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    shards: Shards = test_instances.create(SHARD_COUNT)
    shards.execute(SCHEMA)
    folder = tmp_path_factory.mktemp("demand")
    (folder / "functions.py").write_text("def look(event):\n    pass\n")
    with Proxy(shards.dsns, folder, tables=TABLES, triggers=TRIGGERS, workers={"per_shard": 0}) as proxy:
        yield proxy
        assert_verified(proxy.configuration)
    test_instances.drop(shards)


class Demand:
    """What was counted since it was made."""

    def __init__(self, proxy: Proxy) -> None:
        self.state = SharedState.open(proxy.directory / "run" / "state")
        self.before = self.state.demand()

    def since(self) -> tuple[Counter[int], Counter[int], Counter[int]]:
        """Reads, rows, and calls of the function by their cost, by bucket."""
        reads, rows, costs = (now - then for now, then in zip(self.state.demand(), self.before, strict=True))
        calls = np.rint(costs[:, 0] / CPU_S).astype(int)
        assert np.allclose(calls * CPU_S, costs[:, 0], atol=1e-9)
        return as_counter(reads), as_counter(rows), as_counter(calls)


def as_counter(counts: np.ndarray[tuple[int], np.dtype[np.uint64]]) -> Counter[int]:
    return Counter({int(bucket): int(counts[bucket]) for bucket in np.flatnonzero(counts)})


@pytest.fixture
def client(proxy: Proxy) -> Iterator[RawConnection]:
    """Without backends: its statements wait for them, are handled again, and count once."""
    with proxy.server.connect() as connection:
        yield connection


@pytest.mark.parametrize("is_extended", [False, True], ids=["simple", "extended"])
def test_rows_of_an_insert_count_in_their_buckets(proxy: Proxy, client: RawConnection, is_extended: bool) -> None:
    keys = range(1001, 1041) if is_extended else range(1, 41)
    sql = "INSERT INTO root (id, tag) VALUES " + ", ".join(f"({key}, 'x')" for key in keys)
    demand = Demand(proxy)
    answer = client.ask(extended(sql), SYNC) if is_extended else client.query(sql)
    assert "E" not in kinds(answer)
    expected = Counter(bucket_of(key) for key in keys)
    assert len(set(map(demand.state.owner_of, expected))) == SHARD_COUNT
    assert demand.since() == (Counter(), expected, expected)


def test_rows_of_children_count_in_the_buckets_of_their_parents(proxy: Proxy, client: RawConnection) -> None:
    keys = range(2001, 2011)
    client.rows("INSERT INTO root (id) VALUES " + ", ".join(f"({key})" for key in keys))
    parents = [key for key in keys for _ in range(1 + key % 3)]
    demand = Demand(proxy)
    client.rows("INSERT INTO child (root_id) VALUES " + ", ".join(f"({key})" for key in parents))
    assert demand.since() == (Counter(), Counter(map(bucket_of, parents)), Counter())


def test_a_statement_with_several_keys_counts_in_each_bucket(proxy: Proxy, client: RawConnection) -> None:
    keys = range(3001, 3009)
    client.rows("INSERT INTO root (id) VALUES " + ", ".join(f"({key})" for key in keys))
    some = ", ".join(map(str, keys))
    expected = Counter(bucket_of(key) for key in keys)
    demand = Demand(proxy)
    client.rows(f"SELECT n FROM root WHERE id IN ({some})")
    assert demand.since() == (expected, Counter(), Counter())
    demand = Demand(proxy)
    client.rows(f"UPDATE root SET n = 1 WHERE id IN ({some})")
    reads, rows, costs = (now - then for now, then in zip(demand.state.demand(), demand.before, strict=True))
    assert (as_counter(reads), as_counter(rows)) == (Counter(), expected)
    assert set(np.flatnonzero(costs[:, 0]).tolist()) == set(expected)


def test_what_every_shard_is_asked_counts_nowhere(proxy: Proxy, client: RawConnection) -> None:
    demand = Demand(proxy)
    client.rows("SELECT count(*) FROM root")
    client.rows("UPDATE root SET n = n + 1 WHERE tag = 'x'")
    assert demand.since() == (Counter(), Counter(), Counter())


def test_statements_of_a_string_count_one_by_one(proxy: Proxy, client: RawConnection) -> None:
    client.rows("INSERT INTO root (id) VALUES (4001)")
    demand = Demand(proxy)
    assert "E" not in kinds(client.query("UPDATE root SET n = 2 WHERE id = 4001; SELECT n FROM root WHERE id = 4001"))
    bucket = Counter({bucket_of(4001): 1})
    reads, rows, _ = demand.since()
    assert (reads, rows) == (bucket, bucket)


def test_rows_of_a_copy_count_in_their_buckets(proxy: Proxy, client: RawConnection) -> None:
    keys = range(5001, 5061)
    demand = Demand(proxy)
    data = "".join(f"{key}\tx\n" for key in keys).encode()
    answer = client.ask(query("COPY root (id, tag) FROM STDIN"), copy_data(data), COPY_DONE)
    assert "E" not in kinds(answer)
    expected = Counter(map(bucket_of, keys))
    reads, rows, costs = (now - then for now, then in zip(demand.state.demand(), demand.before, strict=True))
    assert (as_counter(reads), as_counter(rows)) == (Counter(), expected)
    assert set(np.flatnonzero(costs[:, 0]).tolist()) == set(expected)
