"""Which line of the client's data a line of one shard's data is, for errors that name one.

A run of lines that stand together in both costs one entry, so memory is bounded: beyond RUNS_MAX runs the oldest half
is forgotten, and nothing is said of its lines. Only what a shard has not read yet matters, which is far less.
"""

cimport cython
from libc.stdint cimport int64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memmove

cdef enum:
    RUNS_MIN = 64
    RUNS_MAX = 131072       # 2 MB; chosen, not measured: more rows than sockets and PostgreSQL hold unread


@cython.final
cdef class LineMap:
    """Owned by one part of a COPY."""

    def __cinit__(self):
        self.firsts = NULL
        self.offsets = NULL
        self.count = 0
        self.capacity = 0
        self.lines = 0

    def __dealloc__(self):
        free(self.firsts)
        free(self.offsets)

    cdef int add(self, int64_t lines, int64_t client_line) except -1:
        """So many more lines are the shard's; the first of them is this line of the client's."""
        cdef int64_t offset = client_line - self.lines - 1
        if self.count == 0 or self.offsets[self.count - 1] != offset:
            if self.count == self.capacity:
                self.make_room()
            self.firsts[self.count] = self.lines + 1
            self.offsets[self.count] = offset
            self.count += 1
        self.lines += lines
        return 0

    def make_room(self) -> None:
        """Room for one more run."""
        cdef Py_ssize_t half = self.count // 2
        cdef Py_ssize_t capacity = self.capacity * 2 if self.capacity else RUNS_MIN
        cdef int64_t* firsts
        cdef int64_t* offsets
        if self.capacity == RUNS_MAX:
            memmove(self.firsts, self.firsts + half, (self.count - half) * sizeof(int64_t))
            memmove(self.offsets, self.offsets + half, (self.count - half) * sizeof(int64_t))
            self.count -= half
            return
        firsts = <int64_t*> realloc(self.firsts, capacity * sizeof(int64_t))
        if firsts == NULL:
            raise MemoryError()
        self.firsts = firsts
        offsets = <int64_t*> realloc(self.offsets, capacity * sizeof(int64_t))
        if offsets == NULL:
            raise MemoryError()
        self.offsets = offsets
        self.capacity = capacity

    cdef int64_t find(self, int64_t line) noexcept:
        """The client's line; 0 when it is not known (any more)."""
        cdef Py_ssize_t low = 0, high = self.count, middle
        if self.count == 0 or line < self.firsts[0] or line > self.lines:
            return 0
        while high - low > 1:
            middle = (low + high) // 2
            if self.firsts[middle] <= line:
                low = middle
            else:
                high = middle
        return line + self.offsets[low]

    def __len__(self) -> int:
        return self.count

    def add_lines(self, lines: int, client_line: int) -> None:
        """`add`, for tests."""
        self.add(lines, client_line)

    def find_line(self, line: int) -> int:
        """`find`, for tests."""
        return self.find(line)
