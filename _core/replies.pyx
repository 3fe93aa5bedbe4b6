"""The replies a backend still owes, oldest first: one byte each, so pipelining costs no objects.

Each message sent to a backend that will be answered pushes one entry; the head says what the next reply belongs to and
whether the client is to see it. Synthetic entries are answers that Foreshard gives itself in the right place.
"""

cimport cython
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy


@cython.final
cdef class Replies:
    """A ring of entries (ReplyKind and flags). Owned by one backend."""

    def __cinit__(self):
        self.items = NULL
        self.head = 0
        self.count = 0
        self.capacity = 0

    def __dealloc__(self):
        free(self.items)

    cdef int push(self, int entry) except -1:
        """Add an entry at the end."""
        cdef Py_ssize_t capacity
        cdef unsigned char* grown
        if self.count == self.capacity:
            capacity = self.capacity * 2 if self.capacity else 16
            grown = <unsigned char*> realloc(self.items, capacity)
            if grown == NULL:
                raise MemoryError()
            # The wrapped part goes behind the old end; it fits, for the capacity has doubled.
            memcpy(grown + self.capacity, grown, self.head)
            self.items = grown
            self.capacity = capacity
        self.items[(self.head + self.count) & (self.capacity - 1)] = <unsigned char> entry
        self.count += 1
        return 0

    cdef int peek(self) noexcept:
        """The head; REPLY_NONE when nothing is owed."""
        return self.items[self.head] if self.count else REPLY_NONE

    cdef int pop(self) noexcept:
        """Remove and return the head; REPLY_NONE when nothing is owed."""
        cdef int entry
        if self.count == 0:
            return REPLY_NONE
        entry = self.items[self.head]
        self.head = (self.head + 1) & (self.capacity - 1)
        self.count -= 1
        return entry

    cdef int drop_last(self) noexcept:
        """Remove and return the newest entry; REPLY_NONE when nothing is owed."""
        if self.count == 0:
            return REPLY_NONE
        self.count -= 1
        return self.items[(self.head + self.count) & (self.capacity - 1)]

    cdef bint is_binding(self, bint may_parse) noexcept:
        cdef Py_ssize_t index
        cdef int entry, kind
        for index in range(self.count):
            entry = self.items[(self.head + index) & (self.capacity - 1)]
            kind = entry & REPLY_KIND_MASK
            if entry & REPLY_SWALLOW == 0 and (
                    kind == REPLY_QUERY or kind == REPLY_EXECUTE or kind == REPLY_SYNC or kind == REPLY_POISON or
                    (kind == REPLY_PARSE and not may_parse)):
                return False
        return True

    cdef void clear(self) noexcept:
        """Forget every entry."""
        self.head = 0
        self.count = 0

    def __len__(self) -> int:
        return self.count

    def add(self, int entry) -> None:
        """push() for tests."""
        self.push(entry)

    def take(self) -> int:
        """pop() for tests."""
        return self.pop()
