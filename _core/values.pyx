"""The values of one statement, in place: bound parameters or literals lifted out of the SQL text.

A `Values` owns only the array of descriptors, never the bytes they point to; one instance is cleared and
filled again for each message, so the hot path allocates nothing.
"""

cimport cython
from libc.stdlib cimport free, realloc


@cython.final
cdef class Values:
    """A growing array of value descriptors. Made by whoever decodes; borrowed by routing and features."""

    def __cinit__(self):
        self.items = NULL
        self.count = 0
        self.capacity = 0

    def __dealloc__(self):
        free(self.items)

    cdef void clear(self) noexcept:
        """Forget the values, keep the memory."""
        self.count = 0

    cdef int append(self, const char* data, Py_ssize_t size, int format) except -1:
        """Add one value; `size` -1 means NULL. MemoryError when the array cannot grow."""
        cdef Py_ssize_t capacity
        cdef Value* grown
        if self.count == self.capacity:
            capacity = self.capacity * 2 if self.capacity else 16
            grown = <Value*> realloc(self.items, capacity * sizeof(Value))
            if grown == NULL:
                raise MemoryError()
            self.items = grown
            self.capacity = capacity
        self.items[self.count].data = data
        self.items[self.count].size = size
        self.items[self.count].format = format
        self.count += 1
        return 0

    def __len__(self) -> int:
        return self.count
