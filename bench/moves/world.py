"""What there is to move: rows of clients, in buckets of three sizes, and who owns what after it all."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import asyncpg

from foreshard._core.buckets import bucket_of

SCHEMA = (
    "CREATE TABLE account (id bigserial PRIMARY KEY, owner integer NOT NULL, n bigint NOT NULL DEFAULT 0,"
    " probed bigint NOT NULL DEFAULT 0, body text)",
    "CREATE INDEX ON account (owner)",
    "CREATE TABLE entry (id bigserial PRIMARY KEY, account_id bigint NOT NULL REFERENCES account, amount bigint,"
    " body text)",
    "CREATE INDEX ON entry (account_id)",
)
TABLES = {"account": {"key": "id"}, "entry": {"key": "id", "parent": "account", "via": "account_id"}}
BODY = "x" * 100
CLIENTS = 16
ROOTS_PER_STATEMENT = 40
FIRST_ROOTS = f"INSERT INTO account (owner, body) VALUES {', '.join(['($1, $2)'] * ROOTS_PER_STATEMENT)} RETURNING id"
MANY_ENTRIES = "INSERT INTO entry (account_id, amount, body) SELECT $1::bigint, n, $2 FROM generate_series(1, {}) AS n"


class Size(StrEnum):
    """How many rows a bucket has."""

    SMALL = "few rows"
    MIDDLE = "just below 5,000"  # rows: the most that move in one step
    LARGE = "far above 5,000"


@dataclass
class Account:
    """A root of one client's, and what was acknowledged of it."""

    n: int = 0
    entries: int = 0
    unsure: int = 0  # statements that failed: nobody knows whether they have happened


@dataclass
class World:
    """The rows at the beginning."""

    owned: list[dict[int, Account]]  # by client, then key
    buckets: dict[Size, list[int]] = field(default_factory=lambda: {size: [] for size in Size})

    def row_count(self) -> int:
        """All rows, roughly: those that clients add later are missing."""
        return sum(1 + account.entries for accounts in self.owned for account in accounts.values())

    def keys_by_bucket(self) -> dict[int, list[int]]:
        """The roots that are there from the beginning, by bucket."""
        found: dict[int, list[int]] = defaultdict(list)
        for accounts in self.owned:
            for key in accounts:
                found[bucket_of(key)].append(key)
        return found


async def fill(dsn: str, roots: int, rows: dict[Size, Sequence[int]], draw: random.Random) -> World:
    """Roots of all clients through the proxy; as many buckets as `rows` has of a size get about so many rows each."""
    world = World([{} for _ in range(CLIENTS)])
    connection = await asyncpg.connect(dsn)
    try:
        for number in range(roots // ROOTS_PER_STATEMENT):
            owner = number % CLIENTS
            made = await connection.fetch(FIRST_ROOTS, owner, BODY)
            world.owned[owner].update({row["id"]: Account() for row in made})
        keys = world.keys_by_bucket()
        left = sorted(keys)
        draw.shuffle(left)
        for size, counts in rows.items():
            for count in counts:
                bucket = left.pop()
                world.buckets[size].append(bucket)
                await _enlarge(connection, world, keys[bucket], count)
        world.buckets[Size.SMALL] = left
    finally:
        await connection.close()
    return world


async def _enlarge(connection: asyncpg.Connection, world: World, keys: list[int], rows: int) -> None:
    """Give the roots of one bucket entries, until it has so many rows in all."""
    places = {key: account for accounts in world.owned for key, account in accounts.items()}
    missing = rows - len(keys)
    for place, key in enumerate(keys):
        count = missing // len(keys) + (place < missing % len(keys))
        tag = await connection.execute(MANY_ENTRIES.format(count), key, BODY)
        assert tag == f"INSERT 0 {count}", tag
        places[key].entries += count
