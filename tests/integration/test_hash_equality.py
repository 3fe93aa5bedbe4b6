"""Hashes and buckets equal those of a real PostgreSQL, for every supported type."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import date, datetime
from typing import LiteralString, cast

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.types.numeric import Int8

from foreshard._core.buckets import BUCKET_OF_SQL, HOME_SEED, bucket_of
from foreshard._core.hashing import hashint8extended, hashtextextended, uuid_hash_extended
from foreshard._core.key_errors import malformed_key
from foreshard._core.typed_keys import (
    HASH_SQL,
    READING_NAMES,
    TYPE_NAMES,
    KeyType,
    bucket_of_text,
    hash_of,
    make_placed_uuid,
    split_text,
)
from foreshard.proxy.control.key_sql import bucket_sql
from tests.support.postgres import TestInstances

BIGINTS = st.integers(-(2**63), 2**63 - 1)
KEYS = st.one_of(BIGINTS, st.integers(2**52, 2**53 - 1), st.sampled_from([0, 2**52 - 1, 2**52, 2**53 - 1, 2**53]))
TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=60)
CHECKS = settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.fixture(scope="module")
def connection(test_instances: TestInstances) -> Iterator[psycopg.Connection]:
    made = test_instances.create(1)
    with psycopg.connect(made.dsns[0], autocommit=True) as opened:
        yield opened
    test_instances.drop(made)


def ask(connection: psycopg.Connection, sql: str, values: list[object], seed: int) -> list[object]:
    """What PostgreSQL answers for each value, in one round trip."""
    query = cast(LiteralString, sql)
    return [row[0] for row in connection.execute(query, {"values": values, "seed": Int8(seed)}).fetchall()]


def hash_each(function: str, kind: str) -> str:
    return f"SELECT {function}(v, %(seed)s) FROM unnest(%(values)s::{kind}[]) WITH ORDINALITY AS t(v, n) ORDER BY n"


@CHECKS
@given(st.lists(BIGINTS, min_size=200, max_size=400), BIGINTS)
def test_bigints_hash_as_in_postgresql(connection: psycopg.Connection, values: list[int], seed: int) -> None:
    assert ask(connection, hash_each("hashint8extended", "bigint"), list(values), seed) == [
        hashint8extended(value, seed) for value in values
    ]


@CHECKS
@given(st.lists(TEXTS, min_size=100, max_size=200), BIGINTS)
def test_texts_hash_as_in_postgresql(connection: psycopg.Connection, values: list[str], seed: int) -> None:
    assert ask(connection, hash_each("hashtextextended", "text"), list(values), seed) == [
        hashtextextended(value, seed) for value in values
    ]


@CHECKS
@given(st.lists(st.uuids(), min_size=50, max_size=100), BIGINTS)
def test_uuids_hash_as_in_postgresql(connection: psycopg.Connection, values: list[uuid.UUID], seed: int) -> None:
    assert ask(connection, hash_each("uuid_hash_extended", "uuid"), list(values), seed) == [
        uuid_hash_extended(value.bytes, seed) for value in values
    ]


@CHECKS
@given(st.lists(KEYS, min_size=200, max_size=400))
def test_buckets_are_those_that_sql_computes(connection: psycopg.Connection, keys: list[int]) -> None:
    sql = f"SELECT {BUCKET_OF_SQL} FROM unnest(%(values)s::bigint[]) WITH ORDINALITY AS t(key, n) ORDER BY n"
    assert ask(connection, sql, list(keys), 0) == [bucket_of(key) for key in keys]


def test_the_home_seed_is_a_bigint_of_sql(connection: psycopg.Connection) -> None:
    assert ask(connection, "SELECT %(seed)s::bigint WHERE %(values)s::int[] IS NOT NULL", [1], HOME_SEED) == [HOME_SEED]


# Keys of other types: each as text and as its binary form, read by _core/typed_keys and by PostgreSQL.

MOMENTS = st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31, 23, 59, 59, 999999))
ESCAPES = st.lists(st.sampled_from(["a", "\\\\", "\\000", "\\377", "'", "é"]), max_size=9).map("".join)
DATES_MADE = st.dates(date(1, 1, 1), date(9999, 12, 31)).map(date.isoformat)
TYPED: dict[KeyType, st.SearchStrategy[str]] = {
    KeyType.TYPE_INT8: BIGINTS.map(str),
    KeyType.TYPE_TEXT: TEXTS,
    KeyType.TYPE_UUID: st.one_of(
        st.uuids().map(str),
        st.uuids().map(lambda value: value.hex.upper()),
        st.uuids().map(lambda value: "{" + str(value) + "}"),
        st.builds(
            lambda bucket, some: str(uuid.UUID(bytes=make_placed_uuid(bucket, some.bytes))),
            st.integers(0, 4095),
            st.uuids(),
        ),
    ),
    KeyType.TYPE_BYTEA: st.one_of(st.binary(max_size=40).map(lambda value: "\\x" + value.hex(" ", 1)), ESCAPES),
    KeyType.TYPE_DATE: st.one_of(DATES_MADE, st.sampled_from(["infinity", "-infinity", " 0001-01-01 ", "54321-02-28"])),
    KeyType.TYPE_TIMESTAMP: st.one_of(
        MOMENTS.map(lambda value: value.isoformat(" ")),
        MOMENTS.map(lambda value: value.isoformat("T", "minutes")),
        DATES_MADE,
        st.sampled_from(["infinity", "-infinity", "12345-02-28 01:02:03.5"]),
    ),
    KeyType.TYPE_TIMESTAMPTZ: st.one_of(
        st.builds(
            lambda value, zone: value.isoformat() + zone,
            MOMENTS,
            st.sampled_from(["Z", "+00", "-07:30", " +05:45", "+0530", "+01:02:03"]),
        ),
        st.sampled_from(["infinity", "-infinity"]),
    ),
}


@pytest.mark.parametrize("key_type", list(TYPED), ids=lambda key_type: key_type.name)
def test_keys_of_every_type_hash_as_in_postgresql(connection: psycopg.Connection, key_type: KeyType) -> None:
    name = TYPE_NAMES[key_type]
    ask_hash = HASH_SQL[key_type].replace("seed", "%(seed)s")
    query = f"""SELECT {ask_hash}, {bucket_sql(key_type)}, key
        FROM (SELECT v::{name} AS key, n FROM unnest(%(values)s::text[]) WITH ORDINALITY AS t(v, n)) AS made
        ORDER BY n"""

    @CHECKS
    @given(st.lists(TYPED[key_type], min_size=50, max_size=100), BIGINTS)
    def check(values: list[str], seed: int) -> None:
        with connection.cursor(binary=True) as cursor:
            cursor.execute(query.encode(), {"values": values, "seed": Int8(seed)})
            result = cursor.pgresult
            assert result is not None
            binary = [result.get_value(row, 2) for row in range(result.ntuples)]
            answers = [
                tuple(int.from_bytes(result.get_value(row, column) or b"", "big", signed=True) for column in (0, 1))
                for row in range(result.ntuples)
            ]
        for text, wire, (hashed, bucket) in zip(values, binary, answers, strict=True):
            assert wire is not None
            assert hash_of(key_type, text.encode(), seed=seed) == hashed, text
            assert hash_of(key_type, wire, 1, seed=seed) == hashed, text
            assert bucket_of_text(key_type, text.encode()) == bucket, text
            assert bucket_of_text(key_type, wire, 1) == bucket, text

    check()


SPOILED = st.text("0123456789abcfxZT:-+. {}\\'\"/,_éyinfty", max_size=24)


@pytest.mark.parametrize("key_type", list(TYPED), ids=lambda key_type: key_type.name)
def test_what_is_malformed_has_the_sqlstate_of_postgresql(connection: psycopg.Connection, key_type: KeyType) -> None:
    """Never a hash for what PostgreSQL refuses; told as malformed only with PostgreSQL's SQLSTATE."""
    connection.execute("CREATE TEMP TABLE IF NOT EXISTS wrong (key text)")

    @settings(CHECKS, max_examples=250)
    @given(
        st.one_of(
            SPOILED,
            st.tuples(TYPED[key_type], SPOILED, st.integers(0, 30)).map(
                lambda parts: parts[0][: parts[2]] + parts[1][:2] + parts[0][parts[2] :]
            ),
        )
    )
    def check(text: str) -> None:
        reading = hash_of(key_type, text.encode(), seed=1)
        state, hashed = ask_input(connection, key_type, text)
        if isinstance(reading, int):
            assert reading == hashed, (text, state)
        elif reading != "other":
            error = malformed_key(READINGS[reading], key_type, "t.key", text, False)
            assert error.sqlstate == state, (text, reading)

    check()


READINGS = {name: reading for reading, name in READING_NAMES.items()}


def ask_input(connection: psycopg.Connection, key_type: KeyType, text: str) -> tuple[str, int | None]:
    """SQLSTATE, or the hash, of a text that PostgreSQL reads as a key."""
    query = (
        f"SELECT {HASH_SQL[key_type].replace('seed', '1')} FROM (SELECT %s::text::{TYPE_NAMES[key_type]} AS key) AS t"
    )
    try:
        row = connection.execute(query.encode(), [text]).fetchone()
    except psycopg.Error as error:
        return error.sqlstate or "", None
    assert row is not None
    return "", row[0]


@CHECKS
@given(st.lists(st.tuples(st.text("ab é", max_size=8), st.integers(1, 5)), min_size=30, max_size=60))
def test_a_limited_varchar_hashes_as_it_is_stored(
    connection: psycopg.Connection, values: list[tuple[str, int]]
) -> None:
    for text, limit in values:
        connection.execute("DROP TABLE IF EXISTS kept")
        connection.execute(f"CREATE TEMP TABLE kept (key varchar({limit}))".encode())
        try:
            connection.execute("INSERT INTO kept VALUES (%s)", [text])
        except psycopg.errors.StringDataRightTruncation:
            continue
        row = connection.execute("SELECT hashtextextended(key, 7) FROM kept").fetchone()
        assert row is not None
        assert hash_of(KeyType.TYPE_TEXT, text.encode(), seed=7, limit=limit) == row[0]


@CHECKS
@given(st.lists(st.one_of(st.none(), st.text("ab\" {},\\é'nul", max_size=6)), max_size=12))
def test_arrays_of_texts_are_split_as_postgresql_writes_them(
    connection: psycopg.Connection, values: list[str | None]
) -> None:
    row = connection.execute("SELECT %s::text[]::text", [values]).fetchone()
    assert row is not None
    assert split_text(row[0].encode()) == [None if value is None else value.encode() for value in values]
