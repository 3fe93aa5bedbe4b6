from foreshard._core.frames cimport BindParts
from foreshard._core.values cimport Values


cdef class RowText:
    cdef readonly bytes sql
    cdef readonly list rows         # (start, stop) of each row's parentheses, as byte offsets
    cdef readonly Py_ssize_t end     # behind the statement's last word
    cdef readonly list params       # (start, stop, n) of each $n, in the order of the text

    cdef int cut(self) except -1
    cdef bytes copy_of(self, Py_ssize_t start, Py_ssize_t stop, dict ranks)


cdef bytes bind_rest(BindParts* parts, Values params, list used, bint has_marks)
cdef bint marks_are_binary(BindParts* parts) noexcept
cdef bytes parse_rest(bytes text, bytes declared, list used)
cdef list order_of(list split)
cdef list unmark_rows(list kept, list marks, list order)
cdef tuple without_last_column(bytes message)
cdef bytes without_last_field(bytes message)
