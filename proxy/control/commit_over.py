"""Commits transactions of ours that are open on several shards: on all of them, or on none (ARCHITECTURE.md,
"Distributed commit"). Whoever dies in between, recovery ends it as the decision says.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import asyncpg

from foreshard._core.two_phase import make_gid, new_id
from foreshard.proxy.control.introspect import Connection
from foreshard.proxy.triggers.capture import quote_text
from foreshard.proxy.triggers.points import control_point

DURABLE = "SELECT set_config('synchronous_commit', 'local', true) WHERE current_setting('synchronous_commit') = 'off'"


class Commitment:
    """One commit over several shards, in two steps: `prepare` (which `undo` takes back), then `decide`."""

    def __init__(
        self,
        cluster: str,
        decision: tuple[str, Connection],
        others: Mapping[str, Connection],
        points: tuple[str, str, str],
    ) -> None:
        """The shard that decides and the others, by name. `points` are the control points behind each PREPARE, the
        decision and each COMMIT PREPARED.
        """
        self._id = new_id()
        self._deciding = decision[1]
        self._others = others
        self._points = points
        self._gids = {name: make_gid(cluster, decision[0], self._id, name) for name in others}
        self._prepared: list[str] = []  # those that `undo` has to roll back
        self._is_decided = False  # or it is not known whether

    async def prepare(self, last_words: Mapping[str, str] = MappingProxyType({})) -> None:
        """PREPARE everywhere but where it is decided; an error leaves nothing behind. `last_words` are statements of
        some of the shards, each with its semicolon, in one message with their PREPARE.
        """
        try:
            for name, gid in self._gids.items():
                await self._others[name].execute(f"{last_words.get(name, '')}PREPARE TRANSACTION {quote_text(gid)}")
                self._prepared.append(name)
                control_point(self._points[0])
        except (asyncpg.PostgresError, OSError):
            await self.undo()
            raise

    async def undo(self) -> None:
        """Roll back what is prepared, unless it may have been decided."""
        while self._prepared and not self._is_decided:
            name = self._prepared.pop()
            await self._others[name].execute(f"ROLLBACK PREPARED {quote_text(self._gids[name])}")

    async def decide(self, last_words: str = "") -> None:
        """Commit everywhere. `last_words` are statements of the deciding shard.

        An error of its COMMIT leaves it open what was decided (recovery knows); one behind it leaves a prepared
        transaction, which recovery commits.
        """
        written = f"INSERT INTO foreshard.decision (id, outcome) VALUES ({quote_text(self._id)}, 'commit')"
        self._is_decided = True
        await self._deciding.execute(f"{DURABLE}; {written}; {last_words}COMMIT")
        control_point(self._points[1])
        for name, gid in self._gids.items():
            await self._others[name].execute(f"COMMIT PREPARED {quote_text(gid)}")
            control_point(self._points[2])


async def commit_over(
    cluster: str,
    decision: tuple[str, Connection],
    others: Mapping[str, Connection],
    points: tuple[str, str, str],
    last_words: str = "",
) -> None:
    """Both steps of a Commitment."""
    commitment = Commitment(cluster, decision, others, points)
    await commitment.prepare()
    await commitment.decide(last_words)
