from foreshard._core.template cimport Template
from foreshard._core.values cimport Values
from foreshard.proxy.wire.away cimport Away


cdef class Arbiter(Away):
    cdef dict arbiters              # of the message at hand: index of an arbiter -> {shard: what it answered}
    cdef tuple asked_arbiters       # (shard, arbiters) whose answers are under way; None: none are
    cdef dict meetings              # the same: where the row may be away from the bucket of its claim, who has it
    cdef bint asks_meetings         # the answers under way are of that
    cdef bint places_parts          # the shards of a split INSERT make keys

    cdef int arbitrate(self, Template template, Values literals, Values params) except -3
    cdef int go_to_row(self, Template template, int shard) except -1
    cdef dict met_shards(self, Template template)
    cdef int spread_rows(self, Template template, Values literals, Values params, dict met) except -3
    cdef int keep_together(self, Template template, Values literals, Values params, list goals) except -1
    cdef int ask_arbiters(self, Template template, Values literals, Values params) except -3
    cdef int ask_meetings(self, Template template, Values literals, Values params) except -3
    cdef int ask_shard(
        self, Template template, Values literals, Values params, int shard, list due, bint meets) except -1
    cdef int take_arbiter(self) except -1
