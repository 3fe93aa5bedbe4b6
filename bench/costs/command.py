"""Rounds of the same script through Foreshard and on one PostgreSQL, in turns; commits are durable on both sides.

The shards share the machine with that PostgreSQL: four of them have no more cores or disks than one, so a ratio says
what distribution costs, not what it gains.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench import Options, report
from bench.costs.kinds import SCHEMA, TABLES, Kind, all_kinds
from bench.costs.plots import draw
from bench.wire import pgbench
from bench.wire.peers import Peer, direct_peer, foreshard_peer
from foreshard.proxy.embedded import EmbeddedCluster
from tests.support.messages import SYNC, extended
from tests.support.proxy import Proxy
from tests.support.raw import kinds
from tests.support.servers import Server

SHARDS = 4
ENTRIES_PER_ACCOUNT = 4
STEP = 100  # rows per pipeline
FIGURES = ("transactions_per_s", "p50_us", "p99_us")


class Length(NamedTuple):
    """How much is run."""

    accounts: int
    rounds: int
    words: tuple[str, str]  # pgbench's -T or -t


FULL, SMALL = Length(5_000, 5, ("-T", "2")), Length(400, 1, ("-t", "10"))


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
        f"{SHARDS} shards and one PostgreSQL on one machine, fsync on, {length.rounds} rounds in turns; ratios of"
        " transactions per second: median (least-most); plain: the same through Foreshard without the guarantee"
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
    with Proxy(dsns, directory / "sharded", tables=TABLES, workers={"per_shard": 0}) as proxy:
        fill(one, proxy.server, length.accounts)
        for server in (one, *map(Server.of_dsn, dsns)):
            server.run("VACUUM ANALYZE")
        peers = (direct_peer(one), foreshard_peer(proxy))
        return [compare_kind(kind, peers, directory, length, seed) for kind in all_kinds(length.accounts, SHARDS)]


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


def compare_kind(kind: Kind, peers: tuple[Peer, Peer], directory: Path, length: Length, seed: int) -> dict[str, Any]:
    """One kind: medians of both sides, and the ratios of throughputs within the rounds."""
    one, foreshard = peers
    script = kind.write(directory, length.accounts)
    turns = [("one", one, script), ("foreshard", foreshard, script)]
    if kind.plain:
        turns.append(("plain", foreshard, kind.write_plain(directory, length.accounts)))
    found: dict[str, list[dict[str, float]]] = {name: [] for name, _, _ in turns}
    for index in range(length.rounds):
        for name, peer, words in turns:
            made = pgbench.run_round(
                peer, clients=kind.clients, mode="simple", length=length.words, seed=seed + index, scripts=words
            )
            found[name].append(made)
    sides = {
        name: {figure: float(np.median([each[figure] for each in some])) for figure in FIGURES}
        for name, some in found.items()
    }
    return {
        "kind": kind.name,
        "clients": kind.clients,
        "bar": kind.bar,
        **sides,
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
