"""The wire benchmark: rounds of every peer in turns, and what they say together.

Within a round the peers follow each other (A B C A B C ...), so that a machine that is busy for a while is busy for all
of them; ratios are taken within the round, and their median and spread over the rounds are what counts.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench import Options, report
from bench.wire import pgbench, plots, statements
from bench.wire.peers import (
    PGBOUNCER_PREPARED_SINCE,
    Peer,
    direct_peer,
    find_pgbouncer,
    foreshard_peer,
    pgbouncer_version,
    running_pgbouncer,
)
from foreshard.proxy.embedded import EmbeddedCluster
from tests.support.proxy import Proxy
from tests.support.servers import Server

CLIENTS = (1, 8, 64)
POOL_SIZE = 20
FIGURES = ("transactions_per_s", "p50_us", "p99_us", "cpu_us")
SHARDS = 3
KIND_CLIENTS = 8
CPU_RATIO_GOAL = 1.25  # to PgBouncer, on unrouted statements
KIND_RATIO_GOAL = 1.2  # to the unrouted statement


@dataclass(frozen=True)
class Scale:
    """How much is run."""

    rounds: int
    length: tuple[str, str]  # pgbench's option and value
    clients: tuple[int, ...]
    kind_modes: tuple[str, ...]
    rows: int


FULL = Scale(rounds=5, length=("-T", "2"), clients=CLIENTS, kind_modes=pgbench.MODES, rows=statements.ROWS)
SMALL = Scale(rounds=1, length=("-t", "25"), clients=(8,), kind_modes=("prepared",), rows=statements.ROWS_SMALL)


def run(options: Options) -> dict[str, Any]:
    """The whole benchmark; prints its tables, writes the plot beside its JSON."""
    scale = SMALL if options.small else FULL
    with tempfile.TemporaryDirectory(prefix="foreshard-bench-") as name:
        directory = Path(name)
        directory.chmod(0o755)  # PostgreSQL and PgBouncer run as another user when we are root
        with running_shards(directory) as shards:
            notes, cases = compare_peers(shards[0], directory, scale, options.seed)
            print_cases(cases, notes)
            kinds = compare_kinds(shards, directory, scale, options.seed)
            print_kinds(kinds)
    plots.draw(cases, kinds, options.out / "wire.png")
    return {"notes": notes, "pgbench": pgbench.version(), "cases": cases, "kinds": kinds}


@contextlib.contextmanager
def running_shards(directory: Path) -> Iterator[list[str]]:
    """Embedded shards without durability: the disk is not what is measured."""
    cluster = EmbeddedCluster(directory / "data", SHARDS, durable=False)
    try:
        yield [shard.dsn for shard in cluster.start()]
    finally:
        cluster.stop()


@dataclass(frozen=True)
class Peers:
    """Who takes part; PgBouncer only where it is installed."""

    direct: Peer
    foreshard: Peer
    transaction: Peer | None
    session: Peer | None
    notes: tuple[str, ...]

    def of(self, mode: str) -> list[Peer]:
        """The peers of one pgbench mode, in the order of a round."""
        bouncer = self.session if mode == "prepared" and self.session else self.transaction
        return [peer for peer in (self.direct, bouncer, self.foreshard) if peer is not None]


@contextlib.contextmanager
def running_peers(server: Server, proxy: Proxy, directory: Path, clients_max: int) -> Iterator[Peers]:
    """PgBouncer started beside the two that run already."""
    binary = find_pgbouncer()
    with contextlib.ExitStack() as stack:
        transaction = session = None
        if binary is None:
            notes = ["PgBouncer is not installed: compared with direct connections only"]
        else:
            version = pgbouncer_version(binary)
            transaction = stack.enter_context(running_pgbouncer(binary, server, directory, POOL_SIZE))
            notes = [
                f"PgBouncer {'.'.join(map(str, version))}, transaction pooling, {POOL_SIZE} backends, as Foreshard"
            ]
            if version < PGBOUNCER_PREPARED_SINCE:
                size = max(clients_max, POOL_SIZE)
                session = stack.enter_context(running_pgbouncer(binary, server, directory, size, session=True))
                notes.append(f"this PgBouncer has prepared statements in session pooling only: {size} backends there")
        yield Peers(direct_peer(server), foreshard_peer(proxy), transaction, session, tuple(notes))


def compare_peers(shard: str, directory: Path, scale: Scale, seed: int) -> tuple[tuple[str, ...], list[dict[str, Any]]]:
    """pgbench -S through every peer, with no table declared."""
    Server.of_dsn(shard).run("CREATE DATABASE plain")
    server = Server.of_dsn(shard)._replace(database="plain")
    pgbench.initialise(server)
    proxy = Proxy([server.dsn], directory / "plain", pool={"size": POOL_SIZE}, workers={"per_shard": 0})
    with proxy, running_peers(server, proxy, directory, max(scale.clients)) as peers:
        cases = [
            run_case(peers.of(mode), scale, seed, clients=clients, mode=mode)
            for mode in pgbench.MODES
            for clients in scale.clients
        ]
    return peers.notes, cases


def compare_kinds(shards: Sequence[str], directory: Path, scale: Scale, seed: int) -> list[dict[str, Any]]:
    """Routed and placed statements against unrouted ones, all through Foreshard, in turns."""
    for dsn in shards:
        Server.of_dsn(dsn).run(*statements.SCHEMA)
    sections = {"pool": {"size": POOL_SIZE}, **statements.configuration()}
    with Proxy(shards, directory / "sharded", **sections) as proxy:
        ranges = statements.key_ranges(statements.fill(proxy.server, scale.rows))
        statements.copy_rows(Server.of_dsn(shards[0]), ranges)
        statements.copy_capture(Server.of_dsn(shards[0]))
        kinds = statements.write_kinds(directory, ranges)
        peer = foreshard_peer(proxy)
        return [made for mode in scale.kind_modes for made in _run_kinds(peer, kinds, scale, mode, seed)]


def _run_kinds(
    peer: Peer, kinds: Sequence[statements.Kind], scale: Scale, mode: str, seed: int
) -> Iterator[dict[str, Any]]:
    rounds = [
        {
            kind.name: pgbench.run_round(
                peer, clients=KIND_CLIENTS, mode=mode, length=scale.length, seed=seed + index, scripts=kind.scripts
            )
            for kind in kinds
        }
        for index in range(scale.rounds)
    ]
    for kind in kinds:
        yield {
            "kind": kind.name,
            "mode": mode,
            "clients": KIND_CLIENTS,
            "figures": {name: spread([made[kind.name][name] for made in rounds]) for name in FIGURES},
            "cpu_ratios": {
                other: spread([made[kind.name]["cpu_us"] / made[other]["cpu_us"] for made in rounds])
                for other in kind.against
            },
        }


def run_case(peers: Sequence[Peer], scale: Scale, seed: int, **case: Any) -> dict[str, Any]:
    """All rounds of one case: figures per peer, and ratios of Foreshard to each of the others."""
    option, value = scale.length
    # pgbench's clock runs while its clients connect, which takes a while for many.
    length = (option, str(int(value) * 2)) if case["clients"] > KIND_CLIENTS else scale.length
    rounds = [
        {peer.name: pgbench.run_round(peer, length=length, seed=seed + index, **case) for peer in peers}
        for index in range(scale.rounds)
    ]
    figures = {
        peer.name: {name: spread([made[peer.name][name] for made in rounds]) for name in FIGURES} for peer in peers
    }
    ratios = {
        peer.name: {
            name: spread([made["foreshard"][name] / made[peer.name][name] for made in rounds])
            for name in FIGURES
            if all(made[peer.name][name] > 0 for made in rounds)
        }
        for peer in peers
        if peer.name != "foreshard"
    }
    return {**case, "figures": figures, "ratios": ratios}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": float(np.median(values)), "least": float(min(values)), "most": float(max(values))}


def print_cases(cases: Sequence[dict[str, Any]], notes: Sequence[str]) -> None:
    """One line per case and peer, with Foreshard's ratio to that peer."""
    rows = []
    for case in cases:
        for peer, figures in case["figures"].items():
            ratios = case["ratios"].get(peer, {})
            rows.append(
                [
                    case["mode"],
                    case["clients"],
                    peer,
                    *(round(figures[name]["median"], 1) for name in FIGURES),
                    *(shown(ratios.get(name)) for name in ("cpu_us", "transactions_per_s", "p50_us", "p99_us")),
                ]
            )
    headings = ["mode", "clients", "peer", "tx/s", "p50 us", "p99 us", "CPU us/tx"]
    print(report.table([*headings, "CPU ratio", "tx/s ratio", "p50 ratio", "p99 ratio"], rows))
    print("ratios: Foreshard to the peer of the line, median of the rounds (least-most)")
    for note in notes:
        print(note)
    found = [case["ratios"]["pgbouncer"]["cpu_us"]["median"] for case in cases if "pgbouncer" in case["ratios"]]
    if found:
        verdict = f"{min(found):.2f} to {max(found):.2f}, goal at most {CPU_RATIO_GOAL}"
        print(f"CPU per transaction against PgBouncer: {verdict}")


def print_kinds(kinds: Sequence[dict[str, Any]]) -> None:
    """One line per kind of statement."""
    rows = [
        [
            made["mode"],
            made["kind"],
            *(round(made["figures"][name]["median"], 1) for name in FIGURES),
            shown(ratio),
            other,
        ]
        for made in kinds
        for other, ratio in (made["cpu_ratios"] or {"": None}).items()
    ]
    print(report.table(["mode", "statement", "tx/s", "p50 us", "p99 us", "CPU us/tx", "CPU ratio", "to"], rows))
    print(f"{KIND_CLIENTS} clients; goal at most {KIND_RATIO_GOAL} of a statement that is as much work for the shard")
    print("captured: the shard's own trigger writes an event per row, in a table that the proxy knows nothing of")


def shown(ratio: dict[str, float] | None) -> str:
    """Median (least-most)."""
    return f"{ratio['median']:.2f} ({ratio['least']:.2f}-{ratio['most']:.2f})" if ratio else "-"
