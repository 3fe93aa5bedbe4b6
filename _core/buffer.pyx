"""A byte queue in one block of memory: bytes are appended at the end and consumed at the start.

Rules: pointers into the buffer live until the next call that may grow or clear it; an emptied buffer gives large
memory back, so that a thousand idle clients cost no more than their structs.
"""

cimport cython
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memmove

cdef enum:
    CAPACITY_MIN = 1024
    CAPACITY_KEPT_MAX = 65536   # chosen, not measured: what an emptied buffer may keep


@cython.final
cdef class Buffer:
    """Owned by one endpoint; freed with it."""

    def __cinit__(self):
        self.data = NULL
        self.start = 0
        self.end = 0
        self.capacity = 0

    def __dealloc__(self):
        free(self.data)

    cdef char* reserve(self, Py_ssize_t size) except NULL:
        """Room for `size` more bytes; returns where they go. The caller moves `end`."""
        cdef Py_ssize_t held = self.end - self.start
        cdef Py_ssize_t capacity
        cdef char* grown
        if self.data != NULL and self.capacity - self.end >= size:
            return self.data + self.end
        if self.start and self.capacity - held >= size and held <= self.start:
            memcpy(self.data, self.data + self.start, held)
        else:
            capacity = CAPACITY_MIN if self.capacity == 0 else self.capacity
            while capacity - held < size:
                capacity *= 2
            if self.start:
                memmove(self.data, self.data + self.start, held)
                self.start = 0
                self.end = held
            if capacity > self.capacity:
                grown = <char*> realloc(self.data, capacity)
                if grown == NULL:
                    raise MemoryError()
                self.data = grown
                self.capacity = capacity
        self.start = 0
        self.end = held
        return self.data + held

    cdef int append(self, const char* data, Py_ssize_t size) except -1:
        """Copy `size` bytes to the end."""
        memcpy(self.reserve(size), data, size)
        self.end += size
        return 0

    cdef int append_byte(self, char byte) except -1:
        """Append one byte."""
        self.reserve(1)[0] = byte
        self.end += 1
        return 0

    cdef int append_int32(self, int value) except -1:
        """Append four bytes in network order."""
        cdef char* at = self.reserve(4)
        at[0] = <char> ((value >> 24) & 0xFF)
        at[1] = <char> ((value >> 16) & 0xFF)
        at[2] = <char> ((value >> 8) & 0xFF)
        at[3] = <char> (value & 0xFF)
        self.end += 4
        return 0

    cdef void consume(self, Py_ssize_t size) noexcept:
        """Drop `size` bytes at the start."""
        self.start += size
        if self.start >= self.end:
            self.clear()

    cdef void clear(self) noexcept:
        """Drop everything."""
        self.start = 0
        self.end = 0
        if self.capacity > CAPACITY_KEPT_MAX:
            free(self.data)
            self.data = NULL
            self.capacity = 0

    def __len__(self) -> int:
        return self.end - self.start

    def feed(self, bytes data) -> None:
        """Append, for tests and slow paths."""
        self.append(data, len(data))

    def take(self, Py_ssize_t size = -1) -> bytes:
        """Remove and return the first `size` bytes (all by default), for tests and slow paths."""
        cdef Py_ssize_t held = self.end - self.start
        if size < 0 or size > held:
            size = held
        taken = self.data[self.start:self.start + size] if size else b""
        self.consume(size)
        return taken
