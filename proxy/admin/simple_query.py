"""A client for one simple query: what `foreshard explain` and the demo ask a running proxy, console included.

asyncpg always speaks the extended protocol, which the console does not.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

import msgspec

from foreshard.proxy.errors import ForeshardError, SqlError

PROTOCOL_3_0 = 196608
TIMEOUT_S = 10.0
HEADER_SIZE = 5


class Unreachable(ForeshardError):
    """Nobody answers there, or the connection was lost before the answer."""


class Answer(msgspec.Struct, frozen=True):
    """Rows of one statement, as text, with the names of their columns."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str | None, ...], ...]

    def dictionaries(self) -> list[dict[str, str | None]]:
        """Each row by column name."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


def ask(host: str, port: int, user: str, database: str, sql: str) -> Answer:
    """Connect without a password, run the statement, disconnect.

    SqlError is what the server said, Unreachable that there was none, or that it went away.
    """
    try:
        with socket.create_connection((host, port), TIMEOUT_S) as connection:
            words = ["user", user, "database", database, "application_name", "foreshard"]
            startup = struct.pack("!I", PROTOCOL_3_0) + "".join(f"{word}\0" for word in words).encode() + b"\0"
            connection.sendall(struct.pack("!I", len(startup) + 4) + startup)
            messages = _read_messages(connection)
            _collect(messages)
            query = sql.encode() + b"\0"
            connection.sendall(b"Q" + struct.pack("!I", len(query) + 4) + query)
            answer = _collect(messages)
            connection.sendall(b"X\0\0\0\4")
            return answer
    except OSError as error:
        raise Unreachable(f"cannot talk to {host}:{port}: {error}; is `foreshard serve` running?") from error


def _read_messages(connection: socket.socket) -> Iterator[tuple[bytes, bytes]]:
    """(type, body) of each message."""
    data = b""
    while True:
        while len(data) < HEADER_SIZE or len(data) < (size := 1 + struct.unpack_from("!I", data, 1)[0]):
            more = connection.recv(65536)
            if not more:
                raise ConnectionResetError("the connection was closed")
            data += more
        yield data[:1], data[HEADER_SIZE:size]
        data = data[size:]


def _collect(messages: Iterator[tuple[bytes, bytes]]) -> Answer:
    """Everything up to ReadyForQuery."""
    columns: tuple[str, ...] = ()
    rows: list[tuple[str | None, ...]] = []
    failure: SqlError | None = None
    for kind, body in messages:
        if kind == b"T":
            columns = tuple(_column_names(body))
        elif kind == b"D":
            rows.append(tuple(_cells(body)))
        elif kind == b"R" and struct.unpack_from("!I", body)[0] != 0:
            raise ForeshardError("the proxy asks for a password, which this command cannot give")
        elif kind == b"E":
            failure = _error(body)
            if failure.sqlstate.startswith(("08", "28", "57P")) or "FATAL" in body.decode(errors="replace"):
                raise failure
        elif kind == b"Z":
            break
    if failure is not None:
        raise failure
    return Answer(columns, tuple(rows))


def _column_names(body: bytes) -> Iterator[str]:
    offset = 2
    for _ in range(struct.unpack_from("!H", body)[0]):
        end = body.index(b"\0", offset)
        yield body[offset:end].decode()
        offset = end + 1 + 18


def _cells(body: bytes) -> Iterator[str | None]:
    offset = 2
    for _ in range(struct.unpack_from("!H", body)[0]):
        size = struct.unpack_from("!i", body, offset)[0]
        offset += 4
        if size < 0:
            yield None
            continue
        yield body[offset : offset + size].decode()
        offset += size


def _error(body: bytes) -> SqlError:
    fields = {field[:1]: field[1:].decode(errors="replace") for field in body.split(b"\0") if field}
    return SqlError(
        fields.get(b"C", "XX000"), fields.get(b"M", "unknown error"), fields.get(b"D", ""), fields.get(b"H", "")
    )
