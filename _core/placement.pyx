"""The placement rule: which shard takes a new root row.

A consistent hash proposes candidate buckets, the bucket map says whose they are, predicted cost and current load
decide which is taken (DESIGN.md, section 3). Rules of the default policy `bounded`:

1. cap(s) = bound x weight(s) x (total load + cost) / total weight, over the shards that can take rows.
2. A light row stays with candidate 0 while its shard's load is at most cap, else takes the lighter of 1 and 2 if that
   is lighter. A heavy row (cost at or above the running 95th percentile) takes the lightest of the four. Lighter
   means less load per weight; of equals the first candidate wins.
3. A shard with more than 15 % above its fair count of root rows is no candidate, unless all are that.
4. A shard that is down, or has no bucket (but one that is being moved), is never a candidate; when all candidates
   are such, the next shard that is none takes the row.
5. Nobody picks the lightest of all shards: with loads that are a little old, every proxy would pick the same one.

The heavy threshold moves by a factor at each row: up when the row is heavy, down when it is not, in such a ratio that
5 % of the rows are. Among equal costs it wanders around that cost, so that they are not all heavy.
"""

import os

cimport cython
from libc.math cimport INFINITY, frexp
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from foreshard._core.buckets cimport BUCKET_COUNT, home_of_hash
from foreshard._core.hashing cimport mix64
from foreshard._core.shared cimport Shard, SharedState

from foreshard._core.shared import POLICIES

REASONS = (
    "none-up", "only-shard", "transaction", "parent", "candidate-0", "lighter-of-two", "heavy-lightest", "fallback",
    "key-hash", "cost-hash", "two-choices", "least-loaded",
)
globals().update(CANDIDATE_COUNT=<int> CANDIDATE_COUNT, BUCKET_ROWS_SHARE=<int> BUCKET_ROWS_SHARE)

cdef double ROWS_BOUND = 1.15       # row counts this far above their fair share put a shard out
cdef double ROWS_SLACK = 64.0       # chosen: counts below this are no evidence of a crowd
cdef double HEAVY_SHARE = 0.05      # of rows
cdef double STEP_FIRST = 20.0       # chosen: step of the threshold after n rows is 20 / n, between the two below
cdef double STEP_MAX = 1.0
cdef double STEP_MIN = 0.02
cdef int64_t MEAN_ROWS = 1024       # chosen: rows that the running mean of costs remembers


cdef inline uint64_t double_bits(double value) noexcept nogil:
    cdef uint64_t bits
    memcpy(&bits, &value, sizeof(bits))
    return bits


cdef inline int cost_class(double cost) noexcept nogil:
    """The power of two below a cost: costs of one class hash alike."""
    cdef int exponent
    frexp(cost, &exponent)
    return exponent


cdef inline bint can_take(Placer placer, int shard) noexcept nogil:
    """It is up, and has a bucket that stays."""
    return placer.shards[shard].up != 0 and (not placer.state.has_scarce or placer.has_bucket(shard))


@cython.final
cdef class Placer:
    """Decides and charges for one process; made over the state that it shares with the others."""

    def __cinit__(self, SharedState state not None, policy: str = "bounded", bound: float = 1.05, seed=None):
        """`seed` None: a random start, so that processes do not propose the same buckets in step."""
        if policy not in POLICIES:
            raise ValueError(f"placement policy {policy!r} is not one of {', '.join(POLICIES)}")
        if not bound >= 1:
            raise ValueError(f"a placement bound is at least 1, not {bound}")
        cdef uint64_t salt = int.from_bytes(os.urandom(8), "little") if seed is None else seed
        cdef int shard
        self.state = state
        self.shards = state.shard_states
        self.common = state.common
        self.policy = POLICIES.index(policy)
        self.bound = bound
        self.salt = mix64(salt)
        self.cursors = <int*> calloc(state.places, sizeof(int))
        if self.cursors == NULL:
            raise MemoryError()
        for shard in range(state.places):
            self.cursors[shard] = <int> (mix64(self.salt + shard) % BUCKET_COUNT)
        self.decision.chosen = -1
        self.frozen_bucket = -1

    def __dealloc__(self):
        free(self.cursors)

    # Prediction and charges

    cdef double predict(self, const double* features, const int* profile_indexes, int profile_count,
                        double* by_resource) noexcept nogil:
        """Scalar predicted cost of a write; an index outside the state predicts nothing."""
        cdef int i
        for i in range(4):
            by_resource[i] = 0
        for i in range(profile_count):
            if 0 <= profile_indexes[i] < self.state.profile_count:
                self.state.add_prediction(profile_indexes[i], features, by_resource)
        return self.state.scalar(by_resource)

    cdef double charge(self, int shard, const double* features, const int* profile_indexes,
                       int profile_count) noexcept nogil:
        """Charge a write that has no choice; its rows do not count as placed."""
        cdef double cost = self.predict(features, profile_indexes, profile_count, self.charged)
        self.shards[shard].placed += cost
        return cost

    # Placement

    cdef int place(self, const double* features, const int* profile_indexes, int profile_count,
                   int only_shard) noexcept nogil:
        """Place a root row whose key the shard will generate."""
        cdef double cost = self.predict(features, profile_indexes, profile_count, self.decision.predicted)
        return self.place_cost(cost, features[0], 0, False, only_shard)

    cdef int place_key(self, uint64_t key_hash, const double* features, const int* profile_indexes, int profile_count,
                       int only_shard) noexcept nogil:
        """Place a root row whose key the client supplied."""
        cdef double cost = self.predict(features, profile_indexes, profile_count, self.decision.predicted)
        return self.place_cost(cost, features[0], key_hash, True, only_shard)

    cdef int place_cost(self, double cost, double rows, uint64_t key_hash, bint keyed, int only_shard) noexcept nogil:
        """Decide and charge."""
        cdef Shard* state
        self.decide(cost, key_hash, keyed, only_shard)
        self.counter += 1
        self.reason_totals[self.decision.reason] += 1
        self.learn_threshold(cost)
        self.learn_mean(cost, rows)
        if self.decision.chosen >= 0:
            state = &self.shards[self.decision.chosen]
            state.placed += cost
            state.rows += rows
        return self.decision.chosen

    @cython.cdivision(True)
    cdef void learn_threshold(self, double cost) noexcept nogil:
        """Move the running 95th percentile of cost. Costs of 0 say nothing about what is heavy."""
        cdef double step
        if cost <= 0:
            return
        self.common.heavy_samples += 1
        if self.common.heavy_threshold <= 0:
            self.common.heavy_threshold = cost
            return
        step = STEP_FIRST / self.common.heavy_samples
        step = STEP_MAX if step > STEP_MAX else STEP_MIN if step < STEP_MIN else step
        if cost >= self.common.heavy_threshold:
            self.common.heavy_threshold *= 1 + step * (1 - HEAVY_SHARE)
        else:
            self.common.heavy_threshold /= 1 + step * HEAVY_SHARE

    @cython.cdivision(True)
    cdef void learn_mean(self, double cost, double rows) noexcept nogil:
        """Move the running mean of the cost of one row."""
        if rows > 0 and cost > 0:
            self.costed += 1
            self.mean_cost += (cost / rows - self.mean_cost) / <double> min(self.costed, MEAN_ROWS)

    cdef void decide(self, double cost, uint64_t key_hash, bint keyed, int only_shard) noexcept nogil:
        """Fill the decision; nothing is charged."""
        cdef Decision* made = &self.decision
        cdef int up_count = 0
        cdef int up = -1
        cdef int shard
        made.cost = cost
        made.threshold = self.common.heavy_threshold
        made.heavy = cost > 0 and cost >= made.threshold
        made.candidate_count = 0
        for shard in range(self.state.shard_count):
            if can_take(self, shard):
                up_count += 1
                up = shard
        if only_shard >= 0:
            self.settle(only_shard, REASON_TRANSACTION)
        elif up_count == 0:
            self.settle(-1, REASON_NONE_UP)
        elif up_count == 1:
            self.settle(up, REASON_ONLY_SHARD)
        else:
            self.decide_by_policy(cost, key_hash, keyed)
        if made.candidate_count == 0 and made.chosen >= 0:
            made.candidate_count = 1
            made.shards[0] = made.chosen
            made.buckets[0] = -1
            self.weigh(cost)

    cdef bint has_bucket(self, int shard) noexcept nogil:
        """The shard has a bucket that stays."""
        cdef uint64_t leaving = self.frozen_bucket >= 0 and self.state.shard_of_bucket(self.frozen_bucket) == shard
        return self.shards[shard].buckets > leaving

    cdef void settle(self, int shard, int reason) noexcept nogil:
        self.decision.chosen = shard
        self.decision.reason = reason

    @cython.cdivision(True)
    cdef void decide_by_policy(self, double cost, uint64_t key_hash, bint keyed) noexcept nogil:
        """Choose among at least two shards that can take rows."""
        cdef int best
        if self.policy == POLICY_COST_HASH:
            # The literal rule hash(cost) % n, which this policy is there to show.
            self.settle(<int> (mix64(double_bits(cost)) % <uint64_t> self.state.shard_count), REASON_COST_HASH)
        elif self.policy == POLICY_LEAST_LOADED:
            self.settle(self.lightest_of_all(), REASON_LEAST_LOADED)
        else:
            self.propose(cost, key_hash, keyed)
            self.weigh(cost)
            if self.policy == POLICY_KEY_HASH:
                self.settle(self.decision.shards[0], REASON_KEY_HASH)
            elif self.policy == POLICY_TWO_CHOICES:
                best = self.lightest(0, 2, False)
                self.settle(self.decision.shards[best if best >= 0 else 0], REASON_TWO_CHOICES)
            else:
                self.decide_bounded()
        if not can_take(self, self.decision.chosen):
            self.settle(self.next_up(self.decision.chosen), REASON_FALLBACK)

    cdef void propose(self, double cost, uint64_t key_hash, bint keyed) noexcept nogil:
        """The candidate buckets and their owners; candidate 0 of a supplied key is its home."""
        cdef Decision* made = &self.decision
        cdef uint64_t seed
        cdef int i
        if keyed:
            seed = key_hash
        else:
            seed = mix64(self.salt + self.counter) + <uint64_t> cost_class(cost)
        made.candidate_count = (
            1 if self.policy == POLICY_KEY_HASH else 2 if self.policy == POLICY_TWO_CHOICES else CANDIDATE_COUNT
        )
        for i in range(made.candidate_count):
            if keyed and i == 0:
                made.buckets[i] = home_of_hash(key_hash)
            else:
                made.buckets[i] = home_of_hash(mix64(seed + <uint64_t> i * <uint64_t> 0xD1B54A32D192ED03))
            made.shards[i] = self.state.shard_of_bucket(made.buckets[i])

    @cython.cdivision(True)
    cdef void weigh(self, double cost) noexcept nogil:
        """Loads, caps and row counts of the candidates, against all shards that are up."""
        cdef Decision* made = &self.decision
        cdef double load_total = cost
        cdef double weight_total = 0
        cdef double rows_total = 0
        cdef double rows
        cdef Shard* state
        cdef int i
        for i in range(self.state.shard_count):
            state = &self.shards[i]
            if can_take(self, i):
                load_total += self.state.load(i)
                weight_total += state.weight
                rows_total += self.state.rows_placed(i)
        for i in range(made.candidate_count):
            state = &self.shards[made.shards[i]]
            rows = self.state.rows_placed(made.shards[i])
            made.loads[i] = self.state.load(made.shards[i])
            made.caps[i] = self.bound * state.weight * load_total / weight_total if weight_total > 0 else 0
            made.crowded[i] = (
                weight_total > 0
                and rows > ROWS_BOUND * rows_total * state.weight / weight_total + ROWS_SLACK
            )

    cdef bint lighter(self, int one, int other) noexcept nogil:
        """Whether candidate `one` has less load per weight than candidate `other`."""
        cdef Decision* made = &self.decision
        return (
            made.loads[one] * self.shards[made.shards[other]].weight
            < made.loads[other] * self.shards[made.shards[one]].weight
        )

    cdef int lightest(self, int first, int end, bint spare_crowded) noexcept nogil:
        """Lightest candidate in [first, end) whose shard is up; -1 when there is none."""
        cdef Decision* made = &self.decision
        cdef int best = -1
        cdef int i
        for i in range(first, end):
            if not can_take(self, made.shards[i]) or (spare_crowded and made.crowded[i]):
                continue
            if best < 0 or self.lighter(i, best):
                best = i
        return best

    cdef void decide_bounded(self) noexcept nogil:
        """Rules 2 to 4 over the weighed candidates."""
        cdef Decision* made = &self.decision
        cdef bint spare = self.lightest(0, CANDIDATE_COUNT, True) >= 0
        cdef bint stays = self.lightest(0, 1, spare) == 0
        cdef int best
        if made.heavy:
            best = self.lightest(0, CANDIDATE_COUNT, spare)
            self.settle(made.shards[best if best >= 0 else 0], REASON_HEAVY_LIGHTEST)
            return
        if stays and made.loads[0] <= made.caps[0]:
            self.settle(made.shards[0], REASON_CANDIDATE_0)
            return
        best = self.lightest(1, 3, spare)
        if best < 0:
            best = self.lightest(3, 4, spare)
        if best < 0 or (stays and not self.lighter(best, 0)):
            best = 0
        self.settle(made.shards[best], REASON_LIGHTER_OF_TWO if best else REASON_CANDIDATE_0)

    @cython.cdivision(True)
    cdef int lightest_of_all(self) noexcept nogil:
        """The shard with the least load per weight among those up."""
        cdef int best = -1
        cdef double best_load = 0
        cdef double load
        cdef int shard
        for shard in range(self.state.shard_count):
            if can_take(self, shard):
                load = self.state.load(shard) / self.shards[shard].weight
                if best < 0 or load < best_load:
                    best = shard
                    best_load = load
        return best

    @cython.cdivision(True)
    cdef int next_up(self, int shard) noexcept nogil:
        """The first shard that is up after `shard`, around the end; -1 when there is none."""
        cdef int i
        cdef int other
        for i in range(1, self.state.shard_count + 1):
            other = (shard + i) % self.state.shard_count
            if can_take(self, other):
                return other
        return -1

    # Buckets for backends

    cdef int next_bucket(self, int shard) noexcept nogil:
        """Rotate over the buckets that a shard owns."""
        cdef int i
        cdef int bucket
        for i in range(1, BUCKET_COUNT + 1):
            bucket = (self.cursors[shard] + i) & (BUCKET_COUNT - 1)
            if self.state.shard_of_bucket(bucket) == shard and bucket != self.frozen_bucket:
                self.cursors[shard] = bucket
                return bucket
        return -1

    cdef double bucket_cost_share(self) noexcept nogil:
        """The mean cost of as many rows as a turn has; without limit as long as no row has cost anything."""
        return BUCKET_ROWS_SHARE * self.mean_cost if self.costed else INFINITY

    # For Python

    @property
    def policy_name(self) -> str:
        """One of POLICIES."""
        return POLICIES[self.policy]

    cdef int read_write(self, object features, object profiles, double* x, int* indexes) except -1:
        """Unpack Python features and profile indexes; answers the number of profiles."""
        if len(features) != 4:
            raise ValueError("features are [rows, size, complexity, volume]")
        if len(profiles) > WRITE_PROFILES_MAX:
            raise ValueError(f"a write fires at most {int(WRITE_PROFILES_MAX)} profiles here")
        for i in range(4):
            x[i] = features[i]
        for i, index in enumerate(profiles):
            indexes[i] = index
        return <int> len(profiles)

    def explain(self, features, profiles, only_shard: int = -1, key_hash=None) -> dict:
        """The decision that would be made now, charged to nobody."""
        cdef double x[4]
        cdef int indexes[WRITE_PROFILES_MAX]
        cdef int count = self.read_write(features, profiles, x, indexes)
        cdef Decision last = self.decision
        cdef double cost = self.predict(x, indexes, count, self.decision.predicted)
        self.decide(cost, 0 if key_hash is None else key_hash, key_hash is not None, checked(self.state, only_shard))
        answer = self.last_decision()
        self.decision = last
        return answer

    def last_decision(self) -> dict:
        """The last decision in words; costs in seconds of a shard, `predicted` in each resource's own unit."""
        cdef Decision* made = &self.decision
        return {
            "policy": self.policy_name,
            "predicted": [made.predicted[i] for i in range(4)],
            "cost": made.cost,
            "heavy_threshold": made.threshold,
            "heavy": bool(made.heavy),
            "candidates": [
                {
                    "bucket": made.buckets[i] if made.buckets[i] >= 0 else None,
                    "shard": made.shards[i],
                    "load": made.loads[i],
                    "cap": made.caps[i],
                    "crowded": bool(made.crowded[i]),
                }
                for i in range(made.candidate_count)
            ],
            "chosen": made.chosen if made.chosen >= 0 else None,
            "reason": REASONS[made.reason],
        }

    def reason_counts(self) -> dict:
        """How many placements this process charged, by reason; reasons that never were are left out."""
        return {reason: self.reason_totals[i] for i, reason in enumerate(REASONS) if self.reason_totals[i]}

    def place_row(self, features, profiles, only_shard: int = -1, key_hash=None) -> int:
        """What the router does for one write: shard, or -1 when none is up."""
        cdef double x[4]
        cdef int indexes[WRITE_PROFILES_MAX]
        cdef int count = self.read_write(features, profiles, x, indexes)
        if key_hash is None:
            return self.place(x, indexes, count, checked(self.state, only_shard))
        return self.place_key(key_hash, x, indexes, count, checked(self.state, only_shard))

    def place_known(self, cost: float, rows: float = 1.0, key_hash=None, only_shard: int = -1) -> int:
        """Place a row whose cost is known already; for ledgers, simulations and tests."""
        keyed = key_hash is not None
        return self.place_cost(cost, rows, key_hash if keyed else 0, keyed, checked(self.state, only_shard))

    def charge_write(self, shard: int, features, profiles) -> float:
        """Charge a write without a choice; answers its predicted cost."""
        cdef double x[4]
        cdef int indexes[WRITE_PROFILES_MAX]
        cdef int count = self.read_write(features, profiles, x, indexes)
        return self.charge(self.state.checked(shard), x, indexes, count)

    def charge_known(self, shard: int, cost: float) -> None:
        """Charge a known predicted cost to a shard."""
        self.shards[self.state.checked(shard)].placed += cost

    def take_bucket(self, shard: int) -> int:
        """The next bucket for a backend of this shard; -1 when it owns none."""
        return self.next_bucket(self.state.checked(shard))

    def cost_share(self) -> float:
        """Predicted cost after which a backend should ask for its next bucket."""
        return self.bucket_cost_share()


cdef int checked(SharedState state, int only_shard) except -2:
    """A shard index, or -1 for any."""
    return state.checked(only_shard) if only_shard >= 0 else -1
