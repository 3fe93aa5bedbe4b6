"""What is asked of a shard: each request leaves an entry that stands for the answer it will have."""

from foreshard._core.replies cimport Replies
from foreshard.proxy.wire.endpoint cimport Endpoint


cdef class Requests(Endpoint):
    """The part of a backend that writes."""

    def __cinit__(self):
        self.replies = Replies()
        self.prepared = set()
        self.parsing = []

    cdef int write_message(self, char type, const char* body, Py_ssize_t size) except -1:
        """Queue a message; `flush` sends it."""
        self.outbox.append_byte(type)
        self.outbox.append_int32(<int> size + 4)
        self.outbox.append(body, size)
        return 0

    cdef int write_query(self, bytes sql, int entry) except -1:
        """Queue a simple Query of ours; it ends the shard's unnamed statement."""
        self.unnamed = None
        self.write_message(b"Q", <const char*> sql, len(sql) + 1)
        self.replies.push(entry)
        return 0

    cdef int write_empty(self, char type, int entry) except -1:
        """Queue a message without a body (Sync, Flush)."""
        self.outbox.append_byte(type)
        self.outbox.append_int32(4)
        if entry:
            self.replies.push(entry)
        return 0

    cdef int write_parse(self, object statement, bytes name, const char* body, Py_ssize_t size, int entry) except -1:
        """Queue a Parse: `body` is everything after the name (query, parameter types)."""
        self.outbox.append_byte(b"P")
        self.outbox.append_int32(<int> (4 + len(name) + 1 + size))
        self.outbox.append(<const char*> name, len(name) + 1)
        self.outbox.append(body, size)
        self.replies.push(entry)
        self.parsing.append(statement if name else None)
        self.unsynced = True
        if name:
            self.prepared.add(statement.id)
        return 0
