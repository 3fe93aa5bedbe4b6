"""Sockets of the relay: one epoll instance of our own inside the event loop, direct recv and send.

The event loop watches one descriptor, the reactor's epoll; what is ready below it is dispatched in C, so a message
costs no Python callback. Rules:

1. An endpoint's address is in epoll exactly while it is in `Reactor.endpoints`; one closed inside a batch stays alive
   until the batch ends, and its later events are skipped (fd -1).
2. Bytes are received into the reactor's scratch and looked at there; what an endpoint does not consume moves to its
   inbox. So an endpoint must not keep pointers into what it was given.
3. A peer's failure ends in `on_closed`; only our own mistakes raise, and they close that endpoint alone.
4. `push` sends at once when nothing waits, so a batch of messages leaves in one write.
5. After a batch the reactor lingers for the next one (LINGER_MS), which spares the event loop's own poll and callback
   for every message; timers and other callbacks of the loop wait TURN_S and one batch at most.
   What must not wait has a descriptor in the reactor (Listener, Waker).
"""

cimport cython
from cpython.ref cimport PyObject
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint32_t
from libc.stdlib cimport free, malloc
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from foreshard._core.buffer cimport Buffer

import os

cdef extern from "sys/epoll.h" nogil:
    enum:
        EPOLL_CLOEXEC
        EPOLL_CTL_ADD
        EPOLL_CTL_DEL
        EPOLL_CTL_MOD
        EPOLLIN
        EPOLLOUT
        EPOLLERR
        EPOLLHUP
    ctypedef union epoll_data_t:
        void* ptr
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epfd, int op, int fd, epoll_event* event)
    int epoll_wait(int epfd, epoll_event* events, int count, int timeout)

cdef extern from "sys/socket.h" nogil:
    enum:
        MSG_NOSIGNAL
    ssize_t recv(int fd, void* data, size_t size, int flags)
    ssize_t send(int fd, const void* data, size_t size, int flags)

cdef extern from "unistd.h" nogil:
    int close_fd "close"(int fd)

cdef enum:
    SCRATCH_BYTES = 131072      # chosen, not measured: two of Linux's default receive windows
    BATCH_EVENTS = 64
    BATCHES_MAX = 64            # rounds before the event loop gets its turn: a few milliseconds under load
    # How long to wait for more below a ready event, which saves the event loop's own round. Shorter costs more: a timer
    # that is the processor's next one must be armed (1 client: 1 ms took 95 us of CPU per transaction, 10 ms 46 us).
    LINGER_MS = 10
    HASTY_LINGER_MS = 1
    RECEIVE_ROOM = 16384        # least room when receiving into an inbox


cdef double TURN_S = 0.02       # how long the reactor keeps the event loop waiting; chosen, not measured
cdef double HASTY_TURN_S = 0.001


cdef double monotonic() noexcept:
    """Seconds on the event loop's clock."""
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <double> now.tv_sec + <double> now.tv_nsec * 1e-9


@cython.final
cdef class Reactor:
    """Owns the epoll instance. Made by the router, closed by it."""

    def __cinit__(self):
        self.epoll_fd = -1
        self.scratch = <char*> malloc(SCRATCH_BYTES)
        if self.scratch == NULL:
            raise MemoryError()

    def __init__(self, object loop, object on_failure):
        self.endpoints = set()
        self.closed = []
        self.on_failure = on_failure
        self.epoll_fd = epoll_create1(EPOLL_CLOEXEC)
        if self.epoll_fd < 0:
            raise OSError(errno, os.strerror(errno))
        self.loop = loop
        loop.add_reader(self.epoll_fd, self.run_ready)

    def __dealloc__(self):
        free(self.scratch)

    def stop(self) -> None:
        """Close every endpoint and the epoll instance."""
        cdef Endpoint endpoint
        for endpoint in list(self.endpoints):
            endpoint.close()
        self.closed.clear()
        if self.epoll_fd >= 0:
            self.loop.remove_reader(self.epoll_fd)
            close_fd(self.epoll_fd)
            self.epoll_fd = -1

    cdef int add(self, Endpoint endpoint, uint32_t events) except -1:
        """Watch the endpoint's descriptor."""
        cdef epoll_event event
        event.events = events
        event.data.ptr = <void*> endpoint
        if epoll_ctl(self.epoll_fd, EPOLL_CTL_ADD, endpoint.fd, &event) < 0:
            raise OSError(errno, os.strerror(errno))
        self.endpoints.add(endpoint)
        return 0

    cdef void remove(self, Endpoint endpoint):
        """Forget the endpoint, after this batch."""
        cdef epoll_event event
        if endpoint in self.endpoints:
            epoll_ctl(self.epoll_fd, EPOLL_CTL_DEL, endpoint.fd, &event)
            self.endpoints.discard(endpoint)
            self.closed.append(endpoint)

    def run_ready(self) -> None:
        """Dispatch what is ready; called by the event loop."""
        cdef epoll_event events[BATCH_EVENTS]
        cdef int index, count, batch, linger = HASTY_LINGER_MS if self.is_hasty else LINGER_MS
        cdef Endpoint endpoint
        cdef double until
        self.now = monotonic()
        until = self.now + (HASTY_TURN_S if self.is_hasty else TURN_S)
        for batch in range(BATCHES_MAX):
            count = epoll_wait(self.epoll_fd, events, BATCH_EVENTS, linger if batch else 0)
            if count <= 0:
                break
            for index in range(count):
                endpoint = <Endpoint> <PyObject*> events[index].data.ptr
                if endpoint.fd < 0:
                    continue
                try:
                    if events[index].events & (EPOLLIN | EPOLLHUP | EPOLLERR):
                        endpoint.receive()
                    if endpoint.fd >= 0 and events[index].events & EPOLLOUT:
                        endpoint.on_writable()
                except Exception as error:
                    try:
                        self.on_failure(endpoint, error)
                    finally:
                        endpoint.close()
            self.closed.clear()
            self.now = monotonic()
            if self.now > until:
                break       # slow but steady input must not starve timers and cancel requests


cdef class Endpoint:
    """One non-blocking socket with its two queues. Subclasses say what input means."""

    def __cinit__(self):
        self.fd = -1
        self.outbox = Buffer()
        self.inbox = Buffer()

    def __dealloc__(self):
        if self.fd >= 0:
            close_fd(self.fd)

    cdef int open(self, Reactor reactor, int fd, uint32_t events) except -1:
        """Take over a connected (or connecting) descriptor."""
        self.reactor = reactor
        self.fd = fd
        self.interest = events
        reactor.add(self, events)
        return 0

    cdef void close(self):
        """Close the socket; idempotent. Does not call on_closed."""
        if self.fd >= 0:
            self.reactor.remove(self)
            close_fd(self.fd)
            self.fd = -1
            self.outbox.clear()
            self.inbox.clear()

    cdef int set_interest(self, uint32_t events) except -1:
        cdef epoll_event event
        if self.fd < 0 or events == self.interest:
            return 0
        event.events = events
        event.data.ptr = <void*> self
        if epoll_ctl(self.reactor.epoll_fd, EPOLL_CTL_MOD, self.fd, &event) < 0:
            raise OSError(errno, os.strerror(errno))
        self.interest = events
        return 0

    cdef int set_reading(self, bint reading) except -1:
        """Start or stop receiving."""
        if reading:
            return self.set_interest(self.interest | EPOLLIN)
        return self.set_interest(self.interest & ~<uint32_t> EPOLLIN)

    cdef int push(self, const char* data, Py_ssize_t size) except -1:
        """Send, or keep what the socket does not take now. A dead peer is noticed by receive()."""
        cdef ssize_t sent
        if self.fd < 0 or size == 0:
            return 0
        if self.outbox.end == self.outbox.start and not self.is_corked:
            sent = send(self.fd, data, size, MSG_NOSIGNAL)
            if sent == size:
                self.sent_bytes += size
                self.sent_at = self.reactor.now
                return 0
            if sent < 0:
                if errno != EAGAIN and errno != EINTR:
                    return 0
                sent = 0
            self.sent_bytes += sent
            data += sent
            size -= sent
            self.set_interest(self.interest | EPOLLOUT)
        self.outbox.append(data, size)
        return 0

    cdef int flush(self) except -1:
        """Send what is in the outbox, as far as the socket takes it."""
        cdef ssize_t sent
        cdef Py_ssize_t held
        while self.fd >= 0 and self.outbox.end > self.outbox.start:
            held = self.outbox.end - self.outbox.start
            sent = send(self.fd, self.outbox.data + self.outbox.start, held, MSG_NOSIGNAL)
            if sent < 0:
                if errno == EINTR:
                    continue
                if errno == EAGAIN:
                    return self.set_interest(self.interest | EPOLLOUT)
                self.outbox.clear()     # the peer is gone: receive() tells
                return 0
            self.sent_bytes += sent
            self.sent_at = self.reactor.now
            self.outbox.consume(sent)
        if self.interest & EPOLLOUT:
            return self.set_interest(self.interest & ~<uint32_t> EPOLLOUT)
        return 0

    cdef int receive(self) except -1:
        """Receive once and look at what came."""
        cdef char* where
        cdef ssize_t got
        cdef Py_ssize_t room, used
        cdef bint direct = self.inbox.end == self.inbox.start
        if direct:
            where = self.reactor.scratch
            room = SCRATCH_BYTES
        else:
            room = max(RECEIVE_ROOM, self.inbox_goal - (self.inbox.end - self.inbox.start))
            where = self.inbox.reserve(room)
        got = recv(self.fd, where, room, 0)
        if got < 0:
            if errno == EAGAIN or errno == EINTR:
                return 0
            return self.on_closed(os.strerror(errno))
        if got == 0:
            return self.on_closed("")
        self.received_bytes += got
        self.received_at = self.reactor.now
        if not direct:
            self.inbox.end += got
            if self.inbox.end - self.inbox.start < self.inbox_goal:
                return 0
            return self.look()
        used = self.on_input(where, got)
        if self.fd >= 0 and used < got:
            self.inbox.append(where + used, got - used)
        return 0

    cdef int look(self) except -1:
        """Let the subclass look at the inbox again."""
        cdef Py_ssize_t used
        self.inbox_goal = 0
        if self.inbox.end > self.inbox.start:
            used = self.on_input(self.inbox.data + self.inbox.start, self.inbox.end - self.inbox.start)
            if self.fd >= 0:
                self.inbox.consume(used)
        return 0

    cdef Py_ssize_t on_input(self, const char* data, Py_ssize_t size) except -1:
        """Look at received bytes; returns how many were consumed."""
        return size

    cdef int on_writable(self) except -1:
        """The socket takes bytes again."""
        return self.flush()

    cdef int on_closed(self, str reason) except -1:
        """The peer closed, or the socket failed for `reason`."""
        self.close()
        return 0


@cython.final
cdef class Listener(Endpoint):
    """A listening socket: calls back when connections wait. Made by the router, closed by it."""

    def __init__(self, Reactor reactor, int fd, object callback):
        self.callback = callback
        self.open(reactor, fd, EPOLLIN)

    cdef int receive(self) except -1:
        try:
            self.callback()
        except Exception as error:      # the one connection is lost; the socket goes on listening
            self.reactor.on_failure(self, error)
        return 0

    def pause(self, bint paused) -> None:
        """Take no connections for a while, or again."""
        self.set_reading(not paused)

    def stop(self) -> None:
        """Close the socket."""
        self.close()
