from foreshard._core.statement_cache cimport StatementCache
from foreshard._core.template cimport Template
from foreshard.proxy.wire.freezing cimport Freezing


cdef class Completing(Freezing):
    cdef StatementCache cache           # the hub's, or this session's own while it has changed the schema
    cdef Template completing            # of the statement under way, which something follows; None: nothing
    cdef bint is_suspended              # it ended at a row limit
    cdef readonly object schema         # the Catalog as this transaction has made it; None: as everybody's
    cdef Template alone                 # that runs on one shard after the other, outside of transactions; None: none
    cdef tuple committing               # a COMMIT that waits for every router to give way; None: none
    cdef bint is_announced              # they all have
    cdef list schema_marks              # (savepoint's place in `history`, `schema` at that time)

    cdef list completed_parts(self, Template template)
    cdef int run_alone(self, Template template, bytes text) except -1
    cdef int go_on_committing(self, object failure) except -1
    cdef int finish_alone(self, object result, object failure) except -1
    cdef int take_schema(self, object schema) except -1
    cdef int restore_schema(self) except -1
