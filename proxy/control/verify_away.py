"""Looks at the keys of a table that is placed by cost: every row has its claim at home, every claim its row.

What looks wrong is looked at again several times, with fresh snapshots and a fresh bucket map, before it is reported.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from foreshard.proxy.catalog import Table
from foreshard.proxy.control.verify_claims import CLAIMS, HELD
from foreshard.proxy.control.verify_findings import Finding, first_keys
from foreshard.proxy.control.verify_shard import ShardReader, confirmed
from foreshard.proxy.control.verify_sql import KeyText
from foreshard.proxy.triggers.capture import quote_table, quote_text

CHUNK_KEYS = 10_000


class Placed(NamedTuple):
    """A row, or a claim, and the bucket that it is in, or says."""

    key: str
    home: int
    bucket: int


class AwayVerification:
    """One table over all shards. `run` is called once, then `findings` is complete."""

    def __init__(
        self, table: Table, readers: list[ShardReader], read_owners: Callable[[], Awaitable[list[int]]]
    ) -> None:
        self.findings: list[Finding] = []
        self._table = table
        self._readers = {reader.index: reader for reader in readers}
        self._read_owners = read_owners
        self._key = KeyText(table)
        key, name = self._key.columns, quote_text(table.claim)
        self._rows = (
            f"SELECT {self._key.text} AS key, foreshard.bucket_of({key}) AS home, "
            f"foreshard.bucket_where({name}, {key}) AS bucket FROM {quote_table(table)}"
        )

    async def run(self) -> None:
        """Look at every row, at every claim, and at every note of a row that is away."""
        for reader in self._readers.values():
            await self._check_rows(reader)
            await self._check_claims(reader)
            await self._check_notes(reader)

    async def _check_rows(self, reader: ShardReader) -> None:
        wrong: list[Placed] = []
        sql = f"{self._rows} ORDER BY {self._key.columns} LIMIT $1"
        rows = await reader.rows(sql, CHUNK_KEYS)
        while rows:
            wrong += await self._without_claim([Placed(*row) for row in rows])
            if len(rows) < CHUNK_KEYS:
                break
            after = f"WHERE {self._key.after(2)} ORDER BY {self._key.columns} LIMIT $1"
            rows = await reader.rows(f"{self._rows} {after}", CHUNK_KEYS, rows[-1]["key"])

        async def look(suspects: list[Placed]) -> list[Placed]:
            again = await reader.rows(f"{self._rows} WHERE {self._key.among(1)}", [one.key for one in suspects])
            return await self._without_claim([Placed(*row) for row in again])

        what = "rows without the claim at their key's home that says where they are"
        self._report(reader, await confirmed(wrong, look), what)

    async def _without_claim(self, rows: list[Placed]) -> list[Placed]:
        """Those rows whose home shard has no claim of the key, or one that names another bucket."""
        owners = await self._read_owners()
        homes: dict[int, list[Placed]] = defaultdict(list)
        for row in rows:
            homes[owners[row.home]].append(row)
        wrong = []
        for index, here in homes.items():
            if index in self._readers:
                found = await self._readers[index].rows(HELD, self._table.claim, *_places(here))
                said = {claim["key"]: claim["bucket"] for claim in found}
                wrong += [row for row in here if said.get(row.key) != row.bucket]
        return wrong

    async def _check_claims(self, reader: ShardReader) -> None:
        wrong: list[Placed] = []
        home, key = -1, ""
        while claims := await reader.rows(CLAIMS, self._table.claim, home, key, CHUNK_KEYS):
            wrong += await self._without_row(reader, [_claim(row) for row in claims])
            if len(claims) < CHUNK_KEYS:
                break
            home, key = claims[-1]["home"], claims[-1]["key"]

        async def look(suspects: list[Placed]) -> list[Placed]:
            again = await reader.rows(HELD, self._table.claim, *_places(suspects))
            return await self._without_row(reader, [_claim(row) for row in again])

        what = "claims of keys that no row has where they say, or that have another home"
        self._report(reader, await confirmed(wrong, look), what)

    async def _without_row(self, reader: ShardReader, claims: list[Placed]) -> list[Placed]:
        """Those claims whose bucket's shard has no such row, or whose home is another, or another shard's."""
        owners = await self._read_owners()
        places: dict[int, list[Placed]] = defaultdict(list)
        for claim in claims:
            places[owners[claim.bucket]].append(claim)
        wrong = []
        for index, here in places.items():
            if index in self._readers:
                sql = f"{self._rows} WHERE {self._key.among(1)}"
                rows = await self._readers[index].rows(sql, [claim.key for claim in here])
                found = {(row["key"], row["home"]) for row in rows}
                wrong += [
                    claim
                    for claim in here
                    if owners[claim.home] != reader.index or (claim.key, claim.home) not in found
                ]
        return wrong

    async def _check_notes(self, reader: ShardReader) -> None:
        """A note goes in the transaction of its row, so one snapshot tells."""
        rows = await reader.rows(
            f"SELECT noted.key FROM foreshard.away AS noted WHERE noted.name = $1 AND NOT EXISTS "
            f"(SELECT FROM {quote_table(self._table)} WHERE {self._key.text} = noted.key)",
            self._table.claim,
        )
        found = [Placed(row["key"], -1, -1) for row in rows]
        self._report(reader, found, "notes in foreshard.away of rows that are not here")

    def _report(self, reader: ShardReader, wrong: list[Placed], what: str) -> None:
        if wrong:
            self.findings.append(
                Finding(
                    check="claim", place=reader.place, subject=self._table.qualified, what=what, count=len(wrong),
                    keys=first_keys([one.key for one in wrong]),
                    remedy="insert or delete what is missing in foreshard.claim and foreshard.away",
                )
            )  # fmt: skip


def _claim(row: Any) -> Placed:
    return Placed(row["key"], row["home"], row["bucket"])


def _places(placed: list[Placed]) -> tuple[list[int], list[str]]:
    """Where claims are looked for: homes and keys."""
    return [one.home for one in placed], [one.key for one in placed]
