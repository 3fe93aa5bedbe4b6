"""Rows that shards gave as text, written as rows of SQL: what a MergePlan with `finish` puts between its two texts.

Every value is an escape string (E'...') whatever standard_conforming_strings is, and the first row is cast, which gives
the columns of VALUES their types. Only for encodings in which no byte of a longer character is a quote or a backslash.
"""

from libc.string cimport memchr

from foreshard._core.buffer cimport Buffer
from foreshard._core.frames cimport Cursor, read_bytes, read_int16, read_int32, read_uint32

from foreshard._core.errors import SqlError


cdef bytes parts_text(Buffer rows, tuple types):
    """VALUES (...), ... of whole DataRow messages; a SELECT without rows when there are none."""
    cdef Buffer out = Buffer()
    cdef Cursor cursor
    cdef Py_ssize_t at = rows.start, size
    cdef const char* value
    cdef int index, length, count = <int> len(types)
    cdef bytes cast
    if rows.start == rows.end:
        return b"SELECT " + b", ".join([b"NULL::" + cast for cast in types]) + b" WHERE false"
    while at < rows.end:
        size = read_uint32(rows.data + at + 1) + 1
        cursor.at = rows.data + at + 5
        cursor.end = rows.data + at + size
        cursor.is_bad = False
        if read_int16(&cursor) != count:
            raise SqlError("08P01", "a shard sent a malformed row")
        if at == rows.start:
            out.append(b"VALUES (", 8)
        else:
            out.append(b", (", 3)
        for index in range(count):
            if index:
                out.append(b", ", 2)
            length = read_int32(&cursor)
            value = read_bytes(&cursor, length) if length >= 0 else NULL
            if cursor.is_bad:
                raise SqlError("08P01", "a shard sent a malformed row")
            quote_value(value, length, out)
            if at == rows.start:
                cast = types[index]
                out.append(b"::", 2)
                out.append(<const char*> cast, len(cast))
        out.append_byte(b")")
        at += size
    return out.data[out.start:out.end]


cdef int quote_value(const char* value, int size, Buffer out) except -1:
    """One value."""
    cdef int index
    if value == NULL:
        return out.append(b"NULL", 4)
    out.append(b"E'", 2)
    if memchr(value, b"'", size) == NULL and memchr(value, b"\\", size) == NULL:
        out.append(value, size)
    else:
        for index in range(size):
            if value[index] == b"'" or value[index] == b"\\":
                out.append_byte(value[index])
            out.append_byte(value[index])
    return out.append_byte(b"'")


def check_parts(list rows, tuple types) -> bytes:
    """`parts_text` of rows of values, for tests."""
    cdef Buffer held = Buffer()
    for row in rows:
        body = len(row).to_bytes(2, "big") + b"".join(
            [b"\xff\xff\xff\xff" if value is None else len(value).to_bytes(4, "big") + value for value in row])
        message = b"D" + (len(body) + 4).to_bytes(4, "big") + body
        held.append(<const char*> <bytes> message, len(message))
    return parts_text(held, types)
