"""Buckets that are being moved: who works in one is waited for, who comes now waits.

While a bucket is frozen (Hub.freeze) no statement begins in it; transactions that have it open go on to their end.
When none has, the router lets the mover go ahead (proxy/control/placing.py). It knows of every transaction:

1. Which buckets it has written in, or those of its statements that may be all of them: scattered ones, those that the
   query node answers, claims (their homes are anywhere), triggers of users, and everything in REPEATABLE READ, whose
   snapshots are older than a move. This lasts until the transaction ends.
2. What its statements read, until the segment ends: in READ COMMITTED the next one takes another snapshot. With a
   portal or a cursor open it lasts as long as the transaction; with the unnamed portal, until all its parts are bound.
3. A transaction that has the frozen bucket open may go on in it, and do whatever it wants elsewhere: it is waited for.
4. Rows that are placed leave the frozen bucket (Session.join).
"""

from foreshard._core.template cimport (
    ROUTE_CARRY,
    ROUTE_COPY,
    ROUTE_KEYED,
    ROUTE_QUERY,
    ROUTE_SCATTER,
    Buckets,
    Template,
)
from foreshard._core.values cimport Values
from foreshard.proxy.wire.arbiter cimport Arbiter
from foreshard.proxy.wire.away cimport ROUTE_WAIT
from foreshard.proxy.wire.gather cimport ROUTE_CARRIED
from foreshard.proxy.wire.session cimport WAIT_FROZEN

from foreshard._core.errors import SqlError
from foreshard.proxy.wire.session import ISOLATION


cdef class Freezing(Arbiter):
    """The part of a frontend that knows which buckets its transaction has open."""

    def __cinit__(self):
        self.reading = BUCKET_NONE

    cdef int route(self, Template template, Values literals, Values params, int only) except -3:
        cdef int shard
        if self.hub.shard_count == 1:
            return Arbiter.route(self, template, literals, params, only)
        self.work_bucket = BUCKET_NONE
        self.work_buckets = None
        self.hub.buckets.clear()
        if not self.links:
            self.forget_touched()
        if is_wide(template) or self.is_repeatable or (self.keeps_snapshot and self.explicit):
            if not self.touch(BUCKET_ANY, stays(template) or self.is_repeatable or self.keeps_snapshot):
                return ROUTE_WAIT
            shard = Arbiter.route(self, template, literals, params, only)
            if template.kind == ROUTE_KEYED and shard != ROUTE_WAIT:
                self.note_work()
            return shard
        shard = Arbiter.route(self, template, literals, params, only)
        if template.kind == ROUTE_KEYED and shard != ROUTE_WAIT and not self.touch_found(template, shard):
            return ROUTE_WAIT
        return shard

    cdef bint touch_found(self, Template template, int shard) except -1:
        """Note the buckets that route_keyed has found; False: the message has to wait."""
        cdef Buckets buckets = self.hub.buckets
        cdef Py_ssize_t index
        if buckets.every or shard == self.hub.query_shard or shard == ROUTE_CARRIED:
            return self.touch(BUCKET_ANY, stays(template))
        if self.hub.frozen_bucket >= 0:
            for index in range(buckets.count):
                if buckets.items[index] == self.hub.frozen_bucket and not self.touch(buckets.items[index], False):
                    return False
        for index in range(buckets.count):
            self.note_touched(buckets.items[index], stays(template))
        self.note_work()
        return True

    cdef int note_work(self) except -1:
        """Remember the buckets that route_keyed has found, to be counted when the statement is sent.

        One that may work in any counts nowhere: all shards run it, and go on to, whatever moves.
        """
        cdef Buckets buckets = self.hub.buckets
        cdef Py_ssize_t index
        if self.work_buckets is not None or buckets.every:
            return 0
        if buckets.count == 1:
            self.work_bucket = buckets.items[0]
        elif buckets.count:
            self.work_buckets = [buckets.items[index] for index in range(buckets.count)]
        return 0

    cdef bint touch(self, int bucket, bint stays) except -1:
        """Note that the statement works in the bucket; False: it is frozen, the message has to wait."""
        cdef int frozen = self.hub.frozen_bucket
        if frozen >= 0 and (bucket == frozen or bucket == BUCKET_ANY) and not self.touches(frozen):
            self.waiting = WAIT_FROZEN
            self.hub.frozen.append(self)
            return False
        self.note_touched(bucket, stays)
        return True

    cdef int note_touched(self, int bucket, bint stays) noexcept:
        cdef int index
        if not stays:
            self.reading = bucket if self.reading == BUCKET_NONE or self.reading == bucket else BUCKET_ANY
            return 0
        for index in range(self.touched_count):
            if self.touched[index] == bucket:
                return 0
        if bucket == BUCKET_ANY or self.touched_count == TOUCHED_MAX:
            self.touches_every = True
        else:
            self.touched[self.touched_count] = bucket
            self.touched_count += 1
        return 0

    cdef int note_placed(self, int bucket) except -1:
        self.note_touched(bucket, True)
        self.work_bucket = bucket
        return 0

    cdef bint touches(self, int bucket) noexcept:
        return self.goes_on and self.has_touched(bucket)

    cdef bint has_touched(self, int bucket) noexcept:
        cdef int index
        if self.touches_every or self.reading == bucket or self.reading == BUCKET_ANY:
            return True
        for index in range(self.touched_count):
            if self.touched[index] == bucket:
                return True
        return False

    def has_open(self, int bucket) -> bool:
        """Whether a transaction or statement under way works in the bucket, or may.

        One that waits for its first backend does not: its message is handled again, and meets the freeze.
        """
        return len(self.links) > 0 and self.has_touched(bucket)

    def let_go_on(self, bint goes_on) -> None:
        """It is waited for, and need not wait itself; or not any more."""
        self.goes_on = goes_on

    cdef int note_isolation(self, bytes text) except -1:
        Arbiter.note_isolation(self, text)
        self.keeps_snapshot = ISOLATION.search(text) is not None
        for setting in (self.begin_text, *[each for _, each, _ in self.history], *self.script):
            self.keeps_snapshot = self.keeps_snapshot or ISOLATION.search(setting) is not None
        for _, value in self.parameters:
            self.keeps_snapshot = self.keeps_snapshot or ISOLATION.search(value.encode()) is not None
        return 0

    def note_shards(self) -> None:
        """There are other shards than there were (Hub.follow_shards): what is open has every bucket open."""
        if self.links and not self.is_idle():
            self.touches_every = True
        elif self.explicit and self.begin_text is not None:
            for text in (self.begin_text, *[each for _, each, _ in self.history]):
                self.note_isolation(text)

    cdef bint open_snapshots(self, bint asks_node) except -1:
        if not self.touch(BUCKET_ANY, True):
            return False
        return Arbiter.open_snapshots(self, asks_node)

    cdef int settle_verb(self, Template template) except -1:
        Arbiter.settle_verb(self, template)
        if template.chain:
            self.forget_touched()       # release_links follows where no transaction does
        return 0

    cdef int keep_reading(self) noexcept:
        """A portal stays open: what it reads is read until the transaction ends."""
        if self.reading != BUCKET_NONE:
            self.note_touched(self.reading, True)
        return 0

    cdef bint has_unbound_parts(self) noexcept:
        """The unnamed portal is bound on some of its shards, to be bound on the others when it runs (extended.pyx)."""
        return False

    cdef int forget_touched(self) noexcept:
        self.touched_count = 0
        self.touches_every = self.goes_on = False
        self.reading = BUCKET_NONE
        return 0

    cdef int end_segment(self) except -1:
        if self.reading != BUCKET_NONE and self.explicit and not self.keeps_snapshot and not self.portals and \
                not self.is_unsynced() and not self.has_unbound_parts():
            self.reading = BUCKET_NONE
        return Arbiter.end_segment(self)

    cdef int release_links(self) except -1:
        self.forget_touched()
        return Arbiter.release_links(self)

    def go_on_thawed(self) -> None:
        """The bucket is not frozen any more: the message is handled again."""
        if self.fd >= 0 and self.waiting == WAIT_FROZEN:
            self.resume()

    def give_up_frozen(self, error: SqlError) -> None:
        """Nobody knows when it will be."""
        if self.fd >= 0 and self.waiting == WAIT_FROZEN:
            self.on_denied(error)


cdef bint is_wide(Template template) noexcept:
    """Statements that may work in any bucket, whatever their keys say."""
    return (
        template.kind == ROUTE_SCATTER or template.kind == ROUTE_QUERY or template.kind == ROUTE_CARRY
        or template.kind == ROUTE_COPY or template.is_wide or template.is_claimed or template.owes_claims
        or template.owes_away or len(template.arbiters) > 0
    )


cdef bint stays(Template template) noexcept:
    """What it touches is touched until the transaction ends."""
    return template.is_write or template.cursor is not None
