from libc.stdint cimport uint32_t

cdef object odd_value(uint32_t oid)
cdef object read_partial(int kind, uint32_t oid, bint binary, bytes data)
cdef object combine_partials(int kind, uint32_t oid, bint binary, object one, object other)
cdef bytes write_result(int kind, uint32_t oid, bint binary, object value)
cdef bytes write_average(object sum, object count, bint binary)
