from libc.stdint cimport int64_t, uint16_t, uint64_t


cdef enum:
    RESOURCE_COUNT = 4      # CPU seconds, memory byte-seconds, I/O bytes, network bytes: always in this order
    FEATURE_COUNT = 4       # 1, size, complexity, volume
    POLICY_COUNT = 5        # rows of the ledgers, in the order of POLICIES


cdef enum ModelFlag:
    MODEL_DEGRADED = 1      # predictions too far off: cost counts as the mean


cdef struct Header:         # written once, when the file is made
    uint64_t magic
    uint64_t layout         # digest of structs and dimensions
    uint64_t fingerprint    # the maker's digest of what the indexes mean (shard names, profile keys)
    int64_t shard_count
    int64_t profile_count
    int64_t unused[3]


cdef struct Common:
    uint64_t map_sequence   # controller; odd while the map changes
    uint64_t epoch          # controller; of the bucket map
    double capacities[RESOURCE_COUNT]   # controller; what a shard can give per second
    uint64_t unused[2]
    double heavy_threshold  # router; running 95th percentile of predicted cost
    double heavy_samples    # router
    uint64_t unused_too[6]


cdef struct Shard:          # two cache lines: one per writer
    double weight           # controller
    double measured         # controller; measured cost since the epoch of loads
    double settled          # controller; predicted cost of what has been measured or given up since
    uint64_t up             # controller; 0: never a candidate
    uint64_t unused[4]
    double placed           # router; predicted cost of everything it forwarded
    double rows             # router; root rows placed
    uint64_t unused_too[6]


cdef struct ResourceModel:
    double coefficients[FEATURE_COUNT]
    double floor            # of one call's prediction
    double ceiling
    double mean             # of one call's measured cost; stands in when the model is degraded
    double unused


cdef struct Model:          # controller; one profile (function, operation)
    uint64_t sequence       # odd while it changes
    uint64_t samples
    uint64_t version
    uint64_t flags          # of ModelFlag
    ResourceModel resources[RESOURCE_COUNT]
    uint64_t unused[4]


cdef class SharedState:
    cdef readonly int shard_count
    cdef readonly int profile_count
    cdef readonly str path          # of the mapped file; "" for memory of this process alone
    cdef Common* common
    cdef uint16_t* owners           # BUCKET_COUNT shard indexes
    cdef Shard* shards              # shard_count of them
    cdef Model* models              # profile_count of them
    cdef double* ledgers            # POLICY_COUNT x shard_count measured costs
    cdef Header* header
    cdef object mapping             # mmap that owns all of it
    cdef object region              # memoryview over it, which keeps the address valid

    cdef int shard_of_bucket(self, int bucket) noexcept nogil
    # Cost on a shard: measured + placed - settled, never below measured.
    cdef double load(self, int shard) noexcept nogil
    # Adds to by_resource the predicted cost of all calls of one profile for a statement with these features.
    cdef void add_prediction(self, int profile, const double* features, double* by_resource) noexcept nogil
    # Largest of the resources after dividing by capacity: seconds of a shard.
    cdef double scalar(self, const double* by_resource) noexcept nogil
