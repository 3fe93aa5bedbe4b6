"""Features of values and rows: what counts, and how much."""

from __future__ import annotations

import json
import struct

import pytest

from foreshard._core import features
from foreshard._core.features import features_of_row, features_of_value, shape_of_type

TEXT, BINARY, NUMBER, STRING = range(4)


def test_a_row_counts_bytes_values_and_volume() -> None:
    row = {"id": 7, "path": "a/b.py", "body": "äß", "parsed": True, "note": None}
    assert features_of_row(row, 3) == (1.0, 8 + 6 + 4 + 1, 4.0, 3.0)


def test_an_empty_row_has_no_size_and_no_values() -> None:
    assert features_of_row({}, 1) == (1.0, 0.0, 0.0, 1.0)


def test_containers_elements_and_nested_nulls_are_values_and_names_add_only_bytes() -> None:
    # object, "a" list, 1, null, object, "xy": six values; names a, b, c: three bytes
    assert features_of_row({"data": {"a": [1, None], "b": {"c": "xy"}}}, 1) == (1.0, 3 + 8 + 2, 6.0, 1.0)


def test_a_deeply_nested_document_is_counted_without_recursion() -> None:
    value: list[object] = []
    for _ in range(50_000):
        value = [value]
    assert features_of_row({"data": value}, 1)[2] == 50_001
    assert features_of_value(b"[" * 50_000 + b"]" * 50_000, features.SHAPE_JSON) == (0.0, 50_000.0)


def test_a_lone_surrogate_counts_three_bytes() -> None:
    assert features_of_row({"text": "\ud800"}, 1)[1] == 3


@pytest.mark.parametrize("shape", range(10))
@pytest.mark.parametrize("format", range(4))
def test_null_adds_nothing(shape: int, format: int) -> None:
    assert features_of_value(None, shape, format) == (0.0, 0.0)


def test_numbers_count_the_same_however_they_are_written() -> None:
    written = [(b"12345", TEXT), (struct.pack("!q", 12345), BINARY), (b"12345", NUMBER), (b"12345", STRING)]
    assert {features_of_value(data, features.SHAPE_NUMBER, format) for data, format in written} == {(8.0, 1.0)}


def test_fixed_width_types_count_their_json_text() -> None:
    uuid = "0198c5d4-7a52-8000-8000-000000000000"
    assert features_of_value(bytes(16), features.SHAPE_UUID, BINARY)[0] == features_of_row({"id": uuid}, 1)[1]
    moment = "2026-11-22T15:04:05.123456+00:00"
    assert features_of_value(bytes(8), features.SHAPE_TIMESTAMPTZ, BINARY)[0] == features_of_row({"at": moment}, 1)[1]
    assert features_of_value(b"abc", features.SHAPE_BYTES, BINARY)[0] == len(r"\x616263")


def test_doubled_quotes_of_a_literal_count_once() -> None:
    assert features_of_value(b"it''s", features.SHAPE_SCALAR, STRING) == (4.0, 1.0)
    assert features_of_value(b"''''", features.SHAPE_SCALAR, STRING) == (2.0, 1.0)
    assert features_of_value(b"it''s", features.SHAPE_SCALAR, TEXT) == (5.0, 1.0)
    assert features_of_value(b"""{"a": "it''s"}""", features.SHAPE_JSON, STRING) == (5.0, 2.0)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"{}", (0, 1)),
        (b"{a,b}", (2, 3)),
        (b'{"a,b", "c\\"d" }', (6, 3)),
        (b'{NULL,null,"NULL"}', (4, 4)),
        (b"{{a,b},{c,d}}", (4, 7)),
        (b"[0:1]={a,b}", (2, 3)),
        (b" { a b , c } ", (4, 3)),
    ],
)
def test_text_arrays_count_dimensions_and_elements(data: bytes, expected: tuple[float, float]) -> None:
    assert features_of_value(data, features.SHAPE_ARRAY) == expected


def binary_array(oid: int, dimensions: list[int], elements: list[bytes | None]) -> bytes:
    head = struct.pack("!iiI", len(dimensions), 0, oid) + b"".join(struct.pack("!ii", size, 1) for size in dimensions)
    return head + b"".join(
        struct.pack("!i", -1) if element is None else struct.pack("!i", len(element)) + element for element in elements
    )


def test_binary_arrays_count_like_their_decoded_form() -> None:
    data = binary_array(25, [2, 2], [b"a", None, "ä".encode(), b""])
    assert features_of_value(data, features.SHAPE_ARRAY, BINARY) == (3, 7)
    assert features_of_row({"a": [["a", None], ["ä", ""]]}, 1)[1:3] == (3, 7)


def test_elements_of_a_binary_integer_array_count_eight_bytes_each() -> None:
    data = binary_array(23, [3], [struct.pack("!i", value) for value in (1, 2, 3)])
    assert features_of_value(data, features.SHAPE_ARRAY, BINARY) == (24, 4)
    assert features_of_value(b"{1,2,3}", shape_of_type("integer[]")) == (24, 4)


def test_binary_jsonb_has_a_version_byte_that_does_not_count() -> None:
    text = json.dumps({"a": [1, "x"]}).encode()
    assert features_of_value(b"\x01" + text, features.SHAPE_JSON, BINARY) == (10, 4)
    assert features_of_value(text, features.SHAPE_JSON, BINARY) == (10, 4)


def test_json_null_is_nothing_as_the_event_shows_it() -> None:
    assert features_of_value(b" null ", features.SHAPE_JSON) == (0.0, 0.0)
    assert features_of_value(b"[null]", features.SHAPE_JSON) == (0.0, 2.0)


@pytest.mark.parametrize(
    "data", [b"", b"{", b"}", b'"abc', b'"\\u12', b'"\\u12zz"', b"tru", b"nul", b'"\\', b"\xff", b"[1]]"]
)
def test_malformed_json_is_one_value_of_its_own_bytes(data: bytes) -> None:
    assert features_of_value(data, features.SHAPE_JSON) == (len(data), 1)


@pytest.mark.parametrize(
    "data", [b"", b"{", b"}", b"{a", b"{a}}", b"{a}{b}", b'{"a', b"{a\\", b"[1:2]", b"[1:2]=", b"a", b"{a},", b"{a} b"]
)
def test_a_malformed_text_array_is_one_value_of_its_own_bytes(data: bytes) -> None:
    assert features_of_value(data, features.SHAPE_ARRAY) == (len(data), 1)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(11),
        struct.pack("!iiI", -1, 0, 25),
        struct.pack("!iiI", 7, 0, 25) + bytes(56),
        struct.pack("!iiI", 1, 0, 25),
        struct.pack("!iiIii", 1, 0, 25, 2**31 - 1, 1),
        struct.pack("!iiIiiii", 2, 0, 25, 2**31 - 1, 1, 2**31 - 1, 1),
        struct.pack("!iiIii", 1, 0, 25, -1, 1),
        binary_array(25, [2], [b"a", b"b"])[:-1],
        binary_array(25, [1], [b"a"]) + b"x",
        struct.pack("!iiIiii", 1, 0, 25, 1, 1, 2**31 - 1),
        struct.pack("!iiIiii", 1, 0, 25, 1, 1, -2),
    ],
)
def test_a_malformed_binary_array_is_one_value_of_its_own_bytes(data: bytes) -> None:
    assert features_of_value(data, features.SHAPE_ARRAY, BINARY) == (len(data), 1)


@pytest.mark.parametrize(
    ("type_name", "shape"),
    [
        ("bigint", features.SHAPE_NUMBER),
        ("numeric(10,2)", features.SHAPE_NUMBER),
        ("character varying(20)", features.SHAPE_SCALAR),
        ("text", features.SHAPE_SCALAR),
        ("timestamp(3) with time zone", features.SHAPE_TIMESTAMPTZ),
        ("timestamp without time zone", features.SHAPE_TIMESTAMP),
        ("jsonb", features.SHAPE_JSON),
        ("text[]", features.SHAPE_ARRAY),
        ("integer[]", features.SHAPE_ARRAY | features.SHAPE_NUMBER << 4),
    ],
)
def test_the_shape_follows_from_the_type_name(type_name: str, shape: int) -> None:
    assert shape_of_type(type_name) == shape
