"""`foreshard adopt`: how an existing database could be sharded, as a report and as a configuration file."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path

from foreshard.proxy.config import kinds
from foreshard.proxy.control.adopt import propose
from foreshard.proxy.control.adopt_read import read_live
from foreshard.proxy.control.adopt_report import configuration_lines, report_lines
from foreshard.proxy.errors import ConfigError, ForeshardError


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `foreshard adopt`."""
    parser.add_argument("dsn", metavar="DSN", help="the database, as postgresql://USER@HOST:PORT/DATABASE")
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="write the proposed configuration there (- for standard output)"
    )
    parser.epilog = (
        "Changes nothing: reads catalogs, statistics and one place of each key's index in a read-only transaction. "
        "ANALYZE first, so that the estimates are good."
    )


def run(arguments: argparse.Namespace) -> int:
    """Inspect, report, and write the file."""
    try:
        dsn = kinds.dsn(arguments.dsn)
    except ValueError as error:
        raise ConfigError([f"DSN {error}"]) from None
    live = asyncio.run(read_live(dsn))
    proposal = propose(live)
    report = "\n".join(report_lines(live, proposal))
    configuration = "\n".join(configuration_lines(live, proposal, dsn)) + "\n"
    if arguments.write == Path("-"):
        print(report, file=sys.stderr)
        print(configuration, end="")
        return 0
    print(report)
    print()
    if arguments.write is None:
        print(f"Have it as a configuration file: foreshard adopt {_quiet(dsn)} --write foreshard.yaml")
        return 0
    try:
        with arguments.write.open("x") as file:
            file.write(configuration)
    except OSError as error:
        raise ForeshardError(f"{arguments.write}: {os.strerror(error.errno or 0)}") from None
    print(f"Wrote {arguments.write}. See what it would change: foreshard plan -c {arguments.write}")
    return 0


def _quiet(dsn: str) -> str:
    """The DSN without what nobody should read."""
    start, at, rest = dsn.partition("@")
    return dsn if not at or start.count(":") < 2 else f"{start.rpartition(':')[0]}:...@{rest}"
