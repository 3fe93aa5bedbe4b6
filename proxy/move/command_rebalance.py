"""`foreshard rebalance`: what the rebalancer would do, and orders to it."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from foreshard.proxy.config import Config, load_config
from foreshard.proxy.control.balance_store import ask_round, read_orders, read_told, set_paused
from foreshard.proxy.control.connect import connected, control_dsn
from foreshard.proxy.control.introspect import Connection
from foreshard.proxy.control.move_store import State, plan_moves, targets
from foreshard.proxy.control.plan import read_catalog
from foreshard.proxy.control.schema_control import read_bucket_map
from foreshard.proxy.control.shard_list import latest
from foreshard.proxy.embedded import running_shards
from foreshard.proxy.errors import ConfigError, ForeshardError
from foreshard.proxy.move.rounds import RESOURCES, ROUND_S, Rounds
from foreshard.proxy.rebalance import Decision

FORGET_S = 3600.0
SHOWN_MAX = 20
UNDER_WAY = f"SELECT state, count(*) AS count FROM foreshard.move WHERE state <> '{State.DONE.value}' GROUP BY 1"


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `foreshard rebalance`."""
    parser.add_argument("-c", "--config", type=Path, required=True, metavar="FILE", help="configuration (YAML)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--dry-run", action="store_true", help=f"watch the load for {ROUND_S:g} s, tell what would move")
    what.add_argument("--now", action="store_true", help="let the rebalancer decide at once, without waiting for more")
    what.add_argument("--pause", action="store_true", help="let nothing move; a move under way still ends")
    what.add_argument("--resume", action="store_true", help="let buckets move again")
    what.add_argument("--move", nargs=2, metavar=("BUCKET", "SHARD"), help="move one bucket to a shard")
    parser.epilog = (
        "Without an option: whether buckets may move, and what is planned. Moves are made by the balancer of a running "
        "`foreshard serve`; SHOW MOVES and SHOW REBALANCE on the console tell of them."
    )


def run(arguments: argparse.Namespace) -> int:
    """Carry out one order."""
    config = load_config(arguments.config)
    with running_shards(config, may_make=False) as ready:
        asyncio.run(_run(latest(ready), arguments))
    return 0


async def _run(config: Config, arguments: argparse.Namespace) -> None:
    async with connected("control database", control_dsn(config)) as connection:
        if arguments.dry_run:
            return await _dry_run(config, connection)
        if arguments.now:
            await ask_round(connection)
            print("asked for a round; SHOW REBALANCE tells what it has come to")
        elif arguments.pause or arguments.resume:
            await set_paused(connection, arguments.pause)
        elif arguments.move:
            return await _move(config, connection, *arguments.move)
        await _tell(connection)


async def _tell(connection: Connection) -> None:
    orders = await read_orders(connection)
    counts = {row["state"]: row["count"] for row in await connection.fetch(UNDER_WAY)}
    print("paused: no bucket moves" if orders.is_paused else "buckets move when the rebalancer says so")
    for state in (State.COPYING, State.FLIPPING, State.PLANNED, State.FAILED):
        if counts.get(state.value):
            print(f"{counts[state.value]} moves {state.value}")


async def _move(config: Config, connection: Connection, bucket: str, shard: str) -> None:
    names = [each.name for each in config.shards]
    owners = await read_bucket_map(connection)
    if not bucket.isdigit() or int(bucket) >= len(owners):
        raise ConfigError([f"--move {bucket}: no bucket; they are 0 to {len(owners) - 1}"])
    if shard not in names:
        raise ConfigError([f"--move {bucket} {shard}: no shard of that name; they are {', '.join(names)}"])
    source, target = owners[int(bucket)], names.index(shard)
    if source == target:
        print(f"bucket {bucket} is on {shard} already")
    elif await plan_moves(connection, [(int(bucket), source, target, None)], "by hand"):
        print(f"planned: bucket {bucket} from {names[source]} to {shard}")
    else:
        raise ForeshardError(f"bucket {bucket} is being moved already: SHOW MOVES tells where")


async def _dry_run(config: Config, connection: Connection) -> None:
    """Two looks at what proxies have counted, and what would follow if it went on like that."""
    rounds = Rounds(config, rounds_min=1)
    catalog = await read_catalog(config)
    decision: Decision | None = None
    print(f"looking at the load for {ROUND_S:g} s", file=sys.stderr)
    for look in range(2):
        if look:
            await asyncio.sleep(ROUND_S)
        now_s = asyncio.get_running_loop().time()
        owners, moving = await read_bucket_map(connection), await targets(connection)
        decision = await rounds.run(catalog, await read_told(connection, FORGET_S), owners, moving, now_s)
    if decision is None:
        raise ForeshardError("no proxy has told of its load: is `foreshard serve` running, with two shards at least?")
    print("\n".join(plan_lines(config, decision)))


def plan_lines(config: Config, decision: Decision) -> list[str]:
    """What a round came to, for a terminal."""
    names = [shard.name for shard in config.shards]
    lines = [
        f"{decision.verdict.value}{': ' + decision.detail if decision.detail else ''}",
        f"by {RESOURCES[decision.resource]} the fullest shard has {decision.before:.2f} of its share",
    ]
    for move in decision.moves[:SHOWN_MAX]:
        lines.append(
            f"  bucket {move.bucket:4}  {names[move.source]} -> {names[move.target]}  about {move.rows} rows, "
            f"{move.gain:.3f} less"
        )
    if len(decision.moves) > SHOWN_MAX:
        lines.append(f"  and {len(decision.moves) - SHOWN_MAX} more")
    if decision.moves:
        lines.append(f"then {decision.after:.2f}; {len(decision.moves)} moves, about {decision.rows} rows")
    return lines
