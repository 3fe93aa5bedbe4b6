"""Pipelines, transactions and settings over several shards: nothing is answered twice, out of turn, or half done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime

import pytest

from tests.support.messages import (
    BINARY,
    FLUSH,
    SYNC,
    bind,
    close_portal,
    describe_portal,
    execute,
    extended,
    parse,
    query,
    startup,
)
from tests.support.postgres import TestInstances
from tests.support.raw import Closed, RawConnection, error_of, kinds, send_cancel
from tests.support.sharded import ROOTS, Deployment, deployment
from tests.support.waiting import wait_until

NOT_BUILT = "0A000"


@pytest.fixture(scope="module")
def deployed(test_instances: TestInstances, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A deployment with few backends."""
    with deployment(test_instances, tmp_path_factory.mktemp("shards"), pool={"size": 2}) as made:
        yield made


@pytest.fixture
def client(deployed: Deployment) -> Iterator[RawConnection]:
    """One client; after it nothing may be left."""
    with deployed.server.connect() as connection:
        yield connection
    deployed.come_to_rest()


def settings(client: RawConnection, deployed: Deployment, name: str) -> set[str]:
    """What a setting is on the client's backend of each shard."""
    sql = "SELECT current_setting('{}') FROM root WHERE id = {}"
    return {client.value(sql.format(name, keys[0])) for keys in deployed.keys}


@pytest.mark.parametrize(
    "asked",
    [
        extended("SELECT no_such_column FROM root"),
        extended("SELECT id FROM root WHERE n = $1", [b"no number"]),
        extended("SELECT 1 / (n - n) FROM root"),
        parse("SELECT 1 / (n - n) FROM root") + bind() + describe_portal() + execute(rows_max=1),
        parse("SELECT no_such_column FROM root") + bind() + FLUSH,
        query("SELECT 1 / (n - n) FROM root"),
    ],
)
def test_what_fails_on_every_shard_is_told_once(client: RawConnection, asked: bytes) -> None:
    answer = kinds(client.ask(asked if asked[:1] == b"Q" else asked + SYNC))
    assert answer.count("E") == 1
    assert answer.endswith("EZ")
    assert len(client.rows("SELECT id FROM root")) == ROOTS


@pytest.mark.parametrize("rows_max", [0, 1, 7, ROOTS - 1, ROOTS, ROOTS + 1])
def test_a_row_limit_holds_over_all_shards(client: RawConnection, rows_max: int) -> None:
    client.rows("BEGIN")
    client.send(parse("SELECT id FROM root"), bind(portal="p"), FLUSH)
    client.read_until(b"2")
    heard = []
    while not heard or heard[-1].kind == b"s":
        client.send(execute("p", rows_max), FLUSH)
        heard += client.read_until(b"Cs")
        assert heard[-1].kind == b"C" or kinds(heard).count("D") % rows_max == 0
    assert kinds(heard).count("D") == ROOTS
    assert kinds(client.ask(close_portal("p"), bind(portal="p"), close_portal("p"), SYNC)) == "323Z"
    client.rows("COMMIT")


def test_a_portal_left_half_read_does_not_shorten_the_next_result(client: RawConnection) -> None:
    assert kinds(client.ask(parse("SELECT id FROM root"), bind(), execute(rows_max=3), SYNC)) == "12DDDsZ"
    assert kinds(client.query("SELECT id FROM root")) == "T" + "D" * ROOTS + "CZ"


def test_a_write_is_undone_by_a_later_failure_on_another_shard_of_its_pipeline(
    deployed: Deployment, client: RawConnection
) -> None:
    for round_, (own, other) in enumerate([(0, 1), (1, 2), (2, 0), (0, 2)]):
        key, tag = deployed.keys[own][0], f"pipeline {round_}"
        answer = client.ask(
            extended(f"INSERT INTO child (root_id, tag) VALUES ({key}, '{tag}')"),
            extended(f"SELECT 1 / (n - n) FROM root WHERE id = {deployed.keys[other][0]}"),
            SYNC,
        )
        assert kinds(answer).endswith("EZ")
        assert deployed.count("child", tag) == 0


@pytest.mark.parametrize("refused", ["SELECT * FROM root LIMIT 1 FOR UPDATE SKIP LOCKED", "BEGIN", "SELECT 1 / 0"])
def test_a_write_is_undone_when_a_query_in_its_pipeline_fails(
    deployed: Deployment, client: RawConnection, refused: str
) -> None:
    key = deployed.keys[1][0]
    client.send(extended(f"INSERT INTO child (root_id, tag) VALUES ({key}, 'undone')"), query(refused))
    assert kinds(client.read_until()).endswith("CEZ")
    client.send(extended("SELECT n FROM root WHERE id = 1"), SYNC)
    assert kinds(client.read_until()) == "12TDCZ"
    assert deployed.count("child", "undone") == 0


def test_answers_keep_the_order_of_the_messages(deployed: Deployment, client: RawConnection) -> None:
    client.ask(parse("SELECT 1", "known"), SYNC)
    asked = parse("SELECT n FROM root WHERE id = $1", "new") + bind(name="known") + execute() + parse("BEGIN", "begin")
    asked += bind(name="known") + close_portal() + parse("SELECT n FROM root") + bind(name="begin")
    assert kinds(client.ask(asked, SYNC)) == "12DC12312Z"


def test_a_query_behind_a_failure_is_skipped_until_sync(client: RawConnection) -> None:
    assert kinds(client.ask(parse("SELEC"), query("SELECT 1"), SYNC)) == "EZ"
    assert kinds(client.ask(extended("SELECT 1 / 0"), query("SELECT 1"), SYNC)) == "1EZ"
    client.send(parse("SELECT 2"), query("SELECT 1"))
    assert kinds(client.read_until()) == "1TDCZ"
    assert kinds(client.ask(SYNC)) == "Z"
    assert client.value("SELECT 1") == "1"


def test_a_portal_ends_with_its_transaction(client: RawConnection) -> None:
    assert kinds(client.ask(parse("SELECT 1"), bind(portal="p"), SYNC)) == "12Z"
    assert error_of(client.ask(execute("p"), SYNC))["C"] == "34000"
    assert kinds(client.ask(bind(portal="p"), execute("p"), SYNC)) == "2DCZ"


def test_a_bind_that_came_with_the_pipeline_before_it_can_be_executed(client: RawConnection) -> None:
    client.send(extended("SELECT 1"), SYNC, bind(), FLUSH)
    assert kinds(client.read_until(b"Z")) == "12TDCZ"
    assert kinds(client.read_until(b"2")) == "2"
    assert kinds(client.ask(execute(), SYNC)) == "DCZ"


def test_a_string_never_ends_a_transaction_on_one_of_its_shards_only(
    deployed: Deployment, client: RawConnection
) -> None:
    for end, left in (("ROLLBACK", 0), ("COMMIT", 1)):
        client.rows("BEGIN")
        client.rows(f"UPDATE root SET tag = 'whole' WHERE id = {deployed.keys[2][0]}")
        answer = client.query(f"SELECT count(*) FROM plain; {end}")
        assert kinds(answer) == "TDCCZ"
        assert answer[-1].body == b"I"
        assert deployed.count("root", "whole") == left


def test_a_setting_rolled_back_is_rolled_back_on_every_shard(deployed: Deployment, client: RawConnection) -> None:
    client.rows("BEGIN")
    client.rows("SET application_name = 'tentative'")
    assert settings(client, deployed, "application_name") == {"tentative"}
    client.rows("ROLLBACK")
    assert settings(client, deployed, "application_name") == {""}
    client.rows("BEGIN")
    client.rows("SAVEPOINT a")
    client.rows("SET application_name = 'tentative'")
    client.rows("ROLLBACK TO a")
    client.rows("SET application_name = 'kept'")
    client.rows("COMMIT")
    assert settings(client, deployed, "application_name") == {"kept"}


def test_a_setting_outlives_a_rollback_of_nothing_on_shards_not_used_before(
    deployed: Deployment, client: RawConnection
) -> None:
    client.rows("BEGIN")
    client.rows("COMMIT")
    client.rows("SET application_name = 'mine'")
    client.rows("ROLLBACK")
    client.rows("DEALLOCATE ALL")
    assert settings(client, deployed, "application_name") == {"mine"}


@pytest.mark.parametrize("statement", ["DISCARD TEMP", "DISCARD PLANS", "DISCARD SEQUENCES"])
def test_prepared_statements_outlive_what_discards_other_things(client: RawConnection, statement: str) -> None:
    client.ask(parse("SELECT n FROM root WHERE id = 1", "s"), SYNC)
    client.rows(statement)
    assert kinds(client.ask(bind(name="s"), execute(), SYNC)) == "2DCZ"


@pytest.mark.parametrize("statement", ["DEALLOCATE ALL", "DISCARD ALL"])
def test_names_are_free_again_once_all_statements_were_dropped(client: RawConnection, statement: str) -> None:
    client.ask(parse("SELECT n FROM root WHERE id = 1", "s"), SYNC)
    client.rows(statement)
    assert error_of(client.ask(bind(name="s"), SYNC))["C"] == "26000"
    assert kinds(client.ask(parse("SELECT 2", "s"), bind(name="s"), execute(), SYNC)) == "12DCZ"


def test_a_rollback_that_leads_a_string_ends_a_failed_transaction(client: RawConnection) -> None:
    client.rows("BEGIN")
    client.query("SELECT 1 / 0")
    assert kinds(client.query("ROLLBACK; SELECT count(*) FROM plain")) == "CTDCZ"
    client.rows("BEGIN")
    client.query("SELECT count(*) FROM root")
    assert kinds(client.query("ROLLBACK; SELECT count(*) FROM plain")) == "CTDCZ"


@pytest.mark.parametrize(
    "options",
    ["-c search-path=x", "-c SEARCH_PATH=x", r"-c sea\rch_path=x", "-c Foreshard.bucket=1", "--search-path=x"],
)
def test_no_spelling_of_a_start_up_option_moves_the_names_of_tables(deployed: Deployment, options: str) -> None:
    with deployed.server.open() as connection:
        answer = connection.start(deployed.server.user, deployed.server.database, options=options)
        assert error_of(answer)["C"] == NOT_BUILT


def hold(stack: ExitStack, deployed: Deployment, shard: int, count: int) -> list[RawConnection]:
    """Clients that keep that many backends of a shard in transactions."""
    clients = [stack.enter_context(deployed.server.connect()) for _ in range(count)]
    for each in clients:
        each.rows("BEGIN")
        each.rows(f"SELECT n FROM root WHERE id = {deployed.keys[shard][0]}")
    return clients


def test_a_client_denied_one_shard_keeps_no_other(test_instances: TestInstances, deployed: Deployment) -> None:
    with ExitStack() as stack:
        denied = stack.enter_context(deployed.server.connect())
        hold(stack, deployed, 0, 2)
        denied.send(query("SELECT id FROM root"))
        wait_until(lambda: any(row["cl_waiting"] != "0" for row in deployed.pools()))
        send_cancel(*denied.address, denied.pid, denied.secret)
        assert error_of(denied.read_until())["C"] == "57014"
        hold(stack, deployed, 1, 2)
        hold(stack, deployed, 2, 2)
    deployed.come_to_rest()


def test_a_client_that_leaves_while_it_waits_leaves_the_line(deployed: Deployment) -> None:
    with ExitStack() as stack:
        hold(stack, deployed, 0, 2)
        with deployed.server.connect() as waiting:
            waiting.send(query("SELECT id FROM root"))
            wait_until(lambda: any(row["cl_waiting"] != "0" for row in deployed.pools()))
        wait_until(lambda: all(row["cl_waiting"] == "0" for row in deployed.pools()))
        hold(stack, deployed, 1, 2)
    deployed.come_to_rest()


def test_the_console_tells_since_when_a_client_works_and_for_how_long_it_waits(deployed: Deployment) -> None:
    with ExitStack() as stack:
        holders = hold(stack, deployed, 0, 2)
        waiting = stack.enter_context(deployed.server.connect())
        waiting.send(query("SELECT id FROM root"))
        wait_until(lambda: any(row["state"] == "waiting" for row in deployed.show("CLIENTS")))
        clients = {row["remote_pid"]: row for row in deployed.show("CLIENTS")}
        assert int(clients[str(waiting.pid)]["wait_us"] or 0) > 0
        assert all(clients[str(holder.pid)]["wait_us"] == "0" for holder in holders)
        for row in (*clients.values(), *deployed.show("SERVERS")):
            told = datetime.strptime(f"{row['request_time']}00", "%Y-%m-%d %H:%M:%S%z")
            assert 0 <= (datetime.now(UTC) - told).total_seconds() < 600
    deployed.come_to_rest()


def test_clients_that_each_hold_what_the_other_needs_next_do_not_wait_for_each_other(deployed: Deployment) -> None:
    with ExitStack() as stack:
        clients = [*hold(stack, deployed, 0, 2), *hold(stack, deployed, 1, 2)]
        for client, shard in zip(clients, (1, 1, 0, 0), strict=True):
            client.rows(f"SELECT n FROM root WHERE id = {deployed.keys[shard][0]}")
        waiting = stack.enter_context(deployed.server.connect())
        waiting.send(query(f"SELECT n FROM root WHERE id = {deployed.keys[0][0]}"))
        wait_until(lambda: any(row["cl_waiting"] != "0" for row in deployed.pools()))  # who begins stands in line
        for client in clients:
            client.rows("COMMIT")
        assert "E" not in kinds(waiting.read_until())
    deployed.come_to_rest()
    wait_until(lambda: all(int(str(row["sv_idle"])) <= 2 for row in deployed.pools()))  # pool.size


def test_pools_of_parameters_that_nobody_uses_are_dropped(deployed: Deployment) -> None:
    for number in range(30):
        with deployed.server.connect(application_name=f"program {number}") as connection:
            connection.rows("SELECT id FROM root")
    wait_until(lambda: len(deployed.pools()) <= 2 * (3 + 1))  # the query node has pools, too
    deployed.come_to_rest()


def test_a_pool_kept_busy_gives_way_to_another_that_starves(deployed: Deployment) -> None:
    with ExitStack() as stack:
        busy = [stack.enter_context(deployed.server.connect()) for _ in range(4)]
        for each in busy:
            each.send(query("SELECT pg_sleep(0.05)"))
        other = stack.enter_context(deployed.server.open())
        other.socket.setblocking(False)
        parameters = {"user": deployed.server.user, "database": deployed.server.database, "application_name": "other"}
        other.send(startup(parameters))

        def is_answered() -> bool:
            for each in busy:
                each.read_until()
                each.send(query("SELECT pg_sleep(0.05)"))
            try:
                return bool(other.socket.recv(1))
            except BlockingIOError:
                return False

        wait_until(is_answered)
        for each in busy:
            each.read_until()
    deployed.come_to_rest()


def test_a_text_that_is_cast_to_a_key_is_a_text_in_binary_too(deployed: Deployment, client: RawConnection) -> None:
    for keys in deployed.keys:
        for shown in (b"%d" % keys[0], b"%08d" % keys[0], b"%04d" % keys[0], b" %d" % keys[0]):
            asked = parse("SELECT id FROM root WHERE id = $1::bigint", types=[25]) + bind([shown], formats=[BINARY])
            answer = client.ask(asked, execute(), SYNC)
            assert [message.values for message in answer if message.kind == b"D"] == [[b"%d" % keys[0]]]


@pytest.mark.parametrize("parameters", [{"client_encoding": "LATIN1"}, {"options": "-c client_encoding=LATIN1"}])
def test_an_encoding_that_keys_are_not_read_in_is_refused(deployed: Deployment, parameters: dict[str, str]) -> None:
    with deployed.server.open() as connection:
        answer = connection.start(deployed.server.user, deployed.server.database, **parameters)
        assert error_of(answer)["C"] == NOT_BUILT
    for encoding in ("UTF8", "'utf-8'", "SQL_ASCII"):
        with deployed.server.connect(client_encoding=encoding) as connection:
            assert len(connection.rows("SELECT id FROM root")) == ROOTS


@pytest.mark.parametrize("sql", ["UPDATE root SET n = n + 1 WHERE id = {key}", "SELECT count(*) FROM root"])
def test_nothing_runs_on_a_shard_that_lacks_the_role_of_a_session(deployed: Deployment, sql: str) -> None:
    key = deployed.keys[1][0]
    seen = f"SELECT n FROM root WHERE id = {key}"
    deployed.shards.execute("CREATE ROLE only_here", on=0)
    try:
        with deployed.server.connect() as client:
            before = client.value(seen)
            client.rows("SET ROLE only_here")
            with pytest.raises(Closed):
                client.query(sql.format(key=key))
            with deployed.server.connect() as other:
                assert other.value(seen) == before
    finally:
        deployed.come_to_rest()
        deployed.shards.execute("DROP ROLE only_here", on=0)
