"""Buckets of keys: decoding placed keys, home buckets of all others, and the first bucket map.

A placed bigint key is `2^52 | bucket << 40 | counter`: at least 2^52, below 2^53, exact in a double. Every other
bigint lives by its home bucket, `hashint8extended(key, HOME_SEED)` modulo 4096 of the unsigned value. 4096 is a
power of two, so SQL writes the modulo as `& 4095`, right for negative hashes too: BUCKET_OF_SQL is the whole rule
as an SQL expression over a bigint named `key`, and must stay equal to `bucket_of_key` for ever, as must HOME_SEED:
rows lie where they say.
"""

from libc.stdint cimport int64_t, uint16_t, uint64_t

from foreshard._core.hashing cimport hash_int8_extended, jump_hash

cdef int64_t FLAG = <int64_t> 1 << 52       # keys from here up to below twice this carry their bucket
cdef uint64_t SEED = 0x666F726573686172     # the bytes of "foreshar"; any fixed number would do

globals().update(BUCKET_COUNT=<int> BUCKET_COUNT, COUNTER_BITS=<int> COUNTER_BITS, SHARDS_MAX=<int> SHARDS_MAX)
PLACED_FLAG = FLAG
HOME_SEED = SEED
BUCKET_OF_SQL = (
    f"CASE WHEN key >= {1 << 52} AND key < {1 << 53} THEN ((key >> 40) & 4095)::int"
    f" ELSE (pg_catalog.hashint8extended(key, {HOME_SEED}) & 4095)::int END"
)


cdef int bucket_of_key(int64_t key) noexcept nogil:
    """Bucket of a bigint key."""
    if key >= FLAG and key < 2 * FLAG:
        return <int> ((key >> COUNTER_BITS) & (BUCKET_COUNT - 1))
    return home_of_hash(home_hash(key))


cdef uint64_t home_hash(int64_t key) noexcept nogil:
    return hash_int8_extended(key, SEED)


cdef int home_of_hash(uint64_t key_hash) noexcept nogil:
    return <int> (key_hash & (BUCKET_COUNT - 1))


cdef uint64_t home_seed() noexcept nogil:
    return SEED


cdef int64_t placed_key(int bucket, int64_t counter) noexcept nogil:
    """The key of a bucket's row number `counter`, which must be below 2^COUNTER_BITS."""
    return FLAG | <int64_t> bucket << COUNTER_BITS | counter


cdef void fill_initial_map(uint16_t* owners, int shard_count) noexcept nogil:
    cdef int bucket
    for bucket in range(BUCKET_COUNT):
        owners[bucket] = <uint16_t> jump_hash(<uint64_t> bucket, shard_count)


def bucket_of(key: int) -> int:
    """Bucket of a bigint key: as it says itself when it is a placed key, else its home."""
    return bucket_of_key(key)


def home_bucket(key: int) -> int:
    """Home bucket of a bigint, whether or not it is a placed key."""
    return home_of_hash(home_hash(key))


def make_placed_key(bucket: int, counter: int) -> int:
    """The placed key of a bucket and counter; ValueError out of range."""
    if not 0 <= bucket < BUCKET_COUNT:
        raise ValueError(f"bucket {bucket} is not in 0..{BUCKET_COUNT - 1}")
    if not 0 <= counter < <int64_t> 1 << COUNTER_BITS:
        raise ValueError(f"counter {counter} does not fit {COUNTER_BITS} bits")
    return placed_key(bucket, counter)


def initial_map(shard_count: int) -> list[int]:
    """Owner of every bucket in a new deployment: jump_hash(bucket, shard_count). ValueError below one shard."""
    cdef uint16_t owners[BUCKET_COUNT]
    if not 1 <= shard_count <= BUCKET_COUNT:
        raise ValueError(f"a deployment has 1..{BUCKET_COUNT} shards, not {shard_count}")
    fill_initial_map(owners, shard_count)
    return [owners[bucket] for bucket in range(BUCKET_COUNT)]
