"""The statements that are compared: each through Foreshard, and what it is on one PostgreSQL."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SCHEMA = (
    "CREATE TABLE account (id bigint PRIMARY KEY, owner text, balance bigint NOT NULL DEFAULT 0)",
    "CREATE TABLE entry (id bigserial PRIMARY KEY, account_id bigint NOT NULL REFERENCES account, amount bigint)",
    "CREATE INDEX ON entry (account_id)",
    "CREATE TABLE note (id bigserial PRIMARY KEY, body text)",
    "CREATE TABLE named (name text PRIMARY KEY, body text)",
)
TABLES = {
    "account": {"key": "id"},
    "entry": {"key": "id", "parent": "account", "via": "account_id"},
    "note": {"key": "id"},
    "named": {"key": "name"},
}
BODY = "x" * 200


@dataclass(frozen=True)
class Kind:
    """One script of pgbench, with keys of the accounts to draw from."""

    name: str
    lines: tuple[str, ...]
    clients: int = 4

    def write(self, directory: Path, accounts: int) -> tuple[str, ...]:
        """The script as pgbench's arguments."""
        path = directory / f"{self.name.replace(' ', '-').replace(',', '')}.sql"
        path.write_text("".join(line.format(accounts=accounts, body=BODY) + "\n" for line in self.lines))
        return ("-f", str(path))


def transfer(one: str, other: str) -> tuple[str, ...]:
    """Money moves in a transaction; lower keys first, so that none waits for another in a circle."""
    return (
        one,
        other,
        r"\set low least(:a, :b)",
        r"\set high greatest(:a, :b)",
        "BEGIN;",
        "UPDATE account SET balance = balance - 1 WHERE id = :low;",
        "UPDATE account SET balance = balance + 1 WHERE id = :high;",
        "COMMIT;",
    )


KINDS = (
    Kind("insert, placed", ("INSERT INTO note (body) VALUES ('{body}');",)),
    Kind(
        "insert, text key at home",
        (
            r"\set n random(1, 1000000000000)",
            "INSERT INTO named VALUES ('name :n', '{body}');",
        ),
    ),
    Kind("point read", (r"\set a random(1, {accounts})", "SELECT balance FROM account WHERE id = :a;")),
    Kind("transfer", transfer(r"\set a random(1, {accounts})", r"\set b random(1, {accounts})")),
    Kind("count", ("SELECT count(*) FROM account;",), clients=1),
    Kind(
        "count over a join",
        ("SELECT count(*) FROM account a JOIN entry e ON e.account_id = a.id;",),
        clients=1,
    ),
    Kind("newest ten", ("SELECT id, balance FROM account ORDER BY id DESC LIMIT 10;",), clients=1),
    Kind(
        "groups",
        ("SELECT owner, count(*), sum(balance) FROM account GROUP BY owner ORDER BY owner;",),
        clients=1,
    ),
    Kind(
        "query node: join of groups",
        ("SELECT count(*) FROM account a JOIN note n ON n.id = a.id;",),
        clients=1,
    ),
)
