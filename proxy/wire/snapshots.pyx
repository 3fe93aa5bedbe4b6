"""One snapshot over several shards: what a REPEATABLE READ transaction opens before its first statement.

    open_snapshots --(gate)--> on each shard: BEGIN, a statement that takes its snapshot
                     |--with the query node--> on the node: BEGIN, EXPORT: postgres_fdw takes a snapshot on every shard
                                               and each shard says what it is called
                                               --> on each shard: BEGIN, SET TRANSACTION SNAPSHOT of that name

All of it happens while the shards let no commit over several shards pass (gate.pyx). Snapshots go from the node to the
shards' sessions only: nothing can be said through postgres_fdw before it has taken its own. So a transaction that has
begun without the node cannot ask it later; it gets 0A000.
"""

from foreshard._core.frames cimport Cursor, read_bytes, read_int16, read_int32
from foreshard.proxy.wire.backend cimport FILTER_NONE, Backend
from foreshard.proxy.wire.commit cimport GATE_DONE, GATE_IN_LINE, STEP_EXPORT, STEP_SNAPSHOT, Commit, control_point
from foreshard.proxy.wire.session cimport WAIT_COMMANDS

from foreshard._core.errors import SqlError, decode_error, not_built

cdef bytes IMPORT = b"SET TRANSACTION SNAPSHOT '%s'"
cdef bytes TAKE = b"SELECT"


def late_for_node() -> SqlError:
    """A REPEATABLE READ transaction has begun without the query node."""
    return not_built(
        "reads through the query node in a REPEATABLE READ transaction that has begun with other statements",
        "Begin the transaction with such a read, or begin it after SET foreshard.snapshot = on.",
        "The query node cannot take over snapshots that the shards have opened already.",
    )


cdef class Snapshots(Commit):
    """The part of a frontend that opens snapshots on all shards together."""

    cdef bint wants_node(self, bint is_asked) except -1:
        """Whether the query node is to have part in the snapshots: it answers this statement, or may a later one.

        Transactions of our own hold one statement, or a string's: only those that need it pay for it.
        """
        cdef bint has_savepoint = any([name is not None for name, _, _ in self.history])
        if is_asked:
            if has_savepoint:
                raise not_built(
                    "reads through the query node as the first statement behind a savepoint",
                    "Read before the first savepoint.", "A snapshot cannot be shared from inside a subtransaction.")
            return True
        return self.snapshot and not self.is_implicit and self.hub.has_query_node and not has_savepoint and \
            not self.has_temporary

    cdef bint open_snapshots(self, bint asks_node) except -1:
        """Open all snapshots of a REPEATABLE READ transaction before its first statement: they are of one moment.

        False: the message has to wait, and finds them open when it is handled again.
        """
        cdef int count = self.hub.shard_count
        cdef bint with_node
        if self.wait_until_drained():
            return False
        with_node = self.wants_node(asks_node)
        if not self.link_all([*range(count), self.hub.query_shard] if with_node else range(count)):
            return False
        self.with_node = with_node
        self.waiting = WAIT_COMMANDS
        self.gate_place = GATE_IN_LINE
        self.hub.gate.enter(self)
        return False

    cdef int take_snapshots(self) except -1:
        """Inside the gate."""
        cdef Backend backend
        if not self.with_node:
            for backend in self.links:
                self.join(backend, False)
            self.send_texts(None, [(backend, TAKE) for backend in self.links], None)
            self.step = STEP_SNAPSHOT
            return 0
        backend = self.find_link(self.hub.query_shard)
        self.join(backend, False)
        backend.collected = []
        self.send_texts(None, [(backend, export_text(len(self.links) - 1))], None)
        self.step = STEP_EXPORT
        return 0

    cdef int import_snapshots(self) except -1:
        """The shards' snapshots have names: have our own sessions there take them over."""
        cdef Backend backend
        cdef Backend node = self.find_link(self.hub.query_shard)
        cdef dict names
        rows, node.collected = node.collected, None
        if node.muted_error is not None:
            return self.finish_snapshots()
        names = dict([read_export(row) for row in rows])
        texts = []
        for backend in self.links:
            if backend is not node:
                self.join(backend, False)
                texts.append((backend, IMPORT % names[b"%d" % backend.shard]))
        self.send_texts(None, texts, None)
        self.step = STEP_SNAPSHOT
        return 0

    cdef int finish_snapshots(self) except -1:
        """Every shard has its snapshot, or said why not."""
        cdef Backend backend
        control_point("snapshots-opened")
        for backend in self.links:
            backend.filter = FILTER_NONE
            if backend.muted_error is not None:
                self.denied = decode_error(backend.muted_error)
                backend.muted_error = None
        self.has_snapshots = self.denied is None
        self.gate_place = GATE_DONE
        return self.hub.gate.leave(self)


cdef bytes export_text(int count):
    """Ask the node what the snapshots of its sessions on the shards are called."""
    return b" UNION ALL ".join([b"SELECT %d, id FROM foreshard.snapshot_%d" % (shard, shard) for shard in range(count)])


cdef tuple read_export(bytes row):
    """Number of the shard and name of its snapshot, out of the body of a DataRow."""
    cdef Cursor cursor
    cdef int size
    cdef list found = []
    cursor.at = <const char*> row
    cursor.end = <const char*> row + len(row)
    cursor.is_bad = False
    for _ in range(read_int16(&cursor)):
        size = read_int32(&cursor)
        found.append(read_bytes(&cursor, size)[:size])
    if cursor.is_bad or len(found) != 2:
        raise SqlError("08P01", "the query node sent a malformed row")
    return found[0], found[1]
