"""Two proxies with the same configuration but for where they listen and run, over the same shards."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.proxy import Proxy, command_line


@contextlib.contextmanager
def two_proxies(
    dsns: Sequence[str],
    folder: Path,
    tables: Mapping[str, Any],
    *,
    first: Mapping[str, str] | None = None,
    second: Mapping[str, str] | None = None,
    **sections: Any,
) -> Iterator[tuple[Proxy, Proxy]]:
    """Both running; `first` and `second` are more of their environments."""
    sections = {"tables": tables, "workers": {"per_shard": 0}, **sections}
    with (
        Proxy(dsns, folder / "one", environment=first, **sections) as one,
        Proxy(dsns, folder / "two", apply=False, environment=second, **sections) as two,
    ):
        yield one, two


def children(proxy: Proxy, word: str) -> list[int]:
    """Process ids of the children that run a subcommand."""
    return [pid for pid in proxy.pids() if f"\0{word}\0".encode() in command_line(pid)]


def hurt(proxy: Proxy, word: str, number: signal.Signals) -> list[int]:
    """Send a signal to the children that run a subcommand; those that got it."""
    hit = []
    for pid in children(proxy, word):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
            hit.append(pid)
    return hit
