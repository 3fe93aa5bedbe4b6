"""Keys of every type that a table may be sharded by: out of parameters and literals, to PostgreSQL's extended hash.

A home bucket is the hash under `home_seed()` modulo 4096. The hash of a key of several columns takes the hash of its
first column as the seed of the second, and so on. What SQL says of each type is in HASH_SQL, as an expression over
`key` and `seed`, and must stay equal for ever: rows lie where it says.

1. A key that is read is the one the shard stores and compares with. Forms whose meaning settings decide (dates as
   people write them, timestamps with time zone that name none) are READ_OTHER, never a guess.
2. Text is hashed as the bytes it has: clients, router and shards all use UTF8, and collations are deterministic.
3. A varchar(n) drops spaces beyond n when it is stored, so they are dropped before hashing.
4. bytea hashes as its hexadecimal text: PostgreSQL before 17 has no hash function for it that SQL can call.
"""

from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.string cimport memchr, memcpy

from foreshard._core.buckets cimport BUCKET_COUNT, bucket_of_key, home_of_hash, home_seed
from foreshard._core.hashing cimport hash_int8_extended, hash_text_extended, hash_uuid_extended
from foreshard._core.key_values cimport (
    READ_HEXADECIMAL, READ_KEY, READ_LONG, READ_MALFORMED, READ_NONE, READ_NULL, READ_ODD, READ_OTHER, READ_OVERFLOW,
    READ_RANGE, READ_SHORT, read_key,
)
from foreshard._core.values cimport VALUE_BINARY, VALUE_NUMBER, VALUE_STRING, VALUE_TEXT, Value

cdef extern from "endian.h" nogil:
    unsigned int be32toh(unsigned int)
    unsigned long long be64toh(unsigned long long)

cdef enum:
    EPOCH_DAYS = 730425         # of 2000-01-01, counted as days_of does
    DAY_S = 86400
    YEAR_MAX = 294276           # of a timestamp
    DIMENSIONS_MAX = 6
    ARRAY_HEADER_SIZE = 12
    DIMENSION_SIZE = 8

cdef int64_t SECOND_US = 1000000
cdef int64_t PLACED_FLAG = <int64_t> 1 << 52

# By KeyType: the SQL of its hash, the types whose values are such keys, and the arrays of them.
HASH_SQL = {
    int(TYPE_INT8): "pg_catalog.hashint8extended(key, seed)",
    int(TYPE_TEXT): 'pg_catalog.hashtextextended(key COLLATE "C", seed)',
    int(TYPE_UUID): "pg_catalog.uuid_hash_extended(key, seed)",
    int(TYPE_BYTEA): "pg_catalog.hashtextextended(pg_catalog.encode(key, 'hex') COLLATE \"C\", seed)",
    int(TYPE_DATE): (
        "pg_catalog.hashint8extended(CASE WHEN key = date 'infinity' THEN 2147483647"
        " WHEN key = date '-infinity' THEN -2147483648 ELSE key - date '2000-01-01' END, seed)"
    ),
    int(TYPE_TIMESTAMP): "pg_catalog.timestamp_hash_extended(key, seed)",
    int(TYPE_TIMESTAMPTZ): "pg_catalog.timestamp_hash_extended(pg_catalog.timezone('UTC', key), seed)",
}
SCALAR_OIDS = {
    int(TYPE_INT8): (20, 21, 23), int(TYPE_INT4): (20, 21, 23), int(TYPE_INT2): (20, 21, 23),
    int(TYPE_TEXT): (25, 1043),
    int(TYPE_UUID): (2950,), int(TYPE_BYTEA): (17,), int(TYPE_DATE): (1082,), int(TYPE_TIMESTAMP): (1114,),
    int(TYPE_TIMESTAMPTZ): (1184,),
}
ARRAY_OIDS = {
    int(TYPE_INT8): (1005, 1007, 1016), int(TYPE_INT4): (1005, 1007, 1016), int(TYPE_INT2): (1005, 1007, 1016),
    int(TYPE_TEXT): (1009, 1015), int(TYPE_UUID): (2951,), int(TYPE_BYTEA): (1001,), int(TYPE_DATE): (1182,),
    int(TYPE_TIMESTAMP): (1115,), int(TYPE_TIMESTAMPTZ): (1185,),
}
TYPE_NAMES = {
    int(TYPE_INT8): "bigint", int(TYPE_INT4): "integer", int(TYPE_INT2): "smallint", int(TYPE_TEXT): "text",
    int(TYPE_UUID): "uuid", int(TYPE_BYTEA): "bytea", int(TYPE_DATE): "date",
    int(TYPE_TIMESTAMP): "timestamp without time zone", int(TYPE_TIMESTAMPTZ): "timestamp with time zone",
}


cdef inline bint is_space(char byte) noexcept:
    return byte == 32 or 9 <= byte <= 13


cdef inline int hex_value(char byte) noexcept:
    if 48 <= byte <= 57:
        return byte - 48
    byte |= 32
    return byte - 87 if 97 <= byte <= 102 else -1


cdef inline bint is_digit(char byte) noexcept:
    return 48 <= byte <= 57


# Integers


cdef int read_integer(const Value* value, int type, bint negative, uint64_t seed, TypedKey* key) noexcept:
    cdef int64_t number = 0
    cdef int64_t limit
    cdef int reading = read_key(value, negative, &number)
    if reading != READ_KEY:
        return reading
    limit = <int64_t> 1 << (15 if type == TYPE_INT2 else 31)
    if type != TYPE_INT8 and value.format != VALUE_BINARY and not -limit <= number < limit:
        return READ_NONE if value.format == VALUE_NUMBER else READ_RANGE
    key.hash = hash_int8_extended(number, seed)
    if PLACED_FLAG <= number < 2 * PLACED_FLAG:
        key.bucket = bucket_of_key(number)
    return READ_KEY


# uuid


cdef int read_uuid(const Value* value, uint64_t seed, TypedKey* key) noexcept:
    """Read what uuid_in and uuid_recv accept."""
    cdef unsigned char found[16]
    cdef const char* at = value.data
    cdef const char* end = value.data + value.size
    cdef int index, high, low
    cdef bint braces
    if value.format == VALUE_BINARY:
        if value.size != 16:
            return READ_SHORT if value.size < 16 else READ_LONG
        memcpy(found, value.data, 16)
    else:
        braces = at < end and at[0] == b"{"
        at += braces
        for index in range(16):
            if end - at < 2:
                return READ_MALFORMED
            high = hex_value(at[0])
            low = hex_value(at[1])
            if high < 0 or low < 0:
                return READ_MALFORMED
            found[index] = <unsigned char> (high << 4 | low)
            at += 2
            if index & 1 and index < 15 and at < end and at[0] == b"-":
                at += 1
        if braces:
            if at == end or at[0] != b"}":
                return READ_MALFORMED
            at += 1
        if at != end:
            return READ_MALFORMED
    key.hash = hash_uuid_extended(found, seed)
    if found[6] >> 4 == 8 and found[8] >> 6 == 2:
        key.bucket = found[0] << 4 | found[1] >> 4
    return READ_KEY


# text


cdef Py_ssize_t stored_size(const char* data, Py_ssize_t size, int limit) noexcept:
    """Bytes that a varchar(limit) keeps: spaces beyond the limit go; anything else there is an error of the shard."""
    cdef Py_ssize_t at
    cdef Py_ssize_t kept
    cdef int characters = 0
    for at in range(size):
        if (<unsigned char> data[at] & 0xC0) != 0x80:
            if characters == limit:
                kept = at
                break
            characters += 1
    else:
        return size
    for at in range(kept, size):
        if data[at] != b" ":
            return size
    return kept


cdef int read_text(const Value* value, bint quoted, int limit, uint64_t seed, TypedKey* key) except -1:
    cdef bytes whole
    cdef const char* data = value.data
    cdef Py_ssize_t size = value.size
    if quoted and size > 0 and value.format == VALUE_STRING and memchr(data, 39, size) != NULL:
        whole = data[:size].replace(b"''", b"'")
        data = whole
        size = len(whole)
    if limit and size > limit:
        size = stored_size(data, size, limit)
    key.hash = hash_text_extended(data, size, seed)
    return READ_KEY


# bytea


cdef object bytes_of_hexadecimal(const char* at, const char* end):
    cdef int digit
    digits = bytearray()
    while at < end:
        if not (len(digits) % 2 == 0 and (at[0] == 32 or at[0] == 9 or at[0] == 10 or at[0] == 13)):
            digit = hex_value(at[0])
            if digit < 0:
                return int(READ_HEXADECIMAL)
            digits.append(at[0])
        at += 1
    return bytes.fromhex(digits.decode()) if len(digits) % 2 == 0 else int(READ_ODD)


cdef object bytes_of_escaped(const char* at, const char* end):
    cdef int number
    found = bytearray()
    while at < end:
        if at[0] != b"\\":
            found.append(<unsigned char> at[0])
            at += 1
        elif end - at >= 2 and at[1] == b"\\":
            found.append(92)
            at += 2
        elif end - at >= 4 and 48 <= at[1] <= 51 and 48 <= at[2] <= 55 and 48 <= at[3] <= 55:
            number = (at[1] - 48) * 64 + (at[2] - 48) * 8 + at[3] - 48
            found.append(number)
            at += 4
        else:
            return int(READ_MALFORMED)
    return bytes(found)


cdef int read_bytea(const Value* value, uint64_t seed, TypedKey* key) except -1:
    """Read what byteain and bytearecv accept."""
    cdef bytes digits
    cdef object found
    if value.format == VALUE_BINARY:
        found = value.data[:value.size]
    elif value.size >= 2 and value.data[0] == b"\\" and value.data[1] == b"x":
        found = bytes_of_hexadecimal(value.data + 2, value.data + value.size)
    else:
        found = bytes_of_escaped(value.data, value.data + value.size)
    if isinstance(found, int):
        return found
    digits = found.hex().encode()
    key.hash = hash_text_extended(digits, len(digits), seed)
    return READ_KEY


# Dates and timestamps


cdef struct Cursor:
    const char* at
    const char* end


cdef int64_t days_of(int64_t year, int month, int day) noexcept:
    """Days since 0000-03-01 of the proleptic Gregorian calendar."""
    if month < 3:
        year -= 1
        month += 12
    return 365 * year + year // 4 - year // 100 + year // 400 + (153 * (month - 3) + 2) // 5 + day - 1


cdef int read_digits(Cursor* text, int least, int most) noexcept:
    """An unsigned number of so many digits; -1 when there is none."""
    cdef int number = 0
    cdef int count = 0
    while text.at < text.end and is_digit(text.at[0]) and count < most:
        number = number * 10 + text.at[0] - 48
        text.at += 1
        count += 1
    return number if count >= least else -1


cdef bint skip(Cursor* text, char byte) noexcept:
    if text.at < text.end and text.at[0] == byte:
        text.at += 1
        return True
    return False


cdef bint is_word(Cursor* text, const char* word, Py_ssize_t size) noexcept:
    cdef Py_ssize_t index
    if text.end - text.at != size:
        return False
    for index in range(size):
        if text.at[index] | 32 != word[index] | 32:
            return False
    return True


cdef int read_day(Cursor* text, int64_t* days) noexcept:
    """YYYY-MM-DD, as days since 2000-01-01; what follows is left."""
    cdef int year = read_digits(text, 4, 6)
    cdef int month, day
    cdef int length
    if year < 0 or not skip(text, b"-"):
        return READ_OTHER
    month = read_digits(text, 2, 2)
    if month < 0 or not skip(text, b"-"):
        return READ_OTHER
    day = read_digits(text, 2, 2)
    if day < 0 or (text.at < text.end and is_digit(text.at[0])):
        return READ_OTHER
    length = 28 if month == 2 else 30 if month in (4, 6, 9, 11) else 31
    if month == 2 and year % 4 == 0 and (year % 100 != 0 or year % 400 == 0):
        length = 29
    if year == 0 or not 1 <= month <= 12 or not 1 <= day <= length:
        return READ_OVERFLOW
    days[0] = days_of(year, month, day) - EPOCH_DAYS
    return READ_KEY


cdef int read_time(Cursor* text, int64_t* time_us) noexcept:
    """HH:MM[:SS[.ffffff]], in microseconds."""
    cdef int hour = read_digits(text, 2, 2)
    cdef int minute
    cdef int second = 0
    cdef int64_t fraction = 0
    cdef int64_t unit = 100000
    if not 0 <= hour <= 23 or not skip(text, b":"):
        return READ_OTHER
    minute = read_digits(text, 2, 2)
    if not 0 <= minute <= 59:
        return READ_OTHER
    if skip(text, b":"):
        second = read_digits(text, 2, 2)
        if not 0 <= second <= 59:
            return READ_OTHER
        if skip(text, b"."):
            while text.at < text.end and is_digit(text.at[0]):
                fraction += (text.at[0] - 48) * unit
                unit //= 10
                text.at += 1
                if unit == 0 and text.at < text.end and is_digit(text.at[0]):
                    return READ_OTHER   # PostgreSQL rounds
    time_us[0] = ((hour * 60 + minute) * 60 + second) * SECOND_US + fraction
    return READ_KEY


cdef int read_offset(Cursor* text, int64_t* offset_s) noexcept:
    """Z or an offset east of Greenwich: +HH, +HH:MM, +HH:MM:SS, +HHMM."""
    cdef bint west
    cdef int hours
    cdef int minutes = 0
    cdef int seconds = 0
    if skip(text, b"Z") or skip(text, b"z"):
        offset_s[0] = 0
        return READ_KEY
    west = skip(text, b"-")
    if not west and not skip(text, b"+"):
        return READ_OTHER
    hours = read_digits(text, 2, 2)
    if skip(text, b":") or (text.at < text.end and is_digit(text.at[0])):
        minutes = read_digits(text, 2, 2)
    if skip(text, b":"):
        seconds = read_digits(text, 2, 2)
    if not 0 <= hours <= 15 or not 0 <= minutes <= 59 or not 0 <= seconds <= 59:
        return READ_OTHER
    offset_s[0] = (hours * 60 + minutes) * 60 + seconds
    if west:
        offset_s[0] = -offset_s[0]
    return READ_KEY


cdef int parse_moment(const Value* value, int type, int64_t* moment) noexcept:
    """Days, or microseconds, since 2000-01-01 out of ISO 8601 text."""
    cdef Cursor text = Cursor(value.data, value.data + value.size)
    cdef int64_t largest = 0x7FFFFFFF if type == TYPE_DATE else 0x7FFFFFFFFFFFFFFF
    cdef int64_t time_us = 0
    cdef int64_t offset_s = 0
    cdef int reading
    while text.at < text.end and is_space(text.at[0]):
        text.at += 1
    while text.at < text.end and is_space(text.end[-1]):
        text.end -= 1
    if is_word(&text, b"infinity", 8) or is_word(&text, b"-infinity", 9):
        moment[0] = largest if text.end - text.at == 8 else -largest - 1
        return READ_KEY
    reading = read_day(&text, moment)
    if reading != READ_KEY or type == TYPE_DATE:
        return reading if text.at == text.end else READ_OTHER
    if moment[0] + EPOCH_DAYS > days_of(YEAR_MAX, 12, 31):
        return READ_OTHER
    if text.at < text.end and (skip(&text, b" ") or skip(&text, b"T")):
        reading = read_time(&text, &time_us)
    if reading == READ_KEY and type == TYPE_TIMESTAMPTZ:
        skip(&text, b" ")
        reading = read_offset(&text, &offset_s)
    if reading != READ_KEY or text.at != text.end:
        return READ_OTHER
    moment[0] = (moment[0] * DAY_S - offset_s) * SECOND_US + time_us
    return READ_KEY


cdef int read_moment(const Value* value, int type, uint64_t seed, TypedKey* key) noexcept:
    cdef int size = 4 if type == TYPE_DATE else 8
    cdef int64_t moment = 0
    cdef unsigned int four
    cdef unsigned long long eight
    cdef int reading
    if value.format != VALUE_BINARY:
        reading = parse_moment(value, type, &moment)
        if reading != READ_KEY:
            return reading
    elif value.size != size:
        return READ_SHORT if value.size < size else READ_LONG
    elif type == TYPE_DATE:
        memcpy(&four, value.data, 4)
        moment = <int32_t> be32toh(four)
    else:
        memcpy(&eight, value.data, 8)
        moment = <int64_t> be64toh(eight)
    key.hash = hash_int8_extended(moment, seed)
    return READ_KEY


cdef int read_typed(
    const Value* value, int type, bint quoted, bint negative, int limit, uint64_t seed, TypedKey* key
) except -1:
    """Read one key of a type and hash it."""
    key.bucket = -1
    if value.size < 0:
        return READ_NULL
    if type <= TYPE_INT2:
        return read_integer(value, type, negative, seed, key)
    if value.format == VALUE_NUMBER:
        return READ_MALFORMED
    if type == TYPE_TEXT:
        return read_text(value, quoted, limit, seed, key)
    if type == TYPE_UUID:
        return read_uuid(value, seed, key)
    if type == TYPE_BYTEA:
        return read_bytea(value, seed, key)
    return read_moment(value, type, seed, key)


# Arrays


cdef inline int read_int32(const char* data) noexcept:
    cdef unsigned int four
    memcpy(&four, data, 4)
    return <int32_t> be32toh(four)


cdef object split_binary(const Value* value, int type):
    cdef const char* at = value.data
    cdef const char* end = value.data + value.size
    cdef int64_t total = 1
    cdef int dimensions, size
    found = []
    if value.size < ARRAY_HEADER_SIZE:
        return int(READ_SHORT)
    dimensions = read_int32(at)
    if not 0 <= dimensions <= DIMENSIONS_MAX or read_int32(at + 8) not in SCALAR_OIDS[type]:
        return int(READ_OTHER)
    at += ARRAY_HEADER_SIZE
    if end - at < DIMENSION_SIZE * dimensions:
        return int(READ_SHORT)
    for _ in range(dimensions):
        if read_int32(at) < 0 or total > value.size:
            return int(READ_OTHER)
        total *= read_int32(at)
        at += DIMENSION_SIZE
    for _ in range(total if dimensions else 0):
        if end - at < 4:
            return int(READ_SHORT)
        size = read_int32(at)
        at += 4
        if size == -1:
            found.append(None)
            continue
        if size < 0 or end - at < size:
            return int(READ_SHORT)
        found.append(at[:size])
        at += size
    return found if at == end else int(READ_LONG)


def split_text(text: bytes) -> list[bytes | None] | int:
    """Elements of an array in the form that array_out writes, nested ones flattened; else a Reading."""
    cdef Py_ssize_t at = 1
    cdef Py_ssize_t end
    text = text.strip(b" \t\n\r\v\f")
    end = len(text) - 1
    if text[:1] == b"[":
        return int(READ_OTHER)      # bounds before the elements
    if end < 1 or text[0] != 123 or text[end] != 125:
        return int(READ_MALFORMED)
    found = []
    while at < end:
        if text[at] in b"{}, \t\n\r\v\f":
            at += 1
            continue
        element = bytearray()
        kept = 0                    # white space behind an element that is not quoted goes
        is_quoted = False
        while at < end and text[at] not in b"{},":
            if text[at] == 34:
                is_quoted = True
                at += 1
                while at < end and text[at] != 34:
                    at += text[at] == 92
                    element.append(text[at])
                    at += 1
                if at >= end:
                    return int(READ_MALFORMED)
                kept = len(element)
            elif text[at] == 92:
                at += 1
                if at >= end:
                    return int(READ_MALFORMED)
                element.append(text[at])
                kept = len(element)
            else:
                element.append(text[at])
                kept = kept if text[at] in b" \t\n\r\v\f" else len(element)
            at += 1
        del element[kept:]
        found.append(None if element.lower() == b"null" and not is_quoted else bytes(element))
    return found


cdef object split_array(const Value* value, int type, bint quoted):
    """The elements of an array of a type."""
    cdef bytes text
    if value.format == VALUE_BINARY:
        return split_binary(value, type)
    text = value.data[:value.size]
    return split_text(text.replace(b"''", b"'") if quoted and value.format == VALUE_STRING else text)


# For the planner, workers and tests


READING_NAMES = {
    int(READ_NULL): "null", int(READ_NONE): "none", int(READ_MALFORMED): "malformed", int(READ_RANGE): "range",
    int(READ_OTHER): "other", int(READ_OVERFLOW): "overflow", int(READ_SHORT): "short", int(READ_LONG): "long",
    int(READ_HEXADECIMAL): "hexadecimal", int(READ_ODD): "odd",
}


def hash_of(type: int, data: bytes, format: int = 0, seed: int | None = None, limit: int = 0) -> int | str:
    """The extended hash of a key as SQL shows it, signed, or the name of what is wrong with it."""
    cdef Value value = Value(<const char*> data, len(data), format)
    cdef uint64_t start = home_seed() if seed is None else <uint64_t> (seed & 0xFFFFFFFFFFFFFFFF)
    cdef TypedKey key
    reading = read_typed(&value, type, format == VALUE_STRING, False, limit, start, &key)
    return <int64_t> key.hash if reading == READ_KEY else READING_NAMES[reading]


def bucket_of_text(type: int, data: bytes, format: int = VALUE_TEXT) -> int | str:
    """The bucket that a key names or calls its home, or the name of what is wrong with it."""
    cdef Value value = Value(<const char*> data, len(data), format)
    cdef TypedKey key
    reading = read_typed(&value, type, False, False, 0, home_seed(), &key)
    if reading != READ_KEY:
        return READING_NAMES[reading]
    return key.bucket if key.bucket >= 0 else home_of_hash(key.hash)


def home_of_texts(list types, list texts) -> int | str:
    """The home of a key of several columns, or the name of what is wrong with one of them."""
    cdef Value value
    cdef TypedKey key
    cdef bytes data
    cdef uint64_t seed = home_seed()
    for type, data in zip(types, texts):
        value = Value(<const char*> data, len(data), VALUE_TEXT)
        reading = read_typed(&value, type, False, False, 0, seed, &key)
        if reading != READ_KEY:
            return READING_NAMES[reading]
        seed = key.hash
    return home_of_hash(seed)


def is_placed_uuid(data: bytes) -> bool:
    """Whether the 16 bytes of a uuid name a bucket."""
    return data[6] >> 4 == 8 and data[8] >> 6 == 2


def make_placed_uuid(bucket: int, random: bytes) -> bytes:
    """A uuid of version 8 that names its bucket, out of 16 random bytes; ValueError out of range."""
    if not 0 <= bucket < BUCKET_COUNT:
        raise ValueError(f"bucket {bucket} is not in 0..{BUCKET_COUNT - 1}")
    made = bytearray(random)
    made[0] = bucket >> 4
    made[1] = (bucket & 15) << 4 | made[1] & 15
    made[6] = 0x80 | made[6] & 15
    made[8] = 0x80 | made[8] & 63
    return bytes(made)
