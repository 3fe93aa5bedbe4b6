cpdef enum CopyForm:
    COPY_TEXT = 0
    COPY_CSV = 1
    COPY_BINARY = 2


cdef struct CopyField:
    int index               # of the column in the rows of the COPY
    bint force_null         # FORCE_NULL: a quoted null string is NULL, too
    bint force_not_null     # FORCE_NOT_NULL: an unquoted one is not


cdef class CopyPlan:
    cdef readonly int form              # CopyForm
    cdef readonly bint is_from          # FROM STDIN, else TO STDOUT
    cdef readonly bint has_header       # the first line names the columns
    cdef readonly char delimiter
    cdef readonly char quote
    cdef readonly char escape
    cdef readonly bytes null            # what NULL looks like
    cdef readonly bytes default         # what stands for a column's default; None: nothing does
    cdef readonly tuple fields          # (column, force null, force not null) of each key of the Template, in its order
    cdef readonly int own               # which of the Template's keys is a child's own, to name its parent's bucket; -1
    cdef readonly bint generates        # a row whose key is its default gets one from its shard
    cdef readonly bint is_placed        # the shards generate all keys: one shard gets all rows
    cdef readonly bint is_everywhere    # a reference table: every shard gets all rows
    cdef readonly tuple moments         # columns whose values may mean the time of their reading, of such a table
    cdef readonly bint follows          # the first key is a parent's, whose claim says where the row lives
    cdef CopyField* places              # of `fields`
    cdef int place_count
    cdef int last                       # the last column that is looked at; -1: none
