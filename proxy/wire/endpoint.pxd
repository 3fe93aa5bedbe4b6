from libc.stdint cimport uint32_t

from foreshard._core.buffer cimport Buffer


cdef double monotonic() noexcept


cdef class Reactor:
    cdef int epoll_fd
    cdef char* scratch          # where every socket is received into; in use until the endpoint has looked at it
    cdef set endpoints          # keeps them alive while epoll holds their addresses
    cdef list closed            # endpoints closed in this batch: dropped after it
    cdef readonly double now    # seconds on the event loop's clock when this batch began, or a linger (10 ms) earlier
    cdef object loop
    cdef public bint is_hasty   # somebody waits for what the event loop does: short turns
    cdef object on_failure      # callable(endpoint, exception): an error of ours, not of the peer

    cdef int add(self, Endpoint endpoint, uint32_t events) except -1
    cdef void remove(self, Endpoint endpoint)


cdef class Endpoint:
    cdef readonly int fd                # -1 once closed
    cdef Reactor reactor
    cdef uint32_t interest              # epoll events asked for
    cdef Buffer outbox                  # bytes the socket has not taken yet
    cdef bint is_corked                 # what is pushed waits in the outbox until flush
    cdef Buffer inbox                   # bytes received and not yet consumed
    cdef Py_ssize_t inbox_goal          # receive at least this much before looking again; 0: anything
    cdef readonly double received_at    # reactor's `now` at the last receive and send; 0: never
    cdef readonly double sent_at
    cdef readonly long long received_bytes
    cdef readonly long long sent_bytes

    cdef int open(self, Reactor reactor, int fd, uint32_t events) except -1
    cdef void close(self)
    cdef int set_interest(self, uint32_t events) except -1
    cdef int set_reading(self, bint reading) except -1
    cdef int push(self, const char* data, Py_ssize_t size) except -1
    cdef int flush(self) except -1
    cdef int receive(self) except -1
    cdef int look(self) except -1

    cdef Py_ssize_t on_input(self, const char* data, Py_ssize_t size) except -1
    cdef int on_writable(self) except -1
    cdef int on_closed(self, str reason) except -1


cdef class Listener(Endpoint):
    cdef object callback
