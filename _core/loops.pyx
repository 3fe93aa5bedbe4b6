"""Loops around the kernels, for measuring them: called from Python, a kernel would cost less than the call.

Each loop_ function calls its kernel `count` times, as another module of the hot path would, and answers a checksum, so
that no call can be left out. Each time_ function times every call on its own, in nanoseconds.
"""

from libc.stdint cimport int64_t, uint64_t
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

import numpy as np

from foreshard._core.buckets cimport bucket_of_key
from foreshard._core.hashing cimport jump_hash, mix64
from foreshard._core.placement cimport WRITE_PROFILES_MAX, Placer

cdef uint64_t STRIDE = 0x9E3779B97F4A7C15   # odd: walks through all keys without repeating one


cdef inline int64_t now_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <int64_t> now.tv_sec * 1_000_000_000 + now.tv_nsec


cdef int number_profiles(int* indexes, int profiles) except -1:
    """Profile indexes 0, 1, 2 ..."""
    cdef int i
    if not 0 <= profiles <= WRITE_PROFILES_MAX:
        raise ValueError(f"at most {int(WRITE_PROFILES_MAX)} profiles")
    for i in range(profiles):
        indexes[i] = i
    return profiles


cdef inline void vary(double* features, uint64_t i) noexcept nogil:
    """Features of one row, another size each time."""
    features[0] = 1
    features[1] = <double> (64 + (i * 7919) % 4001)
    features[2] = 6
    features[3] = 1


def loop_call(count: int) -> int:
    """The baseline: a call into another module that mixes one word."""
    cdef uint64_t total = 0
    cdef uint64_t i
    cdef uint64_t end = count
    for i in range(end):
        total += mix64(i)
    return total


def loop_jump_hash(count: int, buckets: int) -> int:
    """jump_hash of scattered keys."""
    cdef uint64_t total = 0
    cdef uint64_t i
    cdef uint64_t end = count
    cdef int into = buckets
    for i in range(end):
        total += <uint64_t> jump_hash(i * STRIDE, into)
    return total


def loop_bucket_of_key(count: int) -> int:
    """bucket_of_key, half placed keys and half others."""
    cdef uint64_t total = 0
    cdef uint64_t i
    cdef uint64_t end = count
    for i in range(end):
        total += <uint64_t> bucket_of_key(<int64_t> (((i & 1) << 52) | (i * STRIDE >> 14)))
    return total


def loop_next_bucket(Placer placer not None, shard: int, count: int) -> int:
    """next_bucket of one shard."""
    cdef uint64_t total = 0
    cdef uint64_t end = count
    cdef int of = placer.state.checked(shard)
    for _ in range(end):
        total += <uint64_t> placer.next_bucket(of)
    return total


def loop_place(Placer placer not None, profiles: int, count: int) -> int:
    """Predict and place one row that fires profiles 0, 1, 2 ..."""
    cdef int indexes[WRITE_PROFILES_MAX]
    cdef int number = number_profiles(indexes, profiles)
    cdef double features[4]
    cdef uint64_t total = 0
    cdef uint64_t i
    cdef uint64_t end = count
    for i in range(end):
        vary(features, i)
        total += <uint64_t> placer.place(features, indexes, number, -1)
    return total


def time_clock(count: int):
    """Nanoseconds between two readings of the clock with nothing in between."""
    times = np.empty(count, dtype=np.int64)
    cdef int64_t[::1] taken = times
    cdef int64_t start
    cdef Py_ssize_t i
    for i in range(taken.shape[0]):
        start = now_ns()
        taken[i] = now_ns() - start
    return times


def time_place(Placer placer not None, profiles: int, count: int):
    """Nanoseconds of each predict and place, one reading of the clock included."""
    cdef int indexes[WRITE_PROFILES_MAX]
    cdef int number = number_profiles(indexes, profiles)
    times = np.empty(count, dtype=np.int64)
    cdef int64_t[::1] taken = times
    cdef double features[4]
    cdef int64_t start
    cdef Py_ssize_t i
    for i in range(taken.shape[0]):
        vary(features, <uint64_t> i)
        start = now_ns()
        placer.place(features, indexes, number, -1)
        taken[i] = now_ns() - start
    return times
