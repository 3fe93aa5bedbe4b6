"""The rows of an INSERT ... VALUES, or MERGE ... USING (VALUES ...), in its text, and texts with only some of them.

Rows are found by PostgreSQL's lexical rules alone: VALUES outside of parentheses (in MERGE: within one), then
parenthesised rows between commas. The planner has compared their number with the parser's for this text, and texts
that share its Template differ in literals, comments and white space only: what is found at run time is right for them,
too.

1. A part is the client's own bytes less the rows left out; of `$n` only the number changes, in the order of numbers.
2. A part of a text up to PLACED_BYTES_MAX has each kept character where the client has it (blanks in place of the
   rest), so that positions in errors are right.
"""

cimport cython

from foreshard._core.frames cimport BindParts, Cursor, read_bytes, read_int16, read_int32
from foreshard._core.lexer cimport Lexer
from foreshard._core.values cimport VALUE_BINARY, Values

import bisect

cdef enum:
    DATA_ROW_HEAD = 7           # of a DataRow or RowDescription: type, length, number of columns
    FIELD_SIZE = 18             # of a RowDescription's field behind its name
    FORMATS_ONE = 4             # bytes of result formats that are one for all columns: their count and the code
    PLACED_BYTES_MAX = 65536    # chosen, not measured: blanks for each shard cost less than a missing position


cdef inline bint starts_identifier(char byte) noexcept:
    cdef unsigned char code = <unsigned char> byte
    return code >= 128 or code == 95 or 65 <= code <= 90 or 97 <= code <= 122


cdef inline bint is_digit(char byte) noexcept:
    return b"0" <= byte <= b"9"


cdef inline bint continues_identifier(char byte) noexcept:
    return starts_identifier(byte) or is_digit(byte) or byte == b"$"


@cython.final
cdef class RowText:
    """One text cut into rows. Made for one statement at hand."""

    def __init__(self, bytes sql):
        self.sql = sql
        self.rows = []
        self.params = []
        self.cut()

    cdef int cut(self) except -1:
        """Find rows and parameters."""
        cdef Lexer lexer = Lexer()
        cdef Values literals = Values()
        cdef const char* base = self.sql
        cdef Py_ssize_t at = 0, size = len(self.sql), start, row = 0, literal, depth = 0, index = 0
        cdef Py_ssize_t level = -1      # of the parentheses that rows stand in: known from the first word on
        cdef bint in_values = False, is_over = False
        lexer.scan(base, size, literals)
        while at < size:
            literal = literals.items[index].data - base if index < literals.count else size
            if at == literal:
                at += literals.items[index].size
                index += 1
                self.end = at
                continue
            if base[at] == b"-" and at + 1 < size and base[at + 1] == b"-":
                at = end_of_line(base, at, size)
                continue
            if base[at] == b"/" and at + 1 < size and base[at + 1] == b"*":
                at = end_of_comment(base, at, size)
                continue
            if base[at] in b"; \t\n\r\f\v":
                is_over = is_over or (in_values and base[at] == b";")
                at += 1
                continue
            if base[at] == b'"':
                at = self.sql.find(b'"', at + 1) + 1 or size
                is_over = is_over or (in_values and depth == level)
            elif starts_identifier(base[at]):
                start = at
                while at < size and at != literal and continues_identifier(base[at]):
                    at += 1
                if level < 0:
                    level = 1 if self.sql[start:at].lower() == b"merge" else 0
                if depth == level and not is_over:
                    is_over = in_values
                    in_values = in_values or self.sql[start:at].lower() == b"values"
            elif base[at] == b"$" and at + 1 < size and at + 1 != literal and is_digit(base[at + 1]):
                start = at
                at += 1
                while at < size and is_digit(base[at]):
                    at += 1
                self.params.append((start, at, int(self.sql[start + 1:at])))
            else:
                if base[at] == b"(":
                    if depth == level:
                        row = at
                    depth += 1
                elif base[at] == b")":
                    depth -= 1
                    if depth == level and in_values and not is_over:
                        self.rows.append((row, at + 1))
                    is_over = is_over or (in_values and depth < level)
                elif depth == level and in_values and base[at] != b",":
                    is_over = True
                at += 1
            self.end = at
        return 0

    def part(self, list chosen, bytes tail=b"") -> tuple[bytes, list[int]]:
        """The text with the chosen rows (ascending), and the parameters it has: `$1` of it is the first of these.

        `tail` stands behind the statement's last word.
        """
        cdef Py_ssize_t index, start, stop, end
        cdef bint places = len(self.sql) <= PLACED_BYTES_MAX
        kept = set(chosen)
        left_out = [span for index, span in enumerate(self.rows) if index not in kept]
        used = sorted({number for start, _, number in self.params if not is_within(start, left_out)})
        ranks = {number: b"$%d" % (rank + 1) for rank, number in enumerate(used)}
        pieces = [self.copy_of(0, self.rows[0][0], ranks)]
        for index, (start, stop) in enumerate(self.rows):
            end = self.rows[index + 1][0] if index + 1 < len(self.rows) else stop
            if index not in kept:
                pieces.append(blanks(self.sql, start, end) if places else b"")
                continue
            pieces.append(self.copy_of(start, stop, ranks))
            if index < chosen[-1]:
                pieces.append(b",")
                stop += 1
            pieces.append(blanks(self.sql, stop, end) if places else b"")
        pieces += (self.copy_of(self.rows[-1][1], self.end, ranks), tail, self.copy_of(self.end, len(self.sql), ranks))
        return b"".join(pieces), [number - 1 for number in used]

    cdef bytes copy_of(self, Py_ssize_t start, Py_ssize_t stop, dict ranks):
        """A range of the text with its parameters renumbered, as long as it was."""
        cdef Py_ssize_t index = bisect.bisect_left(self.params, (start,))
        pieces = []
        while index < len(self.params) and self.params[index][0] < stop:
            at, end, number = self.params[index]
            pieces += (self.sql[start:at], ranks[number].ljust(end - at))
            start = end
            index += 1
        pieces.append(self.sql[start:stop])
        return b"".join(pieces)


cdef Py_ssize_t end_of_line(const char* base, Py_ssize_t at, Py_ssize_t size) noexcept:
    while at < size and base[at] != b"\n" and base[at] != b"\r":
        at += 1
    return at


cdef Py_ssize_t end_of_comment(const char* base, Py_ssize_t at, Py_ssize_t size) noexcept:
    """After a block comment, those nested in it included."""
    cdef Py_ssize_t depth = 0
    while at + 1 < size:
        if base[at] == b"/" and base[at + 1] == b"*":
            depth += 1
            at += 2
        elif base[at] == b"*" and base[at + 1] == b"/":
            depth -= 1
            at += 2
            if depth == 0:
                return at
        else:
            at += 1
    return size


cdef bint is_within(Py_ssize_t at, list spans) except -1:
    """Whether a position is in one of the spans, which are ascending."""
    cdef Py_ssize_t low = 0, high = len(spans), middle
    while low < high:
        middle = (low + high) // 2
        if spans[middle][1] <= at:
            low = middle + 1
        else:
            high = middle
    return low < len(spans) and spans[low][0] <= at


cdef bytes blanks(bytes sql, Py_ssize_t start, Py_ssize_t stop):
    """As many blanks as there are characters (of UTF-8) in a range."""
    cdef const unsigned char* data = sql
    cdef Py_ssize_t at, count = 0
    for at in range(start, stop):
        if data[at] & 0xC0 != 0x80:
            count += 1
    return b" " * count


cdef bytes bind_rest(BindParts* parts, Values params, list used, bint has_marks):
    """What follows the names in a Bind that gives only the used parameters of another, whose values are in `params`.

    With marks the result has one more column, in text unless all are binary.
    """
    cdef Cursor cursor
    cdef int _, count
    cursor.at = parts.rest
    cursor.end = parts.rest + parts.rest_size
    cursor.is_bad = False
    count = read_int16(&cursor)
    read_bytes(&cursor, <Py_ssize_t> count * 2)
    count = read_int16(&cursor) & 0xFFFF
    for _ in range(count):
        read_bytes(&cursor, max(read_int32(&cursor), 0))
    size = len(used).to_bytes(2, "big")
    pieces = [size]
    pieces += [b"\0\1" if params.items[<int> index].format == VALUE_BINARY else b"\0\0" for index in used]
    pieces.append(size)
    for index in used:
        if params.items[index].size < 0:
            pieces.append(b"\xff\xff\xff\xff")
        else:
            pieces.append(int(params.items[index].size).to_bytes(4, "big"))
            pieces.append(params.items[index].data[:params.items[index].size])
    formats = cursor.at[:cursor.end - cursor.at]
    if has_marks and len(formats) > FORMATS_ONE:
        formats = (int.from_bytes(formats[:2], "big") + 1).to_bytes(2, "big") + formats[2:] + b"\0\0"
    pieces.append(formats)
    return b"".join(pieces)


cdef bint marks_are_binary(BindParts* parts) noexcept:
    """Whether the Bind's result formats are one code for all columns: binary."""
    return parts.rest_size >= FORMATS_ONE and parts.rest[parts.rest_size - FORMATS_ONE:parts.rest_size] == b"\0\1\0\1"


cdef bytes parse_rest(bytes text, bytes declared, list used):
    """What follows the name in a Parse of a part; `declared` are the parameter types of the whole as Parse has them."""
    count = int.from_bytes(declared[:2], "big")
    types = [declared[2 + 4 * index:6 + 4 * index] if index < count else b"\0\0\0\0" for index in used]
    return text + b"\0" + len(types).to_bytes(2, "big") + b"".join(types)


cdef list order_of(list split):
    """For each row the index of the part that it is in; None when nothing was split."""
    if split is None:
        return None
    order = [0] * sum(len(rows) for rows in split)
    for part, rows in enumerate(split):
        for row in rows:
            order[row] = part
    return order


cdef list unmark_rows(list kept, list marks, list order):
    """What the shards gave, in the order of the statement's rows, without the marks in their last column.

    `kept` are each part's messages: perhaps its RowDescription, and its rows, a part of the rows that it was sent in
    their order; `marks` the marks of those, `order` as `order_of` gives it. A row that has none of the marks (a trigger
    may have changed it) stays behind the one before it.
    """
    cdef list head = [], found = []
    cdef Py_ssize_t part, at, place, number
    cdef bytes message, mark
    numbers = [[row for row, owner in enumerate(order) if owner == part] for part in range(len(marks))]
    for part, messages in enumerate(kept):
        at = number = 0
        for message in messages:
            if message[:1] == b"T":
                head = head or [without_last_field(message)]
                continue
            message, mark = without_last_column(message)
            for place in range(at, len(marks[part])):
                if marks[part][place] == mark:
                    number = numbers[part][place]
                    at = place + 1
                    break
            found.append((number, message))
    found.sort(key=first_of)
    return head + [message for _, message in found]


def first_of(pair: tuple[int, bytes]) -> int:
    """What rows are sorted by."""
    return pair[0]


cdef tuple without_last_column(bytes message):
    """A DataRow less its last column, and that; None for NULL."""
    cdef Py_ssize_t at = DATA_ROW_HEAD, start = DATA_ROW_HEAD, count = int.from_bytes(message[5:7], "big"), _
    cdef int size = 0
    for _ in range(count):
        start = at
        size = int.from_bytes(message[at:at + 4], "big", signed=True)
        at += 4 + max(size, 0)
    row = (count - 1).to_bytes(2, "big") + message[DATA_ROW_HEAD:start]
    return b"D" + (len(row) + 4).to_bytes(4, "big") + row, None if size < 0 else message[start + 4:at]


cdef bytes without_last_field(bytes message):
    """A RowDescription less its last field."""
    cdef Py_ssize_t at = DATA_ROW_HEAD, start = DATA_ROW_HEAD, count = int.from_bytes(message[5:7], "big"), _
    for _ in range(count):
        start = at
        at = message.index(b"\0", at) + 1 + FIELD_SIZE
    fields = (count - 1).to_bytes(2, "big") + message[DATA_ROW_HEAD:start]
    return b"T" + (len(fields) + 4).to_bytes(4, "big") + fields
