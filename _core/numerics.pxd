cdef tuple decode_numeric(bytes data, bint binary)
cdef bytes encode_numeric(tuple value, bint binary)
cdef tuple add_numerics(tuple one, tuple other)
cdef tuple divide_numeric(tuple sum, object count)
