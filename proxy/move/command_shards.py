"""`foreshard shards`: which there are; take one in, empty one, let one go; give one another weight."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

import msgspec

from foreshard._core.buckets import SHARDS_MAX
from foreshard.proxy.config import Config, ShardConfig, kinds, load_config
from foreshard.proxy.control.connect import connected, control_dsn, shown_dsn
from foreshard.proxy.control.schema_control import read_bucket_map
from foreshard.proxy.control.shard_list import current, read_list
from foreshard.proxy.control.sizes import bytes_text
from foreshard.proxy.embedded import forget_instance, grown_shards, running_shards
from foreshard.proxy.errors import ConfigError, ForeshardError
from foreshard.proxy.move.growing import take_in
from foreshard.proxy.move.orders import (
    Progress,
    cancel,
    count_buckets,
    emptying,
    filling,
    order_empty,
    order_fill,
    watch,
)
from foreshard.proxy.move.shrinking import let_go

ACTIONS = ("list", "add", "drain", "remove", "weight")
BAR_WIDTH = 30
TELL_INTERVAL_S = 5.0  # where there is no terminal
EXIT_FAILED = 1


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `foreshard shards`."""
    parser.add_argument("action", choices=ACTIONS, help="drain moves every bucket away; remove forgets a drained shard")
    parser.add_argument("name", nargs="?", metavar="NAME", help="the shard; not for `list`")
    parser.add_argument(
        "value", nargs="?", type=float, metavar="WEIGHT", help="weight: what it takes relative to others"
    )
    parser.add_argument("-c", "--config", type=Path, required=True, metavar="FILE", help="configuration (YAML)")
    parser.add_argument("--dsn", metavar="DSN", help="add: where it is, unless FILE says so; an empty database")
    parser.add_argument("--weight", type=float, metavar="WEIGHT", help="add: what it is to take relative to others")
    parser.add_argument(
        "--buckets", type=int, metavar="N", help="add: move no more than so many there now, 0 for none; again for more"
    )
    parser.epilog = (
        "Running proxies follow by themselves. Buckets are moved by their balancers, as fast as "
        "`rebalance.bytes_per_second` allows; Ctrl-C ends only the watching, the same command watches again, and "
        "`foreshard rebalance --pause` holds moves up. `weight` takes a `drain` back. Exit codes: 0 done, 1 failed or "
        "some moves given up, 2 usage or configuration."
    )


def run(arguments: argparse.Namespace) -> int:
    """Carry out one action; exit code."""
    config = load_config(arguments.config)
    if arguments.action != "list" and arguments.name is None:
        raise ConfigError([f"shards {arguments.action}: which shard? `foreshard shards list` names them"])
    if config.embedded is not None and arguments.action == "add":
        config = grown_shards(config, arguments.name)
    with running_shards(config, may_make=arguments.action == "add") as ready:
        return asyncio.run(_run(ready, arguments))


async def _run(config: Config, arguments: argparse.Namespace) -> int:
    now = await current(config)
    if arguments.action == "list":
        return await _list(now)
    if arguments.action == "add":
        return await _add(config, now, arguments)
    index = _find(now, arguments.name)
    if arguments.action == "drain":
        return await _drain(now, index)
    if arguments.action == "remove":
        if index == 0:
            raise ConfigError([f"shards remove: {arguments.name} is the first shard, which has the plain tables"])
        await let_go(now, index, say)
        if config.embedded is not None:
            forget_instance(config.embedded, arguments.name)
        return 0
    return await _weigh(now, index, arguments.value)


async def _list(config: Config) -> int:
    async with connected("control database", control_dsn(config)) as connection:
        owners = await read_bucket_map(connection)
    rows = [("index", "shard", "place", "weight", "buckets", "state")]
    for index, shard in enumerate(config.shards):
        state = "draining" if shard.is_draining else "in use"
        place = shown_dsn(shard.dsn)
        rows.append((str(index), shard.name, place, f"{shard.weight:g}", str(owners.count(index)), state))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


async def _add(config: Config, now: Config, arguments: argparse.Namespace) -> int:
    names = [shard.name for shard in now.shards]
    if arguments.name not in names:
        now = await take_in(now, _wanted(config, now, arguments), say)
    index = [shard.name for shard in now.shards].index(arguments.name)
    if now.shards[index].is_draining:
        raise ConfigError([f"shards add: {arguments.name} is being drained: `foreshard shards weight` takes that back"])
    if arguments.buckets == 0:
        return 0
    await order_fill(now, index, arguments.buckets)
    return await _see_done(now, filling(arguments.name), f"filling {arguments.name}")


def _wanted(config: Config, now: Config, arguments: argparse.Namespace) -> ShardConfig:
    """The shard that is to be added: as the file has it, or as the command says."""
    name = str(_read(kinds.identifier, arguments.name, "NAME"))
    own = next((shard for shard in config.shards if shard.name == name), None)
    if arguments.dsn is None and own is None:
        raise ConfigError([f"shards add {name}: where is it? --dsn says it, or `shards` in {config.path}"])
    if len(now.shards) >= SHARDS_MAX:
        raise ConfigError([f"shards add {name}: a deployment has at most {SHARDS_MAX} shards"])
    dsn = own.dsn if own is not None else str(_read(kinds.dsn, arguments.dsn, "--dsn"))
    weight = arguments.weight or (own.weight if own is not None else 1.0)
    if weight <= 0:
        raise ConfigError([f"shards add {name}: --weight {weight:g}: a weight is above 0"])
    return ShardConfig(name=name, dsn=dsn, weight=weight)


def _read(kind: kinds.Kind, text: str, what: str) -> object:
    try:
        return kind(text)
    except ValueError as error:
        raise ConfigError([f"shards add: {what} {text}: {error}"]) from None


async def _drain(config: Config, index: int) -> int:
    name = config.shards[index].name
    if not any(shard.share for at, shard in enumerate(config.shards) if at != index):
        raise ConfigError([f"shards drain {name}: there is no other shard that may take what it has"])
    await _set(config, index, "is_draining = true")
    draining = msgspec.structs.replace(config.shards[index], is_draining=True)
    shards = (*config.shards[:index], draining, *config.shards[index + 1 :])
    config = msgspec.structs.replace(config, shards=shards)
    code = 0
    while not code and (await order_empty(config, index) or await count_buckets(config, index)):
        code = await _see_done(config, emptying(name), f"emptying {name}")
    left = await count_buckets(config, index)
    say(f"shard {name} has {left} buckets" + ("" if left else f": `foreshard shards remove {name}` lets it go"))
    return code


async def _weigh(config: Config, index: int, weight: float | None) -> int:
    shard = config.shards[index]
    if weight is None or not weight > 0:
        raise ConfigError([f"shards weight {shard.name}: a weight above 0 is needed; `drain` empties a shard"])
    await _set(config, index, f"is_draining = false, weight = {float(weight)!r}")
    if shard.is_draining:
        await cancel(config, emptying(shard.name))
    say(f"shard {shard.name} has weight {weight:g}; the rebalancer moves what follows from it")
    return 0


async def _set(config: Config, index: int, change: str) -> None:
    first = config.shards[0]
    async with connected(f"shard {first.name}", first.dsn) as connection:
        if not await read_list(connection):
            raise ForeshardError(f"there is no deployment yet: run `foreshard apply -c {config.path}`")
        await connection.execute(f"UPDATE foreshard.shard SET {change} WHERE index = $1", index)


def _find(config: Config, name: str) -> int:
    names = [shard.name for shard in config.shards]
    if name not in names:
        raise ConfigError([f"{name}: no shard of that name; they are {', '.join(names)}"])
    return names.index(name)


async def _see_done(config: Config, reason: str, what: str) -> int:
    """Watch the moves of an order; exit code."""
    watching = Watching(what, is_terminal=sys.stderr.isatty())
    try:
        found = await watch(config, reason, watching.tell)
    except asyncio.CancelledError:
        watching.end()
        say("not watched any more; the moves go on, and the same command watches them again")
        raise
    watching.end()
    if found.total:
        took = f"in {found.seconds:.0f} s"
        say(f"{what}: {found.done} buckets, {found.rows:,} rows, {bytes_text(found.bytes)} moved {took}")
    if found.failed:
        say(f"{found.failed} moves were given up: run it again. SHOW MOVES tells why; one says: {found.problem}")
    return EXIT_FAILED if found.failed else 0


class Watching:
    """Tells how far an order has come: as a bar in a terminal, else a line now and then."""

    def __init__(self, what: str, *, is_terminal: bool) -> None:
        self._what = what
        self._is_terminal = is_terminal
        self._width = 0
        self._told_s = -TELL_INTERVAL_S
        self._said = ""

    def tell(self, progress: Progress) -> None:
        """How far it is now."""
        line = progress_line(self._what, progress, self._is_terminal)
        if self._is_terminal:
            print("\r" + line.ljust(self._width), end="", file=sys.stderr, flush=True)
            self._width = len(line)
        elif progress.total and progress.seconds - self._told_s >= TELL_INTERVAL_S and line != self._said:
            self._told_s, self._said = progress.seconds, line
            print(line, file=sys.stderr, flush=True)

    def end(self) -> None:
        """Leave the line."""
        if self._is_terminal and self._width:
            print(file=sys.stderr, flush=True)


def progress_line(what: str, progress: Progress, with_bar: bool) -> str:
    """Buckets, rows, bytes, how long it may take, and what keeps it."""
    ended = progress.done + progress.failed
    full = BAR_WIDTH * ended // progress.total if progress.total else BAR_WIDTH
    bar = f" [{'#' * full}{'.' * (BAR_WIDTH - full)}]" if with_bar else ""
    line = f"{what}{bar} {ended} of {progress.total} buckets, {progress.rows:,} rows, {bytes_text(progress.bytes)}"
    if progress.is_paused:
        return f"{line}; paused: `foreshard rebalance --resume`"
    if progress.left and not progress.is_led:
        return f"{line}; no balancer runs: is `foreshard serve` running?"
    if progress.left and ended and progress.seconds:
        return f"{line}, {progress.left * progress.seconds / ended:.0f} s left"
    return line


def say(line: str) -> None:
    """One line for the operator."""
    print(line, flush=True)
