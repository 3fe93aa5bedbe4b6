"""SELECTs over several shards that are merged in the router answer as one PostgreSQL with the same rows answers."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from tests.integration.test_differential import comparable
from tests.support.merged_sql import DOCUMENT, SCHEMA, SYMBOL, TABLES, Drawer, Question, draw_row
from tests.support.messages import BINARY, SYNC, TEXT, bind, describe_portal, execute, parse, query
from tests.support.postgres import Shards, TestInstances
from tests.support.proxy import Proxy
from tests.support.raw import Message, RawConnection, error_of, kinds
from tests.support.servers import Pair, Server

DOCUMENTS, SYMBOLS = 90, 150
SEEDS = range(4)
QUESTIONS = 200


@pytest.fixture(scope="module")
def shards(test_instances: TestInstances) -> Iterator[Shards]:
    made = test_instances.create(3)
    made.execute(SCHEMA)
    yield made
    test_instances.drop(made)


@pytest.fixture(scope="module")
def sides(test_instances: TestInstances, shards: Shards, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """One database with all rows, and the proxy over three shards that hold the same."""
    reference = test_instances.create(1)
    reference.execute(SCHEMA)
    with Proxy(shards.dsns, tmp_path_factory.mktemp("merge"), tables=TABLES, pool={"size": 3}) as proxy:
        pair = Pair(Server.of_dsn(reference.dsns[0]), proxy.server)
        with pair.direct.connect() as direct, pair.proxied.connect() as proxied:
            fill(direct, proxied, random.Random(1))
        yield pair
    test_instances.drop(reference)


def fill(direct: RawConnection, proxied: RawConnection, draw: random.Random) -> None:
    """The same rows on both sides, with the keys that the shards make."""
    documents = []
    for _ in range(DOCUMENTS):
        documents.append(add(direct, proxied, "document", DOCUMENT, draw_row(draw, DOCUMENT)))
    for _ in range(SYMBOLS):
        values = [draw.choice(documents), *draw_row(draw, SYMBOL)]
        add(direct, proxied, "symbol", ("document_id", *SYMBOL), values)


def add(direct: RawConnection, proxied: RawConnection, table: str, columns: tuple[str, ...], values: list[str]) -> str:
    names, row = ", ".join(columns), ", ".join(values)
    [[key]] = proxied.rows(f"INSERT INTO {table} ({names}) VALUES ({row}) RETURNING id")
    assert key is not None
    direct.rows(f"INSERT INTO {table} (id, {names}) VALUES ({key.decode()}, {row})")
    return key.decode()


def ask(connection: RawConnection, question: Question, form: int | None, rows_max: int = 0) -> list[Message]:
    """By simple query (form None; parameters as literals), or extended with results in a format."""
    if form is None:
        sql = question.sql
        for index in range(len(question.values), 0, -1):
            sql = sql.replace(f"${index}", question.values[index - 1])
        return connection.ask(query(sql))
    values = [value.encode() for value in question.values]
    sent = parse(question.sql) + bind(values, results=[form]) + describe_portal() + execute("", rows_max) + SYNC
    return connection.ask(sent)


@pytest.mark.parametrize("seed", SEEDS)
def test_random_selects_are_merged_as_one_database_answers(sides: Pair, seed: int) -> None:
    drawer = Drawer(seed)
    refused = 0
    with sides.direct.connect() as direct, sides.proxied.connect() as proxied:
        for number in range(QUESTIONS):
            question = drawer.question()
            form = (None, TEXT, BINARY)[number % 3]
            answer = ask(proxied, question, form)
            if "E" in kinds(answer) and error_of(answer)["C"] == "0A000":
                refused += 1
                continue
            found, expected = (
                comparable(answer, question.ordered),
                comparable(ask(direct, question, form), question.ordered),
            )
            assert found == expected, f"seed {seed} {question} form {form}"
    print(f"seed {seed}: {refused} of {QUESTIONS} refused")
    assert refused <= QUESTIONS // 20


FINISHED = (
    "SELECT sum(n) / count(*), round(avg(price), 3), coalesce(max(title), 'none') FROM document",
    "SELECT coalesce(sum(n), 0) + 1 AS more FROM document WHERE n > 3000000000",
    "SELECT count(DISTINCT n), count(*), sum(small) FROM document",
    "SELECT flag, count(DISTINCT d.title) AS titles, min(title), max(s.name) FROM document d "
    "JOIN symbol s ON s.document_id = d.id GROUP BY flag ORDER BY titles DESC, flag",
    "SELECT day, count(*) * 2, sum(big) FILTER (WHERE n > 0) FROM document GROUP BY day "
    "HAVING count(*) > 1 AND (sum(n) > 0 OR sum(n) IS NULL) ORDER BY 1 DESC NULLS LAST",
    "SELECT upper(title) || '!', bool_or(flag), avg(small) - 1 FROM document GROUP BY title ORDER BY title, 2 "
    "LIMIT 4 OFFSET 1",
    "SELECT DISTINCT count(*) > 3 FROM document GROUP BY n ORDER BY 1",
    "SELECT made::date, avg(DISTINCT n) FROM document GROUP BY made::date HAVING max(raw) IS NOT NULL ORDER BY 1, 2",
    "SELECT tag, sum(price) * sum(rate) FROM document GROUP BY tag ORDER BY sum(price) + sum(rate), tag",
    "SELECT max(title) || E'\\\\''x' FROM document WHERE false",
    "SELECT n, count(*) + 0 FROM document WHERE n = -77 GROUP BY n",
    "SELECT CASE WHEN count(*) > $1 THEN 1 END FROM document",
    "SELECT sum(n - small) / 2, count(*) FROM document WHERE small < $1 AND n < $2",
)


@pytest.mark.parametrize("form", [None, TEXT, BINARY])
@pytest.mark.parametrize("sql", FINISHED)
def test_what_a_shard_finishes_is_what_one_database_answers(sides: Pair, sql: str, form: int | None) -> None:
    question = Question(sql, ("2", "3")[: sql.count("$")], "ORDER BY" in sql)
    with sides.direct.connect() as direct, sides.proxied.connect() as proxied:
        for _ in range(3):  # the shards keep what they are asked again
            answers = [comparable(ask(side, question, form), question.ordered) for side in (direct, proxied)]
            assert answers[1] == answers[0]
        if not sql.startswith("SELECT CASE"):
            assert any(b"merged" in (row[0] or b"") for row in proxied.rows(f"EXPLAIN (FORESHARD) {sql}"))


LISTED = (
    "SELECT array_agg(id ORDER BY n DESC NULLS LAST, id) FROM document",
    "SELECT flag, array_agg(title ORDER BY title, id), string_agg(title, ', ' ORDER BY id DESC), count(*) "
    "FROM document GROUP BY flag ORDER BY flag",
    r"SELECT n, coalesce(string_agg(tag || '''', '\' ORDER BY id), 'none'), sum(small) FROM document GROUP BY n "
    "ORDER BY n",
    "SELECT cardinality(array_agg(raw)), array_agg(DISTINCT padded), array_agg(DISTINCT n ORDER BY n DESC) "
    "FROM document",
    "SELECT array_agg(made ORDER BY id) FILTER (WHERE n > 0), array_agg(day ORDER BY day, id), "
    "array_agg(moment ORDER BY moment, id), array_agg(clock ORDER BY id), array_agg(uid ORDER BY id) FROM document",
    "SELECT array_agg(ratio ORDER BY id), array_agg(single ORDER BY id), array_agg(price ORDER BY id) FROM document",
    "SELECT tag, json_agg(title ORDER BY id), jsonb_agg(price ORDER BY price, id), "
    "json_object_agg(id, day ORDER BY id) FROM document GROUP BY tag ORDER BY tag",
    "SELECT json_agg(json_build_object('id', id, 'title', title, 'made', made) ORDER BY id) FROM document WHERE n < $1",
    "SELECT string_agg(DISTINCT title, $1), string_agg(name, title ORDER BY s.id), array_agg(s.id ORDER BY s.id) "
    "FROM document d JOIN symbol s ON s.document_id = d.id",
    r"SELECT string_agg(raw, '\x2c' ORDER BY id), string_agg(padded, ' ' ORDER BY id) FROM document",
    "SELECT array_agg(n), string_agg(title, ','), json_agg(n), array_agg(n ORDER BY id) FROM document WHERE n = -77",
    "SELECT n, array_agg(id ORDER BY id) FROM document GROUP BY n HAVING array_agg(id) IS NOT NULL "
    "AND count(*) > 1 ORDER BY array_agg(id ORDER BY id) DESC LIMIT 3",
    "SELECT count(DISTINCT n), count(DISTINCT title), sum(DISTINCT small) FILTER (WHERE n > 0) FROM document",
    "SELECT flag, sum(small::float8 / 2), avg(small::float4), avg(n::float8 / 4), count(ratio) FROM document "
    "GROUP BY flag ORDER BY flag",
    'SELECT max(title COLLATE "C"), array_agg(title ORDER BY title COLLATE "C" DESC, id) FROM document',
    "SELECT day, min(made), max(moment), array_agg(day), count(*) + 0 FROM document GROUP BY day ORDER BY day",
    "SELECT array_agg(meta ORDER BY id), jsonb_agg(meta ORDER BY id) FROM document",
    "SELECT (array_agg(title ORDER BY id))[2:3], (array_agg(n ORDER BY id DESC))[1] + 1 FROM document",
    "SELECT date_trunc('hour', moment), count(DISTINCT day) FROM document GROUP BY 1 ORDER BY 1, 2",
)
STYLES = ("ISO, DMY", "SQL, DMY", "German", "Postgres, MDY")


@pytest.mark.parametrize("form", [None, TEXT, BINARY])
@pytest.mark.parametrize("sql", LISTED)
def test_lists_of_values_are_those_of_one_database(sides: Pair, sql: str, form: int | None) -> None:
    question = Question(sql, ("2",)[: sql.count("$")], "ORDER BY" in sql)
    with sides.direct.connect() as direct, sides.proxied.connect() as proxied:
        for _ in range(2):
            answers = [comparable(ask(side, question, form), question.ordered) for side in (direct, proxied)]
            assert answers[1] == answers[0]
        assert any(b"merged" in (row[0] or b"") for row in proxied.rows(f"EXPLAIN (FORESHARD) {sql}"))


@pytest.mark.parametrize("style", STYLES)
def test_what_a_shard_finishes_shows_dates_in_the_sessions_style(sides: Pair, style: str) -> None:
    dated = [sql for sql in (*LISTED, *FINISHED) if any(name in sql for name in ("day", "moment", "made"))]
    asked = [sql for sql in dated if "$" not in sql]
    with sides.direct.connect() as direct, sides.proxied.connect() as proxied:
        for side in (direct, proxied):
            side.rows(f"SET DateStyle = '{style}'")
            side.rows("SET TimeZone = 'America/St_Johns'")
        for sql in asked:
            rows = [side.rows(sql) for side in (direct, proxied)]
            if "ORDER BY" not in sql:
                rows = [sorted(map(str, found)) for found in rows]
            assert rows[1] == rows[0], sql


DATED = (
    "SELECT day, id FROM document ORDER BY day DESC, id LIMIT 20",
    "SELECT id, moment FROM document ORDER BY moment NULLS FIRST, id OFFSET 3",
    "SELECT DISTINCT day FROM document ORDER BY day",
    "SELECT made, count(*) FROM document GROUP BY made ORDER BY made",
    "SELECT date_trunc('month', moment), count(*), max(n) FROM document GROUP BY 1 ORDER BY 1",
    "SELECT min(day), max(made), max(moment) FROM document",
    "SELECT day, max(made) FROM document GROUP BY day HAVING max(made) IS NOT NULL ORDER BY max(made), day",
)


@pytest.mark.parametrize("style", STYLES)
def test_dates_are_merged_in_any_style(sides: Pair, style: str) -> None:
    with sides.direct.connect() as direct, sides.proxied.connect() as proxied:
        for side in (direct, proxied):
            side.rows(f"SET DateStyle = '{style}'")
        for form in (None, TEXT, BINARY):
            for sql in DATED:
                answers = [comparable(ask(side, Question(sql, (), True), form), True) for side in (direct, proxied)]
                told = [[line for line in answer if not line.startswith("S ")] for answer in answers]
                assert told[1] == told[0], (sql, form)


def test_errors_of_texts_that_come_again_are_told_each_time(sides: Pair) -> None:
    with sides.proxied.connect() as proxied:
        for sql in ("SELECT sum(n + 1000) / 2 FROM document", "SELECT sum(n + 1000) FROM document"):
            assert [error_of(proxied.query(sql))["C"] for _ in range(4)] == ["22003"] * 4


def test_row_limits_count_the_rows_that_a_shard_has_finished(sides: Pair) -> None:
    sql = "SELECT n, count(*) + 1 FROM document GROUP BY n ORDER BY n"
    with sides.direct.connect() as direct, sides.proxied.connect() as proxied:
        expected, found = direct.rows(sql), []
        proxied.query("BEGIN")
        proxied.ask(parse(sql, "statement") + bind(name="statement", portal="p", results=[TEXT]) + SYNC)
        for size in (1, 2, 100):
            answer = proxied.ask(execute("p", size) + SYNC)
            found += [message.values for message in answer if message.kind == b"D"]
            assert proxied.rows("SELECT count(*) + 0 FROM document") == [[b"%d" % DOCUMENTS]]
        assert found == expected
        proxied.query("COMMIT")


def test_a_column_that_gets_another_type_is_merged_as_what_it_is_then(sides: Pair, shards: Shards) -> None:
    """The shards keep statements of texts that come again, and cannot run them any more then."""
    asked = ("SELECT min(weight), count(*) FROM symbol", "SELECT max(weight) + 1, count(*) FROM symbol")
    reference = sides.direct
    with reference.connect() as direct, sides.proxied.connect() as proxied:
        for kind in ("bigint", "integer"):
            for _ in range(4):
                for sql in asked:
                    assert comparable(proxied.query(sql), True) == comparable(direct.query(sql), True)
            change = f"ALTER TABLE symbol ALTER COLUMN weight TYPE {kind}"
            shards.execute(change)
            reference.run(change)


def test_row_limits_take_the_rows_in_turns_while_other_statements_come_in_between(sides: Pair) -> None:
    sql = "SELECT d.id, s.id, title FROM document d, symbol s WHERE document_id = d.id ORDER BY title, s.id OFFSET 3"
    with sides.direct.connect() as direct, sides.proxied.connect() as proxied:
        expected = direct.rows(sql)
        proxied.query("BEGIN")
        proxied.ask(parse(sql, "statement") + bind(name="statement", portal="p", results=[TEXT]) + SYNC)
        found: list[list[bytes | None]] = []
        for size in (1, 7, 0, 20, 300, 1000):
            if size == 0:
                assert proxied.rows("SELECT count(*) FROM symbol") == direct.rows("SELECT count(*) FROM symbol")
                continue
            answer = proxied.ask(execute("p", size) + SYNC)
            rows = [message.values for message in answer if message.kind == b"D"]
            left = len(expected) - len(found)
            assert len(rows) == min(size, left)
            assert ("s" in kinds(answer)) == (size <= left)
            found += rows
        assert found == expected
        proxied.query("COMMIT")


def test_a_limit_on_a_portal_that_is_never_finished_leaves_the_session_usable(sides: Pair) -> None:
    with sides.proxied.connect() as proxied:
        for _ in range(3):
            answer = proxied.ask(parse("SELECT id FROM symbol ORDER BY id") + bind() + execute("", 5) + SYNC)
            assert kinds(answer) == "12DDDDDsZ"
            assert proxied.rows("SELECT count(*) FROM document") == [[str(DOCUMENTS).encode()]]


def test_a_transaction_sees_its_own_writes_in_merged_reads(sides: Pair) -> None:
    with sides.proxied.connect() as proxied:
        proxied.query("BEGIN")
        proxied.rows("INSERT INTO document (n, title) VALUES (777777, 'ü')")
        assert proxied.rows("SELECT title FROM document ORDER BY title DESC NULLS LAST LIMIT 1") == [["ü".encode()]]
        assert proxied.rows("SELECT count(*) FROM document") == [[str(DOCUMENTS + 1).encode()]]
        proxied.query("ROLLBACK")
        assert proxied.rows("SELECT count(*) FROM document") == [[str(DOCUMENTS).encode()]]


@pytest.mark.parametrize("form", [None, TEXT, BINARY])
def test_an_error_on_one_shard_is_the_answer_and_the_session_goes_on(sides: Pair, form: int | None) -> None:
    """Rows of other shards may come before the error, as they may from one PostgreSQL."""
    with sides.direct.connect() as direct, sides.proxied.connect() as proxied:
        [[key]] = direct.rows("SELECT max(id) FROM document")
        assert key is not None
        question = Question(f"SELECT d.n / (d.id - {key.decode()}) AS x FROM document d ORDER BY d.id LIMIT 1000")
        answer = ask(proxied, question, form)
        assert error_of(answer)["C"] == "22012"
        assert "P" not in error_of(answer)
        assert kinds(answer).endswith("EZ")
        for sql in (
            "SELECT missing FROM document ORDER BY 1",
            "SELECT id FROM document ORDER BY id LIMIT -1",
            "SELECT DISTINCT n FROM document ORDER BY price",
            "SELECT count(*) FROM document ORDER BY n",
            "SELECT n, count(*) FROM document GROUP BY title",
            "SELECT id FROM document ORDER BY 2",
        ):
            codes = [error_of(ask(side, Question(sql), form))["C"] for side in (direct, proxied)]
            assert codes[0] == codes[1] or codes[1] == "0A000"
        assert proxied.rows("SELECT count(*) FROM document") == [[str(DOCUMENTS).encode()]]


def test_large_results_are_merged_with_little_memory_while_the_client_reads_slowly(sides: Pair) -> None:
    """Each shard gives megabytes; sorted by the text's own bytes."""
    sql = "SELECT d.id, repeat(d.title || 'x', 20000) FROM document d ORDER BY d.title DESC NULLS FIRST, d.id"
    with sides.direct.connect() as direct, sides.proxied.connect() as proxied:
        expected = direct.rows(sql)
        assert proxied.rows(sql) == expected
        assert sum(len(row[1] or b"") for row in expected) > 1_000_000


def test_explain_shows_the_plan_of_each_shard(sides: Pair) -> None:
    with sides.proxied.connect() as proxied:
        for sql in (
            "SELECT id FROM document ORDER BY n LIMIT 3",
            "SELECT * FROM document",
            "SELECT count(*) FROM symbol",
        ):
            answer = proxied.query(f"EXPLAIN (COSTS OFF) {sql}")
            lines = [(message.values[0] or b"").decode() for message in answer if message.kind == b"D"]
            heads = [line for line in lines if line.startswith("Shard ")]
            assert len(heads) == 3, lines
            assert lines[0] == heads[0]
            assert len(set(heads)) == 3
            assert sum("Scan" in line for line in lines) == 3
            assert answer[-2].body == b"EXPLAIN\0"


def test_texts_with_one_key_share_a_plan_whatever_their_literals(sides: Pair) -> None:
    with sides.direct.connect() as direct, sides.proxied.connect() as proxied:
        for title, limit in (("a", 3), ("o''clock", 20), ("", 0), ("Zebra", 100)):
            sql = f"SELECT id /* {title} */ FROM document WHERE title <> '{title}' ORDER BY n - 10, id LIMIT {limit}"
            assert proxied.rows(sql) == direct.rows(sql)


def test_settings_that_change_how_values_look_keep_the_order(sides: Pair) -> None:
    with sides.direct.connect() as direct, sides.proxied.connect() as proxied:
        for side in (direct, proxied):
            side.rows("SET DateStyle = 'SQL, DMY'")
        for sql in ("SELECT day FROM document ORDER BY day, id", "SELECT id FROM document ORDER BY n, id"):
            answers = [side.rows(sql) for side in (direct, proxied)]
            assert answers[1] == answers[0]
