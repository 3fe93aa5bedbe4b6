"""The gate between commits on several shards and snapshots of several shards.

A snapshot opened on one shard before a distributed transaction has committed there, and on another one after, would
show half of it. So either commits pass (any number, each from its commit point to its last COMMIT PREPARED), or
snapshots are opened (any number); the two take turns, first come first served. What a dead router, or a participant
that broke, has left prepared is in doubt: no snapshot is opened before recovery has ended it.
"""

cimport cython

from foreshard.proxy.wire.backend cimport Owner

from collections import deque


@cython.final
cdef class Gate:
    """One per router. Owners that may not enter yet hear on_gate when they may."""

    def __init__(self):
        self.waiting = deque()
        self.parked = []
        self.in_doubt = None

    cdef bint enter(self, Owner owner, int side) except -1:
        """Pass, or stand in line."""
        if side == SIDE_SNAPSHOT and self.has_doubt():
            self.parked.append(owner)
            return False
        if self.waiting or not self.admits(side):
            self.waiting.append((owner, side))
            return False
        self.admit(side)
        return True

    cdef int leave(self, int side) except -1:
        """Done with what `enter` or on_gate allowed."""
        if side == SIDE_COMMIT:
            self.committing -= 1
        else:
            self.opening -= 1
        return self.admit_waiting()

    cdef int forget(self, Owner owner) except -1:
        """The owner stands in line no more."""
        if owner in self.parked:
            self.parked.remove(owner)
        if self.waiting:
            self.waiting = deque([each for each in self.waiting if each[0] is not owner])
            self.admit_waiting()
        return 0

    cdef bint has_doubt(self) noexcept:
        return self.in_doubt is None or len(self.in_doubt) > 0

    cdef bint admits(self, int side) noexcept:
        return self.opening == 0 if side == SIDE_COMMIT else self.committing == 0

    cdef void admit(self, int side) noexcept:
        if side == SIDE_COMMIT:
            self.committing += 1
        else:
            self.opening += 1

    cdef int admit_waiting(self) except -1:
        """Let in whoever is first in line, as many as may be inside together."""
        cdef Owner owner
        cdef int side
        while self.waiting:
            owner, side = self.waiting[0]
            if side == SIDE_SNAPSHOT and self.has_doubt():
                self.waiting.popleft()
                self.parked.append(owner)
                continue
            if not self.admits(side):
                break
            self.waiting.popleft()
            self.admit(side)
            owner.on_gate()
        return 0

    def add_doubt(self, str gid) -> None:
        """A participant may not have committed what is decided."""
        if self.in_doubt is not None:
            self.in_doubt |= {gid}

    def set_doubt(self, object still) -> None:
        """What is left of it, as the shards say."""
        self.in_doubt = still
        if not still:
            self.waiting.extend([(owner, SIDE_SNAPSHOT) for owner in self.parked])
            self.parked.clear()
            self.admit_waiting()
