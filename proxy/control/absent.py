"""Shards that are down when Foreshard starts: found, left out, and checked before they are used.

The first shard (and the control database) must be there. What configuration asks of any other cannot be looked at while
it is down, so the controller looks when it comes, before it calls the shard up in shared state; until then routers
refuse its statements, nothing is placed there, and the supervisor starts no workers for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection

from foreshard._core.shared import SharedState
from foreshard.proxy.config import Config, ShardConfig
from foreshard.proxy.control.connect import connected
from foreshard.proxy.control.plan import is_applied
from foreshard.proxy.control.two_phase import two_phase_ready
from foreshard.proxy.errors import ForeshardError

ARRIVAL_POLL_S = 0.25  # shared memory wakes nobody; chosen, not measured
UNCHECKED_HELP = "a shard that was down when the supervisor started: looked at before it is used"

log = logging.getLogger("foreshard.router")


async def find_down(config: Config) -> dict[str, str]:
    """Why each shard that cannot be reached cannot, by name; the first shard is not asked, for it is needed."""
    others = config.shards[1:]
    reasons = await asyncio.gather(*map(_look, others))
    return {shard.name: reason for shard, reason in zip(others, reasons, strict=True) if reason}


async def _look(shard: ShardConfig) -> str:
    """Why the shard cannot be reached; empty when it can."""
    try:
        async with connected(f"shard {shard.name}", shard.dsn) as connection:
            await connection.fetchval("SELECT 1")
    except ForeshardError as error:
        return str(error)
    return ""


async def check_shard(config: Config, name: str) -> None:
    """ForeshardError unless this shard has what the configuration asks for; the others but the first are not asked."""
    others = {shard.name for shard in config.shards[1:]} - {name}
    if not await is_applied(config, others):
        raise ForeshardError(
            f"it is there, but not prepared for {config.path}; its statements are refused: run "
            f"`foreshard apply -c {config.path}` (`foreshard plan` shows what it would do)"
        )


class Arrivals:
    """What one router leaves out until the controller calls it up in shared state."""

    def __init__(self, config: Config, state: SharedState, unchecked: set[int], tell: Callable[[bool], None]) -> None:
        """`unchecked` is the relay's own set; `tell` hears of an arrival whether every shard can prepare now."""
        self.config = config
        self._state = state
        self._unchecked = unchecked
        self._tell = tell

    def leave_out(self, names: Collection[str]) -> None:
        """Refuse the statements of these shards, unless they have been looked at by now."""
        for index, shard in enumerate(self.config.shards):
            if shard.name in names and not self._state.shard(index).up:
                self._unchecked.add(index)
                log.warning("shard %s was down at the start: its statements are refused until it is there", shard.name)

    async def run(self) -> None:
        """Take in what comes; returns when nothing is left out."""
        while self._unchecked:
            await asyncio.sleep(ARRIVAL_POLL_S)
            for index in self.arrived():
                can_prepare = len(await two_phase_ready(self.config)) == len(self.config.shards)
                self._unchecked.discard(index)
                self._tell(can_prepare)
                log.info("shard %s is there and in use", self.config.shards[index].name)

    def arrived(self) -> list[int]:
        """Those left out that are called up now."""
        return [index for index in sorted(self._unchecked) if self._state.shard(index).up]
