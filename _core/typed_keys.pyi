from enum import IntEnum

class KeyType(IntEnum):
    TYPE_INT8 = 0
    TYPE_INT4 = 1
    TYPE_INT2 = 2
    TYPE_TEXT = 3
    TYPE_UUID = 4
    TYPE_BYTEA = 5
    TYPE_DATE = 6
    TYPE_TIMESTAMP = 7
    TYPE_TIMESTAMPTZ = 8

HASH_SQL: dict[int, str]
SCALAR_OIDS: dict[int, tuple[int, ...]]
ARRAY_OIDS: dict[int, tuple[int, ...]]
TYPE_NAMES: dict[int, str]
READING_NAMES: dict[int, str]

def split_text(text: bytes) -> list[bytes | None] | int: ...
def hash_of(type: int, data: bytes, format: int = 0, seed: int | None = None, limit: int = 0) -> int | str: ...
def bucket_of_text(type: int, data: bytes, format: int = 0) -> int | str: ...
def home_of_texts(types: list[int], texts: list[bytes]) -> int | str: ...
def is_placed_uuid(data: bytes) -> bool: ...
def make_placed_uuid(bucket: int, random: bytes) -> bytes: ...
