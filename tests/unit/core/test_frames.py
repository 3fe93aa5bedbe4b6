"""Message framing and the checked cursor over a Bind."""

from __future__ import annotations

import pytest

from foreshard._core.frames import bind_parts, scan

WHOLE, PARTIAL, NONE, MALFORMED = range(4)
LIMIT = 1000


def message(kind: bytes, body: bytes) -> bytes:
    return kind + (len(body) + 4).to_bytes(4, "big") + body


def bind(portal: bytes, statement: bytes, formats: list[int], values: list[bytes | None]) -> bytes:
    body = portal + b"\0" + statement + b"\0" + len(formats).to_bytes(2, "big")
    body += b"".join(code.to_bytes(2, "big") for code in formats)
    body += len(values).to_bytes(2, "big")
    for value in values:
        body += b"\xff\xff\xff\xff" if value is None else len(value).to_bytes(4, "big") + value
    return body + b"\0\0"


def test_whole_message_is_found_with_its_size() -> None:
    assert scan(message(b"Q", b"select 1\0") + b"rest", LIMIT) == (WHOLE, 14)


@pytest.mark.parametrize("size", range(5))
def test_less_than_a_header_is_no_message(size: int) -> None:
    assert scan(message(b"S", b"")[:size], LIMIT)[0] == NONE


def test_header_without_its_body_is_partial() -> None:
    assert scan(message(b"Q", b"select 1\0")[:-1], LIMIT) == (PARTIAL, 14)


@pytest.mark.parametrize("length", [0, 1, 3, 0xFFFFFFFF, 0x7FFFFFFF, 0x80000000])
def test_impossible_length_is_malformed(length: int) -> None:
    assert scan(b"Q" + length.to_bytes(4, "big") + bytes(64), LIMIT)[0] == MALFORMED


def test_limit_holds_for_the_body() -> None:
    assert scan(b"Q" + (LIMIT + 4).to_bytes(4, "big"), LIMIT)[0] == PARTIAL
    assert scan(b"Q" + (LIMIT + 5).to_bytes(4, "big"), LIMIT)[0] == MALFORMED


def test_shortest_length_is_an_empty_message() -> None:
    assert scan(b"S\0\0\0\4", LIMIT) == (WHOLE, 5)


def test_bind_is_split_into_names_and_values() -> None:
    assert bind_parts(bind(b"p", b"s", [1], [b"abc", None, b""])) == (b"p", b"s", [b"abc", None, b""])


def test_bind_without_values_is_whole() -> None:
    assert bind_parts(bind(b"", b"", [], [])) == (b"", b"", [])


def test_every_truncation_of_a_bind_is_malformed_or_whole() -> None:
    whole = bind(b"portal", b"statement", [0, 1], [b"abc", b"12345678"])
    shortest = len(whole) - 2  # the result formats are not looked at
    for size in range(shortest):
        assert bind_parts(whole[:size]) is None
    assert bind_parts(whole[:shortest]) is not None


def test_format_count_that_fits_no_values_is_malformed() -> None:
    assert bind_parts(bind(b"", b"", [0, 0, 1], [b"a", b"b"])) is None


def test_negative_value_size_other_than_null_reads_nothing() -> None:
    body = b"\0\0\0\0\0\1" + b"\xff\xff\xff\xfe" + b"\0\0"
    assert bind_parts(body) == (b"", b"", [None])
