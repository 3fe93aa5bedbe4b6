"""How the answers of several shards to one SELECT become the answer: made by the planner, never changed.

The shards run a text of their own: the client's, with hidden columns in front of its own, an ORDER BY of the first of
them, and a limit that leaves what any order of the shards could need. The router takes rows in that order, puts groups
together, and counts off OFFSET and LIMIT.
"""

cimport cython
from libc.stdint cimport int64_t

from foreshard._core.key_values cimport READ_KEY, READ_NULL, read_key
from foreshard._core.values cimport Value, Values

from foreshard._core.errors import SqlError


@cython.final
cdef class MergePlan:
    """Part of a Template. Fields are described in merge_plan.pxd."""

    def __cinit__(
        self, tuple pieces, *, int hidden=0, tuple keys=(), int group=-1, tuple combines=(), tuple order=(),
        tuple limit=(0, 0), tuple offset=(0, 0), tuple filters=(), bint is_text=False, bint is_float=False,
        bint is_plan=False, tuple finish=None, tuple types=(), MergePlan undated=None,
    ):
        self.pieces = pieces
        self.hidden = hidden
        self.keys = keys
        self.group = group
        self.combines = combines
        self.order = order
        self.limit = limit
        self.offset = offset
        self.filters = filters
        self.is_text = is_text
        self.is_float = is_float
        self.is_plan = is_plan
        self.finish = finish
        self.types = types
        self.undated = undated

    cdef bytes text(self, Values literals):
        """The shards' text, with the literals of this very text."""
        return put_together(self.pieces, literals)

    cdef tuple finish_texts(self, Values literals):
        """What stands before and behind the parts in the text that puts them together."""
        return put_together(self.finish[0], literals), put_together(self.finish[1], literals)

    cdef int64_t read_limit(self, Values literals, Values params) except? -2:
        """How many rows the client wants at most; -1: all. SqlError 2201W."""
        cdef int64_t found = read_source(self.limit, literals, params)
        if found < -1:
            raise SqlError("2201W", "LIMIT must not be negative")
        return found

    cdef int64_t read_offset(self, Values literals, Values params) except? -2:
        """How many rows come before those. SqlError 2201X."""
        cdef int64_t found = read_source(self.offset, literals, params)
        if found < -1:
            raise SqlError("2201X", "OFFSET must not be negative")
        return max(found, 0)

    def check_text(self, bytes sql, list literals) -> bytes:
        """`text` for tests: literals as (offset, size, kind) of the text."""
        cdef Values values = Values()
        for offset, size, _ in literals:
            values.append(<const char*> sql + <Py_ssize_t> offset, size, 0)
        return self.text(values)


cdef bytes put_together(tuple pieces, Values literals):
    """A text of bytes and numbers of literals."""
    cdef Value* value
    if len(pieces) == 1 and isinstance(pieces[0], bytes):
        return pieces[0]
    found = []
    for piece in pieces:
        if isinstance(piece, int):
            value = &literals.items[<int> piece]
            found.append(value.data[:value.size])
        else:
            found.append(piece)
    return b"".join(found)


cdef int64_t read_source(tuple source, Values literals, Values params) except? -2:
    """The number that a LIMIT or OFFSET has; -1 for NULL, -3 for what is below 0."""
    cdef int64_t found = 0
    cdef int kind = source[0], index = source[1], reading
    cdef Values values
    if kind == LIMIT_NONE:
        return -1
    if kind == LIMIT_CONSTANT:
        return source[1]
    values = params if kind == LIMIT_PARAM else literals
    if values is None or index >= values.count:
        raise SqlError("08P01", f"bind message supplies no value for parameter ${index + 1}")
    reading = read_key(&values.items[index], False, &found)
    if reading == READ_NULL:
        return -1
    if reading != READ_KEY:
        raise SqlError("22P02", "invalid input syntax for type bigint in LIMIT or OFFSET")
    return found if found >= 0 else -3
