"""Rows of an event as Python values: the outbox keeps JSON, functions get what asyncpg would have given them.

numeric, uuid, date, time, timestamps and bytea become Decimal, UUID, datetime's types and bytes; everything else is
what JSON says. A value that does not read as its column's type (infinity, or a column altered since) stays as JSON.
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, Self

import msgspec

from foreshard._core.buckets import PLACED_FLAG
from foreshard._core.typed_keys import bucket_of_text, home_of_texts, is_placed_uuid
from foreshard.proxy.catalog.model import KEY_TYPES_BY_CATALOG_NAME

Converter = Callable[[Any], Any]
CONVERTERS: dict[str, Converter] = {
    "numeric": lambda value: value if isinstance(value, Decimal) else Decimal(value),
    "float4": float,
    "float8": float,
    "uuid": uuid.UUID,
    "date": datetime.date.fromisoformat,
    "time": datetime.time.fromisoformat,
    "timetz": datetime.time.fromisoformat,
    "timestamp": datetime.datetime.fromisoformat,
    "timestamptz": datetime.datetime.fromisoformat,
    "bytea": lambda value: bytes.fromhex(value[2:]),
}
INTEGER_TYPES = frozenset(("int2", "int4", "int8"))

_decoder = msgspec.json.Decoder()
_exact_decoder = msgspec.json.Decoder(float_hook=Decimal)


class RowReader(msgspec.Struct, frozen=True):
    """How rows of one table are read. `key` has the columns of the row key, none when the table is gone."""

    key: tuple[str, ...]
    converters: Mapping[str, Converter]
    numeric_columns: tuple[str, ...]
    type_names: Mapping[str, str] = {}  # of all columns, as pg_type has them

    def decode(self, text: str) -> dict[str, Any]:
        """The row as JSON says: what features are counted from."""
        row: dict[str, Any] = _decoder.decode(text)
        return row

    def convert(self, row: Mapping[str, Any], text: str) -> dict[str, Any]:
        """The row as functions get it, from what `decode` gave for the text."""
        if not self.converters:
            return dict(row)
        exact = _exact_decoder.decode(text) if self.numeric_columns else {}
        converted = dict(row)
        for column, converter in self.converters.items():
            value = exact.get(column) if column in self.numeric_columns else row.get(column)
            if value is not None:
                converted[column] = _convert(converter, value)
        return converted

    def bucket_of(self, row: Mapping[str, Any], column: str) -> int | None:
        """The bucket that a column's value names or calls its home; None when it does not tell."""
        value = row.get(column)
        key_type = KEY_TYPES_BY_CATALOG_NAME.get(self.type_names.get(column, ""))
        if key_type is None or not isinstance(value, (int, str)):
            return None
        bucket = bucket_of_text(key_type, str(value).encode())
        return bucket if isinstance(bucket, int) else None

    def home_of(self, row: Mapping[str, Any], columns: tuple[str, ...]) -> int | None:
        """The home of several columns' values together; None when they do not tell."""
        types = [KEY_TYPES_BY_CATALOG_NAME.get(self.type_names.get(column, "")) for column in columns]
        values = [row.get(column) for column in columns]
        if any(found is None for found in types) or not all(isinstance(value, (int, str)) for value in values):
            return None
        bucket = home_of_texts([found for found in types if found is not None], [str(one).encode() for one in values])
        return bucket if isinstance(bucket, int) else None

    def names_bucket(self, row: Mapping[str, Any], column: str) -> bool:
        """Whether a column's value is a placed key."""
        value = row.get(column)
        if self.type_names.get(column) == "uuid":
            return isinstance(value, str) and is_placed_uuid(uuid.UUID(value).bytes)
        return isinstance(value, int) and PLACED_FLAG <= value < 2 * PLACED_FLAG

    def convert_key(self, text: str) -> Any:
        """The row key, which the outbox keeps as text; a tuple when it has several columns."""
        if len(self.key) > 1:
            parts = zip(self.key, _decoder.decode(text), strict=True)
            return tuple(self._convert_column(column, str(part)) for column, part in parts)
        return self._convert_column(self.key[0] if self.key else "", text)

    def _convert_column(self, column: str, text: str) -> Any:
        if self.type_names.get(column) in INTEGER_TYPES:
            return _convert(int, text)
        converter = self.converters.get(column)
        return text if converter is None else _convert(converter, text)


class Images(msgspec.Struct, frozen=True):
    """The rows before and after one change, as JSON says them, and the texts they came from."""

    reader: RowReader
    old: dict[str, Any] | None
    new: dict[str, Any] | None
    old_text: str | None
    new_text: str | None

    @classmethod
    def decode(cls, reader: RowReader, old: str | None, new: str | None) -> Self:
        """Both rows."""
        return cls(
            reader, None if old is None else reader.decode(old), None if new is None else reader.decode(new), old, new
        )

    @property
    def columns(self) -> frozenset[str]:
        """Names of the columns that the rows have."""
        return frozenset(self.row)

    @property
    def row(self) -> Mapping[str, Any]:
        """The row that features and the bucket are read from: the new one, of a delete the old one."""
        return self.new if self.new is not None else self.old if self.old is not None else {}

    def convert_old(self) -> dict[str, Any] | None:
        """The row before the change, as functions get it."""
        return None if self.old is None or self.old_text is None else self.reader.convert(self.old, self.old_text)

    def convert_new(self) -> dict[str, Any] | None:
        """The row after the change, as functions get it."""
        return None if self.new is None or self.new_text is None else self.reader.convert(self.new, self.new_text)


def make_row_reader(key: tuple[str, ...], type_names: Mapping[str, str]) -> RowReader:
    """A reader for columns by the names of their types in pg_type, domains resolved."""
    converters = {column: CONVERTERS[name] for column, name in type_names.items() if name in CONVERTERS}
    numeric = tuple(column for column, name in type_names.items() if name == "numeric")
    return RowReader(key, converters, numeric, type_names)


def _convert(converter: Converter, value: Any) -> Any:
    try:
        return converter(value)
    except (ValueError, TypeError, ArithmeticError):
        return value
