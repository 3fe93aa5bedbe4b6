cdef enum Resource:
    RESOURCE_CPU = 0        # CPU seconds
    RESOURCE_MEMORY = 1     # memory byte-seconds
    RESOURCE_IO = 2         # bytes read and written
    RESOURCE_NETWORK = 3    # bytes on the network
    RESOURCE_COUNT = 4


# What prediction needs of one profile; plain doubles, so that it can lie in shared memory. An unknown resource is all
# zero: it adds nothing to a cost.
cdef struct Model:
    double weights[4][4]    # [resource][feature]
    double floors[4]        # least predicted cost of one call, per resource
    double ceilings[4]      # most


# cost[r] = clip(weights[r] . x, floors[r], ceilings[r]) for a row with features x.
cdef void predict_cost(const Model* model, const double* features, double* cost) noexcept nogil
# Largest of the resources after dividing by what a shard gives per second: seconds of a shard.
cdef double scalar_cost(const double* cost, const double* capacities) noexcept nogil
