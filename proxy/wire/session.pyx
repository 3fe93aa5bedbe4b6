"""A session's backends: which shards take part in its transaction or segment, and when they are given back.

A *segment* is what lies between two ReadyForQuery: one simple Query, or extended messages up to Sync. Rules:

1. One segment at a time: after Query or Sync the client's next message waits until ReadyForQuery went to it. So the
   transaction status is exact whenever a statement is routed.
2. Only the active backend's replies reach the client; before another backend becomes active, the one before has
   answered everything (WAIT_DRAIN), so replies keep the order of the requests.
3. BEGIN is answered at once and sent to a shard with the first statement that needs it, with the savepoints so far.
4. A transaction that has written on several shards commits on all of them or on none (commit.pyx). What has no BEGIN of
   the client's and writes on a second shard is put into a transaction of our own first (is_implicit).
5. A handler that must wait changes nothing; the message is handled again from its start when the wait is over.
"""

from foreshard._core.buckets cimport SHARDS_MAX
from foreshard._core.replies cimport (
    REPLY_BIND,
    REPLY_CLOSE,
    REPLY_EXECUTE,
    REPLY_PARSE,
    REPLY_QUERY,
    REPLY_SWALLOW,
    REPLY_SYNC,
)
from foreshard._core.placement cimport BUCKET_ROWS_SHARE
from foreshard._core.template cimport ROUTE_DEFAULT, Template
from foreshard.proxy.wire.backend cimport BACKEND_READY, FILTER_NONE, Backend, Owner
from foreshard.proxy.wire.pool cimport Pool
from foreshard.proxy.wire.portal cimport Portal

import re

from foreshard._core.errors import SqlError, not_built

cdef enum:
    OUTBOX_LOW_BYTES = 65536        # a lagging client's backend goes on below this

HIDING = frozenset(("temporary table", "DO", "a statement that was not understood"))     # pins that may hide tables
ISOLATION = re.compile(rb"repeatable|serializable", re.IGNORECASE)      # in BEGIN, SET, or the client's parameters

cdef bytes SET_BUCKET = b"SELECT pg_catalog.set_config('foreshard.bucket', $1, false)\0\0\0"
cdef bytes LOCK = (
    b"SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended($1, 7)),"
    b" pg_catalog.set_config('foreshard.outcome', '', true)\0\0\0"       # what a statement before has left
)
# On the query node transactions are read-only, but it may have to take a copy of what the client's has written; and
# postgres_fdw cannot set or release savepoints while a cursor has a FETCH of its own under way.
cdef bytes WRITABLE = b"\n; SET TRANSACTION READ WRITE"
cdef bytes IN_TURN = b"\n; SET LOCAL enable_async_append = off"
cdef bytes EMPTY_BIND = b"foreshard\0\0\0\0\0\0\0\0"


def failed_transaction() -> SqlError:
    """What PostgreSQL says to any statement but the end of a failed transaction."""
    return SqlError("25P02", "current transaction is aborted, commands ignored until end of transaction block")


cdef class Session(Owner):
    """The part of a frontend that holds backends. Ends with its client's connection."""

    def __cinit__(self):
        self.links = []
        self.history = []
        self.script = []
        self.cursors = {}
        self.portals = {}
        self.parts = []
        self.begin_text = b"BEGIN"
        self.decided_shard = -1

    # -- answers of our own --------------------------------------------------------------------------------------

    cdef char transaction_status(self) noexcept:
        """What ReadyForQuery says: I, T or E."""
        if not self.explicit:
            return b"I"
        return b"E" if self.failed else b"T"

    cdef int push_bytes(self, bytes data) except -1:
        """Bytes of our own to the client."""
        return self.push(<const char*> data, len(data))

    cdef int push_ready(self) except -1:
        """ReadyForQuery with the session's own status."""
        cdef char message[6]
        message[0] = b"Z"
        message[1] = message[2] = message[3] = 0
        message[4] = 5
        message[5] = self.transaction_status()
        return self.push(message, 6)

    cdef int push_complete(self, bytes tag) except -1:
        """CommandComplete."""
        return self.push_bytes(b"C" + (len(tag) + 5).to_bytes(4, "big") + tag + b"\0")

    cdef bint wait_until_drained(self) except -1:
        """True when the active backend still owes replies: the message waits for them."""
        cdef Backend backend = self.active
        if backend is None or backend.replies.count == 0:
            return False
        if backend.unsynced:
            backend.write_empty(b"H", 0)
            backend.flush()
        backend.notify_drained = True
        self.waiting = WAIT_DRAIN
        return True

    cdef int answer_error(self, object error) except -1:
        """Refuse the statement at hand; the replies before it have been given."""
        self.push_bytes(error.encode())
        if self.explicit:
            self.failed = True
        if not self.simple:
            self.skipping = True
            return 0
        self.push_ready()
        if self.explicit or not self.links:
            return 0
        if self.is_unsynced():
            return self.abort_segment(None)
        return self.release_links()     # what it got while it waited for more

    # -- backends ------------------------------------------------------------------------------------------------

    cdef Pool pool(self, int shard):
        """The pool of a shard for this session's parameters."""
        cdef Pool pool
        if self.pools is None:
            self.pools = [None] * (SHARDS_MAX + 1)
        pool = self.pools[shard]
        if pool is None:
            pool = self.hub.pool(shard, self.parameters)
            pool.session_count += 1
            self.pools[shard] = pool
        return pool

    cdef Backend find_link(self, int shard):
        """The session's backend on a shard, or None."""
        cdef Backend backend
        for backend in self.links:
            if backend.shard == shard:
                return backend
        return None

    cdef Backend link(self, int shard):
        """The same, taken from the pool if need be; None: the message has to wait."""
        cdef Backend backend = self.find_link(shard)
        if backend is None:
            backend = self.pool(shard).take(self, len(self.links) > 0)
            if backend is None:
                self.waiting = WAIT_POOL
            else:
                self.links.append(backend)
        return backend

    cdef bint link_all(self, object shards) except -1:
        """See that the session has a backend of each shard; False: the message has to wait."""
        for shard in shards:
            if self.link(shard) is None:
                return False
        return True

    cdef Backend attach(self, int shard, bint is_write, bint places):
        """Make the backend of `shard` the active one, joined to the transaction.

        None: the message has to wait. Raises SqlError when the transaction may not write there.
        """
        cdef Backend backend = self.find_link(shard)
        if self.is_repeatable and self.explicit and not self.has_snapshots and \
                not self.open_snapshots(shard == self.hub.query_shard):
            return None
        if backend is not self.active and self.wait_until_drained():
            return None
        if len(self.links) > (0 if backend is None else 1):
            self.check_second(backend, shard, is_write)
        if backend is None:
            backend = self.link(shard)
            if backend is None:
                return None
        self.active = backend
        if self.pinned is not None and self.script and not backend.is_tainted:
            self.join(backend, places)      # nothing may run without the settings, a role least of all
            backend.flush()
            self.wait_until_drained()
            return None
        if places or (self.explicit and not backend.begun) or self.pinned is not None:
            self.join(backend, places)
        return backend

    cdef int check_second(self, Backend backend, int shard, bint is_write) except -1:
        """The session has backends, and `backend` (None: a new one) on `shard` is to be the next to take part."""
        cdef Backend other
        if backend is None and self.is_serializable():
            raise not_built(
                "SERIALIZABLE transactions on several shards",
                "Use REPEATABLE READ, or keep the transaction to rows of one group.",
                "each shard would be serializable by itself, the transaction not",
            )
        for other in self.links:
            if is_write and other.wrote and other is not backend:
                self.check_two_phase(other.shard, shard)
                if not self.explicit:
                    self.open_implicit()
                break
        return 0

    cdef int check_two_phase(self, int first, int second) except -1:
        """Two shards are to be written in one transaction."""
        if self.hub.two_phase:
            return 0
        raise SqlError(
            "0A000", "a transaction cannot write on two shards without prepared transactions",
            f"the transaction has written on shard {self.hub.shard_names[first]}; "
            f"this statement writes on {self.hub.shard_names[second]}",
            "Set max_prepared_transactions on every shard (`foreshard check` names those that lack it), and restart.",
        )

    cdef bint is_serializable(self) except -1:
        """The transaction was begun as SERIALIZABLE, as far as its statements say."""
        texts = [self.begin_text] if self.explicit else []
        texts += self.script
        texts += [text for _, text, _ in self.history]
        return any(b"SERIALIZABLE" in text.upper() for text in texts)

    cdef bint open_snapshots(self, bint asks_node) except -1:
        """Open a snapshot on every shard at one moment (snapshots.pyx); False: the message has to wait."""
        return True

    cdef int leave_gate(self) except -1:
        """Hold up no commits and no snapshots (commit.pyx)."""
        return 0

    cdef int note_isolation(self, bytes text) except -1:
        """What BEGIN or SET TRANSACTION says about the isolation level."""
        text = text.upper()
        if b"REPEATABLE READ" in text:
            self.is_repeatable = self.hub.is_sharded and self.hub.shard_count > 1
        elif b"ISOLATION" in text:
            self.is_repeatable = False
        return 0

    cdef int open_implicit(self, bytes text=b"BEGIN") except -1:
        """Put what the segment has done so far, and what follows, into a transaction of our own."""
        cdef Backend backend
        self.explicit = self.is_implicit = True
        self.failed = False
        self.begin_text = text
        self.is_repeatable = False
        self.has_snapshots = False
        self.note_isolation(text)
        for backend in self.links:
            if backend.unsynced:
                self.write_own(backend, text + b"\0\0\0", EMPTY_BIND)
                backend.begun = True
        return 0

    cdef int write_own(self, Backend backend, bytes parse, bytes bind) except -1:
        """A statement of ours inside the client's pipeline: by extended query, with a portal of its own."""
        backend.write_parse(None, b"", <const char*> parse, len(parse), REPLY_PARSE | REPLY_SWALLOW)
        backend.unnamed = None
        backend.write_message(b"B", <const char*> bind, len(bind))
        backend.replies.push(REPLY_BIND | REPLY_SWALLOW)
        backend.write_message(b"E", b"foreshard\0\0\0\0\0", 14)
        backend.replies.push(REPLY_EXECUTE | REPLY_SWALLOW)
        backend.write_message(b"C", b"Pforeshard\0", 11)
        backend.replies.push(REPLY_CLOSE | REPLY_SWALLOW)
        return 0

    cdef int lock_on(self, Backend backend, bytes name) except -1:
        """Have the transaction hold the named lock on a shard; it is given back when the transaction ends there."""
        bind = b"foreshard\0\0\0\0\0\1" + len(name).to_bytes(4, "big") + name + b"\0\0"
        self.write_own(backend, LOCK, bind)
        if self.simple:
            backend.unsynced = False
            backend.executed = False
            backend.write_empty(b"S", REPLY_SYNC | REPLY_SWALLOW)
        return 0

    cdef int join(self, Backend backend, bint places) except -1:
        """Send what must precede the statement: settings, bucket, BEGIN, savepoints."""
        if self.pinned is not None and not backend.is_tainted:
            backend.is_tainted = True
            for text in self.script:
                backend.write_query(text, REPLY_QUERY | REPLY_SWALLOW)
        if places and (backend.bucket < 0 or (
            backend.bucket == self.hub.frozen_bucket and not self.touches(backend.bucket)
        ) or (
            not backend.begun and not backend.unsynced and (
                backend.bucket_rows >= BUCKET_ROWS_SHARE or backend.bucket_cost >= self.hub.placer.bucket_cost_share()
            )
        )):
            self.set_bucket(backend)
        if places:
            self.note_placed(backend.bucket)
        if self.explicit and not backend.begun:
            backend.begun = True
            text = self.begin_text if backend.types is None else node_begin(self.begin_text, self.is_implicit)
            backend.write_query(text, REPLY_QUERY | REPLY_SWALLOW)
            for _, text, _ in self.history:
                backend.write_query(text, REPLY_QUERY | REPLY_SWALLOW)
        return 0

    cdef int refresh(self, Backend backend) except -1:
        """Begin the query node's part of a READ COMMITTED transaction anew, to see what is committed by now.

        A transaction there keeps the shards' first snapshots. A cursor or portal that is open needs the old one.
        """
        if not backend.begun or backend.unsynced or self.failed or \
                self.has_open_portal(backend.shard):
            return 0
        for text in (self.begin_text, *[text for _, text, _ in self.history], *self.script):
            if ISOLATION.search(text) is not None:
                return 0
        for _, value in self.parameters:
            if ISOLATION.search(value.encode()) is not None:
                return 0
        backend.write_query(b"COMMIT", REPLY_QUERY | REPLY_SWALLOW)
        backend.begun = False
        return self.join(backend, False)

    cdef bint has_open_portal(self, int shard) except -1:
        """Whether a cursor or named portal of the transaction is open on the shard."""
        cdef Portal portal
        for portal in self.portals.values():
            if portal.backend is not None and portal.backend.shard == shard:
                return True
        return shard in self.cursors.values()

    cdef int set_bucket(self, Backend backend) except -1:
        """Give the backend its next bucket: in autocommit when it can be, else inside the transaction or segment."""
        cdef int bucket = self.hub.placer.next_bucket(backend.shard)
        if bucket < 0:
            raise SqlError(
                "57P03", f"shard {self.hub.shard_names[backend.shard]} owns no bucket",
                hint="The bucket map has no entry for it; run `foreshard apply`.",
            )
        backend.bucket = bucket
        backend.bucket_rows = 0
        backend.bucket_cost = 0.0
        backend.bucket_tentative = backend.begun or backend.unsynced
        if not backend.unsynced:
            return backend.write_query(b"SET foreshard.bucket = %d" % bucket, REPLY_QUERY | REPLY_SWALLOW)
        value = b"%d" % bucket
        bind = b"foreshard\0\0\0\0\0\1" + len(value).to_bytes(4, "big") + value + b"\0\0"
        return self.write_own(backend, SET_BUCKET, bind)

    cdef bint touches(self, int bucket) noexcept:
        """Whether the transaction has the bucket open, or may have (freezing.pyx)."""
        return False

    cdef int note_placed(self, int bucket) except -1:
        """A row is placed in the bucket."""
        return 0

    cdef int mark(self, Backend backend, Template template) except -1:
        """Note what the statement just sent means for the backend and the session."""
        if template.is_write:
            backend.wrote = True
            backend.owes_claims = backend.owes_claims or (
                template.owes_claims and template.claim_homes is None and self.hub.shard_count > 1)
            if template.profile_count:
                backend.captured = True
            if template.alters:
                self.alters = True
                self.hub.services.doubt_schema()
        if template.cursor is not None and template.text is None:
            self.cursors[template.cursor] = backend.shard       # DECLARE; FETCH and the like carry their text
        if template.is_reset:
            self.mark_reset(backend, template)
        elif template.pin is not None:
            self.pinned = self.pinned or template.pin
            self.is_settled = self.is_settled or (
                template.kind == ROUTE_DEFAULT and template.text is not None and template.name is not None)
            self.has_temporary = self.has_temporary or template.pin in HIDING
            backend.is_unpreparable = True      # or a setting: that costs nothing but another decision shard
        if template.text is not None and template.text[:6].upper() == b"NOTIFY":
            backend.is_unpreparable = True
        if self.pinned is not None:
            backend.is_tainted = True
        return 0

    cdef int mark_reset(self, Backend backend, Template template) except -1:
        """RESET and the like leave a clean backend clean; prepared statements may be gone with it."""
        cdef Template part
        backend.bucket = -1
        for part in template.parts or (template,):
            if part.is_reset and (part.name == "" or part.name == "DISCARD ALL"):
                self.snapshot = False
            if part.name == "DISCARD ALL" or part.name == "DEALLOCATE ALL":
                backend.prepared.clear()
                backend.unnamed = None
                backend.is_tainted = True
                self.forget_statements()
        return 0

    cdef int abort_segment(self, Backend but) except -1:
        """A simple Query failed inside a pipeline: what the pipeline did before it must not commit."""
        return 0

    cdef int forget_statements(self) except -1:
        """DEALLOCATE ALL and DISCARD ALL end the client's prepared statements, too."""
        return 0

    # -- the end of a segment ------------------------------------------------------------------------------------

    cdef int settle_status(self) except -1:
        """Take over the transaction status that the backends reported."""
        cdef Backend backend
        cdef bint open_ = False, took_part = False, failed = self.failed
        for backend in self.links:
            took_part = took_part or backend.begun
            if backend.status != b"I" and (self.explicit or not backend.unsynced):
                open_ = True
                backend.begun = True
                if backend.status == b"E":
                    failed = True
            else:
                backend.begun = False
        if open_:
            self.explicit = True
            self.failed = failed
        elif took_part:
            self.explicit = False
            self.is_implicit = False
            self.is_repeatable = False
            self.failed = False
        return 0

    cdef int end_segment(self) except -1:
        """ReadyForQuery has gone to the client: settle the transaction's state, give backends back, go on."""
        self.settle_status()
        self.waiting = WAIT_NOTHING
        self.copying = False
        if not self.explicit and not self.is_unsynced():
            self.release_links()
        return self.resume()

    cdef bint is_unsynced(self) noexcept:
        """A pipeline is open: a Query came in its middle, and its Sync is still to come."""
        cdef Backend backend
        for backend in self.links:
            if backend.unsynced:
                return True
        return False

    cdef int release_links(self) except -1:
        """The transaction is over: backends go back to their pools, unless the session is pinned."""
        cdef Backend backend
        cdef list links = self.links
        self.transactions += 1
        if self.history:
            self.history = []
        self.failed = False
        if self.alters:
            self.alters = False
            self.hub.services.doubt_schema()
        for backend in links:
            backend.transactions += 1
            if backend.captured:
                backend.captured = False
                self.hub.waker.touch(backend.shard)
            backend.begun = False
            backend.wrote = backend.owes_claims = False
            backend.is_unpreparable = False
            backend.filter = FILTER_NONE
            if backend.bucket_tentative:
                backend.bucket_tentative = False
                backend.bucket = -1
        if self.pinned is not None:
            return 0
        if self.cursors:
            self.cursors.clear()
        self.active = None
        if len(links) == 1:
            backend = links.pop()
            return (<Pool> backend.home).put(backend)
        self.links = []
        for backend in links:
            (<Pool> backend.home).put(backend)
        return 0

    cdef int abandon(self) except -1:
        """The client is gone: roll back and give back what can be, close the rest."""
        cdef Backend backend
        cdef Pool pool
        cdef list links = self.links
        self.links = []
        self.active = None
        for backend in links:
            pool = <Pool> backend.home
            if backend.phase != BACKEND_READY:
                continue
            if backend.replies.count or backend.unsynced or backend.hold or self.copying or backend.streaming:
                pool.discard(backend)
                continue
            backend.disown()
            backend.wrote = backend.owes_claims = False
            backend.collected = None
            backend.is_unpreparable = False
            backend.captured = False
            if not backend.begun and backend.status == b"I":
                pool.put(backend)
            elif backend.cancels:
                pool.discard(backend)       # the cancel request might hit our ROLLBACK
            else:
                backend.begun = False
                pool.reset(backend, b"ROLLBACK")
        return 0

    cdef int leave_pools(self) except -1:
        """The client is gone: stand in no line, keep no pool alive."""
        cdef Pool pool
        for pool in self.pools or ():
            if pool is not None:
                pool.leave(self)
                pool.session_count -= 1
        self.pools = None
        return 0

    cdef int resume(self) except -1:
        """Go on with the client's next message."""
        self.waiting = WAIT_NOTHING
        if not self.is_looking:
            return self.look()
        return 0

    # -- what backends and pools report --------------------------------------------------------------------------

    cdef int on_drained(self, Backend backend) except -1:
        if self.waiting == WAIT_DRAIN:
            return self.resume()
        return 0

    cdef int on_flushed(self, Backend backend) except -1:
        if self.waiting == WAIT_SHARD:
            return self.resume()
        return 0

    cdef int on_granted(self, Backend backend) except -1:
        self.links.append(backend)
        return self.resume()

    cdef int on_denied(self, object error) except -1:
        """No backend is to be had: the statement fails, the session goes on."""
        self.waiting = WAIT_NOTHING
        self.denied = error
        return self.resume()

    cdef int on_copy_in(self, Backend backend) except -1:
        self.copying = True
        backend.notify_drained = False
        if not self.simple:
            backend.unsynced = True     # the shard ignores a Sync that came before the data
        return self.resume()

    cdef int on_writable(self) except -1:
        """The client takes bytes again: its backend may go on."""
        cdef Backend backend
        self.flush()
        if self.outbox.end - self.outbox.start < OUTBOX_LOW_BYTES:
            for backend in self.links:
                if not backend.hold and backend.fd >= 0:
                    backend.set_reading(True)
            if self.waiting == WAIT_CLIENT:
                return self.resume()
        return 0


cdef bytes node_begin(bytes text, bint is_implicit):
    """BEGIN as the query node hears it."""
    cdef bytes mode = b"" if b"READ ONLY" in b" ".join(text.upper().split()) else WRITABLE
    return text + mode if is_implicit else text + mode + IN_TURN
