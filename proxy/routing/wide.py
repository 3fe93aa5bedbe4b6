"""When a write may be sent to several shards at once, each doing its part.

Each shard's part is right by itself when for every row of the target only rows of its own bucket, and rows that every
shard has, matter: the argument of concatenated reads (locate.py) with the target as the anchor. Three things that a
read may answer either way must not differ between shards here, and are refused: system columns such as ctid, which
mean another row on each shard; values that are computed once per statement and are volatile; a LIMIT over rows of
reference tables. What each shard must not decide for itself is left: now() is the time of the statement there.
"""

from __future__ import annotations

from foreshard.proxy.errors import SqlError, not_built
from foreshard.proxy.routing.collect import Collector, Level
from foreshard.proxy.routing.functions import is_unknown
from foreshard.proxy.routing.locate import Locator
from foreshard.proxy.routing.scope import Reference, ReferenceKind
from foreshard.proxy.routing.tree import Node, strings, walk

SYSTEM_COLUMNS = frozenset(("ctid", "xmin", "xmax", "cmin", "cmax", "tableoid"))
VOLATILE = frozenset(
    (
        *("random", "random_normal", "gen_random_uuid", "uuidv4", "uuidv7", "clock_timestamp", "statement_timestamp"),
        *("timeofday", "setseed", "pg_backend_pid", "txid_current", "pg_current_xact_id"),
    )
)
HINT = "Restrict the statement to keys of one shard, or select the keys first."


def wide_problem(
    collector: Collector, locator: Locator, anchor: Reference, node: Node, own: Level | None = None
) -> SqlError | None:
    """Why a write may not run on several shards; None when it may.

    `own` is the query that makes a row of each of the anchor's, if that is not the written statement itself.
    """
    found = differs(collector, node, [collector.levels[0], *([own] if own is not None else [])])
    if found is None and len(locator.tied(anchor)) < len(locator.sharded):
        return refused("rows of several declared tables", "Rows that belong together may be on several shards.")
    return found


def differs(collector: Collector, node: Node, rowwise: list[Level]) -> SqlError | None:
    """What in a write would mean something else on each shard; `rowwise` are the queries that are run for each row."""
    if any("aggregates of an outer query" in level.merges for level in collector.levels):
        return refused("aggregates of the written table")
    for call in collector.calls:
        if is_unknown(call):
            return refused(f'the function "{call.path[-1]}"', "Nothing is known about what it does on each shard.")
        if call.path[-1] in VOLATILE and call.level not in rowwise:
            return refused(f"{call.path[-1]}() in a sub-select", "Every shard would compute another value.")
    for column in system_columns(node):
        return refused(f"the system column {column}", "It means another row on each shard.")
    if any(cuts_reference_rows(level) for level in collector.levels if level not in rowwise):
        return refused("LIMIT over rows of reference tables", "Every shard could take other rows.")
    return None


def system_columns(node: Node) -> list[str]:
    """System columns that a statement names."""
    found = [strings(fields.get("fields"))[-1:] for kind, fields in walk(node) if kind == "ColumnRef"]
    return [name for path in found for name in path if name in SYSTEM_COLUMNS]


def cuts_reference_rows(level: Level) -> bool:
    """Whether a query takes some of the rows of tables that are stored in another order on each shard."""
    sharded = any(one.kind is ReferenceKind.SHARDED for one in level.references)
    return not sharded and bool(level.references) and bool({"LIMIT", "OFFSET"} & set(level.merges))


def refused(what: str, detail: str = "") -> SqlError:
    """The refusal of a write on several shards."""
    return not_built(f"{what} in a write on several shards", HINT, detail)
