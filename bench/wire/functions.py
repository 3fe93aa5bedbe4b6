"""The trigger function that the benchmark registers; no worker runs it."""

from __future__ import annotations

from typing import Any


def index_document(event: Any) -> None:
    """Nothing: what counts here is the placing of the row."""
