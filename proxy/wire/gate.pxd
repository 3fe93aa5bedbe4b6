from foreshard.proxy.wire.backend cimport Owner


cdef enum Side:
    SIDE_COMMIT = 0         # passes from a commit point to the last COMMIT PREPARED
    SIDE_SNAPSHOT = 1       # opens one snapshot on every shard


cdef class Gate:
    cdef readonly int committing
    cdef readonly int opening
    cdef object waiting                 # deque of (owner, side), first come first served
    cdef list parked                    # owners that want snapshots and wait for recovery
    cdef readonly object in_doubt       # names of prepared transactions that recovery has to end; None: not known yet

    cdef bint enter(self, Owner owner, int side) except -1
    cdef int leave(self, int side) except -1
    cdef int forget(self, Owner owner) except -1
    cdef bint has_doubt(self) noexcept
    cdef bint admits(self, int side) noexcept
    cdef void admit(self, int side) noexcept
    cdef int admit_waiting(self) except -1
