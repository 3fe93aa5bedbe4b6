cdef class Buffer:
    cdef char* data
    cdef Py_ssize_t start       # first byte not yet taken
    cdef Py_ssize_t end         # one past the last byte held
    cdef Py_ssize_t capacity

    cdef char* reserve(self, Py_ssize_t size) except NULL
    cdef int append(self, const char* data, Py_ssize_t size) except -1
    cdef int append_byte(self, char byte) except -1
    cdef int append_int32(self, int value) except -1
    cdef void consume(self, Py_ssize_t size) noexcept
    cdef void clear(self) noexcept
