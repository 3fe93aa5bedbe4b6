"""`foreshard check`: versions, settings, privileges and clocks of the databases, and what each shortfall costs."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from foreshard.proxy.config import Config, load_config
from foreshard.proxy.control.connect import connected, control_dsn
from foreshard.proxy.control.inspect import FAIL, OK, WARN, Finding, inspect, judge
from foreshard.proxy.control.shard_list import latest
from foreshard.proxy.embedded import running_shards
from foreshard.proxy.errors import ForeshardError

EXIT_FAILED = 1


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `foreshard check`."""
    parser.add_argument("-c", "--config", type=Path, required=True, metavar="FILE", help="configuration (YAML)")
    parser.add_argument("-q", "--quiet", action="store_true", help="print only warnings and failures")
    parser.epilog = "Exit codes: 0 nothing fails (there may be warnings), 1 something fails, 2 wrong configuration."


def run(arguments: argparse.Namespace) -> int:
    """Check and print."""
    config = load_config(arguments.config)
    with running_shards(config, may_make=False) as ready:
        findings = asyncio.run(check(latest(ready)))
    for line in finding_lines([finding for finding in findings if not arguments.quiet or finding.level != OK]):
        print(line)
    counts = {level: sum(finding.level == level for finding in findings) for level in (OK, WARN, FAIL)}
    print(f"{counts[OK]} ok, {counts[WARN]} warnings, {counts[FAIL]} failures")
    return EXIT_FAILED if counts[FAIL] else 0


async def check(config: Config) -> list[Finding]:
    """Findings about the shards and the control database; one that cannot be reached is a failure."""
    found: list[Finding] = []
    inspections = []
    for shard in config.shards:
        try:
            async with connected(f"shard {shard.name}", shard.dsn) as connection:
                inspections.append(await inspect(connection, config, f"shard {shard.name}"))
        except ForeshardError as error:
            cost = "its rows cannot be read or written, and it gets no new ones"
            found.append(
                Finding(place=f"shard {shard.name}", subject="connection", level=FAIL, value=str(error), cost=cost)
            )
    if config.control is not None:
        found.append(await _check_control(config))
    return [*found, *(judge(config, inspections) if inspections else ())]


async def _check_control(config: Config) -> Finding:
    try:
        async with connected("control database", control_dsn(config)) as connection:
            version = await connection.fetchval("SHOW server_version")
    except ForeshardError as error:
        cost = "serve does not start; a running proxy goes on with the map and models it has"
        return Finding(place="control database", subject="connection", level=FAIL, value=str(error), cost=cost)
    return Finding(place="control database", subject="connection", level=OK, value=f"version {version}")


def finding_lines(findings: list[Finding]) -> list[str]:
    """One line per finding, aligned, and below it what a shortfall costs."""
    places = max((len(finding.place) for finding in findings), default=0)
    subjects = max((len(finding.subject) for finding in findings), default=0)
    lines = []
    for finding in findings:
        lines.append(f"{finding.level:<4}  {finding.place:<{places}}  {finding.subject:<{subjects}}  {finding.value}")
        if finding.cost:
            lines.append(f"      {'':<{places}}  {finding.cost}")
    return lines
