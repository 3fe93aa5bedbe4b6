from libc.stdint cimport int64_t

from foreshard._core.values cimport Value


cdef enum Reading:
    READ_KEY = 0        # an integer was read
    READ_NULL = 1
    READ_NONE = 2       # a number that no bigint equals: no row can have it
    READ_MALFORMED = 3  # PostgreSQL's 22P02, or a form that is not read here
    READ_RANGE = 4      # PostgreSQL's 22003


cdef struct ArrayCursor:
    const char* at
    const char* end
    int format          # of the array's value
    int remaining       # elements left, binary only
    bint closed         # text only: the last brace was read


cdef int read_key(const Value* value, bint negative, int64_t* key) noexcept
# Elements of an array, one `next_key` each, nested arrays flattened; READ_NONE at the end.
cdef int open_array(const Value* value, ArrayCursor* cursor) noexcept
cdef int next_key(ArrayCursor* cursor, int64_t* key) noexcept
