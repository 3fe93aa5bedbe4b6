"""What a client is told about a key that cannot be read, in PostgreSQL's words where it has some."""

from __future__ import annotations

from foreshard._core.errors import SqlError, not_built
from foreshard._core.typed_keys import READING_NAMES, TYPE_NAMES, KeyType

DATES = (KeyType.TYPE_DATE, KeyType.TYPE_TIMESTAMP, KeyType.TYPE_TIMESTAMPTZ)


def malformed_key(reading: int, key_type: int, place: str, shown: str, is_array: bool) -> SqlError:
    """The error for a Reading; `place` is "relation.column"."""
    relation, column = place.rsplit(".", 1)
    detail = f'It is the routing key "{column}" of "{relation}".'
    name = TYPE_NAMES[key_type]
    what = READING_NAMES[reading]
    if what == "other":
        return not_built(
            f'the key "{shown}" of type {name} in this statement',
            _hint(key_type),
            f"{detail} What it says is not certain, or not which shard it means.",
        )
    if what == "malformed" and is_array and key_type > KeyType.TYPE_INT2:
        return SqlError("22P02", f'malformed array literal: "{shown}"', detail)
    if what == "malformed":
        code = "22007" if key_type in DATES else "22P02"
        message = f"invalid input syntax for type {name}"
        return SqlError(code, message if key_type == KeyType.TYPE_BYTEA else f'{message}: "{shown}"', detail)
    out_of_range = SqlError("22003", f'value "{shown}" is out of range for type {name}', detail)
    return {
        "none": out_of_range,
        "range": out_of_range,
        "overflow": SqlError("22008", f'date/time field value out of range: "{shown}"', detail),
        "short": SqlError("08P01", "insufficient data left in message", detail),
        "long": SqlError("22P03", "incorrect binary data format in bind parameter", detail),
        "hexadecimal": SqlError("22023", "invalid hexadecimal digit", detail),
        "odd": SqlError("22023", "invalid hexadecimal data: odd number of digits", detail),
    }[what]


def _hint(key_type: int) -> str:
    if key_type in DATES:
        zone = " and an offset, as in 2026-01-31 12:00:00+00" if key_type == KeyType.TYPE_TIMESTAMPTZ else ""
        return f"Write it as in ISO 8601{zone}, or bind it in binary format."
    return "Name the parent's key in the statement too: rows of a child table live with their parent."
