from foreshard._core.template cimport Template
from foreshard._core.values cimport Values
from foreshard.proxy.wire.backend cimport Backend
from foreshard.proxy.wire.gather cimport Gather
from foreshard.proxy.wire.statement cimport Statement


cdef enum:
    ROUTE_WAIT = -6         # what route() answers while a claim is asked for: the message has to wait
    ROUTE_OPEN = -5         # and for a simple Query that needs a transaction of our own first


cdef class Away(Gather):
    cdef readonly dict claimed      # of the message at hand: position of a key -> bucket of its row, or NO_ROW
    cdef readonly dict key_homes        # and the homes of those that were asked about
    cdef list asked_keys                 # positions whose answers are under way
    cdef Backend asked_home
    cdef set own_shards                  # which have been asked for rows that this transaction has made; None: none yet
    cdef bint asks_own                   # that is the question under way
    cdef int goal                   # shard that a new row is placed on; -1: not decided
    cdef bint is_reserved           # no other transaction can claim its key before this one ends
    cdef bint is_away               # the statement works on rows away from home, or on all shards
    cdef bint has_changed           # the transaction was sent a write that is no INSERT
    cdef bint has_away              # and one that made or removed rows away from home, whose claims are not settled

    cdef bint ask_own(self, Template template, Values literals, Values params) except -1
    cdef bint is_bare(self, Template template, int shard, Values literals, Values params) except -1
    cdef bint owes_elsewhere(self, Template template, int shard, Values literals, Values params) except -1
    cdef bint places(self, Template template) noexcept
    cdef bint look_up(self, Template template, Values literals, Values params) except -1
    cdef int begin_claimed(self) except -1
    cdef int end_question(self, Backend backend, bint was_unsynced) except -1
    cdef int forget_claimed(self) except -1
    cdef int take_claimed(self) except -1
    cdef int route_new(self, Template template, Values literals, Values params) except -3
    cdef int choose(self, Template template, Values literals, Values params, int home) except -1
    cdef bint resolve(self, Template template, Values literals, Values params) except -1
    cdef int route_found(self, Template template, Values literals, Values params) except -3
    cdef int ask_home(
        self, Template template, Values literals, Values params, int shard, list positions, int what
    ) except -1
    cdef int open_for_reservation(self) except -1
    cdef int send_question(self, Backend backend, Statement statement, list values, bytes formats) except -1


cdef int home_of(Template template, int position, Values literals, Values params) except -2
cdef tuple key_of(Template template, int position, Values literals, Values params)
