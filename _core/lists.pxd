from libc.stdint cimport uint32_t

cdef bytes join_arrays(list parts, bint binary, uint32_t oid)
cdef bytes join_json(list parts, bint binary, uint32_t oid)
cdef bytes merge_arrays(list parts, bint binary, uint32_t oid, bytes delimiter, list keys)
