"""Conversations as values: what a frontend says, step by step, and how long it listens after each."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import NamedTuple

from tests.support import messages
from tests.support.raw import Closed, Message, RawConnection, transcript
from tests.support.servers import Pair, Server


class Step(NamedTuple):
    """Bytes to send, then messages read up to the `count`-th one of `until`; with count 0 none is read."""

    data: bytes
    count: int = 1
    until: bytes = b"Z"


def simple(*statements: str) -> list[Step]:
    """Each statement as a simple query of its own."""
    return [Step(messages.query(statement)) for statement in statements]


def synced(*parts: bytes) -> Step:
    """Messages of the extended protocol and the Sync that ends them."""
    return Step(b"".join(parts) + messages.SYNC)


def say(connection: RawConnection, steps: Sequence[Step], *, bytewise: bool = False) -> list[str]:
    """Lead the conversation; the server's side as comparable lines, `closed` when it hung up."""
    heard: list[Message] = []
    try:
        for step in steps:
            if bytewise:
                connection.send_bytewise(step.data)
            else:
                connection.send(step.data)
            for _ in range(step.count):
                while True:
                    heard.append(connection.read_message())
                    if heard[-1].kind in step.until:
                        break
    except (Closed, BrokenPipeError, ConnectionResetError):
        return [*transcript(heard), "closed"]
    return transcript(heard)


def hear(server: Server, steps: Sequence[Step], *, bytewise: bool = False) -> list[str]:
    """Lead the conversation on a connection of its own."""
    with server.connect() as connection:
        return say(connection, steps, bytewise=bytewise)


def assert_same(pair: Pair, steps: Sequence[Step], setup: Sequence[str] = (), *, bytewise: bool = False) -> list[str]:
    """Both servers answer alike, each after the same setup; the answer."""
    pair.direct.run(*setup)
    expected = hear(pair.direct, steps)
    pair.direct.run(*setup)
    heard = hear(pair.proxied, steps, bytewise=bytewise)
    assert heard == expected, "\n".join(["", *difflib.unified_diff(expected, heard, "direct", "proxied", lineterm="")])
    return expected
