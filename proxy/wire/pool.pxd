from foreshard._core.placement cimport Placer
from foreshard._core.shared cimport SharedState
from foreshard._core.statement_cache cimport StatementCache
from foreshard._core.template cimport Buckets
from foreshard._core.values cimport Values
from foreshard.proxy.wire.backend cimport Backend, BackendHome, Owner
from foreshard.proxy.wire.endpoint cimport Reactor
from foreshard.proxy.wire.gate cimport Gate
from foreshard.proxy.wire.waker cimport Waker


cdef class Hub:
    cdef readonly Reactor reactor
    cdef readonly Waker waker
    cdef readonly Gate gate                 # those who want snapshots of several shards
    cdef readonly object loop
    cdef readonly object config             # of the shards there are now: foreshard.proxy.config.Config
    cdef readonly StatementCache cache
    cdef readonly SharedState state
    cdef readonly Placer placer
    cdef readonly object services           # what router.py offers: console, explain, cancel, log
    cdef readonly list addresses            # by place, that of the query node is SHARDS_MAX
    cdef public bint has_query_node         # there is one, and it was made of what the shards have now
    cdef public dict query_types            # of users' types: oid on the query node -> oid on the default shard
    cdef readonly list shard_names          # those of the addresses
    cdef readonly int shard_count
    cdef readonly int query_shard           # the query node's place, SHARDS_MAX; a single shard is its own
    cdef readonly int default_shard
    cdef public set unchecked               # shards that were down at the start and have not been looked at since
    cdef public bint two_phase              # every shard can prepare transactions
    cdef readonly str cluster               # its name, in the names of prepared transactions
    cdef readonly str database              # the one database that clients connect to
    cdef readonly bint is_sharded           # tables are declared
    cdef readonly Py_ssize_t message_bytes_max
    cdef readonly dict pools                # (shard, startup parameters) -> Pool
    cdef int* backend_counts                # per shard over all pools, connecting ones too
    cdef int* idle_counts                   # per shard over all pools
    cdef int pool_size
    cdef double wait_timeout_s
    cdef int waiting_count                  # owners in line, over all pools
    cdef readonly dict sessions             # cancel key (pid, secret) -> session
    cdef set deaf                           # sessions that LISTEN, and not yet on shards that were added since
    cdef readonly dict statements           # (query and types) -> Statement
    cdef readonly dict merged_texts         # text that shards were asked -> number of the statement they keep for it
    cdef readonly long long statement_ids
    cdef readonly bint is_stopping
    cdef readonly bint is_held              # a change of the schema is being committed: no statement begins
    cdef list held                          # sessions whose next message waits for that
    cdef readonly int frozen_bucket         # that is about to be moved: no statement begins in it; -1: none
    cdef double frozen_at
    cdef list exempt                        # sessions that had it open then
    cdef list frozen                        # sessions whose next message waits for that
    cdef public bytes enlist                # what a new backend says before it is used; None: nothing
    cdef public bytes enlist_at_node        # and one to the query node
    cdef list lost                          # by shard: server processes of closed backends, which may still be at work
    cdef readonly set away                  # shards that no backend is connected to now, and clients wait for
    cdef list behind                        # those of which it waits for the query node to follow a change
    cdef Values params                      # scratch of whoever is decoding a Bind or a Query
    cdef Values literals
    cdef Buckets buckets

    cdef Pool pool(self, int shard, tuple parameters)


cdef class Pool(BackendHome):
    cdef readonly Hub hub
    cdef readonly int shard
    cdef readonly tuple parameters          # (name, value) pairs of the StartupMessage, user and database first
    cdef bytes startup
    cdef readonly list idle                 # most recently used last
    cdef readonly set backends              # all of them
    cdef readonly object waiters            # deque of owners in line
    cdef readonly object joiners            # those that have backends of other shards already: served first
    cdef readonly object server_parameters  # ParameterStatus of the first backend; None before
    cdef int session_count                  # sessions that hold on to it
    cdef bint is_serving                    # inside serve()
    cdef bint gives_way                     # the next backend that comes back makes room for another pool

    cdef Backend take(self, Owner owner, bint is_joining)
    cdef int put(self, Backend backend) except -1
    cdef int offer(self, Backend backend) except -1
    cdef int serve(self) except -1
    cdef int reset(self, Backend backend, bytes sql) except -1
    cdef int leave(self, Owner owner) except -1
    cdef int deny(self, object error) except -1
    cdef Owner next_waiter(self)
    cdef Backend pop_idle(self, int index)
    cdef int discard(self, Backend backend) except -1
