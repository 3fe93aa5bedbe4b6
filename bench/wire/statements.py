"""Kinds of statements through Foreshard: routed and placed ones, each against the unrouted one it resembles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.support.messages import SYNC, extended
from tests.support.servers import Server

SCHEMA = (
    "CREATE TABLE document (id bigserial PRIMARY KEY, path text, body text)",
    "CREATE TABLE watched (id bigserial PRIMARY KEY, path text, body text)",
    "CREATE TABLE page (id bigserial PRIMARY KEY, path text, body text)",
    "CREATE TABLE watched_page (id bigserial PRIMARY KEY, path text, body text)",
)
TABLES = {"document": {"key": "id"}, "watched": {"key": "id"}}
TRIGGERS = {
    "index_document": {
        "table": "watched",
        "on": ["insert"],
        "function": "functions:index_document",
        "profile": {"cpu": "5ms"},
    }
}
ROWS, ROWS_SMALL = 3000, 200
SCRIPTS_MAX = 20  # key ranges that are drawn from; enough for every shard to be asked
BODY = "x" * 200


@dataclass(frozen=True)
class Kind:
    """pgbench scripts of one kind, and the kinds it is compared with."""

    name: str
    scripts: tuple[str, ...]  # arguments of pgbench
    against: tuple[str, ...] = ()


def fill(server: Server, rows: int) -> list[int]:
    """Insert rows into `document` one by one; their placed keys, in order."""
    keys = []
    with server.connect() as connection:
        for index in range(rows):
            sql = "INSERT INTO document (path, body) VALUES ($1, $2) RETURNING id"
            answer = connection.ask(extended(sql, [b"path %d" % index, BODY.encode()]), SYNC)
            (key,) = [message.values[0] for message in answer if message.kind == b"D"]
            keys.append(int(key or 0))
    return sorted(keys)


def key_ranges(keys: Sequence[int]) -> list[tuple[int, int]]:
    """The longest runs of consecutive keys, which pgbench can draw from."""
    breaks = [index for index, (one, next_one) in enumerate(pairwise(keys), 1) if next_one != one + 1]
    edges = [0, *breaks, len(keys)]
    runs = [(keys[start], keys[end - 1]) for start, end in pairwise(edges)]
    return sorted(runs, key=lambda run: run[0] - run[1])[:SCRIPTS_MAX]


def copy_rows(server: Server, ranges: Sequence[tuple[int, int]]) -> None:
    """Give the plain table rows with the same keys."""
    for low, high in ranges:
        server.run(f"INSERT INTO page SELECT n, 'path', '{BODY}' FROM generate_series({low}, {high}) n")
    server.run("VACUUM ANALYZE page")


def copy_capture(server: Server) -> None:
    """Give `watched_page`, unknown to the proxy, the capture triggers of `watched`: as much work."""
    with server.connect() as connection:
        where = "tgrelid = 'watched'::regclass AND NOT tgisinternal"
        made = connection.value(f"SELECT string_agg(pg_get_triggerdef(oid), ';') FROM pg_trigger WHERE {where}")
    server.run(*str(made).replace("public.watched", "public.watched_page").split(";"))


def write_kinds(directory: Path, ranges: Sequence[tuple[int, int]]) -> list[Kind]:
    """Scripts of every kind."""

    def select(table: str) -> tuple[str, ...]:
        return tuple(_script_words(directory, f"select-{table}", list(_selects(table, ranges))))

    def insert(table: str) -> tuple[str, ...]:
        line = f"INSERT INTO {table} (path, body) VALUES (:n, '{BODY}');"
        return tuple(_script_words(directory, f"insert-{table}", [(f"\\set n random(1, 1000000)\n{line}\n", 1)]))

    return [
        Kind("select, unrouted", select("page")),
        Kind("select, routed by placed key", select("document"), ("select, unrouted",)),
        Kind("insert, unrouted", insert("page")),
        Kind("insert, placed", insert("document"), ("insert, unrouted",)),
        Kind("insert, unrouted, captured", insert("watched_page")),
        Kind("insert, placed by cost", insert("watched"), ("insert, unrouted, captured", "insert, unrouted")),
    ]


def configuration() -> dict[str, Any]:
    """Sections of the proxy's configuration for these tables; events stay in the outbox, no worker disturbs."""
    return {
        "tables": TABLES,
        "triggers": TRIGGERS,
        "functions_path": str(Path(__file__).resolve().parent),
        "workers": {"per_shard": 0},
    }


def _selects(table: str, ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[str, int]]:
    for low, high in ranges:
        yield f"\\set k random({low}, {high})\nSELECT path FROM {table} WHERE id = :k;\n", high - low + 1


def _script_words(directory: Path, name: str, scripts: Sequence[tuple[str, int]]) -> Iterator[str]:
    for index, (script, weight) in enumerate(scripts):
        path = directory / f"{name}-{index}.sql"
        path.write_text(script)
        yield from ("-f", f"{path}@{weight}")
