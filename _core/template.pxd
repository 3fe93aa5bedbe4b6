from libc.stdint cimport int64_t, uint64_t

from foreshard._core.copy_plan cimport CopyPlan
from foreshard._core.merge_plan cimport MergePlan
from foreshard._core.typed_keys cimport TypedKey
from foreshard._core.values cimport Value, Values


cpdef enum RouteKind:
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
    ROUTE_CARRY = 13        # an INSERT whose rows the router carries from a query to their shards: `carry`
    ROUTE_QUERY = 11        # a read for the query node; `refusal` when the transaction has written
    ROUTE_ALONE = 12        # on every shard, one after the other and outside of transactions: CREATE INDEX CONCURRENTLY
    ROUTE_COPY = 14         # COPY FROM STDIN whose rows are told apart: `copy`


cpdef enum Verb:
    VERB_NONE = 0
    VERB_BEGIN = 1          # BEGIN, START TRANSACTION
    VERB_COMMIT = 2         # COMMIT, END
    VERB_ROLLBACK = 3       # ROLLBACK, ABORT
    VERB_SAVEPOINT = 4
    VERB_RELEASE = 5
    VERB_ROLLBACK_TO = 6


cpdef enum Operation:
    OPERATION_SELECT = 0
    OPERATION_INSERT = 1
    OPERATION_UPDATE = 2
    OPERATION_DELETE = 3
    OPERATION_OTHER = 4


# What follows a statement of several shards before the client hears that it is done.
cpdef enum Completion:
    COMPLETE_NONE = 0
    COMPLETE_SCHEMA = 1     # it ran on every shard: what it made of the schema is checked and completed
    COMPLETE_FIRST = 2      # the same, but it ran on the first shard only
    COMPLETE_ROWS = 3       # it ran on the first shard only: the others are given the rows that it changed there


# How a key is written where a KeySource says, or-ed together.
cpdef enum KeyFlag:
    KEY_PARAM = 1           # a bound parameter, else a literal of the text
    KEY_ARRAY = 2           # an array of keys, as in = ANY($1)
    KEY_NEGATIVE = 4        # a minus stands before the literal
    KEY_PLACED = 8          # only a placed key names a bucket: the key of a child, whose row lives with its parent
    KEY_INSERTED = 16       # the value of a new row: NULL is an error
    KEY_CAST = 32           # under an explicit cast to an integer type, so text types may be bound to it
    KEY_QUOTED = 64         # a literal in single quotes: '' in it is one quote
    KEY_PART = 128          # a column of a key of several, of which the next source is the following column
    # From here up: a KeyType (_core/typed_keys), then n of a varchar(n) column that the value is stored in, else 0.
    KEY_TYPE_UNIT = 256
    KEY_LIMIT_UNIT = 4096


cdef struct KeySource:
    int index               # of the literal, or of the parameter ($1 is 0)
    int flags               # KeyFlag, KeyType and limit


cdef struct FeatureSource:
    int index               # as KeySource.index; -1: the shard fills it in, -2: it computes it from an expression
    bint is_param
    int shape               # _core/features.Shape


cdef class Buckets:
    cdef int* items             # distinct buckets, in order of first appearance
    cdef Py_ssize_t count
    cdef Py_ssize_t capacity
    cdef readonly bint every    # some key names no bucket (an old child key): all shards, as ROUTE_SCATTER
    cdef unsigned char* seen    # one byte per bucket: whether `items` has it

    cdef void clear(self) noexcept
    cdef int add(self, int bucket) except -1


cdef class Template:
    cdef readonly int kind              # RouteKind
    cdef readonly int verb              # Verb, when kind is ROUTE_TRANSACTION
    cdef readonly bint chain            # COMMIT/ROLLBACK AND CHAIN
    cdef readonly int operation         # Operation
    cdef readonly bint is_write         # changes rows, locks them, or may (unknown functions count as writes)
    cdef readonly bint alters           # changes the schema, or may: what is known of plain tables is in doubt
    cdef readonly str pin               # why this statement ties the session to its backend; None when it does not
    cdef readonly str table             # schema-qualified name of the declared table it works on; None when none
    cdef readonly bytes text            # BEGIN with its options / the savepoint's statement, to replay on late joiners
    cdef readonly str name              # savepoint or setting, folded as PostgreSQL does; DISCARD ALL, DEALLOCATE ALL
    cdef readonly object refusal        # foreshard.proxy.errors.SqlError when kind is ROUTE_REFUSE, ROUTE_QUERY
    # Inner templates of ROUTE_MULTI and ROUTE_EXPLAIN. They read the literals of the whole text; those of ROUTE_MULTI
    # have their own `text`, and each the pin of the whole string.
    cdef readonly tuple parts
    cdef readonly tuple profiles        # indexes of the profiles (function, operation) the write fires
    cdef int* profile_indexes           # the same for the hot path
    cdef int profile_count
    # Why this must run on one shard: raised by the caller when the buckets of a ROUTE_KEYED statement lie on several
    # shards. None when the shards' rows may simply be concatenated.
    cdef readonly object one_shard_refusal
    # An INSERT with ON CONFLICT on claimed columns: a Template of one key for each value that another row may have, its
    # `row_keys` the row's number alone; `keeps_bucket`: the row may not follow another one of the statement;
    # `owes_away`: the row that is there may be away from the bucket that its claim names.
    cdef readonly tuple arbiters
    cdef readonly bint keeps_bucket     # keys of several buckets are as keys of several shards: rows may not leave one
    cdef readonly bint can_query        # the query node answers the read where `one_shard_refusal` would be raised
    cdef readonly object shadow         # how the node answers where the transaction has written; None: it cannot
    cdef readonly MergePlan merge       # how the answers of several shards are merged; None: they are concatenated
    # A write of a group with columns that are unique over all shards: its shard may owe claims to others at its end.
    cdef readonly bint owes_claims
    cdef readonly bint is_wide          # a write whose triggers may write in other buckets than its keys name
    # Of an INSERT whose text tells the values to be claimed: a Template whose keys name the claims' homes. Else None.
    cdef readonly Template claim_homes
    # The same of a table whose keys are placed by cost, where the write's rows are away from home.
    cdef readonly bint owes_away
    cdef readonly int new_keys          # INSERT into such a table of keys that it gives: 1 plain, 2 with ON CONFLICT
    cdef readonly bint is_hashed        # its keys are hashed even if they name a bucket: homes of claims
    cdef readonly tuple claims          # for each KeySource the claims that say where its row lives; None: the key says
    cdef readonly bint is_claimed       # some do
    cdef readonly str cursor            # of DECLARE, FETCH, MOVE, CLOSE: the latter three follow the DECLARE
    # RESET, DISCARD, DEALLOCATE ALL, or a string of which every pinning part is: leaves nothing but defaults behind, so
    # an unpinned session need not be pinned for it, but its backend's settings and prepared statements are gone.
    cdef readonly bint is_reset
    cdef readonly bint is_exact         # depends on the values of literals: cached for this very text only
    cdef readonly bint returns          # a write that gives rows: RETURNING, row locks, WITH
    cdef readonly bint writes_within    # of a SELECT, too: in WITH
    # An INSERT that may be split by row: for each row the position of its key among `keys`. Empty for all others.
    cdef readonly tuple row_keys
    # Of such an INSERT that may leave rows out and returns the others: a Template whose keys mark its rows, and whose
    # text is a column of the same marks (routing/row_marks). Else None.
    cdef readonly Template marks
    # How an INSERT of a query's rows is carried out over the router (CarryPlan): always when kind is ROUTE_CARRY, else
    # where `one_shard_refusal` would be raised. None for all others.
    cdef readonly object carry
    # A write that every shard does, one after the other, with the same result (reference tables): what it locks.
    cdef readonly bytes lock
    cdef readonly int completion        # Completion
    cdef readonly CopyPlan copy         # of COPY: its format, and where its rows' keys are; None for all others
    cdef readonly tuple keys            # (index, flags, column) of each KeySource, column as in "relation.column"
    cdef readonly tuple values          # (index, is_param, shape) of each FeatureSource
    cdef readonly tuple parameters      # type OIDs of $1, $2, ... when kind is ROUTE_EXPLAIN
    cdef readonly int rows              # a write's rows as far as the text says, at least 1
    cdef readonly str reason            # why this route, for EXPLAIN (FORESHARD)
    cdef KeySource* key_sources
    cdef int key_count
    cdef FeatureSource* feature_sources
    cdef int feature_count

    # Distinct buckets of the keys, at least one (where no row can match, any shard will do). SqlError for NULL keys
    # of new rows (23502), malformed (22P02) and too large ones (22003), and keys that name no bucket where one must.
    cdef int locate(self, Values literals, Values params, Buckets found) except -1
    # [rows, size, complexity, rows * rows] of a write (ARCHITECTURE.md, measurements and features).
    cdef int read_features(self, Values literals, Values params, double* features) except -1
    # The same for each row of an INSERT with row_keys.
    cdef list locate_rows(self, Values literals, Values params)
    cdef list hash_rows(self, Values literals, Values params)
    cdef int locate_at(self, int position, Values literals, Values params, Buckets found) except -1
    cdef int fill_arrays(self) except -1
    cdef int locate_array(self, const Value* value, int position, Buckets found) except -1
    cdef int locate_key(self, int64_t key, int flags, Buckets found) except -1
    cdef int refuse_key(self, int reading, const Value* value, int position) except -1
    # The same for keys of other types than bigint and of several columns; gives the position of the key's last source.
    cdef int locate_typed(self, int position, Values literals, Values params, Buckets found) except -1
    cdef const Value* read_source(self, int position, Values literals, Values params) except NULL
    cdef int locate_elements(self, const Value* value, int position, uint64_t seed, Buckets found) except -1
    cdef int locate_hash(self, int reading, TypedKey* key, const Value* value, int position, Buckets found) except -1


cdef inline int type_of(int flags) noexcept:
    """The KeyType in a KeySource's flags."""
    return flags // KEY_TYPE_UNIT & (KEY_LIMIT_UNIT // KEY_TYPE_UNIT - 1)
