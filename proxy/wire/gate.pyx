"""The line of those who want snapshots of several shards that are of one moment.

A snapshot opened on one shard before a distributed transaction has committed there, and on another one after, would
show half of it. So snapshots are opened while the shards let no commit over several shards pass, whichever router it
comes from (proxy/control/shard_gate.py). Whoever waits when that is so is let in, all at once:

    waiting --admit--> inside --leave--> done --settle--> out
                          |                |
                          +--(too late)----+--(the shards let somebody pass meanwhile)--> denied, 40001
"""

cimport cython

from foreshard.proxy.wire.backend cimport Owner

from foreshard._core.errors import SqlError


@cython.final
cdef class Gate:
    """One per router. Owners hear on_gate twice: they may open their snapshots; these are of one moment."""

    def __init__(self, object services):
        self.services = services
        self.waiting = []
        self.inside = set()
        self.done = []

    cdef int enter(self, Owner owner) except -1:
        """Stand in line."""
        self.waiting.append(owner)
        self.services.hold_gate()
        return 0

    cdef int leave(self, Owner owner) except -1:
        """The owner has its snapshots."""
        if owner not in self.inside:
            return owner.on_denied(missed_moment())
        self.inside.remove(owner)
        self.done.append(owner)
        if not self.inside:
            self.services.release_gate()
        return 0

    cdef int forget(self, Owner owner) except -1:
        """The owner wants no snapshots any more."""
        for line in (self.waiting, self.done):
            if owner in line:
                line.remove(owner)
        if owner in self.inside:
            self.inside.remove(owner)
            if not self.inside:
                self.services.release_gate()
        return 0

    def is_wanted(self) -> bool:
        """Somebody waits."""
        return len(self.waiting) > 0

    def admit(self) -> bool:
        """Let in whoever waits; False: nobody does any more."""
        cdef Owner owner
        entering, self.waiting = self.waiting, []
        self.inside.update(entering)
        for owner in entering:
            if owner in self.inside:
                self.tell(owner, None)
        return len(self.inside) > 0

    def settle(self, bint is_kept) -> None:
        """Commits pass again; they have not before (is_kept), or may have. Who is inside still comes too late."""
        cdef Owner owner
        self.inside.clear()
        done, self.done = self.done, []
        for owner in done:
            self.tell(owner, None if is_kept else missed_moment())

    def refuse(self, object error) -> None:
        """There is no such moment."""
        cdef Owner owner
        waiting, self.waiting = self.waiting, []
        for owner in waiting:
            self.tell(owner, error)

    cdef int tell(self, Owner owner, object error) except -1:
        """One owner's turn; a mistake of ours in it ends that session only."""
        try:
            if error is None:
                owner.on_gate()
            else:
                owner.on_denied(error)
        except Exception as mistake:
            self.services.report_failure(owner, mistake)
        return 0


def missed_moment() -> SqlError:
    """Snapshots that may not be of one moment are not used."""
    return SqlError(
        "40001", "the shards' snapshots could not be opened at one moment",
        "a shard or this router took too long, and commits over several shards had to go on", "Run it again.")
