"""Routers alone over one deployment, so that what ends what they leave behind is up to the test."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from foreshard.proxy.config import load_config
from foreshard.proxy.control.recovery import Recovery
from foreshard.proxy.placement import attach_state
from tests.support.postgres import Shards
from tests.support.proxy import Proxy
from tests.support.sharded import PREPARED

WRITING = """SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
  AND backend_type = 'client backend' AND backend_xid IS NOT NULL"""


class Routers:
    """Starts routers, each in a folder of its own; the first one's configuration is applied unless it has been."""

    def __init__(
        self, shards: Shards, folder: Path, tables: Mapping[str, Any], *, is_applied: bool = False, **sections: Any
    ) -> None:
        self.shards = shards
        self.folder = folder
        self.tables = tables
        self.is_applied = is_applied
        self.sections = sections
        self._numbers = itertools.count()

    @contextlib.contextmanager
    def router(self, **environment: str) -> Iterator[Proxy]:
        """One that runs until the block ends; `environment` arms its control points."""
        folder = self.folder / f"router-{next(self._numbers)}"
        proxy = Proxy(
            self.shards.dsns,
            folder,
            tables=self.tables,
            command="router",
            apply=not self.is_applied,
            environment=environment,
            **self.sections,
        )
        self.is_applied = True
        (folder / "run").mkdir()
        attach_state(load_config(proxy.configuration))
        proxy.start()
        try:
            yield proxy
        finally:
            proxy.stop()

    def count(self, sql: str) -> int:
        """The sum of what all shards count."""
        return sum(int(str(self.shards.query(sql, on=index)[0][0])) for index in range(len(self.shards.shards)))

    def is_writing(self) -> bool:
        """Whether a write is still under way. (The routers' own readings of the catalog do not matter here.)"""
        return self.count(WRITING) > 0

    def recover(self, proxy: Proxy) -> None:
        """Rounds of recovery that waits for no coordinator, until nothing is prepared."""
        asyncio.run(self._recover(proxy))

    async def _recover(self, proxy: Proxy) -> None:
        recovery = Recovery(load_config(proxy.configuration), lambda line: None)
        recovery.grace_s = 0.0
        try:
            async with asyncio.timeout(30):
                while self.count(PREPARED):
                    await recovery.run_round()
        finally:
            recovery.close()
