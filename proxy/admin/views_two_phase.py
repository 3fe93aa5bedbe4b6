"""SHOW TWO_PHASE: what is prepared on the shards now, and how it will end. Asked of every shard, kept nowhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from foreshard._core.two_phase import parse_gid
from foreshard.proxy.admin.results import Cell, ResultSet, make_result
from foreshard.proxy.admin.sources import ConsoleSources, ShardAnswer

COLUMNS = "shard gid transaction_id decision_shard participant owner age_s:float state"
PREPARED_SQL = """
SELECT p.gid, p.owner::text, extract(epoch FROM clock_timestamp() - p.prepared)::float8,
       starts_with(p.gid, 'foreshard/' || i.cluster || '/')
FROM pg_prepared_xacts AS p, foreshard.shard_info AS i WHERE p.database = current_database() ORDER BY p.prepared, p.gid
"""
OUTCOMES_SQL = "SELECT id, outcome FROM foreshard.decision WHERE id IN ({})"
WAITING_S = 6.0  # twice the usual limits.commit_timeout: recovery has had its turn
ENDING = {"commit": "committing", "abort": "rolling back"}

Decisions = Mapping[str, ShardAnswer]  # by shard: rows of (id, outcome), or why there are none


async def show_two_phase(sources: ConsoleSources) -> ResultSet:
    """Prepared transactions of every shard, oldest first, others' too: they hold their locks just as well."""
    answers = await sources.ask_shards(PREPARED_SQL)
    ids = {gid.id for answer in answers for row in answer.rows if (gid := parse_gid(str(row[0])))}
    decisions: Decisions = {}
    if ids:  # only hexadecimal digits: parse_gid let nothing else pass
        sql = OUTCOMES_SQL.format(", ".join(f"'{id}'" for id in sorted(ids)))
        decisions = {answer.shard: answer for answer in await sources.ask_shards(sql)}
    rows: list[tuple[Cell, ...]] = []
    for answer in answers:
        if answer.error is not None:
            rows.append((answer.shard, *[None] * 6, f"unknown: {answer.error}"))
        rows += [_row(answer.shard, row, decisions) for row in answer.rows]
    return make_result(COLUMNS, rows)


def _row(shard: str, row: Sequence[object], decisions: Decisions) -> tuple[Cell, ...]:
    name, owner, age_s, is_ours = str(row[0]), str(row[1]), float(str(row[2])), row[3]
    gid = parse_gid(name) if is_ours else None
    if gid is None:
        return shard, name, None, None, None, owner, age_s, "not of this cluster: end it by hand"
    state = state_of(gid.id, gid.decision_shard, age_s, decisions)
    return shard, name, gid.id, gid.decision_shard, gid.participant, owner, age_s, state


def state_of(id: str, decision_shard: str, age_s: float, decisions: Decisions) -> str:
    """How one of ours stands, in words."""
    answer = decisions.get(decision_shard)
    if answer is None:
        return f"in doubt: shard {decision_shard} is not in the configuration"
    if answer.error is not None:
        return f"in doubt: shard {decision_shard}, which decides, is down"
    outcome = {str(row[0]): str(row[1]) for row in answer.rows}.get(id)
    if outcome is not None:
        return ENDING[outcome]
    if age_s < WAITING_S:
        return "waiting"
    return "in doubt: its decision is still open, or no controller runs"
