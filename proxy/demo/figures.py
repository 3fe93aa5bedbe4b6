"""The demo's figures about cost and balance, asked of the running proxy's console as psql would ask."""

from __future__ import annotations

import asyncio
from collections import Counter

from foreshard.proxy.admin.simple_query import Unreachable, ask
from foreshard.proxy.config import Config
from foreshard.proxy.demo.clients import RECONNECT_POLL_S, RECONNECT_S
from foreshard.proxy.demo.report import Balance, FunctionFigures
from foreshard.proxy.demo.verify import ask_all
from foreshard.proxy.errors import SqlError
from foreshard.proxy.placement import Spread, expected_by_hash, max_over_mean

SETTLE_S = 20.0  # the controller takes measurements every 100 ms and stores profiles now and then
SETTLE_POLL_S = 0.25
COMING_OR_GOING = ("57P01", "57P03")  # what a proxy says that stops, or has just begun
DIGITS = 6  # of a ratio, as the console prints it
REVISIONS_SQL = "SELECT coalesce(sum(revision), 0)::bigint, (SELECT count(*) FROM foreshard.measurement) FROM document"
WORKED_SQL = "SELECT worked_s FROM document"

Row = dict[str, str | None]


async def read_console(config: Config, command: str) -> list[Row]:
    """Rows of a console command; like the demo's clients, it keeps trying while a proxy that died is started again."""
    host, port = config.listen_host, config.listen_port
    deadline_s = asyncio.get_running_loop().time() + RECONNECT_S
    while True:
        try:
            answer = await asyncio.to_thread(ask, host, port, "foreshard", "foreshard", command)
            return answer.dictionaries()
        except (Unreachable, SqlError) as error:
            is_away = isinstance(error, Unreachable) or error.sqlstate in COMING_OR_GOING
            if not is_away or asyncio.get_running_loop().time() > deadline_s:
                raise
        await asyncio.sleep(RECONNECT_POLL_S)  # nothing tells when the proxy is there again


async def wait_settled(config: Config) -> None:
    """Wait until the controller has learned from every measurement and stored what it learned, or for a while."""
    deadline_s = asyncio.get_running_loop().time() + SETTLE_S
    while asyncio.get_running_loop().time() < deadline_s:
        answers = [answer.rows[0] for answer in await ask_all(config, REVISIONS_SQL)]
        expected = sum(int(str(row[0])) for row in answers)
        waiting = sum(int(str(row[1])) for row in answers)
        if waiting == 0 and all(count >= expected for count in (await read_calls(config)).values()):
            return
        await asyncio.sleep(SETTLE_POLL_S)


async def read_profiles(config: Config) -> dict[str, FunctionFigures]:
    """What is known of each function and operation, by "function on operation"."""
    return {
        f"{row['function']} on {row['operation']}": FunctionFigures(
            calls=int(row["calls"] or 0),
            median_q=known(row["q_median"]),
            p95_q=known(row["q_p95"]),
            cpu_seconds=round(float(row["cpu_total_s"] or 0), 3),
        )
        for row in await read_console(config, "SHOW PROFILES")
    }


async def read_calls(config: Config) -> Counter[str]:
    """Calls of each function, over its operations."""
    calls: Counter[str] = Counter()
    for row in await read_console(config, "SHOW PROFILES"):
        calls[str(row["function"])] += int(row["calls"] or 0)
    return calls


def known(text: str | None) -> float | None:
    """A figure of the console."""
    return None if text is None else float(text)


async def read_costs(config: Config) -> dict[str, float]:
    """Measured cost of the functions that ran on each shard, in seconds of a shard."""
    return {str(row["shard"]): float(row["measured_s"] or 0) for row in await read_console(config, "SHOW SHARDS")}


async def read_balance(config: Config) -> Balance:
    """max/mean by policy: measured for the one in use, from the shadow ledgers for the others; and hashing's spread."""
    ledgers = {
        str(row["policy"]): float(row["max_over_mean"])
        for row in await read_console(config, "SHOW BALANCE")
        if row["source"] == "shadow" and row["max_over_mean"] is not None
    }
    costs = await read_costs(config)
    weights = {shard.name: shard.weight for shard in config.shards}
    measured = max_over_mean([costs[name] for name in weights], list(weights.values()))
    worked_s = [float(str(row[0])) for answer in await ask_all(config, WORKED_SQL) for row in answer.rows]
    hashed = expected_by_hash(worked_s, list(weights.values()))
    return Balance(
        ledgers | {config.placement.policy: round(measured, DIGITS)},
        Spread(round(hashed.median, DIGITS), round(hashed.low, DIGITS), round(hashed.high, DIGITS)),
    )
