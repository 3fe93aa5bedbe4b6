"""Type oids inside RowDescription, ParameterDescription and Parse: a user's type has another oid in each database.

Translation happens in place: an oid has the same size whatever its value. Bodies are as the server sent them, and still
every step is checked against the end.
"""

from libc.string cimport memchr

from foreshard._core.frames cimport read_uint32

cdef enum:
    AFTER_NAME = 18             # of a field of RowDescription: table, column, type, size, modifier, format
    TYPE_OFFSET = 6             # of the type's oid among these
    USER_OID_MIN = 16384        # PostgreSQL's FirstNormalObjectId: types below it are the same everywhere


cdef int translate_oids(char type, char* body, Py_ssize_t size, dict oids) except -1:
    """Replace the type oids in the body of a RowDescription (T), or in a ParameterDescription (t)."""
    cdef Py_ssize_t at = 2
    cdef const char* end_of_name
    if size < 2:
        return 0
    if type == b"t":
        while at + 4 <= size:
            translate_one(body + at, oids)
            at += 4
        return 0
    while at < size:
        end_of_name = <const char*> memchr(body + at, 0, size - at)
        if end_of_name == NULL:
            return 0
        at = end_of_name - body + 1
        if at + AFTER_NAME > size:
            return 0
        translate_one(body + at + TYPE_OFFSET, oids)
        at += AFTER_NAME
    return 0


cdef int translate_one(char* at, dict oids) except -1:
    """Replace one oid, when it is a user's type that is known."""
    cdef unsigned int oid = read_uint32(at)
    cdef unsigned int other
    if oid < USER_OID_MIN:
        return 0
    found = oids.get(oid)
    if found is None:
        return 0
    other = found
    at[0] = <char> (other >> 24)
    at[1] = <char> (other >> 16)
    at[2] = <char> (other >> 8)
    at[3] = <char> other
    return 0


def translated(bytes kind, bytes body, dict oids) -> bytes:
    """A body with its type oids replaced."""
    cdef bytearray copy = bytearray(body)
    translate_oids(kind[0], copy, len(copy), oids)
    return bytes(copy)
