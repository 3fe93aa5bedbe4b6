from foreshard._core.template cimport Template
from foreshard.proxy.wire.backend cimport Backend
from foreshard.proxy.wire.session cimport Session


cdef enum CommitStep:
    STEP_NONE = 0
    STEP_VOTE = 1           # readers commit, participants prepare
    STEP_DECIDE = 2         # the decision shard commits its own work and the decision
    STEP_FINISH = 3         # participants commit what they prepared
    STEP_UNDO = 4           # a vote or the decision failed: all that is left is rolled back
    STEP_SNAPSHOT = 5       # no commit: one snapshot is opened on every shard
    STEP_TRY_COMMIT = 10    # the only writer commits unless it owes claims
    STEP_ASK_CLAIMS = 6     # writers are asked what they owe
    STEP_WAIT_CLAIMS = 7    # a backend on a claim's home is waited for
    STEP_TAKE_CLAIMS = 8    # the homes take and release claims
    STEP_ASK = 9            # no commit: a question of a script's (asking.pyx)
    STEP_EXPORT = 11        # before that: the query node opens its own there, and asks for their names


cdef enum GatePlace:
    GATE_OUTSIDE = 0
    GATE_IN_LINE = 1        # wants snapshots of all shards
    GATE_INSIDE = 2         # opens them
    GATE_DONE = 3           # has them, and is to hear that they are of one moment


cdef int control_point(str name) except -1
cdef bint owe_claims(list backends) except -1
cdef Template COMMIT
cdef Template ROLLBACK


cdef class Commit(Session):
    cdef Template verb              # transaction command or setting under way; None: none
    cdef bint command_failed        # it was answered with an error
    cdef bint is_quiet              # its answer is not shown: the transaction is not one of the client's own
    cdef int step                   # CommitStep
    cdef Backend decider            # backend on the decision shard, or the only writer's
    cdef list participants          # the other writers
    cdef readonly str commit_id     # names the distributed transaction
    cdef int gate_place             # GatePlace
    cdef dict claims                # shard -> commands for the claims that it is the home of

    cdef int send_command(self, Template template, bytes text, list targets, Backend speaker) except -1
    cdef int send_texts(self, Template template, list texts, Backend speaker) except -1
    cdef int start_commit(self, Template template, list targets, bint is_quiet) except -1
    cdef int try_commit(self, Template template, Backend writer, bint is_quiet) except -1
    cdef int finish_try(self) except -1
    cdef int ask_claims(self, Template template, list targets, bytes before, bint is_quiet) except -1
    cdef int sort_claims(self) except -1
    cdef int take_claims(self) except -1
    cdef int settle_claims(self, int step) except -1
    cdef int next_step(self) except -1
    cdef int take_snapshots(self) except -1
    cdef int import_snapshots(self) except -1
    cdef int finish_snapshots(self) except -1
    cdef int decide(self) except -1
    cdef int finish_participants(self) except -1
    cdef int undo(self) except -1
    cdef bint tell_failures(self) except -1
    cdef int lose_participant(self, Backend backend) except -1
    cdef bint survives(self, Backend backend) noexcept
    cdef bint is_read_only(self) except -1
    cdef bytes gid(self, Backend backend)
    cdef int conclude(self, Template template) except -1
    cdef int warn(self, str sqlstate, str message, str hint=*) except -1
