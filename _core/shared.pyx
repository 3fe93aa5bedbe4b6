"""State that the processes of one server share: a memory-mapped file, read on the hot path without locks.

Rules:
1. Every field has one writing process, named in shared.pxd; the router's fields lie in cache lines of their own.
2. A field of one word is written in one store. What is wider (the bucket map, a profile) changes under a sequence
   counter: odd while it changes; a reader that saw it odd or changed reads again.
3. The hot path never waits: after RETRIES_MAX it takes what it has read, words that are each valid, at worst of two
   versions of one model. Readers of whole things wait for a writer that was interrupted inside a change, for WAITS_MAX
   moments; one that died there is not waited for longer, and its successor makes the counter even again.
4. The header is written before the file gets its name, and never again; it has room for more shards than there are,
   for shards come and go while the file is in use (`resize`).
"""

import mmap
import os

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint16_t, uint64_t
from libc.string cimport memcpy, memset
from posix.unistd cimport usleep

import numpy as np

from foreshard._core.buckets cimport BUCKET_COUNT, SHARDS_MAX, fill_initial_map
from foreshard._core.hashing cimport mix64
from foreshard._core.model cimport Model

from foreshard._core.errors import ForeshardError
from foreshard._core.state_values import ProfileState, ShardLoad

cdef extern from *:
    """
    static inline uint64_t foreshard_load(const uint64_t *word) { return __atomic_load_n(word, __ATOMIC_ACQUIRE); }
    static inline void foreshard_store(uint64_t *word, uint64_t value) {
        __atomic_store_n(word, value, __ATOMIC_RELEASE);
    }
    static inline void foreshard_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
    """
    uint64_t foreshard_load(const uint64_t* word) noexcept nogil
    void foreshard_store(uint64_t* word, uint64_t value) noexcept nogil
    void foreshard_fence() noexcept nogil

POLICIES = ("bounded", "key-hash", "cost-hash", "two-choices", "least-loaded")

cdef uint64_t MAGIC = 0x4452414853524F46    # "FORSHARD" in a little-endian file
cdef uint64_t LAYOUT_VERSION = 4
cdef enum:
    RETRIES_MAX = 64        # a change takes under a microsecond: more means that its writer is not running
    WAITS_MAX = 10_000      # of WAIT_US each: a second in all
    WAIT_US = 100
    LINE_SIZE = 64


cdef Py_ssize_t whole_lines(Py_ssize_t size) noexcept:
    return (size + LINE_SIZE - 1) // LINE_SIZE * LINE_SIZE


cdef uint64_t layout_digest(int places, int profile_count) noexcept:
    cdef uint64_t digest = mix64(LAYOUT_VERSION)
    digest = mix64(digest ^ sizeof(Header)) + sizeof(Common)
    digest = mix64(digest) + sizeof(Shard)
    digest = mix64(digest) + sizeof(Profile)
    digest = mix64(digest) + sizeof(Demand)
    digest = mix64(digest) + BUCKET_COUNT * POLICY_COUNT
    digest = mix64(digest) + <uint64_t> places
    return mix64(digest) + <uint64_t> profile_count


cdef Py_ssize_t state_size(int places, int profile_count) noexcept:
    return (
        whole_lines(sizeof(Header))
        + whole_lines(sizeof(Common))
        + whole_lines(BUCKET_COUNT * sizeof(uint16_t))
        + whole_lines(places * <Py_ssize_t> sizeof(Shard))
        + whole_lines(profile_count * <Py_ssize_t> sizeof(Profile))
        + whole_lines(POLICY_COUNT * places * <Py_ssize_t> sizeof(double))
        + BUCKET_COUNT * <Py_ssize_t> sizeof(Demand)
    )


cdef inline void predict_cost(const Model* model, const double* x, double* cost) noexcept nogil:
    """Cost per resource of one row, clipped to what the profile can cost."""
    cdef int i
    for i in range(4):
        cost[i] = (
            model.weights[i][0] * x[0] + model.weights[i][1] * x[1]
            + model.weights[i][2] * x[2] + model.weights[i][3] * x[3]
        )
        if cost[i] > model.ceilings[i]:
            cost[i] = model.ceilings[i]
        if cost[i] < model.floors[i]:
            cost[i] = model.floors[i]


@cython.cdivision(True)
cdef inline double scalar_cost(const double* cost, const double* capacities) noexcept nogil:
    cdef double largest = 0
    cdef int i
    for i in range(4):
        if cost[i] > largest * capacities[i]:
            largest = cost[i] / capacities[i]
    return largest


cdef inline void begin_change(uint64_t* sequence) noexcept nogil:
    """Make a sequence counter odd; it may be odd already when a writer died."""
    foreshard_store(sequence, sequence[0] | 1)
    foreshard_fence()


cdef inline void end_change(uint64_t* sequence) noexcept nogil:
    foreshard_fence()
    foreshard_store(sequence, sequence[0] + 1)


cdef bint is_whole(const uint64_t* sequence, uint64_t before, int tries) noexcept nogil:
    """Whether what was read since the counter was `before` is of one version; else wait a moment, up to a limit."""
    foreshard_fence()
    if not before & 1 and foreshard_load(sequence) == before:
        return True
    if tries > RETRIES_MAX:
        usleep(WAIT_US)
    return tries > RETRIES_MAX + WAITS_MAX


@cython.final
cdef class SharedState:
    """The mapped state. Made by create, open, attach or private; lives until nobody refers to it."""

    def __cinit__(self):
        self.header = NULL

    def __dealloc__(self):
        if self.header != NULL:
            PyBuffer_Release(&self.region)

    # Making and opening

    cdef int map_parts(self, object mapping, str path, int places, int profile_count) except -1:
        """Point at the parts inside `mapping`, which is large enough for them."""
        cdef char* at
        PyObject_GetBuffer(mapping, &self.region, PyBUF_SIMPLE | PyBUF_WRITABLE)
        self.places = places
        self.profile_count = profile_count
        self.path = path
        at = <char*> self.region.buf
        self.header = <Header*> at
        at += whole_lines(sizeof(Header))
        self.common = <Common*> at
        at += whole_lines(sizeof(Common))
        self.owners = <uint16_t*> at
        at += whole_lines(BUCKET_COUNT * sizeof(uint16_t))
        self.shard_states = <Shard*> at
        at += whole_lines(places * <Py_ssize_t> sizeof(Shard))
        self.profiles = <Profile*> at
        at += whole_lines(profile_count * <Py_ssize_t> sizeof(Profile))
        self.ledger_costs = <double*> at
        at += whole_lines(POLICY_COUNT * places * <Py_ssize_t> sizeof(double))
        self.demands = <Demand*> at
        return 0

    cdef void fill(self, int shard_count, uint64_t fingerprint) noexcept:
        """First values: jump hash map, all shards up with weight 1, no load, profiles that predict nothing."""
        cdef int i
        self.header.magic = MAGIC
        self.header.layout = layout_digest(self.places, self.profile_count)
        self.header.fingerprint = fingerprint
        self.header.shard_count = shard_count
        self.header.places = self.places
        self.header.profile_count = self.profile_count
        self.shard_count = shard_count
        fill_initial_map(self.owners, shard_count)
        self.count_buckets()
        for i in range(4):
            self.common.capacities[i] = 1.0
        self.common.proxies = 1
        for i in range(self.places):
            self.shard_states[i].weight = 1.0
            self.shard_states[i].up = 1

    def resize(self, shard_count: int) -> None:
        """There are so many shards from now on, as this process sees it. ValueError where there is no room."""
        if not 1 <= shard_count <= self.places:
            raise ValueError(f"this state has room for 1..{self.places} shards, not {shard_count}")
        self.shard_count, self.has_scarce = shard_count, True       # until the map is set anew

    def clear_shard(self, shard: int) -> None:
        """What is known was of another shard, which had the place before (supervisor)."""
        memset(&self.shard_states[self.checked(shard)], 0, sizeof(Shard))
        self.shard_states[shard].weight = 1.0
        self.shard_states[shard].up = 1

    @staticmethod
    def create(path, shard_count: int, profile_count: int, fingerprint: int = 0) -> SharedState:
        """Make a new file at `path`, in place of any that is there; who has that one mapped keeps it."""
        check_dimensions(shard_count, profile_count, SHARDS_MAX)
        name = os.fspath(path)
        draft = f"{name}.{os.getpid()}"
        size = state_size(SHARDS_MAX, profile_count)
        descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(descriptor, size)
            mapping = mmap.mmap(descriptor, size)
        finally:
            os.close(descriptor)
        cdef SharedState state = SharedState()
        state.map_parts(mapping, name, SHARDS_MAX, profile_count)
        state.fill(shard_count, fingerprint)
        os.rename(draft, name)
        return state

    @staticmethod
    def open(path, shard_count=None, profile_count=None, fingerprint=None) -> SharedState:
        """Map an existing file. ForeshardError when it is missing, damaged, or made for something else."""
        name = os.fspath(path)
        try:
            descriptor = os.open(name, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            raise ForeshardError(f"{name}: no shared state here; `foreshard serve` makes it") from None
        try:
            size = os.fstat(descriptor).st_size
            if size < <Py_ssize_t> sizeof(Header):
                raise ForeshardError(f"{name}: not a shared state file of Foreshard ({size} bytes)")
            mapping = mmap.mmap(descriptor, size)
        finally:
            os.close(descriptor)
        places, profiles = check_header(name, mapping, profile_count, fingerprint)
        cdef SharedState state = SharedState()
        state.map_parts(mapping, name, places, profiles)
        state.resize(state.header.shard_count if shard_count is None else shard_count)
        return state

    @staticmethod
    def attach(path, shard_count: int, profile_count: int, fingerprint: int = 0) -> SharedState:
        """Open the file at `path` when it was made for the same dimensions and fingerprint, else make it anew."""
        try:
            return SharedState.open(path, shard_count, profile_count, fingerprint)
        except ForeshardError:
            return SharedState.create(path, shard_count, profile_count, fingerprint)

    @staticmethod
    def private(shard_count: int, profile_count: int = 0) -> SharedState:
        """The same without a file: for shadow ledgers, tests and simulations."""
        check_dimensions(shard_count, profile_count, BUCKET_COUNT)
        cdef SharedState state = SharedState()
        state.map_parts(mmap.mmap(-1, state_size(shard_count, profile_count)), "", shard_count, profile_count)
        state.fill(shard_count, 0)
        return state

    # The hot path

    cdef int shard_of_bucket(self, int bucket) noexcept nogil:
        """Owner of a bucket, which must be in range."""
        return self.owners[bucket]

    cdef double load(self, int shard) noexcept nogil:
        """Cost on a shard in seconds of a shard."""
        cdef Shard* state = &self.shard_states[shard]
        cdef double load = state.measured + state.others_measured
        # Only the sum is what waits on the shard: who has measured it is not who has placed it.
        cdef double pending = state.placed - state.settled + state.others_pending
        cdef double untold = (self.common.proxies - 1) * (state.placed - state.told_placed)
        if pending > 0:
            load += pending
        return load + untold if untold > 0 else load

    cdef double rows_placed(self, int shard) noexcept nogil:
        """Root rows on a shard."""
        cdef Shard* state = &self.shard_states[shard]
        cdef double untold = (self.common.proxies - 1) * (state.rows - state.told_rows)
        return state.rows + state.others_rows + (untold if untold > 0 else 0)

    @cython.cdivision(True)
    cdef void add_prediction(self, int profile, const double* features, double* by_resource) noexcept nogil:
        """Add one profile's predicted cost of a statement of features[0] rows: rows x the cost of their mean."""
        cdef Profile* entry = &self.profiles[profile]
        cdef double rows = features[0] if features[0] > 1 else 1
        cdef double mean_row[4]
        cdef double cost[4]
        cdef uint64_t before
        cdef int i
        for i in range(4):
            mean_row[i] = features[i] / rows
        for _ in range(RETRIES_MAX):
            before = foreshard_load(&entry.sequence)
            if entry.flags & PROFILE_DEGRADED:
                memcpy(cost, entry.means, sizeof(cost))
            else:
                predict_cost(&entry.model, mean_row, cost)
            foreshard_fence()
            if not before & 1 and foreshard_load(&entry.sequence) == before:
                break
        for i in range(4):
            by_resource[i] += cost[i] * rows

    cdef void count_statement(self, int bucket, uint64_t rows) noexcept nogil:
        if rows:
            self.demands[bucket].rows += rows
        else:
            self.demands[bucket].reads += 1

    cdef void add_demand(self, int bucket, const double* by_resource) noexcept nogil:
        cdef int i
        for i in range(4):
            self.demands[bucket].costs[i] += by_resource[i]

    cdef double scalar(self, const double* by_resource) noexcept nogil:
        """Scalar cost of a cost vector."""
        return scalar_cost(by_resource, self.common.capacities)

    # For Python: demand

    def demand(self):
        """(reads, rows written, predicted costs) of every bucket since the file was made; the last is buckets x 4."""
        words = np.frombuffer((<char*> self.demands)[:BUCKET_COUNT * sizeof(Demand)], dtype=np.uint64)
        words = words.reshape(BUCKET_COUNT, sizeof(Demand) // 8)
        return words[:, 0].copy(), words[:, 1].copy(), words[:, 2:6].view(np.float64).copy()

    # For Python: the bucket map

    @property
    def fingerprint(self) -> int:
        """What the maker of the file says its indexes mean."""
        return self.header.fingerprint

    @property
    def epoch(self) -> int:
        """Version of the bucket map."""
        return self.common.epoch

    @property
    def heavy_threshold(self) -> float:
        """Running 95th percentile of predicted cost."""
        return self.common.heavy_threshold

    def bucket_map(self):
        """(epoch, copy of the owners): both of one version."""
        cdef uint16_t owners[BUCKET_COUNT]
        cdef uint64_t before
        cdef uint64_t epoch
        cdef int tries = 0
        while True:
            before = foreshard_load(&self.common.map_sequence)
            epoch = self.common.epoch
            memcpy(owners, self.owners, sizeof(owners))
            tries += 1
            if is_whole(&self.common.map_sequence, before, tries):
                break
        return epoch, np.frombuffer((<char*> owners)[:sizeof(owners)], dtype=np.uint16)

    def set_bucket_map(self, owners, epoch: int) -> None:
        """Replace the whole map (controller). ValueError for a wrong length or an unknown shard."""
        entries = [int(owner) for owner in owners]
        if len(entries) != BUCKET_COUNT:
            raise ValueError(f"a bucket map has {int(BUCKET_COUNT)} entries, not {len(entries)}")
        cdef uint16_t fresh[BUCKET_COUNT]
        cdef int i
        for i in range(BUCKET_COUNT):
            fresh[i] = <uint16_t> self.checked(entries[i])
        begin_change(&self.common.map_sequence)
        memcpy(self.owners, fresh, sizeof(fresh))
        self.common.epoch = epoch
        end_change(&self.common.map_sequence)
        self.count_buckets()

    cdef void count_buckets(self) noexcept nogil:
        """How many buckets each shard has by the map."""
        cdef int i
        for i in range(self.places):
            self.shard_states[i].buckets = 0
        for i in range(BUCKET_COUNT):
            self.shard_states[self.owners[i]].buckets += 1
        self.has_scarce = False
        for i in range(self.shard_count):
            self.has_scarce |= self.shard_states[i].buckets <= 1

    def owner_of(self, bucket: int) -> int:
        """Owner of one bucket; IndexError out of range."""
        if not 0 <= bucket < BUCKET_COUNT:
            raise IndexError(f"bucket {bucket} is not in 0..{int(BUCKET_COUNT) - 1}")
        return self.shard_of_bucket(bucket)

    # For Python: shards

    cdef int checked(self, int shard) except -1:
        if not 0 <= shard < self.shard_count:
            raise IndexError(f"shard {shard} is not in 0..{self.shard_count - 1}")
        return shard

    def shard(self, shard: int) -> ShardLoad:
        """What placement knows about one shard."""
        cdef Shard* state = &self.shard_states[self.checked(shard)]
        cdef int buckets = 0
        cdef int i
        for i in range(BUCKET_COUNT):
            buckets += self.owners[i] == shard
        return ShardLoad(
            state.weight, state.up != 0, state.measured, state.placed, state.settled, state.rows, self.load(shard),
            buckets, state.others_measured, state.others_pending, state.others_rows,
        )

    def shards(self) -> list[ShardLoad]:
        """The same for all, by index."""
        return [self.shard(shard) for shard in range(self.shard_count)]

    def loads(self) -> list[float]:
        """Load of every shard."""
        return [self.load(shard) for shard in range(self.shard_count)]

    def set_weight(self, shard: int, weight: float) -> None:
        """What the shard takes relative to others (controller). ValueError unless above 0."""
        if not weight > 0:
            raise ValueError(f"a shard's weight is above 0, not {weight}")
        self.shard_states[self.checked(shard)].weight = weight

    def set_up(self, shard: int, up: bool) -> None:
        """Whether the shard may be chosen for new rows (controller)."""
        self.shard_states[self.checked(shard)].up = 1 if up else 0

    def add_measured(self, shard: int, cost: float, settled: float = 0.0) -> None:
        """Count measured cost, and the predicted cost it stands for as no longer pending (controller)."""
        cdef Shard* state = &self.shard_states[self.checked(shard)]
        state.settled += settled
        state.measured += cost

    def settle_all(self, shard: int, placed: float) -> None:
        """The outbox was seen empty: what had been placed by then is no longer pending (controller).

        `placed` is the shard's value read before the outbox was looked at, so that a row placed meanwhile stays.
        """
        self.shard_states[self.checked(shard)].settled = placed

    def reset_measured(self) -> None:
        """Begin a new epoch of loads: nothing measured, nothing pending (controller)."""
        cdef int i
        for i in range(self.shard_count):
            self.shard_states[i].settled = self.shard_states[i].placed
            self.shard_states[i].measured = 0

    # For Python: other proxies on the same shards

    @property
    def proxies(self) -> int:
        """How many proxies place rows on these shards, as far as is known."""
        return self.common.proxies

    @property
    def heard_s(self) -> float:
        """When the others were last heard of, in seconds of the Unix epoch; 0 for never."""
        return self.common.heard_s

    def set_others(
        self, shard: int, measured: float, pending: float, rows: float, told_placed: float, told_rows: float
    ) -> None:
        """What the others have told of a shard, summed, and `placed` and `rows` when they were told (controller)."""
        cdef Shard* state = &self.shard_states[self.checked(shard)]
        state.others_measured, state.others_pending, state.others_rows = measured, pending, rows
        state.told_placed, state.told_rows = told_placed, told_rows

    def set_proxies(self, count: int, heard_s: float) -> None:
        """So many proxies place rows, this one included (controller). ValueError below 1."""
        if count < 1:
            raise ValueError(f"there is at least one proxy, not {count}")
        self.common.proxies = count
        self.common.heard_s = heard_s

    # For Python: models

    def set_capacities(self, capacities) -> None:
        """What one shard gives per second of each resource (controller). ValueError unless four, all above 0."""
        values = [float(value) for value in capacities]
        if len(values) != 4 or not all(value > 0 for value in values):
            raise ValueError("capacities are four numbers above 0: CPU, memory, I/O, network")
        for i in range(4):
            self.common.capacities[i] = values[i]

    def capacities(self) -> list[float]:
        """What one shard gives per second of each resource."""
        return [self.common.capacities[i] for i in range(4)]

    def scalar_of(self, by_resource) -> float:
        """Scalar cost of a cost vector; an unknown (None) resource does not count."""
        cdef double cost[4]
        fill_doubles(cost, [0.0 if value is None else value for value in by_resource], 4)
        return self.scalar(cost)

    cdef Profile* profile_at(self, int profile) except NULL:
        if not 0 <= profile < self.profile_count:
            raise IndexError(f"profile {profile} is not in 0..{self.profile_count - 1}")
        return &self.profiles[profile]

    def set_profile(
        self, profile: int, weights, floors, ceilings, means, samples: int, version: int, degraded: bool = False
    ) -> None:
        """Publish one profile (controller)."""
        cdef Profile* entry = self.profile_at(profile)
        cdef Profile fresh
        if len(weights) != 4:
            raise ValueError(f"weights are 4 lists, one per resource, not {len(weights)}")
        for i in range(4):
            fill_doubles(fresh.model.weights[i], weights[i], 4)
        fill_doubles(fresh.model.floors, floors, 4)
        fill_doubles(fresh.model.ceilings, ceilings, 4)
        fill_doubles(fresh.means, means, 4)
        fresh.samples = samples
        fresh.version = version
        begin_change(&entry.sequence)
        entry.samples = fresh.samples
        entry.version = fresh.version
        entry.flags = PROFILE_DEGRADED if degraded else 0
        memcpy(&entry.model, &fresh.model, sizeof(Model))
        memcpy(entry.means, fresh.means, sizeof(fresh.means))
        end_change(&entry.sequence)

    def profile(self, profile: int) -> ProfileState:
        """What is published of one profile."""
        cdef Profile* entry = self.profile_at(profile)
        cdef Profile copy
        cdef uint64_t before
        cdef int tries = 0
        while True:
            before = foreshard_load(&entry.sequence)
            memcpy(&copy, entry, sizeof(Profile))
            tries += 1
            if is_whole(&entry.sequence, before, tries):
                break
        return ProfileState(
            [[copy.model.weights[i][j] for j in range(4)] for i in range(4)],
            [copy.model.floors[i] for i in range(4)],
            [copy.model.ceilings[i] for i in range(4)],
            [copy.means[i] for i in range(4)],
            copy.samples,
            copy.version,
            bool(copy.flags & PROFILE_DEGRADED),
        )

    def predict(self, profile: int, features) -> list[float]:
        """Predicted cost per resource of a statement with these features, for one profile."""
        cdef double x[4]
        cdef double cost[4]
        self.profile_at(profile)
        fill_doubles(x, features, 4)
        fill_doubles(cost, (0, 0, 0, 0), 4)
        self.add_prediction(profile, x, cost)
        return [cost[i] for i in range(4)]

    # For Python: ledgers

    def set_ledger(self, policy: str, costs) -> None:
        """Publish the measured cost per shard, had `policy` placed the rows (controller)."""
        cdef int index = POLICIES.index(policy)
        fill_doubles(self.ledger_costs + index * self.places, costs, self.shard_count)

    def ledgers(self) -> dict[str, list[float]]:
        """Measured cost per shard, had each policy placed the rows."""
        return {
            policy: [self.ledger_costs[index * self.places + shard] for shard in range(self.shard_count)]
            for index, policy in enumerate(POLICIES)
        }


cdef int fill_doubles(double* target, object values, Py_ssize_t count) except -1:
    """Copy exactly `count` finite-or-infinite numbers; ValueError for another count."""
    if len(values) != count:
        raise ValueError(f"{count} numbers are needed, not {len(values)}")
    cdef Py_ssize_t i
    for i in range(count):
        target[i] = values[i]
    return 0


cdef int check_dimensions(int shard_count, int profile_count, int places) except -1:
    if not 1 <= shard_count <= places:
        raise ValueError(f"a deployment has 1..{places} shards, not {shard_count}")
    if profile_count < 0:
        raise ValueError(f"there are no fewer than 0 profiles, not {profile_count}")
    return 0


cdef tuple check_header(str name, object mapping, object profile_count, object fingerprint):
    """(places, profiles) of a mapped file that fits what is asked of it; ForeshardError when it does not."""
    cdef Header header
    cdef bytes head = mapping[:sizeof(Header)]
    memcpy(&header, <const char*> head, sizeof(Header))
    if header.magic != MAGIC:
        raise ForeshardError(f"{name}: not a shared state file of Foreshard")
    places = header.places
    profiles = header.profile_count
    if profile_count is not None and profiles != profile_count:
        raise ForeshardError(
            f"{name}: made for {profiles} profiles, the configuration has {profile_count}; restart the server")
    fits = 1 <= places <= BUCKET_COUNT and 0 <= profiles < 1 << 24
    if not fits or header.layout != layout_digest(places, profiles):
        raise ForeshardError(f"{name}: made by another version of Foreshard; restart the server")
    if len(mapping) < state_size(places, profiles):
        raise ForeshardError(f"{name}: shorter than its own header says")
    if fingerprint is not None and header.fingerprint != fingerprint:
        raise ForeshardError(f"{name}: made for other shards or trigger functions; restart the server")
    return places, profiles
