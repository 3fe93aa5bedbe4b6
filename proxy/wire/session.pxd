from foreshard._core.template cimport Template
from foreshard._core.values cimport Values
from foreshard.proxy.wire.backend cimport Backend, Owner
from foreshard.proxy.wire.pool cimport Hub, Pool


cdef enum Waiting:              # what the next message of the client waits for
    WAIT_NOTHING = 0
    WAIT_SEGMENT = 1            # ReadyForQuery of what was sent
    WAIT_DRAIN = 2              # the last reply that the active backend owes
    WAIT_POOL = 3               # a backend
    WAIT_COMMANDS = 4           # a transaction command on several shards
    WAIT_PARTS = 5              # the shards' parts of a concatenated result
    WAIT_ANSWER = 6             # an answer that is made in Python: console, EXPLAIN
    WAIT_SHARD = 7              # a shard that has to take what was sent first
    WAIT_CLIENT = 8             # the client itself, which has to take its answers first
    WAIT_MERGE = 9              # the shards' rows of a merged result
    WAIT_COPY = 10              # the shards of a COPY FROM STDIN: CopyInResponse, or all their answers
    WAIT_FOUND = 13             # the places of the parents of copied rows
    WAIT_FROZEN = 14            # a bucket that is being moved
    WAIT_SCHEMA = 12            # a change of the schema that is being committed
    WAIT_SHADOW = 11            # the query node, which takes a copy of what the transaction sees


cdef class Session(Owner):
    cdef readonly Hub hub
    cdef readonly tuple parameters      # of the client's StartupMessage, user and database first
    cdef list pools                     # of this session's parameters, by shard; None where not used yet
    cdef readonly list links            # backends of this transaction, segment or pinned session
    cdef readonly Backend active        # the one that was sent to last; its replies are the client's next
    cdef readonly bint explicit         # between BEGIN and COMMIT or ROLLBACK
    cdef readonly bint failed           # the explicit transaction has failed: only its end is accepted
    cdef bint is_repeatable             # REPEATABLE READ over several shards: snapshots are opened together
    cdef bint has_snapshots             # and they are open
    cdef readonly bint snapshot         # foreshard.snapshot: transactions that say nothing else are REPEATABLE READ
    cdef bint is_implicit               # it is ours: the statement, segment or string at hand ends it
    cdef bytes begin_text
    cdef list history                   # (savepoint or None, text, lasts) of what shards that join late must hear
    cdef dict cursors                   # name of an SQL cursor -> shard that has it
    cdef dict portals                   # of Bind, by name; the unnamed one is not among them
    cdef readonly str pinned            # why the session keeps its backends; None when it does not
    cdef list script                    # settings to replay on backends that a pinned session gets later
    cdef int waiting                    # Waiting
    cdef int pending                    # backends still to report while waiting
    cdef bint alters                    # the transaction changes the schema
    cdef bint has_temporary             # the session has temporary tables, or may
    cdef bint is_settled                # it has made settings behind writes of a pipeline, with one shard: not replayed
    cdef bint simple                    # the statement under way came as a simple Query
    cdef bint skipping                  # extended query failed: messages are dropped until Sync
    cdef bint copying                   # COPY data goes to the active backend
    cdef bint at_end                    # the client has sent its last byte
    cdef bint is_looking                # inside on_input
    cdef object denied                  # SqlError of the pool, raised when the message is handled again
    cdef int decided_shard              # placement of the message at hand; -1: none yet
    cdef readonly long long transactions
    cdef int part                       # index of the shard whose part is relayed
    cdef list parts                     # backends of the concatenation, in shard order
    cdef long long rows_left            # of Execute's row limit; 0: none
    cdef bint parts_failed
    cdef bytes late_error               # of a part, told unless a later one has another that PostgreSQL meets earlier

    cdef char transaction_status(self) noexcept
    cdef int push_bytes(self, bytes data) except -1
    cdef int push_ready(self) except -1
    cdef int push_complete(self, bytes tag) except -1
    cdef bint wait_until_drained(self) except -1
    cdef int answer_error(self, object error) except -1
    cdef Pool pool(self, int shard)
    cdef Backend find_link(self, int shard)
    cdef Backend link(self, int shard)
    cdef bint link_all(self, object shards) except -1
    cdef Backend attach(self, int shard, bint is_write, bint places)
    cdef int check_second(self, Backend backend, int shard, bint is_write) except -1
    cdef int check_two_phase(self, int first, int second) except -1
    cdef bint is_serializable(self) except -1
    cdef int open_implicit(self, bytes text=*) except -1
    cdef bint open_snapshots(self, bint asks_node) except -1
    cdef int note_isolation(self, bytes text) except -1
    cdef int leave_gate(self) except -1
    cdef int write_own(self, Backend backend, bytes parse, bytes bind) except -1
    cdef int lock_on(self, Backend backend, bytes name) except -1
    cdef int join(self, Backend backend, bint places) except -1
    cdef int refresh(self, Backend backend) except -1
    cdef bint has_open_portal(self, int shard) except -1
    cdef int set_bucket(self, Backend backend) except -1
    cdef bint touches(self, int bucket) noexcept
    cdef int note_placed(self, int bucket) except -1
    cdef int mark(self, Backend backend, Template template) except -1
    cdef int mark_reset(self, Backend backend, Template template) except -1
    cdef int settle_status(self) except -1
    cdef bint is_unsynced(self) noexcept
    cdef int end_segment(self) except -1
    cdef int release_links(self) except -1
    cdef int abandon(self) except -1
    cdef int leave_pools(self) except -1
    cdef int forget_statements(self) except -1
    cdef int abort_segment(self, Backend but) except -1
    cdef int resume(self) except -1
