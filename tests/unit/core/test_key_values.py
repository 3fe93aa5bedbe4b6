"""Bigint keys are read as PostgreSQL reads them, or not at all."""

from __future__ import annotations

import struct

import pytest

from foreshard._core.key_values import parse_key, parse_keys

TEXT, BINARY, NUMBER, STRING = range(4)
MOST, LEAST = 2**63 - 1, -(2**63)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("5", 5), ("-5", -5), ("+5", 5), (" \t\n\v\f\r5 ", 5), ("007", 7), ("1_000", 1000), ("0x1F", 31), ("0X_1f", 31),
        ("0o17", 15), ("0b101", 5), ("-0x10", -16), (str(MOST), MOST), (str(LEAST), LEAST), ("-0", 0), ("0", 0),
        (str(MOST + 1), "range"), (str(LEAST - 1), "range"), ("9" * 400, "range"), ("0x8000000000000000", "range"),
        ("", "malformed"), (" ", "malformed"), ("-", "malformed"), ("- 5", "malformed"), ("--5", "malformed"),
        ("5.0", "malformed"), ("5e1", "malformed"), ("5 6", "malformed"), ("_5", "malformed"), ("5_", "malformed"),
        ("5__6", "malformed"), ("0x", "malformed"), ("0x_", "malformed"), ("0b2", "malformed"), ("0o8", "malformed"),
        ("a", "malformed"), ("5a", "malformed"), ("５", "malformed"), ("NaN", "malformed"), ("null", "malformed"),
        ("1''2", "malformed"), ("\0", "malformed"),
    ],
)  # fmt: skip
def test_text_is_read_as_int8in_reads_it(text: str, key: object) -> None:
    assert parse_key(text.encode(), TEXT) == key
    assert parse_key(text.encode(), STRING) == key


def test_a_number_literal_too_large_equals_no_bigint() -> None:
    assert parse_key(str(MOST).encode(), NUMBER) == MOST
    assert parse_key(str(MOST + 1).encode(), NUMBER) == "none"
    assert parse_key(str(MOST + 1).encode(), NUMBER, True) == LEAST
    assert parse_key(str(MOST + 2).encode(), NUMBER, True) == "none"


def test_a_null_is_none() -> None:
    assert parse_key(None) is None
    assert parse_keys(None) is None


@pytest.mark.parametrize(
    ("data", "key"),
    [
        (struct.pack(">q", -5), -5), (struct.pack(">i", -5), -5), (struct.pack(">h", -5), -5),
        (struct.pack(">q", LEAST), LEAST), (b"", "malformed"), (b"\1", "malformed"), (b"\0" * 3, "malformed"),
        (b"\0" * 9, "malformed"),
    ],
)  # fmt: skip
def test_binary_is_read_by_its_size(data: bytes, key: object) -> None:
    assert parse_key(data, BINARY) == key


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("{}", []), ("{1}", [1]), (" { 1 , -2 } ", [1, -2]), ("{1,NULL,null,2}", [1, 2]), ('{"1","2"}', [1, 2]),
        ("{{1,2},{3,4}}", [1, 2, 3, 4]), ("{1,x}", "malformed"), ("1,2", "malformed"), ("{1", "malformed"),
        ("[0:1]={1,2}", "malformed"), ('{"1,2"}', "malformed"), ("{9223372036854775808}", "range"), ("", "malformed"),
        ("{1\\2}", "malformed"),
    ],
)  # fmt: skip
def test_array_text_gives_its_elements(text: str, keys: object) -> None:
    assert parse_keys(text.encode(), TEXT) == keys


def array(elements: list[bytes | None], oid: int = 20, dimensions: list[int] | None = None) -> bytes:
    """An array in binary form."""
    sizes = [len(elements)] if dimensions is None else dimensions
    head = struct.pack(">iii", len(sizes), int(None in elements), oid)
    head += b"".join(struct.pack(">ii", size, 1) for size in sizes)
    return head + b"".join(
        struct.pack(">i", -1) if one is None else struct.pack(">i", len(one)) + one for one in elements
    )


def test_binary_arrays_give_their_elements() -> None:
    one, two = struct.pack(">q", 1), struct.pack(">q", -2)
    assert parse_keys(array([one, None, two]), BINARY) == [1, -2]
    assert parse_keys(array([one, two], dimensions=[1, 2]), BINARY) == [1, -2]
    assert parse_keys(array([struct.pack(">i", 7)], 23), BINARY) == [7]
    assert parse_keys(array([], dimensions=[]), BINARY) == []


def test_binary_arrays_that_lie_are_malformed() -> None:
    one = struct.pack(">q", 1)
    whole = array([one, one])
    assert all(parse_keys(whole[:size], BINARY) == "malformed" for size in range(len(whole)))
    for broken in (
        whole + b"x",
        array([one], oid=25),
        array([one], dimensions=[2]),
        array([one], dimensions=[2**31 - 1, 2**31 - 1]),
        array([one], dimensions=[-1]),
        array([one], dimensions=[1] * 7),
        struct.pack(">iii", -1, 0, 20),
    ):
        assert parse_keys(broken, BINARY) == "malformed"
