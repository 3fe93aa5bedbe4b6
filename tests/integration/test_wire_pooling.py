"""Many clients over few backends: everyone gets the own answers, and nobody another's session state."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.integration.conftest import SMALL_POOL_SIZE, running_pair
from tests.support.conversation import hear, simple
from tests.support.messages import (
    COPY_DONE,
    FLUSH,
    SYNC,
    bind,
    close_statement,
    copy_data,
    describe_statement,
    execute,
    extended,
    parse,
    query,
)
from tests.support.postgres import TestInstances
from tests.support.raw import RawConnection, error_of, kinds
from tests.support.servers import Pair, Server
from tests.support.waiting import wait_until

CLIENTS = 50
TOO_MANY_CONNECTIONS = "53300"


@pytest.fixture
def clients(small_pair: Pair) -> Iterator[list[RawConnection]]:
    """Many more clients than backends."""
    with ExitStack() as stack:
        yield [stack.enter_context(small_pair.proxied.connect()) for _ in range(CLIENTS)]


def backend_pids(server: Server, count: int = SMALL_POOL_SIZE) -> set[str]:
    """The backends that `count` transactions open at once are served by."""
    with ExitStack() as stack:
        connections = [stack.enter_context(server.connect()) for _ in range(count)]
        for connection in connections:
            connection.rows("BEGIN")
        found = {connection.value("SELECT pg_backend_pid()") for connection in connections}
        for connection in connections:
            connection.rows("COMMIT")
    return found


def seen_by_every_backend(server: Server, sql: str) -> set[str]:
    """What a query answers on each backend of the small pool, asked by fresh clients."""
    with ExitStack() as stack:
        connections = [stack.enter_context(server.connect()) for _ in range(SMALL_POOL_SIZE)]
        for connection in connections:
            connection.rows("BEGIN")
        pids = {connection.value("SELECT pg_backend_pid()") for connection in connections}
        assert len(pids) == SMALL_POOL_SIZE
        found = {connection.value(sql) for connection in connections}
        for connection in connections:
            connection.rows("COMMIT")
    return found


def test_no_more_backends_than_the_pool_has(clients: list[RawConnection]) -> None:
    for client in clients:
        client.send(query("SELECT pg_backend_pid()"))
    pids = {client.read_until()[1].values[0] for client in clients}
    assert 1 <= len(pids) <= SMALL_POOL_SIZE


def test_every_client_gets_its_own_answers(clients: list[RawConnection]) -> None:
    for turn in range(20):
        for index, client in enumerate(clients):
            if (index + turn) % 2:
                client.send(query(f"SELECT {index}, {turn}"))
            else:
                client.send(extended("SELECT $1::int, $2::int", [b"%d" % index, b"%d" % turn]), SYNC)
        for index, client in enumerate(clients):
            (row,) = [message.values for message in client.read_until() if message.kind == b"D"]
            assert row == [b"%d" % index, b"%d" % turn]


def test_transactions_of_many_clients_take_turns(small_pair: Pair, clients: list[RawConnection]) -> None:
    small_pair.direct.run(
        "DROP TABLE IF EXISTS counter", "CREATE TABLE counter (n integer)", "INSERT INTO counter VALUES (0)"
    )
    for client in clients:
        client.send(query("BEGIN"), query("UPDATE counter SET n = n + 1"), query("COMMIT"))
    for client in clients:
        assert [client.read_until()[-1].body for _ in range(3)] == [b"T", b"T", b"I"]
    with small_pair.direct.connect() as direct:
        assert direct.value("SELECT n FROM counter") == str(CLIENTS)


def test_prepared_statements_with_one_name_stay_apart(clients: list[RawConnection]) -> None:
    """Every client calls its statement `s`, and meets backends where `s` was another client's."""
    for index, client in enumerate(clients):
        client.send(parse(f"SELECT {index}, $1::int", "s"), SYNC)
    for client in clients:
        assert kinds(client.read_until()) == "1Z"
    draw = random.Random(1)
    for turn in range(20):
        chosen = draw.sample(range(CLIENTS), CLIENTS)
        for index in chosen:
            clients[index].send(bind([b"%d" % turn], name="s"), execute(), SYNC)
        for index in chosen:
            heard = clients[index].read_until()
            assert kinds(heard) == "2DCZ"
            assert heard[1].values == [b"%d" % index, b"%d" % turn]


def test_prepared_statements_are_described_on_any_backend(clients: list[RawConnection]) -> None:
    for index, client in enumerate(clients):
        client.send(parse(f"SELECT 1 AS column_{index}, $1::text", "s"), SYNC)
    for client in clients:
        client.read_until()
    for _ in range(3):
        for client in clients:
            client.send(describe_statement("s"), SYNC)
        for index, client in enumerate(clients):
            heard = client.read_until()
            assert kinds(heard) == "tTZ"
            assert b"column_%d\0" % index in heard[1].body


def test_closed_statements_are_gone_and_their_names_free(clients: list[RawConnection]) -> None:
    for turn in range(3):
        for index, client in enumerate(clients):
            client.send(
                parse(f"SELECT {index * 10 + turn}", "s"), bind(name="s"), execute(), close_statement("s"), SYNC
            )
        for index, client in enumerate(clients):
            heard = client.read_until()
            assert kinds(heard) == "12DC3Z"
            assert heard[2].values == [b"%d" % (index * 10 + turn)]
    for client in clients:
        client.send(bind(name="s"), execute(), SYNC)
    assert {error_of(client.read_until())["C"] for client in clients} == {"26000"}


def test_the_same_statement_of_many_clients_is_prepared_once_per_backend_or_seldom(
    small_pair: Pair, clients: list[RawConnection]
) -> None:
    """Backends do not fill with a copy per client and execution."""
    for turn in range(3):
        for index, client in enumerate(clients):
            client.send(
                parse("SELECT 'shared', $1::int", f"s{turn}"), bind([b"%d" % index], name=f"s{turn}"), execute(), SYNC
            )
        for index, client in enumerate(clients):
            assert client.read_until()[2].values[1] == b"%d" % index
    counts = seen_by_every_backend(
        small_pair.proxied, "SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE '%shared%$1%'"
    )
    assert all(int(count) <= 3 * CLIENTS for count in counts)


def test_the_unnamed_statement_survives_a_change_of_backends(clients: list[RawConnection]) -> None:
    for index, client in enumerate(clients):
        client.send(parse(f"SELECT {index}, $1::int"), SYNC)
    for client in clients:
        client.read_until()
    for turn in range(5):
        for index in random.Random(turn).sample(range(CLIENTS), CLIENTS):
            clients[index].send(bind([b"%d" % turn]), execute(), SYNC)
        for index, client in enumerate(clients):
            heard = client.read_until()
            assert kinds(heard) == "2DCZ"
            assert heard[1].values == [b"%d" % index, b"%d" % turn]


def test_one_pipeline_of_many_syncs_among_many_clients(clients: list[RawConnection]) -> None:
    for index, client in enumerate(clients):
        client.send(*(extended("SELECT $1::int, $2::int", [b"%d" % index, b"%d" % turn]) + SYNC for turn in range(20)))
    for index, client in enumerate(clients):
        for turn in range(20):
            assert client.read_until()[3].values == [b"%d" % index, b"%d" % turn]


def test_an_error_of_one_client_is_heard_by_that_client_alone(clients: list[RawConnection]) -> None:
    for index, client in enumerate(clients):
        client.send(query(f"SELECT 100 / {index % 2}"))
    for index, client in enumerate(clients):
        assert kinds(client.read_until()) == ("TDCZ" if index % 2 else "EZ")


OWN_ADVISORY_LOCKS = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
# What a client may leave behind on its backend, and how another client would notice.
STATES = {
    "set": (["SET work_mem = '9MB'"], "SELECT current_setting('work_mem')"),
    "set by function": (["SELECT set_config('work_mem', '9MB', false)"], "SELECT current_setting('work_mem')"),
    "set role": (["SET ROLE pg_read_all_data"], "SELECT current_user"),
    "set session authorization": (["SET SESSION AUTHORIZATION pg_read_all_data"], "SELECT session_user"),
    "set in a committed transaction": (
        ["BEGIN", "SET work_mem = '9MB'", "COMMIT"],
        "SELECT current_setting('work_mem')",
    ),
    "set among others": (["SELECT 1; SET work_mem = '9MB'; SELECT 2"], "SELECT current_setting('work_mem')"),
    "set behind a comment": (["/* x */ SeT /* y */ work_mem TO '9MB'"], "SELECT current_setting('work_mem')"),
    "search path": (["SET search_path = pg_catalog"], "SHOW search_path"),
    "set names": (["SET NAMES 'LATIN1'"], "SHOW client_encoding"),
    "time zone": (["SET TIME ZONE 'Asia/Tokyo'"], "SHOW timezone"),
    "characteristics": (
        ["SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY"],
        "SELECT current_setting('default_transaction_read_only')",
    ),
    "temporary table": (["CREATE TEMP TABLE mine (a int)"], "SELECT to_regclass('pg_temp.mine') IS NULL"),
    "temporary table as": (["CREATE TEMP TABLE mine AS SELECT 1"], "SELECT to_regclass('pg_temp.mine') IS NULL"),
    "temporary table by select": (["SELECT 1 AS a INTO TEMP mine"], "SELECT to_regclass('pg_temp.mine') IS NULL"),
    "temporary view": (["CREATE TEMP VIEW mine AS SELECT 1"], "SELECT to_regclass('pg_temp.mine') IS NULL"),
    "temporary sequence": (["CREATE TEMP SEQUENCE mine"], "SELECT to_regclass('pg_temp.mine') IS NULL"),
    "schema of temporary objects": (
        ["CREATE TABLE pg_temp.mine (a int)"],
        "SELECT to_regclass('pg_temp.mine') IS NULL",
    ),
    "advisory lock": (["SELECT pg_advisory_lock(77)"], OWN_ADVISORY_LOCKS),
    "advisory lock tried": (["SELECT pg_try_advisory_lock_shared(77)"], OWN_ADVISORY_LOCKS),
    "prepare": (["PREPARE mine AS SELECT 1"], "SELECT count(*) FROM pg_prepared_statements WHERE name = 'mine'"),
    "listen": (["LISTEN mine"], "SELECT count(*) FROM pg_listening_channels()"),
    "held cursor": (
        ["BEGIN", "DECLARE mine CURSOR WITH HOLD FOR SELECT 1", "COMMIT"],
        "SELECT count(*) FROM pg_cursors WHERE name = 'mine'",
    ),
    "load": (["LOAD 'plpgsql'"], "SELECT 1"),
    "do block": (
        ["DO $$ BEGIN PERFORM set_config('work_mem', '9MB', false); END $$"],
        "SELECT current_setting('work_mem')",
    ),
    "custom setting": (["SET my.setting = 'x'"], "SELECT coalesce(current_setting('my.setting', true), '')"),
}


def assert_clean(pair: Pair, look: str) -> None:
    with pair.direct.connect() as fresh:
        untouched = fresh.value(look)
    assert seen_by_every_backend(pair.proxied, look) == {untouched}


def accepted(connection: RawConnection, statement: str, *, by_extended: bool) -> bool:
    """Whether it was done; the only error that may be heard instead is 0A000."""
    heard = connection.ask(*((extended(statement), SYNC) if by_extended else (query(statement),)))
    if "E" in kinds(heard):
        assert error_of(heard)["C"] == "0A000"
        return False
    return True


@pytest.mark.parametrize("by_extended", [False, True], ids=["simple", "extended"])
@pytest.mark.parametrize("name", STATES)
def test_session_state_is_kept_for_its_client_and_gone_with_it_or_refused(
    small_pair: Pair, name: str, by_extended: bool
) -> None:
    changes, look = STATES[name]
    if by_extended and ";" in changes[0]:
        changes = ["SET work_mem = '9MB'"]
    with small_pair.direct.connect() as direct:
        for change in changes:
            direct.rows(change)
        changed = direct.value(look)
    with small_pair.proxied.connect() as client:
        done = [accepted(client, change, by_extended=by_extended) for change in changes]
        if all(done):
            for _ in range(3):
                assert client.value(look) == changed
        else:
            client.query("ROLLBACK")
    assert_clean(small_pair, look)


def test_session_state_does_not_show_to_others_while_its_client_lives(small_pair: Pair) -> None:
    look = "SELECT current_setting('work_mem')"
    with small_pair.direct.connect() as direct:
        untouched = direct.value(look)
    with small_pair.proxied.connect() as client:
        pinned = accepted(client, "SET work_mem = '9MB'", by_extended=False)
        for _ in range(10):
            with small_pair.proxied.connect() as other:
                assert other.value(look) == untouched
            if pinned:
                assert client.value(look) == "9MB"


def test_a_setting_rolled_back_is_not_kept(small_pair: Pair) -> None:
    statements = ["BEGIN", "SET work_mem = '9MB'", "ROLLBACK", "SHOW work_mem"]
    expected, heard = hear(small_pair.direct, simple(*statements)), hear(small_pair.proxied, simple(*statements))
    assert heard == expected or any("0A000" in line for line in heard)
    assert_clean(small_pair, "SHOW work_mem")


def test_a_failed_setting_is_not_kept(small_pair: Pair) -> None:
    with small_pair.proxied.connect() as client:
        assert error_of(client.query("SET work_mem = 'nonsense'"))["C"] in ("22023", "0A000")
    assert_clean(small_pair, "SHOW work_mem")


@pytest.mark.parametrize(
    "statement", ["DISCARD ALL", "RESET ALL", "RESET work_mem", "DEALLOCATE ALL", "UNLISTEN *", "DISCARD TEMP"]
)
def test_clean_up_statements_answer_as_postgres_does(small_pair: Pair, statement: str) -> None:
    steps = simple(statement, "SELECT 1")
    assert hear(small_pair.proxied, steps) == hear(small_pair.direct, steps)


def test_discard_all_does_not_take_prepared_statements_from_others(small_pair: Pair) -> None:
    with small_pair.proxied.connect() as client, small_pair.proxied.connect() as other:
        client.ask(parse("SELECT 'still there'", "s"), SYNC)
        for _ in range(5):
            other.query("DISCARD ALL")
            other.query("DEALLOCATE ALL")
            assert client.ask(bind(name="s"), execute(), SYNC)[1].values == [b"still there"]


def test_prepare_and_execute_by_sql_work_or_are_refused(small_pair: Pair) -> None:
    steps = simple("PREPARE mine (int) AS SELECT $1 + 1", "EXECUTE mine(41)", "DEALLOCATE mine", "EXECUTE mine(1)")
    expected, heard = hear(small_pair.direct, steps), hear(small_pair.proxied, steps)
    assert heard == expected or "0A000" in heard[0]


def test_a_setting_made_inside_a_function_is_gone_for_the_next_client(small_pair: Pair) -> None:
    body = "SELECT pg_catalog.set_config('TimeZone', 'Asia/Tokyo', false)"
    small_pair.direct.run(f"CREATE OR REPLACE FUNCTION move_clock() RETURNS text LANGUAGE sql AS $${body}$$")
    small_pair.proxied.run("SELECT move_clock()", "BEGIN", "SET LOCAL TimeZone = 'Asia/Tokyo'", "COMMIT")
    assert "Asia/Tokyo" not in seen_by_every_backend(small_pair.proxied, "SELECT current_setting('TimeZone')")


def test_notifications_reach_the_listener_or_listening_is_refused(small_pair: Pair) -> None:
    with small_pair.proxied.connect() as listener, small_pair.direct.connect() as notifier:
        if accepted(listener, "LISTEN news", by_extended=False):
            notifier.rows("NOTIFY news, 'hello'")
            assert listener.read_message().body[4:] == b"news\0hello\0"
            assert listener.value("SELECT 1") == "1"
    assert_clean(small_pair, "SELECT count(*) FROM pg_listening_channels()")


@pytest.mark.parametrize("end", ["close", "abort", "terminate"])
@pytest.mark.parametrize("failed", [False, True], ids=["open", "failed"])
def test_a_transaction_left_by_its_client_is_rolled_back(small_pair: Pair, end: str, failed: bool) -> None:
    small_pair.direct.run("DROP TABLE IF EXISTS left_behind", "CREATE TABLE left_behind (a integer)")
    for _ in range(2 * SMALL_POOL_SIZE):
        client = small_pair.proxied.connect()
        client.rows("BEGIN")
        client.rows("INSERT INTO left_behind VALUES (1)")
        if failed:
            client.query("SELECT 1/0")
        if end == "terminate":
            client.send(b"X\0\0\0\4")
            client.read_to_end()
        (client.abort if end == "abort" else client.close)()
    with small_pair.proxied.connect() as client:
        wait_until(
            lambda: client.value("SELECT count(*) FROM pg_locks WHERE relation = 'left_behind'::regclass") == "0"
        )
        assert client.value("SELECT count(*) FROM left_behind") == "0"


@pytest.mark.parametrize("sent", [b"", copy_data(b"1\n"), copy_data(b"1\n") + b"d\0\0\1\0half"])
def test_a_copy_left_by_its_client_stores_nothing(small_pair: Pair, sent: bytes) -> None:
    small_pair.direct.run("DROP TABLE IF EXISTS left_behind", "CREATE TABLE left_behind (a integer)")
    for abort in (False, True, False, True):
        client = small_pair.proxied.connect()
        client.send(query("COPY left_behind FROM STDIN"))
        client.read_until(b"G")
        client.send(sent)
        (client.abort if abort else client.close)()
    with small_pair.proxied.connect() as client:
        wait_until(
            lambda: client.value("SELECT count(*) FROM pg_locks WHERE relation = 'left_behind'::regclass") == "0"
        )
        assert client.value("SELECT count(*) FROM left_behind") == "0"


def test_a_client_that_leaves_between_parse_and_sync_frees_the_backend(small_pair: Pair) -> None:
    for _ in range(4 * SMALL_POOL_SIZE):
        with small_pair.proxied.connect() as client:
            client.send(parse("SELECT 1"), bind(), execute(), FLUSH)
            client.read_until(b"C")
    assert len(backend_pids(small_pair.proxied)) == SMALL_POOL_SIZE


def test_a_client_that_leaves_in_the_middle_of_a_result_frees_the_backend(small_pair: Pair) -> None:
    for index in range(2 * SMALL_POOL_SIZE):
        client = small_pair.proxied.connect()
        client.send(query("SELECT repeat('x', 1000) FROM generate_series(1, 30000)"))
        client.read_until(b"D")
        (client.abort if index % 2 else client.close)()
    assert len(backend_pids(small_pair.proxied)) == SMALL_POOL_SIZE


def test_copy_by_many_clients_at_once(small_pair: Pair, clients: list[RawConnection]) -> None:
    small_pair.direct.run("DROP TABLE IF EXISTS filled", "CREATE TABLE filled (a integer, b text)")
    for index, client in enumerate(clients):
        rows = b"".join(b"%d\tvalue %d\n" % (index, row) for row in range(50))
        client.send(query("COPY filled FROM STDIN"), copy_data(rows), COPY_DONE)
    for client in clients:
        assert kinds(client.read_until()) == "GCZ"
    with small_pair.direct.connect() as direct:
        assert direct.value("SELECT count(*) FROM filled") == str(50 * CLIENTS)


def test_a_wait_for_a_backend_ends_with_an_error(
    test_instances: TestInstances, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pool = {"size": 1, "wait_timeout": "300ms"}
    for pair, _ in running_pair(test_instances, tmp_path_factory.mktemp("waiting"), pool=pool):
        with pair.proxied.connect() as holder, pair.proxied.connect() as waiting:
            holder.rows("BEGIN")
            holder.rows("SELECT 1")
            waiting.send(query("SELECT 1"))
            assert waiting.read_message().fields["C"] == TOO_MANY_CONNECTIONS
            holder.rows("COMMIT")
        with pair.proxied.connect() as client:
            assert client.value("SELECT 1") == "1"


def test_a_query_inside_a_pipeline_spoils_no_backend_for_others(small_pair: Pair) -> None:
    """PostgreSQL answers XX000 to the first statement after Execute, Query, Sync; it must not be another client's."""
    for _ in range(2 * SMALL_POOL_SIZE):
        with small_pair.proxied.connect() as client:
            client.ask(extended("SELECT 1"), query("SELECT 2"))
            client.ask(SYNC)
        with small_pair.proxied.connect() as other:
            assert kinds(other.ask(extended("SELECT 3"), SYNC)) == "12TDCZ"
