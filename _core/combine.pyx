"""Partial results of aggregates: read from rows, put together, written as PostgreSQL would write the whole one.

Arithmetic is on integers and exact numerics alone. A partial result that is NULL came from no rows and is passed over
by the caller. None of this is approximate: what cannot be exact is not planned.
"""

from libc.stdint cimport uint32_t

from foreshard._core.merge_plan cimport (
    COMBINE_AND,
    COMBINE_ANY,
    COMBINE_BIT_AND,
    COMBINE_BIT_OR,
    COMBINE_BIT_XOR,
    COMBINE_MAX,
    COMBINE_MIN,
    COMBINE_OR,
    COMBINE_SUM,
)
from foreshard._core.numerics cimport add_numerics, decode_numeric, divide_numeric, encode_numeric
from foreshard._core.sort_keys cimport SortKey, compare_values, decode_key, sort_class

from foreshard._core.errors import SqlError

cdef enum:
    BOOL = 16
    INT8 = 20
    INT2 = 21
    INT4 = 23
    NUMERIC = 1700

SIZES = {INT2: 2, INT4: 4, INT8: 8}


cdef object odd_value(uint32_t oid):
    """A shard gave what the plan does not know."""
    return SqlError(
        "0A000", f"Foreshard cannot merge values of type {oid} in the form that the shards give them",
        hint="Use the default settings of DateStyle and bytea_output, or restrict the statement to one key.",
    )


cdef object read_partial(int kind, uint32_t oid, bint binary, bytes data):
    """What one row has."""
    if kind in (COMBINE_MIN, COMBINE_MAX, COMBINE_ANY):
        return data
    if kind in (COMBINE_AND, COMBINE_OR):
        if oid != BOOL:
            raise odd_value(oid)
        return data in (b"t", b"\1")
    if oid == NUMERIC and kind == COMBINE_SUM:
        return decode_numeric(data, binary)
    if oid not in SIZES:
        raise odd_value(oid)
    return int.from_bytes(data, "big", signed=True) if binary else int(data)


cdef object combine_partials(int kind, uint32_t oid, bint binary, object one, object other):
    """Both together."""
    if kind == COMBINE_SUM:
        return add_numerics(one, other) if oid == NUMERIC else one + other
    if kind == COMBINE_MIN or kind == COMBINE_MAX:
        return other if (compare_bytes(oid, binary, one, other) > 0) == (kind == COMBINE_MIN) else one
    if kind == COMBINE_AND:
        return one and other
    if kind == COMBINE_OR:
        return one or other
    if kind == COMBINE_BIT_AND:
        return one & other
    if kind == COMBINE_BIT_OR:
        return one | other
    if kind == COMBINE_BIT_XOR:
        return one ^ other
    return one      # COMBINE_ANY; strings and lists are kept by the caller


cdef int compare_bytes(uint32_t oid, bint binary, bytes one, bytes other) except? -2:
    """Two values of a type."""
    cdef SortKey first
    cdef SortKey second
    if not decode_key(oid, binary, one, len(one), &first) or not decode_key(oid, binary, other, len(other), &second):
        raise odd_value(oid)
    return compare_values(sort_class(oid), binary, &first, &second)


cdef bytes write_result(int kind, uint32_t oid, bint binary, object value):
    """The value as a row has it. SqlError 22003 for a sum that no bigint holds."""
    if value is None or isinstance(value, bytes):
        return value
    if kind == COMBINE_AND or kind == COMBINE_OR:
        return (b"\1" if value else b"\0") if binary else (b"t" if value else b"f")
    if oid == NUMERIC:
        return encode_numeric(value, binary)
    if oid == INT8 and not -0x8000000000000000 <= value <= 0x7FFFFFFFFFFFFFFF:
        raise SqlError("22003", "bigint out of range")
    return value.to_bytes(SIZES[oid], "big", signed=True) if binary else b"%d" % value


cdef bytes write_average(object sum, object count, bint binary):
    """The average: NULL of nothing."""
    if sum is None or not count:
        return None
    return encode_numeric(divide_numeric(sum if isinstance(sum, tuple) else (sum, 0), count), binary)
