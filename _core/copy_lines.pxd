from libc.stdint cimport int64_t


cdef class LineMap:
    cdef int64_t* firsts            # line of the shard's own data from which `offsets` holds
    cdef int64_t* offsets           # what to add to get the client's line
    cdef Py_ssize_t count
    cdef Py_ssize_t capacity
    cdef readonly int64_t lines     # that the shard has been sent

    cdef int add(self, int64_t lines, int64_t client_line) except -1
    cdef int64_t find(self, int64_t line) noexcept
