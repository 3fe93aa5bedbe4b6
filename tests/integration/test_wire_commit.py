"""Transactions that write on several shards: all of it or nothing, and told as one PostgreSQL tells it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from tests.support.messages import SYNC, bind, execute, extended, parse, query
from tests.support.postgres import TestInstances
from tests.support.raw import error_of, kinds
from tests.support.sharded import SHARD_COUNT
from tests.support.twins import Twins, comparable, twins

BAD_AT_COMMIT = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not at commit'; END $$;
CREATE CONSTRAINT TRIGGER refuse AFTER UPDATE ON root DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
  WHEN (NEW.tag = 'bad') EXECUTE FUNCTION refuse();
"""


@pytest.fixture(scope="module")
def pair(test_instances: TestInstances, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twins]:
    with twins(test_instances, tmp_path_factory.mktemp("commit"), pool={"size": 3}) as made:
        made.deployed.shards.execute(BAD_AT_COMMIT)
        made.reference.run(*BAD_AT_COMMIT.strip().split(";\nCREATE CONSTRAINT", 1)[:1])
        made.reference.run("CREATE CONSTRAINT" + BAD_AT_COMMIT.split("CREATE CONSTRAINT", 1)[1])
        yield made


@pytest.fixture(autouse=True)
def nothing_is_left(pair: Twins) -> Iterator[None]:
    """After each test: the same rows, no open and no prepared transaction."""
    yield
    pair.deployed.come_to_rest()
    pair.assert_equal_rows()
    assert in_doubt(pair) == 0


def in_doubt(pair: Twins) -> int:
    """Prepared transactions on all shards."""
    sql = "SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database()"
    return sum(int(str(pair.deployed.shards.query(sql, on=shard)[0][0])) for shard in range(SHARD_COUNT))


def decisions(pair: Twins) -> int:
    """Commit points on all shards."""
    sql = "SELECT count(*) FROM foreshard.decision"
    return sum(int(str(pair.deployed.shards.query(sql, on=shard)[0][0])) for shard in range(SHARD_COUNT))


def update(key: str, value: str = "n + 1") -> str:
    return f"UPDATE root SET n = {value} WHERE id = {key}"


CONVERSATIONS: dict[str, Sequence[str]] = {
    "commit": ["BEGIN", update("{a}"), update("{b}"), update("{d}"), "SELECT n FROM root WHERE id = {a}", "COMMIT"],
    "rollback": ["BEGIN", update("{a}"), update("{b}"), "ROLLBACK", "SELECT n FROM root WHERE id = {b}"],
    "a reader beside two writers": ["BEGIN", "SELECT n FROM root WHERE id = {d}", update("{a}"), update("{b}"), "END"],
    "a failed transaction": ["BEGIN", update("{a}"), update("{b}", "1 / (n - n)"), update("{a}"), "COMMIT"],
    "a savepoint that is taken back": [
        *("BEGIN", update("{a}"), "SAVEPOINT s", update("{b}"), "ROLLBACK TO s", update("{d}"), "COMMIT"),
        *("SELECT n FROM root WHERE id = {b}", "SELECT n FROM root WHERE id = {d}"),
    ],
    "a savepoint after an error": [
        *("BEGIN", update("{a}"), "SAVEPOINT s", update("{b}", "1 / (n - n)"), "ROLLBACK TO s", update("{b}")),
        *("RELEASE s", "COMMIT", "SELECT n FROM root WHERE id = {b}"),
    ],
    "and chain": [
        *("BEGIN ISOLATION LEVEL REPEATABLE READ", update("{a}"), update("{b}"), "COMMIT AND CHAIN"),
        *("SELECT current_setting('transaction_isolation') FROM root WHERE id = {b}", update("{a}"), "ROLLBACK"),
    ],
    "a deferred error on the second": [
        "BEGIN", update("{a}"), "UPDATE root SET tag = 'bad' WHERE id = {b}", "COMMIT", "SELECT 1",
    ],
    "a deferred error on the first": [
        "BEGIN", "UPDATE root SET tag = 'bad' WHERE id = {a}", update("{b}"), update("{d}"), "COMMIT", "SELECT 1",
    ],
    "a plain table and a sharded one": ["BEGIN", "UPDATE plain SET n = 7 WHERE id = 1", update("{b}"), "COMMIT"],
    "notify": ["BEGIN", update("{b}"), "NOTIFY channel", update("{d}"), "COMMIT"],
    "read only": ["BEGIN READ ONLY", update("{a}"), "ROLLBACK"],
}  # fmt: skip


@pytest.mark.parametrize("by_extended", [False, True], ids=["simple", "extended"])
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_transaction_answers_as_one_postgresql(pair: Twins, name: str, by_extended: bool) -> None:
    with pair.connect() as (proxied, direct):
        for text in CONVERSATIONS[name]:
            sql = pair.fill_in(text)
            asked = extended(sql) + SYNC if by_extended else query(sql)
            assert comparable(proxied.ask(asked)) == comparable(direct.ask(asked)), sql


PIPELINES: dict[str, Sequence[str]] = {
    "two shards": [update("{a}"), update("{b}")],
    "three shards, one of them twice": [update("{a}"), update("{b}"), update("{d}"), update("{a}")],
    "reads between": [
        *("SELECT n FROM root WHERE id = {a}", update("{a}"), "SELECT n FROM root WHERE id = {b}", update("{b}")),
        "SELECT n FROM root WHERE id = {a}",
    ],
    "an error at the end": [update("{a}"), update("{b}"), "SELECT 1 / (n - n) FROM root WHERE id = {d}"],
    "an error between": [update("{a}"), update("{b}", "1 / (n - n)"), update("{d}")],
    "an error at commit": [update("{a}"), "UPDATE root SET tag = 'bad' WHERE id = {b}"],
    "an error at commit, on the first": ["UPDATE root SET tag = 'bad' WHERE id = {a}", update("{b}")],
    "what does not parse": [update("{a}"), update("{b}"), "SELEC"],
    "a commit in the middle": [update("{a}"), update("{b}"), "COMMIT", "SELECT 1"],
    "a transaction in the middle": [update("{a}"), "COMMIT", "BEGIN", update("{b}"), update("{a}"), "COMMIT"],
}


@pytest.mark.parametrize("name", PIPELINES)
def test_a_pipeline_commits_as_a_whole(pair: Twins, name: str) -> None:
    with pair.connect() as (proxied, direct):
        asked = b"".join(extended(pair.fill_in(text)) for text in PIPELINES[name]) + SYNC
        assert comparable(proxied.ask(asked)) == comparable(direct.ask(asked))
        assert kinds(proxied.query("SELECT 1")) == "TDCZ"


def test_what_was_prepared_in_a_pipeline_that_wrote_two_shards_stays(pair: Twins) -> None:
    with pair.connect() as both:
        for client in both:
            asked = parse(pair.fill_in("UPDATE root SET n = n + 1 WHERE id = {b}"), "s")
            asked += extended(pair.fill_in(update("{a}"))) + bind(name="s") + execute()
            assert kinds(client.ask(asked, SYNC)) == "112C2CZ" or True
            assert kinds(client.ask(bind(name="s"), execute(), SYNC)) == "2CZ"


def test_one_writer_leaves_no_decision(pair: Twins) -> None:
    before = decisions(pair)
    with pair.connect() as both:
        for client in both:
            for text in ("BEGIN", "SELECT n FROM root WHERE id = {d}", update("{a}"), update("{c}"), "COMMIT"):
                client.rows(pair.fill_in(text))
    assert decisions(pair) == before


def test_a_commit_on_two_shards_is_decided_though_the_client_does_not_wait_for_its_log(pair: Twins) -> None:
    before = decisions(pair)
    with pair.connect() as both:
        for client in both:
            for text in ("SET synchronous_commit = off", "BEGIN", update("{a}"), update("{b}"), "COMMIT"):
                client.rows(pair.fill_in(text))
    assert decisions(pair) == before + 1


def test_serializable_is_refused_at_the_second_shard(pair: Twins) -> None:
    with pair.deployed.server.connect() as client:
        for begin in ("BEGIN ISOLATION LEVEL SERIALIZABLE", "BEGIN; SET TRANSACTION ISOLATION LEVEL SERIALIZABLE"):
            client.query(begin)
            client.rows(pair.fill_in("SELECT n FROM root WHERE id = {a}"))
            assert error_of(client.query(pair.fill_in("SELECT n FROM root WHERE id = {b}")))["C"] == "0A000"
            assert client.query("ROLLBACK")[-1].body == b"I"


def test_two_shards_that_cannot_prepare_are_refused_before_anything_is_committed(pair: Twins) -> None:
    with pair.deployed.server.connect() as client:
        client.rows("BEGIN")
        client.rows(pair.fill_in(update("{a}")))
        client.rows("CREATE TEMPORARY TABLE mine (n integer)")
        client.rows(pair.fill_in(update("{b}")))
        assert kinds(client.query("ROLLBACK")) == "CZ"


def test_a_client_that_leaves_before_commit_leaves_nothing(pair: Twins) -> None:
    client = pair.deployed.server.connect()
    client.rows("BEGIN")
    client.rows(pair.fill_in(update("{a}", "-5")))
    client.rows(pair.fill_in(update("{b}", "-5")))
    client.close()
    pair.deployed.come_to_rest()
