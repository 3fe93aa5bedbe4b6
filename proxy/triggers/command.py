"""`foreshard triggers`: what waits, what failed, and what to do about it, on every shard or on one."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import asyncpg

from foreshard.proxy.config import Config, ShardConfig, load_config
from foreshard.proxy.embedded import served
from foreshard.proxy.errors import ConfigError, ForeshardError
from foreshard.proxy.triggers.outbox import EVENT_COLUMNS

CONNECT_TIMEOUT_S = 10.0
ACTIONS = ("list", "replay", "pause", "resume")

STATE = """\
SELECT $1::text AS function,
  (SELECT count(*) FROM foreshard.outbox WHERE function = $1) AS waiting,
  (SELECT count(*) FROM foreshard.outbox WHERE function = $1 AND not_before IS NOT NULL) AS retrying,
  (SELECT count(*) FROM foreshard.dead_letter WHERE function = $1) AS dead_letters,
  (SELECT extract(epoch FROM clock_timestamp() - min(captured_at))::double precision
   FROM foreshard.outbox WHERE function = $1) AS oldest_s,
  EXISTS (SELECT FROM foreshard.paused_function WHERE function = $1) AS is_paused,
  (SELECT error FROM foreshard.dead_letter WHERE function = $1 ORDER BY id DESC LIMIT 1) AS last_error
"""
STRAYS = "SELECT function FROM foreshard.outbox UNION SELECT function FROM foreshard.dead_letter ORDER BY 1"
REPLAY = f"""\
WITH gone AS (
  DELETE FROM foreshard.dead_letter WHERE ($1::text IS NULL OR function = $1) AND ($2::bigint IS NULL OR id = $2)
  RETURNING *
)
INSERT INTO foreshard.outbox ({EVENT_COLUMNS}) SELECT {EVENT_COLUMNS} FROM gone ON CONFLICT DO NOTHING
"""
PAUSE = "INSERT INTO foreshard.paused_function (function) VALUES ($1) ON CONFLICT DO NOTHING"
RESUME = "DELETE FROM foreshard.paused_function WHERE function = $1"


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `foreshard triggers`."""
    parser.add_argument("action", choices=ACTIONS, help="replay puts dead letters back, out of their order")
    parser.add_argument(
        "function", nargs="?", metavar="FUNCTION", help="name in `triggers:`; replay, list: all without it"
    )
    parser.add_argument("-c", "--config", type=Path, required=True, metavar="FILE", help="configuration (YAML)")
    parser.add_argument("--shard", metavar="NAME", help="only this shard")
    parser.add_argument("--id", type=int, metavar="ID", help="replay: only this row of foreshard.dead_letter")


def run(arguments: argparse.Namespace) -> int:
    """Carry out one action; exit code."""
    config = served(load_config(arguments.config))
    shards = [shard for shard in config.shards if arguments.shard in (None, shard.name)]
    if not shards:
        raise ConfigError([f"--shard {arguments.shard}: the shards are {', '.join(s.name for s in config.shards)}"])
    if arguments.id is not None and (arguments.action != "replay" or len(shards) != 1):
        raise ForeshardError("--id belongs to `replay`, and numbers are a shard's own: name it with --shard")
    if arguments.action in ("pause", "resume"):
        _check_function(arguments.function, [trigger.name for trigger in config.triggers])
    return asyncio.run(_run(config, shards, arguments))


async def _run(config: Config, shards: Sequence[ShardConfig], arguments: argparse.Namespace) -> int:
    registered = [trigger.name for trigger in config.triggers]
    if arguments.function not in (None, *registered):
        _check_function(arguments.function, registered + await _find_strays(shards))
    lines: list[tuple[str, ...]] = []
    for shard in shards:
        async with _connected(shard) as connection:
            if arguments.action == "list":
                lines.extend(await _list(connection, config, shard, arguments.function))
            else:
                print(f"{shard.name}: {await _change(connection, arguments)}")
    if arguments.action == "list":
        _print_table(("shard", "function", "state", "waiting", "retrying", "oldest_s", "dead", "last error"), lines)
    return 0


@contextlib.asynccontextmanager
async def _connected(shard: ShardConfig) -> AsyncIterator[asyncpg.Connection[Any]]:
    """A connection to a shard, for a moment."""
    try:
        connection = await asyncpg.connect(shard.dsn, timeout=CONNECT_TIMEOUT_S)
    except (OSError, TimeoutError, asyncpg.PostgresError) as error:
        raise ForeshardError(f"shard {shard.name}: cannot connect: {error}") from error
    try:
        yield connection
    except asyncpg.UndefinedTableError as error:
        raise ForeshardError(f"shard {shard.name}: {error}: run `foreshard apply`") from error
    finally:
        await connection.close()


async def _find_strays(shards: Sequence[ShardConfig]) -> list[str]:
    """Functions that have events or dead letters on these shards, registered or not."""
    found: set[str] = set()
    for shard in shards:
        async with _connected(shard) as connection:
            found |= {row[0] for row in await connection.fetch(STRAYS)}
    return sorted(found)


async def _change(connection: asyncpg.Connection[Any], arguments: argparse.Namespace) -> str:
    """Carry out replay, pause or resume on one shard; what happened."""
    if arguments.action == "replay":
        status = await connection.execute(REPLAY, arguments.function, arguments.id)
        return f"{status.split()[-1]} dead letters put back; later events of their rows may have been handled before"
    await connection.execute(PAUSE if arguments.action == "pause" else RESUME, arguments.function)
    return f"{arguments.function} {arguments.action}d; running workers notice within a second"


async def _list(
    connection: asyncpg.Connection[Any], config: Config, shard: ShardConfig, only: str | None
) -> list[tuple[str, ...]]:
    registered = [trigger.name for trigger in config.triggers]
    strays = [row[0] for row in await connection.fetch(STRAYS) if row[0] not in registered]
    lines: list[tuple[str, ...]] = []
    for name in (*registered, *strays):
        if only not in (None, name):
            continue
        row = await connection.fetchrow(STATE, name)
        assert row is not None
        state = "not registered" if name in strays else "paused" if row["is_paused"] else "running"
        oldest = "-" if row["oldest_s"] is None else f"{row['oldest_s']:.1f}"
        error = (row["last_error"] or "-").splitlines()[-1][:100]
        counts = (str(row["waiting"]), str(row["retrying"]), oldest, str(row["dead_letters"]))
        lines.append((shard.name, name, state, *counts, error))
    return lines


def _check_function(name: str | None, known: Sequence[str]) -> None:
    if name not in known:
        raise ForeshardError(f"which function? {', '.join(known) or 'none is registered'}")


def _print_table(head: tuple[str, ...], lines: Sequence[tuple[str, ...]]) -> None:
    widths = [max(len(line[index]) for line in (head, *lines)) for index in range(len(head))]
    for line in (head, *lines):
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
