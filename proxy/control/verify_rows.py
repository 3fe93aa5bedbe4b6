"""Looks at the rows of one sharded table on every shard: where they are, whether once, and with their parents.

What looks wrong is looked at again several times, with fresh snapshots and a fresh bucket map, before it is reported.
A key on two shards is only believed when one row version was on the first before and after the second was seen.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from foreshard.proxy.catalog import Catalog, Table, TableKind
from foreshard.proxy.control.verify_findings import Counted, Finding, first_keys
from foreshard.proxy.control.verify_shard import ShardReader, confirmed
from foreshard.proxy.control.verify_sql import CHUNK_ROWS, SUSPECTS_MAX, RowQuestions

ReadOwners = Callable[[], Awaitable[list[int]]]
Progress = Callable[[str, str, int, bool], None]  # table, shard, rows so far, whether that was all
PROBE_KEYS = 10_000


class Seen(msgspec.Struct, kw_only=True):
    """What was seen of a table on one shard. Suspects are pairs of key and parent's key."""

    rows: int = 0
    counter: int | None = None  # largest counter of a placed key
    without_parent: int = 0
    counts: dict[str, int] = msgspec.field(default_factory=lambda: defaultdict(int))
    suspects: dict[str, list[tuple[str, str | None]]] = msgspec.field(default_factory=lambda: defaultdict(list))


class TableVerification:
    """One table over all shards. Made for each sharded table; `run` is called once, then `findings` is complete."""

    def __init__(
        self, catalog: Catalog, table: Table, readers: list[ShardReader], read_owners: ReadOwners, progress: Progress
    ) -> None:
        self.table = table
        self.findings: list[Finding] = []
        self.notes: list[Finding] = []
        self.seen = {reader.index: Seen() for reader in readers}
        self._readers = {reader.index: reader for reader in readers}
        self._read_owners = read_owners
        self._progress = progress
        # A root's free key has one home; a child's may stand on any shard, so on two as well.
        self._wants_free = table.kind is TableKind.CHILD and len(readers) > 1
        self._ask = RowQuestions(catalog, table, wants_free=self._wants_free)
        self._doubled: dict[tuple[int, int], list[str]] = defaultdict(list)
        self._via = ", ".join(table.via_columns)

    async def run(self) -> None:
        """Look at every row of every shard, then again at what looked wrong."""
        owners = await self._read_owners()
        await asyncio.gather(*(self._scan(reader, owners) for reader in self._readers.values()))
        await self._report_misplaced()
        await self._report_orphans()
        await self._report_other_buckets()
        await self._report_doubled()
        for index, seen in self.seen.items():
            if seen.without_parent and self.table.kind is TableKind.CHILD:
                self._note(
                    index,
                    "parentless",
                    seen.without_parent,
                    f"rows with no {self._via}: they belong to no bucket",
                )

    async def run_quick(self) -> None:
        """Look at the ranges of placed keys only."""
        owners = await self._read_owners()
        for reader in self._readers.values():
            seen = self.seen[reader.index]
            if self._ask.has_counter:
                ranges = await reader.rows(self._ask.placed_ranges())
                seen.counter = max((row["counter"] for row in ranges), default=None)
                wrong: list[tuple[str, str | None]] = [
                    (row["key"], None) for row in ranges if owners[row["bucket"]] != reader.index
                ]
                self._suspect(seen, "misplaced", len(wrong), wrong)
        await self._report_misplaced()

    def counted(self) -> list[Counted]:
        """How many rows were looked at, by shard."""
        return [
            Counted(table=self.table.qualified, shard=self._readers[index].name, rows=seen.rows)
            for index, seen in self.seen.items()
        ]

    async def _scan(self, reader: ShardReader, owners: list[int]) -> None:
        seen = self.seen[reader.index]
        row = await reader.row(self._ask.first_chunk(), owners, reader.index, CHUNK_ROWS)
        while row["rows"]:
            seen.rows += row["rows"]
            seen.without_parent += row["without_parent"]
            if row["counter"] is not None:
                seen.counter = max(seen.counter or 0, row["counter"])
            for kind in ("misplaced", "orphans", "other_bucket"):
                self._suspect(seen, kind, row[f"{kind}_count"], [(key, via) for key, via in row[kind]])
            if row["free"]:
                await self._probe(reader, row["free"])
            self._progress(self.table.qualified, reader.name, seen.rows, False)
            if row["rows"] < CHUNK_ROWS:
                break
            row = await reader.row(self._ask.next_chunk(), owners, reader.index, CHUNK_ROWS, row["last"])
        self._progress(self.table.qualified, reader.name, seen.rows, True)

    @staticmethod
    def _suspect(seen: Seen, kind: str, count: int, keys: list[tuple[str, str | None]]) -> None:
        seen.counts[kind] += count
        held = seen.suspects[kind]
        held += keys[: SUSPECTS_MAX - len(held)]

    async def _probe(self, reader: ShardReader, keys: list[str]) -> None:
        """Look for the keys on the shards behind this one; those before it have asked here."""
        for other in self._readers.values():
            if other.index <= reader.index:
                continue
            for start in range(0, len(keys), PROBE_KEYS):
                found = await other.rows(self._ask.present(), keys[start : start + PROBE_KEYS])
                held = self._doubled[reader.index, other.index]
                self.seen[reader.index].counts[f"doubled {other.index}"] += len(found)
                held += [row["key"] for row in found][: SUSPECTS_MAX - len(held)]

    async def _still(self, index: int, kind: str) -> list[tuple[str, str | None]]:
        """Suspects of the kind that every later look finds wrong too."""
        reader = self._readers[index]

        async def look(suspects: list[tuple[str, str | None]]) -> list[tuple[str, str | None]]:
            owners = await self._read_owners()
            row = await reader.row(self._ask.among(), owners, index, [key for key, _ in suspects])
            return [(key, via) for key, via in row[kind]]

        return await confirmed(self.seen[index].suspects[kind], look)

    async def _report_misplaced(self) -> None:
        for index, reader in self._readers.items():
            still = await self._still(index, "misplaced")
            if not still:
                continue
            keys = [key for key, _ in still]
            elsewhere: dict[str, list[str]] = defaultdict(list)
            for other in self._readers.values():
                if other is not reader:
                    for row in await other.rows(self._ask.present(), keys):
                        elsewhere[row["key"]].append(other.name)
            twice = [key for key in keys if key in elsewhere]
            once = [key for key in keys if key not in elsewhere]
            if once:
                self._find(
                    index, "misplaced", self._count(index, "misplaced", still) - len(twice), once,
                    "rows whose key belongs to another shard: no lookup by key finds them",
                    "copy them to the shard that owns their bucket (bucket_map), then delete them here",
                )  # fmt: skip
            if twice:
                places = ", ".join(sorted({name for key in twice for name in elsewhere[key]}))
                self._find(
                    index, "doubled", len(twice), twice,
                    f"keys that are on shard {places} too, and belong to another shard than this",
                    "compare the rows, then delete them here",
                )  # fmt: skip

    async def _report_orphans(self) -> None:
        for index, reader in self._readers.items():
            still = await self._still(index, "orphans")
            if not still:
                continue
            parents = sorted({str(via) for _, via in still})
            elsewhere = set()
            for other in self._readers.values():
                if other is not reader and await other.rows(self._ask.parents_present(), parents):
                    elsewhere.add(other.name)
            assert self.table.parent is not None
            where = f"; some of those are on shard {', '.join(sorted(elsewhere))}" if elsewhere else ""
            self._find(
                index, "orphans", self._count(index, "orphans", still), [key for key, _ in still],
                f"rows whose {self._via} names a row of {self.table.parent} that is not on this shard{where}",
                "move them to their parent's shard" if elsewhere else "delete them, or give them a parent that exists",
            )  # fmt: skip

    async def _report_other_buckets(self) -> None:
        for index in self._readers:
            still = await self._still(index, "other_bucket")
            if still:
                self._find(
                    index, "bucket", self._count(index, "other_bucket", still), [key for key, _ in still],
                    f"rows whose key carries another bucket than that of their {self._via}",
                    "insert them again without a key, which makes one of their parent's bucket",
                )  # fmt: skip

    async def _report_doubled(self) -> None:
        for (first, second), keys in self._doubled.items():
            still = await confirmed(keys, self._look_twice(self._readers[first], self._readers[second]))
            if still:
                self.findings.append(
                    Finding(
                        check="doubled",
                        place=f"shards {self._readers[first].name}, {self._readers[second].name}",
                        subject=self.table.qualified,
                        what="keys that both shards have",
                        count=self.seen[first].counts[f"doubled {second}"] - len(keys) + len(still),
                        keys=first_keys(still),
                        remedy="compare the rows, then delete one of each or give it another key",
                    )
                )

    def _look_twice(self, first: ShardReader, second: ShardReader) -> Callable[[list[str]], Awaitable[list[str]]]:
        async def versions(reader: ShardReader, keys: list[str]) -> dict[str, Any]:
            return {row["key"]: row["version"] for row in await reader.rows(self._ask.present(), keys)}

        async def look(keys: list[str]) -> list[str]:
            before = await versions(first, keys)
            between = await versions(second, keys)
            after = await versions(first, keys)
            return [key for key in keys if key in between and key in before and before[key] == after.get(key)]

        return look

    def _count(self, index: int, kind: str, still: list[tuple[str, str | None]]) -> int:
        """How many there are: those counted, less those that a later look has cleared."""
        seen = self.seen[index]
        return seen.counts[kind] - len(seen.suspects[kind]) + len(still)

    def _find(self, index: int, check: str, count: int, keys: list[str], what: str, remedy: str) -> None:
        self.findings.append(
            Finding(
                check=check,
                place=self._readers[index].place,
                subject=self.table.qualified,
                what=what,
                count=count,
                keys=first_keys(keys),
                remedy=remedy,
            )
        )

    def _note(self, index: int, check: str, count: int, what: str) -> None:
        self.notes.append(
            Finding(
                check=check,
                place=self._readers[index].place,
                subject=self.table.qualified,
                what=what,
                count=count,
            )
        )
