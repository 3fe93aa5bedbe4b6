"""Rows of COPY go where their keys say, byte for byte, however the stream is cut, as Python's own parse has them."""

from __future__ import annotations

import csv
import io
import itertools
import struct
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreshard._core.buckets import bucket_of
from foreshard._core.copy_plan import CopyForm, CopyPlan
from foreshard._core.copy_split import CopySplitter
from foreshard._core.errors import SqlError
from foreshard._core.template import KeyFlag, RouteKind, Template
from foreshard._core.typed_keys import KeyType, bucket_of_text

SHARDS = 3
OWNERS = [bucket % SHARDS for bucket in range(4096)]
FLAGS = KeyFlag.KEY_PARAM | KeyFlag.KEY_INSERTED
SIGNATURE = b"PGCOPY\n\xff\r\n\0"
ENDINGS = st.sampled_from([b"\n", b"\r", b"\r\n"])
TEXTS = st.text(st.sampled_from("ab,\t\"'\\\n\r ;|éN.☃0"), max_size=12)


def splitter(plan: CopyPlan, key_type: KeyType = KeyType.TYPE_TEXT, **options: bool) -> CopySplitter:
    keys = tuple((index, FLAGS | key_type * KeyFlag.KEY_TYPE_UNIT, "t.id") for index in range(len(plan.fields)))
    template = Template(RouteKind.ROUTE_COPY, keys=keys, copy=plan)
    return CopySplitter(template, plan, SHARDS, 0, owners=OWNERS, **options)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """The data in pieces."""
    marks = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:stop] for start, stop in itertools.pairwise(marks)]


def shard_of(key: str) -> int:
    bucket = bucket_of_text(KeyType.TYPE_TEXT, key.encode())
    assert isinstance(bucket, int)
    return OWNERS[bucket]


def expected(keys: list[str], records: list[bytes], head: bytes = b"") -> list[bytes]:
    """What each shard must get."""
    parts = [b""] * SHARDS
    for key, record in zip(keys, records, strict=True):
        parts[shard_of(key)] += record
    return [head + part if part or shard == 0 else part for shard, part in enumerate(parts)]


def as_text(value: str, delimiter: str) -> bytes:
    """A field as COPY TO writes it."""
    for letter, name in (("\\", "\\"), ("\n", "n"), ("\r", "r"), ("\t", "t"), (delimiter, delimiter)):
        value = value.replace(letter, "\\" + name)
    return value.encode()


@st.composite
def rows(draw: st.DrawFn) -> list[tuple[str, str]]:
    return draw(st.lists(st.tuples(TEXTS, TEXTS), max_size=12))


@given(rows(), ENDINGS, st.sampled_from(["|", ";"]), st.booleans(), st.booleans(), st.lists(st.integers(0, 999)))
def test_text_rows_go_home_byte_for_byte(
    made: list[tuple[str, str]], ending: bytes, delimiter: str, header: bool, is_second: bool, places: list[int]
) -> None:
    plan = CopyPlan(
        CopyForm.COPY_TEXT,
        is_from=True,
        delimiter=delimiter.encode(),
        has_header=header,
        fields=((is_second, False, False),),
    )
    records = [as_text(a, delimiter) + delimiter.encode() + as_text(b, delimiter) + ending for a, b in made]
    head = b"one" + delimiter.encode() + b"two" + ending if header else b""
    found = splitter(plan).split(cut(head + b"".join(records), places))
    assert found == expected([row[is_second] for row in made], records, head)


@given(rows(), ENDINGS, st.booleans(), st.booleans(), st.lists(st.integers(0, 999)))
def test_csv_rows_go_home_byte_for_byte(
    made: list[tuple[str, str]], ending: bytes, header: bool, is_second: bool, places: list[int]
) -> None:
    plan = CopyPlan(CopyForm.COPY_CSV, is_from=True, has_header=header, fields=((is_second, False, False),))
    records = []
    for row in made:
        out = io.StringIO()
        csv.writer(out, lineterminator=ending.decode(), quoting=csv.QUOTE_ALL).writerow(row)
        records.append(out.getvalue().encode())
    head = b'"o\nne",two' + ending if header else b""
    found = splitter(plan).split(cut(head + b"".join(records), places))
    assert found == expected([row[is_second] for row in made], records, head)


@given(rows(), st.integers(0, 40), st.booleans(), st.booleans(), st.lists(st.integers(0, 9999)))
def test_binary_rows_go_home_byte_for_byte(
    made: list[tuple[str, str]], extension: int, is_second: bool, has_trailer: bool, places: list[int]
) -> None:
    plan = CopyPlan(CopyForm.COPY_BINARY, is_from=True, fields=((is_second, False, False),))
    records = []
    for row in made:
        fields = b"".join(struct.pack("!i", len(one.encode())) + one.encode() for one in row)
        records.append(struct.pack("!h", 2) + fields)
    head = SIGNATURE + struct.pack("!ii", 0, extension) + bytes(extension)
    trailer = b"\xff\xff" if has_trailer else b""
    found = splitter(plan).split(cut(head + b"".join(records) + trailer, places))
    wanted = expected([row[is_second] for row in made], records, head)
    assert found == [part + trailer if part else part for part in wanted]


DATA = {
    "text": b"1\tone\n2\ttw\\\no\n3\t\\.x\n1000\t\\\\.\n\\x35\tx\n7\tlast",
    "csv": b'1,"o\nne"\n2,"tw""o"\n"3",x\n' + b'1000,"a,b"\n4,\n',
    "crlf": b"1\tone\r\n2\ttwo\r\n1000\tx\r\n",
    "cr": b"1\tone\r2\ttwo\r1000\tx\r",
    "ended": b"1\tone\n2\ttwo\n\\.\n3\tnever\n",
}


@pytest.mark.parametrize("name", DATA)
def test_every_cut_gives_the_same_parts(name: str) -> None:
    data = DATA[name]
    form = CopyForm.COPY_CSV if name == "csv" else CopyForm.COPY_TEXT
    plan = CopyPlan(form, is_from=True, fields=((0, False, False),))
    whole = splitter(plan, KeyType.TYPE_INT8).split([data])
    assert b"".join(sorted(whole)) != b""
    for first in range(len(data) + 1):
        for second in (first, first + 1, first + 7):
            pieces = [data[:first], data[first:second], data[second:]]
            assert splitter(plan, KeyType.TYPE_INT8).split(pieces) == whole
    assert splitter(plan, KeyType.TYPE_INT8).split([bytes([byte]) for byte in data]) == whole


@pytest.mark.parametrize(
    ("field", "key"),
    [
        (rb"\061\x32", "12"), (rb"a\tb", "a\tb"), (rb"\q\\", "q\\"), (rb"\1012", "A2"), (rb"\x4g", "\x04g"),
        (rb"\xg", "xg"), (b"a\\\nb", "a\nb"), (b"", ""), (b"\\N.", "N."),
    ],
)  # fmt: skip
def test_escapes_of_text_are_undone_as_postgres_does(field: bytes, key: str) -> None:
    plan = CopyPlan(CopyForm.COPY_TEXT, is_from=True, fields=((1, False, False),))
    record = b"x\t" + field + b"\ty\n"
    assert splitter(plan).split([record]) == expected([key], [record])


@pytest.mark.parametrize(
    ("field", "key"),
    [(b'"a""b"', 'a"b'), (b'a"b,c"d', "ab,cd"), (b'"a\nb"', "a\nb"), (b'""', ""), (b' "x" ', " x "), (b"a'b", "a'b")],
)
def test_quotes_of_csv_are_undone_as_postgres_does(field: bytes, key: str) -> None:
    plan = CopyPlan(CopyForm.COPY_CSV, is_from=True, fields=((1, False, False),))
    record = b"x," + field + b",y\n"
    assert splitter(plan).split([record]) == expected([key], [record])


@pytest.mark.parametrize(("field", "key"), [(rb"'a\'b'", "a'b"), (rb"'a\b\\'", "a\\b\\"), (rb"a\b", r"a\b")])
def test_an_escape_of_its_own_holds_in_quotes_only(field: bytes, key: str) -> None:
    plan = CopyPlan(CopyForm.COPY_CSV, is_from=True, quote=b"'", escape=b"\\", fields=((0, False, False),))
    record = field + b",y\n"
    assert splitter(plan).split([record]) == expected([key], [record])


@pytest.mark.parametrize(
    ("form", "options", "record", "key"),
    [
        (CopyForm.COPY_TEXT, {}, rb"\N", None), (CopyForm.COPY_TEXT, {"null": b"none"}, rb"none", None),
        (CopyForm.COPY_CSV, {}, b"", None), (CopyForm.COPY_CSV, {}, b'""', ""),
        (CopyForm.COPY_CSV, {"null": b"-"}, b"-", None), (CopyForm.COPY_CSV, {"null": b"-"}, b'"-"', "-"),
        (CopyForm.COPY_CSV, {"fields": ((0, True, False),)}, b'""', None),
        (CopyForm.COPY_CSV, {"null": b"-", "fields": ((0, False, True),)}, b"-", "-"),
    ],
)  # fmt: skip
def test_a_null_key_is_an_error_that_names_the_line(
    form: int, options: dict[str, object], record: bytes, key: str | None
) -> None:
    plan = CopyPlan(form, is_from=True, **{"fields": ((0, False, False),), **options})  # type: ignore[arg-type]
    one = splitter(plan)
    if key is None:
        with pytest.raises(SqlError, match="null value") as caught:
            one.split([b"x\n", record + b"\n"])
        assert (caught.value.sqlstate, one.lines) == ("23502", 2)
    else:
        assert one.split([record + b"\n"]) == expected([key], [record + b"\n"])


def test_odd_line_ends_and_short_rows_go_where_they_are_refused() -> None:
    plan = CopyPlan(CopyForm.COPY_TEXT, is_from=True, fields=((1, False, False),))
    first = next(f"{n}" for n in range(99) if shard_of(f"{n}") == 2).encode()
    start = b"a\t" + first + b"\n"
    assert splitter(plan).split([start, b"b\tx\r\n", b"c\ty\n"]) == [b"", b"", start + b"b\tx\r"]
    assert splitter(plan).split([start, b"short\n", b"c\ty\n"]) == [b"short\n", b"", start]


def test_a_marker_ends_csv_only_where_the_server_says_so() -> None:
    plan = CopyPlan(CopyForm.COPY_CSV, is_from=True, fields=((0, False, False),))
    data = b"x\n\\.\ny\n"
    assert splitter(plan, ends_csv=True).split([data]) == expected(["x"], [b"x\n"])
    assert splitter(plan).split([data]) == expected(["x", "\\.", "y"], [b"x\n", b"\\.\n", b"y\n"])


@pytest.mark.parametrize("data", [b"nothing of the kind", SIGNATURE + b"\0\1\0\0\0\0\0\0", SIGNATURE[:5]])
def test_what_is_not_binary_goes_to_the_first_shard_whole(data: bytes) -> None:
    plan = CopyPlan(CopyForm.COPY_BINARY, is_from=True, fields=((0, False, False),))
    assert splitter(plan).split([data, b"more"]) == [data + b"more", b"", b""]


@settings(max_examples=300)
@given(st.binary(max_size=60), st.sampled_from(list(CopyForm)), st.lists(st.integers(0, 99)))
def test_garbage_raises_one_error_type_and_makes_nothing_up(data: bytes, form: CopyForm, places: list[int]) -> None:
    plan = CopyPlan(form, is_from=True, fields=((1, False, False),))
    head = SIGNATURE + bytes(8) if form == CopyForm.COPY_BINARY else b""
    try:
        found = splitter(plan).split(cut(head + data, places))
    except SqlError:
        return
    assert not Counter(b"".join(found)) - Counter((head + data) * SHARDS)


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=30))
def test_lines_of_a_shard_are_found_in_the_clients_data(keys: list[int]) -> None:
    plan = CopyPlan(CopyForm.COPY_TEXT, is_from=True, fields=((0, False, False),))
    one = splitter(plan, KeyType.TYPE_INT8)
    one.split([b"".join(b"%d\n" % key for key in keys)])
    counts = [0] * SHARDS
    for line, key in enumerate(keys, 1):
        shard = OWNERS[bucket_of(key)]
        counts[shard] += 1
        assert one.parts[shard].map.find_line(counts[shard]) == line
