from foreshard._core.template cimport Template
from foreshard._core.values cimport Values
from foreshard.proxy.wire.backend cimport Backend
from foreshard.proxy.wire.asking cimport Asking
from foreshard.proxy.wire.backend cimport Backend


cdef enum:
    ROUTE_CARRIED = -4      # for an INSERT whose rows the router carries
    ROUTE_MANY = -2         # what route() answers for a read of several shards


cdef class Gather(Asking):
    cdef list split                     # which rows of an INSERT each of the shards gets; None: the whole statement
    # For each row of an INSERT with RETURNING the part it is in; empty: part by part, when all are done; None: at once.
    cdef list row_order
    cdef list row_marks                 # for each part the marks of its rows, as its shard gives them; None: no marks
    cdef Py_ssize_t kept_size           # bytes of the rows that are held
    cdef bint in_turn                   # each shard is asked when the one before has answered: row locks
    cdef bytes lock                     # Template.lock of the statement whose parts are under way; None: none
    cdef int copy_out                   # CopyOut of the statement whose parts are under way
    cdef list shards                    # of the read that route() found to go to many
    cdef int any_turn
    cdef Backend last_asked             # who answers the statement that ends a transaction of our own
    cdef bytes held_tag                 # that statement's answer, until the transaction has committed: CommandComplete,
    cdef list held_rows                 # and the rows before it
    cdef int decided_rows               # of the placement at hand
    cdef double decided_cost
    cdef int work_bucket                # the one bucket that the statement at hand works in; -1: several, or not known
    cdef list work_buckets              # of a statement in several; of a split INSERT one for each row; None: not known

    cdef int route(self, Template template, Values literals, Values params, int only) except -3
    cdef int route_keyed(self, Template template, Values literals, Values params) except -3
    cdef int route_buckets(self, Template template, Values literals, Values params) except -3
    cdef list row_buckets(self, Template template, Values literals, Values params)
    cdef int route_query(self, Template template, object refusal) except -3
    cdef int route_shadow(self, Template template, object refusal) except -3
    cdef int open_read(self, int shard, Template template) except -1
    cdef int written_shard(self) noexcept
    cdef int next_any(self) noexcept
    cdef int count_work(self, Template template) except -1
    cdef int spread_demand(self, int shard) except -1
    cdef int charge(self, Backend backend, Template template, Values literals, Values params, int rows=*) except -1
    cdef int route_rows(self, Template template, Values literals, Values params) except -3
    cdef list marks_of(self, Template template, Values literals, Values params, bint is_binary)
    cdef int push_kept(self) except -1
    cdef bint holds_result(self) noexcept
    cdef bint ends_own(self) noexcept
    cdef int hold_end(self, Backend backend, Template template) except -1
    cdef int take_held(self) except -1
    cdef int give_held(self) except -1
    cdef int settle_same(self) except -1
    cdef bint asks_in_turn(self) noexcept
    cdef bint attach_all(self, list shards, bint is_write) except -1
    cdef int start_parts(self, list parts, int first, bint parallel) except -1
    cdef int next_part(self) except -1
    cdef int finish_parts(self, bint suspended) except -1
    cdef int finish_result(self, bint suspended, bytes tag) except -1
    cdef int ask_part(self, Backend backend) except -1


cdef bint locks_rows(Template template) noexcept
cdef bint holds_rows(Template template) noexcept
cdef bint owes(Template template) noexcept
