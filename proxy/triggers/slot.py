"""The call slot: memory in which an executor says which call it runs, and its supervisor reads it.

One writer (the executor), one reader (the supervisor that forked it). No message is sent per call: the supervisor looks
every few milliseconds, and once more after the executor has ended. The sequence number is odd while a record is being
written; a reader that sees an odd or changed number has seen nothing.
"""

from __future__ import annotations

import mmap
import struct

import msgspec

SLOT_BYTES = 4096
HEADER = struct.Struct("=QI")  # sequence number, bytes of the record; no bytes: no call runs


class EventId(msgspec.Struct, frozen=True):
    """The primary key of an event in the outbox, as text where Python has no such type."""

    lane: int
    lsn: str
    xid: str
    ordinal: int

    def __str__(self) -> str:
        return f"{self.lsn}-{self.xid}-{self.ordinal}"


class Call(msgspec.Struct, frozen=True):
    """One running call, and all that its supervisor needs to end it and to record that it failed."""

    event: EventId
    function: str
    attempt: int  # 1: the first
    started_s: float  # time.monotonic()
    timeout_s: float
    memory_bytes_max: int | None
    memory_bytes_before: int  # resident
    backend_pid: int
    backend_started: str  # with the pid it names one backend for ever


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Call)


class CallSlot:
    """Owns the shared memory. Made by the supervisor before it forks; unmapped with the processes."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, SLOT_BYTES)
        self._sequence = 0

    def publish(self, call: Call) -> None:
        """Say that this call runs."""
        record = _encoder.encode(call)
        if len(record) > SLOT_BYTES - HEADER.size:
            raise ValueError(f"the name of function {call.function[:40]!r}... is too long")
        self._write(record)

    def clear(self) -> None:
        """Say that no call runs."""
        self._write(b"")

    def read(self) -> Call | None:
        """The running call; None when there is none, or while it changes."""
        sequence, size = HEADER.unpack_from(self._memory)
        record = self._memory[HEADER.size : HEADER.size + size]
        if not size or sequence & 1 or HEADER.unpack_from(self._memory)[0] != sequence:
            return None
        return _decoder.decode(record)

    def _write(self, record: bytes) -> None:
        self._sequence += 2
        HEADER.pack_into(self._memory, 0, self._sequence - 1, 0)
        self._memory[HEADER.size : HEADER.size + len(record)] = record
        HEADER.pack_into(self._memory, 0, self._sequence, len(record))
