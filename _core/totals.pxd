from libc.stdint cimport int64_t, uint32_t

from foreshard._core.buffer cimport Buffer


cdef struct Total:
    int column                  # of the shards' rows
    int kind                    # Combine
    uint32_t oid
    bint binary
    bint is_some                # a row had a value
    bint is_fast                # `value` holds the sum, else Totals.slow does
    int64_t value


cdef class Totals:
    cdef tuple combines         # of the MergePlan
    cdef Total* items
    cdef int count
    cdef list slow
    cdef Py_ssize_t listed      # bytes of strings and arrays kept for the group at hand
    cdef int* of_column         # number of the total of a column; -1: none
    cdef int columns

    cdef int describe(self, int column, int columns, uint32_t oid, bint binary) except -1
    cdef void clear(self)
    cdef int add(self, const char* data, Py_ssize_t size) except -1
    cdef int add_object(self, int index, bytes data) except -1
    cdef int keep(self, int index, bytes data) except -1
    cdef bytes sorted_list(self, int index, tuple extra)
    cdef object value(self, int index)
    cdef bytes field(self, int index)
    cdef int write(self, int column, Buffer out) except -1
