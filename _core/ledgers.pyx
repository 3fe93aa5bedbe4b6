"""Shadow ledgers: what the shards would carry had each of the other policies placed the rows.

Every policy is the real Placer over a private state: it decides on the loads that its own decisions made. A row is
known by its table's number and its bigint key, which stands in for the hash of a client's key, so that `key-hash` is
the home of the key itself. A row seen first by its measurement (older than the ledgers, or forgotten) is placed then,
at no predicted cost. Memory is bounded: when a set of the table is full, its oldest row is forgotten.
"""

cimport cython
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport calloc, free

from foreshard._core.buckets cimport home_hash
from foreshard._core.hashing cimport mix64
from foreshard._core.placement cimport Placer
from foreshard._core.shared cimport POLICY_COUNT, SharedState

from foreshard._core.shared import POLICIES

cdef enum:
    SET_SIZE = 4
    ROWS_MAX = 1 << 19      # 20 MiB of table, touched as it fills


@cython.final
cdef class ShadowLedgers:
    """Owned by the controller, fed with every placed row and every measurement."""

    def __cinit__(self, shard_count: int, weights=None, bound: float = 1.05, rows_max: int = ROWS_MAX, seed: int = 0):
        """`rows_max` is rounded up to a power of two, at least SET_SIZE."""
        cdef uint64_t sets = 1
        while sets * SET_SIZE < rows_max:
            sets *= 2
        self.set_mask = sets - 1
        self.rows = <Row*> calloc(sets * SET_SIZE, sizeof(Row))
        if self.rows == NULL:
            raise MemoryError()
        self.placers = [Placer(SharedState.private(shard_count), policy, bound, seed) for policy in POLICIES]
        for shard, weight in enumerate([] if weights is None else weights):
            self.set_weight(shard, weight)

    def __dealloc__(self):
        free(self.rows)

    cdef Row* find(self, int table, int64_t key, bint* known) noexcept:
        """The row of a key, or the place for it: an empty one, else the oldest of its set."""
        cdef Row* row = self.rows + (mix64(<uint64_t> key + <uint64_t> table) & self.set_mask) * SET_SIZE
        cdef Row* oldest = row
        cdef int i
        for i in range(SET_SIZE):
            if row[i].stamp and row[i].key == key and row[i].table == table:
                known[0] = True
                return row + i
            if row[i].stamp < oldest.stamp:
                oldest = row + i
        known[0] = False
        return oldest

    cdef int settle(self, Row* row) except -1:
        """What was predicted for the row is no longer pending."""
        cdef Placer placer
        cdef int i
        if row.pending:
            for i in range(POLICY_COUNT):
                placer = self.placers[i]
                placer.shards[row.shards[i]].settled += row.pending
            row.pending = 0
        return 0

    cdef Row* place(self, int table, int64_t key, double cost) except NULL:
        """The row of a key; placed by every policy when it is not known."""
        cdef bint known
        cdef Row* row = self.find(table, key, &known)
        cdef Placer placer
        cdef int shard
        cdef int i
        if known:
            return row
        self.count += row.stamp == 0
        self.settle(row)
        self.clock += 1
        row.key = key
        row.table = table
        row.stamp = self.clock
        row.pending = cost
        for i in range(POLICY_COUNT):
            placer = self.placers[i]
            shard = placer.place_cost(cost, 1, home_hash(key), True, -1)
            row.shards[i] = shard if shard >= 0 else 0
        return row

    def insert(self, key: int, predicted_cost: float, table: int = 0) -> None:
        """Let every policy place a new row. One that is known already stays where it is.

        Tables generate their keys apart: `table` is any number that tells them apart.
        """
        self.place(table, key, predicted_cost)

    def charge(self, key: int, measured_cost: float, table: int = 0) -> None:
        """Add the measured cost of a call for this row to the shards where the policies put it."""
        cdef Row* row = self.place(table, key, 0)
        cdef Placer placer
        cdef int i
        self.settle(row)
        for i in range(POLICY_COUNT):
            placer = self.placers[i]
            placer.shards[row.shards[i]].measured += measured_cost

    def loads(self) -> dict:
        """Measured cost by policy and shard."""
        return {policy: [load.measured for load in placer.state.shards()]
                for policy, placer in zip(POLICIES, self.placers, strict=True)}

    def set_bucket_map(self, owners, epoch: int) -> None:
        """Follow the deployment's bucket map; rows stay where the policies put them."""
        for placer in self.placers:
            placer.state.set_bucket_map(owners, epoch)

    def set_up(self, shard: int, up: bool) -> None:
        """Follow a shard that went down or came up."""
        for placer in self.placers:
            placer.state.set_up(shard, up)

    def set_weight(self, shard: int, weight: float) -> None:
        """Follow a shard's weight."""
        for placer in self.placers:
            placer.state.set_weight(shard, weight)

    def shards_of(self, key: int, table: int = 0):
        """Where each policy put a row; None when it is not known."""
        cdef bint known
        cdef Row* row = self.find(table, key, &known)
        return {policy: row.shards[i] for i, policy in enumerate(POLICIES)} if known else None

    def __len__(self) -> int:
        return self.count
