"""The byte queue and the queue of owed replies."""

from __future__ import annotations

import random

from foreshard._core.buffer import Buffer
from foreshard._core.replies import Replies


def test_bytes_come_out_in_order_whatever_the_pieces() -> None:
    generator = random.Random(7)
    buffer, expected = Buffer(), b""
    for _ in range(2000):
        if generator.random() < 0.6:
            piece = generator.randbytes(generator.choice((0, 1, 5, 900, 5000)))
            buffer.feed(piece)
            expected += piece
        else:
            size = generator.randrange(0, 3000)
            assert buffer.take(size) == expected[:size]
            expected = expected[size:]
        assert len(buffer) == len(expected)
    assert buffer.take() == expected


def test_emptied_buffer_is_empty_and_usable() -> None:
    buffer = Buffer()
    buffer.feed(bytes(1_000_000))
    assert len(buffer.take()) == 1_000_000
    assert buffer.take() == b""
    buffer.feed(b"x")
    assert buffer.take() == b"x"


def test_replies_come_out_in_order_through_every_growth() -> None:
    generator = random.Random(11)
    replies, expected = Replies(), []
    for _ in range(5000):
        if generator.random() < 0.55:
            entry = generator.randrange(1, 8)
            replies.add(entry)
            expected.append(entry)
        else:
            assert replies.take() == (expected.pop(0) if expected else 0)
        assert len(replies) == len(expected)
