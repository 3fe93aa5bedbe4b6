from libc.stdint cimport int64_t, uint16_t, uint64_t

from foreshard._core.model cimport Model


cdef enum:
    POLICY_COUNT = 5        # rows of the ledgers, in the order of POLICIES


cdef enum ProfileFlag:
    PROFILE_DEGRADED = 1    # predictions too far off: cost counts as the mean


cdef struct Header:         # written once, when the file is made
    uint64_t magic
    uint64_t layout         # digest of structs and dimensions
    uint64_t fingerprint    # the maker's digest of what the indexes mean (shard names, profile keys)
    int64_t shard_count     # when the file was made
    int64_t profile_count
    int64_t places          # shards that there is room for
    int64_t unused[2]


cdef struct Common:
    uint64_t map_sequence   # controller; odd while the map changes
    uint64_t epoch          # controller; of the bucket map
    double capacities[4]    # controller; what a shard can give per second of each resource
    uint64_t proxies        # controller; how many place rows on these shards, this one included
    double heard_s          # controller; when it last heard of the others, in seconds of the Unix epoch
    double heavy_threshold  # router; running 95th percentile of predicted cost
    double heavy_samples    # router
    uint64_t unused_too[6]


cdef struct Shard:          # three cache lines: two of the controller's, one of the router's
    double weight           # controller
    double measured         # controller; measured cost since the epoch of loads
    double settled          # controller; predicted cost of what was measured or given up, of others' rows too
    uint64_t up             # controller; 0: never a candidate
    uint64_t unused[4]
    double others_measured  # controller; what the other proxies have told: measured,
    double others_pending   # controller; placed - settled, below 0 where they measured what was placed here,
    double others_rows      # controller; and root rows placed
    double told_placed      # controller; `placed` when the others were told last
    double told_rows        # controller; `rows` then
    uint64_t unused_here[3]
    double placed           # router; predicted cost of everything it forwarded
    double rows             # router; root rows placed
    uint64_t buckets        # router; how many the map gives it
    uint64_t unused_too[5]


cdef struct Profile:        # controller; one (function, operation)
    uint64_t sequence       # odd while it changes
    uint64_t samples
    uint64_t version
    uint64_t flags          # of ProfileFlag
    Model model
    double means[4]         # measured cost of one call per resource; stands in when the profile is degraded


cdef struct Demand:         # router; what was asked of one bucket since the file was made
    uint64_t reads          # statements that read it
    uint64_t rows           # rows that statements wrote in it, as far as their texts say
    double costs[4]         # predicted cost of the functions of those writes, per resource
    uint64_t unused[2]


cdef class SharedState:
    cdef readonly int places        # shards that there is room for
    cdef readonly int shard_count   # there are so many, as this process knows
    cdef readonly int profile_count
    cdef readonly str path          # of the mapped file; "" for memory of this process alone
    cdef Common* common
    cdef uint16_t* owners           # BUCKET_COUNT shard indexes
    cdef Shard* shard_states        # places of them
    cdef Profile* profiles          # profile_count of them
    cdef double* ledger_costs       # POLICY_COUNT x places measured costs
    cdef Demand* demands            # BUCKET_COUNT of them
    cdef bint has_scarce            # some shard has one bucket, or none, by the map that this process has set
    cdef Header* header
    cdef Py_buffer region           # over the mmap that owns all of it; keeps the address valid

    cdef int shard_of_bucket(self, int bucket) noexcept nogil
    # Cost on a shard, this proxy's and the others': measured + placed - settled, never below measured, and what the
    # others may have placed since: as much, each, as this proxy since it told them last.
    cdef double load(self, int shard) noexcept nogil
    # Root rows on a shard, counted likewise.
    cdef double rows_placed(self, int shard) noexcept nogil
    # Adds to by_resource the predicted cost of one profile for a statement; features[0] is its number of rows.
    cdef void add_prediction(self, int profile, const double* features, double* by_resource) noexcept nogil
    # Largest of the resources after dividing by capacity: seconds of a shard.
    cdef double scalar(self, const double* by_resource) noexcept nogil

    # A statement reads the bucket (0 rows), or writes so many rows in it.
    cdef void count_statement(self, int bucket, uint64_t rows) noexcept nogil
    # Functions of a write in the bucket are expected to cost so much.
    cdef void add_demand(self, int bucket, const double* by_resource) noexcept nogil

    cdef int map_parts(self, object mapping, str path, int places, int profile_count) except -1
    cdef void count_buckets(self) noexcept nogil
    cdef void fill(self, int shard_count, uint64_t fingerprint) noexcept
    cdef int checked(self, int shard) except -1
    cdef Profile* profile_at(self, int profile) except NULL
