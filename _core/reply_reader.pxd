from foreshard._core.buffer cimport Buffer


cdef class ReplyReader:
    cdef Buffer held            # what has come of a message that is not whole yet
    cdef readonly list rows     # bodies of DataRows
    cdef readonly bytes description     # body of the last RowDescription; None: none came
    cdef readonly bytes tag     # of the last CommandComplete; None: none came
    cdef readonly bint is_suspended     # PortalSuspended came
    cdef readonly bytes error   # body of the first ErrorResponse; None: none came
    cdef readonly list others   # whole messages for whoever asked first: notices, parameters, notifications
    cdef readonly Py_ssize_t rows_size  # bytes in `rows`

    cdef int feed(self, const char* data, Py_ssize_t size) except -1
    cdef int read(self, char type, const char* message, Py_ssize_t total) except -1
    cdef list take_rows(self)
    cdef list take_others(self)
    cdef bytes take_tag(self)
