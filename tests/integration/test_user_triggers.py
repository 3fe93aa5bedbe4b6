"""Triggers of users on tables over several shards: what they make of a row counts, and never breaks where rows live."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from tests.support.postgres import TestInstances
from tests.support.raw import RawConnection
from tests.support.twins import Twins, twins
from tests.support.verified import assert_verified

COUNT = 12
SCHEMA = """
CREATE TABLE lowered (name text PRIMARY KEY, code text UNIQUE, n integer);
CREATE FUNCTION lowered_change() RETURNS trigger LANGUAGE plpgsql AS $body$
BEGIN
  NEW.name := lower(NEW.name);
  NEW.code := lower(NEW.code);
  RETURN NEW;
END
$body$;
CREATE TRIGGER change BEFORE INSERT OR UPDATE ON lowered FOR EACH ROW EXECUTE FUNCTION lowered_change();
CREATE TABLE undone (id bigint PRIMARY KEY, code text UNIQUE, n integer);
CREATE FUNCTION undone_change() RETURNS trigger LANGUAGE plpgsql AS $body$
BEGIN
  IF NEW.n = 1 THEN
    DELETE FROM undone WHERE id = NEW.id;
  ELSIF NEW.n = 2 THEN
    UPDATE undone SET code = NEW.code || '-later', n = 0 WHERE id = NEW.id;
  END IF;
  RETURN NULL;
END
$body$;
CREATE TRIGGER at_first AFTER INSERT OR UPDATE ON undone FOR EACH ROW EXECUTE FUNCTION undone_change();
"""
TABLES = {"lowered": {"key": "name", "unique": ["code"]}, "undone": {"key": "id", "unique": ["code"]}}


@pytest.fixture(scope="module")
def pair(test_instances: TestInstances, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twins]:
    with twins(test_instances, tmp_path_factory.mktemp("user-triggers"), schema=SCHEMA, tables=TABLES) as made:
        yield made
        assert_verified(made.deployed.proxy.configuration)


def told(connection: RawConnection, sql: str) -> object:
    """The rows, or the SQLSTATE."""
    answer = connection.query(sql)
    failed = [message.fields["C"] for message in answer if message.kind == b"E"]
    return failed or [message.values for message in answer if message.kind == b"D"]


def test_a_trigger_that_gives_a_row_the_key_of_another_shard_is_refused(pair: Twins) -> None:
    with pair.deployed.server.connect() as client:
        answers = [told(client, f"INSERT INTO lowered (name) VALUES ('Name{n}')") for n in range(COUNT)]
        assert [] in answers
        assert ["0A000"] in answers
        stored = {n for n, answer in enumerate(answers) if answer == []}
        for n in range(COUNT):
            answer = told(client, f"INSERT INTO lowered (name) VALUES ('name{n}')")
            assert answer == (["23505"] if n in stored else [])
        assert client.rows("SELECT count(*), count(DISTINCT name) FROM lowered") == [[b"%d" % COUNT] * 2]
        changed = [told(client, f"UPDATE lowered SET name = 'Other{n}' WHERE name = 'name{n}'") for n in range(COUNT)]
        assert all(answer in ([], ["0A000"]) for answer in changed)
        found = [client.rows(f"SELECT name FROM lowered WHERE name = 'other{n}'") for n in range(COUNT)]
        assert [bool(rows) for rows in found] == [answer == [] for answer in changed]


def test_on_conflict_on_a_claimed_column_that_a_trigger_may_change_is_refused(pair: Twins) -> None:
    with pair.deployed.server.connect() as client:
        for target in ("(code)", ""):
            assert told(client, f"INSERT INTO lowered VALUES ('x', 'Met') ON CONFLICT {target} DO NOTHING") == ["0A000"]


def test_a_row_that_its_own_trigger_takes_away_leaves_no_claim(pair: Twins) -> None:
    with pair.connect() as both:
        for n in range(COUNT):
            for sql in (
                f"INSERT INTO undone VALUES ({n}, 'gone{n}', 1)",
                f"INSERT INTO undone VALUES ({n + 100}, 'gone{n}', 0)",
                f"INSERT INTO undone VALUES ({n + 200}, 'gone{n}', 0)",
                f"INSERT INTO undone VALUES ({n + 300}, 'moved{n}', 2)",
                f"INSERT INTO undone VALUES ({n + 400}, 'moved{n}', 0)",
                f"INSERT INTO undone VALUES ({n + 500}, 'moved{n}-later', 0)",
                f"UPDATE undone SET code = 'again{n}', n = 2 WHERE id = {n + 100}",
                f"INSERT INTO undone VALUES ({n + 600}, 'again{n}', 0)",
                f"INSERT INTO undone VALUES ({n + 700}, 'gone{n}', 0)",
            ):
                proxied, direct = (told(client, sql) for client in both)
                assert proxied == direct, sql
        proxied, direct = (client.rows("SELECT id, code, n FROM undone ORDER BY id") for client in both)
        assert proxied == direct


def test_a_row_that_its_own_trigger_takes_away_on_a_shard_itself_leaves_no_claim(pair: Twins) -> None:
    keys = pair.deployed.shards.query(
        "SELECT n FROM generate_series(1000, 1100) AS n WHERE foreshard.owns(foreshard.bucket_of(n::bigint)) "
        "AND foreshard.owns(foreshard.bucket_of('direct' || n))"
    )
    assert keys
    for (key,) in keys:
        pair.deployed.shards.execute(f"INSERT INTO undone VALUES ({key}, 'direct{key}', 1)", on=0)
        assert pair.deployed.shards.query(f"SELECT FROM foreshard.claim WHERE key = 'direct{key}'") == []


@pytest.mark.parametrize("setting", ["session_replication_role=replica", "standard_conforming_strings=off"])
def test_no_client_starts_with_settings_that_change_what_statements_mean(pair: Twins, setting: str) -> None:
    name, _, value = setting.partition("=")
    dsn = pair.deployed.server.dsn
    for extra in (f"-c {setting}", f"--{name.replace('_', '-')}={value}"):
        with pytest.raises(psycopg.OperationalError, match=f"setting {name} at start-up"):
            psycopg.connect(dsn, options=extra)


def test_settings_are_not_made_where_nobody_sees_them(pair: Twins) -> None:
    with pair.deployed.server.connect() as client:
        for sql in (
            "UPDATE pg_settings SET setting = 'replica' WHERE name = 'session_replication_role'",
            "UPDATE pg_catalog.pg_settings SET setting = 'replica' WHERE name = 'session_replication_role'",
            "WITH made AS (UPDATE pg_settings SET setting = 'on' WHERE name = 'jit' RETURNING 1) TABLE made",
            "DO $$ BEGIN UPDATE pg_settings SET setting = 'other' WHERE name = 'search_path'; END $$",
            "DO $$ BEGIN PERFORM set_config('search_path', 'other', false); END $$",
            "DO $$ BEGIN SET search_path = other; END $$",
        ):
            assert told(client, sql) == ["0A000"]
