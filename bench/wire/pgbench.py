"""One round of pgbench: throughput, latency quantiles, and the CPU time a peer used meanwhile."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bench.wire.peers import Peer
from foreshard.proxy.embedded import find_binaries
from tests.support.servers import Server

MODES = ("simple", "extended", "prepared")


def initialise(server: Server, scale: int = 1) -> None:
    """Make pgbench's tables."""
    _pgbench(server, "-i", "-q", "-s", str(scale))


def run_round(
    peer: Peer, *, clients: int, mode: str, length: Sequence[str], seed: int, scripts: Sequence[str] = ()
) -> dict[str, float]:
    """Figures of one run.

    `length` is pgbench's -T or -t with its value, `scripts` its choice of scripts (default: the built-in select-only).
    """
    with tempfile.TemporaryDirectory() as folder:
        before = peer.cpu_s()
        output = _pgbench(
            peer.server,
            *(scripts or ("-S",)),
            *("-n", "-M", mode, "-c", str(clients), "-j", "1", "--random-seed", str(seed)),
            *(*length, "-l", "--log-prefix", f"{folder}/log"),
        )
        cpu_s = peer.cpu_s() - before
        latencies_us = _read_latencies(Path(folder))
    transactions = int(_find(r"number of transactions actually processed: (\d+)", output))
    failed = int(_find(r"number of failed transactions: (\d+)", output))
    if failed or transactions == 0:
        raise RuntimeError(f"{peer.name}: {failed} of {transactions} transactions failed\n{output}")
    p50, p99 = np.percentile(latencies_us, (50, 99))
    return {
        "transactions_per_s": float(_find(r"tps = ([\d.]+) \(without", output)),
        "p50_us": float(p50),
        "p99_us": float(p99),
        "cpu_us": cpu_s / transactions * 1e6,
        "transactions": transactions,
    }


def version() -> str:
    """What pgbench calls itself."""
    binary = find_binaries().folder / "pgbench"
    return subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout.strip()


def _pgbench(server: Server, *words: str) -> str:
    binary = find_binaries().folder / "pgbench"
    where = ["-h", server.host, "-p", str(server.port), "-U", server.user]
    done = subprocess.run([binary, *where, *words, server.database], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"pgbench {' '.join(words)}: {done.stderr[-2000:]}")
    return done.stdout


def _read_latencies(folder: Path) -> np.ndarray:
    """The third column of pgbench's transaction log, in microseconds."""
    found = []
    for log in folder.iterdir():
        with log.open("rb") as lines:
            found += [int(line.split(b" ", 3)[2]) for line in lines]
    return np.array(found)


def _find(pattern: str, output: str) -> str:
    match = re.search(pattern, output)
    if match is None:
        raise RuntimeError(f"pgbench did not print {pattern!r}:\n{output}")
    return match.group(1)
