from libc.stdint cimport int64_t

from foreshard._core.values cimport Value


cdef enum Reading:
    READ_KEY = 0        # an integer was read
    READ_NULL = 1
    READ_NONE = 2       # a number that no bigint equals: no row can have it
    READ_MALFORMED = 3  # PostgreSQL's 22P02, or a form that is not read here
    READ_RANGE = 4      # PostgreSQL's 22003
    READ_OTHER = 5      # a form that may be right and is not read here: settings may decide what it means
    READ_OVERFLOW = 6   # a date that no calendar has: 22008
    READ_SHORT = 7      # binary, too few bytes: 08P01
    READ_LONG = 8       # binary, too many bytes: 22P03
    READ_HEXADECIMAL = 9    # bytea with another letter among its digits: 22023
    READ_ODD = 10       # bytea with half a byte: 22023


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
