"""What the lexer lifts out of a text, and what it leaves in the key."""

from __future__ import annotations

import pytest

from foreshard._core.lexer import (
    LITERAL_BITS,
    LITERAL_CONTINUED,
    LITERAL_DOLLAR,
    LITERAL_ESCAPE,
    LITERAL_INTEGER,
    LITERAL_NUMERIC,
    LITERAL_STRING,
    LITERAL_UNICODE,
    lift,
)

KINDS = {
    "i": LITERAL_INTEGER,
    "n": LITERAL_NUMERIC,
    "s": LITERAL_STRING,
    "e": LITERAL_ESCAPE,
    "d": LITERAL_DOLLAR,
    "b": LITERAL_BITS,
    "u": LITERAL_UNICODE,
    "c": LITERAL_CONTINUED,
}


def key(pattern: str) -> bytes:
    """A key with {i} and the like for its literals."""
    return pattern.format(**{name: chr(kind) for name, kind in KINDS.items()}).encode()


@pytest.mark.parametrize(
    ("sql", "pattern", "values"),
    [
        ("select 1", "select {i}", ["1"]),
        ("  select\t1 ;  ", "select {i} ;", ["1"]),
        ("1_000, 0x1F, 0o17, 0b11, 0x_1", "{i}, {i}, {i}, {i}, {i}", ["1_000", "0x1F", "0o17", "0b11", "0x_1"]),
        ("1.5, .5, 5., 1e3, 1.e-3, 1E+3", "{n}, {n}, {n}, {n}, {n}, {n}", ["1.5", ".5", "5.", "1e3", "1.e-3", "1E+3"]),
        ("select 1e, 0x, 1__0, 1_", "select {i}e, {i}x, {i}__0, {i}_", ["1", "0", "1", "1"]),
        ("a[1..10]", "a[{i}..{i}]", ["1", "10"]),
        ("select -5, - 5, +5", "select -{i}, - {i}, +{i}", ["5", "5", "5"]),
        ("select 'a', 'it''s', ''", "select {s}, {s}, {s}", ["a", "it''s", ""]),
        (r"select 'a\', 'b'", "select {s}, {s}", ["a\\", "b"]),
        (r"select E'a\'b', e'\\'", "select {e}, {e}", [r"a\'b", r"\\"]),
        ("select B'01', x'ff', U&'a', u&'b'", "select {b}, {b}, {u}, {u}", ["01", "ff", "a", "b"]),
        ("select n'x', date '2020-01-01', date'x'", "select n{s}, date {s}, date{s}", ["x", "2020-01-01", "x"]),
        ("select $$a$$, $t$b $$ c$t$, $T$d$t$ $T$", "select {d}, {d}, {d}", ["a", "b $$ c", "d$t$ "]),
        ("select $1, $23::int", "select $1, $23::int", []),
        ("select $1$$a$$", "select $1{d}", ["a"]),
        ("select a$b$c$b$", "select a$b$c$b$", []),
        ("select 'a'\n 'b'", "select {c}", ["a'\n 'b"]),
        ("select 'a' -- x\n 'b'", "select {c}", ["a' -- x\n 'b"]),
        ("select 'a' /* x */\n 'b'", "select {s} {s}", ["a", "b"]),
        ("select 'a' 'b'", "select {s} {s}", ["a", "b"]),
        ('select "a""b", "c 1"', 'select "a""b", "c 1"', []),
        ('select "it\'s"', 'select "it\'s"', []),
        ("select a--b\n+1", "select a +{i}", ["1"]),
        ("select a/*b/*c*/'d'*/+1", "select a +{i}", ["1"]),
        ("select a</**/-1, a<-1, a< - 1", "select a< -{i}, a<-{i}, a< - {i}", ["1", "1", "1"]),
        ("select 5*/*x*/6", "select {i}* {i}", ["5", "6"]),
        ("select @--x\n1", "select @ {i}", ["1"]),
        ("select é1, é 'é'", "select é1, é {s}", ["é"]),
        ("", "", []),
        ("  -- nothing", "", []),
    ],
)  # fmt: skip
def test_literals_are_lifted_and_all_else_stays(sql: str, pattern: str, values: list[str]) -> None:
    found, literals, is_whole = lift(sql.encode())
    assert is_whole
    assert found == key(pattern)
    assert [sql.encode()[at : at + size].decode() for at, size, _ in literals] == values
    assert [kind for _, _, kind in literals] == [byte for byte in found if byte in KINDS.values()]


@pytest.mark.parametrize(
    "sql",
    [b"select 'a", b"select E'a\\'", b'select "a', b"/* a", b"/* /* a */", b"$$a", b"$t$a$T$", b"select \x01", b"\0",
     b'"a\x02b"', b"select 'a'\n'b"],
)  # fmt: skip
def test_what_is_unterminated_or_has_control_bytes_stands_for_itself_only(sql: bytes) -> None:
    assert not lift(sql)[2]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (b"select 1", b"select 1.0"),
        (b"select '1'", b"select 1"),
        (b"select 'a'", b"select E'a'"),
        (b"select 'a'", b"select $$a$$"),
        (b"select a < -1", b"select a <- 1"),
        (b"select a - 1", b"select a -1"),
        (b"select $1", b"select $2"),
        (b'select "a  b"', b'select "a b"'),
        (b"select 'a' 'b'", b"select 'a'\n'b'"),
        (b"select a b", b"select ab"),
        (b"select 1 a", b"select 1a"),
        (b"select 1 , 2", b"select 1"),
        (b"select x; select 1", b"select x select 1"),
    ],
)
def test_texts_of_different_structure_have_different_keys(one: bytes, other: bytes) -> None:
    assert lift(one)[0] != lift(other)[0]
