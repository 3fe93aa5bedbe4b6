"""COPY TO STDOUT of several shards: what each says of header and trailer stands there once."""

from foreshard._core.copy_plan cimport COPY_BINARY
from foreshard._core.template cimport Template
from foreshard.proxy.wire.backend cimport COPY_OUT_BINARY, COPY_OUT_LINE, COPY_OUT_PLAIN, FILTER_REST, Backend

cdef enum:
    COPY_HEAD_SIZE = 19             # of the binary format, before the first row in its message


cdef int copy_out_of(Template template) noexcept:
    """What of a COPY TO STDOUT of several shards must stand there once."""
    if template.copy is None:
        return COPY_OUT_PLAIN
    if template.copy.form == COPY_BINARY:
        return COPY_OUT_BINARY
    return COPY_OUT_LINE if template.copy.has_header else COPY_OUT_PLAIN


cdef bint shows_copy(Backend backend, const char* body, Py_ssize_t size) except -1:
    """Whether COPY data passes whose header and trailer stand there once for all shards: the owner gives the trailer.

    PostgreSQL sends each row in a message of its own: a header line, too, but that of the binary format with what
    follows it. What comes before a first message has been relayed or dropped when it is looked at.
    """
    cdef bint is_first = not backend.copy_begun, is_later = backend.filter == FILTER_REST
    cdef bytes shown
    backend.copy_begun = True
    if backend.copy_out == COPY_OUT_LINE:
        return not (is_first and is_later)
    if not is_first:
        return not (size == 2 and body[0] == -1 and body[1] == -1)
    if size == COPY_HEAD_SIZE + 2 and body[COPY_HEAD_SIZE] == -1 and body[COPY_HEAD_SIZE + 1] == -1:
        shown = body[:0 if is_later else COPY_HEAD_SIZE]    # no rows
    elif not is_later:
        return True
    else:
        shown = body[COPY_HEAD_SIZE:size]
    if shown:
        shown = b"d" + (len(shown) + 4).to_bytes(4, "big") + shown
        backend.owner_push(<const char*> shown, len(shown))
    return False
