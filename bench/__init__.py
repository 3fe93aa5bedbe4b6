"""Benchmarks: `python -m bench [NAME...] [--small] [--seed N] [--out DIR]`.

A bench is a subpackage of this one with `run(options) -> dict`: it prints its tables, returns what belongs in its JSON
file, and puts figures beside it. What must not happen at all it names under `failures`: the command fails then. Under
`--small` it finishes in seconds: so it runs inside the test suite.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Options:
    """What every bench is told."""

    small: bool = False
    seed: int = 1
    out: Path = field(default=RESULTS)  # exists when a bench runs


class Failed(Exception):
    """A bench has found something that must not be; its result is written."""
