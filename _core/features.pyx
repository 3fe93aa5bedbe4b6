"""What a row looks like to the cost model: `[1, size, complexity, volume]`.

The same data must count the same wherever it is met: in a bound parameter (text or binary), in a literal of the SQL
text, and in an event's decoded JSON row. So a value counts by what its JSON form holds:

1. NULL adds nothing: a column left out and a column set to NULL are one thing. (So is a top-level JSON `null`.)
2. Text counts its bytes in UTF-8 with escapes undone. Numbers count 8 bytes, booleans 1, UUIDs, dates and timestamps
   the width of their JSON text, bytea its hexadecimal text, however each is written.
3. A scalar is one value. An array or object is one value, and each element or nested null is one more; the names in an
   object add their bytes, but no value. An inner dimension of an array is an array.
4. Malformed data counts as one value of its own bytes; nothing here raises or reads outside the value.

Not counted alike, and left so: duplicate names in JSON text (decoding drops all but one), elements of json[].
"""

from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.string cimport memchr, memcmp

from foreshard._core.values cimport VALUE_BINARY, VALUE_NUMBER, VALUE_STRING, VALUE_TEXT, Value

SHAPE_NAMES = {
    "smallint": SHAPE_NUMBER,
    "integer": SHAPE_NUMBER,
    "bigint": SHAPE_NUMBER,
    "real": SHAPE_NUMBER,
    "double precision": SHAPE_NUMBER,
    "numeric": SHAPE_NUMBER,
    "boolean": SHAPE_BOOLEAN,
    "uuid": SHAPE_UUID,
    "timestamp without time zone": SHAPE_TIMESTAMP,
    "timestamp with time zone": SHAPE_TIMESTAMPTZ,
    "date": SHAPE_DATE,
    "bytea": SHAPE_BYTES,
    "json": SHAPE_JSON,
    "jsonb": SHAPE_JSON,
}

cdef enum:
    DIMENSIONS_MAX = 6      # PostgreSQL's MAXDIM
    NUMBER_BYTES = 8

# Bytes a value of each shape counts; 0: counted by its own bytes.
cdef int[SHAPE_COUNT] FIXED_BYTES = [0, 0, 0, NUMBER_BYTES, 1, 36, 26, 32, 10, 0]


cdef struct Tally:
    double size
    double count


cdef int add_value(const Value* value, int shape, double* features) noexcept:
    """See features.pxd."""
    cdef Tally tally
    cdef bint counted = True
    if value.size < 0:
        return 0
    tally.size = 0
    tally.count = 0
    if value.format == VALUE_NUMBER:
        tally.size = NUMBER_BYTES
        tally.count = 1
    elif shape & 15 == SHAPE_JSON:
        counted = tally_json(value.data, value.size, value.format == VALUE_BINARY, &tally)
    elif shape & 15 == SHAPE_ARRAY:
        if value.format == VALUE_BINARY:
            counted = tally_binary_array(value.data, value.size, shape >> 4, &tally)
        else:
            counted = tally_text_array(value.data, value.size, shape >> 4, &tally)
    else:
        tally.size = scalar_bytes(value.size, shape, value.format == VALUE_BINARY)
        tally.count = 1
    if not counted:
        tally.size = <double> value.size
        tally.count = 1
    if value.format == VALUE_STRING and not fixed_bytes(shape):
        tally.size -= count_doubled_quotes(value.data, value.size)
    features[FEATURE_SIZE] += max(tally.size, 0.0)
    features[FEATURE_COMPLEXITY] += tally.count
    return <int> min(tally.count, 2147483647.0)


cdef void add_generated(int shape, double* features) noexcept:
    """See features.pxd."""
    features[FEATURE_SIZE] += fixed_bytes(shape) or NUMBER_BYTES
    features[FEATURE_COMPLEXITY] += 1


cdef inline int fixed_bytes(int shape) noexcept:
    """Bytes that every value of this shape counts; 0 when it is counted by its own."""
    return FIXED_BYTES[shape] if 0 <= shape < SHAPE_COUNT else 0


cdef inline double scalar_bytes(Py_ssize_t size, int shape, bint binary) noexcept:
    """What one value of a scalar shape counts."""
    cdef int fixed = fixed_bytes(shape)
    if fixed:
        return fixed
    if binary and shape == SHAPE_BYTES:
        return 2.0 * size + 2.0
    return <double> size


cdef double count_doubled_quotes(const char* data, Py_ssize_t size) noexcept:
    """Number of '' pairs inside a quoted SQL literal: each is one byte of the value."""
    cdef double pairs = 0
    cdef const char* end = data + size
    cdef const char* at = data
    while at < end:
        at = <const char*> memchr(at, 39, end - at)
        if at == NULL or at + 1 >= end:
            break
        if at[1] == 39:
            pairs += 1
            at += 1
        at += 1
    return pairs


# --- JSON text ---------------------------------------------------------------------------------------------------

cdef inline bint is_space(char byte) noexcept:
    return byte == 32 or byte == 9 or byte == 10 or byte == 13


cdef inline Py_ssize_t skip_spaces(const char* data, Py_ssize_t size, Py_ssize_t at) noexcept:
    while at < size and is_space(data[at]):
        at += 1
    return at


cdef int hex_digit(char byte) noexcept:
    """Value of a hexadecimal digit; -1 when it is none."""
    if 48 <= byte <= 57:
        return byte - 48
    if 97 <= byte <= 102:
        return byte - 87
    if 65 <= byte <= 70:
        return byte - 55
    return -1


cdef int escape_bytes(const char* data, Py_ssize_t size, Py_ssize_t at, double* length) noexcept:
    """Length of the JSON escape at `at` (its backslash); adds its UTF-8 bytes to `length`. 0 when malformed."""
    cdef int code = 0
    cdef int digit
    cdef int index
    if at + 1 >= size:
        return 0
    if data[at + 1] != c'u':
        length[0] += 1
        return 2
    if at + 6 > size:
        return 0
    for index in range(2, 6):
        digit = hex_digit(data[at + index])
        if digit < 0:
            return 0
        code = code * 16 + digit
    # Each half of a surrogate pair counts 2 of the pair's 4 bytes.
    length[0] += 1 if code < 0x80 else 2 if code < 0x800 or 0xD800 <= code < 0xE000 else 3
    return 6


cdef Py_ssize_t skip_string(const char* data, Py_ssize_t size, Py_ssize_t at, double* length) noexcept:
    """Index after the JSON string whose first quote is at `at`; adds its bytes to `length`. -1 when malformed."""
    cdef int step
    at += 1
    while at < size:
        if data[at] == c'"':
            return at + 1
        if data[at] == c'\\':
            step = escape_bytes(data, size, at, length)
            if step == 0:
                return -1
            at += step
        else:
            length[0] += 1
            at += 1
    return -1


cdef Py_ssize_t skip_word(const char* data, Py_ssize_t size, Py_ssize_t at, Tally* tally) noexcept:
    """Index after the JSON number, true, false or null at `at`, tallied. -1 when it is none."""
    cdef char byte = data[at]
    if byte == c'-' or 48 <= byte <= 57:
        tally.size += NUMBER_BYTES
        at += 1
        while at < size and (48 <= data[at] <= 57 or data[at] in (c'.', c'e', c'E', c'+', c'-')):
            at += 1
    elif size - at >= 4 and memcmp(data + at, b"true", 4) == 0:
        tally.size += 1
        at += 4
    elif size - at >= 5 and memcmp(data + at, b"false", 5) == 0:
        tally.size += 1
        at += 5
    elif size - at >= 4 and memcmp(data + at, b"null", 4) == 0:
        at += 4
    else:
        return -1
    tally.count += 1
    return at


cdef bint tally_json(const char* data, Py_ssize_t size, bint binary, Tally* tally) noexcept:
    """Tally a JSON text (binary: jsonb's version byte 1 may precede it); False when malformed."""
    cdef Py_ssize_t at = 1 if binary and size > 0 and data[0] == 1 else 0
    cdef Py_ssize_t depth = 0
    cdef Py_ssize_t first = skip_spaces(data, size, at)
    cdef char byte
    at = first
    while at < size:
        byte = data[at]
        if is_space(byte) or byte == c',' or byte == c':':
            at += 1
        elif byte == c'{' or byte == c'[':
            depth += 1
            tally.count += 1
            at += 1
        elif byte == c'}' or byte == c']':
            depth -= 1
            if depth < 0:
                return False
            at += 1
        elif byte == c'"':
            at = skip_string(data, size, at, &tally.size)
            if at < 0:
                return False
            at = skip_spaces(data, size, at)
            if at >= size or data[at] != c':':
                tally.count += 1
        else:
            at = skip_word(data, size, at, tally)
            if at < 0:
                return False
    if depth != 0 or tally.count == 0:
        return False
    if data[first] == c'n':
        tally.count -= 1
    return True


# --- arrays ------------------------------------------------------------------------------------------------------

cdef Py_ssize_t skip_element(const char* data, Py_ssize_t size, Py_ssize_t at, int shape, Tally* tally) noexcept:
    """Index after the array element at `at` (text format), tallied; -1 when malformed."""
    cdef Py_ssize_t start = at
    cdef Py_ssize_t length = 0
    cdef Py_ssize_t spaces = 0      # at the end of an unquoted element: not part of it
    cdef bint quoted = data[at] == c'"'
    cdef bint closed = not quoted
    if quoted:
        at += 1
    while at < size:
        if quoted and data[at] == c'"':
            at += 1
            closed = True
            break
        if not quoted and data[at] in (c',', c'{', c'}', c'"'):
            break
        spaces = spaces + 1 if is_space(data[at]) and not quoted else 0
        if data[at] == c'\\':
            at += 1
            if at >= size:
                return -1
        length += 1
        at += 1
    if not closed:
        return -1
    length -= spaces
    tally.count += 1
    if quoted or length != 4 or not is_null_word(data + start):
        tally.size += scalar_bytes(length, shape, False)
    return at


cdef bint is_null_word(const char* data) noexcept:
    """Whether the four bytes spell NULL in any case."""
    return (data[0] | 32) == c'n' and (data[1] | 32) == c'u' and (data[2] | 32) == c'l' and (data[3] | 32) == c'l'


cdef bint tally_text_array(const char* data, Py_ssize_t size, int shape, Tally* tally) noexcept:
    """Tally `{...}`, after its dimensions `[1:2]=` if it has them; False when malformed."""
    cdef Py_ssize_t at = skip_spaces(data, size, 0)
    cdef Py_ssize_t depth = 0
    cdef const char* equals
    if at < size and data[at] == c'[':
        equals = <const char*> memchr(data + at, c'=', size - at)
        if equals == NULL:
            return False
        at = skip_spaces(data, size, equals - data + 1)
    if at >= size or data[at] != c'{':
        return False
    while at < size:
        if is_space(data[at]) or (data[at] == c',' and depth > 0):
            at += 1
        elif data[at] == c'{':
            if depth == 0 and tally.count > 0:
                return False
            depth += 1
            tally.count += 1
            at += 1
        elif data[at] == c'}':
            depth -= 1
            if depth < 0:
                return False
            at += 1
        elif depth == 0:
            return False
        else:
            at = skip_element(data, size, at, shape, tally)
            if at < 0:
                return False
    return depth == 0


cdef inline long long read_int32(const char* data) noexcept:
    """Big-endian signed 32-bit integer; the caller has checked that four bytes are there."""
    cdef const unsigned char* bytes_ = <const unsigned char*> data
    cdef unsigned int value = (
        (<unsigned int> bytes_[0] << 24) | (<unsigned int> bytes_[1] << 16)
        | (<unsigned int> bytes_[2] << 8) | bytes_[3]
    )
    return <int> value


cdef int shape_of_oid(long long oid) noexcept:
    """Shape of an array element by the type that a binary array names; SHAPE_SCALAR for types not listed."""
    if oid in (20, 21, 23, 700, 701, 1700):     # int8, int2, int4, float4, float8, numeric
        return SHAPE_NUMBER
    if oid == 16:
        return SHAPE_BOOLEAN
    if oid == 2950:
        return SHAPE_UUID
    if oid == 1114:
        return SHAPE_TIMESTAMP
    if oid == 1184:
        return SHAPE_TIMESTAMPTZ
    if oid == 1082:
        return SHAPE_DATE
    if oid == 17:
        return SHAPE_BYTES
    return SHAPE_SCALAR


cdef bint tally_binary_array(const char* data, Py_ssize_t size, int shape, Tally* tally) noexcept:
    """Tally an array in binary format: dimensions, flags, element type, bounds, elements. False when malformed."""
    cdef long long dimensions
    cdef long long length
    cdef long long index
    cdef double elements = 1
    cdef Py_ssize_t at = 12
    if size < 12:
        return False
    dimensions = read_int32(data)
    if not 0 <= dimensions <= DIMENSIONS_MAX or size < 12 + 8 * dimensions:
        return False
    if shape == SHAPE_SCALAR:
        shape = shape_of_oid(read_int32(data + 8))
    tally.count = 1
    for index in range(dimensions):
        length = read_int32(data + at)
        if length < 0:
            return False
        elements *= length
        if index < dimensions - 1:
            tally.count += elements
        at += 8
    if dimensions == 0:
        return at == size
    if elements * 4 > size:     # each element has a length word: this many cannot be in there
        return False
    tally.count += elements
    for _ in range(<long long> elements):
        if size - at < 4:
            return False
        length = read_int32(data + at)
        at += 4
        if length > size - at or length < -1:
            return False
        if length >= 0:
            tally.size += scalar_bytes(length, shape, True)
            at += length
    return at == size


# --- decoded rows ------------------------------------------------------------------------------------------------

cdef double text_bytes(str text) except -1:
    """Bytes of a string in UTF-8; a lone surrogate counts 3."""
    cdef Py_ssize_t size = 0
    if text.isascii():
        return len(text)
    try:
        PyUnicode_AsUTF8AndSize(text, &size)
    except UnicodeEncodeError:
        size = len(text.encode("utf-8", "surrogatepass"))
    return size


cdef int add_decoded(object value, Tally* tally, list pending) except -1:
    """Tally one value that JSON decoding gave; what is inside it goes to `pending`."""
    tally.count += 1
    if isinstance(value, str):
        tally.size += text_bytes(value)
    elif isinstance(value, bool):
        tally.size += 1
    elif isinstance(value, dict):
        for name in value:
            tally.size += text_bytes(str(name))
        pending.extend(value.values())
    elif isinstance(value, (list, tuple)):
        pending.extend(value)
    elif value is not None:
        tally.size += NUMBER_BYTES
    return 0


def features_of_row(row, volume):
    """Features of an event's row as decoded from JSON: `new`, or `old` of a delete.

    row -- column name to decoded value; volume -- rows that the statement modified.
    """
    cdef Tally tally
    cdef list pending = []
    tally.size = 0
    tally.count = 0
    for value in row.values():
        if value is not None:
            add_decoded(value, &tally, pending)
    while pending:
        add_decoded(pending.pop(), &tally, pending)
    return (1.0, tally.size, tally.count, float(volume))


def features_of_value(data, shape, format=VALUE_TEXT):
    """(size, complexity) that one value adds. data -- its bytes, None for NULL; format -- a ValueFormat."""
    cdef Value value
    cdef double[FEATURE_COUNT] features = [0, 0, 0, 0]
    cdef bytes held = b"" if data is None else data
    value.data = held
    value.size = -1 if data is None else len(held)
    value.format = format
    add_value(&value, shape, features)
    return (features[FEATURE_SIZE], features[FEATURE_COMPLEXITY])


def shape_of_type(type_name):
    """The shape by which values of a column count. type_name -- as PostgreSQL's format_type() prints it."""
    if type_name.endswith("[]"):
        return SHAPE_ARRAY | shape_of_type(type_name.removesuffix("[]")) << 4
    name, opening, rest = type_name.partition("(")
    if opening:
        name += rest.partition(")")[2]
    return SHAPE_NAMES.get(name.strip(), SHAPE_SCALAR)
