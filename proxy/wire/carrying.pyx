"""INSERT ... SELECT whose rows the router carries from shard to shard, and row limits on writes of several shards.

The router is a client of its own meanwhile: it binds the query in a portal, fetches some rows, and inserts them by
statements of its own, each routed as any other, in the transaction of the client's statement. What the shards answer
goes to a reader (`push`), not to the client. So whatever tier answers reads, and whatever places, splits or locks rows,
serves these statements, too.

    OPEN --simple Query--> DESCRIBE --> SELECT --> SPREAD --> LOOK --> FETCH --> TAKE --all inserted--> CLOSE --> END
                                                                         ^        |
                                                                         |      INSERT --> COUNT
                                                                         +--none left--+ |
    any --error--> FAIL: what is owed is waited for, then the client hears the error

1. The query is bound on all of its shards before the first row is written: it sees nothing of what is inserted.
2. The client's message stays at the head of the inbox; whatever has to be waited for resumes there.
3. Memory holds the rows of one fetch, whose number follows from their size.
"""

from foreshard._core.frames cimport BindParts
from foreshard._core.replies cimport (
    REPLY_BIND,
    REPLY_CLOSE,
    REPLY_DESCRIBE,
    REPLY_NOTIFY,
    REPLY_SWALLOW,
    REPLY_SYNC,
)
from foreshard.proxy.wire.backend cimport Backend
from foreshard.proxy.wire.carry cimport (
    CARRY_CLOSE,
    CARRY_COUNT,
    CARRY_DESCRIBE,
    CARRY_END,
    CARRY_FAIL,
    CARRY_FETCH,
    CARRY_HOLD,
    CARRY_INSERT,
    CARRY_LOOK,
    CARRY_OPEN,
    CARRY_SELECT,
    CARRY_SPREAD,
    CARRY_TAKE,
    Carry,
)
from foreshard.proxy.wire.parsing cimport HANDLED, RETRY
from foreshard.proxy.wire.copying cimport Copying
from foreshard.proxy.wire.portal cimport Portal
from foreshard.proxy.wire.session cimport WAIT_CLIENT, WAIT_DRAIN, WAIT_NOTHING, WAIT_SEGMENT
from foreshard.proxy.wire.statement cimport Statement

from foreshard._core.errors import SqlError, not_built
from foreshard.proxy.wire.carry import ShardError

cdef enum:
    OUTBOX_HIGH_BYTES = 262144      # of RETURNING that the client has not taken; chosen, not measured

cdef bytes OWN = b"foreshard described"     # portals of the router's own
cdef bytes QUERY = b"foreshard selected"
cdef bytes ROWS = b"foreshard inserted"
cdef str BOUND_KEY = "the key of the new row names another bucket than its parent's"     # control/claim_sets.py
cdef bytes NO_PARAMETERS = b"\0\0\0\0\0\0"


cdef class Carrying(Copying):
    """The part of a frontend that carries rows."""

    cdef int push(self, const char* data, Py_ssize_t size) except -1:
        if self.carry is not None:
            return self.carry.reader.feed(data, size)
        return Copying.push(self, data, size)

    cdef int tell(self, bytes data) except -1:
        """Bytes for the client itself."""
        return Copying.push(self, <const char*> data, len(data))

    # -- where it begins -----------------------------------------------------------------------------------------

    cdef int bind_carried(self, Statement statement, BindParts* parts) except -1:
        """Bind on the default shard, which describes what RETURNING gives; Execute carries the rows."""
        cdef Portal portal
        cdef Backend backend
        if self.carry is not None:
            raise not_built("INSERT ... SELECT inside another", "Select the rows first, then insert them.")
        backend = self.attach(self.hub.default_shard, False, False)
        if backend is None:
            return RETRY
        portal = self.make_portal(parts.portal, parts.portal_size)
        portal.statement = statement
        portal.backend = None
        portal.merger = None
        portal.texts = None
        portal.row_order = portal.row_marks = None
        portal.part = 0
        portal.bound = 1
        portal.name = parts.portal[:parts.portal_size]
        portal.rest = parts.rest[:parts.rest_size]
        portal.is_unnamed = parts.statement_size == 0
        portal.parts = [backend]
        portal.carry = Carry(statement.template.carry, statement, portal.rest)
        self.ensure(backend, statement, portal.is_unnamed, True)
        return self.send_bind(backend, statement, parts, True)

    cdef int bind_many(self, Portal portal, Statement statement, BindParts* parts) except -1:
        portal.carry = None
        return Copying.bind_many(self, portal, statement, parts)

    cdef int execute_many(self, Portal portal, long long rows) except -1:
        cdef Carry carry
        if portal.carry is None and rows and portal.statement.template.is_write and portal.statement.template.returns:
            carry = Carry(None, portal.statement, portal.rest)
            carry.step = CARRY_HOLD
            portal.carry = carry
        if portal.carry is None:
            return Copying.execute_many(self, portal, rows)
        return self.execute_carried(portal, rows)

    cdef int execute_carried(self, Portal portal, long long rows) except -1:
        """Run a portal whose rows are carried, or give more of what RETURNING gave."""
        cdef Carry carry = portal.carry
        if self.carry is None:
            if self.wait_until_drained():
                return RETRY
            if carry.is_done:
                return self.give(carry, rows)
            if not self.explicit:
                self.open_implicit()
            carry.ends_segment = self.ends_segment
            carry.is_limited = rows > 0 and carry.statement.template.returns
            self.asked = portal
            self.carry = carry
            self.carry_limit = rows
        return self.run_carry()

    cdef int query_carried(self, bytes text) except -1:
        """The same for a simple Query, inside a transaction."""
        cdef Statement statement
        cdef Carry carry
        if self.carry is None:
            statement = self.intern_statement(text + b"\0\0\0", len(text))
            carry = Carry(statement.template.carry, statement, NO_PARAMETERS)
            carry.step = CARRY_OPEN
            carry.is_simple = True
            self.carry = carry
            self.carry_limit = 0
        return self.run_carry()

    # -- the steps -----------------------------------------------------------------------------------------------

    cdef int run_carry(self) except -1:
        """Go on until it is done or something has to be waited for (RETRY)."""
        cdef Carry carry = self.carry
        self.simple = False
        while carry.step != CARRY_FAIL:
            if self.waiting != WAIT_NOTHING or self.wait_until_drained():
                return RETRY
            self.settle_replies(carry)
            if carry.step == CARRY_END:
                return self.end_carry(carry)
            if carry.step == CARRY_FAIL:
                break
            if self.outbox.end - self.outbox.start > OUTBOX_HIGH_BYTES:
                self.waiting = WAIT_CLIENT
                return RETRY
            try:
                if self.step_carry(carry) == RETRY:
                    return RETRY
            except SqlError as error:
                carry.error = error
                carry.step = CARRY_FAIL
        return self.fail_carry(carry)

    cdef int settle_replies(self, Carry carry) except -1:
        """Hand on what is the client's, and look whether something failed."""
        for message in carry.reader.take_others():
            self.tell(message)
        error, self.denied = self.denied, None
        if carry.reader.error is not None:
            error = ShardError(carry.reader.error, carry.step == CARRY_DESCRIBE or carry.step == CARRY_HOLD)
            if carry.step == CARRY_COUNT and carry.plan.is_move and error.message == BOUND_KEY:
                error = not_built("a new parent on another shard for a row whose key carries its parent's bucket",
                                  "Insert a new row with the new parent, and delete the old one.")
        if error is not None:
            carry.error = error
            carry.step = CARRY_FAIL
        return 0

    cdef int step_carry(self, Carry carry) except -1:
        """Do the next step; RETRY: it could not be done yet."""
        cdef int step = carry.step
        if (step == CARRY_OPEN or step == CARRY_SELECT) and self.explicit and self.is_read_only():
            raise SqlError("25006", "cannot execute INSERT in a read-only transaction")     # no shard may ever say it
        if step == CARRY_OPEN or step == CARRY_DESCRIBE:
            return self.open_carry(carry)
        if step == CARRY_HOLD:
            if carry.reader.tag is not None:
                return carry.note_held()
            return Copying.execute_many(self, self.asked, 0)
        if step == CARRY_INSERT:
            return self.insert_carry(carry)
        if step == CARRY_COUNT:
            return self.count_carry(carry)
        if step == CARRY_CLOSE:
            if self.close_for(QUERY) == RETRY:
                return RETRY
            carry.step = CARRY_END
            return HANDLED
        return self.fetch_carry(carry)

    cdef int open_carry(self, Carry carry) except -1:
        """Describe the client's own statement: the client hears of what RETURNING gives."""
        cdef Backend backend
        if carry.step == CARRY_OPEN:
            backend = self.attach(self.hub.default_shard, False, False)
            if backend is None:
                return RETRY
            self.bind_on(backend, carry.statement, OWN, NO_PARAMETERS)
            carry.step = CARRY_DESCRIBE
            return HANDLED
        if carry.reader.description is not None:
            body = carry.reader.description
            carry.head = b"T" + (len(body) + 4).to_bytes(4, "big") + body
        carry.step = CARRY_SELECT
        return HANDLED

    cdef int fetch_carry(self, Carry carry) except -1:
        """The steps of the query."""
        cdef bytes body
        if carry.step == CARRY_SELECT:
            body = carry.select_body()
            if self.bind_for(self.intern_statement(body, len(carry.plan.select)), QUERY, carry.select_bind()) == RETRY:
                return RETRY
            carry.step = CARRY_SPREAD
        elif carry.step == CARRY_SPREAD:
            self.spread_carry()
            body = b"P" + QUERY + b"\0"
            if self.on_describe(<const char*> body, len(body)) == RETRY:
                return RETRY
            carry.step = CARRY_LOOK
        elif carry.step == CARRY_LOOK:
            carry.read_types()
            carry.step = CARRY_FETCH
        elif carry.step == CARRY_FETCH:
            if self.execute_for(QUERY, 0 if carry.plan.is_move else carry.chunk) == RETRY:
                return RETRY
            carry.step = CARRY_TAKE
        else:
            carry.note_fetched()
            carry.step = CARRY_INSERT
        return HANDLED

    cdef int spread_carry(self) except -1:
        """Bind the query on all of its shards: later it would see rows that are inserted meanwhile."""
        cdef Portal portal = self.portals.get(QUERY)
        cdef Backend backend
        cdef int index
        if portal.parts is None:
            return 0
        for index in range(portal.bound, len(portal.parts)):
            self.bind_part(portal, index)
        for backend in portal.parts:
            backend.flush()
        return 0

    cdef int insert_carry(self, Carry carry) except -1:
        """Insert some of the rows, or see what comes when there are none."""
        cdef bytes body
        cdef Statement statement
        if carry.batch_rows == 0:
            carry.batch_rows = carry.next_batch()
            if carry.batch_rows == 0:
                carry.step = CARRY_CLOSE if carry.is_over else CARRY_FETCH
                return HANDLED
            body = carry.insert_body(carry.batch_rows)
            statement = self.intern_statement(body, body.index(b"\0"))
            carry.is_bound = False
            carry.batch = statement
        if not carry.is_bound:
            if self.bind_for(carry.batch, ROWS, carry.insert_bind(carry.batch_rows)) == RETRY:
                return RETRY
            carry.is_bound = True
        if self.execute_for(ROWS, 0) == RETRY:
            return RETRY
        carry.step = CARRY_COUNT
        return HANDLED

    cdef int count_carry(self, Carry carry) except -1:
        """An INSERT has run."""
        if self.close_for(ROWS) == RETRY:
            return RETRY
        carry.note_inserted()
        if carry.is_full():
            for message in carry.take_given(len(carry.given)):
                self.tell(message)
        carry.step = CARRY_INSERT
        return HANDLED

    # -- statements of the router's own --------------------------------------------------------------------------

    cdef int bind_on(self, Backend backend, Statement statement, bytes portal, bytes rest) except -1:
        """Bind and describe on one shard, whatever the statement's route."""
        cdef bytes body
        self.ensure(backend, statement, True, False)
        body = portal + b"\0\0" + rest
        backend.write_message(b"B", <const char*> body, len(body))
        backend.replies.push(REPLY_BIND)
        body = b"P" + portal + b"\0"
        backend.write_message(b"D", <const char*> body, len(body))
        backend.replies.push(REPLY_DESCRIBE)
        backend.write_message(b"C", <const char*> body, len(body))
        backend.replies.push(REPLY_CLOSE)
        backend.unsynced = True
        return 0

    cdef int bind_for(self, Statement statement, bytes portal, bytes rest) except -1:
        """Bind as a client would, by the unnamed statement; the client's own unnamed one stays what it was."""
        cdef Statement unnamed = self.unnamed
        cdef bytes body = portal + b"\0\0" + rest
        cdef int result
        self.unnamed = statement
        try:
            result = self.on_bind(<const char*> body, len(body))
        finally:
            self.unnamed = unnamed
        return result

    cdef int execute_for(self, bytes portal, long long rows) except -1:
        """Execute as a client would."""
        cdef bytes body = portal + b"\0" + int(rows).to_bytes(4, "big")
        self.input_end = NULL
        return self.on_execute(<const char*> body, len(body))

    cdef int close_for(self, bytes portal) except -1:
        """Close a portal as a client would."""
        cdef bytes body = b"P" + portal + b"\0"
        return self.on_close(<const char*> body, len(body))

    # -- the end -------------------------------------------------------------------------------------------------

    cdef int end_carry(self, Carry carry) except -1:
        """All rows are where they belong: the client's answer."""
        cdef bint is_simple = carry.is_simple
        carry.is_done = True
        self.carry = None
        if not is_simple:
            self.ends_segment = carry.ends_segment
            return self.give(carry, self.carry_limit)
        self.simple = True
        self.complete_carry(carry, carry.take_given(len(carry.given)))
        return self.sync_quietly(REPLY_SYNC | REPLY_NOTIFY)

    cdef int give(self, Carry carry, long long rows) except -1:
        """Rows that RETURNING gave, as many as the Execute at hand asks for, and how it ended."""
        cdef Py_ssize_t count = len(carry.given) if rows == 0 else min(<Py_ssize_t> rows, len(carry.given))
        cdef list taken = carry.take_given(count)
        if not carry.is_limited:
            return self.complete_carry(carry, taken)
        for message in taken:
            self.tell(message)
        if rows and count == rows:
            return self.tell(b"s\0\0\0\4")
        return self.push_complete(carry.last_tag().rsplit(b" ", 1)[0] + b" %d" % count)

    cdef int complete_carry(self, Carry carry, list taken) except -1:
        """The whole answer; when it ends a transaction of our own, that has to be committed before."""
        if carry.is_told:
            raise SqlError("55000", "the portal cannot be run")
        carry.is_told = True
        if self.ends_own():
            self.held_rows = taken
        else:
            for message in taken:
                self.tell(message)
        return self.push_complete(carry.last_tag())

    cdef int sync_quietly(self, int entry) except -1:
        """End the segment that a simple Query was to the shards: ReadyForQuery follows when all have answered."""
        cdef Backend backend
        self.pending = 0
        for backend in self.links:
            if backend.unsynced:
                self.pending += 1
                backend.unsynced = False
                backend.executed = False
                backend.write_empty(b"S", entry)
                backend.flush()
        self.waiting = WAIT_SEGMENT
        return HANDLED

    cdef int fail_carry(self, Carry carry) except -1:
        """Wait for all that is owed, then raise what went wrong."""
        cdef Backend backend
        if carry.is_simple and not carry.is_synced:
            carry.is_synced = True
            self.sync_quietly(REPLY_SYNC | REPLY_SWALLOW)
            self.waiting = WAIT_NOTHING
        if self.waiting != WAIT_NOTHING:
            return RETRY
        for backend in self.links:
            if backend.replies.count:
                if backend.unsynced:
                    backend.write_empty(b"H", 0)
                    backend.flush()
                backend.notify_drained = True
                self.waiting = WAIT_DRAIN
                return RETRY
        for message in carry.reader.take_others():
            self.tell(message)
        carry.is_done = True
        self.carry = None
        self.simple = carry.is_simple
        self.portals.pop(QUERY, None)
        self.portals.pop(ROWS, None)
        raise carry.error
