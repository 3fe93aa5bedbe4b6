"""Bigint keys out of parameters and literals, as PostgreSQL's own input functions read them.

Text is read as int8in does (white space, sign, decimal, 0x, 0o, 0b, single underscores between digits), binary by its
size (int2, int4, int8), arrays as array_in and array_recv do. What is not understood is READ_MALFORMED, never a guess.

1. Nothing outside the value is read.
2. A key that is read is the one the shard compares with; whoever binds a parameter of another type (numeric, float8)
   to a key is refused before (Template.check_types).
"""

from libc.stdint cimport int16_t, int32_t, int64_t, uint64_t
from libc.string cimport memcpy

from foreshard._core.values cimport VALUE_BINARY, VALUE_NUMBER, Value

cdef extern from "endian.h" nogil:
    unsigned short be16toh(unsigned short)
    unsigned int be32toh(unsigned int)
    unsigned long long be64toh(unsigned long long)

cdef enum:
    INT2_OID = 21
    INT4_OID = 23
    INT8_OID = 20
    ARRAY_HEADER_SIZE = 12  # dimensions, has-null flag, element type
    DIMENSION_SIZE = 8
    DIMENSIONS_MAX = 6


cdef inline bint is_space(char byte) noexcept:
    return byte == 32 or 9 <= byte <= 13


cdef inline int digit_value(char byte) noexcept:
    if 48 <= byte <= 57:
        return byte - 48
    byte |= 32
    if 97 <= byte <= 102:
        return byte - 87
    return 16


cdef int read_digits(const char* at, const char* end, bint negative, int64_t* key) noexcept:
    """Read an unsigned integer that fills [at, end)."""
    cdef uint64_t total = 0
    cdef uint64_t limit = (<uint64_t> 1 << 63) if negative else (<uint64_t> 1 << 63) - 1
    cdef int base = 10
    cdef int digit
    cdef bint digit_before = False
    cdef bint any_digit = False
    if end - at > 2 and at[0] == b"0" and digit_value(at[1]) != at[1] - 48:
        base = 16 if at[1] | 32 == b"x" else 8 if at[1] | 32 == b"o" else 2 if at[1] | 32 == b"b" else 10
        if base != 10:
            at += 2
            digit_before = True     # 0x_1F is one form
    while at < end:
        if at[0] == b"_" and digit_before and at + 1 < end:
            digit_before = False
        else:
            digit = digit_value(at[0])
            if digit >= base:
                return READ_MALFORMED
            if total > (<uint64_t> 1 << 63) // <uint64_t> base:
                return READ_RANGE       # before whatever follows is looked at, as PostgreSQL does
            total = total * base + digit
            digit_before = any_digit = True
        at += 1
    if not any_digit:
        return READ_MALFORMED
    if total > limit:
        return READ_RANGE
    key[0] = <int64_t> (0 - total) if negative else <int64_t> total
    return READ_KEY


cdef int read_text(const char* at, const char* end, int64_t* key) noexcept:
    """Read what int8in accepts."""
    cdef bint negative = False
    while at < end and is_space(at[0]):
        at += 1
    while at < end and is_space(end[-1]):
        end -= 1
    if at < end and (at[0] == b"-" or at[0] == b"+"):
        negative = at[0] == b"-"
        at += 1
    return read_digits(at, end, negative, key)


cdef int read_binary(const char* data, Py_ssize_t size, int64_t* key) noexcept:
    """Read an int2, int4 or int8 by its size."""
    cdef unsigned short two
    cdef unsigned int four
    cdef unsigned long long eight
    if size == 8:
        memcpy(&eight, data, 8)
        key[0] = <int64_t> be64toh(eight)
    elif size == 4:
        memcpy(&four, data, 4)
        key[0] = <int32_t> be32toh(four)
    elif size == 2:
        memcpy(&two, data, 2)
        key[0] = <int16_t> be16toh(two)
    else:
        return READ_MALFORMED
    return READ_KEY


cdef int read_key(const Value* value, bint negative, int64_t* key) noexcept:
    """Read one key. `negative` says that a minus stands before the numeric literal."""
    cdef int reading
    if value.size < 0:
        return READ_NULL
    if value.format == VALUE_BINARY:
        return read_binary(value.data, value.size, key)
    if value.format == VALUE_NUMBER:
        reading = read_digits(value.data, value.data + value.size, negative, key)
        return READ_NONE if reading == READ_RANGE else reading
    return read_text(value.data, value.data + value.size, key)


cdef inline int read_int32(const char* data) noexcept:
    cdef unsigned int four
    memcpy(&four, data, 4)
    return <int32_t> be32toh(four)


cdef int open_array(const Value* value, ArrayCursor* cursor) noexcept:
    """Check the frame of an array; READ_KEY when its elements can be read, READ_NULL for NULL."""
    cdef int dimensions
    cdef int element
    cdef int64_t total = 1
    if value.size < 0:
        return READ_NULL
    cursor.at = value.data
    cursor.end = value.data + value.size
    cursor.format = value.format
    cursor.remaining = 0
    cursor.closed = False
    if value.format != VALUE_BINARY:
        while cursor.at < cursor.end and is_space(cursor.at[0]):
            cursor.at += 1
        while cursor.at < cursor.end and is_space(cursor.end[-1]):
            cursor.end -= 1
        if cursor.end - cursor.at < 2 or cursor.at[0] != b"{" or cursor.end[-1] != b"}":
            return READ_MALFORMED
        return READ_KEY
    if value.size < ARRAY_HEADER_SIZE:
        return READ_MALFORMED
    dimensions = read_int32(value.data)
    element = read_int32(value.data + 8)
    if not 0 <= dimensions <= DIMENSIONS_MAX or not (element == INT8_OID or element == INT4_OID or element == INT2_OID):
        return READ_MALFORMED
    cursor.at += ARRAY_HEADER_SIZE
    if cursor.end - cursor.at < DIMENSION_SIZE * dimensions:
        return READ_MALFORMED
    for _ in range(dimensions):
        if read_int32(cursor.at) < 0 or total > value.size:
            return READ_MALFORMED
        total *= read_int32(cursor.at)
        cursor.at += DIMENSION_SIZE
    if total > value.size:
        return READ_MALFORMED
    cursor.remaining = <int> total if dimensions else 0
    return READ_KEY


cdef int next_binary(ArrayCursor* cursor, int64_t* key) noexcept:
    cdef int size
    if cursor.remaining == 0:
        return READ_NONE if cursor.at == cursor.end else READ_MALFORMED
    cursor.remaining -= 1
    if cursor.end - cursor.at < 4:
        return READ_MALFORMED
    size = read_int32(cursor.at)
    cursor.at += 4
    if size == -1:
        return READ_NULL
    if size < 0 or cursor.end - cursor.at < size:
        return READ_MALFORMED
    cursor.at += size
    return read_binary(cursor.at - size, size, key)


cdef inline bint is_null(const char* at, const char* end) noexcept:
    return (
        end - at == 4 and at[0] | 32 == b"n" and at[1] | 32 == b"u" and at[2] | 32 == b"l" and at[3] | 32 == b"l"
    )


cdef int next_text(ArrayCursor* cursor, int64_t* key) noexcept:
    """Read the next element; braces and commas only part them, so nested arrays come out flat."""
    cdef const char* start
    cdef const char* stop
    while cursor.at < cursor.end and (is_space(cursor.at[0]) or cursor.at[0] in b"{},"):
        cursor.at += 1
    if cursor.at == cursor.end:
        return READ_NONE
    start = cursor.at
    while cursor.at < cursor.end and cursor.at[0] not in b"{},":
        if cursor.at[0] == b"\\":
            return READ_MALFORMED
        cursor.at += 1
    stop = cursor.at
    while is_space(stop[-1]):
        stop -= 1
    if is_null(start, stop):
        return READ_NULL
    if stop - start >= 2 and start[0] == b'"' and stop[-1] == b'"':
        return read_text(start + 1, stop - 1, key)
    return read_text(start, stop, key)


cdef int next_key(ArrayCursor* cursor, int64_t* key) noexcept:
    """Read the next element: READ_KEY, READ_NULL, READ_NONE at the end, or what is wrong with it."""
    return next_binary(cursor, key) if cursor.format == VALUE_BINARY else next_text(cursor, key)


cdef int describe(bytes data, int format, Value* value) except -1:
    """Point a value at bytes that outlive it; None is NULL."""
    value.data = NULL
    value.size = -1
    value.format = format
    if data is not None:
        value.data = <const char*> data
        value.size = len(data)
    return 0


def parse_key(data: bytes | None, format: int = 0, negative: bool = False) -> int | str | None:
    """One key: the integer, None for NULL, or what is wrong: "none", "malformed", "range"."""
    cdef Value value
    cdef int64_t key = 0
    cdef int reading
    describe(data, format, &value)
    reading = read_key(&value, negative, &key)
    if reading == READ_KEY:
        return key
    return {READ_NULL: None, READ_NONE: "none", READ_MALFORMED: "malformed", READ_RANGE: "range"}[reading]


def parse_keys(data: bytes | None, format: int = 0) -> list[int] | str | None:
    """The keys of an array without its NULLs, None for NULL, or what is wrong: "malformed", "range"."""
    cdef Value value
    cdef ArrayCursor cursor
    cdef int64_t key = 0
    cdef int reading
    describe(data, format, &value)
    reading = open_array(&value, &cursor)
    if reading != READ_KEY:
        return None if reading == READ_NULL else "malformed"
    found = []
    while True:
        reading = next_key(&cursor, &key)
        if reading == READ_NONE:
            return found
        if reading == READ_KEY:
            found.append(key)
        elif reading != READ_NULL:
            return "malformed" if reading == READ_MALFORMED else "range"
