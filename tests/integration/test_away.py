"""Rows of keys that clients give, away from the home of their key: found, unique, and as one PostgreSQL has them."""

from __future__ import annotations

import random
from collections.abc import Iterator

import psycopg
import pytest

from tests.integration.test_key_types import KEYS, REFUSED, SCHEMA, ask, draw
from tests.support.away_world import AwayWorld, away_world
from tests.support.postgres import TestInstances
from tests.support.verified import assert_verified

STATEMENTS = 120
ROOTS = tuple(f"root{number}" for number in range(len(KEYS)))
CHILDREN = {f"child{number}": f"root{number}" for number in range(len(KEYS))}


@pytest.fixture(scope="module")
def served(test_instances: TestInstances, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AwayWorld]:
    with away_world(test_instances, tmp_path_factory.mktemp("away"), SCHEMA, ROOTS, CHILDREN) as world:
        yield world


@pytest.fixture
def world(served: AwayWorld) -> Iterator[AwayWorld]:
    """The deployment, checked at the end."""
    yield served
    served.check()


def test_verify_finds_nothing_wrong(world: AwayWorld) -> None:
    with world.connect() as proxied:
        for key in range(40):
            ask(proxied, "text", "INSERT INTO root0 (id) VALUES (%s) ON CONFLICT DO NOTHING", [f"key {key}"])
        assert world.away_count("root0")
        assert_verified(world.proxy.configuration)
        proxied.execute("DELETE FROM root0 WHERE id LIKE 'key %'")


@pytest.mark.parametrize("name", list(KEYS))
def test_random_statements_answer_as_one_postgres(world: AwayWorld, name: str) -> None:
    number = list(KEYS).index(name)
    chance = random.Random(number)
    with world.connect_direct() as reference, world.connect() as proxied:
        for _ in range(STATEMENTS):
            sql, values = draw(chance, number, KEYS[name])
            form = chance.choice(["literals", "text", "binary"])
            found = ask(proxied, form, sql, values)
            if found[0] == REFUSED:
                is_escaped = form == "literals" and "\\" in str(values)
                assert is_escaped or "FOR UPDATE" in sql, (sql, values, form)
                continue
            assert found == ask(reference, form, sql, values), (sql, values, form)
        left = [side.execute(f"SELECT * FROM root{number}".encode()).fetchall() for side in (reference, proxied)]
        assert sorted(map(repr, left[0])) == sorted(map(repr, left[1]))
        ask(proxied, "text", f"DELETE FROM child{number}", [])
        ask(reference, "text", f"DELETE FROM child{number}", [])


@pytest.mark.parametrize("name", ["text", "bigint", "date"])
def test_random_transactions_answer_as_one_postgres(world: AwayWorld, name: str) -> None:
    number = list(KEYS).index(name)
    chance = random.Random(100 + number)
    with world.connect_direct() as reference, world.connect() as proxied:
        for _ in range(30):
            statements = [draw(chance, number, KEYS[name]) for _ in range(chance.randrange(1, 6))]
            form = chance.choice(["literals", "text", "binary"])
            end = chance.choice(["COMMIT", "COMMIT", "ROLLBACK"])
            has_savepoint = chance.random() < 0.3
            failed = is_saved = False
            for side in (reference, proxied):
                side.execute("BEGIN")
            for position, (sql, values) in enumerate(statements):
                if has_savepoint and position == 1 and not failed:
                    for side in (reference, proxied):
                        side.execute("SAVEPOINT one")
                    is_saved = True
                found = ask(proxied, form, sql, values)
                if found[0] == REFUSED:
                    end = "ROLLBACK"
                    break
                assert found == ask(reference, form, sql, values), (sql, values, form, statements)
                failed = failed or bool(found[0])
                if found[0] and is_saved:
                    failed = False
                    for side in (reference, proxied):
                        side.execute("ROLLBACK TO one")
            ends = [ask(side, form, end, []) for side in (proxied, reference)]
            assert ends[0] == ends[1], statements
        left = [side.execute(f"SELECT * FROM root{number}".encode()).fetchall() for side in (reference, proxied)]
        assert sorted(map(repr, left[0])) == sorted(map(repr, left[1]))


OWN_ROWS = (
    "INSERT INTO {t} VALUES ({a}, 1)",
    "INSERT INTO {t} VALUES ({a}, 1)",
    "INSERT INTO {t} VALUES ({a}, 1), ({b}, 2)",
    "INSERT INTO {t} VALUES ({a}, 1) ON CONFLICT DO NOTHING",
    "INSERT INTO {t} VALUES ({a}, 1) ON CONFLICT (id) DO UPDATE SET n = {t}.n + 10 RETURNING n",
    "INSERT INTO {t} SELECT id + 1, n FROM {t} WHERE id = {a}",
    "UPDATE {t} SET n = n + 1 WHERE id = {a} RETURNING n",
    "DELETE FROM {t} WHERE id = {a} RETURNING n",
    "SELECT n FROM {t} WHERE id IN ({a}, {b}) ORDER BY id",
)


def test_a_transaction_finds_the_rows_that_it_has_made(world: AwayWorld) -> None:
    table, chance = f"root{list(KEYS).index('bigint')}", random.Random(905)
    with world.connect_direct() as reference, world.connect() as proxied:
        for _ in range(100):
            texts = ["BEGIN", *(chance.choice(OWN_ROWS) for _ in range(chance.randrange(2, 6)))]
            for text in [*texts, chance.choice(["COMMIT", "COMMIT", "ROLLBACK"])]:
                sql = text.format(t=table, a=9000 + chance.randrange(9), b=9010 + chance.randrange(3))
                assert ask(proxied, "text", sql, []) == ask(reference, "text", sql, []), (sql, texts)
        for side in (reference, proxied):
            side.execute(f"DELETE FROM {table} WHERE id BETWEEN 9000 AND 9020".encode())


def test_a_row_that_its_own_trigger_takes_away_leaves_no_claim(world: AwayWorld) -> None:
    table = f"root{list(KEYS).index('bigint')}"
    with world.connect() as proxied:
        proxied.execute(
            "CREATE FUNCTION take_away() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " EXECUTE format('DELETE FROM %I WHERE id = $1 AND n = 99', TG_TABLE_NAME) USING NEW.id;"
            " RETURN NULL; END $$"
        )
        create = f"CREATE TRIGGER a_first AFTER INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION take_away()"
        proxied.execute(create.encode())
        for key in range(9050, 9060):
            for n in (99, 1):
                assert ask(proxied, "text", f"INSERT INTO {table} VALUES ({key}, {n})", [])[0] == ""
        proxied.execute(f"DELETE FROM {table} WHERE id BETWEEN 9050 AND 9060".encode())
        proxied.execute(f"DROP TRIGGER a_first ON {table}".encode())
        proxied.execute(b"DROP FUNCTION take_away()")


def test_copy_behind_rows_away_is_refused(world: AwayWorld) -> None:
    table = f"root{list(KEYS).index('bigint')}"
    with world.connect() as proxied:
        for key in range(9030, 9040):
            proxied.execute(f"INSERT INTO {table} VALUES ({key}, 1)".encode())
        proxied.execute("BEGIN")
        proxied.execute(f"DELETE FROM {table} WHERE id BETWEEN 9030 AND 9040".encode())
        with (
            pytest.raises(psycopg.errors.FeatureNotSupported),
            proxied.cursor() as cursor,
            cursor.copy(f"COPY {table} FROM STDIN".encode()) as copy,
        ):
            copy.write_row((9035, 1))
        proxied.execute("ROLLBACK")
        proxied.execute(f"DELETE FROM {table} WHERE id BETWEEN 9030 AND 9040".encode())


def test_two_of_three_new_rows_are_away(world: AwayWorld) -> None:
    number = list(KEYS).index("uuid")
    with world.connect() as proxied:
        for index in range(60):
            key = [f"00000000-0000-4000-8000-{index:012d}"]
            proxied.execute(f"INSERT INTO root{number} VALUES (%s, 1)".encode(), key)
        for index in range(60):
            key = [f"00000000-0000-4000-8000-{index:012d}"]
            assert proxied.execute(f"SELECT n FROM root{number} WHERE id = %s".encode(), key).fetchall() == [(1,)]
    assert world.away_count(f"root{number}") >= 25


def test_explain_tells_home_and_away_and_why(world: AwayWorld) -> None:
    number = list(KEYS).index("bigint")
    with world.connect() as proxied:
        for key in range(1000, 1020):
            proxied.execute(f"INSERT INTO root{number} VALUES ({key}, 1)".encode())
        seen = ""
        for key in (*range(1000, 1020), 5):
            rows = proxied.execute(f"EXPLAIN (FORESHARD) SELECT * FROM root{number} WHERE id = {key}".encode())
            seen += "\n".join(line for (line,) in rows)
        rows = proxied.execute(f"EXPLAIN (FORESHARD) INSERT INTO root{number} VALUES (77777, 1)".encode())
        placed = "\n".join(line for (line,) in rows)
    assert "the row is at home" in seen
    assert "the row is away from home, in bucket" in seen
    assert "there is no row" in seen
    assert "Policy: least-loaded" in placed


@pytest.mark.parametrize("name", ["text", "uuid", "bigint"])
def test_merge_finds_rows_away_and_makes_new_ones_away(world: AwayWorld, name: str) -> None:
    number, keys = list(KEYS).index(name), [KEYS[name](index) for index in range(30, 34)]
    sql = (
        f"MERGE INTO root{number} r USING (VALUES {{rows}}) AS v(id, n) ON r.id = v.id "
        "WHEN MATCHED AND v.n = 0 THEN DELETE WHEN MATCHED THEN UPDATE SET n = r.n + v.n "
        "WHEN NOT MATCHED THEN INSERT (id, n) VALUES (v.id, v.n) RETURNING merge_action(), r.n"
    )
    chance = random.Random(number)
    with world.connect_direct() as reference, world.connect() as proxied:
        for _ in range(40):
            some = chance.sample(keys, chance.choice((1, 1, 2, 3)))
            rows = ", ".join(f"('{key}'::{name}, {chance.randrange(3)})" for key in some)
            found = [side.execute(sql.format(rows=rows).encode()).fetchall() for side in (reference, proxied)]
            assert sorted(found[0]) == sorted(found[1]), rows
        listed = ", ".join(f"'{key}'" for key in keys)
        text = f"SELECT * FROM root{number} WHERE id IN ({listed})".encode()
        left = [side.execute(text).fetchall() for side in (reference, proxied)]
        assert sorted(map(repr, left[0])) == sorted(map(repr, left[1]))
