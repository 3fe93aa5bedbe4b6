from libc.stdint cimport int64_t, uint16_t, uint64_t

from foreshard._core.placement cimport Placer
from foreshard._core.shared cimport POLICY_COUNT, SharedState


cdef struct Row:
    int64_t key
    int table
    double pending                  # predicted cost not yet replaced by a measurement
    uint64_t stamp                  # when it came; 0: no row here
    uint16_t shards[POLICY_COUNT]   # where each policy put it


cdef class ShadowLedgers:
    cdef list placers               # Placer by policy, each over a private state of its own
    cdef Row* rows                  # sets of SET_SIZE
    cdef uint64_t set_mask
    cdef uint64_t clock
    cdef Py_ssize_t count

    cdef Row* find(self, int table, int64_t key, bint* known) noexcept
    cdef int settle(self, Row* row) except -1
    cdef Row* place(self, int table, int64_t key, double cost) except NULL
