"""One field of a row of COPY data, in text or CSV, as PostgreSQL reads it."""

from libc.string cimport memcmp

from foreshard._core.buffer cimport Buffer
from foreshard._core.copy_plan cimport CopyPlan

from foreshard._core.errors import SqlError


cdef bint wants(CopyPlan plan, int column) except -1:
    """Whether a column is looked at."""
    cdef int key
    for key in range(plan.place_count):
        if plan.places[key].index == column:
            return True
    return bool(plan.moments) and column in plan.moments


cdef bint equals(const char* data, Py_ssize_t size, bytes other) except -1:
    return size == len(other) and memcmp(data, <const char*> other, size) == 0


cdef int check_encoding(bytes record) except -1:
    """Raise what PostgreSQL says to bytes that are no UTF-8, and to NUL."""
    try:
        record.decode()
    except UnicodeDecodeError as error:
        lead = record[error.start]
        size = 2 if 0xC0 <= lead < 0xE0 else 3 if 0xE0 <= lead < 0xF0 else 4 if 0xF0 <= lead < 0xF8 else 1
        shown = " ".join([f"0x{byte:02x}" for byte in record[error.start:error.start + size]])
        raise SqlError("22021", f'invalid byte sequence for encoding "UTF8": {shown}') from None
    if b"\0" in record:
        raise SqlError("22021", 'invalid byte sequence for encoding "UTF8": 0x00')
    return 0


cdef Py_ssize_t read_quoted(
    CopyPlan plan, const char* data, Py_ssize_t size, Py_ssize_t at, Buffer out, bint* is_quoted
) except -1:
    """A field of CSV from `at` on, into `out` unless that is None; where the delimiter behind it stands."""
    cdef bint inside = False
    cdef char byte
    if out is not None:
        out.clear()
        out.reserve(1)
    while at < size:
        byte = data[at]
        if not inside:
            if byte == plan.delimiter:
                break
            if byte == plan.quote:
                inside = is_quoted[0] = True
                at += 1
                continue
        elif byte == plan.escape and at + 1 < size and (data[at + 1] == plan.escape or data[at + 1] == plan.quote):
            at += 1
            byte = data[at]
        elif byte == plan.quote:
            inside = False
            at += 1
            continue
        if out is not None:
            out.append_byte(byte)
        at += 1
    return at


cdef Py_ssize_t read_escaped(CopyPlan plan, const char* data, Py_ssize_t size, Py_ssize_t at, Buffer out) except -1:
    """The same for a field of text."""
    cdef Py_ssize_t start = at, end
    cdef char byte
    while at < size and data[at] != plan.delimiter:
        at += 2 if data[at] == b"\\" else 1
    end = min(at, size)
    if out is None:
        return end
    out.clear()
    out.reserve(end - start + 1)
    at = start
    while at < end:
        byte = data[at]
        at += 1
        if byte == b"\\":
            if at == end:
                break       # PostgreSQL drops it, too
            byte = unescape(data, end, &at)
        out.append_byte(byte)
    return end


cdef char unescape(const char* data, Py_ssize_t end, Py_ssize_t* place) noexcept:
    """The byte that stands behind a backslash at `place`, which moves on."""
    cdef Py_ssize_t at = place[0]
    cdef char byte = data[at]
    cdef int number = 0, digits = 0
    at += 1
    if 48 <= byte <= 55:
        number = byte - 48
        while digits < 2 and at < end and 48 <= data[at] <= 55:
            number = number << 3 | (data[at] - 48)
            at += 1
            digits += 1
        byte = <char> (number & 0xFF)
    elif byte == b"x":
        while digits < 2 and at < end and hexadecimal(data[at]) >= 0:
            number = number << 4 | hexadecimal(data[at])
            at += 1
            digits += 1
        if digits:
            byte = <char> number
    elif byte == b"b":
        byte = 8
    elif byte == b"f":
        byte = 12
    elif byte == b"n":
        byte = 10
    elif byte == b"r":
        byte = 13
    elif byte == b"t":
        byte = 9
    elif byte == b"v":
        byte = 11
    place[0] = at
    return byte


cdef int hexadecimal(char byte) noexcept:
    if 48 <= byte <= 57:
        return byte - 48
    byte |= 32
    return byte - 87 if 97 <= byte <= 102 else -1
