"""Looks at claims: every value of a unique column has one, at its home, for its row; and every claim has its row.

Rows and claims are on different shards, and change while they are looked at: what looks wrong is looked at again
several times. A row's claim is asked for after the row was read, a claim's row after the claim.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from foreshard.proxy.catalog import Catalog, Table
from foreshard.proxy.control.claim_sets import claim_name, claim_names, home_sql, is_claimed_sql, key_text_sql
from foreshard.proxy.control.key_sql import bucket_of_row
from foreshard.proxy.control.verify_findings import Finding, first_keys
from foreshard.proxy.control.verify_shard import ShardReader, confirmed
from foreshard.proxy.control.verify_sql import SUSPECTS_MAX, KeyText
from foreshard.proxy.triggers.capture import quote_name, quote_table

ROWS_CHUNK = 10_000
ReadOwners = Callable[[], Awaitable[list[int]]]
IS_THERE = "SELECT to_regclass('foreshard.claim_set') IS NOT NULL"
HELD = """
SELECT held.home, held.key, held.bucket
FROM unnest($2::integer[], $3::text[]) AS given(home, key) JOIN foreshard.claim AS held USING (home, key)
WHERE held.name = $1
"""
# In the order of the index, which is read once for each set, from home $2 on, whatever else is in it.
CLAIMS = """
SELECT home, key, bucket FROM foreshard.claim
WHERE name = $1 AND (home, name, key) > ($2, $1, $3) ORDER BY home, name, key LIMIT $4
"""


class Claimed(NamedTuple):
    """A row's value as it is claimed, and the row's own key."""

    shard: int
    row: str
    key: str
    home: int
    bucket: int


class Claim(NamedTuple):
    """A claim as it stands on a shard."""

    shard: int
    key: str
    home: int
    bucket: int


Found = TypeVar("Found", Claimed, Claim)


class ClaimVerification:
    """One claim set over all shards. `run` is called once, then `findings` is complete."""

    def __init__(
        self, catalog: Catalog, table: Table, columns: tuple[str, ...], readers: Sequence[ShardReader],
        read_owners: ReadOwners,
    ) -> None:  # fmt: skip
        self.findings: list[Finding] = []
        self._name = claim_name(table, columns)
        self._table = table
        self._columns = columns
        self._readers = {reader.index: reader for reader in readers}
        self._read_owners = read_owners
        self._key = KeyText(table)
        self._is_anywhere = catalog.root_of(table).by_cost  # claims hold the key's bucket; rows may be away from that

    async def run(self) -> None:
        """Look at every row and every claim, then again at what looked wrong."""
        unclaimed: list[Claimed] = []
        orphans: list[Claim] = []
        for reader in self._readers.values():
            unclaimed += await self._scan_rows(reader)
            orphans += await self._scan_claims(reader)
            await self._find_twice(reader)
        for shard, rows in _by_shard(await confirmed(unclaimed[:SUSPECTS_MAX], self._look_at_rows)).items():
            self._find(
                shard, "unclaimed", [row.key for row in rows],
                "values that no claim at their home keeps for their row: another row may take them, or has",
                "compare the rows with such values on all shards; then write the row's value anew, through Foreshard",
            )  # fmt: skip
        for shard, claims in _by_shard(await confirmed(orphans[:SUSPECTS_MAX], self._look_at_claims)).items():
            self._find(
                shard, "orphan claims", [claim.key for claim in claims],
                "claims of values that no row of their bucket has: nobody can take these values",
                f"DELETE FROM foreshard.claim WHERE home = ... AND name = '{self._name}' AND key = ...",
            )  # fmt: skip

    async def _scan_rows(self, reader: ShardReader) -> list[Claimed]:
        found: list[Claimed] = []
        first, following = self._rows_sql(""), self._rows_sql(self._key.after(2))
        rows = await reader.rows(first, ROWS_CHUNK)
        while rows and len(found) < SUSPECTS_MAX:
            found += await self._lacking([self._claimed(reader, row) for row in rows if row["home"] is not None])
            if len(rows) < ROWS_CHUNK:
                break
            rows = await reader.rows(following, ROWS_CHUNK, rows[-1]["row"])
        return found

    async def _scan_claims(self, reader: ShardReader) -> list[Claim]:
        found: list[Claim] = []
        home, key = -1, ""
        while len(found) < SUSPECTS_MAX:
            rows = await reader.rows(CLAIMS, self._name, home, key, ROWS_CHUNK)
            found += await self._rowless([Claim(reader.index, row["key"], row["home"], row["bucket"]) for row in rows])
            if len(rows) < ROWS_CHUNK:
                break
            home, key = rows[-1]["home"], rows[-1]["key"]
        return found

    async def _lacking(self, rows: list[Claimed]) -> list[Claimed]:
        """Rows without a claim of their own at their home."""
        owners = await self._read_owners()
        homes: dict[int, list[Claimed]] = defaultdict(list)
        for row in rows:
            homes[owners[row.home]].append(row)
        found: list[Claimed] = []
        for shard, asked in homes.items():
            reader = self._readers.get(shard)
            held = await reader.rows(HELD, self._name, *_places(asked)) if reader is not None else []
            known = {(claim["key"], claim["home"], claim["bucket"]) for claim in held}
            found += [row for row in asked if (row.key, row.home, row.bucket) not in known]
        return found

    async def _rowless(self, claims: list[Claim]) -> list[Claim]:
        """Claims without a row of their bucket whose value has their home, which is of their shard."""
        owners = await self._read_owners()
        shards: dict[int, list[Claim]] = defaultdict(list)
        for claim in claims:
            for shard in self._readers if self._is_anywhere else [owners[claim.bucket]]:
                shards[shard].append(claim)
        known: set[tuple[str, int, int]] = set()  # key, home, bucket
        for shard, asked in shards.items():
            reader = self._readers.get(shard)
            rows = await reader.rows(self._among_sql(), [claim.key for claim in asked]) if reader is not None else []
            known |= {(row["key"], row["home"], row["bucket"]) for row in rows}
        return [
            claim
            for claim in claims
            if owners[claim.home] != claim.shard or (claim.key, claim.home, claim.bucket) not in known
        ]

    async def _look_at_rows(self, suspects: list[Claimed]) -> list[Claimed]:
        found: list[Claimed] = []
        for shard, asked in _by_shard(suspects).items():
            reader = self._readers[shard]
            sql = self._rows_sql(self._key.among(2))
            rows = await reader.rows(sql, len(asked), [row.row for row in asked])
            found += await self._lacking([self._claimed(reader, row) for row in rows if row["home"] is not None])
        return found

    async def _look_at_claims(self, suspects: list[Claim]) -> list[Claim]:
        found: list[Claim] = []
        for shard, asked in _by_shard(suspects).items():
            rows = await self._readers[shard].rows(HELD, self._name, *_places(asked))
            found += await self._rowless([Claim(shard, row["key"], row["home"], row["bucket"]) for row in rows])
        return found

    async def _find_twice(self, reader: ShardReader) -> None:
        """Values on several rows of one shard: those of one bucket share their claim."""
        twice = await reader.rows(
            f"SELECT {key_text_sql(self._columns, 'held')} AS key FROM {quote_table(self._table)} AS held "
            f"WHERE {is_claimed_sql(self._table, self._columns, 'held')} GROUP BY 1 HAVING count(*) > 1 "
            f"LIMIT {SUSPECTS_MAX}"
        )
        if twice:
            self._find(
                reader.index, "doubled", [row["key"] for row in twice], "values of unique columns on several rows",
                "change or delete all rows but one of each",
            )  # fmt: skip

    def _claimed(self, reader: ShardReader, row: Any) -> Claimed:
        return Claimed(reader.index, row["row"], row["key"], row["home"], row["bucket"])

    def _rows_sql(self, condition: str) -> str:
        """$1 rows at most; those that claim nothing have no home."""
        claimed = is_claimed_sql(self._table, self._columns, "held")
        return (
            f"SELECT {self._key.text} AS row, {key_text_sql(self._columns, 'held')} AS key, "
            f"CASE WHEN {claimed} THEN {home_sql(self._table, self._columns, 'held')} END AS home, "
            f"{bucket_of_row(self._table, 'held')} AS bucket FROM {quote_table(self._table)} AS held "
            f"{'WHERE ' if condition else ''}{condition} ORDER BY {self._key.columns} LIMIT $1"
        )

    def _among_sql(self) -> str:
        """Rows with the values whose texts are in $1."""
        types = {column.name: column.type_name for column in self._table.columns}
        is_one = len(self._columns) == 1
        same = " AND ".join(
            f"held.{quote_name(name)} = {'given.key' if is_one else f'(given.key::text[])[{place}]'}::{types[name]}"
            for place, name in enumerate(self._columns, 1)
        )
        return (
            f"SELECT given.key, {bucket_of_row(self._table, 'held')} AS bucket, "
            f"{home_sql(self._table, self._columns, 'held')} AS home FROM unnest($1::text[]) AS given(key) "
            f"JOIN {quote_table(self._table)} AS held ON {same}"
        )

    def _find(self, shard: int, check: str, keys: list[str], what: str, remedy: str) -> None:
        self.findings.append(
            Finding(
                check=check,
                place=self._readers[shard].place,
                subject=self._name,
                what=what,
                count=len(keys),
                keys=first_keys(keys),
                remedy=remedy,
            )
        )


def _places(asked: Sequence[Found]) -> tuple[list[int], list[str]]:
    """Where claims are looked for: homes and keys."""
    return [one.home for one in asked], [one.key for one in asked]


def _by_shard(found: Sequence[Found]) -> dict[int, list[Found]]:
    shards: dict[int, list[Found]] = defaultdict(list)
    for one in found:
        shards[one.shard].append(one)
    return shards


async def check_claim_leftovers(catalog: Catalog, reader: ShardReader) -> list[Finding]:
    """What no transaction, and no declaration, can have left on a shard."""
    if not await reader.value(IS_THERE):
        return []

    async def pending(_: list[int]) -> list[int]:
        count = await reader.value("SELECT count(*) FROM foreshard.claim_pending")
        return [count] if count else []

    names = sorted(claim_names(catalog) | {table.claim for table in catalog.tables.values() if table.by_cost})
    found = []
    for count in await confirmed(await pending([]), pending):
        found.append(("foreshard.claim_pending", count, "claims that were owed when their transaction ended"))
    for row in await reader.rows(
        "SELECT name, count(*) AS count FROM foreshard.claim WHERE name <> ALL($1::text[]) GROUP BY name", names
    ):
        found.append((row["name"], row["count"], "claims of columns that are not declared unique"))
    for row in await reader.rows("SELECT name FROM foreshard.claim_set WHERE NOT is_taken_in ORDER BY name"):
        found.append((row["name"], 1, "older rows have not been taken in: their values are not unique yet"))
    return [
        Finding(check="claims", place=reader.place, subject=subject, what=what, count=count, remedy="foreshard apply")
        for subject, count, what in found
    ]
