"""Hashes and buckets equal those of a real PostgreSQL, for every supported type."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import LiteralString, cast

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.types.numeric import Int8

from foreshard._core.buckets import BUCKET_OF_SQL, HOME_SEED, bucket_of
from foreshard._core.hashing import hashint8extended, hashtextextended, uuid_hash_extended
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
