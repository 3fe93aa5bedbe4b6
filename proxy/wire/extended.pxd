from foreshard._core.frames cimport BindParts
from foreshard._core.template cimport Template
from foreshard.proxy.wire.backend cimport Backend
from foreshard.proxy.wire.parsing cimport Parsing
from foreshard.proxy.wire.portal cimport Portal
from foreshard.proxy.wire.statement cimport Statement


cdef class Extended(Parsing):
    cdef Portal portal              # the unnamed portal
    cdef Portal asked               # whose Execute is under way over several shards
    cdef const char* input_end      # where what the client has sent ends; NULL: the message at hand is one of ours
    cdef bint may_sync              # the Execute at hand has no row limit, and the client's Sync is here already
    cdef bint ends_segment          # the client's Execute at hand is the last message before its Sync
    cdef bint syncs                 # that went to the shards together with the Execute
    cdef bytes explained             # answer of the EXPLAIN (FORESHARD) bound last

    cdef int on_bind(self, const char* body, Py_ssize_t size) except -1
    cdef int on_describe(self, const char* body, Py_ssize_t size) except -1
    cdef int on_execute(self, const char* body, Py_ssize_t size) except -1
    cdef bint is_sync_next(self, const char* next) noexcept
    cdef int on_close(self, const char* body, Py_ssize_t size) except -1
    cdef int on_flush(self) except -1

    cdef Portal find_portal(self, const char* name, Py_ssize_t size)
    cdef Portal make_portal(self, const char* name, Py_ssize_t size)
    cdef int bind_own(self, Statement statement, BindParts* parts) except -1
    cdef int send_bind(self, Backend backend, Statement statement, BindParts* parts, bint is_shown) except -1
    cdef int bind_many(self, Portal portal, Statement statement, BindParts* parts) except -1
    cdef int bind_carried(self, Statement statement, BindParts* parts) except -1
    cdef int bind_part(self, Portal portal, int index) except -1
    cdef int split_bind(self, Portal portal, Statement statement, BindParts* parts) except -1
    cdef int bind_split(self, Portal portal, int index, bint is_shown) except -1
    cdef int execute_part(self, Portal portal, int index, long long rows) except -1
    cdef int close_many(self, Portal portal, const char* body, Py_ssize_t size) except -1
    cdef int execute_many(self, Portal portal, long long rows) except -1
    cdef int describe_unmarked(self, Portal portal, Backend backend) except -1
    cdef int describe_own(self, Statement statement, bint with_parameters) except -1
    cdef int explain_bound(self, Statement statement) except -1
    cdef int execute_own(self, Statement statement) except -1
    cdef int send_execute(self, Backend backend, bytes name, long long rows) except -1
    cdef int forget_portals(self) except -1
    cdef int fatal(self, object error) except -1
