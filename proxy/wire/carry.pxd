from foreshard._core.reply_reader cimport ReplyReader
from foreshard.proxy.wire.statement cimport Statement


cdef enum CarryStep:            # what is done next
    CARRY_OPEN = 0              # bind the client's own statement, to describe it (simple Query)
    CARRY_DESCRIBE = 1
    CARRY_SELECT = 2            # bind the query
    CARRY_SPREAD = 3            # and on all of its shards before any row is written
    CARRY_LOOK = 4              # describe its rows
    CARRY_FETCH = 5             # ask for some of them
    CARRY_TAKE = 6              # take them, and insert some
    CARRY_INSERT = 7            # run the INSERT that is bound
    CARRY_COUNT = 8             # take what it answered
    CARRY_CLOSE = 9             # close the query's portal
    CARRY_END = 10
    CARRY_FAIL = 11
    CARRY_HOLD = 12             # run a write of several shards, and keep what it returns


cdef class Carry:
    cdef object plan                # foreshard._core.carry_plan.CarryPlan; None: only rows are held back
    cdef Statement statement        # the client's
    cdef ReplyReader reader
    cdef int step                   # CarryStep
    cdef bint is_simple             # it came as a simple Query
    cdef bint ends_segment          # its Execute is the last message before the client's Sync
    cdef bint is_synced             # a failed one: Sync is sent
    cdef bint is_done
    cdef bint is_over               # the query has given all of its rows
    cdef bint is_told               # the client has its CommandComplete
    cdef bint is_bound              # the INSERT at hand is
    cdef Statement batch            # that INSERT
    cdef bint is_limited            # rows of RETURNING are asked for by Executes with a row limit
    cdef bytes head                 # their RowDescription, for a simple Query, until the first of them is told
    cdef object error               # SqlError that ends it
    cdef list rows                  # fetched and not yet inserted
    cdef Py_ssize_t at              # how many of them are inserted
    cdef Py_ssize_t batch_rows      # of the INSERT at hand
    cdef list types                 # of the query's columns: OIDs
    cdef long long chunk            # rows that are fetched at once
    cdef long long inserted
    cdef bytes tag                  # of the first INSERT's CommandComplete; None: none ran
    cdef Py_ssize_t given_size      # bytes in `given`
    cdef list given                 # rows of RETURNING that are held: bodies
    cdef list formats               # of the client's parameters
    cdef list values                # the client's parameters as Bind has them: size and bytes
    cdef bytes result_formats       # the end of the client's Bind
    cdef list declared              # type OIDs that the client's Parse declares

    cdef int read_bind(self, bytes rest) except -1
    cdef int read_types(self) except -1
    cdef bytes select_body(self)
    cdef bytes select_bind(self)
    cdef Py_ssize_t next_batch(self) except -1
    cdef bytes insert_body(self, Py_ssize_t rows)
    cdef bytes insert_bind(self, Py_ssize_t rows)
    cdef int note_fetched(self) except -1
    cdef int note_inserted(self) except -1
    cdef int note_held(self) except -1
    cdef int keep(self) except -1
    cdef bint is_full(self) noexcept
    cdef list take_given(self, Py_ssize_t count)
    cdef bytes last_tag(self)
    cdef int oid_of(self, int index) noexcept
