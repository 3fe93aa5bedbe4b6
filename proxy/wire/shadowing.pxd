from foreshard.proxy.wire.backend cimport Backend
from foreshard.proxy.wire.merged_query cimport MergedQuery


cdef class Shadowing(MergedQuery):
    cdef object shadow              # ShadowPlan of the statement that is being prepared for; None: none is
    cdef Backend shadow_node
    cdef int shadow_running         # shards that have not given all of their rows
    cdef int shadow_due             # Queries that the node has not answered
    cdef long long shadow_bytes
    cdef long long shadow_rows
    cdef object shadow_error        # SqlError that ends it
    cdef bint is_shadowed           # the tables are there: the statement may go to the node

    cdef int begin_shadow(self, object plan, list shards) except -1
    cdef int settle_pipeline(self) except -1
    cdef int fail_shadow(self, object error) except -1
    cdef int let_go(self) except -1
    cdef int end_shadow_rows(self) except -1
    cdef int finish_shadow(self) except -1
