"""Rounds of the same script through Foreshard and on one PostgreSQL, in turns; commits are durable on both sides.

The shards share the machine with that PostgreSQL: four of them have no more cores or disks than one, so a ratio says
what distribution costs, not what it gains.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench import Options, report
from bench.copy.command import copy
from bench.costs.kinds import BODY, PLACEMENT, SCHEMA, TABLES, TRIGGERS, Kind, all_kinds, tenants
from bench.costs.plots import draw
from bench.wire import pgbench
from bench.wire.peers import Peer, direct_peer, foreshard_peer
from foreshard.proxy.embedded import EmbeddedCluster
from tests.support.messages import SYNC, copy_data, extended
from tests.support.proxy import Proxy
from tests.support.raw import kinds
from tests.support.servers import Server

SHARDS = 4
ENTRIES_PER_ACCOUNT = 4
ITEMS_PER_TENANT = 250
STEP = 100  # rows per pipeline
PARCELS = 400
NUMBERS_AWAY = "SELECT substr(key, 8) FROM foreshard.away WHERE name = 'public.parcel.name'"
COPY_ROWS = 10_000
FIGURES = ("transactions_per_s", "p50_us", "p99_us")


class Length(NamedTuple):
    """How much is run."""

    accounts: int
    rounds: int
    words: tuple[str, str]  # pgbench's -T or -t


# 44 turns a round, of a second each: about five minutes.
BARRED_ROUNDS = 4  # times the others
FULL, SMALL = Length(5_000, 4, ("-T", "1")), Length(400, 1, ("-t", "10"))


def run(options: Options) -> dict[str, Any]:
    """The whole benchmark; prints its table."""
    length = SMALL if options.small else FULL
    with tempfile.TemporaryDirectory(prefix="foreshard-bench-") as name:
        directory = Path(name)
        directory.chmod(0o755)  # PostgreSQL runs as another user when we are root
        cluster = EmbeddedCluster(directory / "data", SHARDS, durable=True)
        try:
            compared = compare([shard.dsn for shard in cluster.start()], directory, length, options.seed)
        finally:
            cluster.stop()
    headings = ["statement", "clients", "one: p50 us", "Foreshard: p50 us", "one / Foreshard", "plain / this", "bar"]
    print(report.table(headings, [row_of(made) for made in compared]))
    print(
        f"{SHARDS} shards and one PostgreSQL on one machine, fsync on, {length.rounds} rounds in turns"
        f" ({BARRED_ROUNDS} times as many where a bar is against plain); ratios of transactions per second:"
        " median (least-most); plain: the same through Foreshard without the guarantee"
    )
    draw(compared, options.out / "costs.png")
    return {"accounts": length.accounts, "rounds": length.rounds, "kinds": compared}


def row_of(made: dict[str, Any]) -> list[object]:
    """One line of the table."""
    plain = made["plain_ratio"]
    return [
        made["kind"],
        made["clients"],
        *(round(made[side]["p50_us"]) for side in ("one", "foreshard")),
        shown(made["throughput_ratio"]),
        shown(plain) if plain else "",
        "" if made["bar"] is None else made["bar"],
    ]


def compare(dsns: list[str], directory: Path, length: Length, seed: int) -> list[dict[str, Any]]:
    """All kinds, both sides."""
    Server.of_dsn(dsns[0]).run("CREATE DATABASE one")
    one = Server.of_dsn(dsns[0])._replace(database="one")
    one.run(*SCHEMA)
    for dsn in dsns:
        Server.of_dsn(dsn).run(*SCHEMA)
    sections = {"workers": {"per_shard": 0}, "triggers": TRIGGERS, "placement": PLACEMENT}
    with Proxy(dsns, directory / "sharded", tables=TABLES, **sections) as proxy:
        fill(one, proxy.server, length.accounts)
        fill_items(one, proxy.server, length.accounts)
        home, away = fill_parcels(one, proxy.server, [Server.of_dsn(dsn) for dsn in dsns])
        for server in (one, *map(Server.of_dsn, dsns)):
            server.run("VACUUM ANALYZE")
        peers = (direct_peer(one), foreshard_peer(proxy))
        kinds_compared = all_kinds(length.accounts, SHARDS, home, away)
        compared = [compare_kind(kind, peers, directory, length, seed) for kind in kinds_compared]
        return [*compared, compare_copy(one, proxy.server, length)]


def fill(one: Server, sharded: Server, accounts: int) -> None:
    """The same accounts and entries on both sides."""
    for server in (one, sharded):
        with server.connect() as connection:
            for first in range(1, accounts + 1, STEP):
                keys = range(first, min(first + STEP, accounts + 1))
                asked = [
                    extended(
                        "INSERT INTO account (id, owner, balance) VALUES ($1, $2, 1000)", [key, b"owner " + key[-1:]]
                    )
                    for key in (b"%d" % key for key in keys)
                ]
                asked += [
                    extended("INSERT INTO entry (account_id, amount) VALUES ($1, 1)", [b"%d" % key])
                    for key in keys
                    for _ in range(ENTRIES_PER_ACCOUNT)
                ]
                answer = connection.ask(*asked, SYNC)
                assert "E" not in kinds(answer), answer[-2]


def fill_items(one: Server, sharded: Server, accounts: int) -> None:
    """The same tenants on both sides, one for each shard, and as many items of each."""
    for server in (one, sharded):
        for key in tenants(accounts, SHARDS):
            server.run(
                f"INSERT INTO tenant (id) VALUES ({key})",
                f"INSERT INTO item (tenant_id, n) SELECT {key}, n FROM generate_series(1, {ITEMS_PER_TENANT}) AS n",
            )


def fill_parcels(one: Server, sharded: Server, shards: list[Server]) -> tuple[list[int], list[int]]:
    """The same parcels on both sides; the numbers of those at home, and away from it."""
    for server in (one, sharded):
        with server.connect() as connection:
            for number in range(PARCELS):
                connection.rows(f"INSERT INTO parcel VALUES ('parcel {number}', '{BODY}')")
    away = set()
    for shard in shards:
        with shard.connect() as connection:
            away |= {int(row[0] or 0) for row in connection.rows(NUMBERS_AWAY)}
    return sorted(set(range(PARCELS)) - away), sorted(away)


@contextmanager
def asked_beside(server: Server, sql: str) -> Iterator[None]:
    """A client that asks the same all the while, for an answer of one moment."""
    stopping = threading.Event()

    def ask() -> None:
        with server.connect() as connection:
            connection.query("SET foreshard.snapshot = on")  # PostgreSQL takes it for a setting of somebody's
            while not stopping.is_set():
                connection.query(sql)

    with ThreadPoolExecutor(1) as threads:
        asking = threads.submit(ask)
        try:
            yield
        finally:
            stopping.set()
        asking.result()


def compare_copy(one: Server, sharded: Server, length: Length) -> dict[str, Any]:
    """COPY into a table whose keys clients give, its rows split over the shards: as a kind that has one transaction."""
    found: dict[str, list[dict[str, float]]] = {"one": [], "foreshard": []}
    for number in range(length.rounds):
        data = b"".join(b"copied %d.%d\t%s\n" % (number, row, BODY.encode()) for row in range(COPY_ROWS))
        for name, server in (("one", one), ("foreshard", sharded)):
            taken_s = copy(server, "COPY named FROM STDIN", [copy_data(data)])
            found[name].append({"transactions_per_s": 1 / taken_s, "p50_us": taken_s * 1e6, "p99_us": taken_s * 1e6})
    return {
        "kind": f"copy, {COPY_ROWS} rows split by shard",
        "clients": 1,
        "bar": None,
        **{name: medians(some) for name, some in found.items()},
        "throughput_ratio": ratio(found["one"], found["foreshard"]),
        "plain_ratio": None,
    }


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Of each figure, over the rounds."""
    return {figure: float(np.median([each[figure] for each in rounds])) for figure in FIGURES}


def compare_kind(kind: Kind, peers: tuple[Peer, Peer], directory: Path, length: Length, seed: int) -> dict[str, Any]:
    """One kind: medians of both sides, and the ratios of throughputs within the rounds."""
    one, foreshard = peers
    script = kind.write(directory, length.accounts)
    turns = [("one", one, script), ("foreshard", foreshard, script)]
    if kind.plain:
        turns.append(("plain", foreshard, kind.write_plain(directory, length.accounts)))
    found: dict[str, list[dict[str, float]]] = {name: [] for name, _, _ in turns}
    # What a bar holds against something else through Foreshard differs by less than a round's noise.
    rounds = length.rounds * (BARRED_ROUNDS if kind.plain and kind.bar else 1)
    for index in range(rounds):
        for name, peer, words in turns[index % len(turns) :] + turns[: index % len(turns)]:
            asking = asked_beside(peer.server, kind.beside) if kind.beside and name != "plain" else nullcontext()
            with asking:
                made = pgbench.run_round(
                    peer, clients=kind.clients, mode=kind.mode, length=length.words, seed=seed + index, scripts=words
                )
            found[name].append(made)
    return {
        "kind": kind.name,
        "clients": kind.clients,
        "bar": kind.bar,
        **{name: medians(some) for name, some in found.items()},
        "throughput_ratio": ratio(found["one"], found["foreshard"]),
        "plain_ratio": ratio(found["plain"], found["foreshard"]) if kind.plain else None,
    }


def ratio(some: list[dict[str, float]], others: list[dict[str, float]]) -> dict[str, float]:
    """Throughput of the first by that of the second, round by round."""
    each = [one["transactions_per_s"] / other["transactions_per_s"] for one, other in zip(some, others, strict=True)]
    return {"median": float(np.median(each)), "least": min(each), "most": max(each)}


def shown(found: dict[str, float]) -> str:
    """Median (least-most)."""
    return f"{found['median']:.2f} ({found['least']:.2f}-{found['most']:.2f})"
