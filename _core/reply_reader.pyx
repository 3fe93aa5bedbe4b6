"""Reads the replies to what the router itself asked in the place of a client.

The bytes come as they would have gone to the client, cut anywhere. What only that client can use (notices, parameters,
notifications) is kept for it; ParseComplete and the like say nothing that is needed.
"""

cimport cython

from foreshard._core.buffer cimport Buffer
from foreshard._core.frames cimport FRAME_MALFORMED, FRAME_WHOLE, scan_frame

from foreshard._core.errors import SqlError

cdef enum:
    MESSAGE_BYTES_MAX = 0x7FFFFFF0


@cython.final
cdef class ReplyReader:
    """One for each statement that is carried out by others of the router's own."""

    def __cinit__(self):
        self.held = Buffer()
        self.rows = []
        self.others = []

    cdef int feed(self, const char* data, Py_ssize_t size) except -1:
        """Take in bytes."""
        cdef Py_ssize_t at = 0, total = 0
        cdef int result = FRAME_WHOLE
        self.held.append(data, size)
        size = self.held.end - self.held.start
        data = self.held.data + self.held.start
        while at < size:
            result = scan_frame(data + at, size - at, MESSAGE_BYTES_MAX, &total)
            if result != FRAME_WHOLE:
                break
            self.read(data[at], data + at, total)
            at += total
        self.held.consume(at)
        if result == FRAME_MALFORMED:
            raise SqlError("08P01", "a shard sent a malformed message")
        return 0

    cdef int read(self, char type, const char* message, Py_ssize_t total) except -1:
        """One whole message."""
        if type == b"D":
            self.rows.append(message[5:total])
            self.rows_size += total
        elif type == b"T":
            self.description = message[5:total]
        elif type == b"C":
            self.tag = message[5:total - 1]
        elif type == b"s":
            self.is_suspended = True
        elif type == b"E":
            self.error = self.error or message[5:total]
        elif type == b"N" or type == b"S" or type == b"A":
            self.others.append(message[:total])
        return 0

    cdef list take_rows(self):
        """The rows so far, which are forgotten."""
        rows, self.rows = self.rows, []
        self.rows_size = 0
        return rows

    cdef list take_others(self):
        """The messages for the client so far, which are forgotten."""
        others, self.others = self.others, []
        return others

    cdef bytes take_tag(self):
        """The tag of the statement that has completed, None when it has more rows; both are forgotten."""
        tag, self.tag = self.tag, None
        self.is_suspended = False
        return tag

    def take_in(self, bytes data not None) -> None:
        """`feed` for callers without a buffer of their own."""
        self.feed(data, len(data))
