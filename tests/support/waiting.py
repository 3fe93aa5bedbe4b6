"""Waiting for a condition with a deadline; how long it takes is no test's business."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
DEADLINE_S = 60.0
POLL_S, POLL_S_MAX = 0.01, 0.1  # what is asked of a shard costs it a session, which keeps others waiting


def wait_until(holds: Callable[[], T], deadline_s: float = DEADLINE_S) -> T:
    """What the condition gives once it holds; AssertionError after the deadline."""
    began_s = time.monotonic()
    while True:
        seen = holds()
        if seen:
            return seen
        waited_s = time.monotonic() - began_s
        assert waited_s < deadline_s, f"did not hold within {deadline_s:g} s: {holds}"
        time.sleep(min(max(waited_s / 10, POLL_S), POLL_S_MAX))


def process_state(pid: int) -> str:
    """R running, S sleeping, T stopped ... as /proc has it."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def is_running(pid: int) -> bool:
    """True while the process exists and is no zombie."""
    try:
        return process_state(pid) != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until_gone(*pids: int) -> None:
    """Return once none of the processes runs."""
    wait_until(lambda: not any(is_running(pid) for pid in pids))
