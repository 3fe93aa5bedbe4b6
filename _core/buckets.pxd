from libc.stdint cimport int64_t, uint16_t, uint64_t


cdef enum:
    BUCKET_COUNT = 4096     # fixed for ever
    BUCKET_BITS = 12
    COUNTER_BITS = 40       # of a placed key; the bucket is above it
    SHARDS_MAX = 128        # of a deployment: what is kept by shard has room for so many


# The bucket in [0, BUCKET_COUNT) of a bigint key: named by a placed key, else its home.
cdef int bucket_of_key(int64_t key) noexcept nogil
# hashint8extended(key, HOME_SEED), and the home bucket of any key by its extended hash under HOME_SEED.
cdef uint64_t home_hash(int64_t key) noexcept nogil
cdef int home_of_hash(uint64_t key_hash) noexcept nogil
cdef uint64_t home_seed() noexcept nogil    # for hash_text_extended and hash_uuid_extended
cdef int64_t placed_key(int bucket, int64_t counter) noexcept nogil
# The first map: jump_hash(bucket, shard_count); owners has BUCKET_COUNT entries.
cdef void fill_initial_map(uint16_t* owners, int shard_count) noexcept nogil
