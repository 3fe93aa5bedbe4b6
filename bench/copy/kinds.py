"""What is copied: tables keyed in several ways, and rows for them in each format."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Callable
from dataclasses import dataclass

SCHEMA = (
    "CREATE TABLE numbered (id bigint PRIMARY KEY, body text)",
    "CREATE TABLE named (name text PRIMARY KEY, body text)",
    "CREATE TABLE device (body text, id uuid PRIMARY KEY)",
    "CREATE TABLE parent (id bigint PRIMARY KEY)",
    "CREATE TABLE child (id bigserial PRIMARY KEY, parent_id bigint NOT NULL REFERENCES parent, body text)",
)
TABLES = {
    "numbered": {"key": "id"},
    "named": {"key": "name"},
    "device": {"key": "id"},
    "parent": {"key": "id"},
    "child": {"key": "id", "parent": "parent", "via": "parent_id"},
}
PARENTS = 1000
BODY = b"x" * 80
BINARY_HEAD = b"PGCOPY\n\xff\r\n\0" + bytes(8)
NAMESPACE = uuid.UUID(int=1)


@dataclass(frozen=True)
class Kind:
    """One COPY: its statement, and the bytes of its n-th row."""

    name: str
    table: str
    sql: str
    row: Callable[[int], bytes]
    head: bytes = b""

    def data(self, rows: int) -> bytes:
        """All of them."""
        return self.head + b"".join(self.row(number) for number in range(1, rows + 1))


def device_row(number: int) -> bytes:
    """A row of two fields in binary format."""
    key = uuid.uuid5(NAMESPACE, str(number)).bytes
    return struct.pack("!hi", 2, len(BODY)) + BODY + struct.pack("!i", 16) + key


KINDS = (
    Kind("text, bigint key", "numbered", "COPY numbered FROM STDIN", lambda n: b"%d\t%s\n" % (n, BODY)),
    Kind(
        "csv, text key",
        "named",
        "COPY named (body, name) FROM STDIN (FORMAT csv)",
        lambda n: b'%s,"name, %d"\n' % (BODY, n),
    ),
    Kind("binary, uuid key", "device", "COPY device FROM STDIN (FORMAT binary)", device_row, BINARY_HEAD),
    Kind(
        "text, child rows",
        "child",
        "COPY child (parent_id, body) FROM STDIN",
        lambda n: b"%d\t%s\n" % (n % PARENTS + 1, BODY),
    ),
)
