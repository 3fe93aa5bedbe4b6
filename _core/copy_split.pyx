"""The splitter of COPY FROM: each row of the client's data goes to the shard that its key, or its parent's, names.

Bytes in, bytes out: records are found in the stream however it is cut, the fields that hold keys are read as PostgreSQL
reads them, and the record's own bytes are appended to its shard's part. Rules:

1. No byte of a row is changed. The header (a line, or that of the binary format) belongs in front of every part; the
   binary trailer, and nothing else, behind each.
2. What ends a line is what ended the first one; a line that ends otherwise goes to the shard that heard the first,
   which refuses it. So does a row that lacks a column of a key: any shard refuses it.
3. Keys are read by the Template, as those of an INSERT are. One that cannot be read is an SqlError, and `lines` is the
   line it stands in; no row is guessed a shard.
4. Where the parents of rows need not live at home (`CopyPlan.follows`), the data at hand is held, looked through for
   their keys, and taken when somebody has told their buckets.
5. Behind \\. (or the binary trailer) nothing is looked at, as PostgreSQL does not.
"""

cimport cython
from libc.stdint cimport int64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp

from foreshard._core.buckets cimport BUCKET_COUNT
from foreshard._core.buffer cimport Buffer
from foreshard._core.copy_fields cimport check_encoding, equals, read_escaped, read_quoted, wants
from foreshard._core.copy_lines cimport LineMap
from foreshard._core.copy_plan cimport COPY_BINARY, COPY_CSV, CopyPlan
from foreshard._core.frames cimport read_uint32
from foreshard._core.template cimport Buckets, Template, type_of
from foreshard._core.typed_keys cimport TYPE_TEXT
from foreshard._core.values cimport VALUE_BINARY, VALUE_TEXT, Values

from foreshard._core.errors import SqlError, not_built

cdef enum Stage:
    STAGE_HEAD = 0          # the header has not come yet
    STAGE_ROWS = 1
    STAGE_ENDED = 2         # behind the end marker or trailer
    STAGE_BROKEN = 3        # no binary format: the first shard says so

cdef enum Ending:
    ENDING_NONE = 0
    ENDING_NEWLINE = 1
    ENDING_RETURN = 2
    ENDING_BOTH = 3

cdef enum:
    SIGNATURE_SIZE = 11
    HEAD_SIZE = 19          # signature, flags, size of the extension
    MOMENT_BYTES_MAX = 64
    FOLLOWED_MAX = 65536    # parents that are remembered; chosen, not measured
    DEFAULT_SIZE = -2       # of a value that the shard fills in: to those who read keys a NULL

cdef bytes SIGNATURE = b"PGCOPY\n\xff\r\n\0"
cdef bytes TRAILER = b"\xff\xff"
cdef frozenset MOMENTS = frozenset((b"now", b"today", b"tomorrow", b"yesterday"))


@cython.final
cdef class CopyPart:
    """The rows of one shard. Made by the splitter; whoever sends them takes them out of `data`."""

    def __cinit__(self):
        self.data = Buffer()
        self.map = LineMap()
        self.rows = 0
        self.sent = 0


@cython.final
cdef class CopySplitter:
    """Splits one COPY. `first` is a shard that takes part in any case. The maker fills `owners`."""

    def __cinit__(
        self, Template template, CopyPlan plan, int shard_count, int first, *, int placed=-1,
        bint ends_csv=False, Py_ssize_t record_bytes_max=0x7FFFFFF0, list owners=None,
    ):
        cdef int bucket, _
        self.template = template
        self.plan = plan
        self.first = self.ending_shard = first
        self.placed = placed
        self.ends_csv = ends_csv
        self.record_bytes_max = record_bytes_max
        self.owners = <int*> calloc(BUCKET_COUNT, sizeof(int))
        if self.owners == NULL:
            raise MemoryError()
        for bucket in range(0 if owners is None else BUCKET_COUNT):
            self.owners[bucket] = owners[bucket]
        self.landed = <int64_t*> calloc(BUCKET_COUNT, sizeof(int64_t))
        if self.landed == NULL:
            raise MemoryError()
        self.parts = [CopyPart() for _ in range(shard_count)]
        self.values = Values()
        for _ in range(plan.place_count):
            self.values.append(NULL, -1, VALUE_TEXT)
        self.found = Buckets()
        self.scratch = [Buffer() for _ in range(plan.place_count + len(plan.moments))]
        self.carry = Buffer()
        self.followed = {}
        self.stage = STAGE_HEAD if plan.has_header or plan.form == COPY_BINARY else STAGE_ROWS
        self.head = None if self.stage == STAGE_HEAD else b""
        self.reset_scan()

    def __dealloc__(self):
        free(self.owners)
        free(self.landed)

    # -- the stream ----------------------------------------------------------------------------------------------

    cdef int feed(self, const char* data, Py_ssize_t size) except -1:
        """Take more of the client's data; what is no whole record waits."""
        cdef Py_ssize_t used
        if self.carry.end > self.carry.start:
            self.carry.append(data, size)
            used = self.take(self.carry.data + self.carry.start, self.carry.end - self.carry.start)
            self.carry.consume(used)
        else:
            used = self.take(data, size)
            if used < size:
                self.carry.append(data + used, size - used)
        return self.check_size()

    cdef int check_size(self) except -1:
        """Refuse a record that is too long."""
        if self.carry.end - self.carry.start > self.record_bytes_max:
            self.lines += 1
            raise SqlError("54000", "a row of COPY is too large", f"limits.message_size_max is {self.record_bytes_max}")
        return 0

    cdef int hold(self, const char* data, Py_ssize_t size) except -1:
        """Take more of the client's data in, to be taken when `look_ahead` wants nothing any more."""
        self.carry.append(data, size)
        return 0

    cdef dict look_ahead(self, bint ends):
        """The homes of the parents of what is held that are not known, by their keys; `ends`: no more data will come.

        None: no record is whole. SqlError for one that is too long.
        """
        cdef Py_ssize_t size = self.carry.end - self.carry.start, used = 0
        cdef dict wanted = {}
        if size < self.goal and not ends:
            return None
        if len(self.followed) > FOLLOWED_MAX:
            self.followed.clear()
        kept = self.stage, self.head, self.lines, self.ending, self.ending_shard, self.parts, self.final
        self.parts = [CopyPart() for _ in self.parts]
        self.wanted = wanted
        self.final = ends and self.plan.form != COPY_BINARY
        self.reset_scan()
        try:
            used = self.take(self.carry.data + self.carry.start, size)
        except SqlError:
            used = size         # told when the rows are taken
        if self.stage == STAGE_BROKEN:
            used = size         # a shard tells
        self.stage, self.head, self.lines, self.ending, self.ending_shard, self.parts, self.final = kept
        self.wanted = None
        self.reset_scan()
        self.goal = 0 if used else min(2 * size, self.record_bytes_max + 1)
        if used == 0 and not ends:
            self.check_size()
            return None
        return wanted

    cdef int take_held(self) except -1:
        """Take what is held, as far as it is whole."""
        cdef int stage = self.stage
        self.carry.consume(self.take(self.carry.data + self.carry.start, self.carry.end - self.carry.start))
        if self.stage == STAGE_BROKEN and stage != STAGE_BROKEN:
            self.carry.consume(self.take(self.carry.data + self.carry.start, self.carry.end - self.carry.start))
        return self.check_size()

    cdef int finish(self) except -1:
        """No more data will come: what waits is the last record, or a piece of one."""
        cdef Py_ssize_t size = self.carry.end - self.carry.start
        self.final = True
        if size:
            if self.plan.form == COPY_BINARY:
                self.stage = STAGE_BROKEN
            self.take(self.carry.data + self.carry.start, size)
            self.carry.clear()
        return 0

    cdef Py_ssize_t take(self, const char* data, Py_ssize_t size) except -1:
        """Whole records at the start of the data; the bytes they have."""
        cdef Py_ssize_t at = 0, length
        cdef CopyPart part = self.parts[self.first]
        if self.stage == STAGE_BROKEN or (self.stage == STAGE_ENDED and self.plan.form == COPY_BINARY):
            part.data.append(data, size)
            return size
        if self.plan.form == COPY_BINARY:
            return self.take_binary(data, size)
        while at < size and self.stage != STAGE_ENDED:
            length = self.scan(data + at, size - at)
            if length == 0:
                break
            self.take_line(data + at, length)
            self.reset_scan()
            at += length
        return size if self.stage == STAGE_ENDED else at

    # -- lines ---------------------------------------------------------------------------------------------------

    cdef int reset_scan(self) noexcept:
        """A new record begins."""
        self.scanned = 0
        self.in_quote = False
        self.was_escape = False
        self.marker = -1
        self.newlines = 0
        self.returns = 0
        return 0

    cdef Py_ssize_t scan(self, const char* data, Py_ssize_t size) noexcept:
        """The size of the record at the start of the data with what ends it; 0 when it is not whole."""
        cdef Py_ssize_t at = self.scanned, found = 0
        if self.plan.form == COPY_CSV:
            found = self.scan_csv(data, size)
        else:
            while at < size:
                if data[at] == b"\n" or data[at] == b"\r":
                    found = self.end_at(data, size, at)
                    break
                if data[at] == b"\\":
                    if at + 1 == size:
                        break
                    if data[at + 1] == b".":
                        self.marker = at
                    at += 1
                at += 1
            self.scanned = at
        if found == 0 and self.final:
            self.end_kind = ENDING_NONE
            self.end_size = 0
            return size
        return found

    cdef Py_ssize_t scan_csv(self, const char* data, Py_ssize_t size) noexcept:
        """The same for CSV, where quotes may hold what else would end a line."""
        cdef Py_ssize_t at = self.scanned, found = 0
        cdef char byte, quote = self.plan.quote
        cdef char escape = self.plan.escape if self.plan.escape != quote else 0
        while at < size:
            byte = data[at]
            if self.in_quote and byte == escape:
                self.was_escape = not self.was_escape
            if byte == quote and not self.was_escape:
                self.in_quote = not self.in_quote
            if byte != escape:
                self.was_escape = False
            if byte == b"\n" or byte == b"\r":
                if not self.in_quote:
                    found = self.end_at(data, size, at)
                    break
                self.newlines += byte == b"\n"
                self.returns += byte == b"\r"
            at += 1
        self.scanned = at
        return found

    cdef Py_ssize_t end_at(self, const char* data, Py_ssize_t size, Py_ssize_t at) noexcept:
        """The size of a line whose end begins there; 0 when the next byte must be known."""
        self.end_size = 1
        if data[at] == b"\n":
            self.end_kind = ENDING_NEWLINE
        elif self.ending == ENDING_NEWLINE or self.ending == ENDING_RETURN or (at + 1 == size and self.final):
            self.end_kind = ENDING_RETURN
        elif at + 1 == size:
            return 0
        elif data[at + 1] == b"\n":
            self.end_kind = ENDING_BOTH
            self.end_size = 2
        else:
            self.end_kind = ENDING_RETURN
        return at + self.end_size

    cdef int take_line(self, const char* data, Py_ssize_t size) except -1:
        """One whole record of text or CSV."""
        cdef Py_ssize_t content = size - self.end_size
        cdef bint is_odd = self.ending != ENDING_NONE and self.end_kind not in (ENDING_NONE, self.ending)
        cdef bint is_end = self.end_kind != ENDING_NONE and self.marker >= 0 and self.marker == content - 2
        cdef int shard = self.ending_shard
        if self.ends_csv and self.plan.form == COPY_CSV and content == 2 and memcmp(data, b"\\.", 2) == 0:
            is_end = True
        if is_end:
            self.stage = STAGE_ENDED
            if content == 2 and not is_odd:
                return 0
        self.lines += self.count_lines(self.ending)
        if self.stage == STAGE_HEAD:
            self.stage = STAGE_ROWS
            self.head = data[:size]
            self.ending = self.end_kind
            for part in self.parts:
                (<CopyPart> part).map.add(self.lines, 1)
            return 0
        if not is_odd:
            shard = self.place_whole(data, content)
        if is_odd or shard == PLACE_MISSING:
            self.stage = STAGE_ENDED        # a shard refuses this one, and nobody looks at what follows
            shard = self.ending_shard if is_odd else self.first
        self.append(shard, data, size, self.count_lines(self.ending if self.head else ENDING_NONE))
        if self.ending == ENDING_NONE:
            self.ending = self.end_kind
            self.ending_shard = max(shard, 0)
        return 0

    cdef int64_t count_lines(self, int ending) noexcept:
        """How many lines PostgreSQL counts for a record: with those inside quotes that end as the first line did."""
        return 1 + (self.newlines if ending == ENDING_NEWLINE else self.returns)

    cdef int append(self, int shard, const char* data, Py_ssize_t size, int64_t lines) except -1:
        """A record for a shard, or for all; `lines` are those that a shard counts which has heard no line before."""
        cdef CopyPart part
        if shard != PLACE_EVERYWHERE:
            return self.append_to(self.parts[shard], data, size, lines)
        for part in self.parts:
            self.append_to(part, data, size, lines)
        return 0

    cdef int append_to(self, CopyPart part, const char* data, Py_ssize_t size, int64_t lines) except -1:
        """A record for one shard."""
        part.data.append(data, size)
        part.sent += size
        if part.rows:
            lines = self.count_lines(self.ending)
        part.map.add(lines, self.lines - lines + 1)
        part.rows += 1
        return 0

    # -- the row's place -----------------------------------------------------------------------------------------

    cdef int place_whole(self, const char* data, Py_ssize_t size) except -3:
        """The same, but what is no UTF-8 is told before what is no key."""
        try:
            return self.place(data, size)
        except SqlError:
            check_encoding(data[:size])
            raise

    cdef int place(self, const char* data, Py_ssize_t size) except -3:
        """The shard of a record of text or CSV, or a RowPlace."""
        if self.plan.last >= 0 and not self.read_fields(data, size):
            return PLACE_EVERYWHERE if self.plan.is_everywhere else PLACE_MISSING
        return self.find_shard()

    cdef int find_shard(self) except -3:
        """The shard that the values name."""
        cdef int bucket
        if self.plan.is_everywhere:
            return PLACE_EVERYWHERE
        if self.plan.is_placed:
            return self.placed
        if self.plan.generates and self.values.items[0].size == DEFAULT_SIZE:
            return self.placed
        self.found.clear()
        self.template.locate_at(0, None, self.values, self.found)
        bucket = self.found.items[0]
        if self.plan.follows:
            bucket = self.follow(bucket)
        if self.plan.own >= 0 and self.values.items[self.plan.own].size >= 0 and self.wanted is None:
            self.found.clear()
            self.template.locate_at(self.plan.own, None, self.values, self.found)
            if self.found.items[0] != bucket:
                raise SqlError(
                    "23514", "the key of the new row names another bucket than its parent's",
                    hint="Leave the key out, or give one that Foreshard does not generate.")
        self.landed[bucket] += self.wanted is None
        return self.owners[bucket]

    cdef int follow(self, int home) except -2:
        """The bucket of the parent that the first value names."""
        cdef bytes value = self.values.items[0].data[:self.values.items[0].size]
        cdef bint is_binary = self.values.items[0].format == VALUE_BINARY
        if not is_binary or type_of(self.template.key_sources[0].flags) == TYPE_TEXT:
            check_encoding(value)
        key = value, is_binary
        if self.wanted is None:
            return self.followed[key]
        if key not in self.followed:
            self.wanted[key] = home
        return self.followed.get(key, home)

    cdef bint read_fields(self, const char* data, Py_ssize_t size) except -1:
        """Fill the values with the keys in a record; False when it has too few columns."""
        cdef Py_ssize_t at = 0, start
        cdef int column = 0, used = 0
        cdef bint is_csv = self.plan.form == COPY_CSV, is_wanted, is_quoted
        cdef Buffer out
        while True:
            is_wanted = wants(self.plan, column)
            out = self.scratch[used] if is_wanted else None
            used += is_wanted
            start = at
            is_quoted = False
            if is_csv:
                at = read_quoted(self.plan, data, size, at, out, &is_quoted)
            else:
                at = read_escaped(self.plan, data, size, at, out)
            if is_wanted:
                self.add_field(column, data + start, at - start, out.data + out.start, out.end - out.start, is_quoted)
            if column == self.plan.last:
                return True
            if at >= size:
                return False
            at += 1
            column += 1

    cdef int add_field(
        self, int column, const char* raw, Py_ssize_t raw_size, const char* data, Py_ssize_t size, bint is_quoted
    ) except -1:
        """A field that is looked at: as it stands, and as it reads."""
        cdef CopyPlan plan = self.plan
        cdef bint is_null = not is_quoted and equals(raw, raw_size, plan.null)
        cdef bint is_default = not is_quoted and plan.default is not None and equals(raw, raw_size, plan.default)
        cdef bint held
        cdef int key
        for key in range(plan.place_count):
            if plan.places[key].index != column:
                continue
            held = is_null
            if plan.form == COPY_CSV and is_null and plan.places[key].force_not_null:
                held = False
            elif plan.form == COPY_CSV and not is_null and plan.places[key].force_null:
                held = equals(data, size, plan.null)
            self.values.items[key].format = VALUE_TEXT
            self.values.items[key].data = data
            self.values.items[key].size = DEFAULT_SIZE if is_default else -1 if held else size
        if column in plan.moments and not is_null and not is_default:
            self.check_moment(data, size)
        return 0

    cdef int check_moment(self, const char* data, Py_ssize_t size) except -1:
        """Refuse a value that means the time of its reading, which is another one on each shard."""
        cdef bytes written
        if 3 <= size <= MOMENT_BYTES_MAX:
            written = data[:size].strip().lower()
            if written.split(b" ")[0] in MOMENTS:
                raise not_built(
                    f'the value "{written.decode("utf-8", "replace")}" in a write of a reference table',
                    "Give the time itself.", "It may mean another time on each shard.")
        return 0

    # -- the binary format ---------------------------------------------------------------------------------------

    cdef Py_ssize_t take_binary(self, const char* data, Py_ssize_t size) except -1:
        """Header, rows and trailer, as far as they are whole."""
        cdef CopyPart first = self.parts[self.first]
        cdef CopyPart part
        cdef Py_ssize_t at = 0, length
        if self.stage == STAGE_HEAD:
            at = self.take_signature(data, size)
            if at == 0 or self.stage == STAGE_BROKEN:
                return at
        while self.stage == STAGE_ROWS:
            if size - at >= 2 and memcmp(data + at, <const char*> TRAILER, 2) == 0:
                at += 2
                self.stage = STAGE_ENDED
                for part in self.parts:
                    if part.rows or part is first:
                        part.data.append(<const char*> TRAILER, 2)
                break
            length = self.take_tuple(data + at, size - at)
            if length == 0:
                return at
            at += length
        if at < size:
            first.data.append(data + at, size - at)
        return size

    cdef Py_ssize_t take_signature(self, const char* data, Py_ssize_t size) except -1:
        """The header; 0 when it is not whole. What is none goes to the first shard, and all that follows."""
        cdef Py_ssize_t end = HEAD_SIZE
        cdef bint is_ours = memcmp(data, <const char*> SIGNATURE, min(size, SIGNATURE_SIZE)) == 0
        if is_ours and size < HEAD_SIZE:
            return 0
        if is_ours:
            end += read_uint32(data + SIGNATURE_SIZE + 4)
            is_ours = read_uint32(data + SIGNATURE_SIZE) >> 16 == 0 and end <= self.record_bytes_max
        if is_ours and size < end:
            return 0
        self.stage = STAGE_ROWS if is_ours else STAGE_BROKEN
        self.head = data[:end] if is_ours else b""
        return end if is_ours else self.take(data, size)

    cdef Py_ssize_t take_tuple(self, const char* data, Py_ssize_t size) except -1:
        """One row; 0 when it is not whole, or none (which ends the splitting)."""
        cdef CopyPlan plan = self.plan
        cdef Py_ssize_t at = 2, length
        cdef int column, key, count, shard = PLACE_MISSING
        if size < 2:
            return 0
        count = <int> (<unsigned char> data[0]) << 8 | <unsigned char> data[1]
        if count >= 0x8000:
            self.stage = STAGE_BROKEN
            return 0
        for column in range(count):
            if size - at < 4:
                return 0
            length = <int> read_uint32(data + at)
            at += 4
            if length < -1:
                self.stage = STAGE_BROKEN
                return 0
            if length > size - at:
                return 0
            for key in range(plan.place_count if column <= plan.last else 0):
                if plan.places[key].index == column:
                    self.values.items[key].data = data + at
                    self.values.items[key].size = length
                    self.values.items[key].format = VALUE_BINARY
            at += max(length, 0)
        self.lines += 1
        if plan.last < count:
            shard = self.find_shard()
        self.append(self.first if shard == PLACE_MISSING else shard, data, at, 1)
        return at

    # -- for tests -----------------------------------------------------------------------------------------------

    def split(self, chunks: list[bytes]) -> list[bytes]:
        """Feed all of it and finish; what each shard gets, headers in front of those with rows and of the first."""
        cdef bytes chunk
        cdef CopyPart part
        for chunk in chunks:
            self.feed(<const char*> chunk, len(chunk))
        self.finish()
        found = []
        for part in self.parts:
            data = part.data.take()
            found.append((self.head or b"") + data if part.rows or part is self.parts[self.first] else data)
        return found
