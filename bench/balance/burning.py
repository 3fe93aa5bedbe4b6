"""Trigger functions of the balance bench on real shards: each burns as much CPU as its row says."""

from __future__ import annotations

import time
from typing import Any

S_PER_BYTE = 5e-6  # of an item's or a part's payload
S_PER_TAG = 5e-4


def burn_payload(event: Any) -> None:
    """CPU in proportion to the payload's length."""
    burn(len(event.new["payload"]) * S_PER_BYTE * event.new["noise"])


def burn_tags(event: Any) -> None:
    """CPU in proportion to the number of tags."""
    burn(len(event.new["tags"]) * S_PER_TAG * event.new["noise"])


def burn(seconds: float) -> None:
    """Compute until this thread has used so much CPU, however busy the machine is."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        sum(range(200))
