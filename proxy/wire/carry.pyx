"""One INSERT whose rows the router carries from where a query answers to where they live: its state and its messages.

The query runs in a portal, from which some rows are fetched at a time; they become multi-row INSERTs of the router's
own, which go where any INSERT goes. Values travel as texts, and each INSERT declares the types that the query's columns
have, so that they are converted as INSERT ... SELECT converts them.
"""

cimport cython
from libc.stdint cimport int32_t

from foreshard._core.frames cimport Cursor, read_bytes, read_int16, read_int32
from foreshard._core.reply_reader cimport ReplyReader
from foreshard.proxy.wire.statement cimport Statement

from foreshard._core.errors import SqlError, not_built

cdef enum:
    PARAMETERS_MAX = 65535          # of one Bind
    BATCH_ROWS_MAX = 256            # of one INSERT; chosen, not measured
    CHUNK_BYTES = 1048576           # of rows that are fetched at once, about
    HELD_BYTES_MAX = 67108864       # of rows that are kept; chosen, not measured


class ShardError(SqlError):
    """A shard's ErrorResponse, for the client; a position in a text of the router's own means nothing to it."""

    def __init__(self, body: bytes, is_clients: bool) -> None:
        self.fields = [field for field in body.split(b"\0") if field and (is_clients or field[:1] != b"P")]
        texts = {field[:1]: field[1:].decode("utf-8", "replace") for field in self.fields}
        SqlError.__init__(self, texts.get(b"C", "XX000"), texts.get(b"M", ""))

    def encode(self, severity: str = "ERROR") -> bytes:
        """The message, whatever the severity."""
        shown = b"\0".join(self.fields) + b"\0\0"
        return b"E" + (len(shown) + 4).to_bytes(4, "big") + shown


@cython.final
cdef class Carry:
    """Made when the statement is bound; belongs to its portal, and to the frontend while it runs."""

    def __init__(self, object plan, Statement statement, bytes rest):
        cdef bytes types = statement.body[statement.query_size + 1:]
        self.plan = plan
        self.statement = statement
        self.reader = ReplyReader()
        self.step = CARRY_SELECT
        self.rows = []
        self.given = []
        self.types = []
        self.chunk = BATCH_ROWS_MAX
        self.declared = [int.from_bytes(types[at:at + 4], "big") for at in range(2, len(types) - 3, 4)]
        self.read_bind(rest)

    cdef int read_bind(self, bytes rest) except -1:
        """Take the client's Bind apart, from the parameter formats on."""
        cdef Cursor cursor
        cdef const char* data = rest
        cdef int count, _
        cdef int32_t size
        cursor.at = data
        cursor.end = data + len(rest)
        cursor.is_bad = False
        count = read_int16(&cursor)
        formats = [read_int16(&cursor) for _ in range(count)]
        count = read_int16(&cursor) & 0xFFFF
        self.values = []
        for _ in range(count):
            start = cursor.at - data
            size = read_int32(&cursor)
            if size > 0:
                read_bytes(&cursor, size)
            self.values.append(rest[start:cursor.at - data])
        if len(formats) < 2:
            formats = (formats or [0]) * count
        self.formats = formats
        self.result_formats = rest[cursor.at - data:]
        if cursor.is_bad:
            raise SqlError("08P01", "invalid Bind message")
        return 0

    cdef int oid_of(self, int index) noexcept:
        """The type that the client's Parse declares for a parameter; 0: none."""
        return self.declared[index] if index < len(self.declared) else 0

    # -- the query -----------------------------------------------------------------------------------------------

    cdef bytes select_body(self):
        """The query's Parse behind the name."""
        types = [
            self.oid_of(index) or planned
            for index, planned in zip(self.plan.select_params, self.plan.select_types, strict=True)
        ]
        return self.plan.select + b"\0" + len(types).to_bytes(2, "big") + packed(types)

    cdef bytes select_bind(self):
        """Its Bind behind the names: all columns as texts."""
        return self.bind(self.plan.select_params, b"", 0) + b"\0\0"

    def bind(self, chosen: tuple[int, ...], values: bytes, count: int) -> bytes:
        """Formats and values of some of the client's parameters, and of `count` more that are texts."""
        formats = [self.formats[index] for index in chosen]
        codes = b"\0\0"
        if any(formats):
            codes = (len(formats) + count).to_bytes(2, "big")
            codes += b"".join([code.to_bytes(2, "big") for code in formats]) + bytes(2 * count)
        head = codes + (len(chosen) + count).to_bytes(2, "big")
        return head + b"".join([self.values[index] for index in chosen]) + values

    cdef int read_types(self) except -1:
        """The types of the query's columns, from its description."""
        cdef bytes body = self.reader.description
        cdef Py_ssize_t at = 2
        cdef int count, index
        if body is None or body[:2] == b"\0\0":
            raise not_built("INSERT ... SELECT of no columns over several shards", "Select what is to be inserted.")
        count = int.from_bytes(body[:2], "big")
        for index in range(count):
            at = body.index(b"\0", at) + 1
            oid = int.from_bytes(body[at + 6:at + 10], "big")
            self.types.append(self.plan.declared_type(index, count, oid))
            at += 18
        return 0

    cdef int note_fetched(self) except -1:
        """Take the rows that were fetched; from their size follows how many are fetched next."""
        cdef Py_ssize_t size = self.reader.rows_size, limit
        cdef list rows = self.reader.take_rows()
        self.rows = self.rows[self.at:] + rows
        self.at = 0
        self.is_over = self.reader.take_tag() is not None
        if self.plan.is_move and size > HELD_BYTES_MAX:
            raise SqlError("54000", "an UPDATE moves more rows to other shards than are held", "",
                           "Change fewer keys at a time.")
        if rows:
            self.chunk = max(1, min(BATCH_ROWS_MAX, CHUNK_BYTES // max(size // len(rows), 1)))
        limit = (PARAMETERS_MAX - len(self.plan.tail_params)) // len(self.types)
        if self.plan.is_whole and len(self.rows) > limit:
            raise not_built(
                f"ON CONFLICT DO UPDATE with more than {limit} rows of a query over several shards",
                "Insert fewer rows at a time.", "One statement must see all of them.")
        return 0

    # -- the rows ------------------------------------------------------------------------------------------------

    cdef Py_ssize_t next_batch(self) except -1:
        """How many rows the next INSERT has: few different numbers, so that its text is mostly known already."""
        cdef Py_ssize_t left = len(self.rows) - self.at, rows = 1
        cdef Py_ssize_t limit = (PARAMETERS_MAX - len(self.plan.tail_params)) // len(self.types)
        if self.plan.is_whole:
            return left if self.is_over else 0
        while rows * 2 <= min(left, limit, <Py_ssize_t> BATCH_ROWS_MAX):
            rows *= 2
        return rows if left else 0

    cdef bytes insert_body(self, Py_ssize_t rows):
        """The Parse of an INSERT of so many rows, behind the name."""
        cdef list types = [self.oid_of(index) for index in self.plan.tail_params] + self.types * rows
        return self.plan.insert(rows, len(self.types)) + b"\0" + len(types).to_bytes(2, "big") + packed(types)

    cdef bytes insert_bind(self, Py_ssize_t rows):
        """Its Bind behind the names: a DataRow has its values as Bind has them."""
        values = b"".join([row[2:] for row in self.rows[self.at:self.at + rows]])
        return self.bind(self.plan.tail_params, values, rows * len(self.types)) + self.result_formats

    cdef int note_inserted(self) except -1:
        """An INSERT has run."""
        cdef bytes tag = self.reader.take_tag() or b"INSERT 0 0"
        self.tag = self.tag or tag
        self.inserted += int(tag.rsplit(b" ", 1)[1])
        self.at += self.batch_rows
        self.batch_rows = 0
        return self.keep()

    cdef int note_held(self) except -1:
        """A write of several shards has run."""
        self.tag = self.reader.take_tag()
        self.inserted = int(self.tag.rsplit(b" ", 1)[1])
        self.step = CARRY_END
        return self.keep()

    cdef int keep(self) except -1:
        """Keep the rows that RETURNING gave: they are told when all is done."""
        self.given_size += self.reader.rows_size
        self.given += self.reader.take_rows()
        if self.is_limited and self.is_full():
            raise SqlError("54000", "RETURNING gives more rows than are kept for a row limit", "",
                           "Fetch all rows at once.")
        return 0

    cdef bint is_full(self) noexcept:
        """Whether more is kept than is held."""
        return self.given_size > HELD_BYTES_MAX

    cdef list take_given(self, Py_ssize_t count):
        """The messages of so many rows that are kept, behind their description; they are forgotten."""
        cdef list taken = self.given[:count]
        head, self.head = self.head, None
        self.given = self.given[count:]
        return ([head] if head else []) + [b"D" + (len(row) + 4).to_bytes(4, "big") + row for row in taken]

    cdef bytes last_tag(self):
        """The tag of the whole statement."""
        if self.plan is not None and self.plan.is_move:
            return b"UPDATE %d" % self.inserted
        word = b"INSERT 0" if self.tag is None else self.tag.rsplit(b" ", 1)[0]
        return word + b" %d" % self.inserted


cdef bytes packed(list oids):
    return b"".join([(<object> oid).to_bytes(4, "big") for oid in oids])
