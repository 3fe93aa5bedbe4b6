"""`verify`: proves a deployment by asking its shards directly, without the proxy and beside its traffic.

1. It only reads, in transactions of one statement each: it holds back neither locks nor vacuum.
2. A finding is something that every one of several looks has found; a busy deployment gives none.
3. Memory is bounded: tables are read by chunks of their key's index, and a bounded number of suspects is held.
"""

from __future__ import annotations

import asyncio
import time

import msgspec

from foreshard._core.buckets import BUCKET_COUNT
from foreshard.proxy.catalog import Catalog, Table, TableKind
from foreshard.proxy.config import Config, qualified
from foreshard.proxy.config.document import did_you_mean, listed
from foreshard.proxy.control.connect import control_dsn
from foreshard.proxy.control.derive import build_catalog, compare_shards
from foreshard.proxy.control.facts import Facts
from foreshard.proxy.control.introspect import introspect
from foreshard.proxy.control.schema_control import control_steps
from foreshard.proxy.control.schema_shard import shard_steps
from foreshard.proxy.control.spread_facts import read_plain, without
from foreshard.proxy.control.verify_away import AwayVerification
from foreshard.proxy.control.verify_claims import IS_THERE, ClaimVerification, check_claim_leftovers
from foreshard.proxy.control.verify_findings import Counted, Finding, Verdict
from foreshard.proxy.control.verify_rows import Progress, TableVerification
from foreshard.proxy.control.verify_shard import ShardReader
from foreshard.proxy.control.verify_state import (
    ReferenceComparison,
    check_identity,
    check_leftovers,
    check_objects,
    check_sequence,
    judge_map,
)
from foreshard.proxy.errors import ConfigError, ForeshardError

CONTROL_INDEX = -1


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What to look at."""

    table: str | None = None  # this one only
    is_quick: bool = False


EVERYTHING = Options()


def no_progress(table: str, shard: str, rows: int, is_done: bool) -> None:
    """Nobody watches."""


async def verify(config: Config, options: Options = EVERYTHING, progress: Progress = no_progress) -> Verdict:
    """Verify the deployment. Shards that cannot be reached are named in the verdict; the others are looked at.

    ForeshardError when nothing can be looked at; ConfigError when the configuration cannot be.
    """
    began_s = time.monotonic()
    verification = Verification(config, options, progress)
    try:
        await verification.open()
        await verification.run()
    finally:
        verification.close()
    return verification.verdict(time.monotonic() - began_s)


class Verification:
    """One verification: owns its connections. `open`, `run`, then `verdict`; `close` in any case."""

    def __init__(self, config: Config, options: Options, progress: Progress) -> None:
        self.config = config
        self.options = options
        self.readers: list[ShardReader] = []
        self.unreachable: list[str] = []
        self.findings: list[Finding] = []
        self.notes: list[Finding] = []
        self.counted: list[Counted] = []
        self._progress = progress
        self._control: ShardReader | None = None
        self._facts: dict[int, Facts] = {}
        self._catalog = Catalog()
        self._cluster = ("", len(config.shards))  # as read_cluster has it

    async def open(self) -> None:
        """Connect, and read what should be there."""
        self._control = await ShardReader.opened(CONTROL_INDEX, "control database", control_dsn(self.config))
        for index, shard in enumerate(self.config.shards):
            try:
                self.readers.append(await ShardReader.opened(index, shard.name, shard.dsn))
            except ForeshardError as error:
                self.unreachable.append(str(error))
        if not self.readers:
            raise ForeshardError("\n".join(self.unreachable))
        for reader in self.readers:
            if not await reader.value("SELECT to_regclass('foreshard.shard_info') IS NOT NULL"):
                raise ForeshardError(f"{reader.place} was never applied; run: foreshard apply -c {self.config.path}")
            if reader is self.readers[0]:  # what is not spread yet is a plain table
                self.config = without(self.config, await reader.guarded(read_plain(reader.connection, self.config)))
            self._facts[reader.index] = await reader.guarded(introspect(reader.connection, self.config, reader.name))
        first, *_ = self._facts.values()
        self._catalog = build_catalog(self.config, first)
        compare_shards(self.config, self._facts.values())

    async def run(self) -> None:
        """Look at everything that was asked for."""
        tables = self._chosen()
        if self.options.table is None:
            await self._check_control()
        for table in tables:
            if table.kind is TableKind.REFERENCE:
                await self._compare(table)
            else:
                await self._check_rows(table)
                await self._check_claims(table)
        if self.options.table is None:
            for reader in self.readers:
                self.findings += await check_identity(self.config, reader, self._cluster[0])
                found, notes = await check_leftovers(self.config, reader, self._cluster[0])
                self.findings += found
                self.notes += notes
                self.findings += await check_objects(reader, self._step_texts(reader.index))
                self.findings += await check_claim_leftovers(self._catalog, reader)

    def verdict(self, seconds: float) -> Verdict:
        """The result."""
        return Verdict(
            findings=tuple(self.findings),
            notes=tuple(self.notes),
            counted=tuple(self.counted),
            unreachable=tuple(self.unreachable),
            is_quick=self.options.is_quick,
            seconds=round(seconds, 3),
        )

    def close(self) -> None:
        """End every connection."""
        for reader in (self._control, *self.readers):
            if reader is not None:
                reader.close()

    def _chosen(self) -> list[Table]:
        tables = list(self._catalog.tables.values())
        if self.options.table is None:
            return tables
        wanted = qualified(self.options.table)
        if wanted not in self._catalog.tables:
            names = [table.qualified for table in tables]
            raise ConfigError(
                [f"{wanted} is not a declared table{did_you_mean(wanted, names)} (declared: {listed(names)})"]
            )
        return [self._catalog.tables[wanted]]

    async def _read_owners(self) -> list[int]:
        """The shard index of each bucket, read anew; -1 where the map says nothing."""
        assert self._control is not None
        owners = [-1] * BUCKET_COUNT
        for row in await self._control.rows("SELECT bucket, shard FROM foreshard.bucket_map"):
            owners[row["bucket"]] = row["shard"]
        return owners

    async def _check_control(self) -> None:
        assert self._control is not None
        rows = await self._control.rows("SELECT bucket, shard FROM foreshard.bucket_map ORDER BY bucket")
        clusters = await self._control.rows("SELECT name, shards FROM foreshard.cluster")
        self._cluster = (clusters[0]["name"], clusters[0]["shards"]) if clusters else self._cluster
        listed = await self.readers[0].value("SELECT count(*) FROM foreshard.shard") if self._has_first() else None
        pairs = [(row["bucket"], row["shard"]) for row in rows]
        count = len(self.config.shards)
        self.findings += judge_map(pairs, count, count if listed is None else listed)

    def _has_first(self) -> bool:
        return bool(self.readers) and self.readers[0].index == 0

    async def _check_rows(self, table: Table) -> None:
        looked = TableVerification(self._catalog, table, self.readers, self._read_owners, self._progress)
        await (looked.run_quick() if self.options.is_quick else looked.run())
        self.findings += looked.findings
        self.notes += looked.notes
        self.counted += looked.counted()
        if table.by_cost and not self.options.is_quick:
            keys = AwayVerification(table, self.readers, self._read_owners)
            await keys.run()
            self.findings += keys.findings
        for reader in self.readers:  # after the keys: a sequence is ahead of every key that can be seen
            source = self._facts[reader.index].tables[table.qualified].sources.get(table.key)
            if source is not None and source.sequence:
                self.findings += await check_sequence(reader, table, source.sequence, looked.seen[reader.index].counter)

    async def _check_claims(self, table: Table) -> None:
        for columns in () if self.options.is_quick else table.unique:
            if all([await reader.value(IS_THERE) for reader in self.readers]):  # else its absence is a finding
                looked = ClaimVerification(self._catalog, table, columns, self.readers, self._read_owners)
                await looked.run()
                self.findings += looked.findings

    async def _compare(self, table: Table) -> None:
        first, *_ = self._facts.values()
        comparison = ReferenceComparison(table, first.tables[table.qualified].primary_key, self.readers)
        self.findings += await comparison.run()
        for reader in self.readers:
            rows = comparison.rows[reader.index]
            self.counted.append(Counted(table=table.qualified, shard=reader.name, rows=rows))
            self._progress(table.qualified, reader.name, rows, True)

    def _step_texts(self, index: int) -> list[str]:
        steps = shard_steps(self.config, self._catalog, self._facts[index], index, self._cluster)
        return [f"{step.object} {step.sql}" for step in [*steps, *control_steps(*self._cluster)]]


def run_verify(config: Config, options: Options = EVERYTHING, progress: Progress = no_progress) -> Verdict:
    """The same, for callers without an event loop."""
    return asyncio.run(verify(config, options, progress))
