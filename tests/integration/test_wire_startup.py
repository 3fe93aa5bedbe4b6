"""Start-up: what a client may say before its first query, and what it hears."""

from __future__ import annotations

import struct

import pytest

from tests.support import messages
from tests.support.raw import Message, RawConnection, error_of, kinds, send_cancel, transcript
from tests.support.servers import Pair, Server

# Reported once per connection; these name the session, not the server.
SESSION_PARAMETERS = {"session_authorization", "is_superuser", "scram_iterations", "search_path"}


def started(server: Server, protocol: int = messages.PROTOCOL_3_0, **parameters: str) -> list[Message]:
    with server.open() as connection:
        return connection.start(server.user, server.database, protocol, **parameters)


def test_parameters_reported_at_start_are_equal(pair: Pair) -> None:
    with pair.direct.connect() as direct, pair.proxied.connect() as proxied:
        assert proxied.parameters == direct.parameters
        assert proxied.pid != 0
        assert len(proxied.secret) == 4


def test_start_up_answer_has_the_order_of_the_protocol(pair: Pair) -> None:
    for server in pair:
        heard = kinds(started(server))
        assert heard[0] == "R"
        assert heard[-1] == "Z"
        assert heard.count("K") == 1
        assert set(heard[1:-1]) == {"S", "K"}


@pytest.mark.parametrize(
    "requests",
    [
        [messages.SSL_REQUEST],
        [messages.GSSENC_REQUEST],
        [messages.GSSENC_REQUEST, messages.SSL_REQUEST],
        [messages.SSL_REQUEST, messages.GSSENC_REQUEST],
    ],
    ids=["ssl", "gss", "gss then ssl", "ssl then gss"],
)
def test_encryption_requests_are_declined_and_the_connection_goes_on(pair: Pair, requests: list[bytes]) -> None:
    for server in pair:
        with server.open() as connection:
            for request in requests:
                connection.send(request)
                assert connection.read_exactly(1) == b"N"
            assert connection.start(server.user, server.database)[-1].kind == b"Z"
            assert connection.value("SELECT 1") == "1"


def test_start_up_and_first_query_in_one_packet(pair: Pair) -> None:
    for server in pair:
        with server.open() as connection:
            start = messages.startup({"user": server.user, "database": server.database})
            connection.send(start, messages.query("SELECT 'first'"))
            connection.read_until()
            assert connection.read_until()[1].values == [b"first"]


def test_start_up_sent_in_single_bytes(pair: Pair) -> None:
    with pair.proxied.open() as connection:
        connection.send_bytewise(messages.SSL_REQUEST)
        assert connection.read_exactly(1) == b"N"
        connection.send_bytewise(messages.startup({"user": pair.proxied.user, "database": pair.proxied.database}))
        assert connection.read_until()[-1].kind == b"Z"


@pytest.mark.parametrize("minor", [2, 9999])
def test_a_newer_minor_version_is_negotiated(pair: Pair, minor: int) -> None:
    with pair.proxied.open() as connection:
        heard = connection.start(pair.proxied.user, pair.proxied.database, messages.PROTOCOL_3_0 + minor)
        assert heard[-1].kind == b"Z"
        negotiated = [message for message in heard if message.kind == b"v"]
        if negotiated:
            version, unknown = struct.unpack("!ii", negotiated[0].body[:8])
            # Some servers send the minor version alone, some the whole number.
            assert version in (0, 2, messages.PROTOCOL_3_0, messages.PROTOCOL_3_2)
            assert unknown == 0
        else:
            assert minor == 2
        assert connection.value("SELECT 1") == "1"


def test_unknown_protocol_options_are_named_in_the_negotiation(pair: Pair) -> None:
    answers = [started(server, **{"_pq_.nonsense": "1"}) for server in pair]
    negotiations = [[line for line in transcript(heard) if line[0] == "v"] for heard in answers]
    assert negotiations[0] == negotiations[1]
    assert len(negotiations[1]) == 1


def test_a_later_major_version_is_refused(pair: Pair) -> None:
    answers = [started(server, 4 << 16) for server in pair]
    assert [kinds(answer) for answer in answers] == ["E", "E"]
    assert [error_of(answer)["C"] for answer in answers] == ["0A000", "0A000"]
    assert error_of(answers[1])["V"] == "FATAL"


def test_an_earlier_major_version_is_refused(pair: Pair) -> None:
    """Its errors had another form, which PostgreSQL still sends; any error and the end will do."""
    with pair.proxied.open() as connection:
        connection.send(messages.startup({"user": pair.proxied.user}, 2 << 16))
        assert connection.read_exactly(1) == b"E"
        connection.read_to_end()


def test_missing_user_is_refused(pair: Pair) -> None:
    for server in pair:
        with server.open() as connection:
            connection.send(messages.startup({"database": server.database}))
            error = error_of(connection.read_to_end())
            assert (error["V"], error["C"]) == ("FATAL", "28000")


def test_database_defaults_to_the_name_of_the_user(pair: Pair) -> None:
    answers = []
    for server in pair:
        with server.open() as connection:
            connection.send(messages.startup({"user": "no_such_place"}))
            answers.append(error_of(connection.read_to_end())["V"])
    assert answers == ["FATAL", "FATAL"]


def test_unknown_database_is_refused(pair: Pair) -> None:
    answers = [error_of(started(server._replace(database="no_such_database"))) for server in pair]
    assert [answer["C"] for answer in answers] == ["3D000", "3D000"]
    assert answers[1]["M"] == answers[0]["M"]


def test_unknown_parameter_is_refused(pair: Pair) -> None:
    answers = [error_of(started(server, nonsense="1")) for server in pair]
    assert [answer["C"] for answer in answers] == ["42704", "42704"]


def test_malformed_parameter_value_is_refused(pair: Pair) -> None:
    answers = [error_of(started(server, client_encoding="nonsense"))["V"] for server in pair]
    assert answers == ["FATAL", "FATAL"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("application_name", "proving ground"),
        ("client_encoding", "LATIN1"),
        ("DateStyle", "German, DMY"),
        ("TimeZone", "Asia/Tokyo"),
        ("extra_float_digits", "0"),
        ("statement_timeout", "54321"),
        ("options", "-c work_mem=8MB"),
        ("options", "-c search_path=pg_catalog -c geqo=off"),
    ],
)
def test_a_start_up_parameter_holds_for_this_client_alone_or_is_refused(pair: Pair, name: str, value: str) -> None:
    shown = ["application_name", "client_encoding", "DateStyle", "TimeZone", "extra_float_digits", "statement_timeout"]
    shown += ["work_mem", "search_path", "geqo"]
    settings = "SELECT " + ", ".join(f"current_setting('{setting}')" for setting in shown)
    with pair.direct.connect(**{name: value}) as direct:
        expected = direct.rows(settings)
    heard = started(pair.proxied, **{name: value})
    if heard[-1].kind == b"E":
        assert error_of(heard)["C"] == "0A000"
    else:
        with pair.proxied.connect(**{name: value}) as client:
            assert client.rows(settings) == expected
    with pair.direct.connect() as direct, pair.proxied.connect() as other:
        assert other.rows(settings) == direct.rows(settings)


def test_replication_connections_are_refused(pair: Pair) -> None:
    error = error_of(started(pair.proxied, replication="database"))
    assert error["V"] == "FATAL"


def test_cancel_of_nobody_is_closed_without_an_answer(pair: Pair) -> None:
    for server in pair:
        send_cancel(server.host, server.port, 2_000_000_000, b"\1\2\3\4")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"\0\0\0",
        struct.pack("!i", 8),
        messages.startup({"user": "app"})[:-3],
        struct.pack("!iiii", 16, 80877102, 1, 2)[:12],
    ],
    ids=["nothing", "one byte", "part of the length", "only the length", "all but the end", "half a cancel"],
)
def test_a_truncated_start_up_disturbs_nobody(pair: Pair, data: bytes) -> None:
    with pair.proxied.connect() as bystander:
        with pair.proxied.open() as connection:
            connection.send(data)
        assert bystander.value("SELECT 1") == "1"


@pytest.mark.parametrize("size", [0, 3, 4, 7, -1, 2**31 - 1, -(2**31), 1_000_000])
def test_a_start_up_of_impossible_length_is_refused_and_closed(pair: Pair, size: int) -> None:
    with pair.proxied.connect() as bystander, pair.proxied.open() as connection:
        connection.send(struct.pack("!ii", size, messages.PROTOCOL_3_0) + b"user\0app\0\0")
        heard = connection.read_to_end()
        assert kinds(heard) in ("", "E")
        assert not heard or error_of(heard)["C"] == "08P01"
        assert bystander.value("SELECT 1") == "1"


@pytest.mark.parametrize(
    "body",
    [b"user\0app\0", b"user\0app", b"user", b"\0user\0app\0\0", b"user\0app\0\0more", b"user\0\xff\xfe\0\0", b"\0"],
    ids=["no end", "no end of value", "no value", "nothing first", "more after the end", "not unicode", "empty"],
)
def test_a_malformed_start_up_gets_an_error_and_is_closed(pair: Pair, body: bytes) -> None:
    with pair.proxied.connect() as bystander, pair.proxied.open() as connection:
        connection.send(struct.pack("!ii", len(body) + 8, messages.PROTOCOL_3_0) + body)
        error = error_of(connection.read_to_end())
        assert error["V"] == "FATAL"
        assert bystander.value("SELECT 1") == "1"


def test_an_http_request_is_closed(pair: Pair) -> None:
    with pair.proxied.connect() as bystander, pair.proxied.open() as connection:
        connection.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert kinds(connection.read_to_end()) in ("", "E")
        assert bystander.value("SELECT 1") == "1"


def test_many_connections_opened_and_dropped_leave_the_proxy_answering(pair: Pair) -> None:
    for index in range(200):
        connection = RawConnection(pair.proxied.host, pair.proxied.port)
        if index % 3 == 1:
            connection.start(pair.proxied.user, pair.proxied.database)
        if index % 2:
            connection.abort()
        else:
            connection.close()
    with pair.proxied.connect() as client:
        assert client.value("SELECT 1") == "1"
