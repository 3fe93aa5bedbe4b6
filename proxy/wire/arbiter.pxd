from foreshard._core.template cimport Template
from foreshard._core.values cimport Values
from foreshard.proxy.wire.away cimport Away


cdef class Arbiter(Away):
    cdef dict arbiters              # of the message at hand: index of an arbiter -> {shard: what it answered}
    cdef object asked_arbiter       # (index, shard) whose answer is under way; None: none is

    cdef int arbitrate(self, Template template, Values literals, Values params) except -3
    cdef int ask_arbiters(self, Template template, Values literals, Values params) except -3
    cdef int ask_arbiter(self, Template value, Values literals, Values params, int index, int shard, int home) except -1
    cdef int take_arbiter(self) except -1
