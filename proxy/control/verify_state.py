"""Looks at what is not a sharded row: sequences, reference tables, the bucket map, identities, leftovers."""

from __future__ import annotations

import asyncio
import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from foreshard._core.buckets import BUCKET_COUNT
from foreshard._core.two_phase import gid_prefix
from foreshard.proxy.catalog import Table
from foreshard.proxy.config import Config
from foreshard.proxy.control.verify_findings import Finding, first_keys
from foreshard.proxy.control.verify_shard import ShardReader, confirmed
from foreshard.proxy.triggers.capture import quote_name, quote_table, quote_text

BINS = 256  # a differing reference table is compared by parts, so that only differing parts are read
ROWS_READ_MAX = 20_000  # of the differing parts, per look and shard
DECISION_AGE_MAX = "10 minutes"  # recovery removes a decision after one; chosen with room for a stopped proxy

CONTENTS = "SELECT count(*) AS rows, coalesce(sum(hashtextextended(t::text, 0)::numeric), 0)::text AS hash FROM {} AS t"
PARTS = """
SELECT hashtextextended(t::text, 0) & {last} AS part, count(*) AS rows,
       sum(hashtextextended(t::text, 0)::numeric)::text AS hash
FROM {table} AS t GROUP BY 1
"""
ROWS_OF_PARTS = """
SELECT hashtextextended(t::text, 0) AS hash, {shown} AS shown FROM {table} AS t
WHERE hashtextextended(t::text, 0) & {last} = ANY ($1::bigint[]) LIMIT {limit}
"""
PREPARED = """
SELECT gid, age(clock_timestamp(), prepared)::text AS age FROM pg_prepared_xacts
WHERE database = current_database() AND starts_with(gid, $1) ORDER BY prepared
"""
DECISIONS = f"""
SELECT id FROM foreshard.decision WHERE outcome = 'commit'
  AND decided_at < clock_timestamp() - interval '{DECISION_AGE_MAX}' ORDER BY decided_at
"""
EVENTS_OF_OTHERS = """
SELECT function, count(*) FROM foreshard.outbox WHERE function <> ALL ($1::text[]) GROUP BY 1 ORDER BY 1
"""
# What lies in schema foreshard but does not belong to something else there (a table's index, sequence or row type).
OBJECTS = """
SELECT CASE c.relkind WHEN 'S' THEN 'sequence' WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view'
                      WHEN 'f' THEN 'foreign table' ELSE 'table' END AS kind, c.relname::text AS name
FROM pg_class c WHERE c.relnamespace = 'foreshard'::regnamespace AND c.relkind IN ('r', 'p', 'S', 'v', 'm', 'f')
  AND NOT c.relispartition
  AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid
                  AND d.deptype IN ('a', 'i', 'e'))
UNION ALL
SELECT 'function', p.proname::text FROM pg_proc p WHERE p.pronamespace = 'foreshard'::regnamespace
  AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid
                  AND d.deptype IN ('a', 'i', 'e'))
ORDER BY 1, 2
"""
WORD = re.compile(r"[A-Za-z0-9_$]+")


def judge_map(owners: list[tuple[int, int]], shard_count: int, listed: int) -> Iterable[Finding]:
    """What is wrong with the bucket map itself: pairs of bucket and shard index. So many shards are `listed`."""

    def found(what: str, buckets: list[int], remedy: str) -> Finding:
        return Finding(
            check="map",
            place="control database",
            subject="foreshard.bucket_map",
            what=what,
            count=max(len(buckets), 1),
            keys=first_keys([str(bucket) for bucket in buckets]),
            remedy=remedy,
        )

    lacking = sorted(set(range(BUCKET_COUNT)) - {bucket for bucket, _ in owners})
    if lacking:
        yield found("buckets that no shard owns", lacking, "foreshard apply restores those that were never moved")
    unknown = [bucket for bucket, shard in owners if not 0 <= shard < shard_count]
    if unknown:
        yield found("buckets of a shard that is not configured", unknown, "restore the list of shards")
    if listed != shard_count:
        yield found(f"of {listed} shards, {shard_count} are configured", [], "restore the list of shards")


async def check_identity(config: Config, reader: ShardReader, cluster: str) -> list[Finding]:
    """Whether the database is the shard that the configuration says it is."""
    rows = await reader.rows("SELECT name, index, cluster FROM foreshard.shard_info")
    found = [(row["name"], row["index"], row["cluster"]) for row in rows]
    wanted = (config.shards[reader.index].name, reader.index, cluster)
    if found == [wanted]:
        return []
    said = ", ".join(f"{name} (index {index}) of {of}" for name, index, of in found) or "nothing"
    return [
        Finding(
            check="identity", place=reader.place, subject="foreshard.shard_info", count=1,
            what=f"says {said}, the configuration {wanted[0]} (index {wanted[1]}) of {cluster}",
            remedy="check `dsn`, `control` and the order of `shards`; foreshard apply writes a changed name",
        )
    ]  # fmt: skip


async def check_sequence(reader: ShardReader, table: Table, sequence: str, counter: int | None) -> list[Finding]:
    """Whether the sequence is ahead of the largest counter; that must have been read before."""
    row = await reader.row(f"SELECT last_value, is_called FROM {sequence}")
    following = row["last_value"] + (1 if row["is_called"] else 0)
    if counter is None or following > counter:
        return []
    return [
        Finding(
            check="sequence", place=reader.place, subject=table.qualified, count=counter - following + 1,
            what=f"counters that {sequence} is behind the keys here: {following} comes next, {counter} is in use",
            remedy=f"SELECT setval({quote_text(sequence)}, {counter}) on {reader.place}",
        )
    ]  # fmt: skip


class ReferenceComparison:
    """One reference table on all shards: the same rows, or which differ in every look. `run` is called once."""

    def __init__(self, table: Table, primary_key: tuple[str, ...], readers: list[ShardReader]) -> None:
        self.table = table
        self.rows: dict[int, int] = {}
        self._readers = readers
        self._name = quote_table(table)
        shown = ", ".join(f"t.{quote_name(name)}::text" for name in primary_key)
        self._shown = f"concat_ws(', ', {shown})" if shown else "left(t::text, 60)"

    async def run(self) -> list[Finding]:
        """The findings."""
        whole = await asyncio.gather(*(reader.row(CONTENTS.format(self._name)) for reader in self._readers))
        self.rows = {reader.index: row["rows"] for reader, row in zip(self._readers, whole, strict=True)}
        if len({(row["rows"], row["hash"]) for row in whole}) == 1:
            return []

        async def look(suspects: list[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
            now = set(await self._differing())
            return [suspect for suspect in suspects if suspect in now]

        still = await confirmed(await self._differing(), look)
        found = []
        for reader in self._readers:
            lacking = [shown for index, _, shown in still if index == reader.index]
            if lacking:
                found.append(
                    Finding(
                        check="reference", place=reader.place, subject=self.table.qualified, count=len(lacking),
                        keys=first_keys(sorted(lacking)),
                        what=f"rows that other shards have and this has not ({self.rows[reader.index]} here)",
                        remedy="make the table the same on every shard: a read is answered by any of them",
                    )
                )  # fmt: skip
        return found

    async def _differing(self) -> list[tuple[int, int, str]]:
        """(shard index, hash, what is shown of it) of rows that another shard has more often."""
        sql = PARTS.format(table=self._name, last=BINS - 1)
        answers = await asyncio.gather(*(reader.rows(sql) for reader in self._readers))
        parts = [{row["part"]: (row["rows"], row["hash"]) for row in rows} for rows in answers]
        everywhere = {part for shard in parts for part in shard}
        differing = sorted(part for part in everywhere if len({shard.get(part) for shard in parts}) > 1)
        chosen, total = [], 0
        for part in differing:
            chosen.append(part)
            total += max(shard.get(part, (0, ""))[0] for shard in parts)
            if total > ROWS_READ_MAX:
                break
        return await self._lacking(chosen) if chosen else []

    async def _lacking(self, parts: list[int]) -> list[tuple[int, int, str]]:
        sql = ROWS_OF_PARTS.format(table=self._name, last=BINS - 1, shown=self._shown, limit=2 * ROWS_READ_MAX)
        answers = await asyncio.gather(*(reader.rows(sql, parts) for reader in self._readers))
        counts: dict[int, list[int]] = defaultdict(lambda: [0] * len(self._readers))
        shown = {}
        for at, rows in enumerate(answers):
            for row in rows:
                counts[row["hash"]][at] += 1
                shown[row["hash"]] = row["shown"]
        return [
            (self._readers[at].index, hash_value, shown[hash_value])
            for hash_value, by_shard in counts.items()
            for at, count in enumerate(by_shard)
            if count < max(by_shard)
        ]


async def check_leftovers(config: Config, reader: ShardReader, cluster: str) -> tuple[list[Finding], list[Finding]]:
    """Findings and notes about what transactions, removed functions and failures have left on a shard."""
    found: list[Finding] = []

    def finding(subject: str, count: int, keys: list[str], what: str, remedy: str) -> Finding:
        return Finding(
            check="leftover",
            place=reader.place,
            subject=subject,
            what=what,
            count=count,
            keys=first_keys(keys),
            remedy=remedy,
        )

    gids = await _still_prepared(reader, cluster)
    if gids:
        what, remedy = "transactions of ours that stay prepared", "a running proxy resolves them; see SHOW TWO_PHASE"
        found.append(finding("pg_prepared_xacts", len(gids), gids, what, remedy))
    if not gids and await _has_table(reader, "decision"):
        old = [row["id"] for row in await reader.rows(DECISIONS)]
        if old:
            what = f"commit decisions older than {DECISION_AGE_MAX}"
            found.append(finding("foreshard.decision", len(old), old, what, "a running proxy removes them"))
    names = [trigger.name for trigger in config.triggers]
    for row in await reader.rows(EVENTS_OF_OTHERS, names):
        what = f"events for the function {row['function']}, which is not configured"
        remedy = "configure it again, or delete them from foreshard.outbox"
        found.append(finding("foreshard.outbox", row["count"], [], what, remedy))
    dead = await reader.rows("SELECT function, count(*) FROM foreshard.dead_letter GROUP BY 1 ORDER BY 1")
    remedy = "foreshard triggers replay puts them back"
    notes = [
        finding("foreshard.dead_letter", row["count"], [], f"dead letters of {row['function']}", remedy) for row in dead
    ]
    return found, notes


async def _still_prepared(reader: ShardReader, cluster: str) -> list[str]:
    """Ours that are prepared, and stay so: the same one in every look."""

    async def look(suspects: list[str]) -> list[str]:
        now = {row["gid"] for row in await reader.rows(PREPARED, gid_prefix(cluster))}
        return [gid for gid in suspects if gid in now]

    return await confirmed([row["gid"] for row in await reader.rows(PREPARED, gid_prefix(cluster))], look)


async def check_objects(reader: ShardReader, texts: Iterable[str]) -> list[Finding]:
    """Objects in schema foreshard that no step of `apply` makes; `texts` are the steps' SQL."""
    known = {word.lower() for text in texts for word in WORD.findall(text)}
    unknown = [row for row in await reader.rows(OBJECTS) if row["name"].lower() not in known]
    if not unknown:
        return []
    return [
        Finding(
            check="leftover", place=reader.place, subject="schema foreshard", count=len(unknown),
            keys=first_keys([f"{row['kind']} {row['name']}" for row in unknown]),
            what="objects that the configuration does not ask for",
            remedy="drop them when nothing uses them any more",
        )
    ]  # fmt: skip


async def _has_table(reader: ShardReader, name: str) -> bool:
    found: Any = await reader.value("SELECT to_regclass($1) IS NOT NULL", f"foreshard.{name}")
    return bool(found)
