from collections.abc import Mapping
from typing import Any

SHAPE_SCALAR: int
SHAPE_ARRAY: int
SHAPE_JSON: int
SHAPE_NUMBER: int
SHAPE_BOOLEAN: int
SHAPE_UUID: int
SHAPE_TIMESTAMP: int
SHAPE_TIMESTAMPTZ: int
SHAPE_DATE: int
SHAPE_BYTES: int

def shape_of_type(type_name: str) -> int: ...
def features_of_row(row: Mapping[str, Any], volume: int) -> tuple[float, float, float, float]: ...
def features_of_value(data: bytes | None, shape: int, format: int = 0) -> tuple[float, float]: ...
