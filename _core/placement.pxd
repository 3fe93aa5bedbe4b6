from libc.stdint cimport int64_t, uint64_t

from foreshard._core.shared cimport Common, Shard, SharedState


cdef enum:
    CANDIDATE_COUNT = 4
    WRITE_PROFILES_MAX = 64     # profiles of one write given from Python
    BUCKET_ROWS_SHARE = 64      # a backend asks for its next bucket after this many rows, or bucket_cost_share()


cdef enum Policy:               # the order of the ledgers too
    POLICY_BOUNDED = 0
    POLICY_KEY_HASH = 1
    POLICY_COST_HASH = 2
    POLICY_TWO_CHOICES = 3
    POLICY_LEAST_LOADED = 4


cdef enum Reason:
    REASON_NONE_UP = 0          # no shard is up: chosen is -1
    REASON_ONLY_SHARD = 1       # one shard is up
    REASON_TRANSACTION = 2      # the transaction already writes there
    REASON_PARENT = 3           # the parent's bucket
    REASON_CANDIDATE_0 = 4      # light row, its first candidate is below cap
    REASON_LIGHTER_OF_TWO = 5   # light row, its first candidate is above cap or out
    REASON_HEAVY_LIGHTEST = 6   # heavy row, lightest of the candidates
    REASON_FALLBACK = 7         # every candidate is down: the next shard that is up
    REASON_KEY_HASH = 8
    REASON_COST_HASH = 9
    REASON_TWO_CHOICES = 10
    REASON_LEAST_LOADED = 11
    REASON_COUNT = 12


cdef struct Decision:           # one placement, for EXPLAIN
    double predicted[4]     # per resource
    double cost                 # scalar, seconds of a shard
    double threshold            # heavy from here
    bint heavy
    int candidate_count
    int buckets[CANDIDATE_COUNT]
    int shards[CANDIDATE_COUNT]
    double loads[CANDIDATE_COUNT]   # before this row
    double caps[CANDIDATE_COUNT]    # bound x fair share, this row included
    bint crowded[CANDIDATE_COUNT]   # too many rows already: out unless all are
    int chosen                  # shard; -1 when none is up
    int reason                  # a Reason


cdef class Placer:
    cdef readonly SharedState state
    cdef Shard* shards          # of the state
    cdef Common* common         # of the state
    cdef int policy             # a Policy
    cdef double bound
    cdef uint64_t salt          # of this process
    cdef uint64_t counter       # generated keys placed by this process
    cdef int64_t costed         # rows placed by this process that cost something
    cdef double mean_cost       # their running mean
    cdef int* cursors           # per shard: where next_bucket goes on
    cdef double charged[4]      # what `charge` predicted last, by resource
    cdef public int frozen_bucket       # that next_bucket leaves out; -1: none
    cdef Decision decision      # the last one made
    cdef int64_t[REASON_COUNT] reason_totals    # decisions charged, by reason

    # Shard for a new root row whose key the shard will generate, or -1 when no shard is up. The cost and
    # features[0] rows are charged to it. only_shard >= 0: that shard is the only candidate.
    cdef int place(self, const double* features, const int* profile_indexes, int profile_count,
                   int only_shard) noexcept nogil
    # The same for a key the client supplied, by its hash under home_seed() (buckets.home_hash for a bigint).
    cdef int place_key(self, uint64_t key_hash, const double* features, const int* profile_indexes, int profile_count,
                       int only_shard) noexcept nogil
    # Charge a write that has no choice (update, delete, child) to its shard; answers the scalar cost.
    cdef double charge(self, int shard, const double* features, const int* profile_indexes,
                       int profile_count) noexcept nogil
    # Scalar predicted cost; by_resource (4 of them) is overwritten.
    cdef double predict(self, const double* features, const int* profile_indexes, int profile_count,
                        double* by_resource) noexcept nogil
    # A bucket that the shard owns, another one each time; -1 when it owns none.
    cdef int next_bucket(self, int shard) noexcept nogil
    # Predicted cost after which a backend should ask for its next bucket, whatever its rows.
    cdef double bucket_cost_share(self) noexcept nogil

    # What is behind place and place_key, for costs that are known already.
    cdef int place_cost(self, double cost, double rows, uint64_t key_hash, bint keyed, int only_shard) noexcept nogil
    cdef void decide(self, double cost, uint64_t key_hash, bint keyed, int only_shard) noexcept nogil

    cdef void learn_threshold(self, double cost) noexcept nogil
    cdef void learn_mean(self, double cost, double rows) noexcept nogil
    cdef bint has_bucket(self, int shard) noexcept nogil
    cdef void settle(self, int shard, int reason) noexcept nogil
    cdef void decide_by_policy(self, double cost, uint64_t key_hash, bint keyed) noexcept nogil
    cdef void propose(self, double cost, uint64_t key_hash, bint keyed) noexcept nogil
    cdef void weigh(self, double cost) noexcept nogil
    cdef bint lighter(self, int one, int other) noexcept nogil
    cdef int lightest(self, int first, int end, bint spare_crowded) noexcept nogil
    cdef void decide_bounded(self) noexcept nogil
    cdef int lightest_of_all(self) noexcept nogil
    cdef int next_up(self, int shard) noexcept nogil
    cdef int read_write(self, object features, object profiles, double* x, int* indexes) except -1
