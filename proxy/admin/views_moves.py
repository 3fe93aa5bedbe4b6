"""SHOW MOVES and SHOW REBALANCE: what the control database has of moves, and why."""

from __future__ import annotations

from foreshard.proxy.admin.results import Cell, ResultSet, make_result
from foreshard.proxy.admin.sources import ConsoleSources
from foreshard.proxy.errors import SqlError

SHOWN_MAX = 100
MOVE_COLUMNS = (
    "id:bigint bucket:bigint source target state way rows:bigint bytes:bigint events:bigint rounds:bigint "
    "pause_ms:float tries:bigint gain:float reason problem planned_at begun_at ended_at"
)
MOVES = f"""
SELECT id, bucket, source, target, state, way, rows, bytes, events, rounds,
       pause_s * 1000, tries, gain, reason, problem, date_trunc('second', planned_at)::text,
       date_trunc('second', begun_at)::text, date_trunc('second', ended_at)::text
FROM foreshard.move
ORDER BY state IN ('copying', 'flipping') DESC, state = 'planned' DESC, ended_at DESC, id LIMIT {SHOWN_MAX}
"""
DECISION_COLUMNS = "decided_at verdict resource fullest:float expected:float moves:bigint rows:bigint detail"
DECISIONS = f"""
SELECT date_trunc('second', decided_at)::text, verdict, resource, fullest, expected, moves, rows, detail
FROM foreshard.rebalance_decision ORDER BY id DESC LIMIT {SHOWN_MAX}
"""


async def show_moves(sources: ConsoleSources) -> ResultSet:
    """Moves under way first, then those that are planned, then the last that have ended."""
    names = [shard.name for shard in sources.config.shards]
    rows: list[tuple[Cell, ...]] = []
    for row in await _ask(sources, MOVES):
        id, bucket, source, target, *rest = row
        rows.append((id, bucket, _called(names, source), _called(names, target), *rest))
    return make_result(MOVE_COLUMNS, rows)


def _called(names: list[str], place: Cell) -> str:
    index = int(str(place))
    return names[index] if 0 <= index < len(names) else "(removed)"


async def show_decisions(sources: ConsoleSources) -> ResultSet:
    """Rounds that moved something or came to another verdict, newest first; ratios are the fullest shard's."""
    return make_result(DECISION_COLUMNS, await _ask(sources, DECISIONS))


async def _ask(sources: ConsoleSources, sql: str) -> list[tuple[Cell, ...]]:
    answer = await sources.ask_control(sql)
    if answer.error is not None:
        raise SqlError("08006", f"the control database does not answer: {answer.error}")
    return [tuple(value if isinstance(value, str | int | float | None) else str(value) for value in row)
            for row in answer.rows]  # fmt: skip
