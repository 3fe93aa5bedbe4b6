from foreshard._core.values cimport Value


cdef enum:
    FEATURE_ONE = 0         # 1 per row: the intercept
    FEATURE_SIZE = 1        # bytes of the rows' values
    FEATURE_COMPLEXITY = 2  # values, counting every array element and JSON node
    FEATURE_VOLUME = 3      # rows the statement modifies
    FEATURE_COUNT = 4


# What a column's type means to features: the low four bits; for SHAPE_ARRAY, `shape >> 4` is the elements' shape.
cpdef enum:
    SHAPE_SCALAR = 0        # counted by its bytes: text, enumerations, unknown types
    SHAPE_ARRAY = 1
    SHAPE_JSON = 2          # json and jsonb
    SHAPE_NUMBER = 3        # the rest counts a fixed number of bytes however it is written
    SHAPE_BOOLEAN = 4
    SHAPE_UUID = 5
    SHAPE_TIMESTAMP = 6     # without time zone
    SHAPE_TIMESTAMPTZ = 7
    SHAPE_DATE = 8
    SHAPE_BYTES = 9         # bytea, counted as its hexadecimal text form
    SHAPE_COUNT = 10


# Add one value of a row to features[FEATURE_SIZE] and features[FEATURE_COMPLEXITY]. NULL adds nothing; malformed data
# counts as one value of its own bytes. Reads nothing outside the value. Returns the number of values added.
cdef int add_value(const Value* value, int shape, double* features) noexcept
# The same for a value that the shard will fill in (the generated key, a default): what its JSON form will count.
cdef void add_generated(int shape, double* features) noexcept
