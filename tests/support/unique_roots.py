"""The tables over which clients fight for values, and how statements on their roots read.

`item` has client-given text keys at home, `parcel` such keys that are placed by cost, `seat` keys of two columns; each
has a unique column as well. `wrap` is a child of `parcel`, wherever that is. `account` has generated keys and a unique
column, and `part`, its child, keys that clients give. So values are arbitrated by primary keys at home, and by
claims here and elsewhere.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.support.ledger import Row, Value

SCHEMA = """
CREATE TABLE item (name text PRIMARY KEY, email text UNIQUE, mark text NOT NULL);
CREATE TABLE parcel (code text PRIMARY KEY, label text UNIQUE, mark text NOT NULL);
CREATE TABLE seat (hall text, place integer, holder text UNIQUE, mark text NOT NULL, PRIMARY KEY (hall, place));
CREATE TABLE wrap (id bigserial PRIMARY KEY, code text NOT NULL REFERENCES parcel, mark text NOT NULL);
CREATE TABLE account (id bigserial PRIMARY KEY, handle text UNIQUE, mark text NOT NULL);
CREATE TABLE part (id bigint PRIMARY KEY, account_id bigint NOT NULL REFERENCES account, mark text NOT NULL);
"""
TABLES = {
    "item": {"key": "name", "unique": ["email"]},
    "parcel": {"key": "code", "placement": "cost", "unique": ["label"]},
    "seat": {"key": ["hall", "place"], "unique": ["holder"]},
    "wrap": {"key": "id", "parent": "parcel", "via": "code"},
    "account": {"key": "id", "unique": ["handle"]},
    "part": {"key": "id", "parent": "account", "via": "account_id", "unique": ["id"]},
}
# Each parcel's predicted cost, and this policy, send parcels to each shard in turn: two of three away from home.
SECTIONS: dict[str, Any] = {
    "placement": {"policy": "least-loaded"},
    "triggers": {
        "weigh": {"table": "parcel", "on": ["insert"], "function": "functions:weigh", "profile": {"cpu": "5ms"}}
    },
}
LEFT = {
    "item": "SELECT mark, name, email FROM item",
    "parcel": "SELECT mark, code, label FROM parcel",
    "seat": "SELECT mark, hall || place, holder FROM seat",
    "wrap": "SELECT mark FROM wrap",
    "account": "SELECT mark, handle FROM account",
    "part": "SELECT mark, id::text FROM part",
}
NAMES = {
    "item": ("item.name", "item.email"),
    "parcel": ("parcel.code", "parcel.label"),
    "seat": ("seat.place", "seat.holder"),
    "wrap": (),
    "account": ("account.handle",),
    "part": ("part.id",),
}
# What must have a claim.
CLAIMED = """
SELECT 'public.item.email', email FROM item WHERE email IS NOT NULL
UNION ALL SELECT 'public.parcel.code', code FROM parcel
UNION ALL SELECT 'public.parcel.label', label FROM parcel WHERE label IS NOT NULL
UNION ALL SELECT 'public.seat.holder', holder FROM seat WHERE holder IS NOT NULL
UNION ALL SELECT 'public.account.handle', handle FROM account WHERE handle IS NOT NULL
UNION ALL SELECT 'public.part.id', id::text FROM part
"""
VALUES = 14
PLACES = 4  # of each hall


def row_of(table: str, mark: str, *values: str | None) -> Row:
    """A row version, with its values that must be unique."""
    pairs: list[Value] = [(name, value) for name, value in zip(NAMES[table], values, strict=True) if value is not None]
    return Row(mark, tuple(pairs))


def quoted(value: str | None) -> str:
    return "NULL" if value is None else f"'{value}'"


@dataclass(frozen=True)
class Root:
    """A root whose keys clients give: `letter` followed by a number, also where the key has two columns."""

    table: str
    key: Sequence[str]
    other: str  # its unique column
    letter: str

    def draw_key(self, draw: random.Random) -> str:
        return f"{self.letter}{draw.randrange(VALUES)}"

    def sample_keys(self, draw: random.Random, count: int) -> list[str]:
        return [f"{self.letter}{number}" for number in draw.sample(range(VALUES), count)]

    def literals(self, key: str) -> list[str]:
        """The key's columns, as SQL: hall and place of seat `t7` are 't1' and 3."""
        if len(self.key) == 1:
            return [quoted(key)]
        hall, place = divmod(int(key[1:]), PLACES)
        return [f"'{self.letter}{hall}'", str(place)]

    def value_of(self, key: str) -> str:
        """The key as LEFT shows it."""
        return "".join(literal.strip("'") for literal in self.literals(key))

    def is_key(self, key: str) -> str:
        """The condition that names the key's row."""
        return " AND ".join(f"{name} = {value}" for name, value in zip(self.key, self.literals(key), strict=True))

    def set_key(self, key: str) -> str:
        return ", ".join(f"{name} = {value}" for name, value in zip(self.key, self.literals(key), strict=True))

    def row(self, mark: str, key: str, other: str | None) -> Row:
        return row_of(self.table, mark, self.value_of(key), other)

    def values(self, mark: str, key: str, other: str | None) -> str:
        """What VALUES holds for a row."""
        return f"({', '.join(self.literals(key))}, {quoted(other)}, '{mark}')"

    @property
    def unique(self) -> str:
        """The name of its unique column's values."""
        return f"{self.table}.{self.other}"

    @property
    def insert(self) -> str:
        return f"INSERT INTO {self.table} ({', '.join(self.key)}, {self.other}, mark) VALUES "

    @property
    def on_conflict(self) -> str:
        return f" ON CONFLICT ({', '.join(self.key)})"


ROOTS = (
    Root("item", ("name",), "email", "n"),
    Root("parcel", ("code",), "label", "c"),
    Root("parcel", ("code",), "label", "c"),  # more often: it has more ways to go wrong
    Root("seat", ("hall", "place"), "holder", "t"),
)
