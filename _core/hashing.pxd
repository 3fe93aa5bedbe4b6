from libc.stdint cimport int64_t, uint64_t


# Jump consistent hash: a bucket in [0, buckets); 0 when buckets < 1.
cdef int jump_hash(uint64_t key, int buckets) noexcept nogil

# A 64-bit finaliser (SplitMix64): spreads counters and salts; not PostgreSQL's.
cdef uint64_t mix64(uint64_t value) noexcept nogil

# PostgreSQL's hash_any_extended and the functions built on it, bit for bit (little-endian servers).
cdef uint64_t hash_any_extended(const unsigned char* data, Py_ssize_t size, uint64_t seed) noexcept nogil
cdef uint64_t hash_int8_extended(int64_t value, uint64_t seed) noexcept nogil
cdef uint64_t hash_text_extended(const char* data, Py_ssize_t size, uint64_t seed) noexcept nogil
cdef uint64_t hash_uuid_extended(const unsigned char* data, uint64_t seed) noexcept nogil   # 16 bytes
