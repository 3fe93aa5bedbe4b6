"""The end of a segment of extended query: Sync, and what undoes a segment of which a part failed.

Sync goes to every shard that heard of the segment. Where Foreshard refused a statement, no shard knows that the
implicit transaction has failed: it is poisoned, sent a Bind that fails on purpose. A segment that wrote on several
shards runs in a transaction of our own (Session.open_implicit), which ends here.
"""

from foreshard._core.replies cimport REPLY_NOTIFY, REPLY_POISON, REPLY_SWALLOW, REPLY_SYNC
from foreshard.proxy.wire.backend cimport Backend
from foreshard.proxy.wire.extended cimport Extended
from foreshard.proxy.wire.parsing cimport HANDLED, RETRY
from foreshard.proxy.wire.session cimport WAIT_NOTHING, WAIT_SEGMENT

cdef bytes POISON = b"\0foreshard: refused, rolling back\0\0\0\0\0\0\0"


cdef class Segment(Extended):
    """The part of a frontend that ends segments."""

    cdef int on_sync(self) except -1:
        """End the segment on every shard it touched."""
        cdef Backend backend
        cdef int count = 0, entry = REPLY_SYNC
        if self.syncs:
            self.waiting = WAIT_SEGMENT
            return self.finish_sync() if self.synced == 0 else HANDLED
        if not self.skipping and self.settle_deferred() == RETRY:
            return RETRY
        self.deferred = None
        if self.is_implicit and self.explicit:
            return self.end_implicit()
        self.ends_segment = False
        for backend in self.links:
            if backend.unsynced:
                count += 1
        if count > 1 and self.owes_unsynced() and self.wait_until_drained():
            return RETRY        # an error of this shard must keep the others from committing
        if self.skipping and not self.explicit:
            for backend in self.links:
                if backend.unsynced and not backend.is_skipping:
                    self.poison(backend)
        self.skipping = False
        self.simple = False
        if count == 0:
            self.forget_unconfirmed()
            self.push_ready()
            if not self.explicit:
                self.forget_portals()
                if self.links:
                    self.release_links()
            return HANDLED
        # Refused by Foreshard, the transaction has failed for the client, and no shard knows: the status is then ours.
        if count > 1 or self.failed:
            entry = REPLY_SYNC | REPLY_NOTIFY
        self.pending = count
        self.waiting = WAIT_SEGMENT
        for backend in self.links:
            if backend.unsynced:
                backend.unsynced = False
                backend.executed = False
                backend.write_empty(b"S", entry)
                backend.flush()
        return HANDLED

    cdef bint can_sync(self, list parts) except -1:
        """Whether Sync may go to these shards before they all have answered: what the segment has run so far could be
        undone by none of their errors.
        """
        cdef Backend backend
        if self.is_implicit:
            return False
        for backend in self.links:
            if backend.executed or (backend.unsynced and backend not in parts):
                return False
        return True

    cdef bint holds_result(self) noexcept:
        return self.syncs

    cdef int finish_sync(self) except -1:
        """Every shard has answered a Sync that went to it with the Execute before."""
        self.syncs = self.skipping = self.simple = False
        if self.unconfirmed:
            self.forget_unconfirmed()
        self.settle_status()
        self.push_ready()
        self.is_corked = False
        self.flush()
        return self.end_segment()

    cdef int end_implicit(self) except -1:
        """Sync of a segment that wrote on several shards: commit them all, or roll them back."""
        cdef Backend backend
        cdef bint commits
        if self.wait_until_drained():
            return RETRY
        self.take_held()
        self.ends_segment = False
        commits = not self.skipping and not self.failed
        if not commits:
            self.held_tag = self.held_rows = None
        self.skipping = False
        self.is_implicit = False
        self.forget_unconfirmed()
        for backend in self.links:
            if backend.unsynced:
                backend.unsynced = False
                backend.executed = False
                backend.write_empty(b"S", REPLY_SYNC | REPLY_SWALLOW)
        self.simple = True      # what follows ends like a Query: with ReadyForQuery of our own
        self.end_quietly(commits)
        if self.waiting == WAIT_NOTHING:
            self.push_ready()
            self.release_links()
        return HANDLED

    cdef int push_ready(self) except -1:
        if self.held_tag is not None:
            self.give_held()
        return Extended.push_ready(self)

    cdef int poison(self, Backend backend) except -1:
        """Make the shard roll back the implicit transaction of a segment in which Foreshard refused a statement."""
        backend.write_message(b"B", <const char*> POISON, len(POISON))
        backend.replies.push(REPLY_POISON)
        return 0

    cdef int abort_segment(self, Backend but) except -1:
        cdef Backend backend
        for backend in self.links:
            if backend.unsynced and backend is not but:
                self.poison(backend)
                backend.unsynced = False
                backend.executed = False
                backend.write_empty(b"S", REPLY_SYNC | REPLY_SWALLOW)
                backend.flush()
        return 0
