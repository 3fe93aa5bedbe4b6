"""Loads exchanged between proxies: what one was given steers the other, and nobody waits for who has gone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from foreshard.proxy.admin.simple_query import ask
from foreshard.proxy.config import Config
from foreshard.proxy.control import load_exchange
from foreshard.proxy.control.load_exchange import LoadExchange
from foreshard.proxy.placement import Placer, SharedState
from tests.support.controlled import DEADLINE_S, Gate, controller, new_state, prepare, until, with_dsns
from tests.support.postgres import Shards
from tests.support.proxy import Proxy
from tests.support.two_proxies import two_proxies
from tests.support.verified import assert_verified
from tests.support.waiting import wait_until

ROWS = "SELECT instance FROM foreshard.load ORDER BY instance"
EVENTS = """
INSERT INTO foreshard.outbox
  (lane, lsn, xid, ordinal, function, operation, table_name, row_key, new, volume, depth, captured_at)
SELECT 0, '0/1', '1', n, 'index', 'insert', 'public.document', n::text, '{}', 1, 0, now() FROM generate_series(1, 100) n
"""


def listening(config: Config, port: int) -> Config:
    return msgspec.structs.replace(config, listen_port=port)


@contextlib.asynccontextmanager
async def exchange(
    config: Config, state: SharedState, report: Callable[[str], None] = print
) -> AsyncIterator[tuple[LoadExchange, asyncio.Task[None]]]:
    """An exchange that runs for as long as the block does, and takes its row with it unless it was cancelled."""
    stopping = asyncio.Event()
    made = LoadExchange(config, state, report)
    running = asyncio.create_task(made.run(stopping))
    try:
        yield made, running
    finally:
        stopping.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait_for(running, DEADLINE_S)


async def test_each_hears_what_the_other_was_given_and_idle_ones_are_silent(
    three_shards: Shards, tmp_path: Path
) -> None:
    config = await prepare(three_shards, tmp_path)
    one, two = new_state(config), new_state(config)
    async with exchange(listening(config, 1), one) as (first, _):
        await until(lambda: first.exchanges)
        assert one.proxies == 1
        async with exchange(listening(config, 2), two) as (second, _):
            await until(lambda: one.proxies == two.proxies == 2)
            Placer(one).charge_known(0, 10.0)
            await until(lambda: two.loads() == [10.0, 0.0, 0.0])
            two.add_measured(0, 12.0, settled=10.0)
            await until(lambda: one.loads() == two.loads() == [12.0, 0.0, 0.0])
            for _ in range(50):
                Placer(two).place_known(0.0, only_shard=2)
            await until(lambda: one.shard(2).others_rows == 50)
            before = first.exchanges + second.exchanges
            await asyncio.sleep(3 * load_exchange.BEAT_S)
            assert first.exchanges + second.exchanges - before <= 10  # heartbeats alone; else there were 120
        await until(lambda: one.proxies == 1)
        assert three_shards.query(ROWS) == [(first.instance,)]
    assert three_shards.query(ROWS) == []


async def test_a_thousand_rows_are_told_of_before_the_interval_is_over(one_shard: Shards, tmp_path: Path) -> None:
    config = await prepare(one_shard, tmp_path)
    state = new_state(config)
    async with exchange(listening(config, 1), state) as (first, _):
        await until(lambda: first.exchanges)
        own = load_exchange.own_load(state, ["s0"])
        assert first._interval_s(own) == load_exchange.EXCHANGE_INTERVAL_S
        for rows, interval_s in ((1000, 0.1), (2000, 0.05), (1_000_000, load_exchange.EXCHANGE_INTERVAL_MIN_S)):
            busier = own._replace(told=own.told._replace(rows=[float(rows)]))
            assert first._interval_s(busier) == pytest.approx(interval_s)


async def test_what_a_killed_proxy_told_is_forgotten_after_its_lease(
    three_shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten_lease(monkeypatch, 1.0)
    config = await prepare(three_shards, tmp_path)
    one, two = new_state(config), new_state(config)
    async with exchange(listening(config, 1), one) as (first, _):
        async with exchange(listening(config, 2), two) as (_, killed):
            Placer(two).charge_known(1, 5.0)
            await until(lambda: one.loads() == [0.0, 5.0, 0.0])
            killed.cancel()
        assert len(three_shards.query(ROWS)) == 2
        Placer(two).charge_known(1, 5.0)  # its router goes on; nobody will ever hear of this
        await until(lambda: one.loads() == [0.0, 0.0, 0.0])
        assert one.proxies == 1
        await until(lambda: three_shards.query(ROWS) == [(first.instance,)])
        async with exchange(listening(config, 2), two):  # and when it has another controller, everybody does
            await until(lambda: one.loads() == two.loads() == [0.0, 10.0, 0.0])


def shorten_lease(monkeypatch: pytest.MonkeyPatch, lease_s: float) -> None:
    """Leases of all exchanges that begin from now on."""
    text = load_exchange.EXCHANGE.replace(f"secs => {load_exchange.LEASE_S}", f"secs => {lease_s}")
    monkeypatch.setattr(load_exchange, "EXCHANGE", text)
    monkeypatch.setattr(load_exchange, "LEASE_S", lease_s)
    monkeypatch.setattr(load_exchange, "BEAT_S", lease_s / 3)


async def test_placement_goes_on_while_the_control_database_is_gone(
    three_shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten_lease(monkeypatch, 2.0)
    config = await prepare(three_shards, tmp_path)
    gate = Gate(config.shards[0].dsn)
    await gate.open()
    cut_off = listening(with_dsns(config, {}, control=gate.dsn), 1)
    one, two = new_state(config), new_state(config)
    said: list[str] = []
    async with exchange(cut_off, one, said.append) as (first, _), exchange(listening(config, 2), two):
        Placer(two).charge_known(0, 4.0)
        two.add_measured(0, 3.0, settled=1.0)
        await until(lambda: one.loads()[0] == 6.0)
        await gate.shut()
        await until(lambda: said)
        Placer(one).charge_known(1, 1.0)
        assert one.loads()[:2] == [6.0, 2.0]  # what is known, and as much as both may have placed
        await until(lambda: one.proxies == 1)
        assert one.loads()[:2] == [3.0, 1.0]  # what was measured stays
        await until(lambda: two.proxies == 1)
        await gate.open()
        await until(lambda: one.loads() == two.loads() == [6.0, 1.0, 0.0])
        assert one.proxies == two.proxies == 2
    await gate.shut()
    assert [line.partition(":")[0] for line in said] == [
        "loads of other proxies are not heard",
        "loads of other proxies are heard again",
    ]
    assert first.instance.endswith(":1")


async def test_what_waits_in_an_outbox_counts_once_however_many_count_it(three_shards: Shards, tmp_path: Path) -> None:
    config = await prepare(three_shards, tmp_path)
    one, two = new_state(config), new_state(config)
    async with controller(listening(config, 1), one), controller(listening(config, 2), two):
        await until(lambda: one.proxies == two.proxies == 2)
        three_shards.execute(EVENTS, on=1)
        Placer(one).charge_known(1, 100.0)  # far more than what waits is expected to cost
        expected = pytest.approx([0.0, 100 * 0.001, 0.0])  # profiles.priors.FIRST_GUESS
        await until(lambda: one.loads() == expected and two.loads() == expected)
        three_shards.execute("DELETE FROM foreshard.outbox", on=1)
        await until(lambda: one.loads() == two.loads() == [0.0, 0.0, 0.0])


SCHEMA = "CREATE TABLE document (id bigserial PRIMARY KEY, body text)"
TABLES = {"document": {"key": "id"}}
TRIGGERS = {
    "index": {"table": "document", "on": ["update"], "function": "functions:index", "profile": {"cpu": "50ms"}},
    "read": {"table": "document", "on": ["insert"], "function": "functions:index", "profile": {"cpu": "1ms"}},
}
FUNCTIONS = "def index(event):\n    pass\n"


def rows_by_shard(shards: Shards) -> list[int]:
    return [int(str(shards.query("SELECT count(*) FROM document", on=shard)[0][0])) for shard in range(2)]


def test_load_given_to_one_proxy_keeps_the_rows_of_the_other_away(two_shards: Shards, tmp_path: Path) -> None:
    two_shards.execute(SCHEMA)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "functions.py").write_text(FUNCTIONS)
    sections: dict[str, Any] = {"triggers": TRIGGERS}
    with two_proxies(two_shards.dsns, tmp_path, TABLES, **sections) as (one, two):
        with one.server.connect() as client:
            keys = []
            while rows_by_shard(two_shards)[0] < 10:
                keys.append(client.value("INSERT INTO document (body) VALUES ('') RETURNING id"))
            (first,) = two_shards.query("SELECT min(id) FROM document")[0]
            for number in range(200):
                client.rows(f"UPDATE document SET body = '{number}' WHERE id = {first}")
        wait_until(lambda: float(loads(two)["s0"]) > 5.0)
        before = rows_by_shard(two_shards)
        with two.server.connect() as client:
            for _ in range(100):
                client.rows("INSERT INTO document (body) VALUES ('')")
        placed = [after - was for was, after in zip(before, rows_by_shard(two_shards), strict=True)]
        assert placed[1] >= 75, placed  # all but the eighth of which three candidates are on s0
        assert len(two_shards.query(ROWS)) == 2
        wait_until(lambda: len(two_shards.query("SELECT FROM foreshard.demand")) == 2)
        one.stop()
        assert len(two_shards.query(ROWS)) == 1
        assert len(two_shards.query("SELECT FROM foreshard.demand")) == 1
        assert_verified(two.configuration)


def loads(proxy: Proxy) -> dict[str, str]:
    """`others_s` of each shard."""
    told = ask(proxy.server.host, proxy.server.port, "foreshard", "foreshard", "SHOW SHARDS")
    return {str(row["shard"]): str(row["others_s"]) for row in told.dictionaries()}
