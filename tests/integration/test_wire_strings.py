"""Strings of several statements over several shards answer, and leave behind, what one PostgreSQL would."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pytest

from tests.support import messages
from tests.support.postgres import TestInstances
from tests.support.raw import RawConnection, error_of, kinds, transcript
from tests.support.servers import Server
from tests.support.sharded import ROOTS, SCHEMA, Deployment, deployment

STATE = "SELECT id, tag, n FROM {} ORDER BY id"


class Sides(NamedTuple):
    """The deployment, and one database with the same rows."""

    deployed: Deployment
    reference: Server

    def fill_in(self, text: str) -> str:
        """`{a}` and `{b}` are keys of different shards, `{c}` is another one of a's."""
        first, second = self.deployed.keys[0], self.deployed.keys[1]
        return text.format(a=first[0], b=second[0], c=first[1])


@pytest.fixture(scope="module")
def sides(test_instances: TestInstances, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sides]:
    reference = test_instances.create(1)
    reference.execute(SCHEMA)
    for table in ("root", "plain"):
        reference.execute(f"INSERT INTO {table} (tag, n) SELECT 'kept', n FROM generate_series(1, {ROOTS}) AS n")
    with deployment(test_instances, tmp_path_factory.mktemp("strings"), pool={"size": 3}) as deployed:
        yield Sides(deployed, Server.of_dsn(reference.dsns[0]))
    test_instances.drop(reference)


CONVERSATIONS: dict[str, Sequence[str]] = {
    "reads of two shards": ["SELECT n FROM root WHERE id = {a}; SELECT n FROM root WHERE id = {b}"],
    "reads of three kinds": [
        "SELECT count(*) FROM plain; SELECT n FROM root WHERE id = {b}; SELECT 1; SELECT n FROM root WHERE id = {a};"
    ],
    "a write and a read elsewhere": [
        "UPDATE root SET n = n + 9 WHERE id = {a}; SELECT n FROM root WHERE id = {b}; SELECT n FROM root WHERE id = {a}"
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


def comparable(connection: RawConnection, sql: str) -> list[str]:
    """The answer as lines, rows sorted: their order over shards is open."""
    lines = transcript(connection.query(sql))
    rows = iter(sorted(line for line in lines if line[0] == "D"))
    return [next(rows) if line[0] == "D" else line for line in lines]


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_string_answers_as_one_postgresql(sides: Sides, name: str) -> None:
    with sides.deployed.server.connect() as proxied, sides.reference.connect() as direct:
        for text in CONVERSATIONS[name]:
            sql = sides.fill_in(text)
            assert comparable(proxied, sql) == comparable(direct, sql), sql
        assert proxied.rows(STATE.format("plain")) == direct.rows(STATE.format("plain"))
        by_key = sorted(proxied.rows("SELECT id, tag, n FROM root"), key=lambda row: int(row[0] or 0))
        assert by_key == direct.rows(STATE.format("root"))
    sides.deployed.come_to_rest()


def test_a_syntax_error_anywhere_runs_nothing(sides: Sides) -> None:
    sql = sides.fill_in("UPDATE root SET tag = 'half' WHERE id = {a}; SELEC; SELECT n FROM root WHERE id = {b}")
    with sides.deployed.server.connect() as client, sides.reference.connect() as direct:
        proxied, expected = error_of(client.query(sql)), error_of(direct.query(sql))
        assert [proxied[code] for code in "CMP"] == [expected[code] for code in "CMP"]
        client.rows("BEGIN")
        client.query("SELECT 1 / (n - n) FROM root")
        assert error_of(client.query("SELEC root"))["C"] == "42601"
        assert error_of(client.query("SELECT 1"))["C"] == "25P02"
    assert sides.deployed.count("root", "half") == 0
    sides.deployed.come_to_rest()


def test_copy_from_stdin_among_statements_of_several_shards_is_refused(sides: Sides) -> None:
    with sides.deployed.server.connect() as client:
        sql = "SELECT n FROM root WHERE id = {a}; COPY plain (tag) FROM STDIN; SELECT n FROM root WHERE id = {b}"
        client.send(messages.query(sides.fill_in(sql)))
        assert kinds(client.read_until(b"G")) == "TDCG"
        client.send(messages.copy_data(b"lost\n"), b"c\0\0\0\4")
        answer = client.read_until()
        assert "send it alone" in error_of(answer)["M"]
        assert client.rows("SELECT count(*) FROM plain WHERE tag = 'lost'") == [[b"0"]]
    sides.deployed.come_to_rest()


def test_a_client_that_leaves_in_the_middle_of_a_string_leaves_nothing(sides: Sides) -> None:
    sql = "UPDATE root SET tag = 'half' WHERE id = {a}; SELECT pg_sleep(30), n FROM root WHERE id = {b}; SELECT 1"
    client = sides.deployed.server.connect()
    client.send(messages.query(sides.fill_in(sql)))
    client.read_until(b"C")
    client.close()
    sides.deployed.come_to_rest()
    assert sides.deployed.count("root", "half") == 0


def test_a_write_on_a_second_shard_takes_the_whole_string_back(sides: Sides) -> None:
    sql = "UPDATE root SET tag = 'two' WHERE id = {a}; UPDATE root SET tag = 'two' WHERE id = {b}"
    with sides.deployed.server.connect() as client:
        assert error_of(client.query(sides.fill_in(sql)))["C"] == "0A000"
        assert client.query("SELECT 1")[-1].body == b"I"
    assert sides.deployed.count("root", "two") == 0
    sides.deployed.come_to_rest()
