"""PostgreSQL's lexical rules, as far as lifting literals out of a statement needs them.

The law: two texts with the same key differ only in the values of their literals, in comments, and in the amount of
white space between tokens. So whatever is copied into the key byte for byte is safe, and only three things must be
got exactly right: where a literal starts and ends, what is white space (comments nest and count as such), and that
white space never vanishes altogether (`< -` is two operators, `<-` is one).

1. Every literal is one byte in the key, its LiteralKind (1..8); white space is one blank, none at the ends.
2. A text that has such control bytes itself, or an unterminated literal, identifier or comment, is `odd`.
3. The key is never longer than the text, and nothing outside the text is read.
4. A sign is an operator and stays in the key; `$1` stays as it is.

Source: src/backend/parser/scan.l of PostgreSQL 17, with standard_conforming_strings on.
"""

cimport cython
from libc.stdlib cimport free, realloc
from libc.string cimport memchr, memcmp, memcpy

from foreshard._core.values cimport VALUE_NUMBER, VALUE_STRING, Values

globals().update(
    LITERAL_INTEGER=<int> LITERAL_INTEGER,
    LITERAL_NUMERIC=<int> LITERAL_NUMERIC,
    LITERAL_STRING=<int> LITERAL_STRING,
    LITERAL_ESCAPE=<int> LITERAL_ESCAPE,
    LITERAL_DOLLAR=<int> LITERAL_DOLLAR,
    LITERAL_BITS=<int> LITERAL_BITS,
    LITERAL_UNICODE=<int> LITERAL_UNICODE,
    LITERAL_CONTINUED=<int> LITERAL_CONTINUED,
)

cdef enum:
    OTHER = 0       # copied as it is
    SPACE = 1
    START = 2       # starts an identifier
    DIGIT = 3
    QUOTE = 4
    DOUBLE_QUOTE = 5
    DOLLAR = 6
    DASH = 7
    SLASH = 8
    DOT = 9
    CONTROL = 10    # no token has it


cdef unsigned char CLASSES[256]


cdef void fill_classes() noexcept:
    cdef int byte
    for byte in range(256):
        if byte >= 128 or byte == 95 or 65 <= byte <= 90 or 97 <= byte <= 122:
            CLASSES[byte] = START
        elif 48 <= byte <= 57:
            CLASSES[byte] = DIGIT
        elif byte == 32 or 9 <= byte <= 13:
            CLASSES[byte] = SPACE
        elif byte < 32:
            CLASSES[byte] = CONTROL
        else:
            CLASSES[byte] = OTHER
    CLASSES[39] = QUOTE
    CLASSES[34] = DOUBLE_QUOTE
    CLASSES[36] = DOLLAR
    CLASSES[45] = DASH
    CLASSES[47] = SLASH
    CLASSES[46] = DOT


fill_classes()


cdef inline int class_of(char byte) noexcept:
    return CLASSES[<unsigned char> byte]


cdef inline bint continues_identifier(char byte) noexcept:
    cdef int found = class_of(byte)
    return found == START or found == DIGIT or found == DOLLAR


cdef inline bint is_digit_of(char byte, int base) noexcept:
    if base == 16:
        return 48 <= byte <= 57 or 65 <= byte <= 70 or 97 <= byte <= 102
    return 48 <= byte < 48 + base


cdef const char* skip_digits(const char* at, const char* end, int base) noexcept:
    """After digits of the base, single underscores between them; `at` itself when there is no digit."""
    if at == end or not is_digit_of(at[0], base):
        return at
    at += 1
    while at < end:
        if is_digit_of(at[0], base):
            at += 1
        elif at[0] == b"_" and at + 1 < end and is_digit_of(at[1], base):
            at += 2
        else:
            break
    return at


@cython.final
cdef class Lexer:
    """Owns the buffer of the last key. One per statement cache; filled again for each text."""

    def __cinit__(self):
        self.key = NULL
        self.key_size = 0
        self.capacity = 0
        self.odd = False

    def __dealloc__(self):
        free(self.key)

    cdef int scan(self, const char* sql, Py_ssize_t size, Values literals) except -1:
        """Fill `literals` and `key`; 1 when the text is odd, else 0."""
        cdef char* grown
        if size > self.capacity:
            grown = <char*> realloc(self.key, size)
            if grown == NULL:
                raise MemoryError()
            self.key = grown
            self.capacity = size
        self.at = sql
        self.end = sql + size
        self.key_size = 0
        self.gap = 0
        self.odd = False
        self.literals = literals
        literals.clear()
        while self.at < self.end:
            if class_of(self.at[0]) == SPACE:
                self.at += 1
                self.gap = self.key_size
            else:
                self.step()
        self.literal_count = literals.count
        self.literals = None
        return self.odd

    cdef inline void put(self, char byte) noexcept:
        """Append one byte of a token, after the blank that skipped white space left. Invariant 3 gives the room."""
        self.key[self.key_size] = byte
        self.key_size += 1

    cdef inline void copy(self, Py_ssize_t size) noexcept:
        """Append the next bytes of the text as they are."""
        memcpy(self.key + self.key_size, self.at, size)
        self.key_size += size
        self.at += size

    cdef int add(self, const char* start, const char* stop, int kind) except -1:
        """Lift one literal."""
        self.put(<char> kind)
        return self.literals.append(
            start, stop - start, VALUE_NUMBER if kind <= LITERAL_NUMERIC else VALUE_STRING
        )

    cdef int step(self) except -1:
        """Take one token, or one byte of an operator, or one comment."""
        cdef int found = class_of(self.at[0])
        cdef char following = self.at[1] if self.at + 1 < self.end else 0
        if found == DASH and following == b"-":
            self.skip_line_comment()
            return 0
        if found == SLASH and following == b"*":
            self.skip_block_comment()
            return 0
        if self.gap == self.key_size and self.key_size:
            self.put(b" ")
        if found == START:
            return self.take_identifier()
        if found == DIGIT or (found == DOT and class_of(following) == DIGIT):
            return self.take_number()
        if found == QUOTE:
            return self.take_string(LITERAL_STRING)
        if found == DOLLAR:
            return self.take_dollar()
        if found == DOUBLE_QUOTE:
            self.take_quoted_identifier()
            return 0
        if found == CONTROL:
            self.odd = True
        self.copy(2 if found == DOT and following == b"." else 1)
        return 0

    cdef void skip_line_comment(self) noexcept:
        while self.at < self.end and self.at[0] != b"\n" and self.at[0] != b"\r":
            self.at += 1
        self.gap = self.key_size

    cdef void skip_block_comment(self) noexcept:
        """Skip a comment with those nested in it."""
        cdef Py_ssize_t depth = 0
        while self.at + 1 < self.end:
            if self.at[0] == b"/" and self.at[1] == b"*":
                depth += 1
                self.at += 2
            elif self.at[0] == b"*" and self.at[1] == b"/":
                depth -= 1
                self.at += 2
                if depth == 0:
                    self.gap = self.key_size
                    return
            else:
                self.at += 1
        self.at = self.end
        self.odd = True

    cdef int take_identifier(self) except -1:
        """Take a key word or an unquoted identifier, or the literal whose prefix its letter is."""
        cdef const char* stop = self.at + 1
        cdef char letter = self.at[0] | 32
        if stop < self.end and stop[0] == b"'" and (letter == b"e" or letter == b"b" or letter == b"x"):
            self.at += 1
            return self.take_string(LITERAL_ESCAPE if letter == b"e" else LITERAL_BITS)
        if letter == b"u" and stop + 1 < self.end and stop[0] == b"&" and stop[1] == b"'":
            self.at += 2
            return self.take_string(LITERAL_UNICODE)
        while stop < self.end and continues_identifier(stop[0]):
            stop += 1
        self.copy(stop - self.at)
        return 0

    cdef void take_quoted_identifier(self) noexcept:
        """Take "..." with its quotes; a doubled quote is two such tokens side by side, which says the same."""
        cdef const char* stop = <const char*> memchr(self.at + 1, b'"', self.end - self.at - 1)
        cdef const char* at = self.at
        if stop == NULL:
            self.odd = True
            stop = self.end - 1
        while at <= stop:
            if 0 <= at[0] <= LITERAL_KIND_MAX:
                self.odd = True
            at += 1
        self.copy(stop + 1 - self.at)

    cdef const char* find_quote(self, const char* at, bint escapes) noexcept:
        """The quote that ends the segment that `at` is inside of; NULL when there is none."""
        while at < self.end:
            if escapes:
                while at < self.end and at[0] != b"'":
                    at += 2 if at[0] == b"\\" else 1
                if at >= self.end:
                    return NULL
            else:
                at = <const char*> memchr(at, b"'", self.end - at)
                if at == NULL:
                    return NULL
            if at + 1 < self.end and at[1] == b"'":
                at += 2
            else:
                return at
        return NULL

    cdef const char* find_continuation(self, const char* at) noexcept:
        """The inside of the next segment of a literal whose last quote is before `at`; NULL when it has no more."""
        cdef bint newline = False
        while at < self.end:
            if at[0] == b"\n" or at[0] == b"\r":
                newline = True
                at += 1
            elif class_of(at[0]) == SPACE:
                at += 1
            elif at[0] == b"-" and at + 1 < self.end and at[1] == b"-":
                while at < self.end and at[0] != b"\n" and at[0] != b"\r":
                    at += 1
            elif at[0] == b"'" and newline:
                return at + 1
            else:
                return NULL
        return NULL

    cdef int take_string(self, int kind) except -1:
        """Take a quoted literal; `at` is on its first quote, after the prefix."""
        cdef const char* start = self.at + 1
        cdef const char* segment = start
        cdef const char* stop
        cdef int found = kind
        while True:
            stop = self.find_quote(segment, kind == LITERAL_ESCAPE)
            if stop == NULL:
                self.odd = True
                self.at = self.end
                return self.add(start, self.end, found)
            segment = self.find_continuation(stop + 1)
            if segment == NULL:
                break
            found = LITERAL_CONTINUED
        self.at = stop + 1
        return self.add(start, stop, found)

    cdef int take_dollar(self) except -1:
        """Take a dollar-quoted literal, a parameter, or a stray dollar."""
        cdef const char* start = self.at
        cdef const char* at = start + 1
        cdef Py_ssize_t size
        if at < self.end and class_of(at[0]) != DIGIT:
            while at < self.end and at[0] != b"$" and continues_identifier(at[0]):
                at += 1
        if at == self.end or at[0] != b"$":
            self.copy(1)
            if self.at < self.end and class_of(self.at[0]) == DIGIT:
                at = self.at
                while at < self.end and class_of(at[0]) == DIGIT:
                    at += 1
                self.copy(at - self.at)
            return 0
        at += 1
        size = at - start
        self.at = at
        while True:
            at = <const char*> memchr(at, b"$", self.end - at)
            if at == NULL or self.end - at < size:
                self.odd = True
                start = self.at
                self.at = self.end
                return self.add(start, self.end, LITERAL_DOLLAR)
            if memcmp(at, start, size) == 0:
                start = self.at
                self.at = at + size
                return self.add(start, at, LITERAL_DOLLAR)
            at += 1

    cdef int take_number(self) except -1:
        """Take an unsigned number: 5, 5., .5, 5e3, 0x1F, 0o17, 0b11, 1_000."""
        cdef const char* start = self.at
        cdef const char* stop = start
        cdef const char* after
        cdef int kind = LITERAL_INTEGER
        cdef char letter = start[1] | 32 if start[0] == b"0" and start + 1 < self.end else 0
        cdef int base = 16 if letter == b"x" else 8 if letter == b"o" else 2 if letter == b"b" else 0
        if base:
            after = start + 2
            if after < self.end and after[0] == b"_":
                after += 1
            stop = skip_digits(after, self.end, base)
            if stop > after:
                self.at = stop
                return self.add(start, stop, LITERAL_INTEGER)
        stop = skip_digits(start, self.end, 10)
        if stop < self.end and stop[0] == b"." and not (stop + 1 < self.end and stop[1] == b"."):
            kind = LITERAL_NUMERIC
            stop = skip_digits(stop + 1, self.end, 10)
        if stop + 1 < self.end and stop[0] | 32 == b"e":
            after = stop + 2 if stop[1] == b"+" or stop[1] == b"-" else stop + 1
            if skip_digits(after, self.end, 10) > after:
                kind = LITERAL_NUMERIC
                stop = skip_digits(after, self.end, 10)
        self.at = stop
        return self.add(start, stop, kind)


def lift(sql: bytes) -> tuple[bytes, list[tuple[int, int, int]], bool]:
    """The key of a text, its literals as (offset, size, kind), and whether the key may stand for other texts."""
    cdef Lexer lexer = Lexer()
    cdef Values values = Values()
    cdef const char* start = sql
    cdef bint odd = lexer.scan(start, len(sql), values)
    key = lexer.key[:lexer.key_size]
    kinds = [byte for byte in key if 1 <= byte <= LITERAL_KIND_MAX]
    places = [(values.items[index].data - start, values.items[index].size) for index in range(values.count)]
    if odd and len(kinds) != len(places):
        kinds = [LITERAL_CONTINUED] * len(places)
    return key, [(offset, size, kind) for (offset, size), kind in zip(places, kinds, strict=True)], not odd
