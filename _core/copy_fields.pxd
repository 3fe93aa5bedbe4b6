from foreshard._core.buffer cimport Buffer
from foreshard._core.copy_plan cimport CopyPlan


cdef bint wants(CopyPlan plan, int column) except -1
cdef bint equals(const char* data, Py_ssize_t size, bytes other) except -1
cdef int check_encoding(bytes record) except -1
cdef Py_ssize_t read_quoted(
    CopyPlan plan, const char* data, Py_ssize_t size, Py_ssize_t at, Buffer out, bint* is_quoted
) except -1
cdef Py_ssize_t read_escaped(CopyPlan plan, const char* data, Py_ssize_t size, Py_ssize_t at, Buffer out) except -1
