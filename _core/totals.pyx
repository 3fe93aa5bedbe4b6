"""The combined columns of the group at hand: partial results of rows, added up as they come.

Sums of integers that fit are C integers, read from and written to rows without an object; everything else is kept as
combine.pyx has it. Rules: a NULL came from no rows and is passed over; nothing wraps around, it turns into an object.
"""

cimport cython
from libc.stdint cimport int64_t, uint32_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free

from foreshard._core.buffer cimport Buffer
from foreshard._core.combine cimport combine_partials, read_partial, write_average, write_result
from foreshard._core.frames cimport Cursor, read_bytes, read_int16, read_int32
from foreshard._core.lists cimport join_arrays, join_json, merge_arrays
from foreshard._core.merge_plan cimport (
    COMBINE_ARRAY,
    COMBINE_AVG,
    COMBINE_JSON,
    COMBINE_KEPT,
    COMBINE_SORTED,
    COMBINE_SUM,
    COMBINE_TEXT,
)

from foreshard._core.errors import SqlError

cdef enum:
    INT8 = 20
    INT2 = 21
    INT4 = 23
    NUMERIC = 1700
    DIGITS_MAX = 18             # that surely fit
    NUMBER_BYTES_MAX = 24
    LISTED_BYTES_MAX = 67108864     # of the strings and arrays of one group; chosen, not measured

cdef int64_t SAFE = 0x3FFFFFFFFFFFFFFF      # two numbers up to this have a sum that fits


@cython.final
cdef class Totals:
    """Owned by one Merger, used again for each group."""

    def __cinit__(self, tuple combines):
        cdef int index
        self.combines = combines
        self.count = <int> len(combines)
        self.items = <Total*> calloc(self.count + 1, sizeof(Total))
        if self.items == NULL:
            raise MemoryError()
        self.slow = [None] * self.count
        for index in range(self.count):
            self.items[index].kind = combines[index][1]
            self.items[index].column = combines[index][0]

    def __dealloc__(self):
        free(self.items)
        free(self.of_column)

    cdef int describe(self, int column, int columns, uint32_t oid, bint binary) except -1:
        """Take the type of one of the shards' columns."""
        cdef int index
        if self.of_column == NULL or self.columns != columns:
            free(self.of_column)
            self.of_column = <int*> calloc(columns + 1, sizeof(int))
            if self.of_column == NULL:
                raise MemoryError()
            self.columns = columns
        self.of_column[column] = -1
        for index in range(self.count):
            if self.items[index].column == column:
                self.of_column[column] = index
                self.items[index].oid = oid
                self.items[index].binary = binary
        return 0

    cdef void clear(self):
        """Begin a group."""
        cdef int index
        self.listed = 0
        for index in range(self.count):
            self.items[index].is_some = False
            self.items[index].is_fast = False
            self.items[index].value = 0
            self.slow[index] = None

    cdef int add(self, const char* data, Py_ssize_t size) except -1:
        """Add the partial results of a row; `data` is the body of a DataRow."""
        cdef Cursor cursor
        cdef Total* total
        cdef const char* value
        cdef int64_t found = 0
        cdef int column, length, index, columns
        cursor.at = data
        cursor.end = data + size
        cursor.is_bad = False
        columns = read_int16(&cursor)
        for column in range(columns):
            length = read_int32(&cursor)
            value = read_bytes(&cursor, length) if length >= 0 else NULL
            if cursor.is_bad or columns != self.columns:
                raise SqlError("08P01", "a shard sent a malformed row")
            index = self.of_column[column]
            if index < 0 or value == NULL:
                continue
            total = &self.items[index]
            if total.kind == COMBINE_AVG:
                continue
            if total.kind == COMBINE_SUM and (total.is_fast or not total.is_some) and \
                    read_integer(total, value, length, &found) and -SAFE < found < SAFE and -SAFE < total.value < SAFE:
                total.value += found
                total.is_fast = total.is_some = True
            else:
                self.add_object(index, value[:length])
        return 0

    cdef int add_object(self, int index, bytes data) except -1:
        """The same for what is no small integer."""
        cdef Total* total = &self.items[index]
        cdef object value
        if is_list(total.kind):
            return self.keep(index, data)
        value = read_partial(total.kind, total.oid, total.binary, data)
        if total.is_fast:
            self.slow[index] = self.value(index)
            total.is_fast = False
        if not total.is_some:
            self.slow[index] = value
        else:
            self.slow[index] = combine_partials(total.kind, total.oid, total.binary, self.slow[index], value)
        total.is_some = True
        return 0

    cdef int keep(self, int index, bytes data) except -1:
        """Keep a string or a list of the group until all have come. SqlError 53200."""
        if self.items[index].kind == COMBINE_SORTED and self.combines[index][2][1] is not None:
            return 0        # made of hidden columns alone
        self.listed += len(data)
        if self.listed > LISTED_BYTES_MAX:
            raise SqlError(
                "53200", "too many values of several shards in one group", f"more than {LISTED_BYTES_MAX} bytes",
                "Restrict the rows, or group them by more.")
        if self.slow[index] is None:
            self.slow[index] = []
        self.slow[index].append(data)
        self.items[index].is_some = True
        return 0

    cdef bytes sorted_list(self, int index, tuple extra):
        """A list in the order of others."""
        cdef list keys = []
        cdef Total* key
        cdef int source = index
        cdef int place
        delimiter, column, sorts = extra
        if column is not None:
            source = self.of_column[<int> column]
        if self.slow[source] is None:
            return None
        for column, oid, down, nulls_first in sorts:
            place = source if column is None else self.of_column[<int> column]
            key = &self.items[place]
            if self.slow[place] is None or len(self.slow[place]) != len(self.slow[source]):
                raise SqlError("08P01", "a shard sent lists of different rows")
            keys.append((self.slow[place], key.binary, key.oid, oid, down, nulls_first))
        return merge_arrays(
            self.slow[source], self.items[source].binary, self.items[source].oid, delimiter, keys)

    cdef object value(self, int index):
        """The total as an object; None when there was none."""
        cdef Total* total = &self.items[index]
        if not total.is_some:
            return None
        if not total.is_fast:
            return self.slow[index]
        return (total.value, 0) if total.oid == NUMERIC else <object> total.value

    cdef bytes field(self, int index):
        """The total as a row has it; None for NULL."""
        cdef Total* total = &self.items[index]
        extra = self.combines[index][2]
        if total.kind == COMBINE_AVG:
            return write_average(
                self.value(self.of_column[<int> extra[0]]), self.value(self.of_column[<int> extra[1]]), total.binary)
        if total.kind == COMBINE_SORTED:
            return self.sorted_list(index, extra)
        if is_list(total.kind):
            if self.slow[index] is None or total.kind == COMBINE_KEPT:
                return None
            if total.kind == COMBINE_TEXT:
                return extra.join(self.slow[index])
            if total.kind == COMBINE_ARRAY:
                return join_arrays(self.slow[index], total.binary, total.oid)
            return join_json(self.slow[index], total.binary, total.oid)
        return write_result(total.kind, total.oid, total.binary, self.value(index))

    cdef int write(self, int column, Buffer out) except -1:
        """Append the total of a column with its length; 0 when the column is not combined, else 1."""
        cdef Total* total
        cdef char number[NUMBER_BYTES_MAX]
        cdef int index = self.of_column[column], size
        cdef bytes shown
        if index < 0:
            return 0
        total = &self.items[index]
        if total.is_fast and not total.binary:
            size = snprintf(number, NUMBER_BYTES_MAX, b"%lld", <long long> total.value)
            out.append_int32(size)
            out.append(number, size)
            return 1
        shown = self.field(index)
        if shown is None:
            out.append_int32(-1)
            return 1
        out.append_int32(<int> len(shown))
        out.append(<const char*> shown, len(shown))
        return 1


cdef bint is_list(int kind) noexcept:
    """Whether a column's parts are kept until all have come."""
    return kind == COMBINE_TEXT or kind == COMBINE_ARRAY or kind == COMBINE_JSON or kind == COMBINE_KEPT or \
        kind == COMBINE_SORTED


cdef bint read_integer(Total* total, const char* data, int size, int64_t* found) noexcept:
    """A small integer; False for everything else."""
    cdef int64_t value = 0
    cdef int at = 0
    cdef unsigned char digit
    if total.oid != INT8 and total.oid != NUMERIC and total.oid != INT4 and total.oid != INT2:
        return False
    if total.binary:
        if total.oid == NUMERIC or size > 8 or size < 1:
            return False
        value = -1 if <signed char> data[0] < 0 else 0
        for at in range(size):
            value = <int64_t> ((<unsigned long long> value << 8) | <unsigned char> data[at])
        found[0] = value
        return True
    if size and data[0] == b"-":
        at = 1
    if size == at or size - at > DIGITS_MAX:
        return False
    while at < size:
        digit = <unsigned char> data[at] - 48
        if digit > 9:
            return False
        value = value * 10 + digit
        at += 1
    found[0] = -value if data[0] == b"-" else value
    return True
