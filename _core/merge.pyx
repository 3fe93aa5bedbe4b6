"""The merge of several shards' rows into the rows of one result, as a MergePlan says.

Bytes in, bytes out: each input's rows are queued as they come, `step` takes from the queues what can be told to come
next and writes whole DataRow messages. Rules:

1. Every input comes sorted by the plan's keys, and a row is taken when no input can have one before it any more.
2. Memory: what the caller lets pile up in the queues, one row per input, the group at hand. Groups that are sorted
   anew (ORDER BY of an aggregate) are kept up to SORTED_BYTES_MAX, and no more than LIMIT needs.
3. Types and formats are those of the shards' RowDescription; a value that is not of its type is an error.
"""

cimport cython
from libc.stdint cimport int64_t, uint32_t
from libc.stdlib cimport calloc, free

from foreshard._core.buffer cimport Buffer
from foreshard._core.combine cimport odd_value
from foreshard._core.frames cimport Cursor, read_bytes, read_cstring, read_int16, read_int32, read_uint32
from foreshard._core.merge_plan cimport MergePlan
from foreshard._core.sort_keys cimport SORT_UNKNOWN, SortKey, compare_keys, compare_values, decode_key, sort_class
from foreshard._core.totals cimport Totals

import functools

from foreshard._core.errors import SqlError

globals().update(
    MERGE_NEEDS=<int> MERGE_NEEDS, MERGE_FULL=<int> MERGE_FULL,
    MERGE_ROWS=<int> MERGE_ROWS, MERGE_DONE=<int> MERGE_DONE,
)

cdef enum:
    SORTED_BYTES_MAX = 67108864     # of groups kept to be sorted; chosen, not measured
    SORTED_SLACK = 1024             # rows beyond LIMIT before the rest is dropped


@cython.final
cdef class Column:
    """What RowDescription says of one column."""

    def __cinit__(self, uint32_t oid, bint binary):
        self.oid = oid
        self.binary = binary
        self.sort = sort_class(oid)


@cython.final
cdef class Row:
    """A row that is being looked at, with its keys read. Owned by one merger; used again for each row."""

    def __cinit__(self, int key_count):
        self.held = Buffer()
        self.key_count = key_count
        self.keys = <SortKey*> calloc(key_count + 1, sizeof(SortKey))
        if self.keys == NULL:
            raise MemoryError()

    def __dealloc__(self):
        free(self.keys)

    cdef int load(self, const char* data, Py_ssize_t size, Merger merger) except -1:
        """Copy the body of a DataRow and read its keys."""
        cdef Cursor cursor
        cdef KeySpec* spec
        cdef const char* value
        cdef int index, length
        self.held.clear()
        self.held.append(data, size)
        cursor.at = self.held.data + 2
        cursor.end = self.held.data + size
        cursor.is_bad = size < 2
        for index in range(merger.plan.hidden):
            length = read_int32(&cursor)
            value = read_bytes(&cursor, length) if length >= 0 else NULL
            if cursor.is_bad:
                raise SqlError("08P01", "a shard sent a malformed row")
            if index >= self.key_count:
                continue
            self.keys[index].data = value
            if value != NULL:
                spec = &merger.specs[index]
                if not decode_key(spec.oid, spec.binary, value, length, &self.keys[index]):
                    raise odd_value(spec.oid)
        self.shown = cursor.at - self.held.data
        return 0

    cdef list fields(self):
        """All values, hidden ones too."""
        cdef Cursor cursor
        cdef const char* value
        cdef int length
        cdef list found = []
        cursor.at = self.held.data
        cursor.end = self.held.data + self.held.end
        cursor.is_bad = False
        for _ in range(read_int16(&cursor)):
            length = read_int32(&cursor)
            value = read_bytes(&cursor, length) if length >= 0 else NULL
            if cursor.is_bad:
                raise SqlError("08P01", "a shard sent a malformed row")
            found.append(None if length < 0 else value[:length])
        return found


@cython.final
cdef class Merger:
    """One execution of a plan. Made when the shards are asked, thrown away when the client has its rows."""

    def __cinit__(self, MergePlan plan, int count, int64_t limit=-1, int64_t offset=0, tuple labels=()):
        cdef int index
        self.plan = plan
        self.count = count
        self.left = limit
        self.skip = offset
        self.queues = [Buffer() for _ in range(count)]
        self.rows = [Row(len(plan.keys)) for _ in range(count)]
        self.current = Row(len(plan.keys))
        self.ended = <char*> calloc(count, 1)
        self.heap = <int*> calloc(count, sizeof(int))
        self.empty = <int*> calloc(count, sizeof(int))
        self.specs = <KeySpec*> calloc(len(plan.keys) + 1, sizeof(KeySpec))
        if self.ended == NULL or self.heap == NULL or self.empty == NULL or self.specs == NULL:
            raise MemoryError()
        self.empty_count = count
        for index in range(count):
            (<Row> self.rows[index]).input = index
            self.empty[index] = index
        self.totals = Totals(plan.combines) if plan.combines else None
        self.shown = Buffer()
        self.sorted = []
        self.labels = labels
        self.labelled = -1

    def __dealloc__(self):
        free(self.ended)
        free(self.heap)
        free(self.empty)
        free(self.specs)

    # -- input ---------------------------------------------------------------------------------------------------

    cdef bytes describe(self, const char* body, Py_ssize_t size):
        """Take a shard's RowDescription; returns that of the client, body only."""
        cdef Cursor cursor
        cdef Column column
        cdef Py_ssize_t name_size, shown = 2
        cdef int index, count
        cdef uint32_t oid
        cursor.at = body
        cursor.end = body + size
        cursor.is_bad = False
        count = read_int16(&cursor)
        self.columns = []
        for index in range(count):
            if index == self.plan.hidden:
                shown = cursor.at - body
            read_cstring(&cursor, &name_size)
            read_bytes(&cursor, 6)
            oid = <uint32_t> read_int32(&cursor)
            read_bytes(&cursor, 6)
            column = Column(oid, read_int16(&cursor))
            self.columns.append(column)
            if self.totals is not None:
                self.totals.describe(index, count, oid, column.binary)
        if cursor.is_bad or count < self.plan.hidden:
            raise SqlError("08P01", "a shard sent a malformed RowDescription")
        if count == self.plan.hidden:
            shown = size
        for index, (down, nulls_first) in enumerate(self.plan.keys):
            column = self.columns[index]
            if column.sort == SORT_UNKNOWN:
                raise odd_value(column.oid)
            self.specs[index] = KeySpec(column.oid, column.sort, column.binary, down, nulls_first)
        self.described = True
        return (count - self.plan.hidden).to_bytes(2, "big") + body[shown:size]

    cdef void expect(self, int count):
        """Rows of so many columns come, without a description, and nothing of them is to be read."""
        self.columns = [None] * count
        self.described = True

    cdef int add(self, int input, const char* body, Py_ssize_t size) except -1:
        """Queue the body of a DataRow."""
        cdef Buffer queue = self.queues[input]
        queue.append_int32(<int> size)
        return queue.append(body, size)

    cdef void end(self, int input) noexcept:
        """The input has no more rows."""
        self.ended[input] = 1

    cdef Py_ssize_t queued(self, int input) noexcept:
        """Bytes of rows that wait."""
        cdef Buffer queue = self.queues[input]
        return queue.end - queue.start

    # -- output --------------------------------------------------------------------------------------------------

    cdef int step(self, Buffer out, Py_ssize_t out_max, long long rows_max) except -1:
        """Write what can be written; `rows_max` counts against `emitted` (0: no limit). Returns a MergeState."""
        cdef int input
        while self.described and not self.is_done:
            if self.left == 0 and not self.sorted:
                self.is_done = True
                break
            if not self.fill():
                return MERGE_NEEDS
            if out.end - out.start >= out_max:
                return MERGE_FULL
            if rows_max and self.emitted >= rows_max:
                return MERGE_ROWS
            if self.heap_size == 0:
                self.finish(out)
                continue
            input = self.heap[0]
            self.pop_heap()
            self.empty[0] = input
            self.empty_count = 1
            self.take(self.rows[input], out)
        if not self.described:
            return MERGE_NEEDS
        # As in PostgreSQL: an Execute that gets as many rows as it asked for does not look for the end.
        return MERGE_ROWS if rows_max and self.emitted >= rows_max else MERGE_DONE

    cdef bint fill(self) except -1:
        """Give every input that has none a row in the heap; False when one has to come first (`needed`)."""
        cdef Buffer queue
        cdef Py_ssize_t size
        cdef int input
        while self.empty_count:
            input = self.empty[self.empty_count - 1]
            queue = self.queues[input]
            if queue.end > queue.start:
                size = read_uint32(queue.data + queue.start)
                (<Row> self.rows[input]).load(queue.data + queue.start + 4, size, self)
                queue.consume(size + 4)
                self.push_heap(input)
            elif not self.ended[input]:
                self.needed = input
                return False
            self.empty_count -= 1
        return True

    cdef int compare(self, Row one, Row other, int count) noexcept:
        """By the first keys."""
        cdef KeySpec* spec
        cdef int index, found
        for index in range(count):
            spec = &self.specs[index]
            found = compare_keys(
                spec.sort, spec.binary, spec.down, spec.nulls_first, &one.keys[index], &other.keys[index])
            if found:
                return found
        return one.input - other.input if self.plan.is_plan else 0

    cdef void push_heap(self, int input) noexcept:
        """Add an input by its row."""
        cdef int at = self.heap_size, above, count = self.current.key_count
        self.heap_size += 1
        while at:
            above = (at - 1) // 2
            if self.compare(self.rows[self.heap[above]], self.rows[input], count) <= 0:
                break
            self.heap[at] = self.heap[above]
            at = above
        self.heap[at] = input

    cdef void pop_heap(self) noexcept:
        """Remove the first."""
        cdef int at = 0, below, last, count = self.current.key_count
        self.heap_size -= 1
        last = self.heap[self.heap_size]
        while True:
            below = 2 * at + 1
            if below >= self.heap_size:
                break
            if below + 1 < self.heap_size and self.compare(
                    self.rows[self.heap[below + 1]], self.rows[self.heap[below]], count) < 0:
                below += 1
            if self.compare(self.rows[last], self.rows[self.heap[below]], count) <= 0:
                break
            self.heap[at] = self.heap[below]
            at = below
        self.heap[at] = last

    cdef int take(self, Row row, Buffer out) except -1:
        """The next row of all."""
        if self.plan.is_plan and row.input != self.labelled:
            self.label(row.input, out)
        if self.plan.group < 0:
            return self.emit(row.held.data + row.shown, row.held.end - row.shown, out)
        if self.has_group and self.compare(row, self.current, self.plan.group) == 0:
            if self.totals is not None:
                self.totals.add(row.held.data + row.held.start, row.held.end - row.held.start)
            return 0
        if self.has_group:
            self.finish_group(out)
        return self.start_group(row)

    cdef int start_group(self, Row row) except -1:
        """The row is the first of its group: it becomes the group's."""
        cdef int input = row.input
        self.rows[input] = self.current
        self.current.input = input
        self.current = row
        self.has_group = True
        if self.totals is not None:
            self.totals.clear()
            self.totals.add(row.held.data + row.held.start, row.held.end - row.held.start)
        return 0

    cdef int finish_group(self, Buffer out) except -1:
        """Every row of the group has come: write it, or keep it to be sorted."""
        cdef int index
        cdef list fields
        self.has_group = False
        if self.totals is None and not self.plan.order and not self.plan.filters:
            return self.emit(
                self.current.held.data + self.current.shown, self.current.held.end - self.current.shown, out)
        if not self.plan.order and not self.plan.filters:
            return self.write_group(out)
        fields = self.current.fields()
        if self.totals is not None:
            for index in range(self.totals.count):
                fields[self.totals.items[index].column] = self.totals.field(index)
        if self.plan.filters and not self.passes(fields):
            return 0
        shown = b"".join([encode_field(field) for field in fields[self.plan.hidden:]])
        if not self.plan.order:
            return self.emit(<const char*> <bytes> shown, len(shown), out)
        keys = tuple([fields[number] for number, _, _ in self.plan.order])
        self.sorted.append((keys, shown))
        self.sorted_bytes += len(shown) + sum([len(key) for key in keys if key is not None]) + 64
        if self.left >= 0 and len(self.sorted) > 2 * (self.left + self.skip) + SORTED_SLACK:
            self.sort_groups()
        if self.sorted_bytes > SORTED_BYTES_MAX:
            raise SqlError(
                "53200", "too many groups to sort by an aggregate over several shards",
                f"more than {SORTED_BYTES_MAX} bytes", "Add a LIMIT, or sort by the group's own columns.")
        return 0

    cdef int write_group(self, Buffer out) except -1:
        """Write the group: its first row, with the totals in their columns."""
        cdef Cursor cursor
        cdef const char* value
        cdef int column, length
        cursor.at = self.current.held.data + self.current.shown
        cursor.end = self.current.held.data + self.current.held.end
        cursor.is_bad = False
        self.shown.clear()
        for column in range(self.plan.hidden, <int> len(self.columns)):
            length = read_int32(&cursor)
            value = read_bytes(&cursor, length) if length >= 0 else NULL
            if cursor.is_bad:
                raise SqlError("08P01", "a shard sent a malformed row")
            if not self.totals.write(column, self.shown):
                self.shown.append_int32(length)
                if value != NULL:
                    self.shown.append(value, length)
        return self.emit(self.shown.data + self.shown.start, self.shown.end - self.shown.start, out)

    cdef bint passes(self, list fields) except -1:
        """Whether a group meets HAVING."""
        cdef SortKey first
        cdef SortKey second
        cdef Column column
        cdef int found
        for one, operator, other in self.plan.filters:
            column = self.columns[one]
            read_field(column, fields[one], &first)
            read_field(self.columns[other], fields[other], &second)
            if first.data == NULL or second.data == NULL:
                return False
            found = compare_values(column.sort, column.binary, &first, &second)
            if operator not in ("<", "<=", "<>") if found < 0 else (
                    operator not in ("=", "<=", ">=") if found == 0 else operator not in (">", ">=", "<>")):
                return False
        return True

    cdef int label(self, int input, Buffer out) except -1:
        """A row of our own above the plan of a shard."""
        cdef bytes text = encode_field(self.labels[input])
        self.labelled = input
        return self.emit(<const char*> text, len(text), out)

    cdef int finish(self, Buffer out) except -1:
        """No input has a row any more."""
        cdef bytes shown
        if self.has_group:
            self.finish_group(out)
            self.sort_groups()
        if self.sorted:
            if self.left == 0:
                self.sorted.clear()
                return 0
            shown = self.sorted.pop()[1]
            return self.emit(<const char*> shown, len(shown), out)
        self.is_done = True
        return 0

    cdef int sort_groups(self) except -1:
        """Bring the kept groups into order, the first at the end, and drop those that LIMIT leaves out."""
        self.sorted.sort(key=functools.cmp_to_key(functools.partial(compare_groups, self)))
        if self.left >= 0 and len(self.sorted) > self.left + self.skip:
            del self.sorted[self.left + self.skip:]
        self.sorted_bytes = sum([len(shown) + 128 for _, shown in self.sorted])
        if self.heap_size == 0 and not self.has_group:
            self.sorted.reverse()
        return 0

    cdef int emit(self, const char* data, Py_ssize_t size, Buffer out) except -1:
        """Write one row of the client's, unless OFFSET or LIMIT leaves it out."""
        cdef int count = len(self.columns) - self.plan.hidden
        if self.skip:
            self.skip -= 1
            return 0
        if self.left == 0:
            return 0
        if self.left > 0:
            self.left -= 1
        self.emitted += 1
        out.append_byte(b"D")
        out.append_int32(<int> size + 6)
        out.append_byte(<char> (count >> 8))
        out.append_byte(<char> (count & 0xFF))
        return out.append(data, size)


cdef bytes encode_field(bytes field):
    """A value with its length."""
    return b"\xff\xff\xff\xff" if field is None else len(field).to_bytes(4, "big") + field


def compare_groups(Merger merger, tuple group, tuple other_group) -> int:
    """Two groups by plan.order."""
    cdef tuple one = group[0], other = other_group[0]
    cdef SortKey first
    cdef SortKey second
    cdef Column column
    cdef int index, found
    for index, (number, down, nulls_first) in enumerate(merger.plan.order):
        column = merger.columns[number]
        read_field(column, one[index], &first)
        read_field(column, other[index], &second)
        found = compare_keys(column.sort, column.binary, down, nulls_first, &first, &second)
        if found:
            return found
    return 0


cdef int read_field(Column column, bytes field, SortKey* key) except -1:
    """A kept key."""
    key.data = NULL
    if field is not None and not decode_key(column.oid, column.binary, field, len(field), key):
        raise odd_value(column.oid)
    return 0


def check_merge(
    MergePlan plan, bytes description, list inputs, limit=-1, offset=0, rows_max=0, out_max=1 << 20
) -> tuple[bytes, list[bytes]]:
    """The client's RowDescription and what each step wrote, for tests: inputs are lists of DataRow bodies."""
    cdef Merger merger = Merger(plan, len(inputs), limit, offset)
    cdef Buffer out = Buffer()
    cdef int state
    shown = merger.describe(description, len(description))
    waiting = [list(rows) for rows in inputs]
    written = []
    while True:
        state = merger.step(out, out_max, merger.emitted + rows_max if rows_max else 0)
        written.append(out.take())
        if state == MERGE_DONE:
            return shown, written
        if state == MERGE_NEEDS:
            if waiting[merger.needed]:
                body = waiting[merger.needed].pop(0)
                merger.add(merger.needed, body, len(body))
            else:
                merger.end(merger.needed)
