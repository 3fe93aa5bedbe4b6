from foreshard._core.frames cimport BindParts
from foreshard.proxy.wire.backend cimport Backend
from foreshard.proxy.wire.carry cimport Carry
from foreshard.proxy.wire.copying cimport Copying
from foreshard.proxy.wire.portal cimport Portal
from foreshard.proxy.wire.statement cimport Statement


cdef class Carrying(Copying):
    cdef Carry carry                # under way: what shards answer is for it, not for the client; None: none is
    cdef long long carry_limit      # the row limit of the Execute at hand

    cdef int query_carried(self, bytes text) except -1
    cdef int execute_carried(self, Portal portal, long long rows) except -1
    cdef int run_carry(self) except -1
    cdef int step_carry(self, Carry carry) except -1
    cdef int open_carry(self, Carry carry) except -1
    cdef int fetch_carry(self, Carry carry) except -1
    cdef int insert_carry(self, Carry carry) except -1
    cdef int count_carry(self, Carry carry) except -1
    cdef int spread_carry(self) except -1
    cdef int settle_replies(self, Carry carry) except -1
    cdef int end_carry(self, Carry carry) except -1
    cdef int fail_carry(self, Carry carry) except -1
    cdef int give(self, Carry carry, long long rows) except -1
    cdef int complete_carry(self, Carry carry, list taken) except -1
    cdef int tell(self, bytes data) except -1
    cdef int bind_on(self, Backend backend, Statement statement, bytes portal, bytes rest) except -1
    cdef int bind_for(self, Statement statement, bytes portal, bytes rest) except -1
    cdef int execute_for(self, bytes portal, long long rows) except -1
    cdef int close_for(self, bytes portal) except -1
    cdef int sync_quietly(self, int entry) except -1
