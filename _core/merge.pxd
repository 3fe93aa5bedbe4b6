from libc.stdint cimport int64_t, uint32_t

from foreshard._core.buffer cimport Buffer
from foreshard._core.merge_plan cimport MergePlan
from foreshard._core.sort_keys cimport SortKey
from foreshard._core.totals cimport Totals


cdef enum MergeState:
    MERGE_NEEDS = 0         # rows of `needed`, or the description
    MERGE_FULL = 1          # `out` has enough for now
    MERGE_ROWS = 2          # the row limit of this execution
    MERGE_DONE = 3


cdef struct KeySpec:
    uint32_t oid
    int sort                    # SortClass
    bint binary
    bint down
    bint nulls_first


cdef class Column:
    cdef uint32_t oid
    cdef bint binary
    cdef int sort               # SortClass


cdef class Row:
    cdef Buffer held            # body of a DataRow
    cdef SortKey* keys
    cdef int key_count
    cdef Py_ssize_t shown       # where the client's columns start
    cdef int input

    cdef int load(self, const char* data, Py_ssize_t size, Merger merger) except -1
    cdef list fields(self)


cdef class Merger:
    cdef readonly MergePlan plan
    cdef readonly int count         # of inputs
    cdef readonly bint described
    cdef list columns               # Column
    cdef KeySpec* specs             # of the keys
    cdef list queues                # Buffer of each input: bodies with their sizes in front
    cdef list rows                  # Row of each input
    cdef char* ended
    cdef int* heap                  # inputs, the smallest first
    cdef int heap_size
    cdef int* empty                 # inputs that have no row in the heap, and may get one
    cdef int empty_count
    cdef readonly int needed
    cdef int64_t left               # rows that LIMIT leaves; -1: all
    cdef int64_t skip               # rows that OFFSET leaves
    cdef readonly long long emitted
    cdef Row current                # of the group at hand
    cdef bint has_group
    cdef Totals totals              # of the group's combined columns; None: none are
    cdef Buffer shown               # a group on its way out
    cdef list sorted                # rows of groups that are sorted last
    cdef Py_ssize_t sorted_bytes
    cdef bint is_done
    cdef tuple labels               # of the inputs of an EXPLAIN
    cdef int labelled               # the input whose label was written last

    cdef bytes describe(self, const char* body, Py_ssize_t size)
    cdef void expect(self, int count)
    cdef int add(self, int input, const char* body, Py_ssize_t size) except -1
    cdef void end(self, int input) noexcept
    cdef Py_ssize_t queued(self, int input) noexcept
    cdef int step(self, Buffer out, Py_ssize_t out_max, long long rows_max) except -1
    cdef bint fill(self) except -1
    cdef int compare(self, Row one, Row other, int count) noexcept
    cdef void push_heap(self, int input) noexcept
    cdef void pop_heap(self) noexcept
    cdef int take(self, Row row, Buffer out) except -1
    cdef int write_group(self, Buffer out) except -1
    cdef int start_group(self, Row row) except -1
    cdef int finish_group(self, Buffer out) except -1
    cdef bint passes(self, list fields) except -1
    cdef int label(self, int input, Buffer out) except -1
    cdef int finish(self, Buffer out) except -1
    cdef int sort_groups(self) except -1
    cdef int emit(self, const char* data, Py_ssize_t size, Buffer out) except -1
