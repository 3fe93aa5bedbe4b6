"""The statements that are compared: each through Foreshard, and what it is on one PostgreSQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from foreshard._core.buckets import bucket_of, initial_map

SCHEMA = (
    "CREATE TABLE account (id bigint PRIMARY KEY, owner text, balance bigint NOT NULL DEFAULT 0)",
    "CREATE TABLE entry (id bigserial PRIMARY KEY, account_id bigint NOT NULL REFERENCES account, amount bigint)",
    "CREATE INDEX ON entry (account_id)",
    "CREATE TABLE tenant (id bigint PRIMARY KEY)",
    "CREATE TABLE item (id bigserial PRIMARY KEY, tenant_id bigint NOT NULL REFERENCES tenant, n integer)",
    "CREATE INDEX ON item (tenant_id)",
    "CREATE TABLE note (id bigserial PRIMARY KEY, body text)",
    "CREATE TABLE named (name text PRIMARY KEY, body text)",
    # The same columns and indexes; only in one of them are the shards' unique indexes one.
    "CREATE TABLE member (name text PRIMARY KEY, email text UNIQUE, body text)",
    "CREATE TABLE visitor (name text PRIMARY KEY, email text, body text)",
    "CREATE INDEX ON visitor (email)",
    # Both fire a function, whose predicted cost decides where parcels live; crates live where their keys say.
    "CREATE TABLE parcel (name text PRIMARY KEY, body text)",
    "CREATE TABLE crate (name text PRIMARY KEY, body text)",
)
TABLES = {
    "account": {"key": "id"},
    "entry": {"key": "id", "parent": "account", "via": "account_id"},
    "tenant": {"key": "id"},
    "item": {"key": "id", "parent": "tenant", "via": "tenant_id"},
    "note": {"key": "id"},
    "named": {"key": "name"},
    "member": {"key": "name", "unique": ["email"]},
    "visitor": {"key": "name"},
    "parcel": {"key": "name", "placement": "cost"},
    "crate": {"key": "name"},
}
TRIGGERS = {
    f"weigh_{table}": {"table": table, "on": ["insert"], "function": "functions:weigh", "profile": {"cpu": "5ms"}}
    for table in ("parcel", "crate")
}
PLACEMENT = {"policy": "least-loaded"}  # each shard in turn: three of four parcels are away from home
BODY = "x" * 200
PAIRS = 60  # pgbench takes 128 scripts at most


@dataclass(frozen=True)
class Kind:
    """One script of pgbench, with keys of the accounts to draw from."""

    name: str
    lines: tuple[str, ...]
    clients: int = 4
    pairs: Sequence[tuple[int, int]] = ()  # of accounts: one script for each, as {one} and {other}
    plain: tuple[str, ...] = ()  # what it is compared with through Foreshard, too: the same without the guarantee
    bar: float | None = None  # the most that it may cost, against `plain` or else one PostgreSQL
    mode: str = "simple"  # pgbench's -M
    beside: str = ""  # what another client asks all the while, but for `plain`

    def write(self, directory: Path, accounts: int) -> tuple[str, ...]:
        """The script as pgbench's arguments."""
        return self._write(directory, accounts, self.lines, "")

    def write_plain(self, directory: Path, accounts: int) -> tuple[str, ...]:
        """The same of what it is compared with."""
        return self._write(directory, accounts, self.plain, "-plain")

    def _write(self, directory: Path, accounts: int, lines: Sequence[str], suffix: str) -> tuple[str, ...]:
        words: list[str] = []
        for number, (one, other) in enumerate(self.pairs or [(0, 0)]):
            name = "-".join(self.name.replace(",", "").replace(":", "").replace("...", "").split())
            path = directory / f"{name}{suffix}-{number}.sql"
            values: Mapping[str, object] = {
                "accounts": accounts, "body": BODY, "one": one, "other": other, "hundred": HUNDRED
            }  # fmt: skip
            path.write_text("".join(line.format_map(values) + "\n" for line in lines))
            words += ["-f", str(path)]
        return tuple(words)


def shards_of_accounts(accounts: int, shards: int) -> list[list[int]]:
    """The keys of the accounts on each shard."""
    owners = initial_map(shards)
    found: list[list[int]] = [[] for _ in range(shards)]
    for key in range(1, accounts + 1):
        found[owners[bucket_of(key)]].append(key)
    return found


def transfers(accounts: int, shards: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Pairs of accounts on one shard, and pairs on two; lower keys first, so that none waits in a circle."""
    by_shard = shards_of_accounts(accounts, shards)
    same, apart = [], []
    for number in range(PAIRS):
        here, there = by_shard[number % shards], by_shard[(number + 1) % shards]
        place = number // shards
        same.append(_ordered(here[2 * place % len(here)], here[(2 * place + 1) % len(here)]))
        apart.append(_ordered(here[2 * place % len(here)], there[(2 * place + 1) % len(there)]))
    return same, apart


def _ordered(one: int, other: int) -> tuple[int, int]:
    return min(one, other), max(one, other)


TRANSFER = (
    "BEGIN;",
    "UPDATE account SET balance = balance - 1 WHERE id = {one};",
    "UPDATE account SET balance = balance + 1 WHERE id = {other};",
    "COMMIT;",
)
DRAW = r"\set n random(1, 1000000000000)"
DRAW_FIRST = r"\set a random(1, {accounts} - 99)"
HUNDRED = "id BETWEEN :a AND :a + 99"
DRAW_OTHER = r"\set m random(1, 1000000000000)"


TOTAL = "SELECT sum(balance) FROM account"


def scatters(accounts: int, shards: int) -> list[Kind]:
    """Counts over all shards against the same count of one of them, which has a tenant with as many items."""
    tenant = tenants(accounts, shards)[0]
    counts = (
        ("count of items", "SELECT count(*) FROM item{};", " WHERE tenant_id = "),
        ("count of a join", "SELECT count(*) FROM tenant t JOIN item i ON i.tenant_id = t.id{};", " WHERE t.id = "),
    )
    return [
        Kind(
            f"{name} to one shard's, {mode}",
            (text.format(""),),
            clients=1,
            plain=(text.format(f"{by}{tenant}"),),
            bar=3.0,
            mode=mode,
        )
        for name, text, by in counts
        for mode in ("simple", "extended", "prepared")
    ]


def tenants(accounts: int, shards: int) -> list[int]:
    """The key of one tenant on each shard."""
    return [keys[0] for keys in shards_of_accounts(accounts, shards)]


def all_kinds(accounts: int, shards: int, parcels_home: Sequence[int], parcels_away: Sequence[int]) -> tuple[Kind, ...]:
    """Every kind, for that many accounts, and parcels that are at home, or away."""
    same, apart = transfers(accounts, shards)
    return (
        Kind("insert, placed", ("INSERT INTO note (body) VALUES ('{body}');",)),
        Kind("insert, text key at home", (DRAW, "INSERT INTO named VALUES ('name :n', '{body}');")),
        Kind(
            "insert, claimed at home",  # equal texts have one home
            (DRAW, "INSERT INTO member VALUES ('name :n', 'name :n', '{body}');"),
            plain=(DRAW, "INSERT INTO visitor VALUES ('name :n', 'name :n', '{body}');"),
            bar=1.4,
        ),
        Kind(
            "insert, claimed elsewhere for 3 of 4",
            (DRAW, DRAW_OTHER, "INSERT INTO member VALUES ('person :n', 'mail :m', '{body}');"),
            plain=(DRAW, DRAW_OTHER, "INSERT INTO visitor VALUES ('person :n', 'mail :m', '{body}');"),
        ),
        Kind("point read", (r"\set a random(1, {accounts})", "SELECT balance FROM account WHERE id = :a;")),
        Kind("transfer on one shard", TRANSFER, pairs=same),
        Kind("transfer over two shards", TRANSFER, pairs=apart),
        Kind("count", ("SELECT count(*) FROM account;",), clients=1, bar=3.0),
        Kind(
            "count over a join",
            ("SELECT count(*) FROM account a JOIN entry e ON e.account_id = a.id;",),
            clients=1,
            bar=3.0,
        ),
        *scatters(accounts, shards),
        Kind("newest ten", ("SELECT id, balance FROM account ORDER BY id DESC LIMIT 10;",), clients=1),
        Kind(
            "groups", ("SELECT owner, count(*), sum(balance) FROM account GROUP BY owner ORDER BY owner;",), clients=1
        ),
        Kind(
            "total of one moment",  # of one PostgreSQL, any statement is; the setting makes it so over shards
            ("BEGIN ISOLATION LEVEL REPEATABLE READ;", "SELECT sum(balance) FROM account;", "COMMIT;"),
            clients=1,
        ),
        Kind("query node: join of groups", ("SELECT count(*) FROM account a JOIN note n ON n.id = a.id;",), clients=1),
        *_kinds_away(parcels_home, parcels_away),
        Kind(
            "transfer over two shards, beside totals of one moment", TRANSFER, pairs=apart, plain=TRANSFER, beside=TOTAL
        ),
        Kind(
            "insert ... select, 100 rows where they are",
            (DRAW_FIRST, "INSERT INTO entry (account_id, amount) SELECT id, 1 FROM account WHERE {hundred};"),
            clients=1,
        ),
        Kind(
            "insert ... select, 100 rows carried",
            (DRAW_FIRST, "INSERT INTO note (body) SELECT owner FROM account WHERE {hundred};"),
            clients=1,
        ),
    )


def _kinds_away(home: Sequence[int], away: Sequence[int]) -> tuple[Kind, ...]:
    """Keys that clients give, and rows that are placed by cost."""
    read = ("SELECT body FROM parcel WHERE name = 'parcel {one}';",)
    return (
        Kind(
            "insert by cost, away for 3 of 4",
            (DRAW, "INSERT INTO parcel VALUES ('name :n', '{body}');"),
            plain=(DRAW, "INSERT INTO crate VALUES ('name :n', '{body}');"),
        ),
        Kind("point read by cost, at home", read, pairs=[(number, 0) for number in home[:PAIRS]]),
        Kind("point read by cost, away", read, pairs=[(number, 0) for number in away[:PAIRS]]),
    )
