"""`foreshard explain`: ask a running proxy how it would route a statement, and why. The statement is not run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

from foreshard.proxy.admin.simple_query import ask
from foreshard.proxy.config import Config, load_config
from foreshard.proxy.embedded import resolve_shards
from foreshard.proxy.errors import ForeshardError, SqlError


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `foreshard explain`."""
    parser.add_argument("-c", "--config", type=Path, required=True, metavar="FILE", help="configuration (YAML)")
    parser.add_argument("sql", metavar="SQL", help='one statement with its values in it, or "-" to read it from stdin')
    parser.epilog = "The same as EXPLAIN (FORESHARD) <statement> on any connection to the proxy."


def run(arguments: argparse.Namespace) -> int:
    """Print the explanation, one line each."""
    config = resolve_shards(load_config(arguments.config))
    sql = sys.stdin.read() if arguments.sql == "-" else arguments.sql
    user, database = login_of(config)
    try:
        answer = ask(config.listen_host, config.listen_port, user, database, f"EXPLAIN (FORESHARD) {sql}")
    except SqlError as error:
        more = [f"{name}: {text}" for name, text in (("DETAIL", error.detail), ("HINT", error.hint)) if text]
        raise ForeshardError("\n".join([f"{error.message} (SQLSTATE {error.sqlstate})", *more])) from error
    for row in answer.rows:
        print(row[0])
    return 0


def login_of(config: Config) -> tuple[str, str]:
    """User and database of the first shard, which is what clients of the proxy use."""
    url = urlsplit(config.shards[0].dsn)
    user = unquote(url.username or "postgres")
    return user, unquote(url.path.lstrip("/")) or user
