"""`foreshard apply`: makes what `foreshard plan` shows."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from foreshard.proxy.config import load_config
from foreshard.proxy.control.plan import apply
from foreshard.proxy.control.shard_list import latest
from foreshard.proxy.embedded import running_shards


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `foreshard apply`."""
    parser.add_argument("-c", "--config", type=Path, required=True, metavar="FILE", help="configuration (YAML)")
    parser.epilog = (
        "One transaction per database: it has all of it or nothing, and a second run makes what is still lacking. "
        "Filled tables are spread in a transaction over all shards, which locks them until it ends. "
        "Gives up, without a change, when a table stays locked for 10 seconds."
    )


def run(arguments: argparse.Namespace) -> int:
    """Apply and say what was made."""
    config = load_config(arguments.config)
    with running_shards(config) as ready:
        count = asyncio.run(apply(latest(ready), lambda line: print(line, flush=True)))
    print(f"made {count} objects" if count else "nothing to do")
    return 0
