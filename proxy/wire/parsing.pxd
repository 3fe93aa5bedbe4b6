from foreshard._core.template cimport Template
from foreshard.proxy.wire.backend cimport Backend
from foreshard.proxy.wire.completing cimport Completing
from foreshard.proxy.wire.statement cimport Statement


cdef enum Handled:
    HANDLED = 0             # the message is dealt with
    RETRY = 1               # it has to wait; nothing has changed


cdef class Parsing(Completing):
    cdef dict prepared              # name -> Statement
    cdef Statement unnamed          # the unnamed prepared statement
    cdef Statement recent           # the named statement bound last, and its name
    cdef bytes recent_name
    cdef list unconfirmed           # names parsed in this segment that no shard had accepted before
    cdef Statement deferred         # parsed, but not yet sent to a shard
    cdef bint deferred_unnamed

    cdef int on_parse(self, const char* body, Py_ssize_t size) except -1
    cdef Statement intern_statement(self, bytes body, Py_ssize_t query_size)
    cdef Statement find_statement(self, const char* name, Py_ssize_t size)
    cdef int home_shard(self, Statement statement) except -2
    cdef int settle_deferred(self) except -1
    cdef int settle_other(self, Statement statement, bint is_unnamed) except -1
    cdef int ensure(self, Backend backend, Statement statement, bint is_unnamed, bint is_shown) except -1
    cdef int answer(self, int synthetic) except -1
    cdef bint is_own(self, Template template) noexcept
    cdef int forget_unconfirmed(self) except -1
    cdef bint owes_unsynced(self) noexcept
    cdef int protocol_error(self, str message) except -1
