"""The merge kernel against Python's own sorting, grouping and arithmetic, over random rows in text and binary."""

from __future__ import annotations

import functools
import itertools
import struct
from decimal import Decimal, localcontext

from hypothesis import given
from hypothesis import strategies as st

from foreshard._core.merge import check_merge
from foreshard._core.merge_plan import Combine, MergePlan
from foreshard._core.numerics import check_average, check_numeric
from foreshard._core.sort_keys import check_compare

INT8, FLOAT8, TEXT, NUMERIC = 20, 701, 25, 1700
Value = int | None
Rows = list[list[Value]]

numbers = st.integers(-(2**63), 2**63 - 1)
decimals = st.decimals(allow_nan=False, allow_infinity=False, places=6, min_value=-(10**20), max_value=10**20)
small = st.one_of(st.none(), st.integers(-3, 3))


def describe(count: int, oid: int, binary: bool) -> bytes:
    column = b"c\0" + struct.pack("!ihIhih", 0, 0, oid, 8, -1, binary)
    return struct.pack("!h", count) + column * count


def encode(row: list[Value], binary: bool) -> bytes:
    found = struct.pack("!h", len(row))
    for value in row:
        data = None if value is None else struct.pack("!q", value) if binary else str(value).encode()
        found += b"\xff\xff\xff\xff" if data is None else struct.pack("!i", len(data)) + data
    return found


def decode(written: bytes, binary: bool) -> Rows:
    rows, at = [], 0
    while at < len(written):
        assert written[at : at + 1] == b"D"
        (size, count) = struct.unpack_from("!ih", written, at + 1)
        place, row = at + 7, []
        for _ in range(count):
            (length,) = struct.unpack_from("!i", written, place)
            data = written[place + 4 : place + 4 + length] if length >= 0 else None
            row.append(None if data is None else struct.unpack("!q", data)[0] if binary else int(data))
            place += 4 + max(length, 0)
        assert place == at + 1 + size
        rows.append(row)
        at = place
    return rows


def compare(one: Value, other: Value, down: bool, nulls_first: bool) -> int:
    if one is None or other is None:
        found = (one is None) - (other is None)
        return -found if nulls_first else found
    found = (one > other) - (one < other)
    return -found if down else found


def ordering(keys: tuple[tuple[bool, bool], ...]) -> functools.cmp_to_key[list[Value]]:  # type: ignore[type-arg]
    def rows(one: list[Value], other: list[Value]) -> int:
        found = (compare(one[index], other[index], *key) for index, key in enumerate(keys))
        return next((way for way in found if way), 0)

    return functools.cmp_to_key(rows)  # type: ignore[return-value]


@given(
    st.lists(st.lists(st.tuples(small, small, numbers), max_size=12), min_size=1, max_size=5),
    st.tuples(st.booleans(), st.booleans()),
    st.tuples(st.booleans(), st.booleans()),
    st.booleans(),
    st.one_of(st.just(-1), st.integers(0, 20)),
    st.integers(0, 8),
)
def test_sorted_inputs_come_out_as_one_sorted_list(
    inputs: list[list[tuple[Value, Value, int]]],
    first: tuple[bool, bool],
    second: tuple[bool, bool],
    binary: bool,
    limit: int,
    offset: int,
) -> None:
    keys = (first, second)
    plan = MergePlan((), hidden=2, keys=keys)
    rows = [sorted([list(row) for row in part], key=ordering(keys)) for part in inputs]  # type: ignore[arg-type]
    sent = [[encode(row, binary) for row in part] for part in rows]
    shown, written = check_merge(plan, describe(3, INT8, binary), sent, limit, offset)
    assert struct.unpack_from("!h", shown) == (1,)
    everything = list(itertools.chain.from_iterable(rows))
    count = len(everything) - offset if limit < 0 else min(limit, len(everything) - offset)
    merged = decode(b"".join(written), binary)
    assert len(merged) == max(count, 0)
    if offset == 0 and limit < 0:
        assert sorted(row[0] or 0 for row in merged) == sorted(row[2] or 0 for row in everything)
        by_value = {row[2]: row for row in everything}
        if len(by_value) == len(everything):
            order = [by_value[row[0]] for row in merged]
            assert order == sorted(order, key=ordering(keys))  # type: ignore[arg-type]


@given(st.lists(st.lists(st.tuples(small, small), max_size=10), min_size=1, max_size=4), st.booleans(), st.booleans())
def test_groups_are_what_python_makes_of_all_rows(
    inputs: list[list[tuple[Value, Value]]], binary: bool, by_sum: bool
) -> None:
    """Columns: key, sum, min; each input gives partial results, as a shard's GROUP BY does."""
    combines = ((1, Combine.COMBINE_SUM, None), (2, Combine.COMBINE_MIN, None))
    order = ((1, True, False), (0, False, False)) if by_sum else ()
    plan = MergePlan((), hidden=1, keys=((False, False),), group=1, combines=combines, order=order)
    sent, whole = [], {}
    for part in inputs:
        partial: dict[Value, list[int]] = {}
        for key, value in part:
            for groups in (partial, whole):
                groups.setdefault(key, []).extend([] if value is None else [value])
        rows = sorted(partial.items(), key=lambda item: (item[0] is None, item[0] or 0))
        sent.append([encode([key, total(found), min(found, default=None)], binary) for key, found in rows])
    _, written = check_merge(plan, describe(3, INT8, binary), sent)
    expected = sorted(whole.items(), key=lambda item: (item[0] is None, item[0] or 0))
    if by_sum:
        expected.sort(key=lambda item: (total(item[1]) is None, -(total(item[1]) or 0)))
    assert decode(b"".join(written), binary) == [[total(found), min(found, default=None)] for _, found in expected]


def total(values: list[int]) -> Value:
    return sum(values) if values else None


@given(decimals, decimals, st.booleans())
def test_numerics_are_ordered_as_decimals(one: Decimal, other: Decimal, binary: bool) -> None:
    texts = [format(value, "f").replace("-0.000000", "0.000000").encode() for value in (one, other)]
    sent = [check_numeric(text, False, True) for text in texts] if binary else texts
    assert check_compare(NUMERIC, binary, *sent) == (one > other) - (one < other)


@given(decimals)
def test_a_numeric_survives_both_formats(value: Decimal) -> None:
    text = format(value + 0, "f").encode()
    assert check_numeric(check_numeric(text, False, True), True, False) == text.replace(b"-0.000000", b"0.000000")


@given(st.lists(decimals, min_size=1, max_size=20))
def test_an_average_is_the_exact_one_rounded(values: list[Decimal]) -> None:
    with localcontext() as context:
        context.prec = 200
        exact = sum(values, Decimal(0)) / len(values)
        found = Decimal(check_average([format(value, "f").encode() for value in values], False).decode())
        places = -int(found.as_tuple().exponent)
        assert abs(found - exact) * 2 <= Decimal(10) ** -places


@given(st.floats(), st.floats())
def test_floats_are_ordered_with_nan_last(one: float, other: float) -> None:
    found = check_compare(FLOAT8, True, struct.pack("!d", one), struct.pack("!d", other))
    ranks = [(value != value, 0 if value != value else value) for value in (one, other)]
    assert found == (ranks[0] > ranks[1]) - (ranks[0] < ranks[1])
    assert check_compare(FLOAT8, False, repr(one).encode(), repr(other).encode()) == found


@given(st.text(), st.text())
def test_strings_are_ordered_by_their_bytes(one: str, other: str) -> None:
    first, second = one.encode(), other.encode()
    assert check_compare(TEXT, False, first, second) == (first > second) - (first < second)
