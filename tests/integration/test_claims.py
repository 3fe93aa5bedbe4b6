"""Columns that are declared unique are unique over all shards, whoever writes, in every order and at the same time."""

from __future__ import annotations

import random
import threading
import uuid
from collections import Counter
from collections.abc import Iterator

import psycopg
import pytest

from tests.support.messages import SYNC, extended
from tests.support.postgres import Shards, TestInstances
from tests.support.proxy import Proxy
from tests.support.raw import kinds
from tests.support.verified import assert_verified

SHARDS = range(3)
CLIENTS = 16
ROUNDS = 40
SCHEMA = """
CREATE TABLE person (id bigserial PRIMARY KEY, email text UNIQUE, tenant integer, born date, UNIQUE (tenant, born));
CREATE TABLE letter (id bigserial PRIMARY KEY, person_id bigint NOT NULL REFERENCES person ON DELETE CASCADE, tag text);
CREATE TABLE account (name text PRIMARY KEY, code uuid UNIQUE);
CREATE TABLE badge (id bigserial PRIMARY KEY, number bigint UNIQUE, token uuid UNIQUE, word varchar(5) UNIQUE);
"""
TABLES = {
    "person": {"key": "id", "unique": ["email", "tenant, born"]},
    "letter": {"key": "id", "parent": "person", "via": "person_id", "unique": ["id"]},
    "account": {"key": "name", "unique": ["code"]},
    "badge": {"key": "id", "unique": ["number", "token", "word"]},
}
EXPECTED_ERRORS = {"23505", "40001", "40P01"}
# What every claim set should hold, by what the rows of all shards say.
ROWS = """
SELECT 'public.person.email', email FROM person WHERE email IS NOT NULL
UNION ALL SELECT 'public.person.tenant,born', ARRAY[tenant::text, born::text]::text FROM person
          WHERE tenant IS NOT NULL AND born IS NOT NULL
UNION ALL SELECT 'public.letter.id', id::text FROM letter WHERE NOT id BETWEEN 4503599627370496 AND 9007199254740991
UNION ALL SELECT 'public.account.code', code::text FROM account WHERE code IS NOT NULL
UNION ALL SELECT 'public.badge.number', number::text FROM badge WHERE number IS NOT NULL
UNION ALL SELECT 'public.badge.token', token::text FROM badge WHERE token IS NOT NULL
UNION ALL SELECT 'public.badge.word', word FROM badge WHERE word IS NOT NULL
"""


class World:
    def __init__(self, shards: Shards, proxy: Proxy) -> None:
        self.shards = shards
        self.server = proxy.server
        self.dsn = proxy.server.dsn

    def connect(self) -> psycopg.Connection:
        return psycopg.connect(self.dsn, autocommit=True)

    def check(self) -> None:
        """Each value of a row has one claim at its home, each claim a row; nothing is left pending or prepared."""
        rows: list[tuple[object, ...]] = []
        claims: list[tuple[object, ...]] = []
        for shard in SHARDS:
            rows += self.shards.query(ROWS, on=shard)
            claims += self.shards.query("SELECT name, key FROM foreshard.claim", on=shard)
            assert self.shards.query("SELECT * FROM foreshard.claim_pending", on=shard) == []
            assert (
                self.shards.query("SELECT * FROM pg_prepared_xacts WHERE database = current_database()", on=shard) == []
            )
        assert Counter(rows).most_common(1)[0][1] == 1 if rows else True
        assert sorted(rows, key=repr) == sorted(claims, key=repr)


@pytest.fixture(scope="module")
def served(test_instances: TestInstances, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    shards = test_instances.create(3)
    shards.execute(SCHEMA)
    with Proxy(shards.dsns, tmp_path_factory.mktemp("claims"), tables=TABLES, workers={"per_shard": 0}) as proxy:
        yield World(shards, proxy)
        assert_verified(proxy.configuration)
    test_instances.drop(shards)


@pytest.fixture
def world(served: World) -> Iterator[World]:
    """The deployment without rows, checked at the end."""
    yield served
    served.check()
    with served.connect() as connection:
        for table, key in (("person", "id"), ("account", "name"), ("badge", "id")):
            for row in connection.execute(f"SELECT {key} FROM {table}".encode()).fetchall():
                connection.execute(f"DELETE FROM {table} WHERE {key} = %s".encode(), row)
    served.check()


def state_of(connection: psycopg.Connection, sql: str, *values: object, prepare: bool = True) -> str:
    """SQLSTATE of a statement; "" when it succeeds."""
    cursor = connection.cursor() if prepare else psycopg.ClientCursor(connection)
    try:
        cursor.execute(sql.encode(), values or None)
    except psycopg.Error as error:
        return error.sqlstate or str(error)
    return ""


def test_constraints_that_are_all_immediate_are_an_error_that_says_what_to_do(world: World) -> None:
    # The homes of some of these values are on other shards.
    values = ", ".join(f"('now {number}', '{number:08}-0000-4000-8000-000000000000')" for number in range(20))
    with world.connect() as connection:
        connection.execute("BEGIN")
        connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState) as raised:
            connection.execute(f"INSERT INTO account (name, code) VALUES {values}")
    assert "name the constraints in place of ALL" in str(raised.value.diag.message_hint)


@pytest.mark.parametrize("prepare", [True, False], ids=["extended", "simple"])
def test_a_value_is_taken_once_over_all_shards(world: World, prepare: bool) -> None:
    with world.connect() as connection:
        for number in range(12):
            found = [
                state_of(connection, "INSERT INTO person (email) VALUES (%s)", f"mail{number}", prepare=prepare)
                for _ in range(6)
            ]
            assert found == ["", *["23505"] * 5]
        assert connection.execute("SELECT count(*) FROM person").fetchone() == (12,)


def test_a_list_of_columns_is_unique_and_nulls_are_not(world: World) -> None:
    with world.connect() as connection:
        for number in range(8):
            insert = "INSERT INTO person (tenant, born) VALUES (%s, %s)"
            assert [state_of(connection, insert, number, "2026-01-31") for _ in range(4)] == ["", *["23505"] * 3]
            assert [state_of(connection, insert, number, None) for _ in range(4)] == [""] * 4
            assert state_of(connection, insert, number, "2026-02-01") == ""


def test_a_deleted_or_changed_value_is_free_at_once(world: World) -> None:
    with world.connect() as connection:
        for number in range(12):
            mail = f"mail{number}"
            first = connection.execute("INSERT INTO person (email) VALUES (%s) RETURNING id", [mail]).fetchone()
            assert first is not None
            connection.execute("UPDATE person SET email = %s WHERE id = %s", [f"new{number}", first[0]])
            second = connection.execute("INSERT INTO person (email) VALUES (%s) RETURNING id", [mail]).fetchone()
            assert second is not None
            assert (
                state_of(connection, "UPDATE person SET email = %s WHERE id = %s", f"new{number}", second[0]) == "23505"
            )
            connection.execute("DELETE FROM person WHERE id = %s", first)
            assert state_of(connection, "UPDATE person SET email = %s WHERE id = %s", f"new{number}", second[0]) == ""


def test_a_transaction_may_pass_a_value_on(world: World) -> None:
    with world.connect() as connection:
        ids = [
            connection.execute("INSERT INTO person (email) VALUES (%s) RETURNING id", [f"mail{number}"]).fetchone()
            for number in range(6)
        ]
        with connection.transaction():
            for row in ids:
                assert row is not None
                connection.execute("UPDATE person SET email = NULL WHERE id = %s", row)
            for number, row in enumerate(reversed(ids)):
                assert row is not None
                connection.execute("UPDATE person SET email = %s WHERE id = %s", [f"mail{number}", row[0]])
        assert state_of(connection, "INSERT INTO person (email) VALUES ('mail3')") == "23505"


def test_what_is_rolled_back_claims_nothing(world: World) -> None:
    with world.connect() as connection:
        for number in range(6):
            with connection.transaction(force_rollback=True):
                connection.execute("INSERT INTO person (email) VALUES (%s)", [f"mail{number}"])
            with connection.transaction():
                with connection.transaction(force_rollback=True):
                    connection.execute("INSERT INTO person (email) VALUES (%s)", [f"mail{number}"])
                connection.execute("INSERT INTO person (email) VALUES (%s)", [f"other{number}"])
            assert state_of(connection, "INSERT INTO person (email) VALUES (%s)", f"mail{number}") == ""


def test_a_duplicate_on_another_shard_fails_the_commit(world: World) -> None:
    with world.connect() as connection:
        for number in range(9):
            connection.execute("INSERT INTO person (email) VALUES (%s)", [f"mail{number}"])
        for number in range(9):
            connection.execute("BEGIN")
            connection.execute("INSERT INTO person (email) VALUES (%s)", [f"kept{number}"])
            found = [state_of(connection, "INSERT INTO person (email) VALUES (%s)", f"mail{number}")]
            found.append(state_of(connection, "COMMIT"))
            assert "23505" in found
            connection.execute("ROLLBACK")
        assert connection.execute("SELECT count(*) FROM person").fetchone() == (9,)


def test_cascades_release_what_the_children_held(world: World) -> None:
    with world.connect() as connection:
        for turn in range(3):
            row = connection.execute("INSERT INTO person (email) VALUES ('a') RETURNING id").fetchone()
            assert row is not None
            for key in range(1, 9):
                insert = "INSERT INTO letter (id, person_id, tag) VALUES (%s, %s, 'x')"
                assert state_of(connection, insert, key, row[0]) == "", turn
            assert state_of(connection, "DELETE FROM person WHERE id = %s", row[0]) == ""


def test_a_childs_given_key_is_unique_under_all_parents(world: World) -> None:
    with world.connect() as connection:
        parents = [
            row[0] for _ in range(6) for row in connection.execute("INSERT INTO person DEFAULT VALUES RETURNING id")
        ]
        for key in range(1, 5):
            insert = "INSERT INTO letter (id, person_id) VALUES (%s, %s)"
            found = [state_of(connection, insert, key, parent) for parent in parents]
            assert found == ["", *["23505"] * 5]
        assert state_of(
            connection, "INSERT INTO letter (id, person_id) VALUES (%s, %s)", parents[0] ^ 1 << 45, parents[1]
        ) in (
            "23514",
            "",
        )
        assert len(connection.execute("SELECT id FROM letter WHERE id = 2").fetchall()) == 1


def test_a_key_that_clients_give_and_a_unique_column_go_together(world: World) -> None:
    code = "58756dfc-5482-4f57-9359-951542249fbe"
    with world.connect() as connection:
        found = [state_of(connection, "INSERT INTO account VALUES (%s, %s)", f"name{n}", code) for n in range(8)]
        assert found == ["", *["23505"] * 7]
        upsert = "INSERT INTO account (name) VALUES ('name0') ON CONFLICT (name) DO UPDATE SET code = NULL"
        assert state_of(connection, upsert) == ""
        assert state_of(connection, "INSERT INTO account VALUES ('other', %s)", code) == ""
        assert state_of(connection, "INSERT INTO account VALUES ('new', %s) ON CONFLICT DO NOTHING", code) == ""
        assert not connection.execute("SELECT FROM account WHERE name = 'new'").fetchall()


@pytest.mark.parametrize("prepare", [True, False], ids=["extended", "simple"])
def test_homes_of_values_are_told_from_the_text(world: World, prepare: bool) -> None:
    """Rows whose claims are all at home need no settling: what the text says of homes must be what triggers find."""
    draw = random.Random(7)
    with world.connect() as connection:
        for number in range(40):
            values = (
                draw.choice([number, -number, (1 << 52) + draw.randrange(1 << 52), (1 << 53) + number]),
                str(uuid.UUID(int=draw.getrandbits(128), version=draw.choice([4, 5]))),
                draw.choice([f"w{number}", f"w{number}".ljust(9), f"'{number}"]),
            )
            if draw.random() < 0.3:  # a uuid that would name its bucket, were it a key
                values = (values[0], values[1][:14] + "8" + values[1][15:], values[2])
            text = "INSERT INTO badge (number, token, word) VALUES (%s, %s, %s)"
            assert state_of(connection, text, *values, prepare=prepare) == ""
            for column, value in zip(("number", "token", "word"), values, strict=True):
                text = f"INSERT INTO badge ({column}) VALUES (%s)"
                assert state_of(connection, text, value, prepare=prepare) == "23505"
        text = "INSERT INTO badge (number, token, word) VALUES (NULL, NULL, 'some'), (-99, DEFAULT, NULL)"
        assert state_of(connection, text, prepare=prepare) == ""
        assert state_of(connection, "UPDATE badge SET word = word || '1' WHERE word = 'some'", prepare=prepare) == ""
        assert state_of(connection, "INSERT INTO badge (word) VALUES ('some1')", prepare=prepare) == "23505"
        assert state_of(connection, "INSERT INTO badge (word) VALUES ('some')", prepare=prepare) == ""


def test_a_string_whose_commit_fails_says_only_so(world: World) -> None:
    """A claim that is taken is found out at COMMIT of the string's transaction: no CommandComplete before the error."""
    with world.server.connect() as raw:
        for number in range(6):
            one = f"INSERT INTO person (email) VALUES ('twice{number}')"
            found = [kinds(raw.query(text)) for text in (one, one, one, f"SELECT 1; {one}")]
            assert found == ["CZ", "EZ", "EZ", "TDCEZ"]


def test_a_segment_whose_commit_fails_tells_of_no_row(world: World) -> None:
    """The last statement before Sync is answered when the transaction of its own has committed."""
    with world.server.connect() as raw:
        for number in range(6):
            one = f"INSERT INTO person (email) VALUES ('last{number}')"
            many = f"INSERT INTO account VALUES ('a{number}', '{uuid.UUID(int=number)}'), ('b{number}', NULL)"
            both = f"UPDATE account SET code = '{uuid.UUID(int=9)}' WHERE name IN ('a{number}', 'b{number}')"
            returned = " RETURNING 1"
            texts = (one + returned, one + returned, one, many + returned, many, both + returned)
            found = [kinds(raw.ask(extended(text), SYNC)) for text in texts]
            assert found == ["12TDCZ", "12TEZ", "12nEZ", "12TDDCZ", "12nEZ", "12TEZ"]
            piped = [extended(text) for text in ("SELECT 1", one.replace("last", "next") + returned, one)]
            assert kinds(raw.ask(*piped, SYNC)) == "12TDC12TDC12nEZ"


def test_triggers_of_users_may_change_what_is_claimed(world: World) -> None:
    with world.connect() as connection:
        connection.execute(
            "CREATE FUNCTION lower_email() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN NEW.email := lower(NEW.email); RETURN NEW; END $$"
        )
        connection.execute(
            "CREATE TRIGGER lower_email BEFORE INSERT OR UPDATE ON person FOR EACH ROW EXECUTE FUNCTION lower_email()"
        )
        for number in range(8):
            found = [
                state_of(connection, "INSERT INTO person (email) VALUES (%s)", mail.format(number), prepare=prepare)
                for mail, prepare in (("MAIL{}", True), ("Mail{}", False), ("mail{}", True))
            ]
            assert found == ["", "23505", "23505"]
        connection.execute("DROP TRIGGER lower_email ON person")
        connection.execute("DROP FUNCTION lower_email()")


def test_no_search_path_changes_what_the_triggers_do(world: World) -> None:
    """They run with their owner's rights: operators of whoever writes must not be called there."""
    with psycopg.connect(world.shards.dsns[0], autocommit=True) as connection:
        connection.execute("CREATE SCHEMA other")
        for left, right, result, name in (("text", "text", "boolean", "="), ("bigint", "integer", "bigint", "&")):
            body = "SELECT (1 / (SELECT 0))" + ("::bigint" if result == "bigint" else " = 1")
            connection.execute(
                f"CREATE FUNCTION other.never({left}, {right}) RETURNS {result} LANGUAGE sql AS '{body}'".encode()
            )
            connection.execute(
                f"CREATE OPERATOR other.{name} (LEFTARG = {left}, RIGHTARG = {right}, FUNCTION = other.never)".encode()
            )
        connection.execute("SET search_path = other, public, pg_catalog")
        with pytest.raises(psycopg.errors.DivisionByZero):
            connection.execute("SELECT 'a'::text = 'b'::text")
        insert = "INSERT INTO public.account (name, code) VALUES (%s, %s)"
        found = [state_of(connection, insert, f"path {n}", str(uuid.UUID(int=n))) for n in range(30)]
        assert set(found) == {"", "55000"}  # by where the value's home is
        connection.execute("RESET search_path")
        connection.execute("DELETE FROM account WHERE name LIKE 'path %'")
        connection.execute("DROP SCHEMA other CASCADE")


def test_a_direct_writer_cannot_forget_a_claim(world: World) -> None:
    found: Counter[str] = Counter()
    for shard in SHARDS:
        owned = world.shards.query("SELECT position('1' IN buckets::text) - 1 FROM foreshard.owned_buckets", on=shard)[
            0
        ][0]
        with psycopg.connect(world.shards.dsns[shard], autocommit=True) as connection:
            connection.execute(f"SET foreshard.bucket = {owned}".encode())
            for number in range(12):
                found[state_of(connection, "INSERT INTO person (email) VALUES (%s)", f"mail{number}")] += 1
    assert set(found) == {"", "55000"}
    assert found[""] == 12, "each value has one home, and was inserted there"


def change(connection: psycopg.Connection, chance: random.Random) -> str:
    """One random change of few values."""
    mail, other = (f"mail{chance.randrange(8)}" for _ in range(2))
    rows = connection.execute("SELECT id FROM person WHERE email = %s", [mail]).fetchall()
    kind = chance.randrange(5)
    try:
        if kind < 2 or not rows:
            connection.execute("INSERT INTO person (email) VALUES (%s)", [mail])
        elif kind == 2:
            connection.execute("DELETE FROM person WHERE id = %s", rows[0])
        elif kind == 3:
            connection.execute("UPDATE person SET email = %s WHERE id = %s", [other, rows[0][0]])
        else:
            with connection.transaction():
                connection.execute("DELETE FROM person WHERE id = %s", rows[0])
                connection.execute("INSERT INTO person (email) VALUES (%s)", [other])
    except psycopg.Error as error:
        return error.sqlstate or str(error)
    return ""


def test_many_clients_at_once_never_leave_two_rows_with_one_value(world: World) -> None:
    outcomes: Counter[str] = Counter()
    lock = threading.Lock()

    def work(seed: int) -> None:
        chance = random.Random(seed)
        with world.connect() as connection:
            if seed % 3 == 0:
                connection.execute("SET default_transaction_isolation TO 'repeatable read'")
            for _ in range(ROUNDS):
                outcome = change(connection, chance)
                with lock:
                    outcomes[outcome] += 1

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes[""] > CLIENTS
    assert set(outcomes) <= {"", *EXPECTED_ERRORS}, outcomes
