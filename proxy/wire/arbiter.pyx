"""INSERT ... ON CONFLICT on columns that are unique over all shards: it goes to the row that it may meet.

Its Template's `arbiters` say which values may be on another row. The homes of their claims are asked first, in the
transaction of the statement, and so are the shards on which that has claims to settle (proxy/control/arbiters.py). A
row that is there stays until the transaction ends: the statement is sent to its shard, whose own index finds the
conflict. Where none is, nobody else can make one, and the INSERT goes where any new row goes.
"""

from foreshard._core.template cimport KEY_LIMIT_UNIT, KEY_TYPE_UNIT, ROUTE_PLACE, Template
from foreshard._core.values cimport Values
from foreshard.proxy.wire.away cimport ROUTE_OPEN, ROUTE_WAIT, Away, home_of, key_of
from foreshard.proxy.wire.backend cimport Backend
from foreshard.proxy.wire.statement cimport Statement

from foreshard._core.errors import decode_error
from foreshard._core.typed_keys import SCALAR_OIDS

cdef enum:
    ROUTE_FREE = -7         # no other row has the values
    NO_ROW = -1
    RELEASED = -2           # of proxy/control/arbiters.py
    PENDING = 4096          # added to the bucket of a row of this transaction whose claim is not settled
    TEXT_OID = 25
    INT4_OID = 23

cdef dict QUESTIONS = {}    # key type -> Statement


cdef class Arbiter(Away):
    """The part of a frontend that finds the rows which new ones may meet."""

    cdef int route(self, Template template, Values literals, Values params, int only) except -3:
        cdef int shard
        if template.arbiters and self.hub.shard_count > 1:
            shard = self.arbitrate(template, literals, params)
            if shard != ROUTE_FREE:
                return shard
        return Away.route(self, template, literals, params, only)

    cdef int arbitrate(self, Template template, Values literals, Values params) except -3:
        """The shard of a row that is there, or ROUTE_FREE; ROUTE_WAIT, ROUTE_OPEN: not known yet."""
        cdef int index, shard
        if self.open_for_reservation() == ROUTE_OPEN:
            return ROUTE_OPEN
        self.begin_claimed()
        if self.arbiters is None:
            self.arbiters = {}
        self.take_arbiter()
        if self.ask_arbiters(template, literals, params) == ROUTE_WAIT:
            return ROUTE_WAIT
        for index in range(len(template.arbiters)):
            answers = self.arbiters.get(index, {}).values()
            found = max(answers, default=NO_ROW)
            if found < 0 or (found < PENDING and RELEASED in answers):
                continue
            shard = self.hub.state.shard_of_bucket(found % PENDING)
            if template.kind == ROUTE_PLACE:
                self.decided_shard = shard
                self.decided_rows = 0
                self.decided_cost = 0.0
            return shard
        return ROUTE_FREE

    cdef int ask_arbiters(self, Template template, Values literals, Values params) except -3:
        """Ask for each value whoever may know of it; ROUTE_WAIT until all have answered."""
        cdef Backend backend
        cdef int index, home
        for index, value in enumerate(template.arbiters):
            home = home_of(value, 0, literals, params)
            if home < 0 or ((<Template> value).key_count > 1 and home_of(value, 1, literals, params) >= 0):
                continue        # NULL, or a key that says where its row is: what it meets is there
            answers = self.arbiters.setdefault(index, {})
            shards = [backend.shard for backend in self.links if backend.owes_claims]
            for shard in [self.hub.state.shard_of_bucket(home), *shards]:
                if shard not in answers:
                    self.ask_arbiter(value, literals, params, index, shard, home)
                    return ROUTE_WAIT
        return 0

    cdef int ask_arbiter(
        self, Template value, Values literals, Values params, int index, int shard, int home
    ) except -1:
        """Ask one shard. The message has to wait, for that or for a backend."""
        cdef Backend backend = self.attach(shard, False, False)
        cdef bint was_unsynced
        if backend is None or self.wait_until_drained():
            return 0
        was_unsynced = backend.unsynced
        backend.collected = []
        key, is_binary = key_of(value, 0, literals, params)
        values = [(<str> value.claims[0]).encode(), key, b"%d" % home]
        formats = b"\0\3\0\0" + (b"\0\1" if is_binary else b"\0\0") + b"\0\0"
        self.send_question(backend, question(value.key_sources[0].flags), values, formats)
        self.end_question(backend, was_unsynced)
        self.asked_arbiter = (index, shard)
        backend.flush()
        self.wait_until_drained()
        return 0

    cdef int take_arbiter(self) except -1:
        """Note what a shard has said; SqlError when it failed."""
        cdef Backend backend
        if self.asked_arbiter is None:
            return 0
        index, shard = self.asked_arbiter
        self.asked_arbiter = None
        backend = self.find_link(shard)
        rows, backend.collected = backend.collected, None
        if backend.muted_error is not None:
            error, backend.muted_error = decode_error(backend.muted_error), None
            raise error
        size = int.from_bytes(rows[0][2:6], "big", signed=True)
        self.arbiters[index][shard] = NO_ROW if size < 0 else int(rows[0][6:6 + size])
        return 0

    cdef int forget_claimed(self) except -1:
        cdef Backend backend
        if self.asked_arbiter is not None:
            backend = self.find_link(self.asked_arbiter[1])
            if backend is not None:
                backend.collected = None
            self.asked_arbiter = None
        self.arbiters = None
        return Away.forget_claimed(self)


cdef Statement question(int flags):
    """Our statement that asks for a value of a type."""
    cdef int key_type = flags // KEY_TYPE_UNIT & (KEY_LIMIT_UNIT // KEY_TYPE_UNIT - 1)
    cdef Statement statement = QUESTIONS.get(key_type)
    if statement is not None:
        return statement
    statement = Statement.__new__(Statement)
    text = b"SELECT foreshard.arbitrate($1, $2, $3)"
    oids = [TEXT_OID, SCALAR_OIDS[key_type][0], INT4_OID]
    statement.body = text + b"\0\0\3" + b"".join([oid.to_bytes(4, "big") for oid in oids])
    statement.query_size = len(text)
    statement.id = f"arbiter {key_type}"
    statement.server_name = b"foreshard_arbiter_%d" % key_type
    QUESTIONS[key_type] = statement
    return statement
