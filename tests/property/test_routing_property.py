"""Lexer, keys and cache hold on random input: nothing is read out of bounds, and what is read is right."""

from __future__ import annotations

import re
import struct

from hypothesis import example, given, settings
from hypothesis import strategies as st

from foreshard._core.buckets import bucket_of
from foreshard._core.key_values import parse_key, parse_keys
from foreshard._core.lexer import LITERAL_INTEGER, LITERAL_NUMERIC, LITERAL_STRING, lift
from foreshard._core.statement_cache import StatementCache
from foreshard._core.template import RouteKind
from foreshard.proxy.routing import Planner
from tests.support.routes import CATALOG, describe

PIECES = st.sampled_from(
    ["'", "''", '"', "E'", "e'", "U&'", "x'", "\\", "\\'", "$$", "$a$", "$1", "--", "\n", "/*", "*/", " ", "\t", "1",
     "0x1F", "1.5", "..", ".5", "1e3", "_", "select", "id", "=", "-", "<", ";", "é", "\x01", "\0", "(", ","]
)  # fmt: skip
TEXTS = st.lists(PIECES, max_size=40).map("".join)
KEYS = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.integers(-9, 9),
    st.integers(2**52 - 2, 2**52 + 2),
    st.integers(2**53 - 2, 2**53 + 2),
)
PLANNER = Planner(CATALOG)


@given(st.one_of(TEXTS.map(str.encode), st.binary(max_size=200)))
@settings(max_examples=1000)
@example(b"E'\\")
@example(b"$")
@example(b"0x")
def test_any_bytes_are_lifted_within_their_bounds(sql: bytes) -> None:
    key, literals, is_whole = lift(sql)
    assert len(key) <= len(sql)
    end = 0
    for offset, size, _ in literals:
        assert end <= offset <= offset + size <= len(sql)
        end = offset + size
    if is_whole:
        assert sum(1 <= byte <= 8 for byte in key) == len(literals)


@given(TEXTS)
@settings(max_examples=500)
def test_a_text_put_together_from_its_key_has_the_same_key(sql: str) -> None:
    raw = sql.encode()
    key, literals, is_whole = lift(raw)
    plain = all(kind in (LITERAL_INTEGER, LITERAL_NUMERIC, LITERAL_STRING) for _, _, kind in literals)
    if not is_whole or not plain:
        return
    values = iter(literals)

    def write(found: re.Match[bytes]) -> bytes:
        offset, size, kind = next(values)
        written = raw[offset : offset + size]
        return b"'" + written + b"'" if kind == LITERAL_STRING else written

    rebuilt = re.sub(rb"[\x01-\x08]", write, key)
    again, _, _ = lift(rebuilt)
    assert again == key


@given(st.one_of(TEXTS, st.text(max_size=80)))
@settings(max_examples=500, deadline=None)
def test_any_text_is_planned_without_an_exception(sql: str) -> None:
    PLANNER.plan(sql.encode("utf-8", "replace"))


@given(st.binary(max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_planned_without_an_exception(sql: bytes) -> None:
    PLANNER.plan(sql)


@given(KEYS)
def test_every_bigint_is_read_back_in_every_form(key: int) -> None:
    written = str(key).encode()
    assert parse_key(written, 0) == parse_key(b" " + written + b"\n", 3) == key
    assert parse_key(struct.pack(">q", key), 1) == key
    assert parse_key(str(abs(key)).encode(), 2, key < 0) == key
    assert parse_key(hex(key).encode(), 0) == key


@given(st.lists(KEYS, max_size=20))
def test_every_array_is_read_back_in_both_forms(keys: list[int]) -> None:
    assert parse_keys(("{" + ",".join(map(str, keys)) + "}").encode(), 0) == keys
    head = struct.pack(">iiiii", 1, 0, 20, len(keys), 1)
    assert parse_keys(head + b"".join(struct.pack(">iq", 8, key) for key in keys), 1) == keys


@given(st.binary(max_size=80), st.sampled_from([0, 1, 2, 3]))
@settings(max_examples=500)
def test_any_bytes_are_keys_or_are_told_to_be_none(data: bytes, form: int) -> None:
    assert parse_key(data, form) in ("none", "malformed", "range") or isinstance(parse_key(data, form), int)
    assert parse_keys(data, form) in ("malformed", "range") or isinstance(parse_keys(data, form), list)


LITERALS = st.one_of(
    st.integers(-(2**63), 2**63 - 1).map(str),
    st.integers(-9, 9).map(str),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=6).map(
        lambda text: "'" + text.replace("'", "''") + "'"
    ),
    st.just("1.5"),
)
SHAPES = [
    "select * from document where id = {0} and path = {1}",
    "select * from document d join symbol s on s.document_id = d.id where d.id = {0} and s.name = {1}",
    "select * from document where id in ({0}, {1})",
    "select * from symbol where id = {0} limit {1}",
    "insert into document (id, path) values ({0}, {1})",
    "insert into document (path, size) values ({0}, {1})",
    "update document set path = {1} where id = {0}",
    "delete from document where id = {0} or id = {1}",
    "select set_config({0}, {1}, true)",
    "select nextval({0}), {1}",
    "set a.b = {0}",
    "select 1; delete from document where id = {0}; select {1}",
    "explain (analyze {0}) select * from document where size = {1}",
]


@given(st.sampled_from(SHAPES), LITERALS, LITERALS, LITERALS, LITERALS)
@settings(max_examples=1500, deadline=None)
def test_a_cached_route_is_the_route_of_the_text_itself(shape: str, one: str, two: str, three: str, four: str) -> None:
    cache = StatementCache(PLANNER.plan)
    cache.lookup(shape.format(one, two).encode())
    text = shape.format(three, four).encode()
    cached, fresh = cache.lookup(text), PLANNER.plan(text)
    assert describe(cached) == describe(fresh)
    assert cached.values == fresh.values
    assert cached.keys == fresh.keys


@given(st.lists(KEYS, min_size=1, max_size=5), st.lists(KEYS, max_size=3), st.booleans())
@settings(max_examples=300, deadline=None)
def test_located_buckets_are_those_of_the_keys(inline: list[int], bound: list[int], binary: bool) -> None:
    marks = [f"${number + 1}" for number in range(len(bound))]
    sql = f"select * from document where id in ({', '.join([*map(str, inline), *marks])})".encode()
    template = PLANNER.plan(sql)
    assert template.kind == RouteKind.ROUTE_KEYED
    literals: list[tuple[bytes | None, int]] = [(sql[at : at + size], 2) for at, size, _ in lift(sql)[1]]
    params: list[tuple[bytes | None, int]] = [
        (struct.pack(">q", key), 1) if binary else (str(key).encode(), 0) for key in bound
    ]
    assert template.check_locate(literals, params) == list(dict.fromkeys(bucket_of(key) for key in [*inline, *bound]))
