"""A client that writes to one row back to back, in a process of its own: what the pause of a move is to a writer."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.connection import Connection as Pipe

import psycopg

UPDATE = "UPDATE account SET probed = probed + 1 WHERE id = %s"
ERRORS_KEPT = 20


@dataclass
class Probed:
    """What it did and was told."""

    began_s: list[float] = field(default_factory=list)  # seconds since the epoch
    took_s: list[float] = field(default_factory=list)
    written: Counter[int] = field(default_factory=Counter)  # acknowledged updates by key
    unsure: Counter[int] = field(default_factory=Counter)
    error_count: int = 0
    errors: list[str] = field(default_factory=list)


def run_probe(dsn: str, pipe: Pipe) -> None:
    """The process: each key it is sent is the next to write to, answered once written; None ends it with Probed."""
    probed = Probed()
    connection = psycopg.connect(dsn, autocommit=True)
    key: int | None = pipe.recv()
    is_new = True
    while key is not None:
        began_s, began = time.time(), time.perf_counter()
        try:
            count = connection.execute(UPDATE, (key,)).rowcount
            if count != 1:
                raise AssertionError(f"{count} rows of account {key} were updated")
        except (psycopg.Error, AssertionError) as error:
            _note(probed, key, error)
            connection.close()
            connection = psycopg.connect(dsn, autocommit=True)
        else:
            probed.began_s.append(began_s)
            probed.took_s.append(time.perf_counter() - began)
            probed.written[key] += 1
        if is_new:
            pipe.send(key)
            is_new = False
        if pipe.poll():
            key, is_new = pipe.recv(), True
    connection.close()
    pipe.send(probed)


def _note(probed: Probed, key: int, error: Exception) -> None:
    probed.unsure[key] += 1
    probed.error_count += 1
    if len(probed.errors) < ERRORS_KEPT:
        probed.errors.append(f"probe: {type(error).__name__} {getattr(error, 'sqlstate', '')} {error}")
