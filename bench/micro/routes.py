"""Cached route decisions: texts as clients send them, routed again and again."""

from __future__ import annotations

from collections.abc import Callable

from foreshard._core import route_loops
from foreshard._core.statement_cache import StatementCache
from foreshard.proxy.catalog import Catalog, Column, Table, TableKind
from foreshard.proxy.routing import Planner

CATALOG = Catalog(
    tables={
        "public.document": Table(
            schema="public",
            name="document",
            kind=TableKind.ROOT,
            key="id",
            key_type="bigint",
            columns=tuple(
                Column(name=name, type_name=type_name, type_oid=type_oid, has_default=name == "id")
                for name, type_name, type_oid in (("id", "bigint", 20), ("path", "text", 25), ("body", "text", 25))
            ),
        )
    }
)
TEXTS = 64  # of each form, with other literals
KEY = (5_000_000_001).to_bytes(8, "big")


def routes() -> dict[str, tuple[Callable[[int], object], float | None]]:
    """Name -> (loop over so many calls, bar in nanoseconds)."""
    cache = StatementCache(Planner(CATALOG).plan)
    plain = [f"SELECT abalance FROM pgbench_accounts WHERE aid = {number};".encode() for number in range(TEXTS)]
    keyed = [f"SELECT path, body FROM document WHERE id = {number * 7919};".encode() for number in range(TEXTS)]
    bound = [b"SELECT path, body FROM document WHERE id = $1"]
    placed = [
        f"INSERT INTO document (path, body) VALUES ('/usr/lib/{number}', '{'x' * 200}') RETURNING id".encode()
        for number in range(TEXTS)
    ]
    return {
        "lift literals, 51 bytes": (lambda count: route_loops.loop_lift(plain, count), None),
        "cached route, plain": (lambda count: route_loops.loop_route(cache, plain, [], count), 2000),
        "cached route, key in the text": (lambda count: route_loops.loop_route(cache, keyed, [], count), 2000),
        "cached route, bound key": (lambda count: route_loops.loop_route(cache, bound, [KEY], count), 2000),
        "cached route, row to place": (lambda count: route_loops.loop_route(cache, placed, [], count), 2000),
        "prepared route, bound key": (lambda count: route_loops.loop_bound(cache, bound[0], [KEY], count), None),
    }
