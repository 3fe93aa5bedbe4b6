"""Wakes the workers of a shard when a commit may have left events there: a datagram for each of them.

A timer of our own in the reactor bounds them to one per worker and WAKE_DELAY_S: at thousands of commits per second
neither the event loop nor a worker should hear of every one. A datagram that is lost costs only time: workers poll.
"""

cimport cython
from libc.stdlib cimport calloc, free
from posix.time cimport CLOCK_MONOTONIC, itimerspec
from posix.unistd cimport read

from foreshard._core.buckets cimport SHARDS_MAX
from foreshard.proxy.wire.endpoint cimport Endpoint, Reactor, monotonic

import os
import socket

cdef extern from "sys/timerfd.h" nogil:
    enum:
        TFD_CLOEXEC
        TFD_NONBLOCK
    int timerfd_create(int clock, int flags)
    int timerfd_settime(int fd, int flags, const itimerspec* value, itimerspec* old)

cdef extern from "sys/socket.h" nogil:
    enum:
        MSG_NOSIGNAL
    ssize_t send(int fd, const void* data, size_t size, int flags)

cdef extern from "sys/epoll.h" nogil:
    enum:
        EPOLLIN


cdef double WAKE_DELAY_S = 0.005    # chosen, not measured


@cython.final
cdef class Waker(Endpoint):
    """Owns the timer and a socket per worker. Made by the hub, stopped by it."""

    def __cinit__(self):
        self.worker_fds = NULL
        self.worker_shards = NULL
        self.touched = NULL
        self.woken_at = NULL

    def __init__(self, Reactor reactor, object directory):
        self.directory = directory
        self.sockets = {}
        self.touched = <unsigned char*> calloc(SHARDS_MAX, 1)
        self.woken_at = <double*> calloc(SHARDS_MAX, sizeof(double))
        if self.touched == NULL or self.woken_at == NULL:
            raise MemoryError()
        timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK)
        if timer < 0:
            raise OSError("cannot make a timer")
        self.open(reactor, timer, EPOLLIN)
        self.list_workers()

    def __dealloc__(self):
        free(self.worker_fds)
        free(self.worker_shards)
        free(self.touched)
        free(self.woken_at)

    def list_workers(self) -> None:
        """Look which workers there are; called every second or so."""
        cdef int index
        names = {name for name in os.listdir(self.directory) if name.startswith("wake-") and name.endswith(".sock")}
        if names == self.sockets.keys():
            return
        for name in self.sockets.keys() - names:
            self.sockets.pop(name).close()
        for name in sorted(names - self.sockets.keys()):
            worker = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            try:
                worker.connect(str(self.directory / name))
            except OSError:     # it has just gone, or not bound it yet
                worker.close()
                continue
            self.sockets[name] = worker
        free(self.worker_fds)
        free(self.worker_shards)
        self.worker_count = 0
        self.worker_fds = <int*> calloc(len(self.sockets) + 1, sizeof(int))
        self.worker_shards = <int*> calloc(len(self.sockets) + 1, sizeof(int))
        if self.worker_fds == NULL or self.worker_shards == NULL:
            raise MemoryError()
        for index, (name, worker) in enumerate(self.sockets.items()):
            self.worker_fds[index] = worker.fileno()
            self.worker_shards[index] = int(name.split("-")[1])
        self.worker_count = len(self.sockets)

    def stop(self) -> None:
        """Wake nobody any more."""
        self.worker_count = 0
        for worker in self.sockets.values():
            worker.close()
        self.sockets.clear()
        self.close()

    cdef int touch(self, int shard) except -1:
        """A captured table of the shard changed: wake its workers, at most once in WAKE_DELAY_S."""
        cdef double now
        if self.touched[shard]:
            return 0
        now = monotonic()
        if now - self.woken_at[shard] >= WAKE_DELAY_S:
            self.woken_at[shard] = now
            self.wake(shard)
            return 0
        self.touched[shard] = 1
        if not self.is_armed:
            self.arm()
        return 0

    cdef int receive(self) except -1:
        """The timer went off: wake the workers of every touched shard."""
        cdef unsigned long long count
        cdef int shard
        read(self.fd, &count, sizeof(count))
        self.is_armed = False
        for shard in range(SHARDS_MAX):
            if self.touched[shard]:
                self.touched[shard] = 0
                self.woken_at[shard] = monotonic()
                self.wake(shard)
        return 0

    cdef void wake(self, int shard) noexcept:
        cdef int index
        for index in range(self.worker_count):
            if self.worker_shards[index] == shard:
                send(self.worker_fds[index], b"w", 1, MSG_NOSIGNAL)     # gone or busy: it polls

    cdef void arm(self) noexcept:
        cdef itimerspec when
        when.it_interval.tv_sec = when.it_interval.tv_nsec = 0
        when.it_value.tv_sec = 0
        when.it_value.tv_nsec = <long> (WAKE_DELAY_S * 1e9)
        timerfd_settime(self.fd, 0, &when, NULL)
        self.is_armed = True
