from foreshard.proxy.wire.backend cimport Owner


cdef class Gate:
    cdef object services
    cdef list waiting                   # owners that want snapshots
    cdef set inside                     # owners that are opening theirs
    cdef list done                      # owners that have theirs, and wait for the word that they hold

    cdef int enter(self, Owner owner) except -1
    cdef int leave(self, Owner owner) except -1
    cdef int forget(self, Owner owner) except -1
    cdef int tell(self, Owner owner, object error) except -1
