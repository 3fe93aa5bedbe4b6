cdef enum ValueFormat:
    VALUE_TEXT = 0      # a bound parameter in text format
    VALUE_BINARY = 1    # a bound parameter in binary format
    VALUE_NUMBER = 2    # a numeric literal of the SQL text, without its sign
    VALUE_STRING = 3    # the inside of a quoted literal of the SQL text, escapes not undone


cdef struct Value:
    const char* data    # borrowed: valid while the message or statement it points into is
    Py_ssize_t size     # bytes; -1 for NULL
    int format          # a ValueFormat


cdef class Values:
    cdef Value* items           # count of them are set
    cdef Py_ssize_t count
    cdef Py_ssize_t capacity

    cdef void clear(self) noexcept
    cdef int append(self, const char* data, Py_ssize_t size, int format) except -1
