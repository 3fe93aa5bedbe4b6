"""Strings of several statements over several shards answer, and leave behind, what one PostgreSQL would."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from tests.support import messages
from tests.support.postgres import TestInstances
from tests.support.raw import error_of, kinds
from tests.support.twins import Twins, comparable, twins


@pytest.fixture(scope="module")
def pair(test_instances: TestInstances, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twins]:
    with twins(test_instances, tmp_path_factory.mktemp("strings"), pool={"size": 3}) as made:
        yield made


CONVERSATIONS: dict[str, Sequence[str]] = {
    "reads of two shards": ["SELECT n FROM root WHERE id = {a}; SELECT n FROM root WHERE id = {b}"],
    "reads of three kinds": [
        "SELECT count(*) FROM plain; SELECT n FROM root WHERE id = {b}; SELECT 1; SELECT n FROM root WHERE id = {a};"
    ],
    "a write and a read elsewhere": [
        "UPDATE root SET n = n + 9 WHERE id = {a}; SELECT n FROM root WHERE id = {b}; SELECT n FROM root WHERE id = {a}"
    ],
    "writes of two shards": [
        "UPDATE root SET n = n + 1 WHERE id = {a}; UPDATE root SET n = n + 1 WHERE id = {b}; SELECT 1",
        "UPDATE root SET n = -1 WHERE id = {a}; UPDATE root SET n = 1 / (n - n) WHERE id = {b}",
        "UPDATE root SET n = -1 WHERE id = {a}; UPDATE root SET n = -1 WHERE id = {b}; ROLLBACK; SELECT 1",
    ],
    "an error takes back what was before it": [
        "UPDATE root SET n = -1 WHERE id = {a}; SELECT 1 / (n - n) FROM root WHERE id = {b}; SELECT 1",
        "SELECT n FROM root WHERE id = {a}",
    ],
    "an unknown column": ["SELECT n FROM root WHERE id = {a}; SELECT nothing FROM root WHERE id = {b}; SELECT 1"],
    "a whole transaction": [
        "BEGIN; UPDATE root SET n = n + 1 WHERE id = {a}; SELECT n FROM root WHERE id = {b}; COMMIT",
        "SELECT n FROM root WHERE id = {a}",
    ],
    "a transaction that fails": [
        "BEGIN; UPDATE root SET n = n + 1 WHERE id = {a}; SELECT 1 / 0; COMMIT",
        "SELECT 1",
        "COMMIT; SELECT n FROM root WHERE id = {a}",
    ],
    "a transaction over several strings": [
        "BEGIN; UPDATE root SET n = n + 1 WHERE id = {a}",
        "SELECT n FROM root WHERE id = {b}; ROLLBACK; SELECT n FROM root WHERE id = {a}",
    ],
    "rollback of a failed transaction elsewhere": [
        "BEGIN",
        "SELECT 1 / (n - n) FROM root WHERE id = {b}",
        "ROLLBACK;\nSELECT pg_advisory_unlock_all();\nCLOSE ALL;\nUNLISTEN *;\nRESET ALL;",
        "SELECT n FROM root WHERE id = {a}",
    ],
    "commit of what came before it": [
        "UPDATE root SET n = n + 1 WHERE id = {a}; COMMIT; SELECT n FROM root WHERE id = {b}; SELECT 1 / 0",
        "SELECT n FROM root WHERE id = {a}",
    ],
    "rollback of what came before it": [
        "UPDATE root SET n = n + 1 WHERE id = {a}; ROLLBACK; SELECT n FROM root WHERE id = {a}"
    ],
    "begin behind others": [
        "UPDATE root SET n = n + 1 WHERE id = {a}; BEGIN; SELECT n FROM root WHERE id = {b}",
        "ROLLBACK; SELECT n FROM root WHERE id = {a}",
    ],
    "begin twice": ["BEGIN; BEGIN; SELECT n FROM root WHERE id = {a}; COMMIT; COMMIT"],
    "chains": [
        "BEGIN; UPDATE root SET n = n + 1 WHERE id = {a}; COMMIT AND CHAIN; SELECT n FROM root WHERE id = {b}",
        "ROLLBACK AND CHAIN; SELECT n FROM root WHERE id = {a}; COMMIT",
        "SELECT n FROM root WHERE id = {a}; COMMIT AND CHAIN; SELECT 1",
    ],
    "savepoints without a transaction": [
        "SELECT n FROM root WHERE id = {a}; SAVEPOINT s; SELECT 1",
        "RELEASE s; SELECT n FROM root WHERE id = {a}",
        "SELECT 1; ROLLBACK TO s",
    ],
    "savepoints": [
        "BEGIN; SAVEPOINT s; UPDATE root SET n = 0 WHERE id = {a}; ROLLBACK TO s; SELECT n FROM root WHERE id = {b}",
        "ROLLBACK TO s; SELECT n FROM root WHERE id = {a}; RELEASE s",
        "ROLLBACK TO s; SELECT 1",
        "ROLLBACK",
    ],
    "settings": [
        "SET work_mem = '9MB'; SELECT n FROM root WHERE id = {a}",
        "SELECT current_setting('work_mem') FROM root WHERE id = {b}",
        "SELECT current_setting('work_mem') FROM root WHERE id = {a}; RESET ALL",
        "SELECT current_setting('work_mem') FROM root WHERE id = {a}",
        "SELECT current_setting('work_mem') FROM root WHERE id = {b}",
    ],
    "settings that are taken back": [
        "SET work_mem = '9MB'; SELECT 1 / 0",
        "SELECT current_setting('work_mem') FROM root WHERE id = {a}; SHOW work_mem",
    ],
    "settings of the transaction": [
        "SET LOCAL work_mem = '9MB'; SELECT current_setting('work_mem') FROM root WHERE id = {a}; "
        "SELECT current_setting('work_mem') FROM root WHERE id = {b}",
        "SELECT current_setting('work_mem') FROM root WHERE id = {b}",
    ],
    "settings that do not exist": ["SET no_such = 1; SELECT n FROM root WHERE id = {a}", "SELECT 1"],
    "rows of all shards": ["SELECT id FROM root; SELECT n FROM root WHERE id = {a}", "SELECT 1; SELECT id FROM root"],
    "an error on all shards": ["SELECT 1 / (n - n) FROM root; SELECT 1", "SELECT 1"],
    "nothing but ends": ["COMMIT; ROLLBACK; BEGIN; COMMIT"],
    "what no transaction may hold": ["SELECT n FROM root WHERE id = {a}; VACUUM plain; SELECT 1", "SELECT 1"],
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_string_answers_as_one_postgresql(pair: Twins, name: str) -> None:
    with pair.connect() as (proxied, direct):
        for text in CONVERSATIONS[name]:
            sql = pair.fill_in(text)
            assert comparable(proxied.query(sql)) == comparable(direct.query(sql)), sql
    pair.assert_equal_rows()
    pair.deployed.come_to_rest()


def test_a_syntax_error_anywhere_runs_nothing(pair: Twins) -> None:
    sql = pair.fill_in("UPDATE root SET tag = 'half' WHERE id = {a}; SELEC; SELECT n FROM root WHERE id = {b}")
    with pair.deployed.server.connect() as client, pair.reference.connect() as direct:
        proxied, expected = error_of(client.query(sql)), error_of(direct.query(sql))
        assert [proxied[code] for code in "CMP"] == [expected[code] for code in "CMP"]
        client.rows("BEGIN")
        client.query("SELECT 1 / (n - n) FROM root")
        assert error_of(client.query("SELEC root"))["C"] == "42601"
        assert error_of(client.query("SELECT 1"))["C"] == "25P02"
    assert pair.deployed.count("root", "half") == 0
    pair.deployed.come_to_rest()


def test_copy_from_stdin_among_statements_of_several_shards_is_refused(pair: Twins) -> None:
    with pair.deployed.server.connect() as client:
        sql = "SELECT n FROM root WHERE id = {a}; COPY plain (tag) FROM STDIN; SELECT n FROM root WHERE id = {b}"
        client.send(messages.query(pair.fill_in(sql)))
        assert kinds(client.read_until(b"G")) == "TDCG"
        client.send(messages.copy_data(b"lost\n"), b"c\0\0\0\4")
        answer = client.read_until()
        assert "send it alone" in error_of(answer)["M"]
        assert client.rows("SELECT count(*) FROM plain WHERE tag = 'lost'") == [[b"0"]]
    pair.deployed.come_to_rest()


def test_a_client_that_leaves_in_the_middle_of_a_string_leaves_nothing(pair: Twins) -> None:
    sql = "UPDATE root SET tag = 'half' WHERE id = {a}; SELECT pg_sleep(30), n FROM root WHERE id = {b}; SELECT 1"
    client = pair.deployed.server.connect()
    client.send(messages.query(pair.fill_in(sql)))
    client.read_until(b"C")
    client.close()
    pair.deployed.come_to_rest()
    assert pair.deployed.count("root", "half") == 0
