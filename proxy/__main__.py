"""The `foreshard` command: a table of subcommands, each imported only when it is called."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from foreshard.proxy import __version__
from foreshard.proxy.errors import ForeshardError

# name -> (module with configure(parser) and run(arguments) -> exit code, one line of help; None hides it)
COMMANDS: dict[str, tuple[str, str | None]] = {
    "serve": ("foreshard.proxy.server", "start the proxy, its controller and its workers"),
    "demo": ("foreshard.proxy.demo.command", "run the demo on embedded shards"),
    "adopt": ("foreshard.proxy.control.command_adopt", "propose how an existing database could be sharded"),
    "plan": ("foreshard.proxy.control.command_plan", "show what the shards lack, as SQL"),
    "apply": ("foreshard.proxy.control.command_apply", "make what plan shows"),
    "check": ("foreshard.proxy.control.command_check", "look at versions, settings, privileges and clocks"),
    "verify": ("foreshard.proxy.control.command_verify", "prove that every row is where it belongs, once"),
    "worker": (
        "foreshard.proxy.triggers.worker",
        "one more worker process for a shard, beside those of serve, on this host or another",
    ),
    "rebalance": (
        "foreshard.proxy.move.command_rebalance",
        "look at, ask for and pause moves of buckets between shards",
    ),
    "shards": ("foreshard.proxy.move.command_shards", "list, add, drain, remove and weigh shards"),
    "triggers": ("foreshard.proxy.triggers.command", "list, pause and resume trigger functions; replay dead letters"),
    "explain": ("foreshard.proxy.admin.command_explain", "ask a running proxy how it would route a statement"),
    "router": ("foreshard.proxy.router", None),
    "controller": ("foreshard.proxy.control.controller", None),
    "balancer": ("foreshard.proxy.move.balancer", None),
}

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


def build_parser() -> argparse.ArgumentParser:
    """The parser of what comes before a subcommand: it tells of them all, and refuses what is none of them."""
    parser = argparse.ArgumentParser(
        prog="foreshard",
        description="A PostgreSQL sharding proxy that places rows by the predicted cost of their trigger functions.",
        epilog="Exit codes: 0 done, 1 failed or something missing, 2 usage or configuration, 130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"foreshard {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (_, summary) in COMMANDS.items():
        if summary is not None:
            commands.add_parser(name, help=summary)
    return parser


def build_command_parser(name: str) -> argparse.ArgumentParser:
    """The parser of one subcommand's words; no other command's module is imported."""
    module_name, summary = COMMANDS[name]
    parser = argparse.ArgumentParser(prog=f"foreshard {name}", description=summary)
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    importlib.import_module(module_name).configure(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; errors are one line on standard error."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] not in COMMANDS:
        build_parser().parse_args(words)  # ends the process: help, version, or what is wrong
    name, *rest = words
    arguments = build_command_parser(name).parse_intermixed_args(rest)  # options may stand anywhere
    try:
        return int(importlib.import_module(COMMANDS[name][0]).run(arguments))
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except ForeshardError as error:
        if arguments.debug:
            raise
        for line in str(error).splitlines():
            print(f"foreshard: {line}", file=sys.stderr)
        return EXIT_USAGE if type(error).__name__ == "ConfigError" else EXIT_FAILURE


if __name__ == "__main__":
    sys.exit(main())
