from foreshard._core.template cimport Template
from foreshard.proxy.wire.carrying cimport Carrying


cdef class Simple(Carrying):
    cdef readonly long long queries
    cdef tuple several              # texts of a string's statements that are run one after the other; None: none
    cdef int several_at             # index of the one at hand
    cdef bint several_failed
    cdef bint is_last               # the statement at hand is the string's last
    cdef bytes message              # the Query that each shard is sent in its turn
    cdef bytes own_begin            # how a transaction of its own begins

    cdef int on_query(self, const char* body, Py_ssize_t size, const char* message, Py_ssize_t total) except -1
    cdef int run_query(self, Template template, const char* message, Py_ssize_t total) except -1
    cdef int forward_query(self, Template template, int shard, const char* message, Py_ssize_t total) except -1
    cdef int query_copy(self, Template template, bytes text) except -1
    cdef int run_in_transaction(self, bytes text) except -1
    cdef int query_many(self, Template template, const char* message, Py_ssize_t total) except -1
    cdef int query_same(self, Template template, list parts, bytes message) except -1
    cdef int query_several(self, Template template, const char* message, Py_ssize_t total) except -1
    cdef int shard_of_all(self, Template template, list works) except -8
    cdef int run_several(self) except -1
    cdef int run_next(self, bytes text) except -1
    cdef int finish_several(self) except -1
    cdef int explain_query(self, Template template) except -1
