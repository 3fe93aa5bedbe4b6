"""Buckets of three sizes move one after the other while 16 clients work at a steady rate; commits are durable.

Shards, proxy, clients and mover share one machine: what moves cost others here is mostly CPU time and fsync that they
would have on machines of their own elsewhere. So the clients do a part of what they could.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
from pathlib import Path
from typing import Any

from bench import Options, report
from bench.moves import figures
from bench.moves.driving import Driver
from bench.moves.phases import Length, Run, run_phases
from bench.moves.plots import draw
from bench.moves.truth import Found, check
from bench.moves.world import CLIENTS, SCHEMA, TABLES, Size, fill
from foreshard.proxy.config import load_config
from foreshard.proxy.control.plan import read_catalog
from foreshard.proxy.control.verify_findings import verdict_lines
from foreshard.proxy.embedded import EmbeddedCluster
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.verified import verdict_of

SHARDS = 4
SHARE = 0.6  # of what the clients could do: the machine has headroom, which is what a mover needs
LATE_MS = 100.0  # p99 of a machine that has no headroom left; chosen, not measured
FULL = Length(
    pairs=3,
    moves={Size.SMALL: 160, Size.MIDDLE: 28, Size.LARGE: 12},
    roots=8_000,
    rows={
        Size.MIDDLE: [4_550] * 14,  # the load adds some hundred while it runs
        Size.LARGE: (20_000, 26_000, 32_000, 38_000, 44_000, 50_000),
    },
    quiet_s=10.0,
    calibrate_s=4.0,
    share=SHARE,
    paced_pairs=3,
    paced_s=10.0,
)
SMALL = Length(
    pairs=2,
    moves={Size.SMALL: 14, Size.MIDDLE: 4, Size.LARGE: 2},
    roots=2_000,
    rows={Size.MIDDLE: [4_700] * 3, Size.LARGE: (8_000, 10_000)},
    quiet_s=1.5,
    calibrate_s=1.0,
    share=SHARE,
    paced_pairs=1,
    paced_s=1.5,
)


def run(options: Options) -> dict[str, Any]:
    """The whole benchmark; prints its tables."""
    length = SMALL if options.small else FULL
    with tempfile.TemporaryDirectory(prefix="foreshard-bench-") as name:
        directory = Path(name)
        directory.chmod(0o755)  # PostgreSQL runs as another user when we are root
        cluster = EmbeddedCluster(directory / "data", SHARDS, durable=True)
        try:
            result = measure([shard.dsn for shard in cluster.start()], directory, length, options)
        finally:
            cluster.stop()
    show(result)
    draw(result, options.out / "moves.png")
    return result


def measure(dsns: list[str], directory: Path, length: Length, options: Options) -> dict[str, Any]:
    """Fill, run, and hold the shards against what clients were told."""
    for dsn in dsns:
        Server.of_dsn(dsn).run(*SCHEMA)
    sections = {"workers": {"per_shard": 0}, "rebalance": {"automatic": False}}
    with Proxy(dsns, directory / "sharded", tables=TABLES, **sections) as proxy:
        made = asyncio.run(work(proxy, length, options.seed))
        verdict = verdict_of(proxy.configuration)
    found = check(dsns, made.done, made.probed)
    return summary(made, length, options.seed, found, [] if verdict.is_clean else verdict_lines(verdict))


async def work(proxy: Proxy, length: Length, seed: int) -> Run:
    """The rows, then the phases."""
    world = await fill(proxy.server.dsn, length.roots, length.rows, random.Random(seed))
    for shard in (config := load_config(proxy.configuration)).shards:
        await asyncio.to_thread(Server.of_dsn(shard.dsn).run, "VACUUM ANALYZE", "CHECKPOINT")
    catalog = await read_catalog(config)
    return await run_phases(world, lambda aim: Driver(config, catalog, aim, seed), proxy.server.dsn, length, seed)


def summary(made: Run, length: Length, seed: int, found: Found, findings: list[str]) -> dict[str, Any]:
    """All figures, and what is wrong."""
    moves = figures.pauses(made, seed)
    errors = made.done.error_count + made.probed.error_count
    undone = [move for move in (*made.moves, *made.paced_moves) if move.state != "done"]
    failures = [
        *([f"{errors} errors of clients: {'; '.join([*made.done.errors, *made.probed.errors])}"] if errors else []),
        *([f"{found.lost} acknowledged writes are lost"] if found.lost else []),
        *([f"{found.doubled} rows or writes are doubled"] if found.doubled else []),
        *[f"move of bucket {move.bucket}: {move.state}; {move.problem}" for move in undone],
        *findings,
    ]
    return {
        "clients": CLIENTS,
        "rate_most": made.done.rate_most,
        "rate": made.rate,
        "share": length.share,
        "moves": moves,
        "sizes": figures.by_size(moves),
        "pause_of_copied": figures.pause_of_copied(moves),
        "others": figures.others(made),
        "others_paced": figures.paced(made),
        "large_against_copy": figures.speeds(made),
        "probe_writes": len(made.probed.took_s),
        "acts": len(made.done.took_s),
        "rows_checked": found.rows,
        "client_errors": errors,
        "lost": found.lost,
        "doubled": found.doubled,
        "verify": findings,
        "timeline": figures.timeline(made),
        "failures": failures,
    }


def show(result: dict[str, Any]) -> None:
    """Print the tables."""
    headings = ["buckets", "moves", "tried again", "ways", "rows", "move, s", "longest write, ms", "as long without"]
    print(report.table([*headings, "mover's pause, ms"], [size_row(size) for size in result["sizes"]]))
    print("longest write of a client to the moving bucket, that of as long a time without a move, and what the mover")
    print("says: p50 / p99 / longest over the moves; rows and seconds: median (least-most)")
    if (grown := result["pause_of_copied"]) is not None:
        print(
            f"of buckets copied before: {grown['fixed_ms']:.0f} ms and {grown['per_10000_rows_ms']:.0f} ms more for"
            " each 10,000 rows (least squares over the mover's pauses)"
        )
    print()
    show_ratios("other clients, moves without rest", result["others"])
    print(
        f"{result['clients']} clients at {result['rate']:.0f} per s, {result['share']:.0%} of the"
        f" {result['rate_most']:.0f} that they could do; ratios of {len(result['others']['phases']) // 2} pairs of"
        " phases: median (least-most)"
    )
    if result["others"]["figures"]["p99_since_due_ms"]["without"] > LATE_MS:
        print("The clients were late without moves, too: the machine had other work, and these figures mean little.")
    print()
    paced = result["others_paced"]
    show_ratios("other clients, moves at the rebalancer's pace", paced)
    print(f"{paced['moves']} moves of {paced['rows']} rows in {paced['seconds']:.0f} s\n")
    show_others(result["others"])
    if (speed := result["large_against_copy"]) is not None:
        shown_speeds = [f"{speed[name]['median']:.0f}" for name in ("move_rows_per_s", "copy_rows_per_s")]
        print(
            f"\nlarge moves {shown_speeds[0]} rows per s, COPY of the same rows to another shard {shown_speeds[1]}:"
            f" ratio {shown(speed['ratio'])} of {len(speed['pairs'])} pairs"
        )
    print(
        f"{SHARDS} shards on one machine, fsync on; {sum(size['moves'] for size in result['sizes'])} moves of"
        f" {sum(size['rows_in_all'] for size in result['sizes'])} rows; {result['acts']} acts of clients and"
        f" {result['probe_writes']} of the probe; errors {result['client_errors']}, lost {result['lost']}, doubled"
        f" {result['doubled']} of {result['rows_checked']} rows; verify: {'FINDINGS' if result['verify'] else 'clean'}"
    )


def show_ratios(title: str, others: dict[str, Any]) -> None:
    """Print what the other clients saw with moves and without."""
    names = {"per_s": "per s", "p50_ms": "p50, ms", "p99_ms": "p99, ms", "most_ms": "longest, ms"}
    names["p99_since_due_ms"] = "p99 since it was due, ms"
    rows = [
        [names[name], figure["without"], figure["beside"], shown(figure["ratio"])]
        for name, figure in others["figures"].items()
    ]
    print(report.table([title, "without moves", "with", "with / without"], rows))


def show_others(others: dict[str, Any]) -> None:
    """Print what the other clients saw, by what moved and by what they did."""
    during = others["during"]
    kinds = [(name, during[name]) for name in ("none", *(size.value for size in Size)) if during.get(name)]
    print(report.table(["others while this moves", "p50 / p99 / longest, ms"], [(n, three(f, 1)) for n, f in kinds]))
    print()
    rows = [
        [name.replace("_", " "), *(three(found[word], 1) if found[word] else "" for word in ("without", "beside"))]
        for name, found in others["deeds"].items()
    ]
    print(report.table(["p50 / p99 / longest, ms", "without moves", "with"], rows))


def size_row(size: dict[str, Any]) -> list[object]:
    """One line of the first table."""
    return [
        size["size"],
        size["moves"],
        size["tried_again"],
        ", ".join(f"{count} {way}" for way, count in size["ways"].items() if count),
        shown(size["rows"], 0),
        shown(size["took_s"]),
        *(three(size[name]) for name in ("write_longest", "write_longest_quiet", "mover_pause")),
    ]


def shown(found: dict[str, float], digits: int = 2) -> str:
    """Median (least-most)."""
    return f"{found['median']:.{digits}f} ({found['least']:.{digits}f}-{found['most']:.{digits}f})"


def three(found: dict[str, float], digits: int = 0) -> str:
    """p50 / p99 / longest."""
    return " / ".join(f"{found[name]:.{digits}f}" for name in ("p50_ms", "p99_ms", "most_ms"))
