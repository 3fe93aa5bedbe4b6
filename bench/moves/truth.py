"""What the shards have at the end, against what clients were told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import psycopg

from bench.moves.load import Done
from bench.moves.probe import Probed

ACCOUNTS = "SELECT id, n, probed FROM account"
ENTRIES = "SELECT id, account_id FROM entry"
Rows = npt.NDArray[np.int64]


@dataclass
class Found:
    """Rows and writes that are not as they should be."""

    rows: int = 0
    lost: int = 0  # acknowledged writes: rows that are nowhere, updates that are not in them
    doubled: int = 0  # rows on two shards, updates made twice, rows that nobody has inserted


def check(dsns: Sequence[str], done: Done, probed: Probed) -> Found:
    """Compare all rows of all shards with the ledgers."""
    accounts, entries = read(dsns, ACCOUNTS, 3), read(dsns, ENTRIES, 2)
    found = Found(rows=len(accounts) + len(entries))
    for rows in (accounts, entries):
        found.doubled += len(rows) - len(np.unique(rows[:, 0]))
    found.lost += int(np.sum(~np.isin(np.array(done.entries, dtype=np.int64), entries[:, 0])))
    values = {int(key): (int(n), int(times)) for key, n, times in accounts}
    keys, counts = np.unique(entries[:, 1], return_counts=True)
    children = dict(zip(keys.tolist(), counts.tolist(), strict=True))
    ledgers = [(key, account) for owned in done.owned for key, account in owned.items()]
    found.doubled += max(len(values) - len(ledgers) - done.roots_unsure, 0)
    for key, account in ledgers:
        if key not in values:
            found.lost += 1
            continue
        n, times = values[key]
        _compare(found, n, account.n, account.unsure)
        _compare(found, children.get(key, 0), account.entries, account.unsure)
        _compare(found, times, probed.written[key], probed.unsure[key])
    return found


def _compare(found: Found, there: int, acknowledged: int, unsure: int) -> None:
    found.lost += max(acknowledged - there, 0)
    found.doubled += max(there - acknowledged - unsure, 0)


def read(dsns: Sequence[str], sql: str, columns: int) -> Rows:
    """The rows of a query of numbers on each shard itself."""
    parts = [np.empty((0, columns), dtype=np.int64)]
    for dsn in dsns:
        with psycopg.connect(dsn) as connection:
            rows = connection.execute(sql).fetchall()
        parts.append(np.array(rows, dtype=np.int64).reshape(-1, columns))
    return np.concatenate(parts)
