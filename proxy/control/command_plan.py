"""`foreshard plan`: what the databases lack, as SQL."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from foreshard.proxy.config import Config, load_config
from foreshard.proxy.control.plan import Plan, planned
from foreshard.proxy.embedded import running_shards

EXIT_LACKING = 1


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `foreshard plan`."""
    parser.add_argument("-c", "--config", type=Path, required=True, metavar="FILE", help="configuration (YAML)")
    parser.add_argument("-s", "--summary", action="store_true", help="name the objects only, without their SQL")
    parser.epilog = (
        "Exit codes: 0 nothing to do, 1 something is lacking, 2 the configuration cannot be. "
        "Changes nothing: it works in transactions that it rolls back."
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the plan."""
    config = load_config(arguments.config)
    with running_shards(config) as ready:
        return asyncio.run(_print_plan(ready, arguments.summary))


async def _print_plan(config: Config, is_summary: bool) -> int:
    async with planned(config) as plan:
        for line in plan_lines(plan, is_summary):
            print(line)
        if not plan.lacking_count:
            return 0
        print(f"-- {plan.lacking_count} objects lacking; make them with: foreshard apply -c {config.path}")
        return EXIT_LACKING


def plan_lines(plan: Plan, is_summary: bool = False) -> list[str]:
    """The plan as SQL with comments."""
    lines = [f"-- note: {note}" for note in plan.notes]
    for work in plan.works:
        if work.all_lacking:
            lines += ["", f"-- {work.name} ({work.place}) lacks {len(work.all_lacking)} objects"]
        for step in work.all_lacking:
            lines.append(f"-- {step.object}")
            if not is_summary:
                lines.append(step.sql.rstrip("\n"))
    return lines if plan.lacking_count else [*lines, "nothing to do"]
