from foreshard._core.template cimport Template
from foreshard.proxy.wire.arbiter cimport Arbiter


cdef enum:
    BUCKET_NONE = -1
    BUCKET_ANY = -2         # of all that there are, perhaps
    TOUCHED_MAX = 8         # buckets that a transaction is known by; chosen, not measured


cdef class Freezing(Arbiter):
    cdef int touched[TOUCHED_MAX]   # buckets in which the transaction has written
    cdef int touched_count
    cdef bint touches_every         # in more than those, or nobody knows in which
    cdef bint goes_on               # had the frozen bucket open when it was frozen: is waited for, and never waits
    cdef bint keeps_snapshot        # the transaction's snapshots last as long as it does, as far as its settings say
    cdef int reading                # what its statements read: until the segment ends, as long as no portal is open

    cdef bint touch(self, int bucket, bint stays) except -1
    cdef bint touch_found(self, Template template, int shard) except -1
    cdef int note_touched(self, int bucket, bint stays) noexcept
    cdef bint has_touched(self, int bucket) noexcept
    cdef int note_work(self) except -1
    cdef bint has_unbound_parts(self) noexcept
    cdef int keep_reading(self) noexcept
    cdef int forget_touched(self) noexcept
