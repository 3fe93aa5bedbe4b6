"""Waiting for a condition with a deadline; how long it takes is no test's business."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
DEADLINE_S = 60.0
POLL_S = 0.01


def wait_until(holds: Callable[[], T], deadline_s: float = DEADLINE_S) -> T:
    """What the condition gives once it holds; AssertionError after the deadline."""
    end_s = time.monotonic() + deadline_s
    while True:
        seen = holds()
        if seen:
            return seen
        assert time.monotonic() < end_s, f"did not hold within {deadline_s:g} s: {holds}"
        time.sleep(POLL_S)


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
