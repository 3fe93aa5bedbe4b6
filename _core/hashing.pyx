"""Hash functions: jump consistent hash, and PostgreSQL's extended hashes bit for bit.

Jump hash is Lamping and Veach, "A Fast, Minimal Memory, Consistent Hash Algorithm" (2014, arXiv:1406.2294).
PostgreSQL hashes with Bob Jenkins' lookup3 (2006, public domain), started from its own constant and seeded by one
extra mixing round; its result is the last two words, `b` above `c`. A bigint folds its high half into its low
half first, so that equal values of int2, int4 and int8 hash equally. Words are taken from bytes in little-endian
order, as PostgreSQL does on little-endian machines: text and uuid hashes equal those of such servers only, bigint
hashes those of all.

The Python functions return what SQL shows: signed 64-bit integers.
"""

cimport cython
from libc.stdint cimport int64_t, uint32_t, uint64_t

# 0x9e3779b9 is lookup3's golden ratio, 3923095 the constant PostgreSQL adds.
cdef uint32_t START = <uint32_t> 0x9E3779B9 + <uint32_t> 3923095


cdef struct Words:
    uint32_t a
    uint32_t b
    uint32_t c


cdef inline uint32_t rotate(uint32_t word, int bits) noexcept nogil:
    return (word << bits) | (word >> (32 - bits))


cdef inline void mix(Words* w) noexcept nogil:
    """lookup3's reversible mixing of three words."""
    w.a -= w.c
    w.a ^= rotate(w.c, 4)
    w.c += w.b
    w.b -= w.a
    w.b ^= rotate(w.a, 6)
    w.a += w.c
    w.c -= w.b
    w.c ^= rotate(w.b, 8)
    w.b += w.a
    w.a -= w.c
    w.a ^= rotate(w.c, 16)
    w.c += w.b
    w.b -= w.a
    w.b ^= rotate(w.a, 19)
    w.a += w.c
    w.c -= w.b
    w.c ^= rotate(w.b, 4)
    w.b += w.a


cdef inline uint64_t finish(Words* w) noexcept nogil:
    """lookup3's final mixing, and PostgreSQL's way to make 64 bits of it."""
    w.c ^= w.b
    w.c -= rotate(w.b, 14)
    w.a ^= w.c
    w.a -= rotate(w.c, 11)
    w.b ^= w.a
    w.b -= rotate(w.a, 25)
    w.c ^= w.b
    w.c -= rotate(w.b, 16)
    w.a ^= w.c
    w.a -= rotate(w.c, 4)
    w.b ^= w.a
    w.b -= rotate(w.a, 14)
    w.c ^= w.b
    w.c -= rotate(w.b, 24)
    return (<uint64_t> w.b << 32) | w.c


cdef inline void start(Words* w, uint32_t size, uint64_t seed) noexcept nogil:
    w.a = START + size
    w.b = w.a
    w.c = w.a
    if seed != 0:       # seed 0 gives the value of the function without a seed
        w.a += <uint32_t> (seed >> 32)
        w.b += <uint32_t> seed
        mix(w)


cdef inline uint32_t little_endian(const unsigned char* data) noexcept nogil:
    return data[0] | <uint32_t> data[1] << 8 | <uint32_t> data[2] << 16 | <uint32_t> data[3] << 24


cdef inline uint32_t partial(const unsigned char* data, Py_ssize_t size, int shift) noexcept nogil:
    """Bytes as a little-endian word whose first one lands at bit `shift`; size * 8 + shift <= 32."""
    cdef uint32_t word = 0
    cdef Py_ssize_t i
    for i in range(size):
        word |= <uint32_t> data[i] << (shift + 8 * <int> i)
    return word


@cython.cdivision(True)
cdef int jump_hash(uint64_t key, int buckets) noexcept nogil:
    """Bucket of a key; when buckets grows from n to n + 1, 1/(n + 1) of the keys move, all to the new one."""
    cdef int64_t bucket = 0
    cdef int64_t candidate = 0
    while candidate < buckets:
        bucket = candidate
        key = key * <uint64_t> 2862933555777941757 + 1
        candidate = <int64_t> (<double> (bucket + 1) * (2147483648.0 / <double> ((key >> 33) + 1)))
    return <int> bucket


cdef uint64_t mix64(uint64_t value) noexcept nogil:
    """SplitMix64's output function over value + its increment (Steele, Lea and Flood 2014)."""
    value += <uint64_t> 0x9E3779B97F4A7C15
    value = (value ^ (value >> 30)) * <uint64_t> 0xBF58476D1CE4E5B9
    value = (value ^ (value >> 27)) * <uint64_t> 0x94D049BB133111EB
    return value ^ (value >> 31)


cdef uint64_t hash_any_extended(const unsigned char* data, Py_ssize_t size, uint64_t seed) noexcept nogil:
    """PostgreSQL's hash of a byte string."""
    cdef Words w
    start(&w, <uint32_t> size, seed)
    while size >= 12:
        w.a += little_endian(data)
        w.b += little_endian(data + 4)
        w.c += little_endian(data + 8)
        mix(&w)
        data += 12
        size -= 12
    # The lowest byte of c was kept for the length: its bytes start one place higher.
    w.a += partial(data, size if size < 4 else 4, 0)
    if size > 4:
        w.b += partial(data + 4, size - 4 if size < 8 else 4, 0)
    if size > 8:
        w.c += partial(data + 8, size - 8, 8)
    return finish(&w)


cdef uint64_t hash_int8_extended(int64_t value, uint64_t seed) noexcept nogil:
    """hashint8extended: a bigint folded to 32 bits, hashed as one word of 4 bytes."""
    cdef Words w
    cdef uint32_t low = <uint32_t> (<uint64_t> value)
    cdef uint32_t high = <uint32_t> (<uint64_t> value >> 32)
    start(&w, 4, seed)
    w.a += low ^ (high if value >= 0 else ~high)
    return finish(&w)


cdef uint64_t hash_text_extended(const char* data, Py_ssize_t size, uint64_t seed) noexcept nogil:
    """hashtextextended under a deterministic collation: the bytes in the server's encoding."""
    return hash_any_extended(<const unsigned char*> data, size, seed)


cdef uint64_t hash_uuid_extended(const unsigned char* data, uint64_t seed) noexcept nogil:
    """uuid_hash_extended: the 16 bytes of a uuid in network order."""
    return hash_any_extended(data, 16, seed)


def jump_hash_of(key: int, buckets: int) -> int:
    """Jump consistent hash of the low 64 bits of `key`; ValueError when buckets < 1."""
    if buckets < 1:
        raise ValueError("jump hash needs at least one bucket")
    return jump_hash(<uint64_t> (key & 0xFFFFFFFFFFFFFFFF), buckets)


def hashint8extended(value: int, seed: int) -> int:
    """What SELECT hashint8extended(value, seed) answers."""
    cdef int64_t bigint = value
    cdef int64_t seed_bigint = seed
    return <int64_t> hash_int8_extended(bigint, <uint64_t> seed_bigint)


def hashtextextended(value: bytes | str, seed: int) -> int:
    """What SELECT hashtextextended(value, seed) answers in a UTF-8 database; bytes are taken as they are."""
    cdef bytes data = value.encode() if isinstance(value, str) else value
    cdef int64_t seed_bigint = seed
    return <int64_t> hash_text_extended(data, len(data), <uint64_t> seed_bigint)


def uuid_hash_extended(value: bytes, seed: int) -> int:
    """What SELECT uuid_hash_extended(value, seed) answers for the 16 bytes of a uuid; ValueError for another size."""
    cdef bytes data = value
    cdef int64_t seed_bigint = seed
    if len(data) != 16:
        raise ValueError("a uuid has 16 bytes")
    return <int64_t> hash_uuid_extended(<const unsigned char*> <const char*> data, <uint64_t> seed_bigint)
