from libc.stdint cimport int64_t

from foreshard._core.buffer cimport Buffer
from foreshard._core.copy_lines cimport LineMap
from foreshard._core.copy_plan cimport CopyPlan
from foreshard._core.template cimport Buckets, Template
from foreshard._core.values cimport Values


cdef enum RowPlace:             # where a row goes that has no shard of its own
    PLACE_EVERYWHERE = -1
    PLACE_MISSING = -2          # it lacks a column: any shard says so


cdef class CopyPart:
    cdef readonly Buffer data       # records for this shard that nobody has taken
    cdef readonly LineMap map
    cdef readonly int64_t rows
    cdef readonly int64_t sent      # bytes of them
    cdef bint has_head              # the header was sent; a note of whoever sends
    cdef bint is_marked             # rows were


cdef class CopySplitter:
    cdef readonly CopyPlan plan
    cdef readonly list parts        # CopyPart by shard
    cdef readonly bytes head        # header line, or header of the binary format; None: not whole yet
    cdef readonly int64_t lines     # of the client's data that have been read
    cdef int first                  # the shard for what any shard refuses, and for what has no rows
    cdef int placed                 # the shard for rows whose keys are generated; -1: none
    cdef bint ends_csv              # a line \. ends the data in CSV, too: before PostgreSQL 18
    cdef Py_ssize_t record_bytes_max
    cdef Template template
    cdef int* owners                # shard of each bucket
    cdef int64_t* landed            # rows of each bucket, but for those that are placed
    cdef Values values              # of the keys of the record at hand
    cdef Buckets found
    cdef list scratch               # Buffer for each key whose escapes are undone
    cdef Buffer carry               # a record that is not whole
    # Where rows follow parents that need not live at home: the buckets of those that were asked for, by their keys.
    cdef dict followed
    cdef dict wanted                # while looking ahead, the homes of those that have to be; None: not looking
    cdef Py_ssize_t goal            # bytes that must be held before it is worth looking: a record is longer than that
    cdef int stage                  # Stage
    cdef bint final                 # no more data will come
    # Where the scan of the record at hand stands.
    cdef Py_ssize_t scanned
    cdef bint in_quote
    cdef bint was_escape
    cdef Py_ssize_t marker          # where a backslash and a dot stand; -1: nowhere
    cdef int64_t newlines           # inside quotes
    cdef int64_t returns
    # What ended it.
    cdef int end_kind               # Ending
    cdef Py_ssize_t end_size
    cdef int ending                 # of the first line; ENDING_NONE: there was none
    cdef int ending_shard           # which heard that line

    cdef int feed(self, const char* data, Py_ssize_t size) except -1
    cdef int finish(self) except -1
    cdef int hold(self, const char* data, Py_ssize_t size) except -1
    cdef dict look_ahead(self, bint ends)
    cdef int take_held(self) except -1
    cdef int follow(self, int home) except -2
    cdef int check_size(self) except -1
    cdef Py_ssize_t take(self, const char* data, Py_ssize_t size) except -1
    cdef int reset_scan(self) noexcept
    cdef Py_ssize_t scan(self, const char* data, Py_ssize_t size) noexcept
    cdef Py_ssize_t scan_csv(self, const char* data, Py_ssize_t size) noexcept
    cdef Py_ssize_t end_at(self, const char* data, Py_ssize_t size, Py_ssize_t at) noexcept
    cdef int take_line(self, const char* data, Py_ssize_t size) except -1
    cdef int append(self, int shard, const char* data, Py_ssize_t size, int64_t newlines) except -1
    cdef int append_to(self, CopyPart part, const char* data, Py_ssize_t size, int64_t lines) except -1
    cdef int64_t count_lines(self, int ending) noexcept
    cdef int place_whole(self, const char* data, Py_ssize_t size) except -3
    cdef int place(self, const char* data, Py_ssize_t size) except -3
    cdef int find_shard(self) except -3
    cdef bint read_fields(self, const char* data, Py_ssize_t size) except -1
    cdef int add_field(
        self, int column, const char* raw, Py_ssize_t raw_size, const char* data, Py_ssize_t size, bint is_quoted
    ) except -1
    cdef Py_ssize_t take_binary(self, const char* data, Py_ssize_t size) except -1
    cdef Py_ssize_t take_signature(self, const char* data, Py_ssize_t size) except -1
    cdef Py_ssize_t take_tuple(self, const char* data, Py_ssize_t size) except -1
    cdef int check_moment(self, const char* data, Py_ssize_t size) except -1
