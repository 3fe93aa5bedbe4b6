from libc.stdint cimport int64_t


cdef enum SortClass:            # how values of a type are compared
    SORT_UNKNOWN = 0
    SORT_INTEGER = 1            # as int64: integers, oid, dates and times
    SORT_REAL = 2               # as double, NaN last
    SORT_BYTES = 3              # as unsigned bytes
    SORT_NUMERIC = 4


cdef struct SortKey:
    const char* data            # borrowed; NULL for NULL
    Py_ssize_t size
    int64_t integer
    double real


cdef int sort_class(unsigned int oid) noexcept
# Fill `key` from a value of a row; False for what is no value of the type in a form known here.
cdef bint decode_key(unsigned int oid, bint binary, const char* data, Py_ssize_t size, SortKey* key) noexcept
# -1, 0, 1 as PostgreSQL orders two values that are not NULL.
cdef int compare_values(int sort, bint binary, const SortKey* one, const SortKey* other) noexcept
# The same with NULLs and direction.
cdef int compare_keys(
    int sort, bint binary, bint down, bint nulls_first, const SortKey* one, const SortKey* other) noexcept
