from foreshard._core.values cimport Values


cdef enum RouteKind:
    ROUTE_EMPTY = 0         # nothing but white space and comments
    ROUTE_DEFAULT = 1       # the default shard: plain tables, catalogs, statements without a table
    ROUTE_KEYED = 2         # the shards that own the buckets of the statement's keys
    ROUTE_SCATTER = 3       # read of every shard, rows concatenated
    ROUTE_ANY = 4           # any one shard has the answer: reference tables
    ROUTE_PLACE = 5         # INSERT of root rows whose keys the shard will generate
    ROUTE_REFUSE = 6        # answered with `refusal`
    ROUTE_TRANSACTION = 7   # BEGIN, COMMIT, ROLLBACK, SAVEPOINT ...: `verb`
    ROUTE_EXPLAIN = 8       # EXPLAIN (FORESHARD) of `parts[0]`
    ROUTE_MULTI = 9         # several statements in one string: `parts`


cdef enum Verb:
    VERB_NONE = 0
    VERB_BEGIN = 1          # BEGIN, START TRANSACTION
    VERB_COMMIT = 2         # COMMIT, END
    VERB_ROLLBACK = 3       # ROLLBACK, ABORT
    VERB_SAVEPOINT = 4
    VERB_RELEASE = 5
    VERB_ROLLBACK_TO = 6


cdef enum Operation:
    OPERATION_SELECT = 0
    OPERATION_INSERT = 1
    OPERATION_UPDATE = 2
    OPERATION_DELETE = 3
    OPERATION_OTHER = 4


cdef class Buckets:
    cdef int* items             # distinct buckets, in order of first appearance
    cdef Py_ssize_t count
    cdef Py_ssize_t capacity

    cdef void clear(self) noexcept
    cdef int add(self, int bucket) except -1


cdef class Template:
    cdef readonly int kind              # RouteKind
    cdef readonly int verb              # Verb, when kind is ROUTE_TRANSACTION
    cdef readonly bint chain            # COMMIT/ROLLBACK AND CHAIN
    cdef readonly int operation         # Operation
    cdef readonly bint is_write         # changes rows, locks them, or may (unknown functions count as writes)
    cdef readonly str pin               # why this statement ties the session to its backend; None when it does not
    cdef readonly str table             # schema-qualified name of the declared table it works on; None when none
    cdef readonly bytes text            # BEGIN with its options / the savepoint's statement, to replay on late joiners
    cdef readonly str name              # savepoint name, folded as PostgreSQL folds it
    cdef readonly object refusal        # foreshard.proxy.errors.SqlError when kind is ROUTE_REFUSE
    cdef readonly tuple parts           # inner templates of ROUTE_MULTI and ROUTE_EXPLAIN
    cdef readonly tuple profiles        # indexes of the profiles (function, operation) the write fires
    cdef int* profile_indexes           # the same for the hot path
    cdef int profile_count

    cdef int locate(self, Values literals, Values params, Buckets found) except -1
    cdef int read_features(self, Values literals, Values params, double* features) except -1
