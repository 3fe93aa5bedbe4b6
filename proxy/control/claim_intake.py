"""Claims for rows that are older than their table's claim triggers, while clients go on.

`apply` installs the triggers everywhere first, so that every row from then on claims for itself. Then each shard's
keys are listed once, and taken in by few rows at a time: the rows are locked (FOR SHARE), so that their values stay,
their claims are inserted at the values' homes, and the rows are let go. What has a claim already keeps it, so all of it
may be interrupted and run again. Values that stand on several rows are listed and refused; the set stays incomplete
until they are mended and `apply` has run again.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

import asyncpg

from foreshard.proxy.catalog import Catalog, Table
from foreshard.proxy.config import Config
from foreshard.proxy.control.claim_sets import (
    PRINTING,
    claim_name,
    home_sql,
    is_claimed_sql,
    key_text_sql,
)
from foreshard.proxy.control.connect import connected
from foreshard.proxy.control.introspect import Connection
from foreshard.proxy.control.key_sql import bucket_of_row
from foreshard.proxy.errors import ConfigError, ForeshardError
from foreshard.proxy.triggers.capture import quote_name, quote_table
from foreshard.proxy.triggers.points import control_point

BATCH_ROWS = 500
SHOWN_MAX = 20
LOCK_TIMEOUT = "500ms"  # a writer may wait for a row of ours while we wait for its claim: let go and try again
TRIES_MAX = 60
IS_THERE = "SELECT to_regclass('foreshard.claim_set') IS NOT NULL"
TAKE = """
INSERT INTO foreshard.claim (home, name, key, bucket)
SELECT given.home, $1, given.key, given.bucket
FROM unnest($2::text[], $3::integer[], $4::integer[]) AS given(key, home, bucket)
ON CONFLICT ON CONSTRAINT claim_is_unique DO NOTHING
"""
HELD_OTHERWISE = """
SELECT DISTINCT held.key FROM foreshard.claim AS held
JOIN unnest($2::text[], $3::integer[], $4::integer[]) AS given(key, home, bucket) USING (home, key)
WHERE held.name = $1 AND held.bucket <> given.bucket
"""


@dataclass(frozen=True)
class Intake:
    """One claim set whose older rows have to be taken in, on every shard."""

    table: Table
    columns: tuple[str, ...]

    @property
    def name(self) -> str:
        return claim_name(self.table, self.columns)

    @property
    def object(self) -> str:
        """How `plan` names it."""
        return f"rows of {self.table.qualified} in claims of {self.name}"


async def find_intakes(catalog: Catalog, shards: Sequence[tuple[Connection, set[str]]]) -> list[Intake]:
    """The sets that are incomplete; `shards` are connections, and the objects that each lacks."""
    complete: list[set[str]] = []
    for connection, lacking in shards:
        names: set[str] = set()
        if await connection.fetchval(IS_THERE):
            rows = await connection.fetch("SELECT name FROM foreshard.claim_set WHERE is_taken_in")
            names = {row["name"] for row in rows if f"claims of {row['name']}" not in lacking}
        complete.append(names)
    wanted = [Intake(table, columns) for table in catalog.tables.values() for columns in table.unique]
    return [intake for intake in wanted if not all(intake.name in names for names in complete)]


async def take_in(config: Config, intakes: Sequence[Intake], owners: Sequence[int], say: Callable[[str], None]) -> None:
    """Claim for all rows of these sets; ConfigError with the values that are there more than once."""
    problems: list[str] = []
    async with _connections(config) as sources, _connections(config) as homes:
        for intake in intakes:
            doubled: set[str] = set()
            count = 0
            for source in sources:
                taking = _Taking(intake, source, homes, owners)
                count += await taking.run()
                doubled |= taking.doubled
            say(f"claims of {intake.name}: {count} rows taken in")
            if doubled:
                problems.append(_refusal(config, intake, doubled))
            else:
                for home in homes:
                    await home.execute("UPDATE foreshard.claim_set SET is_taken_in = true WHERE name = $1", intake.name)
                    control_point("intake-ended")
    if problems:
        raise ConfigError(problems)


async def drop_claims(config: Config, names: Sequence[str]) -> None:
    """Remove the claims of sets whose triggers are gone on every shard."""
    async with _connections(config) as shards:
        for connection in shards:
            await connection.execute("DELETE FROM foreshard.claim WHERE name = ANY($1::text[])", list(names))


@contextlib.asynccontextmanager
async def _connections(config: Config) -> AsyncIterator[list[Connection]]:
    async with contextlib.AsyncExitStack() as stack:
        found = []
        for shard in config.shards:
            connection = await stack.enter_async_context(connected(f"shard {shard.name}", shard.dsn))
            for name, value in PRINTING.items():
                await connection.execute("SELECT set_config($1, $2, false)", name, value)
            found.append(connection)
        yield found


def _refusal(config: Config, intake: Intake, doubled: set[str]) -> str:
    shown = ", ".join(f"({key})" for key in sorted(doubled)[:SHOWN_MAX])
    more = f" and {len(doubled) - SHOWN_MAX} more" if len(doubled) > SHOWN_MAX else ""
    return (
        f"{config.path}: tables.{intake.table.name}.unique: {len(doubled)} values of "
        f"({', '.join(intake.columns)}) stand on several rows: {shown}{more}; change or delete these rows, "
        "and run apply again"
    )


@dataclass
class _Taking:
    """One shard's rows of one set."""

    intake: Intake
    source: Connection
    homes: list[Connection]
    owners: Sequence[int]
    doubled: set[str] = field(default_factory=set)

    async def run(self) -> int:
        """Take them in, a few at a time; how many there were."""
        table, columns = self.intake.table, self.intake.columns
        rows, claimed = quote_table(table), is_claimed_sql(table, columns, "held")
        keys = [quote_name(name) for name in table.row_key]
        listed = ", ".join(f"held.{key}::text AS {key}" for key in keys)
        count = 0
        await self.source.execute(
            f"DECLARE foreshard_intake CURSOR WITH HOLD FOR SELECT {listed} FROM {rows} AS held WHERE {claimed}"
        )
        while batch := await self.source.fetch(f"FETCH {BATCH_ROWS} FROM foreshard_intake"):
            await self._take_patiently([[row[place] for row in batch] for place in range(len(keys))])
            count += len(batch)
        await self.source.execute("CLOSE foreshard_intake")
        twice = await self.source.fetch(
            f"SELECT {key_text_sql(columns, 'held')} AS key FROM {rows} AS held WHERE {claimed} "
            "GROUP BY 1 HAVING count(*) > 1"
        )
        self.doubled |= {row["key"] for row in twice}
        return count

    async def _take_patiently(self, keys: list[list[str]]) -> None:
        for _ in range(TRIES_MAX):
            try:
                return await self._take(keys)
            except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
                continue
        raise ForeshardError(f"claims of {self.intake.name}: rows or claims stay locked; run apply again")

    async def _take(self, keys: list[list[str]]) -> None:
        """Claims for the rows of these keys, as they are now."""
        async with self.source.transaction():
            await self.source.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")
            shards: dict[int, list[tuple[str, int, int]]] = defaultdict(list)
            for row in await self.source.fetch(self._rows_sql(), *keys):
                shards[self.owners[row["home"]]].append((row["key"], row["home"], row["bucket"]))
            control_point("intake-locked")
            for shard, claims in sorted(shards.items()):
                await self._claim(self.homes[shard], sorted(claims))
                control_point("intake-claimed")

    async def _claim(self, home: Connection, claims: list[tuple[str, int, int]]) -> None:
        arguments = (self.intake.name, *map(list, zip(*claims, strict=True)))
        async with home.transaction():
            await home.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")
            await home.execute(TAKE, *arguments)
            self.doubled |= {row["key"] for row in await home.fetch(HELD_OTHERWISE, *arguments)}

    def _rows_sql(self) -> str:
        table, columns = self.intake.table, self.intake.columns
        names = [f"key_{place}" for place in range(len(table.row_key))]
        types = {column.name: column.type_name for column in table.columns}
        given = ", ".join(f"${place}::text[]" for place in range(1, len(names) + 1))
        joined = " AND ".join(
            f"held.{quote_name(column)} = given.{name}::{types[column]}"
            for column, name in zip(table.row_key, names, strict=True)
        )
        return (
            f"SELECT {key_text_sql(columns, 'held')} AS key, {home_sql(table, columns, 'held')} AS home, "
            f"{bucket_of_row(table, 'held')} AS bucket FROM unnest({given}) AS given({', '.join(names)}) "
            f"JOIN {quote_table(table)} AS held ON {joined} WHERE {is_claimed_sql(table, columns, 'held')} "
            "FOR SHARE OF held"
        )
