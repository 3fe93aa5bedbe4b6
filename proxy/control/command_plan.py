"""`foreshard plan`: what the databases lack, as SQL."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from pathlib import Path

from foreshard.proxy.config import Config, EmbeddedConfig, load_config
from foreshard.proxy.control.plan import Plan, planned
from foreshard.proxy.control.shard_list import latest
from foreshard.proxy.control.sizes import bytes_text
from foreshard.proxy.control.spread_facts import Unit
from foreshard.proxy.embedded import is_made, running_shards, shard_names

EXIT_LACKING = 1


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `foreshard plan`."""
    parser.add_argument("-c", "--config", type=Path, required=True, metavar="FILE", help="configuration (YAML)")
    parser.add_argument("-s", "--summary", action="store_true", help="name the objects only, without their SQL")
    parser.epilog = (
        "Exit codes: 0 nothing to do, 1 something is lacking, 2 the configuration is wrong or does not fit the "
        "databases. Changes nothing: it works in transactions that it rolls back. Embedded shards that do not run are "
        "started for as long as it takes; those that do not exist yet are left to apply."
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the plan."""
    config = load_config(arguments.config)
    if config.embedded is not None and not is_made(config.embedded):
        for line in unmade_lines(config, config.embedded):
            print(line)
        return EXIT_LACKING
    with running_shards(config, may_make=False) as ready:
        return asyncio.run(_print_plan(latest(ready), arguments.summary))


async def _print_plan(config: Config, is_summary: bool) -> int:
    async with planned(config) as plan:
        for line in plan_lines(plan, is_summary, [shard.name for shard in config.shards]):
            print(line)
        if not plan.lacking_count:
            return 0
        print(f"-- {plan.lacking_count} objects lacking; make them with: foreshard apply -c {config.path}")
        return EXIT_LACKING


def unmade_lines(config: Config, embedded: EmbeddedConfig) -> list[str]:
    """What there is to say about embedded shards that do not exist yet."""
    return [
        f"-- the embedded shards {', '.join(shard_names(embedded))} below {embedded.data} do not exist yet",
        f"-- make them, and what this configuration needs on them, with: foreshard apply -c {config.path}",
    ]


def plan_lines(plan: Plan, is_summary: bool = False, names: Sequence[str] = ()) -> list[str]:
    """The plan as SQL with comments."""
    lines = [f"-- note: {note}" for note in plan.notes]
    for work in plan.all_works:
        if work.all_lacking:
            lines += ["", f"-- {work.name} ({work.place}) lacks {len(work.all_lacking)} objects"]
        for step in work.all_lacking:
            lines.append(f"-- {step.object}")
            if not is_summary:
                lines.append((step.shown or step.sql).rstrip("\n"))
    lines += [f"-- all shards lack {intake.object}: apply takes them in, a few at a time" for intake in plan.intakes]
    for unit in plan.units:
        lines += spread_lines(unit, names)
    return lines if plan.lacking_count else [*lines, "nothing to do"]


def spread_lines(unit: Unit, names: Sequence[str]) -> list[str]:
    """What spreading these tables will move, and what that costs their clients."""
    found = ["", f"-- spread over the shards, in one transaction that locks them: {', '.join(unit.names)}"]
    for moving in unit.movings:
        given = [
            f"{count:,} rows ({bytes_text(moving.bytes[index])}) go to {names[index]}"
            for index, count in sorted(moving.rows.items())
            if index
        ]
        made = [f"made on {', '.join(names[index] for index in moving.lacking)}"] if moving.lacking else []
        stay = [f"{moving.rows[0]:,} rows stay on {names[0]}"] if moving.rows.get(0) else []
        found.append(f"-- {moving.object}: {'; '.join([*made, *given, *stay]) or 'none'}")
    return found
