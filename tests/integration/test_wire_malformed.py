"""Malformed and misplaced messages: a protocol error, a closed connection, and nobody else disturbed."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import running_pair
from tests.support import messages
from tests.support.postgres import TestInstances
from tests.support.raw import Message, RawConnection, error_of, kinds, transcript
from tests.support.servers import Pair
from tests.support.waiting import wait_until

PROTOCOL_VIOLATION = "08P01"
MESSAGE_SIZE_MAX = 100_000
STARTUP_SIZE_MAX = 500
CLIENTS_MAX = 5
TOO_MANY_CONNECTIONS = "53300"
FRONTEND_KINDS = b"QPBDEHSCXFdcf"


@pytest.fixture
def bystander(pair: Pair) -> Iterator[RawConnection]:
    """Another client, in the middle of a transaction; it must be able to finish."""
    with pair.proxied.connect() as connection:
        connection.rows("BEGIN")
        before = connection.value("SELECT pg_backend_pid()")
        yield connection
        assert connection.value("SELECT pg_backend_pid()") == before
        connection.rows("COMMIT")


def answer_to(connection: RawConnection, data: bytes) -> list[Message]:
    """What is heard, up to the close, from a server that may close before it has read all."""
    connection.try_send(data)
    return connection.read_to_end()


def assert_refused(heard: list[Message]) -> None:
    error = error_of(heard)
    assert (error["V"], error["C"]) == ("FATAL", PROTOCOL_VIOLATION)
    assert heard[-1].kind == b"E"


@pytest.mark.parametrize("size", [0, 3, -1, -(2**31), 2**31 - 1, 2**30])
@pytest.mark.parametrize("kind", [b"Q", b"P", b"B", b"S", b"X", b"d"])
def test_an_impossible_length_is_refused(pair: Pair, bystander: RawConnection, kind: bytes, size: int) -> None:
    with pair.proxied.connect() as connection:
        assert_refused(answer_to(connection, kind + struct.pack("!i", size) + b"SELECT 1\0"))


@pytest.mark.parametrize("kind", [bytes([code]) for code in (0, 1, 0x20, 0x52, 0x54, 0x5A, 0x70, 0x7A, 0x80, 0xFF)])
def test_an_unknown_type_is_refused(pair: Pair, bystander: RawConnection, kind: bytes) -> None:
    with pair.proxied.connect() as connection:
        assert_refused(answer_to(connection, messages.message(kind, b"x\0")))


@pytest.mark.parametrize("start", [messages.SSL_REQUEST, messages.startup({"user": "app"})], ids=["ssl", "start-up"])
def test_a_start_up_after_the_start_up_is_refused(pair: Pair, bystander: RawConnection, start: bytes) -> None:
    with pair.proxied.connect() as connection:
        assert_refused(answer_to(connection, start))


BODIES = {
    "query without its end": messages.message(b"Q", b"SELECT 1"),
    "empty query message": messages.message(b"Q", b""),
    "query with more after its end": messages.message(b"Q", b"SELECT 1\0SELECT 2\0"),
    "parse without its end": messages.message(b"P", b"name"),
    "empty parse": messages.message(b"P", b""),
    "parse without types": messages.message(b"P", b"\0SELECT 1\0"),
    "parse with too few types": messages.message(b"P", b"\0SELECT 1\0" + struct.pack("!h", 5)),
    "parse with negative types": messages.message(b"P", b"\0SELECT 1\0" + struct.pack("!h", -1)),
    "parse with more after its end": messages.message(b"P", b"\0SELECT 1\0" + struct.pack("!h", 0) + b"more"),
    "empty bind": messages.message(b"B", b""),
    "bind without its end": messages.message(b"B", b"\0\0" + struct.pack("!hhi", 0, 1, 100) + b"x"),
    "bind with a negative count": messages.message(b"B", b"\0\0" + struct.pack("!hh", 0, -1)),
    "bind with a huge count": messages.message(b"B", b"\0\0" + struct.pack("!hh", 0, 32767)),
    "bind with a negative length": messages.message(b"B", b"\0\0" + struct.pack("!hhih", 0, 1, -2, 0)),
    "bind with too many formats": messages.message(b"B", b"\0\0" + struct.pack("!hhhhh", 3, 0, 0, 0, 0)),
    "bind with more after its end": messages.message(b"B", b"\0\0" + struct.pack("!hhh", 0, 0, 0) + b"more"),
    "empty describe": messages.message(b"D", b""),
    "describe of neither": messages.message(b"D", b"Xname\0"),
    "describe without its end": messages.message(b"D", b"Sname"),
    "empty close": messages.message(b"C", b""),
    "close of neither": messages.message(b"C", b"Xname\0"),
    "empty execute": messages.message(b"E", b""),
    "execute without a limit": messages.message(b"E", b"\0"),
    "sync with a body": messages.message(b"S", b"more"),
    "flush with a body": messages.message(b"H", b"more"),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_malformed_body_is_an_error_of_this_client_alone(pair: Pair, bystander: RawConnection, name: str) -> None:
    """PostgreSQL goes on after some of these. The proxy may too, or close; it never answers as if nothing was wrong."""
    prelude = messages.parse("SELECT 1")
    ending = messages.SYNC + messages.query("SELECT 'alive'") + messages.TERMINATE
    answers = []
    for server in pair:
        with server.connect() as connection:
            answers.append(answer_to(connection, prelude + BODIES[name] + ending))
    direct, proxied = answers
    if transcript(proxied) == transcript(direct):
        return
    errors = [message.fields for message in proxied if message.kind == b"E"]
    assert [error["C"] for error in errors] == [PROTOCOL_VIOLATION], transcript(proxied)
    assert "T" not in kinds(proxied) or "E" in kinds(direct)


MISPLACED = {
    "copy data": messages.copy_data(b"1\n"),
    "copy done": messages.COPY_DONE,
    "copy fail": messages.copy_fail("why"),
    "all of them": messages.copy_data(b"1\n") + messages.copy_data(b"2\n") + messages.COPY_DONE,
}


@pytest.mark.parametrize("name", MISPLACED)
def test_copy_messages_outside_of_a_copy_are_ignored_as_postgres_does(pair: Pair, name: str) -> None:
    answers = []
    for server in pair:
        with server.connect() as connection:
            answers.append(transcript(connection.ask(MISPLACED[name], messages.query("SELECT 1"))))
    assert answers[0] == answers[1]


@pytest.mark.parametrize("data", [messages.query("SELECT 1"), messages.parse("SELECT 1")], ids=["query", "parse"])
def test_other_messages_inside_a_copy_end_it(pair: Pair, bystander: RawConnection, data: bytes) -> None:
    pair.direct.run("CREATE TABLE IF NOT EXISTS filled (a integer)", "TRUNCATE filled")
    answers = []
    for server in pair:
        with server.connect() as connection:
            connection.send(messages.query("COPY filled FROM STDIN"))
            connection.read_until(b"G")
            answers.append(answer_to(connection, messages.copy_data(b"1\n") + data + messages.TERMINATE))
    first_error = next(message for message in answers[1] if message.kind == b"E")
    assert first_error.fields["C"] == PROTOCOL_VIOLATION
    with pair.direct.connect() as connection:
        assert connection.value("SELECT count(*) FROM filled") == "0"


@pytest.mark.parametrize("seed", range(3))
def test_ten_megabytes_of_garbage_are_refused(pair: Pair, bystander: RawConnection, seed: int) -> None:
    garbage = random.Random(seed).randbytes(10_000_000)
    with pair.proxied.open() as connection:
        assert kinds(answer_to(connection, garbage)) in ("", "E")
    with pair.proxied.connect() as connection:
        heard = answer_to(connection, garbage)
        assert [message.kind for message in heard] in ([], [b"E"])


@pytest.mark.parametrize("seed", range(20))
def test_random_frames_of_known_types_disturb_nobody(pair: Pair, bystander: RawConnection, seed: int) -> None:
    """Frames are whole, bodies are random: whatever the answer, the bystander finishes and new clients are served."""
    draw = random.Random(seed)
    frames = b"".join(
        messages.message(bytes([draw.choice(FRONTEND_KINDS)]), draw.randbytes(draw.choice([0, 1, 2, 5, 20, 300])))
        for _ in range(100)
    )
    with pair.proxied.connect() as connection:
        answer_to(connection, frames + messages.TERMINATE)
    with pair.proxied.connect() as connection:
        assert connection.value("SELECT 1") == "1"


@pytest.mark.parametrize("size", [1, 4, 5, 6, 12])
def test_a_client_that_leaves_in_the_middle_of_a_message_disturbs_nobody(
    pair: Pair, bystander: RawConnection, size: int
) -> None:
    with pair.proxied.connect() as connection:
        connection.rows("BEGIN")
        connection.send(messages.query("SELECT 'left in the middle'")[:size])


@pytest.fixture(scope="module")
def limited_pair(test_instances: TestInstances, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """A proxy with small limits on what a client may send."""
    limits = {
        "message_size_max": f"{MESSAGE_SIZE_MAX}B",
        "startup_size_max": f"{STARTUP_SIZE_MAX}B",
        "startup_timeout": "1s",
        "clients_max": CLIENTS_MAX,
    }
    directory: Path = tmp_path_factory.mktemp("limited")
    for made, _ in running_pair(test_instances, directory, limits=limits):
        yield made


def query_of_size(size: int) -> bytes:
    """A query message of exactly `size` bytes, type and length included."""
    frame = len(messages.query("SELECT ''"))
    return messages.query(f"SELECT '{'x' * (size - frame)}'")


@pytest.mark.parametrize("excess", [-1, 0, 1])
def test_the_message_limit_holds(limited_pair: Pair, excess: int) -> None:
    with limited_pair.proxied.connect() as connection:
        data = query_of_size(MESSAGE_SIZE_MAX + 5 + excess)  # the limit is on the body
        if excess <= 0:
            assert kinds(connection.ask(data)) == "TDCZ"
        else:
            assert error_of(answer_to(connection, data))["V"] == "FATAL"


@pytest.mark.parametrize("excess", [-1, 0, 1])
def test_the_start_up_limit_holds(limited_pair: Pair, excess: int) -> None:
    server = limited_pair.proxied
    parameters = {"user": server.user, "database": server.database, "application_name": ""}
    padding = STARTUP_SIZE_MAX + excess - len(messages.startup(parameters))
    with server.open() as connection:
        heard = connection.start(server.user, server.database, application_name="x" * padding)
        assert (heard[-1].kind == b"Z") == (excess <= 0)


@pytest.mark.parametrize("said", [b"", messages.SSL_REQUEST, messages.SSL_REQUEST + b"\0\0"])
def test_a_client_that_never_finishes_its_start_up_is_closed(limited_pair: Pair, said: bytes) -> None:
    with limited_pair.proxied.open() as connection:
        connection.send(said)
        if said:
            assert connection.read_exactly(1) == b"N"
        assert kinds(connection.read_to_end()) in ("", "E")


def test_the_limit_of_clients_holds_and_a_place_becomes_free(limited_pair: Pair) -> None:
    server = limited_pair.proxied

    def try_connect() -> RawConnection | None:
        connection = server.open()
        heard = connection.start(server.user, server.database)
        if heard and heard[-1].kind == b"Z":
            return connection
        connection.close()
        assert not heard or error_of(heard)["C"] == TOO_MANY_CONNECTIONS
        return None

    clients = [wait_until(try_connect) for _ in range(CLIENTS_MAX)]
    assert try_connect() is None
    for client in clients:
        assert client.value("SELECT 1") == "1"
    clients.pop().close()
    clients.append(wait_until(try_connect))
    for client in clients:
        client.close()
