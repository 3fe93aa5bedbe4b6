"""The same data counts the same in an event's decoded row and in every wire form; garbage is always safe."""

from __future__ import annotations

import json
import struct
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from foreshard._core import features
from foreshard._core.features import features_of_row, features_of_value

TEXT, BINARY, NUMBER, STRING = range(4)
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
)
arrays = st.lists(st.none() | texts) | st.integers(1, 4).flatmap(
    lambda width: st.lists(st.lists(st.none() | texts, min_size=width, max_size=width), min_size=1)
)


def literal(data: bytes) -> bytes:
    return data.replace(b"'", b"''")


def text_array(value: list[Any] | str | None) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return "{" + ",".join(text_array(element) for element in value) + "}"


def binary_array(value: list[Any], oid: int) -> bytes:
    dimensions, elements = [], value
    if value:
        dimensions.append(len(value))
        if isinstance(value[0], list):
            dimensions.append(len(value[0]))
            elements = [element for row in value for element in row]
    out = struct.pack("!iiI", len(dimensions), 0, oid)
    out += b"".join(struct.pack("!ii", length, 1) for length in dimensions)
    for element in elements:
        data = None if element is None else element.encode() if isinstance(element, str) else element
        out += struct.pack("!i", -1) if data is None else struct.pack("!i", len(data)) + data
    return out


@given(texts)
def test_text_counts_alike_everywhere(text: str) -> None:
    expected = features_of_row({"c": text}, 1)[1:3]
    data = text.encode()
    assert features_of_value(data, features.SHAPE_SCALAR, TEXT) == expected
    assert features_of_value(data, features.SHAPE_SCALAR, BINARY) == expected
    assert features_of_value(literal(data), features.SHAPE_SCALAR, STRING) == expected


@given(documents, st.booleans(), st.sampled_from([None, 2]))
def test_json_counts_alike_everywhere(document: object, ascii_only: bool, indent: int | None) -> None:
    expected = features_of_row({"c": document}, 1)[1:3]
    data = json.dumps(document, ensure_ascii=ascii_only, indent=indent).encode()
    assert features_of_value(data, features.SHAPE_JSON, TEXT) == expected
    assert features_of_value(data, features.SHAPE_JSON, BINARY) == expected
    assert features_of_value(b"\x01" + data, features.SHAPE_JSON, BINARY) == expected
    assert features_of_value(literal(data), features.SHAPE_JSON, STRING) == expected


@given(arrays)
def test_arrays_count_alike_everywhere(array: list[Any]) -> None:
    expected = features_of_row({"c": array}, 1)[1:3]
    data = text_array(array).encode()
    assert features_of_value(data, features.SHAPE_ARRAY, TEXT) == expected
    assert features_of_value(literal(data), features.SHAPE_ARRAY, STRING) == expected
    assert features_of_value(binary_array(array, 25), features.SHAPE_ARRAY, BINARY) == expected


@given(st.lists(st.integers(-(2**31), 2**31 - 1)))
def test_integer_arrays_count_alike_everywhere(array: list[int]) -> None:
    expected = features_of_row({"c": array}, 1)[1:3]
    shape = features.shape_of_type("integer[]")
    data = ("{" + ",".join(map(str, array)) + "}").encode()
    assert features_of_value(data, shape, TEXT) == expected
    packed: list[Any] = [struct.pack("!i", value) for value in array]
    assert features_of_value(binary_array(packed, 23), shape, BINARY) == expected


garbage = st.binary() | documents.map(lambda value: json.dumps(value).encode()[:-1])


@given(garbage, st.integers(0, 255), st.integers(0, 3))
def test_garbage_of_any_shape_and_format_never_raises(data: bytes, shape: int, format: int) -> None:
    size, complexity = features_of_value(data, shape, format)
    assert 0 <= size <= 36 * (len(data) + 1)
    assert 0 <= complexity <= len(data) * 6 + 1
