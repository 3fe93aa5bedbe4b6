"""What is known about one COPY of a declared table: its format, and which columns say where a row lives.

Made by the planner as part of a Template, never changed. Options that are wrong need no check here: the first shard
hears the statement before any row is looked at, and says so.
"""

cimport cython
from libc.stdlib cimport calloc, free


@cython.final
cdef class CopyPlan:
    """Part of a Template. Fields are described in copy_plan.pxd."""

    def __cinit__(
        self, int form, *, bint is_from, bint has_header=False, bytes delimiter=b"", bytes quote=b"", bytes escape=b"",
        bytes null=None, bytes default=None, tuple fields=(), int own=-1, bint generates=False,
        bint is_placed=False, bint is_everywhere=False, tuple moments=(), bint follows=False,
    ):
        self.form = form
        self.is_from = is_from
        self.has_header = has_header
        self.delimiter = (delimiter or (b"," if form == COPY_CSV else b"\t"))[0]
        self.quote = (quote or b'"')[0]
        self.escape = escape[0] if escape else self.quote
        self.null = null if null is not None else b"" if form == COPY_CSV else b"\\N"
        self.default = default
        self.fields = fields
        self.own = own
        self.generates = generates
        self.is_placed = is_placed
        self.is_everywhere = is_everywhere
        self.moments = moments
        self.follows = follows
        self.place_count = <int> len(fields)
        self.last = max([index for index, _, _ in fields] + list(moments), default=-1)
        self.places = <CopyField*> calloc(self.place_count + 1, sizeof(CopyField))
        if self.places == NULL:
            raise MemoryError()
        for position, (index, force_null, force_not_null) in enumerate(fields):
            self.places[<Py_ssize_t> position] = CopyField(index, force_null, force_not_null)

    def __dealloc__(self):
        free(self.places)
