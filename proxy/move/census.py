"""What one query tells of a bucket on one shard: rows by table, what tells them from others, what has changed, and all
else that a flip must know there. One query, for writers wait for it.

`changed` are row versions whose xmin is not older than `since`. Ages are compared, for they need no arithmetic on
numbers that go round; rows frozen long ago may look young, which makes them too many, never too few.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec
from asyncpg import Record

from foreshard.proxy.move.movable import Movable
from foreshard.proxy.triggers.capture import quote_text

OWNS = "SELECT get_bit(buckets, $1) = 1 FROM foreshard.owned_buckets"
LAST = "CASE WHEN is_called THEN last_value ELSE last_value - 1 END"
EVENTS = """
SELECT 'event', told.table_name, 0::bigint, '', 0::bigint FROM (SELECT table_name FROM foreshard.outbox GROUP BY 1
UNION SELECT table_name FROM foreshard.dead_letter GROUP BY 1) AS told
"""
HORIZON = "SELECT 'horizon', '', pg_snapshot_xmin(pg_current_snapshot())::text::bigint, '', 0::bigint"
XID_COUNT = 2**32


class Census(msgspec.Struct):
    """What a shard has told."""

    rows: dict[str, int] = {}
    digests: dict[str, str] = {}
    changed: dict[str, int] = {}
    last: dict[str, int] = {}
    told: set[str] = set()
    is_owner: bool = False
    horizon: int = 0  # everything that ran before has ended

    @property
    def total(self) -> int:
        """Rows of all tables."""
        return sum(self.rows.values())

    def is_alike(self, other: Census, name: str) -> bool:
        """Whether both have the same rows of a table: as many, of the same hash."""
        return (self.rows[name], self.digests[name]) == (other.rows[name], other.digests[name])

    def exchange(self, name: str, before: Record | None, after: Record | None) -> None:
        """Some rows of the table are others now: the hash of all is the sum of theirs."""
        assert before is not None
        assert after is not None
        self.rows[name] += after["rows"] - before["rows"]
        self.digests[name] = str(int(self.digests[name]) + int(after["digest"]) - int(before["digest"]))

    def update(self, later: Census) -> None:
        """What was asked anew of some tables."""
        self.rows.update(later.rows)
        self.digests.update(later.digests)


def changed_sql(since: int) -> str:
    """An SQL condition on a row `held`: this version of it is not older."""
    return f"age(held.xmin) <= (SELECT age('{since % XID_COUNT}'::xid))"


def census_sql(
    tables: Sequence[Movable],
    bucket: int,
    *,
    has_digests: bool = False,
    since: Mapping[str, int] | None = None,
    rows_max: int = 0,
    sequences: Iterable[str] = (),
    has_events: bool = False,
) -> str:
    """The query that `read_census` reads; in one snapshot, but for sequences, which have none. With `rows_max` no more
    rows of a table are counted.
    """
    parts = [
        f"SELECT 'owner' AS kind, '' AS name, get_bit(buckets, {bucket})::bigint AS rows, '' AS digest, "
        "0::bigint AS changed FROM foreshard.owned_buckets",
        HORIZON,
    ]
    for table in tables:
        changed = f"count(*) FILTER (WHERE {changed_sql(since[table.name])})" if since else "0::bigint"
        digest = table.digest if has_digests else "''"
        rows = f"{table.quoted} AS held WHERE {table.condition}"
        if rows_max:
            rows = f"(SELECT FROM {rows} LIMIT {rows_max}) AS held"
        parts.append(f"SELECT 'table', {quote_text(table.name)}, count(*), {digest}, {changed} FROM {rows}")
    parts += [f"SELECT 'sequence', {quote_text(name)}, {LAST}, '', 0::bigint FROM {name}" for name in sequences]
    if has_events:
        parts.append(EVENTS)
    return " UNION ALL ".join(f"({part})" for part in parts)


def read_census(rows: Iterable[Record]) -> Census:
    """What the query has answered."""
    found = Census()
    for kind, name, count, digest, changed in rows:
        if kind == "table":
            found.rows[name], found.digests[name], found.changed[name] = count, digest, changed
        elif kind == "sequence":
            found.last[name] = count
        elif kind == "event":
            found.told.add(name)
        elif kind == "owner":
            found.is_owner = count == 1
        else:
            found.horizon = count
    return found
