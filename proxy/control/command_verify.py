"""`foreshard verify`: whether every row is where it belongs, once, asked of the shards themselves."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from foreshard.proxy.config import load_config
from foreshard.proxy.control.shard_list import latest
from foreshard.proxy.control.verify import Options, run_verify
from foreshard.proxy.control.verify_findings import verdict_lines
from foreshard.proxy.embedded import running_shards
from foreshard.proxy.errors import ConfigError, ForeshardError

EXIT_FOUND = 1
EXIT_BLIND = 2


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `foreshard verify`."""
    parser.add_argument("-c", "--config", type=Path, required=True, metavar="FILE", help="configuration (YAML)")
    parser.add_argument("--table", metavar="NAME", help="look at the rows of this declared table only")
    parser.add_argument("--quick", action="store_true", help="ranges and aggregates only: no row is read")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there too")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")
    parser.epilog = (
        "Exit codes: 0 clean, 1 something is wrong, 2 could not look (a shard is down, wrong configuration). "
        "Only reads; may run beside traffic: what looks wrong is looked at again before it is told."
    )


def run(arguments: argparse.Namespace) -> int:
    """Verify and tell."""
    config = load_config(arguments.config)
    watch = Watch(is_terminal=sys.stderr.isatty(), is_quiet=arguments.quiet)
    try:
        with running_shards(config, may_make=False) as ready:
            verdict = run_verify(latest(ready), Options(table=arguments.table, is_quick=arguments.quick), watch.on_rows)
    except ForeshardError as error:
        watch.end()
        if isinstance(error, ConfigError):
            raise
        for line in str(error).splitlines():
            print(f"foreshard: {line}", file=sys.stderr)
        return EXIT_BLIND
    watch.end()
    for line in verdict_lines(verdict):
        print(line)
    if arguments.json is not None:
        arguments.json.write_bytes(verdict.to_json() + b"\n")
    return EXIT_BLIND if verdict.unreachable else EXIT_FOUND if verdict.findings else 0


class Watch:
    """Tells how far the rows have been read: on one line in a terminal, else one line per table and shard."""

    def __init__(self, *, is_terminal: bool, is_quiet: bool) -> None:
        self._is_terminal = is_terminal
        self._is_quiet = is_quiet
        self._rows: dict[tuple[str, str], int] = {}
        self._width = 0

    def on_rows(self, table: str, shard: str, rows: int, is_done: bool) -> None:
        """A chunk of a table on a shard was looked at."""
        if self._is_quiet:
            return
        if not self._is_terminal:
            if is_done:
                print(f"{table} on {shard}: {rows:,} rows", file=sys.stderr, flush=True)
            return
        self._rows[table, shard] = rows
        said = f"{table}: " + ", ".join(f"{of} {count:,}" for (name, of), count in self._rows.items() if name == table)
        self._width = max(self._width, len(said))
        print(f"\r{said:<{self._width}}", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Leave the line to others."""
        if self._width:
            print(f"\r{' ' * self._width}\r", end="", file=sys.stderr, flush=True)
