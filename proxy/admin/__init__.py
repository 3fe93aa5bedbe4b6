"""The console (`psql ... foreshard`), EXPLAIN (FORESHARD), and the command that asks for it."""

from foreshard.proxy.admin.asking import ask_control, ask_shards
from foreshard.proxy.admin.console import CONSOLE_DATABASE, Console, console_greeting, refuse_extended
from foreshard.proxy.admin.explain import Explanation, explain_result
from foreshard.proxy.admin.results import ResultSet, encode_results
from foreshard.proxy.admin.sources import ClientRow, ConsoleSources, PoolRow, ServerRow, ShardAnswer

__all__ = [
    "CONSOLE_DATABASE",
    "ClientRow",
    "Console",
    "ConsoleSources",
    "Explanation",
    "PoolRow",
    "ResultSet",
    "ServerRow",
    "ShardAnswer",
    "ask_control",
    "ask_shards",
    "console_greeting",
    "encode_results",
    "explain_result",
    "refuse_extended",
]
