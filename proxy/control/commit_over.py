"""Commits transactions of ours that are open on several shards: on all of them, or on none (ARCHITECTURE.md,
"Distributed commit"). Whoever dies in between, recovery ends it as the decision says.
"""

from __future__ import annotations

from collections.abc import Mapping

import asyncpg

from foreshard._core.two_phase import make_gid, new_id
from foreshard.proxy.control.introspect import Connection
from foreshard.proxy.triggers.capture import quote_text
from foreshard.proxy.triggers.points import control_point

DURABLE = "SELECT set_config('synchronous_commit', 'local', true) WHERE current_setting('synchronous_commit') = 'off'"


async def commit_over(
    cluster: str,
    decision: tuple[str, Connection],
    others: Mapping[str, Connection],
    points: tuple[str, str, str],
    last_words: str = "",
) -> None:
    """Commit on the shard that decides and on the others, by name. `last_words` are statements of the deciding one.

    An error before the decision leaves nothing behind; one of the decision's own COMMIT leaves it open which it was
    (recovery knows); one behind it leaves a prepared transaction, which recovery commits. `points` are the
    control points behind each PREPARE, the decision and each COMMIT PREPARED.
    """
    id = new_id()
    gids = {name: make_gid(cluster, decision[0], id, name) for name in others}
    prepared: list[str] = []
    try:
        for name, gid in gids.items():
            await others[name].execute(f"PREPARE TRANSACTION {quote_text(gid)}")
            prepared.append(name)
            control_point(points[0])
    except (asyncpg.PostgresError, OSError):
        for name in prepared:
            await others[name].execute(f"ROLLBACK PREPARED {quote_text(gids[name])}")
        raise
    written = f"INSERT INTO foreshard.decision (id, outcome) VALUES ({quote_text(id)}, 'commit')"
    await decision[1].execute(f"{DURABLE}; {written}; {last_words}COMMIT")
    control_point(points[1])
    for name, gid in gids.items():
        await others[name].execute(f"COMMIT PREPARED {quote_text(gid)}")
        control_point(points[2])
