from foreshard.proxy.wire.backend cimport Backend
from foreshard.proxy.wire.extended cimport Extended


cdef class Segment(Extended):
    cdef int synced                 # shards that owe ReadyForQuery for a Sync that went to them with an Execute

    cdef bint can_sync(self, list parts) except -1
    cdef int finish_sync(self) except -1
    cdef int on_sync(self) except -1
    cdef int end_implicit(self) except -1
    cdef int poison(self, Backend backend) except -1
