from foreshard.proxy.wire.endpoint cimport Endpoint
from foreshard.proxy.wire.requests cimport Requests


cdef enum BackendPhase:
    BACKEND_CONNECTING = 0
    BACKEND_STARTUP = 1
    BACKEND_READY = 2
    BACKEND_CLOSED = 3


cdef enum Filter:               # what of a backend's replies the client sees
    FILTER_NONE = 0             # all
    FILTER_FIRST = 1            # first of several shards: no CommandComplete, no ReadyForQuery
    FILTER_REST = 2             # a later shard: rows and notices only
    FILTER_MUTE = 3             # nothing: another shard has failed
    # From here on rows, their description and errors are the owner's.
    FILTER_MERGE = 4            # as FILTER_FIRST
    FILTER_COPY = 5             # as FILTER_REST: a later shard of a COPY FROM STDIN


cdef enum CopyOut:              # what of a shard's COPY data must not be repeated by those of later ones
    COPY_OUT_PLAIN = 0
    COPY_OUT_LINE = 1           # the first line
    COPY_OUT_BINARY = 2         # header and trailer


cdef class Owner(Endpoint):
    cdef readonly double wait_deadline  # loop time until which it stands in a pool's line

    cdef int on_ready(self, Backend backend) except -1
    cdef int on_drained(self, Backend backend) except -1
    cdef int on_copy_in(self, Backend backend) except -1
    cdef int on_failed(self, Backend backend) except -1
    cdef bint keeps_error(self, Backend backend, bytes body) except -1
    cdef int on_part(self, Backend backend, bint suspended) except -1
    cdef int on_merge_input(self, Backend backend, char type, const char* body, Py_ssize_t size) except -1
    cdef int on_kept(self, Backend backend, Py_ssize_t size) except -1
    cdef int on_merge_pause(self, Backend backend) except -1
    cdef int on_backend_lost(self, Backend backend, object error) except -1
    cdef int on_flushed(self, Backend backend) except -1
    cdef int on_granted(self, Backend backend) except -1
    cdef int on_denied(self, object error) except -1
    cdef int on_gate(self) except -1


cdef class BackendHome:
    cdef int on_backend_ready(self, Backend backend) except -1
    cdef int on_backend_gone(self, Backend backend, object error) except -1
    cdef int on_cancel_done(self, Backend backend) except -1


cdef class Backend(Requests):
    cdef BackendHome home               # its pool
    cdef Owner owner                    # who its replies go to; None while idle
    cdef readonly int shard
    cdef int phase                      # BackendPhase
    cdef bytes startup                  # the StartupMessage to send
    cdef readonly object parameters     # ParameterStatus values by name, as they are without a client's settings
    cdef set changed                    # names of those that are different now; None: none ever was
    cdef readonly int pid
    cdef readonly bytes secret          # cancel key
    cdef readonly object connected_at   # seconds since the epoch
    cdef readonly double idle_since     # loop time
    cdef readonly long long transactions

    cdef char status                    # of the last ReadyForQuery
    cdef bint executed                  # an Execute among them
    cdef bint is_skipping               # the shard discards messages until Sync
    # For nobody else: it had a Query inside a pipeline (PostgreSQL fails what follows its Sync), or was sent a cancel
    # request that may still come.
    cdef bint is_spoiled
    cdef bint begun                     # takes part in the owner's explicit transaction
    cdef bint wrote                     # was sent a write in this transaction or segment
    cdef bint owes_claims               # and its claims on other shards are not settled
    cdef list collected                 # bodies of the DataRows of a muted command; None: nobody asks
    cdef bint is_unpreparable           # and something that PREPARE TRANSACTION refuses
    cdef bint captured                  # changed a table with trigger functions in this transaction
    cdef bint notify_drained            # the owner waits for the last reply
    cdef int cancels                    # cancel requests on their way: not for anyone else until they're done
    cdef readonly bint is_tainted       # carries session state: DISCARD ALL before reuse

    cdef readonly int bucket            # setting foreshard.bucket; -1: unknown
    cdef int bucket_rows                # rows placed since it was set
    cdef double bucket_cost
    cdef bint bucket_tentative          # set inside the transaction: unknown after it

    cdef object types                   # of the query node's backends: the hub, whose query_types translate oids

    cdef Py_ssize_t streaming           # bytes of a large message still to come
    cdef bint streaming_dropped
    cdef bint notify_flushed            # the owner waits until the outbox has room
    cdef bint was_muted                 # the last ReadyForQuery did not go to the client
    cdef bint holds_ready               # its next ReadyForQuery is for the owner, not for the client
    cdef bint holds_tag                 # its next CommandComplete, too: `part_tag`
    cdef bint hold                      # its replies wait for another shard's
    cdef int filter                     # Filter
    cdef int part_index                 # which of the shards of a merge it is
    cdef long long part_rows            # count of the CommandComplete that the filter kept
    cdef bytes part_tag
    cdef list kept                      # rows of its part, for the owner to give in the end; None: relayed
    cdef bint is_echo                   # its part is what another shard does, too, whose notices are enough
    cdef bint part_suspended
    cdef int copy_out                   # CopyOut of its part
    cdef bint copy_begun                # of which the first message has come
    cdef bytes muted_error              # body of the ErrorResponse to a command whose answer was not shown
    cdef object deadlock                # SqlError to tell in place of the cancelled statement's; None: none
    cdef bytes told_instead             # ErrorResponse that replaces the one at hand
    cdef object last_words              # SqlError that came unasked, before the end of the connection
    cdef bint is_resetting              # DISCARD ALL is under way
    cdef bint is_enlisted               # the shard knows which router it is of, or has been told
    cdef bint has_begun                 # it was ready for clients

    cdef int set_hold(self, bint hold) except -1
    cdef int disown(self) except -1
    cdef int lose(self, object error) except -1
    cdef int owner_push(self, const char* data, Py_ssize_t size) except -1
    cdef Py_ssize_t relay(self, const char* data, Py_ssize_t size) except -1
    cdef int push_synthetic(self) except -1
    cdef int on_reply(self, char type, const char* body, Py_ssize_t size) except -1
    cdef int on_error_reply(self, int head) except -1
    cdef int on_error(self, int head, bint is_ours, bytes given) except -1
    cdef int on_statement_failed(self, int head, bytes body, bint is_changed) except -1
    cdef int on_question_failed(self, int head, bytes body) except -1
    cdef int on_deadlock(self, int head, bytes body) except -1
    cdef int note_parameter(self, bytes body) except -1
    cdef int on_part_end(self, char type, const char* body, Py_ssize_t size) except -1
    cdef Py_ssize_t on_startup_input(self, const char* data, Py_ssize_t size) except -1
    cdef int on_startup_message(self, char type, const char* body, Py_ssize_t size) except -1
    cdef int after(self, int action) except -1
