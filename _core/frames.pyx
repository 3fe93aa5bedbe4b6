"""Message framing of the PostgreSQL protocol (chapter "Message Formats") and the checked cursor over a body.

Rules: a length off the wire is compared with its limits before it becomes a size; every read goes through a cursor
that cannot leave the body; "need more data" and "malformed" are return values, never exceptions.
"""

from libc.stdint cimport int16_t, int32_t, uint32_t
from libc.string cimport memchr

from foreshard._core.values cimport VALUE_BINARY, VALUE_TEXT, Values

cdef enum:
    HEADER_BYTES = 5
    LENGTH_MIN = 4


cdef uint32_t read_uint32(const char* at) noexcept nogil:
    """Four bytes in network order; the caller proved that they are there."""
    cdef const unsigned char* p = <const unsigned char*> at
    return (<uint32_t> p[0] << 24) | (<uint32_t> p[1] << 16) | (<uint32_t> p[2] << 8) | <uint32_t> p[3]


cdef int scan_frame(const char* data, Py_ssize_t size, Py_ssize_t bytes_max, Py_ssize_t* total) noexcept nogil:
    """Look at the message at the start of `data`; `total` gets its size with type byte and length.

    Returns a FrameResult. Malformed: a length below 4, or above `bytes_max`.
    """
    cdef uint32_t length
    if size < HEADER_BYTES:
        return FRAME_NONE
    length = read_uint32(data + 1)
    if length < LENGTH_MIN or <uint32_t> (length - LENGTH_MIN) > <uint32_t> bytes_max:
        return FRAME_MALFORMED
    total[0] = <Py_ssize_t> length + 1
    return FRAME_WHOLE if size >= total[0] else FRAME_PARTIAL


cdef const char* read_bytes(Cursor* cursor, Py_ssize_t size) noexcept nogil:
    """The next `size` bytes; NULL (and a bad cursor) when there are fewer or `size` is negative."""
    cdef const char* at = cursor.at
    if cursor.is_bad or size < 0 or cursor.end - at < size:
        cursor.is_bad = True
        return NULL
    cursor.at = at + size
    return at


cdef int read_int16(Cursor* cursor) noexcept nogil:
    """A signed 16-bit integer; 0 from a bad cursor."""
    cdef const unsigned char* at = <const unsigned char*> read_bytes(cursor, 2)
    if at == NULL:
        return 0
    return <int16_t> ((<int> at[0] << 8) | <int> at[1])


cdef int32_t read_int32(Cursor* cursor) noexcept nogil:
    """A signed 32-bit integer; 0 from a bad cursor."""
    cdef const char* at = read_bytes(cursor, 4)
    return 0 if at == NULL else <int32_t> read_uint32(at)


cdef const char* read_cstring(Cursor* cursor, Py_ssize_t* size) noexcept nogil:
    """A zero-terminated string; `size` without the zero; NULL from a bad cursor."""
    cdef const char* at = cursor.at
    cdef const char* end
    size[0] = 0
    if cursor.is_bad:
        return NULL
    end = <const char*> memchr(at, 0, cursor.end - at)
    if end == NULL:
        cursor.is_bad = True
        return NULL
    size[0] = end - at
    cursor.at = end + 1
    return at


cdef bint decode_bind(const char* body, Py_ssize_t size, BindParts* parts) noexcept nogil:
    """Split a Bind body into names and rest; False when malformed."""
    cdef Cursor cursor
    cursor.at = body
    cursor.end = body + size
    cursor.is_bad = False
    parts.portal = read_cstring(&cursor, &parts.portal_size)
    parts.statement = read_cstring(&cursor, &parts.statement_size)
    parts.rest = cursor.at
    parts.rest_size = cursor.end - cursor.at
    return not cursor.is_bad


cdef int decode_bind_params(BindParts* parts, Values params) except -1:
    """Fill `params` with the values of a Bind; returns 0, or 1 when the message is malformed."""
    cdef Cursor cursor
    cdef const char* formats
    cdef const char* data
    cdef int format_count, param_count, index, format
    cdef int32_t size
    params.clear()
    cursor.at = parts.rest
    cursor.end = parts.rest + parts.rest_size
    cursor.is_bad = False
    format_count = read_int16(&cursor)
    formats = read_bytes(&cursor, <Py_ssize_t> format_count * 2)
    param_count = read_int16(&cursor) & 0xFFFF
    if cursor.is_bad or (format_count > 1 and format_count != param_count):
        return 1
    for index in range(param_count):
        size = read_int32(&cursor)
        data = NULL
        if size >= 0:
            data = read_bytes(&cursor, size)
        if cursor.is_bad:
            return 1
        format = 0
        if format_count == 1:
            format = formats[1]
        elif format_count > 1:
            format = formats[2 * index + 1]
        params.append(data, -1 if size < 0 else size, VALUE_BINARY if format == 1 else VALUE_TEXT)
    return 0


def scan(bytes data, Py_ssize_t bytes_max) -> tuple[int, int]:
    """scan_frame() for tests: (FrameResult, total)."""
    cdef Py_ssize_t total = 0
    cdef int result = scan_frame(data, len(data), bytes_max, &total)
    return result, total


def bind_parts(bytes body) -> tuple[bytes, bytes, list[bytes | None]] | None:
    """decode_bind() and decode_bind_params() for tests: (portal, statement, values); None when malformed."""
    cdef BindParts parts
    cdef Values params = Values()
    if not decode_bind(body, len(body), &parts) or decode_bind_params(&parts, params):
        return None
    values = [
        None if params.items[index].size < 0 else params.items[index].data[:params.items[index].size]
        for index in range(params.count)
    ]
    return parts.portal[:parts.portal_size], parts.statement[:parts.statement_size], values
