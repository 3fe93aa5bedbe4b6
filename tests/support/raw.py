"""A raw protocol client: bytes out, whole messages in, every wait with a deadline.

It knows nothing it does not need, so that it can say what no well-behaved driver says. `transcript` turns the messages
of a server into lines that compare equal between two servers that behave the same.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterable
from typing import NamedTuple, Self

from tests.support import messages

DEADLINE_S = 30.0
CREATED_OID_MIN = 16384  # PostgreSQL's FirstNormalObjectId: objects below it are the same everywhere
# Where the server's source file raised an error says nothing about the conversation.
ERROR_FIELDS_IGNORED = b"FLR"


class Message(NamedTuple):
    """One message from the server."""

    kind: bytes
    body: bytes

    @property
    def fields(self) -> dict[str, str]:
        """The fields of an ErrorResponse or NoticeResponse by their one-letter code."""
        parts = self.body.rstrip(b"\0").split(b"\0")
        return {part[:1].decode(): part[1:].decode(errors="replace") for part in parts if part}

    @property
    def values(self) -> list[bytes | None]:
        """The columns of a DataRow."""
        (count,) = struct.unpack_from("!h", self.body)
        offset, values = 2, []
        for _ in range(count):
            (size,) = struct.unpack_from("!i", self.body, offset)
            offset += 4
            values.append(None if size < 0 else self.body[offset : offset + size])
            offset += max(size, 0)
        return values


class Closed(Exception):
    """The server closed the connection where a message was expected."""


class RawConnection:
    """One socket to a server; made by the test, ended by `close` or the end of a `with` block."""

    def __init__(self, host: str, port: int, *, receive_buffer_bytes: int | None = None) -> None:
        self.address = (host, port)
        self.socket = socket.socket()
        if receive_buffer_bytes is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        self.socket.settimeout(DEADLINE_S)
        try:
            self.socket.connect(self.address)
        except OSError:
            self.socket.close()
            raise
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.received = bytearray()
        self.parameters: dict[str, str] = {}
        self.pid = 0
        self.secret = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def abort(self) -> None:
        """Close with a reset, as a killed client's kernel does when data was left unread."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def send(self, *parts: bytes) -> None:
        self.socket.sendall(b"".join(parts))

    def try_send(self, *parts: bytes) -> bool:
        """Send to a server that may have hung up; whether all of it could be handed over."""
        try:
            self.send(*parts)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def send_bytewise(self, data: bytes) -> None:
        for index in range(len(data)):
            self.socket.sendall(data[index : index + 1])

    def read_exactly(self, size: int) -> bytes:
        """`size` bytes; raises Closed when the server closes first, TimeoutError after the deadline."""
        deadline = time.monotonic() + DEADLINE_S
        while len(self.received) < size:
            self.socket.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                chunk = self.socket.recv(65536)
            except ConnectionResetError:
                chunk = b""
            if not chunk:
                raise Closed(bytes(self.received))
            self.received += chunk
        taken = bytes(self.received[:size])
        del self.received[:size]
        return taken

    def read_message(self) -> Message:
        kind, size = struct.unpack("!ci", self.read_exactly(5))
        return Message(kind, self.read_exactly(size - 4))

    def read_until(self, kinds: bytes = b"Z") -> list[Message]:
        """Messages up to and with the first of one of `kinds`."""
        found = []
        while not found or found[-1].kind not in kinds:
            found.append(self.read_message())
        return found

    def read_to_end(self) -> list[Message]:
        """Every message until the server closes the connection."""
        found = []
        while True:
            try:
                found.append(self.read_message())
            except Closed:
                return found

    def start(self, user: str, database: str, protocol: int = messages.PROTOCOL_3_0, **extra: str) -> list[Message]:
        """Start up; the answer up to ReadyForQuery, or up to the end when it is an error."""
        self.send(messages.startup({"user": user, "database": database, **extra}, protocol))
        answer = []
        while True:
            try:
                answer.append(self.read_message())
            except Closed:
                return answer
            last = answer[-1]
            if last.kind == b"K":
                self.pid, self.secret = struct.unpack("!i", last.body[:4])[0], last.body[4:]
            elif last.kind == b"S":
                name, value = (
                    last.body.rstrip(b"\0").split(b"\0") if last.body[-2:] != b"\0\0" else (last.body[:-2], b"")
                )
                self.parameters[name.decode()] = value.decode()
            elif last.kind == b"Z":
                return answer

    def ask(self, *parts: bytes) -> list[Message]:
        """Send and read up to one ReadyForQuery."""
        self.send(*parts)
        return self.read_until()

    def query(self, sql: str) -> list[Message]:
        return self.ask(messages.query(sql))

    def rows(self, sql: str) -> list[list[bytes | None]]:
        """Rows of a simple query that must succeed."""
        answer = self.query(sql)
        errors = [message.fields for message in answer if message.kind == b"E"]
        assert not errors, errors
        return [message.values for message in answer if message.kind == b"D"]

    def value(self, sql: str) -> str:
        """The one value of a simple query that must succeed."""
        found = self.rows(sql)[0][0]
        assert found is not None
        return found.decode()


def send_cancel(host: str, port: int, pid: int, secret: bytes) -> None:
    """Ask the server, on a connection of its own, to cancel; returns when it has closed that connection."""
    with RawConnection(host, port) as connection:
        connection.send(messages.cancel_request(pid, secret))
        assert connection.read_to_end() == []


def error_of(answer: Iterable[Message]) -> dict[str, str]:
    """Fields of the one ErrorResponse in an answer."""
    errors = [message.fields for message in answer if message.kind == b"E"]
    assert len(errors) == 1, errors
    return errors[0]


def kinds(answer: Iterable[Message]) -> str:
    """The types of an answer's messages, as one string."""
    return b"".join(message.kind for message in answer).decode()


def transcript(answer: Iterable[Message]) -> list[str]:
    """Messages as lines in which everything that may differ between equal servers is left out."""
    return [_line(message) for message in answer]


def _line(message: Message) -> str:
    kind = message.kind.decode()
    match kind:
        case "K":
            return "K"
        case "E" | "N":
            fields = [part for part in message.body.split(b"\0") if part and part[:1] not in ERROR_FIELDS_IGNORED]
            return f"{kind} " + " | ".join(part.decode(errors="replace") for part in fields)
        case "T":
            return "T " + ", ".join(_column_lines(message.body))
        case "A":
            return f"A {message.body[4:]!r}"
        case _:
            return f"{kind} {message.body!r}"


def _column_lines(body: bytes) -> Iterable[str]:
    (count,) = struct.unpack_from("!h", body)
    offset = 2
    for _ in range(count):
        end = body.index(b"\0", offset)
        name = body[offset:end].decode()
        table, column, type_oid, size, modifier, form = struct.unpack_from("!IhIhih", body, end + 1)
        offset = end + 19
        shown = "created" if table >= CREATED_OID_MIN else table
        type_shown = "created" if type_oid >= CREATED_OID_MIN else type_oid
        yield f"{name}({shown}.{column} {type_shown} {size} {modifier} {form})"
