"""What is known about one statement text: made once by the planner, used for every execution.

A Template says how a statement is routed, not where: the literals and parameters of each execution are read by
`locate`, which makes buckets of the keys, and by `read_features`, which makes what prediction needs. Neither
allocates, but for growing a `Buckets` and for errors.
"""

cimport cython
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport calloc, free, realloc

from foreshard._core.buckets cimport BUCKET_COUNT, bucket_of_key, home_of_hash, home_seed
from foreshard._core.copy_plan cimport CopyPlan
from foreshard._core.features cimport add_generated, add_value
from foreshard._core.key_values cimport (
    READ_KEY, READ_NONE, READ_NULL, READ_OTHER, ArrayCursor, next_key, open_array, read_key,
)
from foreshard._core.merge_plan cimport LIMIT_PARAM, MergePlan
from foreshard._core.typed_keys cimport TypedKey, read_typed, split_array
from foreshard._core.values cimport VALUE_BINARY, Value, Values

from foreshard._core.errors import SqlError, not_built
from foreshard._core.key_errors import malformed_key
from foreshard._core.typed_keys import ARRAY_OIDS, SCALAR_OIDS, TYPE_NAMES

cdef int64_t PLACED_FLAG = <int64_t> 1 << 52    # a key from here up to below twice this carries its bucket
cdef Py_ssize_t QUOTED_BYTES_MAX = 80           # of a malformed key, in the error about it
cdef frozenset KEY_TYPES = frozenset({0, 705, 20, 21, 23})                      # unspecified, unknown, int8, int2, int4
cdef frozenset CAST_TYPES = KEY_TYPES | frozenset({25, 1043})                   # text, varchar
cdef frozenset ARRAY_TYPES = frozenset({0, 705, 1005, 1007, 1016})              # int2[], int4[], int8[]
cdef int TYPED = KEY_PART | ~(KEY_TYPE_UNIT - 1)    # a source with one of these bits is read by locate_typed


@cython.final
cdef class Buckets:
    """Distinct buckets in order of first appearance. Reused: `clear` keeps the memory."""

    def __cinit__(self):
        self.items = NULL
        self.count = 0
        self.capacity = 0
        self.every = False
        self.seen = <unsigned char*> calloc(BUCKET_COUNT, 1)
        if self.seen == NULL:
            raise MemoryError()

    def __dealloc__(self):
        free(self.items)
        free(self.seen)

    cdef void clear(self) noexcept:
        """Forget all buckets."""
        cdef Py_ssize_t index
        for index in range(self.count):
            self.seen[self.items[index]] = 0
        self.count = 0
        self.every = False

    cdef int add(self, int bucket) except -1:
        """Add one bucket unless it is there."""
        cdef int* grown
        cdef Py_ssize_t capacity
        if not 0 <= bucket < BUCKET_COUNT:
            raise ValueError(f"no bucket {bucket}")
        if self.seen[bucket]:
            return 0
        if self.count == self.capacity:
            capacity = self.capacity * 2 if self.capacity else 16
            grown = <int*> realloc(self.items, capacity * sizeof(int))
            if grown == NULL:
                raise MemoryError()
            self.items = grown
            self.capacity = capacity
        self.items[self.count] = bucket
        self.count += 1
        self.seen[bucket] = 1
        return 0

    def __len__(self) -> int:
        return self.count

    def as_list(self) -> list[int]:
        """The buckets as Python integers."""
        return [self.items[index] for index in range(self.count)]


@cython.final
cdef class Template:
    """The route of one statement text. Made by the planner, never changed; fields are described in template.pxd."""

    def __cinit__(
        self, int kind, *, int verb=0, bint chain=False, int operation=4, bint is_write=False, str pin=None,
        str table=None, bytes text=None, str name=None, object refusal=None, tuple parts=(), tuple profiles=(),
        tuple keys=(), tuple values=(), int rows=1, object one_shard_refusal=None, bint can_query=False,
        tuple arbiters=(), object shadow=None, bint alters=False, bint keeps_bucket=False,
        MergePlan merge=None, str cursor=None, tuple parameters=(), bint is_reset=False, bint is_exact=False,
        bint returns=False, bint writes_within=False, tuple row_keys=(), Template marks=None,
        bytes lock=None, bint owes_claims=False, Template claim_homes=None, bint is_hashed=False,
        bint owes_away=False, bint is_wide=False, int new_keys=0, int completion=0,
        object carry=None, CopyPlan copy=None, str reason="",
    ):
        self.kind = kind
        self.verb = verb
        self.chain = chain
        self.operation = operation
        self.is_write = is_write
        self.pin = pin
        self.table = table
        self.text = text
        self.name = name
        self.refusal = refusal
        self.parts = parts
        self.profiles = profiles
        self.keys = keys
        self.values = values
        self.rows = rows
        self.one_shard_refusal = one_shard_refusal
        self.can_query = can_query
        self.shadow = shadow
        self.keeps_bucket = keeps_bucket
        self.arbiters = arbiters
        self.merge = merge
        self.alters = alters
        self.owes_claims = owes_claims
        self.is_wide = is_wide
        self.claim_homes = claim_homes
        self.is_hashed = is_hashed
        self.owes_away = owes_away
        self.new_keys = new_keys
        self.claims = tuple([getattr(column, "claim", None) for _, _, column in keys])
        self.is_claimed = any(self.claims)
        self.cursor = cursor
        self.parameters = parameters
        self.is_reset = is_reset
        self.is_exact = is_exact
        self.returns = returns
        self.writes_within = writes_within
        self.row_keys = row_keys
        self.marks = marks
        self.lock = lock
        self.completion = completion
        self.carry = carry
        self.copy = copy
        self.reason = reason
        self.fill_arrays()

    cdef int fill_arrays(self) except -1:
        """Copy keys, values and profiles into the arrays that the hot path walks."""
        cdef Py_ssize_t position
        self.key_count = <int> len(self.keys)
        self.feature_count = <int> len(self.values)
        self.profile_count = <int> len(self.profiles)
        self.key_sources = <KeySource*> calloc(self.key_count + 1, sizeof(KeySource))
        self.feature_sources = <FeatureSource*> calloc(self.feature_count + 1, sizeof(FeatureSource))
        self.profile_indexes = <int*> calloc(self.profile_count + 1, sizeof(int))
        if self.key_sources == NULL or self.feature_sources == NULL or self.profile_indexes == NULL:
            raise MemoryError()
        for position, (index, flags, _) in enumerate(self.keys):
            self.key_sources[position] = KeySource(index, flags)
        for position, (index, is_param, shape) in enumerate(self.values):
            self.feature_sources[position] = FeatureSource(index, is_param, shape)
        for position, profile in enumerate(self.profiles):
            self.profile_indexes[position] = profile
        return 0

    def __dealloc__(self):
        free(self.key_sources)
        free(self.feature_sources)
        free(self.profile_indexes)

    cdef int locate(self, Values literals, Values params, Buckets found) except -1:
        """Fill `found` with the buckets of this execution's keys."""
        cdef int position = 0
        found.clear()
        while position < self.key_count:
            position = self.locate_at(position, literals, params, found) + 1
        if found.count == 0 and not found.every:
            found.add(0)
        return 0

    cdef int locate_at(self, int position, Values literals, Values params, Buckets found) except -1:
        """Add the buckets of the key that starts at a source; its last source."""
        cdef KeySource source = self.key_sources[position]
        cdef const Value* value
        cdef int64_t key
        cdef int reading
        if source.flags & TYPED or self.is_hashed:
            return self.locate_typed(position, literals, params, found)
        value = self.read_source(position, literals, params)
        if source.flags & KEY_ARRAY:
            self.locate_array(value, position, found)
            return position
        reading = read_key(value, source.flags & KEY_NEGATIVE, &key)
        if reading == READ_KEY:
            self.locate_key(key, source.flags, found)
        else:
            self.refuse_key(reading, value, position)
        return position

    cdef list locate_rows(self, Values literals, Values params):
        """The bucket of each row of an INSERT that may be split."""
        cdef Buckets found = Buckets()
        cdef int position
        buckets = {}
        for position in set(self.row_keys):
            found.clear()
            self.locate_at(position, literals, params, found)
            buckets[position] = found.items[0]
        return [buckets[position] for position in self.row_keys]

    cdef list hash_rows(self, Values literals, Values params):
        """The hash of each row's key, as a signed integer; None for one with a NULL. Nothing where one is uncertain."""
        cdef TypedKey key
        cdef int position, flags, reading
        cdef uint64_t seed
        found = []
        for position in self.row_keys:
            seed = home_seed()
            while True:
                flags = self.key_sources[position].flags
                reading = read_typed(
                    self.read_source(position, literals, params), type_of(flags), flags & KEY_QUOTED,
                    flags & KEY_NEGATIVE, flags // KEY_LIMIT_UNIT, seed, &key)
                seed = key.hash
                if reading != READ_KEY or not flags & KEY_PART:
                    break
                position += 1
            if reading != READ_KEY and reading != READ_NULL:
                return []
            found.append(<int64_t> key.hash if reading == READ_KEY else None)
        return found

    cdef const Value* read_source(self, int position, Values literals, Values params) except NULL:
        """The value of a source."""
        cdef KeySource source = self.key_sources[position]
        cdef Values values = params if source.flags & KEY_PARAM else literals
        if values is None or source.index >= values.count:
            raise SqlError("08P01", f"bind message supplies no value for parameter ${source.index + 1}")
        return &values.items[source.index]

    cdef int locate_typed(self, int position, Values literals, Values params, Buckets found) except -1:
        """Add the bucket of one key of any type; an array may only be its last column."""
        cdef TypedKey key
        cdef const Value* value
        cdef int flags, reading, first = position
        cdef uint64_t seed = home_seed()
        while True:
            flags = self.key_sources[position].flags
            value = self.read_source(position, literals, params)
            if flags & KEY_ARRAY:
                self.locate_elements(value, position, seed, found)
                return position
            reading = read_typed(
                value, type_of(flags), flags & KEY_QUOTED, flags & KEY_NEGATIVE, flags // KEY_LIMIT_UNIT, seed, &key
            )
            if position != first:
                key.bucket = -1         # of several columns none names the bucket by itself
            if reading != READ_KEY or not flags & KEY_PART:
                self.locate_hash(reading, &key, value, position, found)
                while self.key_sources[position].flags & KEY_PART:
                    position += 1
                return position
            seed = key.hash
            position += 1

    cdef int locate_elements(self, const Value* value, int position, uint64_t seed, Buckets found) except -1:
        """Add the buckets of an array's keys of any type."""
        cdef int flags = self.key_sources[position].flags
        cdef Value element
        cdef TypedKey key
        cdef bytes data
        if value.size < 0:
            return self.refuse_key(READ_NULL, value, position)
        elements = split_array(value, type_of(flags), flags & KEY_QUOTED)
        if isinstance(elements, int):
            return self.locate_hash(elements, &key, value, position, found)
        for data in elements:
            if data is not None:
                element = Value(<const char*> data, len(data), value.format)
                reading = read_typed(&element, type_of(flags), False, False, 0, seed, &key)
                if seed != home_seed():
                    key.bucket = -1
                self.locate_hash(reading, &key, &element, position, found)
        return 0

    cdef int locate_hash(self, int reading, TypedKey* key, const Value* value, int position, Buckets found) except -1:
        """Add what was read of a key, or say what is wrong with it."""
        cdef int flags = self.key_sources[position].flags
        cdef bint names_bucket = reading == READ_KEY and key.bucket >= 0 and not (flags & KEY_PART or self.is_hashed)
        if reading == READ_OTHER or (reading == READ_KEY and flags & KEY_PLACED and not names_bucket):
            if flags & KEY_INSERTED or (self.one_shard_refusal is not None and not self.can_query):
                raise malformed_key(READ_OTHER, type_of(flags), self.keys[position][2], quoted_of(value), False)
            found.every = True
            return 0
        if reading != READ_KEY:
            return self.refuse_key(reading, value, position)
        return found.add(key.bucket if names_bucket else home_of_hash(key.hash))

    cdef int locate_array(self, const Value* value, int position, Buckets found) except -1:
        """Add the buckets of an array's keys."""
        cdef ArrayCursor cursor
        cdef int64_t key
        cdef int reading = open_array(value, &cursor)
        if reading != READ_KEY:
            return self.refuse_key(reading, value, position)
        while True:
            reading = next_key(&cursor, &key)
            if reading == READ_KEY:
                self.locate_key(key, self.key_sources[position].flags, found)
            elif reading == READ_NONE:
                return 0
            elif reading != READ_NULL:
                return self.refuse_key(reading, value, position)

    cdef int locate_key(self, int64_t key, int flags, Buckets found) except -1:
        """Add the bucket of one key; a child's key that carries none means every shard, where that is possible."""
        if flags & KEY_PLACED and not (PLACED_FLAG <= key < 2 * PLACED_FLAG):
            if flags & KEY_INSERTED or (self.one_shard_refusal is not None and not self.can_query):
                raise not_built(
                    f"this statement by key {key}, which does not carry its bucket",
                    "Name the parent's key in the statement too: rows of a child table live with their parent.",
                )
            found.every = True
            return 0
        return found.add(bucket_of_key(key))

    cdef int refuse_key(self, int reading, const Value* value, int position) except -1:
        """Raise what is wrong with a key; 0 when it only means that no row has it."""
        cdef int flags = self.key_sources[position].flags
        relation, column = self.keys[position][2].rsplit(".", 1)
        if reading == READ_NULL and flags & KEY_INSERTED:
            raise SqlError("23502", f'null value in column "{column}" of relation "{relation}" has no shard',
                           "The column's value says where the row lives.")
        if reading == READ_NULL or (reading == READ_NONE and not flags & KEY_INSERTED):
            return 0
        raise malformed_key(reading, type_of(flags), self.keys[position][2], quoted_of(value), flags & KEY_ARRAY)

    cdef int read_features(self, Values literals, Values params, double* features) except -1:
        """Fill `features` with what prediction knows about this write before it runs."""
        cdef FeatureSource source
        cdef Values values
        cdef int position
        features[0] = self.rows
        features[1] = 0
        features[2] = 0
        features[3] = <double> self.rows * self.rows
        for position in range(self.feature_count):
            source = self.feature_sources[position]
            if source.index < 0:
                add_generated(source.shape, features)
                continue
            values = params if source.is_param else literals
            if values is not None and source.index < values.count:
                add_value(&values.items[source.index], source.shape, features)
        return 0

    def check_types(self, type_oids: list[int]) -> object:
        """The error for parameters declared with a type that keys are not read from; None when all are fine.

        A numeric or float8 parameter compares otherwise than its bytes, read as bigint, would say.
        """
        for index, flags, column in self.keys:
            if not flags & KEY_PARAM or index >= len(type_oids):
                continue
            if type_of(flags):
                oids = ARRAY_OIDS if flags & KEY_ARRAY else SCALAR_OIDS
                allowed = {0, 705, *oids[type_of(flags)]}
            else:
                allowed = ARRAY_TYPES if flags & KEY_ARRAY else CAST_TYPES if flags & KEY_CAST else KEY_TYPES
            if type_oids[index] not in allowed:
                return not_built(
                    f"a parameter of type {type_oids[index]} as routing key",
                    f"Declare ${index + 1} as {TYPE_NAMES[type_of(flags)]}, or leave its type to the server.",
                    f'It is compared with "{column}".',
                )
        for kind, index in (self.merge.limit, self.merge.offset) if self.merge is not None else ():
            if kind == LIMIT_PARAM and index < len(type_oids) and type_oids[index] not in KEY_TYPES:
                return not_built(
                    f"a parameter of type {type_oids[index]} in LIMIT or OFFSET over several shards",
                    f"Declare ${index + 1} as bigint, or leave its type to the server.",
                )
        return None

    def text_parameters(self, type_oids: list[int]) -> tuple[int, ...]:
        """Parameters cast to a key's type that are declared as texts: in binary format they are texts, too."""
        return tuple(sorted({
            index for index, flags, _ in self.keys
            if flags & KEY_PARAM and flags & KEY_CAST and not type_of(flags) and index < len(type_oids)
            and type_oids[index] in CAST_TYPES and type_oids[index] not in KEY_TYPES
        }))

    def check_locate(self, literals: list, params: list) -> object:
        """Buckets for (data or None, format) pairs, or "every": `locate` for tests and EXPLAIN, off the hot path."""
        cdef Buckets found = Buckets()
        held = [literals, params]
        self.locate(values_of(literals), values_of(params), found)
        del held
        return "every" if found.every else found.as_list()

    def check_features(self, literals: list, params: list) -> list[float]:
        """What read_features gives for (data or None, format) pairs."""
        cdef double features[4]
        self.read_features(values_of(literals), values_of(params), features)
        return [features[index] for index in range(4)]


cdef str quoted_of(const Value* value):
    """A value as an error shows it."""
    if value.format == VALUE_BINARY or value.size < 0:
        return "..."
    return value.data[:min(value.size, QUOTED_BYTES_MAX)].decode("utf-8", "replace")


cdef Values values_of(list pairs):
    """Values that borrow the bytes of (data, format) pairs."""
    cdef Values values = Values()
    cdef bytes data
    for data, form in pairs:
        if data is None:
            values.append(NULL, -1, form)
        else:
            values.append(<const char*> data, len(data), form)
    return values
