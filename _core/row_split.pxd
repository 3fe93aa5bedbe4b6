from foreshard._core.frames cimport BindParts
from foreshard._core.values cimport Values


cdef class RowText:
    cdef readonly bytes sql
    cdef readonly list rows         # (start, stop) of each row's parentheses, as byte offsets
    cdef readonly list params       # (start, stop, n) of each $n, in the order of the text

    cdef int cut(self) except -1
    cdef bytes copy_of(self, Py_ssize_t start, Py_ssize_t stop, dict ranks)


cdef bytes bind_rest(BindParts* parts, Values params, list used)
cdef bytes parse_rest(bytes text, bytes declared, list used)
cdef list order_of(list split)
