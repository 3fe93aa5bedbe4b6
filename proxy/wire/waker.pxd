from foreshard.proxy.wire.endpoint cimport Endpoint


cdef class Waker(Endpoint):
    cdef object directory               # the run directory: one datagram socket per worker
    cdef dict sockets                   # file name -> connected socket
    cdef int worker_count
    cdef int* worker_fds
    cdef int* worker_shards
    cdef unsigned char* touched         # shards whose workers are still to be woken
    cdef double* woken_at               # per shard, on the event loop's clock
    cdef bint is_armed

    cdef int touch(self, int shard) except -1
    cdef void wake(self, int shard) noexcept
    cdef void arm(self) noexcept
