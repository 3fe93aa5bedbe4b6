"""What is known about the cost of one (trigger function, operation), learned one measurement at a time.

Per resource a linear model over `[1, size, complexity, volume]` with coefficients >= 0, kept in information form:
    gram   <- 0.995 gram   + x x' / p^2      p = the cost predicted before this measurement, over the mean at that time
    moment <- 0.995 moment + x y' / p^2      y' = measured, clipped at 2.5 deviations of the relative residual
    coefficients = argmin over w >= 0 of w' gram w / 2 - moment . w + ridge toward the mean
solved by a few sweeps of coordinate descent from the coefficients before. Dividing by p^2 makes errors relative: a row
that costs a millisecond counts as much as one that costs a second. (Huber 1964 for the clipping, Page 1954 for drift.)

Rules:
1. An unknown measurement (None, NaN, negative, infinite) is skipped, never taken for zero.
2. Nothing here is ever NaN: collinear, dead and hugely scaled features included. The ridge is relative to each
   feature's own weight in the gram matrix, so units do not matter.
3. Predictions lie between 2 % of the mean and the ceiling.
4. Before the first measurement a prior predicts; the first measurement sets the scale.
5. When measured cost drifts away (Page-Hinkley on clipped log ratios) the evidence shrinks to 5 %.
   Noise is not drift: the slack grows with the spread of the ratios, and they are taken around their own slow mean.
6. Clipping is for outliers. Where it takes away more than half of the predicted cost, what it clips is the cost itself
   (memory that most calls do not need), and nothing is clipped until that is over.
7. When the 95th percentile of the last q-errors of the scalar cost exceeds 4, and is not clearly below what the mean
   alone would have had, the profile is degraded: its cost counts as the mean, and that is visible. It ends below 3, or
   when the model is clearly better than the mean. (A model that is far off for a few calls tells heavy rows from light
   ones all the same; to take it away made the demo's placement as good as hashing.)
"""

cimport cython
from libc.math cimport INFINITY, NAN, exp, fabs, fmax, fmin, isfinite, isnan, log, sqrt
from libc.stdlib cimport qsort
from libc.string cimport memset

cdef double DECAY = 0.995           # of evidence per sample: the last 200 samples count
cdef double RIDGE = 0.05            # in samples
cdef double CLIP = 2.5              # deviations
cdef int SWEEPS = 4
cdef double FLOOR = 0.02            # of the mean
cdef double BASE_MIN = 0.1          # of the mean: no sample weighs more than if it had been predicted to cost that
cdef double VARIANCE_MIN = 0.0025   # relative residuals: 5 % deviation, so that clipping never closes
cdef double RATE_MIN = 0.01         # of the running variance
cdef double LOST_RATE = 0.01
cdef double EXCESS_MAX = 1000.0     # of one sample
cdef double LOST_MAX = 0.5          # of the predicted cost: more is signal, not outliers
cdef double DRIFT_SLACK = 0.15      # of a log ratio, per sample; at least half their deviation
cdef double DRIFT_TRIP = 6.0
cdef double DRIFT_KEEPS = 0.05      # of the evidence
cdef double BIAS_RATE = 0.005
cdef double DEGRADED_FROM = 4.0     # q-error
cdef double DEGRADED_UNTIL = 3.0
cdef double USELESS_FROM = 0.8      # of the mean's q-error: a model above that tells no more than the mean
cdef double USELESS_UNTIL = 0.65
cdef int DEGRADED_SAMPLES = 64      # no verdict before this many: the first few of any model are far off
cdef double LOG_RATIO_MAX = 1000.0      # beyond what a double's ratio can be: stands for infinity
cdef double RATIO_SCALE = 1e4        # of kept log ratios: a ten-thousandth is 0.01 % of a q-error
cdef int FRESH_MAX = 16             # ratios between two takings of order statistics
cdef double VALUE_MAX = 1e18        # of a feature or a measurement
cdef double MEAN_MIN = 1e-30        # what is below is nothing


# --- rolling order statistics ------------------------------------------------------------------------------------

cdef int compare_doubles(const void* left, const void* right) noexcept nogil:
    cdef double difference = (<const double*> left)[0] - (<const double*> right)[0]
    return (difference > 0) - (difference < 0)


cdef void clear_window(Window* window) noexcept:
    """Forget all ratios."""
    memset(window, 0, sizeof(Window))
    window.q_median = 1.0
    window.q_p95 = 1.0


@cython.cdivision(True)
cdef void add_ratio(Window* window, double ratio) noexcept:
    """Add one log ratio; take the order statistics anew when there are few or enough are fresh."""
    window.ratios[window.next] = ratio
    window.next = (window.next + 1) % WINDOW
    window.count = min(window.count + 1, <int> WINDOW)
    window.fresh += 1
    if window.fresh >= FRESH_MAX or window.count <= FRESH_MAX:
        take_statistics(window)


@cython.cdivision(True)
cdef void take_statistics(Window* window) noexcept:
    """Median and 95th percentile of q-errors, and the conformal 95 % upper bound of the log ratio."""
    cdef double[WINDOW] ordered
    cdef int index
    cdef int rank
    cdef int count = window.count
    window.fresh = 0
    if count == 0:
        return
    for index in range(count):
        ordered[index] = fabs(window.ratios[index])
    qsort(&ordered[0], count, sizeof(double), compare_doubles)
    window.q_median = exp((ordered[(count - 1) // 2] + ordered[count // 2]) / 2)
    window.q_p95 = exp(ordered[min(count - 1, (count * 95) // 100)])
    for index in range(count):
        ordered[index] = window.ratios[index]
    qsort(&ordered[0], count, sizeof(double), compare_doubles)
    rank = ((count + 1) * 95 + 99) // 100       # ceil: the split-conformal rank
    if rank <= count:
        window.upper = ordered[rank - 1]
    else:                                       # too few to say: beyond the largest seen
        window.upper = fmax(ordered[count - 1], 0.0) + log(2.0)


cdef list dump_window(Window* window):
    """The ratios as whole 1/RATIO_SCALE, oldest first: short, and as near as anybody looks."""
    cdef int index
    cdef int first = window.next if window.count == WINDOW else 0
    return [
        round(fmax(fmin(window.ratios[(first + index) % WINDOW], LOG_RATIO_MAX), -LOG_RATIO_MAX) * RATIO_SCALE)
        for index in range(window.count)
    ]


cdef int load_window(ratios, Window* window) except -1:
    """Fill a window from such a list, or leave it empty when there is none; 0 when it is something else."""
    cdef double value
    clear_window(window)
    if ratios is None:
        return 1
    if len(ratios) > WINDOW:
        return 0
    for ratio in ratios:
        value = ratio
        if not isfinite(value):
            return 0
        add_ratio(window, value / RATIO_SCALE)
    take_statistics(window)
    return 1


# --- one resource ------------------------------------------------------------------------------------------------

cdef void clear_fit(Fit* fit) noexcept:
    memset(fit, 0, sizeof(Fit))
    fit.variance = 1.0
    clear_window(&fit.window)


cdef inline double dot(const Fit* fit, const double* x) noexcept:
    """The model's value, floored."""
    cdef double total = 0
    cdef int index
    for index in range(FEATURES):
        total += fit.coefficients[index] * x[index]
    return fmax(total, FLOOR * fit.mean)


cdef void restart_at(Fit* fit, double mean) noexcept:
    """Nothing is known but the mean."""
    memset(&fit.gram, 0, sizeof(fit.gram))
    memset(&fit.moment, 0, sizeof(fit.moment))
    memset(&fit.coefficients, 0, sizeof(fit.coefficients))
    fit.coefficients[0] = mean
    fit.mean = mean
    fit.evidence = 0
    fit.variance = 1.0


@cython.cdivision(True)
cdef void solve(Fit* fit) noexcept:
    """Coordinate descent under coefficients >= 0, from where they are, with a small ridge toward the mean."""
    cdef int row
    cdef int column
    cdef double rest
    cdef double ridge
    for _ in range(SWEEPS):
        for row in range(FEATURES):
            if not fit.gram[row][row] > 1e-200:
                fit.coefficients[row] = 0
                continue
            ridge = RIDGE * fit.gram[row][row] / fit.evidence
            rest = fit.moment[row] + (ridge * fit.mean if row == 0 else 0.0)
            for column in range(FEATURES):
                if column != row:
                    rest -= fit.gram[row][column] * fit.coefficients[column]
            fit.coefficients[row] = fmax(0.0, rest / (fit.gram[row][row] + ridge))
    for row in range(FEATURES):
        if not isfinite(fit.coefficients[row]):
            restart_at(fit, fit.mean)
            return


cdef void add_evidence(Fit* fit, const double* x, double value, double weight) noexcept:
    """Decay what is known and add one sample to it."""
    cdef int row
    cdef int column
    for row in range(FEATURES):
        for column in range(FEATURES):
            fit.gram[row][column] = DECAY * fit.gram[row][column] + weight * x[row] * x[column]
        fit.moment[row] = DECAY * fit.moment[row] + weight * x[row] * value
    fit.evidence = DECAY * fit.evidence + 1


@cython.cdivision(True)
cdef double log_ratio(const Fit* fit, double measured, double predicted) noexcept:
    """log(measured / predicted); both lifted by the floor, so that a zero is far off, not infinitely far."""
    cdef double lift = FLOOR * fit.mean
    if predicted + lift <= 0:
        return 0.0
    return log((measured + lift) / (predicted + lift))


@cython.cdivision(True)
cdef void watch_drift(Fit* fit, double ratio) noexcept:
    """Page-Hinkley on log ratios clipped at +-1, both ways; a trip shrinks the evidence."""
    cdef int row
    cdef int column
    cdef double excess = fmin(fmax(ratio, -1.0), 1.0) - fit.bias
    cdef double rate = fmax(1 / (fit.settled + 1), BIAS_RATE)
    cdef double slack = fmax(DRIFT_SLACK, sqrt(fit.spread) / 2)
    fit.bias += rate * excess
    fit.spread += rate * (excess * excess - fit.spread)
    fit.risen = fmax(0.0, fit.risen + excess - slack)
    fit.fallen = fmax(0.0, fit.fallen - excess - slack)
    if fmax(fit.risen, fit.fallen) <= DRIFT_TRIP:
        return
    for row in range(FEATURES):
        for column in range(FEATURES):
            fit.gram[row][column] *= DRIFT_KEEPS
        fit.moment[row] *= DRIFT_KEEPS
    fit.evidence *= DRIFT_KEEPS
    fit.variance = 1.0
    fit.settled = 1.0 / DRIFT_KEEPS / 4     # the running values move fast again, but do not start over
    fit.risen = fit.fallen = fit.bias = fit.spread = fit.lost = 0
    fit.resets += 1
    clear_window(&fit.window)


@cython.cdivision(True)
cdef void learn_resource(Fit* fit, const double* x, double measured) noexcept:
    """One known measurement of one resource."""
    cdef double predicted
    cdef double residual
    cdef double limit
    cdef double clipped
    cdef double excess
    cdef double base
    cdef double ratio
    if fit.mean < MEAN_MIN:
        # The first sample, or the first that is not zero: it sets the scale.
        restart_at(fit, measured / (fit.samples + 1))
        if fit.mean < MEAN_MIN:
            fit.samples += 1
            fit.settled += 1
            return
    predicted = dot(fit, x)
    ratio = log_ratio(fit, measured, predicted)
    residual = measured / predicted - 1
    limit = CLIP * sqrt(fit.variance)
    clipped = fmin(fmax(residual, -limit), limit)
    excess = fmin(residual, EXCESS_MAX) - clipped
    if fit.lost < LOST_MAX:
        residual = clipped
    fit.lost += LOST_RATE * (excess - fit.lost)
    fit.variance += fmax(1 / (fit.settled + 5), RATE_MIN) * (clipped * clipped - fit.variance)
    fit.variance = fmax(fit.variance, VARIANCE_MIN)
    clipped = predicted * (1 + residual)
    fit.samples += 1
    fit.settled += 1
    # Relative to the mean of its time, so that samples from before a change of level weigh as much as those after it. A
    # prediction far too low would give its sample an enormous weight, so it is bounded, but never by the sample itself:
    # what cost much would weigh little, and a cost that is mostly zero would be learned as zero.
    base = fmax(predicted / fit.mean, BASE_MIN)
    fit.mean += fmax(1 / fit.settled, 1 - DECAY) * (clipped - fit.mean)
    add_evidence(fit, x, clipped, 1 / (base * base))
    solve(fit)
    add_ratio(&fit.window, ratio)
    watch_drift(fit, ratio)


# --- one profile -------------------------------------------------------------------------------------------------

cdef int read_features(features, double* x) except -1:
    """Four features as doubles; what is negative or not a number is 0."""
    cdef int index
    for index in range(FEATURES):
        x[index] = features[index]
        if not x[index] > 0:
            x[index] = 0
        elif x[index] > VALUE_MAX:
            x[index] = VALUE_MAX
    return 0


cdef int read_costs(values, double* costs, double missing) except -1:
    """Four resources as doubles; `missing` for None, NaN, negative and infinite ones."""
    cdef int index
    for index in range(RESOURCES):
        costs[index] = NAN if values[index] is None else values[index]
        if not (costs[index] >= 0 and isfinite(costs[index])):
            costs[index] = missing
        elif costs[index] > VALUE_MAX:
            costs[index] = VALUE_MAX
    return 0


@cython.final
cdef class Learner:
    """Owns the models of one profile. Made by the controller; its state is kept in the control database."""

    def __init__(self, ceilings=(None,) * RESOURCES, capacities=(1.0, 1e9, 200e6, 100e6), priors=(None,) * RESOURCES):
        cdef int resource
        read_costs(ceilings, self.ceilings, INFINITY)
        read_costs(capacities, self.capacities, INFINITY)
        self.set_priors(priors)
        for resource in range(RESOURCES):
            if self.capacities[resource] <= 0:
                raise ValueError("capacities are above 0")
            clear_fit(&self.fits[resource])
        self.clear_windows()
        self.samples = 0
        self.degraded = False

    def set_priors(self, priors):
        """Expected cost of one call per resource, None where nothing is known; used until it is measured."""
        read_costs(priors, self.priors, NAN)

    def update(self, features, measured):
        """Learn from one call; answers the scalar cost predicted before it (seconds of a shard).

        measured -- one value per resource, None where unknown.
        """
        cdef double[FEATURES] x
        cdef double[RESOURCES] costs
        cdef double before
        read_features(features, x)
        read_costs(measured, costs, NAN)
        before = self.predict_scalar(features)
        self.learn(x, costs)
        return before

    @cython.cdivision(True)
    cdef void learn(self, const double* x, const double* measured) noexcept:
        """The hot half of `update`: NaN where unknown."""
        cdef int resource
        cdef bint known = False
        cdef double before = 0
        cdef double after = 0
        cdef double estimate
        cdef double resets
        cdef bint drifted = False
        for resource in range(RESOURCES):
            if isnan(measured[resource]):
                continue
            known = True
            estimate = self.estimate(resource, x)
            before = fmax(before, estimate / self.capacities[resource])
            after = fmax(after, measured[resource] / self.capacities[resource])
            resets = self.fits[resource].resets
            learn_resource(&self.fits[resource], x, measured[resource])
            if self.fits[resource].resets > resets:
                drifted |= self.fits[resource].mean / self.capacities[resource] >= self.mean_scalar()
        if not known:
            return
        self.samples += 1
        if drifted:                 # of the resource that dominates
            self.clear_windows()
        elif self.samples > 1:      # the first was predicted by a prior, not by what is judged here
            self.judge(before, after)

    cdef void clear_windows(self) noexcept:
        """Forget the q-errors of the scalar cost."""
        clear_window(&self.window)
        clear_window(&self.mean_window)

    @cython.cdivision(True)
    cdef void judge(self, double before, double after) noexcept:
        """Note the q-error of one scalar prediction, and whether the profile can be relied on."""
        cdef double lift = FLOOR * self.mean_scalar()
        if before + lift <= 0 or after + lift <= 0:
            return
        add_ratio(&self.window, log((after + lift) / (before + lift)))
        add_ratio(&self.mean_window, log((after + lift) / (self.mean_scalar() + lift)))
        if self.window.count < DEGRADED_SAMPLES:
            return
        self.degraded = (
            self.window.q_p95 > (DEGRADED_UNTIL if self.degraded else DEGRADED_FROM)
            and self.window.q_p95 > (USELESS_UNTIL if self.degraded else USELESS_FROM) * self.mean_window.q_p95
        )

    @cython.cdivision(True)
    cdef double mean_scalar(self) noexcept:
        """Scalar of the mean cost vector."""
        cdef double largest = 0
        cdef int resource
        for resource in range(RESOURCES):
            largest = fmax(largest, self.fits[resource].mean / self.capacities[resource])
        return largest

    cdef double estimate(self, int resource, const double* x) noexcept:
        """What the model says, degraded or not; 0 when nothing is known."""
        cdef double value
        if self.fits[resource].samples > 0:
            value = dot(&self.fits[resource], x)
        else:
            value = 0.0 if isnan(self.priors[resource]) else self.priors[resource]
        return fmin(value, self.ceilings[resource])

    cdef double predicted(self, int resource, const double* x) noexcept:
        """What counts: the model, or the mean when the profile is degraded."""
        if self.degraded and self.fits[resource].samples > 0:
            return fmin(self.fits[resource].mean, self.ceilings[resource])
        return self.estimate(resource, x)

    @cython.cdivision(True)
    cdef double scalar(self, const double* cost) noexcept:
        """Largest of the resources after dividing by capacity."""
        cdef double largest = 0
        cdef int resource
        for resource in range(RESOURCES):
            largest = fmax(largest, cost[resource] / self.capacities[resource])
        return largest

    def predict(self, features):
        """Predicted cost of one call per resource; 0 where nothing is known."""
        cdef double[FEATURES] x
        cdef int resource
        read_features(features, x)
        return tuple([self.predicted(resource, x) for resource in range(RESOURCES)])

    def predict_scalar(self, features):
        """Predicted cost of one call in seconds of a shard."""
        cdef double[FEATURES] x
        cdef double[RESOURCES] cost
        cdef int resource
        read_features(features, x)
        for resource in range(RESOURCES):
            cost[resource] = self.predicted(resource, x)
        return self.scalar(cost)

    def upper_bound(self, features):
        """Scalar cost that 95 % of calls with these features stay below (rolling split conformal)."""
        return self.predict_scalar(features) * exp(self.window.upper)

    def models(self):
        """Per resource (coefficients, floor, ceiling, mean), for the hot path; all zero where nothing is known."""
        cdef Fit* fit
        cdef double mean
        cdef int resource
        cdef int index
        found = []
        for resource in range(RESOURCES):
            fit = &self.fits[resource]
            if fit.samples > 0:
                coefficients = tuple([fit.coefficients[index] for index in range(FEATURES)])
                mean = fit.mean
            else:
                mean = 0.0 if isnan(self.priors[resource]) else self.priors[resource]
                coefficients = (mean, 0.0, 0.0, 0.0)
            found.append((coefficients, FLOOR * mean, self.ceilings[resource], mean))
        return found

    def means(self):
        """Mean measured cost per resource, None where it was never known."""
        return tuple([fit.mean if fit.samples > 0 else None for fit in self.fits[:RESOURCES]])

    def resource_samples(self):
        """Known measurements per resource."""
        return tuple([int(fit.samples) for fit in self.fits[:RESOURCES]])

    def resets(self):
        """Drift resets so far, over all resources."""
        return int(sum([fit.resets for fit in self.fits[:RESOURCES]]))

    def q_error(self, resource=None):
        """(median, 95th percentile) of the last q-errors, of the scalar cost or of one resource; None without any.

        Each is the model's prediction before the measurement against the measurement.
        """
        cdef Window* window = &self.window
        if resource is not None:
            if not 0 <= resource < RESOURCES:
                raise IndexError(resource)
            window = &self.fits[resource].window
        if window.count == 0:
            return None
        take_statistics(window)
        return (window.q_median, window.q_p95)

    def state(self):
        """Everything needed to go on after a restart, as plain values."""
        cdef int resource
        return {
            "samples": self.samples,
            "degraded": bool(self.degraded),
            "ratios": dump_window(&self.window),
            "mean_ratios": dump_window(&self.mean_window),
            "fits": [dump_fit(&self.fits[resource]) for resource in range(RESOURCES)],
        }

    def restore(self, state):
        """Take over what `state` gave; False (and nothing changed) when it is not usable."""
        cdef Fit[RESOURCES] fits
        cdef Window window
        cdef Window mean_window
        cdef int resource
        try:
            samples = int(state["samples"])
            degraded = bool(state["degraded"])
            if len(state["fits"]) != RESOURCES or samples < 0:
                return False
            for resource in range(RESOURCES):
                if not load_fit(state["fits"][resource], &fits[resource]):
                    return False
            if not load_window(state.get("ratios"), &window):
                return False
            if not load_window(state.get("mean_ratios"), &mean_window):
                return False
        except (AttributeError, KeyError, TypeError, ValueError, IndexError, OverflowError):
            return False
        for resource in range(RESOURCES):
            self.fits[resource] = fits[resource]
        self.samples = samples
        self.degraded = degraded
        self.window = window
        self.mean_window = mean_window
        return True


# --- persistence -------------------------------------------------------------------------------------------------

cdef dict dump_fit(Fit* fit):
    """One fit as plain values."""
    cdef int row
    cdef int column
    return {
        "gram": [[fit.gram[row][column] for column in range(FEATURES)] for row in range(FEATURES)],
        "moment": [fit.moment[row] for row in range(FEATURES)],
        "coefficients": [fit.coefficients[row] for row in range(FEATURES)],
        "evidence": fit.evidence,
        "samples": fit.samples,
        "settled": fit.settled,
        "mean": fit.mean,
        "variance": fit.variance,
        "lost": fit.lost,
        "bias": fit.bias,
        "spread": fit.spread,
        "risen": fit.risen,
        "fallen": fit.fallen,
        "resets": fit.resets,
        "ratios": dump_window(&fit.window),
    }


cdef int load_fit(state, Fit* fit) except -1:
    """Fill a fit from plain values; 0 when one is missing, negative where it may not be, or not finite."""
    cdef int row
    cdef int column
    clear_fit(fit)
    for row in range(FEATURES):
        for column in range(FEATURES):
            fit.gram[row][column] = state["gram"][row][column]
            if not isfinite(fit.gram[row][column]):
                return 0
        fit.moment[row] = state["moment"][row]
        fit.coefficients[row] = state["coefficients"][row]
        if not (isfinite(fit.moment[row]) and 0 <= fit.coefficients[row] < INFINITY):
            return 0
    fit.evidence = state["evidence"]
    fit.samples = state["samples"]
    fit.settled = state["settled"]
    fit.mean = state["mean"]
    fit.variance = state["variance"]
    fit.lost = state["lost"]
    fit.bias = state["bias"]
    fit.spread = state["spread"]
    fit.risen = state["risen"]
    fit.fallen = state["fallen"]
    fit.resets = state["resets"]
    for value in (fit.evidence, fit.samples, fit.settled, fit.mean, fit.variance, fit.spread, fit.risen, fit.fallen):
        if not 0 <= value < INFINITY:
            return 0
    if not (0 <= fit.resets < INFINITY and isfinite(fit.bias) and isfinite(fit.lost)):
        return 0
    return load_window(state.get("ratios"), &fit.window)
