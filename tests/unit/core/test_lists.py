"""Lists of values that shards have made of one group."""

from __future__ import annotations

import struct

import pytest

from foreshard._core.errors import SqlError
from foreshard._core.lists import check_merge_arrays

INT4S, TEXTS, INT4 = 1007, 1009, 23


def binary(values: list[int | None]) -> bytes:
    """An int4[] as PostgreSQL sends it."""
    held = [b"\xff" * 4 if value is None else struct.pack("!ii", 4, value) for value in values]
    return struct.pack("!iiiii", 1, None in values, 23, len(values), 1) + b"".join(held)


def test_arrays_come_one_after_the_other() -> None:
    assert check_merge_arrays([b"{1,NULL}", b"{2}"], False, INT4S, None, []) == b"{1,NULL,2}"
    joined = check_merge_arrays([binary([1]), binary([None, 2])], True, INT4S, None, [])
    assert joined == binary([1, None, 2])


def test_elements_are_merged_by_their_keys_as_they_are_written() -> None:
    parts = [rb'{"a,b","}",NULL}', rb'{"NULL",c,"\"\\"}']
    keys = [([b"{1,4,NULL}", b"{2,3,5}"], False, INT4S, INT4, False, False)]
    assert check_merge_arrays(parts, False, TEXTS, None, keys) == rb'{"a,b","NULL",c,"}","\"\\",NULL}'
    assert check_merge_arrays(parts, False, TEXTS, b"; ", keys) == b'a,b; NULL; c; }; "\\'


def test_binary_arrays_are_merged_downwards_with_nulls_first() -> None:
    parts = [binary([None, 9, 3]), binary([5])]
    keys = [(parts, True, INT4S, INT4, True, True)]
    assert check_merge_arrays(parts, True, INT4S, None, keys) == binary([None, 9, 5, 3])


@pytest.mark.parametrize("part", [b"[0:1]={1,2}", b"", b"{1"])
def test_arrays_of_another_form_are_an_error(part: bytes) -> None:
    with pytest.raises(SqlError, match="cannot merge values"):
        check_merge_arrays([b"{1}", part], False, INT4S, None, [])


def test_keys_of_another_number_than_elements_are_an_error() -> None:
    keys = [([b"{1}"], False, INT4S, INT4, False, False)]
    with pytest.raises(SqlError, match="cannot merge values"):
        check_merge_arrays([b"{1,2}"], False, INT4S, None, keys)
