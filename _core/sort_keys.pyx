"""Values of a result, text or binary, in the order that PostgreSQL gives them.

Only types whose order is certain: for strings that of their bytes, which the planner has seen to. Dates and times in
text are read in ISO style; any other style is told to be no value, never misread.

Source: the btree operator classes of PostgreSQL 17 (int8.c, float.c, numeric.c, timestamp.c, varlena.c, varchar.c).
"""

from libc.math cimport isnan
from libc.stdint cimport INT64_MAX, INT64_MIN, int16_t, int32_t, int64_t, uint32_t, uint64_t
from libc.stdlib cimport strtod
from libc.string cimport memcmp, memcpy

cdef enum:
    BOOL = 16
    BYTEA = 17
    INT8 = 20
    INT2 = 21
    INT4 = 23
    TEXT = 25
    OID = 26
    FLOAT4 = 700
    FLOAT8 = 701
    BPCHAR = 1042
    VARCHAR = 1043
    DATE = 1082
    TIME = 1083
    TIMESTAMP = 1114
    TIMESTAMPTZ = 1184
    NUMERIC = 1700
    UUID = 2950

cdef int64_t DAY_US = 86400000000
cdef int NUMERIC_NEGATIVE = 0x4000
cdef int NUMERIC_NAN = 0xC000
cdef int NUMERIC_PINF = 0xD000
cdef int NUMERIC_NINF = 0xF000


cdef struct Reader:
    const char* at
    const char* end
    bint bad


cdef int sort_class(unsigned int oid) noexcept:
    """How values of a type are compared."""
    if oid in (BOOL, INT2, INT4, INT8, OID, DATE, TIME, TIMESTAMP, TIMESTAMPTZ):
        return SORT_INTEGER
    if oid == FLOAT4 or oid == FLOAT8:
        return SORT_REAL
    if oid in (TEXT, VARCHAR, BPCHAR, BYTEA, UUID):
        return SORT_BYTES
    return SORT_NUMERIC if oid == NUMERIC else SORT_UNKNOWN


cdef bint decode_key(unsigned int oid, bint binary, const char* data, Py_ssize_t size, SortKey* key) noexcept:
    """Read what comparisons need once."""
    cdef int sort = sort_class(oid)
    key.data = data
    key.size = size
    if sort == SORT_INTEGER:
        return decode_binary(size, data, oid, key) if binary else decode_text(oid, key)
    if sort == SORT_REAL:
        return decode_real(oid, binary, key)
    if oid == BPCHAR:
        while key.size and data[key.size - 1] == b" ":
            key.size -= 1
    elif oid == BYTEA and not binary:
        return size >= 2 and data[0] == b"\\" and data[1] == b"x"
    elif oid == NUMERIC and binary:
        return size >= 8 and size == 8 + 2 * read16(data)
    return sort != SORT_UNKNOWN


cdef int read16(const char* at) noexcept:
    """A 16-bit integer in network order, signed."""
    return <int16_t> (<unsigned char> at[0] << 8 | <unsigned char> at[1])


cdef bint decode_binary(Py_ssize_t size, const char* data, unsigned int oid, SortKey* key) noexcept:
    """A big-endian integer of 1, 2, 4 or 8 bytes."""
    cdef uint64_t value = 0
    cdef Py_ssize_t index
    if size != 1 and size != 2 and size != 4 and size != 8:
        return False
    for index in range(size):
        value = value << 8 | <unsigned char> data[index]
    if size == 2:
        key.integer = <int16_t> value
    elif size == 4:
        key.integer = <int64_t> value if oid == OID else <int32_t> value
    else:
        key.integer = <int64_t> value
    return True


cdef bint decode_real(unsigned int oid, bint binary, SortKey* key) noexcept:
    """A float; text is followed by the next field's length, so strtod needs a copy."""
    cdef char copy[64]
    cdef char* end
    cdef uint64_t bits = 0
    cdef uint32_t bits32
    cdef float single
    cdef Py_ssize_t index
    if binary:
        if key.size != (4 if oid == FLOAT4 else 8):
            return False
        for index in range(key.size):
            bits = bits << 8 | <unsigned char> key.data[index]
        if oid == FLOAT4:
            bits32 = <uint32_t> bits
            memcpy(&single, &bits32, 4)
            key.real = single
        else:
            memcpy(&key.real, &bits, 8)
        return True
    if not 0 < key.size < 64:
        return False
    memcpy(copy, key.data, key.size)
    copy[key.size] = 0
    key.real = strtod(copy, &end)
    return end - copy == key.size


cdef bint decode_text(unsigned int oid, SortKey* key) noexcept:
    """An integer, boolean, date or time in text."""
    cdef Reader reader
    reader.at = key.data
    reader.end = key.data + key.size
    reader.bad = False
    if oid == BOOL:
        key.integer = key.data[0] == b"t"
        return key.size == 1 and (key.data[0] == b"t" or key.data[0] == b"f")
    if oid == TIME:
        key.integer = read_time(&reader)
    elif oid == DATE or oid == TIMESTAMP or oid == TIMESTAMPTZ:
        key.integer = read_timestamp(oid, &reader)
    else:
        key.integer = read_integer(&reader)
    return not reader.bad and reader.at == reader.end


cdef int64_t read_integer(Reader* reader) noexcept:
    """A signed integer; PostgreSQL prints none that is out of range."""
    cdef bint negative = reader.at < reader.end and reader.at[0] == b"-"
    cdef const char* start
    cdef uint64_t value = 0
    reader.at += negative
    start = reader.at
    while reader.at < reader.end and b"0" <= reader.at[0] <= b"9":
        value = value * 10 + <unsigned char> (reader.at[0] - 48)
        reader.at += 1
    reader.bad = reader.bad or reader.at == start or reader.at - start > 19
    return <int64_t> (0 - value) if negative else <int64_t> value


cdef bint take(Reader* reader, char byte) noexcept:
    """Whether this byte is next; it is taken then."""
    if reader.at < reader.end and reader.at[0] == byte:
        reader.at += 1
        return True
    return False


cdef int64_t read_two(Reader* reader) noexcept:
    """Two digits."""
    cdef int64_t value
    if reader.end - reader.at < 2 or not (b"0" <= reader.at[0] <= b"9" and b"0" <= reader.at[1] <= b"9"):
        reader.bad = True
        return 0
    value = (reader.at[0] - 48) * 10 + reader.at[1] - 48
    reader.at += 2
    return value


cdef int64_t read_time(Reader* reader) noexcept:
    """HH:MM:SS[.ffffff] in microseconds."""
    cdef int64_t value = read_two(reader) * 60, fraction = 0, unit = 1000000
    reader.bad = reader.bad or not take(reader, b":")
    value = (value + read_two(reader)) * 60
    reader.bad = reader.bad or not take(reader, b":")
    value += read_two(reader)
    if take(reader, b"."):
        while unit > 1 and reader.at < reader.end and b"0" <= reader.at[0] <= b"9":
            unit //= 10
            fraction += (reader.at[0] - 48) * unit
            reader.at += 1
    return value * 1000000 + fraction


cdef int64_t read_timestamp(unsigned int oid, Reader* reader) noexcept:
    """YYYY-MM-DD[ HH:MM:SS[.ffffff][+HH[:MM[:SS]]]][ BC], or [-]infinity: days of a date, microseconds of others."""
    cdef Py_ssize_t size = reader.end - reader.at
    cdef int64_t year, month, day, value, clock = 0, zone = 0
    cdef bint west
    if size == 8 and memcmp(reader.at, b"infinity", 8) == 0:
        reader.at = reader.end
        return INT64_MAX
    if size == 9 and memcmp(reader.at, b"-infinity", 9) == 0:
        reader.at = reader.end
        return INT64_MIN
    if size < 10 or reader.at[0] == b"-":
        reader.bad = True
        return 0
    year = read_integer(reader)
    reader.bad = reader.bad or not take(reader, b"-")
    month = read_two(reader)
    reader.bad = reader.bad or not take(reader, b"-")
    day = read_two(reader)
    if oid != DATE:
        reader.bad = reader.bad or not take(reader, b" ")
        clock = read_time(reader)
    if oid == TIMESTAMPTZ:
        west = take(reader, b"-")
        reader.bad = reader.bad or not (west or take(reader, b"+"))
        zone = read_two(reader) * 3600
        if take(reader, b":"):
            zone += read_two(reader) * 60
            if take(reader, b":"):
                zone += read_two(reader)
        zone = -zone if west else zone
    if reader.end - reader.at == 3 and memcmp(reader.at, b" BC", 3) == 0:
        reader.at = reader.end
        year = 1 - year
    value = days_of(year, month, day)
    return value if oid == DATE else value * DAY_US + clock - zone * 1000000


cdef int64_t days_of(int64_t year, int64_t month, int64_t day) noexcept:
    """Days since some fixed day, in the proleptic Gregorian calendar."""
    cdef int64_t years = year + 4800 - (month <= 2)
    cdef int64_t months = month + 9 if month <= 2 else month - 3
    return years * 365 + years // 4 - years // 100 + years // 400 + (153 * months + 2) // 5 + day


cdef int order(int64_t one, int64_t other) noexcept:
    return (one > other) - (one < other)


cdef int compare_values(int sort, bint binary, const SortKey* one, const SortKey* other) noexcept:
    """-1, 0, 1."""
    cdef int found
    if sort == SORT_INTEGER:
        return order(one.integer, other.integer)
    if sort == SORT_REAL:
        if isnan(one.real) or isnan(other.real):
            return isnan(one.real) - isnan(other.real)
        return (one.real > other.real) - (one.real < other.real)
    if sort == SORT_NUMERIC:
        return compare_binary_numerics(one.data, other.data) if binary else compare_text_numerics(one, other)
    found = memcmp(one.data, other.data, min(one.size, other.size))
    return (found > 0) - (found < 0) if found else order(one.size, other.size)


cdef int compare_keys(
    int sort, bint binary, bint down, bint nulls_first, const SortKey* one, const SortKey* other
) noexcept:
    """-1, 0, 1 in the direction of the sort."""
    cdef int found
    if one.data == NULL or other.data == NULL:
        found = (one.data == NULL) - (other.data == NULL)
        return -found if nulls_first else found
    found = compare_values(sort, binary, one, other)
    return -found if down else found


# -- numerics ------------------------------------------------------------------------------------------------------

cdef int rank_of(int sign) noexcept:
    """Where the special values stand: -Infinity, numbers, Infinity, NaN."""
    return -1 if sign == NUMERIC_NINF else 1 if sign == NUMERIC_PINF else 2 if sign == NUMERIC_NAN else 0


cdef int compare_binary_numerics(const char* one, const char* other) noexcept:
    """Headers (digits, weight, sign, scale) and base-10000 digits, whose sizes were checked."""
    cdef int sign = read16(one + 4) & 0xFFFF, other_sign = read16(other + 4) & 0xFFFF
    cdef int rank = rank_of(sign), other_rank = rank_of(other_sign)
    cdef int size = read16(one), other_size = read16(other)
    cdef int way, other_way, index, found
    if rank or other_rank:
        return order(rank, other_rank)
    way = 0 if size == 0 else -1 if sign == NUMERIC_NEGATIVE else 1
    other_way = 0 if other_size == 0 else -1 if other_sign == NUMERIC_NEGATIVE else 1
    if way != other_way or way == 0:
        return order(way, other_way)
    found = order(read16(one + 2), read16(other + 2))
    index = 0
    while found == 0 and (index < size or index < other_size):
        found = order(
            read16(one + 8 + 2 * index) if index < size else 0,
            read16(other + 8 + 2 * index) if index < other_size else 0)
        index += 1
    return found * way


cdef int text_rank(const SortKey* key) noexcept:
    """As rank_of."""
    if key.data[0] == b"N":
        return 2
    if key.data[0] == b"I":
        return 1
    return -1 if key.size > 1 and key.data[1] == b"I" else 0


cdef Py_ssize_t whole_size(const char* at, const char* end) noexcept:
    """Digits before the point."""
    cdef const char* stop = at
    while stop < end and stop[0] != b".":
        stop += 1
    return stop - at


cdef int compare_text_numerics(const SortKey* one, const SortKey* other) noexcept:
    """As numeric_out prints them: [-]digits[.digits], no zeros in front, NaN, [-]Infinity."""
    cdef const char* at = one.data
    cdef const char* end = one.data + one.size
    cdef const char* other_at = other.data
    cdef const char* other_end = other.data + other.size
    cdef bint minus, other_minus
    cdef int rank, other_rank, found
    if one.size == 0 or other.size == 0:
        return order(one.size, other.size)
    rank = text_rank(one)
    other_rank = text_rank(other)
    if rank or other_rank:
        return order(rank, other_rank)
    minus = at[0] == b"-"
    other_minus = other_at[0] == b"-"
    if minus != other_minus:
        return -1 if minus else 1       # PostgreSQL prints no -0
    at += minus
    other_at += other_minus
    found = order(whole_size(at, end), whole_size(other_at, other_end))
    while found == 0 and (at < end or other_at < other_end):
        found = order(
            at[0] if at < end and at[0] != b"." else 48, other_at[0] if other_at < other_end and other_at[0] != b"."
            else 48)
        at += at < end
        other_at += other_at < other_end
    return -found if minus else found


def check_compare(int oid, bint binary, bytes one, bytes other) -> int:
    """compare_values for tests; ValueError for what is no value."""
    cdef SortKey first
    cdef SortKey second
    if not decode_key(oid, binary, one, len(one), &first) or not decode_key(oid, binary, other, len(other), &second):
        raise ValueError("not a value of the type")
    return compare_values(sort_class(oid), binary, &first, &second)
