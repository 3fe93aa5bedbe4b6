from libc.stdint cimport int64_t

from foreshard._core.values cimport Values


cpdef enum Combine:             # how the values of one column in the rows of a group become one
    COMBINE_SUM = 0             # integers and numerics; NULLs do not count
    COMBINE_MIN = 1
    COMBINE_MAX = 2
    COMBINE_AND = 3             # booleans; NULLs do not count
    COMBINE_OR = 4
    COMBINE_AVG = 5             # from two other columns: sum and count
    COMBINE_ANY = 6             # the first that is not NULL
    COMBINE_TEXT = 7            # strings with a delimiter between them
    COMBINE_BIT_AND = 8
    COMBINE_BIT_OR = 9
    COMBINE_BIT_XOR = 10
    COMBINE_ARRAY = 11          # arrays, one after the other
    COMBINE_JSON = 12           # JSON arrays
    COMBINE_KEPT = 13           # arrays that others of the group's columns are made of
    COMBINE_SORTED = 14         # from arrays: (delimiter or None, column or None, keys), keys as in lists.pyx


cpdef enum LimitSource:
    LIMIT_NONE = 0
    LIMIT_CONSTANT = 1
    LIMIT_LITERAL = 2
    LIMIT_PARAM = 3


cdef class MergePlan:
    cdef readonly tuple pieces      # the shards' text: bytes, and numbers of literals
    cdef readonly int hidden        # leading columns that the client does not see
    cdef readonly tuple keys        # (descending, nulls first): hidden column i is key i, which the shards sort by
    cdef readonly int group         # rows equal in so many leading keys become one; -1: none do
    cdef readonly tuple combines    # (column, Combine, extra), columns counted from the first hidden one
    cdef readonly tuple order       # (column, descending, nulls first) of the groups; empty: they come in order
    cdef readonly tuple limit       # (LimitSource, number)
    cdef readonly tuple offset
    cdef readonly tuple filters     # (column, operator, column) that a group must meet: HAVING
    cdef readonly bint is_text      # a key is compared as a string of the client's encoding
    cdef readonly bint is_float     # a key is a float, whose text must be exact
    cdef readonly tuple finish      # pieces before and behind the rows in the text that one shard finishes; or None
    cdef readonly tuple types       # of the shards' columns, as casts, where there is such a text
    cdef readonly bint is_plan      # of EXPLAIN: rows shard by shard, each under its name
    cdef readonly MergePlan undated  # for sessions whose dates are not ISO, where this one compares dates; or None

    cdef bytes text(self, Values literals)
    cdef tuple finish_texts(self, Values literals)
    cdef int64_t read_limit(self, Values literals, Values params) except? -2
    cdef int64_t read_offset(self, Values literals, Values params) except? -2
