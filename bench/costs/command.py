"""Rounds of the same script through Foreshard and on one PostgreSQL, in turns; commits are durable on both sides.

The shards share the machine with that PostgreSQL: four of them have no more cores or disks than one, so a ratio says
what distribution costs, not what it gains.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from bench import Options, report
from bench.costs.kinds import KINDS, SCHEMA, TABLES, Kind
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
ACCOUNT = "INSERT INTO account (id, owner, balance) VALUES ($1, $2, 1000)"


def run(options: Options) -> dict[str, Any]:
    """The whole benchmark; prints its table."""
    accounts, rounds = (200, 1) if options.small else (5_000, 5)
    length = ("-t", "20") if options.small else ("-T", "2")
    with tempfile.TemporaryDirectory(prefix="foreshard-bench-") as name:
        directory = Path(name)
        directory.chmod(0o755)  # PostgreSQL runs as another user when we are root
        cluster = EmbeddedCluster(directory / "data", SHARDS, durable=True)
        try:
            compared = compare(
                [shard.dsn for shard in cluster.start()], directory, accounts, rounds, length, options.seed
            )
        finally:
            cluster.stop()
    rows = [
        [made["kind"], made["clients"], *(round(made[side]["p50_us"]) for side in ("one", "foreshard")), made["shown"]]
        for made in compared
    ]
    print(
        report.table(["statement", "clients", "one: p50 us", "Foreshard: p50 us", "throughput, one / Foreshard"], rows)
    )
    print(f"{SHARDS} shards and one PostgreSQL on one machine, fsync on, {rounds} rounds in turns: median (least-most)")
    return {"accounts": accounts, "rounds": rounds, "kinds": compared}


def compare(
    dsns: list[str], directory: Path, accounts: int, rounds: int, length: tuple[str, str], seed: int
) -> list[dict[str, Any]]:
    """All kinds, both sides."""
    Server.of_dsn(dsns[0]).run("CREATE DATABASE one")
    one = Server.of_dsn(dsns[0])._replace(database="one")
    one.run(*SCHEMA)
    for dsn in dsns:
        Server.of_dsn(dsn).run(*SCHEMA)
    with Proxy(dsns, directory / "sharded", tables=TABLES, workers={"per_shard": 0}) as proxy:
        fill(one, proxy.server, accounts)
        for server in (one, *map(Server.of_dsn, dsns)):
            server.run("VACUUM ANALYZE")
        peers = (direct_peer(one), foreshard_peer(proxy))
        return [compare_kind(kind, peers, directory, accounts, rounds, length, seed) for kind in KINDS]


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


def compare_kind(
    kind: Kind,
    peers: tuple[Peer, Peer],
    directory: Path,
    accounts: int,
    rounds: int,
    length: tuple[str, str],
    seed: int,
) -> dict[str, Any]:
    """One kind: medians of both sides, and the ratio of throughputs within the rounds."""
    script = kind.write(directory, accounts)
    found = [
        [
            pgbench.run_round(
                peer, clients=kind.clients, mode="simple", length=length, seed=seed + index, scripts=script
            )
            for peer in peers
        ]
        for index in range(rounds)
    ]
    ratios = [one["transactions_per_s"] / other["transactions_per_s"] for one, other in found]
    names = ("transactions_per_s", "p50_us", "p99_us")
    return {
        "kind": kind.name,
        "clients": kind.clients,
        "one": {name: float(np.median([one[name] for one, _ in found])) for name in names},
        "foreshard": {name: float(np.median([other[name] for _, other in found])) for name in names},
        "throughput_ratio": {"median": float(np.median(ratios)), "least": min(ratios), "most": max(ratios)},
        "shown": f"{np.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})",
    }
