from libc.stdint cimport uint64_t

from foreshard._core.values cimport Value


# What a key column holds. Integers of all sizes hash alike; only a bigint or uuid can be a placed key.
cpdef enum KeyType:
    TYPE_INT8 = 0
    TYPE_INT4 = 1
    TYPE_INT2 = 2
    TYPE_TEXT = 3           # text and varchar
    TYPE_UUID = 4
    TYPE_BYTEA = 5
    TYPE_DATE = 6
    TYPE_TIMESTAMP = 7
    TYPE_TIMESTAMPTZ = 8


cdef struct TypedKey:
    uint64_t hash           # PostgreSQL's extended hash of the key under the seed
    int bucket              # that a placed key names; -1 for all others


# Read one key; a Reading of _core/key_values. `limit` is n of varchar(n) where the value is stored in one, else 0.
cdef int read_typed(
    const Value* value, int type, bint quoted, bint negative, int limit, uint64_t seed, TypedKey* key
) except -1
# Elements of an array as bytes or None, or the Reading that says what is wrong with it.
cdef object split_array(const Value* value, int type, bint quoted)
