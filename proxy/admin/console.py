"""The console: what a client hears that connects to the database `foreshard`.

`Console.execute` takes the text of one simple query and returns result sets, or raises `SqlError`; bytes, sockets and
transaction status are the session's. Where PgBouncer shows the same thing, command and column names are its own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from foreshard.proxy.admin import views, views_instances, views_moves, views_state, views_two_phase
from foreshard.proxy.admin.results import ResultSet, make_result
from foreshard.proxy.admin.sources import ConsoleSources
from foreshard.proxy.errors import SqlError, not_built

View = Callable[[ConsoleSources], Awaitable[ResultSet]]

CONSOLE_DATABASE = "foreshard"
HELP_HINT = "SHOW HELP lists what the console knows."

# name -> (what it shows, how); in the order SHOW HELP prints.
COMMANDS: dict[str, tuple[str, View]] = {
    "SHARDS": ("shards, their weight, buckets, load and backends", views_state.show_shards),
    "POOLS": ("backends and waiting clients per shard, database and user", views.show_pools),
    "CLIENTS": ("client connections, and why a session is pinned to a backend", views.show_clients),
    "SERVERS": ("backend connections", views.show_servers),
    "TABLES": ("declared tables, their keys and parents", views.show_tables),
    "BUCKETS": ("how many of the 4096 buckets each shard has", views_state.show_buckets),
    "BUCKETS ALL": ("the bucket map: bucket, shard and range of placed keys", views_state.show_all_buckets),
    "PLACEMENT": (
        "how new rows are placed, and how many went where they went for which reason",
        views_state.show_placement,
    ),
    "INSTANCES": (
        "the proxies on these shards, when each was heard last, and its part of the loads",
        views_instances.show_instances,
    ),
    "BALANCE": (
        "cost per shard: as measured under the policy in use, then what each policy, that one too, would have made of "
        "the same work, by its shadow ledger",
        views_state.show_balance,
    ),
    "PROFILES": (
        "cost of each trigger function, and how far off predictions of the last 256 calls were (1 is exact)",
        views_state.show_profiles,
    ),
    "PROFILES ALL": ("the same with queueing, wall time and each model's coefficients", views_state.show_all_profiles),
    "TRIGGERS": ("registered trigger functions", views.show_triggers),
    "OUTBOX": ("events not handled yet and dead letters, per shard and function", views.show_outbox),
    "TWO_PHASE": (
        "prepared transactions, and how those over several shards will end",
        views_two_phase.show_two_phase,
    ),
    "MOVES": (
        "moves of buckets between shards: under way, planned, and the last that ended",
        views_moves.show_moves,
    ),
    "REBALANCE": ("what the rebalancer has decided, newest first", views_moves.show_decisions),
    "CONFIG": ("the configuration in force, secrets left out", views.show_config),
    "VERSION": ("the version of Foreshard", views.show_version),
}


class Console:
    """Answers console commands from what the router lends it. Made once per router; keeps no state of its own."""

    def __init__(self, sources: ConsoleSources) -> None:
        self._sources = sources

    async def execute(self, sql: str) -> list[ResultSet]:
        """Run the commands of one query string; an empty list for an empty one.

        SqlError 42601 for what is no command, 0A000 for SQL that only a shard could answer.
        """
        return [await self._show(words) for words in split_commands(sql)]

    async def _show(self, words: list[str]) -> ResultSet:
        verb, *rest = (word.upper() for word in words)
        if verb != "SHOW":
            raise SqlError("0A000", f"the console answers SHOW commands only, not {words[0].upper()}", hint=HELP_HINT)
        name = " ".join(rest)
        if name in COMMANDS:
            return await COMMANDS[name][1](self._sources)
        if len(rest) != 1:
            raise SqlError("42601", "SHOW takes one name", hint=HELP_HINT)
        if rest[0] == "HELP":
            return show_help()
        raise SqlError("42704", f"there is nothing called {words[1]!r} to show", hint=HELP_HINT)


def console_greeting() -> bytes:
    """AuthenticationOk and the parameters that psql and drivers look at."""
    told = {
        "server_version": "18.0 (Foreshard console)",
        "server_encoding": "UTF8",
        "client_encoding": "UTF8",
        "DateStyle": "ISO, MDY",
        "integer_datetimes": "on",
        "standard_conforming_strings": "on",
    }
    answer = b"R\0\0\0\x08\0\0\0\0"
    for name, value in told.items():
        body = name.encode() + b"\0" + value.encode() + b"\0"
        answer += b"S" + (len(body) + 4).to_bytes(4, "big") + body
    return answer


def refuse_extended() -> SqlError:
    """The answer to Parse, Bind and their like on a console connection."""
    return not_built(
        "the extended query protocol in the console",
        "Use the simple protocol: psql, psycopg without parameters, or prefer_query_mode=simple.",
    )


def show_help() -> ResultSet:
    """Every command with one line on what it shows."""
    rows = [(f"SHOW {name}", text) for name, (text, _) in COMMANDS.items()]
    return make_result("command shows", [("SHOW HELP", "this list"), *rows])


def split_commands(sql: str) -> list[list[str]]:
    """Words of each command of a query string; comments to the end of the line are dropped, empty commands too."""
    text = "\n".join(line.partition("--")[0] for line in sql.splitlines())
    return [words for words in (command.split() for command in text.split(";")) if words]
