cdef enum Resource:
    RESOURCE_CPU = 0        # CPU seconds
    RESOURCE_MEMORY = 1     # memory byte-seconds
    RESOURCE_IO = 2         # bytes read and written
    RESOURCE_NETWORK = 3    # bytes on the network


cdef enum:
    RESOURCES = 4
    FEATURES = 4            # 1, size, complexity, volume
    WINDOW = 256            # latest log ratios measured / predicted that q-errors and bounds are taken from


# What prediction needs of one profile; plain doubles, so that it can lie in shared memory. An unknown resource is all
# zero: it adds nothing to a cost.
cdef struct Model:
    double weights[4][4]    # [resource][feature]
    double floors[4]        # least predicted cost of one call, per resource
    double ceilings[4]      # most


cdef struct Window:
    double[WINDOW] ratios   # ring of log ratios
    int count
    int next
    int fresh               # added since the order statistics were taken
    double q_median         # of exp(|ratio|)
    double q_p95
    double upper            # 95 % of log ratios are at most this


cdef struct Fit:            # one resource of one profile
    double[FEATURES][FEATURES] gram     # decayed sum of x x' / p^2
    double[FEATURES] moment             # decayed sum of x measured / p^2
    double[FEATURES] coefficients
    double evidence         # decayed number of samples in gram
    double samples          # all samples
    double settled          # samples since the last reset, which set the rates of the running values below
    double mean             # of measured values, clipped
    double variance         # of relative residuals, clipped
    double lost             # slow mean of what clipping took away, relative to predictions
    double bias             # slow mean of log ratios: what drift is measured from
    double spread           # slow variance of log ratios around it
    double risen            # Page-Hinkley sums
    double fallen
    double resets
    Window window


cdef class Learner:
    cdef Fit[RESOURCES] fits
    cdef double[RESOURCES] ceilings     # most that one call can cost
    cdef double[RESOURCES] capacities   # what one shard gives per second
    cdef double[RESOURCES] priors       # expected cost of one call until measured; NaN where nothing is known
    cdef Window window                  # of scalar costs
    cdef Window mean_window             # of scalar costs, had the mean predicted them
    cdef readonly long long samples     # updates in which at least one resource was known
    cdef readonly bint degraded         # predictions are far off and tell no more than the mean, which counts instead

    cdef void learn(self, const double* x, const double* measured) noexcept
    cdef double predicted(self, int resource, const double* x) noexcept
    cdef double scalar(self, const double* cost) noexcept
    cdef double estimate(self, int resource, const double* x) noexcept
    cdef double mean_scalar(self) noexcept
    cdef void clear_windows(self) noexcept
    cdef void judge(self, double before, double after) noexcept
