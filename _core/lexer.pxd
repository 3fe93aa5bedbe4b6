from foreshard._core.values cimport Values


cdef enum:
    LITERAL_INTEGER = 1     # 5, 1_000, 0x1F: digits without point or exponent
    LITERAL_NUMERIC = 2     # 5.0, .5, 5e3
    LITERAL_STRING = 3      # '...': backslashes are data
    LITERAL_ESCAPE = 4      # E'...'
    LITERAL_DOLLAR = 5      # $$...$$ and $tag$...$tag$
    LITERAL_BITS = 6        # B'...' and X'...'
    LITERAL_UNICODE = 7     # U&'...'
    LITERAL_CONTINUED = 8   # any quoted literal in several segments: its data spans all of them, quotes included
    LITERAL_KIND_MAX = 8


cdef class Lexer:
    cdef char* key              # the text with each literal replaced by one byte, its LiteralKind
    cdef Py_ssize_t key_size
    cdef Py_ssize_t capacity
    cdef const char* at         # cursor: at <= end always
    cdef const char* end
    cdef Py_ssize_t gap         # key_size when white space was last skipped: one blank is owed before the next token
    cdef bint odd               # unterminated, or has bytes that no token has: the key must not stand for other texts
    cdef Values literals        # of the text being scanned, else None
    cdef Py_ssize_t literal_count

    # Fill `literals` with the literals of the text in order and `key` with its normalized form.
    # 0 when texts with this key have the same structure; 1 when only this very text is known to (see `odd`).
    cdef int scan(self, const char* sql, Py_ssize_t size, Values literals) except -1
    cdef void put(self, char byte) noexcept
    cdef void copy(self, Py_ssize_t size) noexcept
    cdef int add(self, const char* start, const char* stop, int kind) except -1
    cdef int step(self) except -1
    cdef void skip_line_comment(self) noexcept
    cdef void skip_block_comment(self) noexcept
    cdef int take_identifier(self) except -1
    cdef void take_quoted_identifier(self) noexcept
    cdef int take_string(self, int kind) except -1
    cdef const char* find_quote(self, const char* at, bint escapes) noexcept
    cdef const char* find_continuation(self, const char* at) noexcept
    cdef int take_dollar(self) except -1
    cdef int take_number(self) except -1
