"""Messages of the PostgreSQL protocol (version 3) as bytes, one function per message a frontend sends."""

from __future__ import annotations

import struct
from collections.abc import Sequence

PROTOCOL_3_0 = 196608
PROTOCOL_3_2 = 196610
SSL_REQUEST = struct.pack("!ii", 8, 80877103)
GSSENC_REQUEST = struct.pack("!ii", 8, 80877104)
TEXT, BINARY = 0, 1


def message(kind: bytes, body: bytes = b"") -> bytes:
    """One message with its length, which counts itself and the body but not the type."""
    return kind + struct.pack("!i", len(body) + 4) + body


def text(value: str) -> bytes:
    """A string as the protocol spells it, ended by a zero byte."""
    return value.encode() + b"\0"


def startup(parameters: dict[str, str], protocol: int = PROTOCOL_3_0) -> bytes:
    body = struct.pack("!i", protocol) + b"".join(text(key) + text(value) for key, value in parameters.items()) + b"\0"
    return struct.pack("!i", len(body) + 4) + body


def cancel_request(pid: int, secret: bytes) -> bytes:
    return struct.pack("!iii", 12 + len(secret), 80877102, pid) + secret


def query(sql: str) -> bytes:
    return message(b"Q", text(sql))


def parse(sql: str, name: str = "", types: Sequence[int] = ()) -> bytes:
    return message(b"P", text(name) + text(sql) + struct.pack(f"!h{len(types)}I", len(types), *types))


def bind(
    values: Sequence[bytes | None] = (),
    *,
    name: str = "",
    portal: str = "",
    formats: Sequence[int] = (),
    results: Sequence[int] = (),
) -> bytes:
    parts = [text(portal), text(name), struct.pack(f"!h{len(formats)}h", len(formats), *formats)]
    parts.append(struct.pack("!h", len(values)))
    for value in values:
        parts.append(struct.pack("!i", -1) if value is None else struct.pack("!i", len(value)) + value)
    parts.append(struct.pack(f"!h{len(results)}h", len(results), *results))
    return message(b"B", b"".join(parts))


def describe_statement(name: str = "") -> bytes:
    return message(b"D", b"S" + text(name))


def describe_portal(name: str = "") -> bytes:
    return message(b"D", b"P" + text(name))


def execute(portal: str = "", rows_max: int = 0) -> bytes:
    return message(b"E", text(portal) + struct.pack("!i", rows_max))


def close_statement(name: str = "") -> bytes:
    return message(b"C", b"S" + text(name))


def close_portal(name: str = "") -> bytes:
    return message(b"C", b"P" + text(name))


def copy_data(data: bytes) -> bytes:
    return message(b"d", data)


def copy_fail(reason: str) -> bytes:
    return message(b"f", text(reason))


def function_call(oid: int, arguments: Sequence[bytes]) -> bytes:
    packed = b"".join(struct.pack("!i", len(argument)) + argument for argument in arguments)
    return message(b"F", struct.pack("!ihh", oid, 0, len(arguments)) + packed + struct.pack("!h", 0))


def extended(sql: str, values: Sequence[bytes | None] = (), *, types: Sequence[int] = ()) -> bytes:
    """Parse, Bind, Describe and Execute of the unnamed statement, without the Sync."""
    return parse(sql, types=types) + bind(values) + describe_portal() + execute()


SYNC = message(b"S")
FLUSH = message(b"H")
COPY_DONE = message(b"c")
TERMINATE = message(b"X")
