"""What values the tables hold: small pools, so that rows meet in joins, groups and conflicts."""

from __future__ import annotations

import random
import uuid

from tests.differential.pieces import Piece, Value, piece
from tests.differential.schema import SQL_TYPES, Table

WORDS = ("", "a", "b", "Zebra", "aa", "é", "it''s".replace("''", "'"), "ab", "Ulm", "red", "_x", "B")
POOLS: dict[str, tuple[str, ...]] = {
    "int": ("0", "1", "2", "3", "5", "-4", "17", "40"),
    "big": ("0", "1", "7", "-3", "9007199254740993", "123456789012"),
    "num": ("0.00", "1.50", "2.25", "-3.10", "99.99", "10.00"),
    "text": WORDS,
    "bool": ("true", "false"),
    "date": ("2024-01-01", "2024-02-29", "1999-12-31", "2001-05-06"),
    "ts": ("2024-01-01 10:00:00+00", "2024-07-01 23:30:00.123456+02", "1990-05-05 00:00:00-05"),
    "uuid": tuple(str(uuid.UUID(int=number * 0x1234567890ABCDEF << 20 | 0x4 << 76 | 2 << 62)) for number in range(6)),
    "mood": ("sad", "ok", "happy"),
    "array": ("{}", "{a,b}", '{b,"c d",NULL}', "{Ulm}"),
    "json": ("{}", '{"k": 1}', '{"k": [1, 2, {"x": null}]}', "3", '"a"'),
    "small": ("0", "1", "-2", "7"),
    "stamp": ("2024-01-01 10:00:00", "1990-05-05 00:00:00.5"),
    "bytea": ("\\x", "\\x00ff", "\\xff", "\\x7f01"),
}
POOLS["varchar"] = ("red", "green", "blue", "a", "b ", "Ulm", "x1", "x2", "x3", "Zebra", "é")
# Keys that clients give: enough of them that inserts mostly succeed, few enough that they also meet.
KEY_POOLS: dict[str, tuple[str, ...]] = {
    "city": ("Ulm", "Bonn", "Zebra", "é", "it's", "", "a b", "ulm", "Köln", "x", *(f"town {n}" for n in range(30))),
    "label": (*POOLS["varchar"], *(f"l{n}" for n in range(30))),
    "device": tuple(str(uuid.UUID(int=n * 0xFEDCBA9876543211 << 24 | 0x4 << 76 | 2 << 62)) for n in range(40)),
    "seat": tuple(str(n) for n in range(-5, 35)),
    "meter": tuple(str(n) for n in (*range(0, 300, 9), -7, 2**52 - 1, 2**53 + 1, 2**62)),
    "blob": tuple("\\x" + bytes(range(n % 5, n % 5 + n % 7)).hex() + f"{n:02x}" for n in range(40)),
    "holiday": tuple(f"20{10 + n:02}-0{1 + n % 9}-1{n % 10}" for n in range(40)),
    "tick": tuple(f"2024-03-{1 + n:02} 0{n % 10}:00:00+00" for n in range(30)),
    "slot.room": ("a", "b", "c d", "é", ""),
    "slot.no": tuple(str(n) for n in range(-1, 7)),
    "booking.room": ("a", "b"),
    "booking.no": ("0", "1"),
    "booking.place": tuple(str(n) for n in range(1, 9)),
    "entry.tenant": tuple(f"t{n}" for n in range(7)),
    "entry.id": tuple(str(n) for n in range(1, 15)),
    "shelf": tuple(str(n) for n in range(-5, 30)),
    "moment": tuple(f"2024-03-{1 + n:02} 0{n % 10}:00:00" for n in range(30)),
    "venue": tuple(f"hall {n}" for n in range(35)),
    "badge": tuple(str(n) for n in (*range(0, 300, 9), -7, 2**52 - 1, 2**53 + 1, 2**62)),
    "coupon": tuple(f"c{n}" for n in range(12)),
    "country": ("DE", "FR", "IT", "AT", "JP", "BR", "NO"),
    "currency": ("EUR", "USD", "JPY", "GBP", "BRL"),
    "memo": tuple(str(n) for n in range(1, 40)),
    "ledger": tuple(str(n) for n in range(1, 60)),
}
NULL_SHARE = 0.12


def value_of(draw: random.Random, kind: str, *, null_share: float = 0.0) -> Value:
    """A value of a type, sometimes NULL."""
    pool = POOLS[kind]
    if draw.random() < null_share:
        return Value(SQL_TYPES[kind], None, pool)
    return Value(SQL_TYPES[kind], draw.choice(pool), pool)


def literal(draw: random.Random, kind: str, *, null_share: float = 0.0) -> Piece:
    """A value as an expression whose type is certain: literal or parameter."""
    value = value_of(draw, kind, null_share=null_share)
    return piece("CAST(", value, f" AS {SQL_TYPES[kind]})") if kind in ("mood", "num", "json") else piece(value)


def column_value(draw: random.Random, table: Table, column: str) -> Value:
    """A value for a free column of a new or changed row."""
    kind = table.columns[column]
    if f"{table.name}.{column}" == "account.country":
        pool = KEY_POOLS["country"][:5]
        return Value("text", draw.choice((*pool, *pool, None)), pool)
    if f"{table.name}.{column}" == "coupon.code":
        return Value("text", f"k{draw.randrange(10**9)}")
    never_null = column in table.required or (table.name, column) == ("orders", "quantity")
    if never_null or (table.name, column) in (("orders", "quantity"), ("seat", "price")):
        pool = tuple(text for text in POOLS[kind] if not text.startswith("-"))
        return Value(SQL_TYPES[kind], draw.choice(pool), pool)
    return value_of(draw, kind, null_share=NULL_SHARE)


def given_key(draw: random.Random, table: Table, column: str) -> Value:
    """A key out of the pool of a table whose keys clients give."""
    pool = KEY_POOLS.get(f"{table.name}.{column}") or KEY_POOLS[table.name]
    kind = "text" if table.columns[column] == "text" else SQL_TYPES[table.columns[column]]
    return Value(kind, draw.choice(pool), pool)
