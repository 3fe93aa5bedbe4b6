"""What the query node answers is what one PostgreSQL with all the rows answers: values, types, order, errors."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.integration.test_differential import REFUSED, comparable
from tests.support.messages import SYNC, bind, describe_portal, describe_statement, execute, extended, parse, query
from tests.support.postgres import TestInstances
from tests.support.proxy import Proxy
from tests.support.raw import Message, RawConnection, error_of, kinds
from tests.support.reading import (
    AUTHORS,
    GENRES,
    NOTES,
    READS,
    SCHEMA,
    SHOPS,
    TABLES,
    Reads,
    author_row,
    book_row,
    sale_row,
    shop_row,
)
from tests.support.servers import Pair, Server
from tests.support.waiting import wait_until

SEED = 11
RANDOM_SEEDS = range(8)
RANDOM_READS = 60
ACROSS = "SELECT count(*) FROM author a JOIN shop s ON s.name = a.name"

SHOPS_COUNTED = "SELECT count(*) FROM shop"


def insert_both(sides: tuple[RawConnection, RawConnection], table: str, values: str) -> str:
    """A new row through the proxy, then the same row with the same key into the reference; its key."""
    direct, proxied = sides
    columns = direct.value(
        f"SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute "
        f"WHERE attrelid = '{table}'::regclass AND attnum > 1 AND NOT attisdropped"
    )
    key = proxied.value(f"INSERT INTO {table} ({columns}) VALUES ({values}) RETURNING id")
    direct.rows(f"INSERT INTO {table} (id, {columns}) VALUES ({key}, {values})")
    return key


def fill(sides: tuple[RawConnection, RawConnection]) -> None:
    draw = random.Random(SEED)
    for number in range(AUTHORS):
        author = insert_both(sides, "author", author_row(draw, number))
        for _ in range(draw.randint(0, 3)):
            insert_both(sides, "book", f"{author}, {book_row(draw, draw.randint(0, 99))}")
    for number in range(SHOPS):
        shop = insert_both(sides, "shop", shop_row(draw, number))
        for _ in range(draw.randint(0, 4)):
            insert_both(sides, "sale", f"{shop}, {sale_row(draw, draw.randint(0, 99))}")
    for side in sides:
        side.rows(NOTES)


@pytest.fixture(scope="module")
def sides(test_instances: TestInstances, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """One PostgreSQL, and the proxy over three shards, with equal rows."""
    shards, reference = test_instances.create(3), test_instances.create(1)
    for database in (shards, reference):
        database.execute(SCHEMA)
        for sql in GENRES:
            database.execute(sql)
    with Proxy(shards.dsns, tmp_path_factory.mktemp("query"), tables=TABLES, workers={"per_shard": 0}) as proxy:
        pair = Pair(Server.of_dsn(reference.dsns[0]), proxy.server)
        with pair.direct.connect() as direct, pair.proxied.connect() as proxied:
            fill((direct, proxied))
        yield pair
    test_instances.drop(shards)
    test_instances.drop(reference)


def in_binary(sql: str) -> bytes:
    """The extended protocol with results in binary."""
    return parse(sql) + bind(results=[1]) + describe_portal() + execute() + SYNC


FORMS = {"simple": query, "extended": lambda sql: extended(sql) + SYNC, "binary": in_binary}


def outcome(answer: list[Message], ordered: bool) -> list[str]:
    """What counts of an answer; of an error only its SQLSTATE."""
    return [f"E {error_of(answer)['C']}"] if "E" in kinds(answer) else comparable(answer, ordered)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("number", range(len(READS)))
def test_a_read_over_several_groups_is_answered_as_by_one_postgres(sides: Pair, number: int, form: str) -> None:
    sql, found = READS[number], []
    if form == "binary" and sql.startswith("SELECT a, s FROM"):
        sql = sql.replace("SELECT a, s", "SELECT a::text, s::text")  # a composite's own oids are the node's
    for server in sides:
        with server.connect() as connection:
            found.append(outcome(connection.ask(FORMS[form](sql)), "ORDER BY" in sql))
    assert found[1] == found[0]


@pytest.mark.parametrize("seed", RANDOM_SEEDS)
def test_random_reads_are_answered_as_by_one_postgres(sides: Pair, seed: int) -> None:
    reads = Reads(seed)
    draw = random.Random(seed)
    refused = 0
    with sides.direct.connect() as direct, sides.proxied.connect() as proxied:
        for _ in range(RANDOM_READS):
            sql, form = reads.statement(), FORMS[draw.choice(list(FORMS))]
            answers = [outcome(connection.ask(form(sql)), False) for connection in (direct, proxied)]
            refused += answers[1] == [f"E {REFUSED}"]
            assert answers[1] == answers[0], sql
    assert refused == 0


def ask_both(
    sides: Pair, statements: list[str], form: str = "simple", sorted_rows: bool = False, **parameters: str
) -> list[list[list[str]]]:
    """The outcomes of the statements on one connection to each side."""
    found = []
    for server in sides:
        with server.connect(**parameters) as connection:
            answers = [(sql, connection.ask(FORMS[form](sql))) for sql in statements]
        found.append([outcome(answer, not sorted_rows or "ORDER BY" in sql) for sql, answer in answers])
    return found


@pytest.mark.parametrize("form", ["simple", "extended"])
def test_transactions_read_there_like_anywhere(sides: Pair, form: str) -> None:
    statements = [
        *("BEGIN", ACROSS, "SAVEPOINT s", "SELECT 1 / (a.score - a.score) FROM author a, shop", ACROSS),
        *("ROLLBACK TO s", ACROSS, "SELECT count(*) FROM note", "COMMIT", ACROSS),
        *("BEGIN", "SELECT nothing FROM author, shop", ACROSS, "COMMIT", "BEGIN READ ONLY", ACROSS, "ROLLBACK"),
    ]
    direct, proxied = ask_both(sides, statements, form)
    assert proxied == direct


@pytest.mark.parametrize("form", ["simple", "extended"])
def test_cursors_and_copy_run_there(sides: Pair, form: str) -> None:
    statements = [
        "BEGIN",
        "DECLARE c SCROLL CURSOR FOR SELECT a.id, s.id FROM author a, shop s ORDER BY 1, 2",
        *("FETCH 3 FROM c", ACROSS, "FETCH BACKWARD 1 FROM c", "MOVE 5 IN c", "FETCH 2 FROM c", "CLOSE c", "COMMIT"),
        "COPY (SELECT a.id, s.name FROM author a, shop s ORDER BY a.id, s.id) TO STDOUT (FORMAT csv, HEADER)",
        "COPY (SELECT 1 / (a.score - a.score) FROM author a, shop s) TO STDOUT",
    ]
    direct, proxied = ask_both(sides, statements, form)
    assert proxied == direct


def test_savepoints_are_released_while_a_cursor_there_is_open(sides: Pair) -> None:
    with sides.proxied.connect() as connection:
        keys = [str((row[0] or b"").decode()) for row in connection.rows("SELECT id FROM author")]
    for statement in ("RELEASE q", "ROLLBACK TO q", "SAVEPOINT r", SCORES, "CLOSE c"):
        for sql in (f"SELECT score FROM author WHERE id IN ({', '.join(keys)})", "SELECT a.id FROM author a, shop s"):
            with sides.proxied.connect() as connection:
                for each in ("BEGIN", "SAVEPOINT p", "SAVEPOINT q", f"DECLARE c CURSOR FOR {sql}", "FETCH NEXT FROM c"):
                    connection.rows(each)
                connection.rows(statement)
                connection.rows("COMMIT")


def test_settings_of_the_session_hold_there(sides: Pair) -> None:
    read = "SELECT b.at::text, b.span::text, x.day::text FROM book b, sale x ORDER BY b.id, x.id LIMIT 9"
    statements = [
        *("SET TimeZone = 'Asia/Tokyo'", "SET DateStyle = 'German'", read, "BEGIN", read),
        *("SET LOCAL IntervalStyle = 'iso_8601'", read, "COMMIT", read, "RESET TimeZone", read),
    ]
    direct, proxied = ask_both(sides, statements)
    assert proxied == direct
    direct, proxied = ask_both(sides, [read], TimeZone="America/Lima", IntervalStyle="sql_standard")
    assert proxied == direct


def test_parameters_have_the_types_that_one_postgres_infers(sides: Pair) -> None:
    sql = "SELECT a.id, $1::text FROM author a JOIN shop s USING (name) WHERE a.score > $2 OR a.mood = $3 ORDER BY 1"
    message = parse(sql) + describe_statement() + bind([b"x", b"2", b"ok"]) + describe_portal() + execute() + SYNC
    found = []
    for server in sides:
        with server.connect() as connection:
            answer = connection.ask(message)
            types = next(m.body for m in answer if m.kind == b"t")
            mood = int(connection.value("SELECT 'mood'::regtype::oid"))
            assert int.from_bytes(types[10:14], "big") == mood
            found.append(comparable([m for m in answer if m.kind != b"t"], True))
    assert found[1] == found[0]


def test_types_of_users_are_described_with_the_oids_of_the_default_shard(sides: Pair) -> None:
    with sides.proxied.connect() as connection:
        mood = int(connection.value("SELECT 'mood'::regtype::oid"))
        answer = connection.query("SELECT a.mood FROM author a JOIN shop s ON s.name = a.name")
        description = next(message.body for message in answer if message.kind == b"T")
        assert int.from_bytes(description[-12:-8], "big") == mood
        declared = parse("SELECT count(*) FROM author a, shop s WHERE a.mood = $1", types=[mood])
        answer = connection.ask(declared + bind([b"ok"]) + execute() + SYNC)
        assert "E" not in kinds(answer)


SCORES = "SELECT count(*), sum(a.score), max(s.name) FROM author a, shop s"
UNSHADOWED = re.compile("gifted|takings|note_bodies|doubled|authors_of")  # views and users' functions
WRITES = (
    "UPDATE author SET score = coalesce(score, 0) + 1 WHERE name LIKE '%1%'",
    "DELETE FROM sale WHERE day > '2024-06-01'",
    "UPDATE genre SET label = label || '!' WHERE code = 'a'",
    "INSERT INTO note (body, score) VALUES ('written here', 3)",
    "UPDATE shop SET name = name || '+'",
)


@pytest.mark.parametrize("form", FORMS)
def test_a_transaction_that_has_written_reads_what_it_wrote(sides: Pair, form: str) -> None:
    statements = ["BEGIN", *WRITES]
    for sql in READS:
        # A composite's own oids are the node's.
        shown = sql.replace("SELECT a, s FROM", "SELECT a::text, s::text FROM")
        statements += ["SAVEPOINT s", shown, "ROLLBACK TO s"]
    direct, proxied = ask_both(sides, [*statements, "ROLLBACK", ACROSS], form, sorted_rows=True)
    for sql, theirs, ours in zip([*statements, "", ""], direct, proxied, strict=True):
        if ours != [f"E {REFUSED}"] or not UNSHADOWED.search(sql):
            assert ours == theirs, sql


@pytest.mark.parametrize("begin", ["BEGIN", "BEGIN ISOLATION LEVEL REPEATABLE READ"])
@pytest.mark.parametrize("form", ["simple", "extended"])
def test_cursors_keep_what_they_saw_before_a_later_write(sides: Pair, form: str, begin: str) -> None:
    statements = [
        *(begin, WRITES[0], "DECLARE c SCROLL CURSOR FOR SELECT a.score, s.name FROM author a, shop s ORDER BY 1, 2"),
        *("FETCH 3 FROM c", WRITES[4], ACROSS, "SAVEPOINT s", "FETCH 3 FROM c", WRITES[1], SCORES, WRITES[0]),
        *("DECLARE d CURSOR FOR SELECT a.score, n.score FROM author a, note n ORDER BY 1, 2", "FETCH 2 FROM d"),
        *(SCORES, "ROLLBACK TO s", SCORES, "FETCH FIRST FROM c", "FETCH ALL FROM c", "RELEASE s", SCORES, "CLOSE c"),
        *(f"COPY ({SCORES}) TO STDOUT", "SELECT 1 / (a.score - a.score) FROM author a, shop", "ROLLBACK", SCORES),
    ]
    direct, proxied = ask_both(sides, statements, form)
    for sql, theirs, ours in zip(statements, direct, proxied, strict=True):
        assert ours == theirs, sql


def test_strings_and_pipelines_read_what_they_wrote(sides: Pair) -> None:
    string = query(f"{WRITES[0]}; {WRITES[4]}; {SCORES}; {ACROSS}; ROLLBACK")
    pipeline = b"".join(extended(sql) for sql in ("BEGIN", WRITES[0], SCORES, WRITES[4], ACROSS, "ROLLBACK")) + SYNC
    named = parse(SCORES, name="s") + bind(name="s") + execute() + SYNC
    begun = query("BEGIN"), query(WRITES[0]), named, query(WRITES[0]), bind(name="s") + execute() + SYNC
    found = []
    for server in sides:
        with server.connect() as connection:
            found.append([comparable(connection.ask(each), True) for each in (string, pipeline, *begun)])
            found[-1].append(comparable(connection.ask(query("ROLLBACK")), True))
            found[-1].append(comparable(connection.ask(bind(name="s") + execute() + SYNC), True))
    assert found[1] == found[0]


def test_large_tables_are_copied_as_the_node_takes_them(sides: Pair) -> None:
    statements = [
        "BEGIN",
        "INSERT INTO note (body, score) SELECT repeat('x', 90), n FROM generate_series(1, 200000) AS n",
        "SELECT count(*), sum(n.score), max(n.id) > min(n.id), sum(length(body)) FROM note n, (SELECT 1 FROM shop) s",
        "ROLLBACK",
    ]
    direct, proxied = ask_both(sides, statements)
    assert proxied == direct


def test_tables_beyond_the_limit_are_refused_and_the_session_goes_on(
    test_instances: TestInstances, tmp_path: Path
) -> None:
    shards = test_instances.create(3)
    shards.execute(SCHEMA)
    limits = {"shadow_size_max": "1MB"}
    with (
        Proxy(shards.dsns, tmp_path, tables=TABLES, workers={"per_shard": 0}, limits=limits) as proxy,
        proxy.server.connect() as connection,
    ):
        connection.rows("INSERT INTO author (name) VALUES ('a')")
        connection.rows("BEGIN")
        connection.rows("SAVEPOINT s")
        connection.rows("INSERT INTO note (body, score) SELECT repeat('x', 90), n FROM generate_series(1, 50000) n")
        error = error_of(connection.query("SELECT count(*) FROM author, note"))
        assert error["C"] == REFUSED
        assert "1000000 bytes" in error["D"]
        assert "shadow_size_max" in error["H"]
        assert error_of(connection.query("SELECT 1"))["C"] == "25P02"
        connection.rows("ROLLBACK TO s")
        assert connection.value("SELECT count(*) FROM author, note") == "0"
        connection.rows("COMMIT")
    test_instances.drop(shards)


def test_names_that_a_copy_would_not_answer_to_stay_refused(sides: Pair) -> None:
    for sql in ("SELECT count(*) FROM public.author, shop", "SELECT doubled(a.score) FROM author a, shop"):
        with sides.proxied.connect() as connection:
            connection.rows("BEGIN")
            connection.rows("INSERT INTO shop (name) VALUES ('unseen')")
            error = error_of(connection.query(sql))
            assert error["C"] == REFUSED
            assert "in a transaction that has written" in error["M"]
            connection.rows("ROLLBACK")
            assert connection.rows(ACROSS)


def test_a_transaction_sees_at_each_statement_what_is_committed(sides: Pair) -> None:
    with sides.proxied.connect() as reader, sides.proxied.connect() as writer:
        look = "SELECT count(*) FROM author a, shop s WHERE s.name = 'fresh'"
        reader.rows("BEGIN")
        assert reader.value(look) == "0"
        key = writer.value("INSERT INTO shop (name) VALUES ('fresh') RETURNING id")
        assert reader.value(look) != "0"
        reader.rows("COMMIT")
        writer.rows(f"DELETE FROM shop WHERE id = {key}")
        reader.rows("BEGIN ISOLATION LEVEL REPEATABLE READ")
        before = [reader.value(sql) for sql in (look, SHOPS_COUNTED)]
        key = writer.value("INSERT INTO shop (name) VALUES ('fresh') RETURNING id")
        assert [reader.value(sql) for sql in (look, SHOPS_COUNTED)] == before
        reader.rows("COMMIT")
        assert reader.value(look) != "0"
        writer.rows(f"DELETE FROM shop WHERE id = {key}")


def test_repeatable_read_shares_its_snapshot_with_the_node_only_from_the_start(sides: Pair) -> None:
    with sides.proxied.connect() as connection:
        connection.rows("BEGIN ISOLATION LEVEL REPEATABLE READ")
        assert connection.rows(SHOPS_COUNTED)
        refused = error_of(connection.query(ACROSS))
        assert refused["C"] == REFUSED
        assert "foreshard.snapshot" in refused["H"]
        connection.rows("ROLLBACK")
        connection.rows("SET foreshard.snapshot = on")
        connection.rows("BEGIN")
        assert connection.rows(SHOPS_COUNTED)
        assert connection.rows(ACROSS)
        connection.rows("COMMIT")


def test_a_savepoint_comes_behind_the_first_read_through_the_node(sides: Pair) -> None:
    with sides.proxied.connect() as connection:
        connection.rows("BEGIN ISOLATION LEVEL REPEATABLE READ")
        connection.rows("SAVEPOINT early")
        assert error_of(connection.query(ACROSS))["C"] == REFUSED
        connection.rows("ROLLBACK")
        connection.rows("BEGIN ISOLATION LEVEL REPEATABLE READ")
        assert connection.rows(ACROSS)
        connection.rows("SAVEPOINT late")
        assert connection.rows(ACROSS)
        assert connection.rows(SHOPS_COUNTED)
        connection.rows("ROLLBACK TO late")
        assert connection.rows(ACROSS)
        connection.rows("COMMIT")


def test_serializable_transactions_do_not_ask_the_node(sides: Pair) -> None:
    with sides.proxied.connect() as connection:
        connection.rows("BEGIN ISOLATION LEVEL SERIALIZABLE")
        assert error_of(connection.query(ACROSS))["C"] == REFUSED
        connection.rows("ROLLBACK")


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT a.id FROM author a, shop s FOR UPDATE",
        "SELECT currval('note_id_seq'), a.id FROM author a, shop s",
        "SELECT pg_backend_pid() FROM author a, shop s",
        "SELECT current_database() FROM author a, shop s",
        "SELECT current_catalog FROM author a, shop s",
        "SELECT set_config('work_mem', '1MB', false) FROM author a, shop s",
        "SELECT pg_advisory_lock(a.id) FROM author a, shop s",
        "SELECT a.tableoid FROM author a, shop s",
        "SELECT a.ctid FROM author a, shop s",
        "SELECT 'author'::regclass::oid FROM author a, shop s",
        "SELECT count(*) FROM ONLY author a, shop s",
        "SELECT count(*) FROM author a TABLESAMPLE SYSTEM (50), shop s",
        "SELECT relname FROM pg_class, author",
        "WITH d AS (DELETE FROM note RETURNING *) SELECT * FROM d, author",
        "SELECT a.id INTO made FROM author a, shop s",
        "SELECT query_to_xml('SELECT 1 FROM author', true, true, '')",
    ],
)
def test_what_would_mean_something_else_there_stays_refused(sides: Pair, sql: str) -> None:
    with sides.proxied.connect() as connection:
        assert error_of(connection.query(sql))["C"] == REFUSED


def test_temporary_tables_keep_a_session_away(sides: Pair) -> None:
    with sides.proxied.connect() as connection:
        connection.rows("CREATE TEMP TABLE note (score integer)")
        assert error_of(connection.query("SELECT count(*) FROM author JOIN note USING (score)"))["C"] == REFUSED
        connection.rows("DISCARD ALL")
        assert connection.rows("SELECT count(*) FROM author JOIN note USING (score)")


def test_explain_shows_the_plan_of_the_query_node(sides: Pair) -> None:
    with sides.proxied.connect() as connection:
        plan = str(connection.rows(f"EXPLAIN (COSTS off) {ACROSS}"))
        assert "Foreign Scan" in plan
        route = str(connection.rows(f"EXPLAIN (FORESHARD) {ACROSS}"))
        assert "Query node: query" in route


def test_nothing_can_be_written_there(sides: Pair) -> None:
    node = sides.proxied._replace(
        host=sides.direct.host, port=sides.direct.port, database=f"{sides.proxied.database}_foreshard_query"
    )
    with node.connect() as connection:
        assert error_of(connection.query("INSERT INTO author (id) VALUES (1)"))["C"] == "25006"
        connection.rows("SET default_transaction_read_only = off")
        table = connection.value("SELECT c.oid::regclass::text FROM pg_class c WHERE relname LIKE 'author\\_%\\_0'")
        assert error_of(connection.query(f"INSERT INTO {table} (id) VALUES (1)"))["C"] == "55000"
        assert error_of(connection.query("INSERT INTO author (id) VALUES (1)"))["C"] == "23514"


@pytest.fixture(scope="module")
def own_proxy(test_instances: TestInstances, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A deployment whose schema may be changed, with nothing in it."""
    shards = test_instances.create(3)
    shards.execute(SCHEMA)
    with Proxy(shards.dsns, tmp_path_factory.mktemp("own"), tables=TABLES, workers={"per_shard": 0}) as proxy:
        yield proxy
    test_instances.drop(shards)


def test_reads_wait_for_the_node_to_follow_a_change_of_the_schema(own_proxy: Proxy) -> None:
    both = "SELECT n.* FROM note n JOIN author a USING (score)"
    with own_proxy.server.connect() as connection, own_proxy.server.connect() as other:
        connection.rows("INSERT INTO note (body, score) VALUES ('x', 1)")
        connection.rows("INSERT INTO author (name, score) VALUES ('a', 1)")
        assert len(connection.rows(both)[0]) == 3
        for number in range(3):
            connection.rows(f"ALTER TABLE note ADD COLUMN more_{number} integer DEFAULT 7")
            reader = other if number else connection
            assert reader.rows(both)[0][3:] == [b"7"] * (number + 1)
        connection.rows("CREATE TABLE later AS SELECT 1 AS score")
        other.rows("BEGIN")
        assert len(other.rows("SELECT * FROM later JOIN author USING (score)")) == 1
        other.rows("COMMIT")
        connection.rows("DROP TABLE later")
        found = error_of(connection.query("SELECT * FROM later JOIN author USING (score)"))["C"]
        assert found in (REFUSED, "42P01")


def test_a_node_that_cannot_follow_lets_reads_wait_for_a_bounded_time(own_proxy: Proxy) -> None:
    first = Server.of_dsn(yaml.safe_load(own_proxy.configuration.read_text())["shards"][0]["dsn"])
    node = first._replace(database=f"{first.database}_foreshard_query")
    both = "SELECT n.* FROM note n JOIN author a USING (score)"
    with own_proxy.server.connect() as connection, node.connect() as lock:
        assert len(connection.rows(both)) == 1
        lock.rows("BEGIN")
        lock.rows("LOCK TABLE foreshard.applied IN ACCESS EXCLUSIVE MODE")
        connection.rows("ALTER TABLE note ADD COLUMN more integer")
        assert error_of(connection.query(both))["C"] == REFUSED
        lock.rows("ROLLBACK")
        wait_until(lambda: "E" not in kinds(connection.query(both)))


def test_whole_rows_are_read_from_copies_of_the_tables(sides: Pair) -> None:
    reads = (
        "SELECT a, rank() OVER (ORDER BY a.id) FROM author a ORDER BY 2",
        "SELECT author FROM author ORDER BY author",
        "SELECT array_agg(a ORDER BY a.id), count(a.*) FROM author a",
    )
    with sides.direct.connect() as direct, sides.proxied.connect() as proxied:
        insert = "INSERT INTO author (name) VALUES ('whole (\"row\")')"
        proxied.query("BEGIN")
        key = proxied.value(f"{insert} RETURNING id")
        direct.query("BEGIN")
        direct.rows(insert.replace("(name) VALUES (", f"(id, name) VALUES ({key}, "))
        for sql in reads:
            assert proxied.rows(sql) == direct.rows(sql), sql
        for side in (proxied, direct):
            side.query("ROLLBACK")
