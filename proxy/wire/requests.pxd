from foreshard._core.replies cimport Replies
from foreshard.proxy.wire.endpoint cimport Endpoint


cdef class Requests(Endpoint):
    cdef Replies replies
    cdef bint unsynced                  # extended messages sent since the last Sync
    cdef set prepared                   # ids of the server-side prepared statements it has
    cdef list parsing                   # statements whose ParseComplete is owed, oldest first
    cdef object unnamed                 # what its unnamed statement holds; None: unknown

    cdef int write_message(self, char type, const char* body, Py_ssize_t size) except -1
    cdef int write_query(self, bytes sql, int entry) except -1
    cdef int write_empty(self, char type, int entry) except -1
    cdef int write_parse(self, object statement, bytes name, const char* body, Py_ssize_t size, int entry) except -1
