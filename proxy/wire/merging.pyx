"""Reads of several shards whose rows are merged: sorted, grouped, limited.

The shards run a text of their own (MergePlan) at once; their rows wait in the Merger's queues until it can tell which
comes next. A shard whose queue is full is not read from (hold), and no row is taken while the client lags, so memory
stays bounded whatever the shards send. What an Execute with a row limit leaves waits in its portal: shards are then
asked for few rows at a time, so that nothing is owed when other statements come in between.

    begin_merge --rows--> advance --(all rows written, or row limit)--> wait for what was asked --> finish_merge
                            +--error of a shard or of ours--> mute ------------------------------------^
"""

from foreshard._core.buffer cimport Buffer
from foreshard._core.frames cimport BindParts, Cursor, read_bytes, read_int16, read_int32
from foreshard._core.merge cimport MERGE_DONE, MERGE_FULL, MERGE_NEEDS, MERGE_ROWS, Merger
from foreshard._core.merge_plan cimport MergePlan
from foreshard._core.replies cimport (
    REPLY_BIND,
    REPLY_DESCRIBE_MERGED,
    REPLY_EXECUTE,
    REPLY_KIND_MASK,
    REPLY_PARSE,
    Replies,
)
from foreshard.proxy.wire.backend cimport FILTER_MERGE, FILTER_MUTE, Backend
from foreshard.proxy.wire.parsing cimport HANDLED, RETRY
from foreshard.proxy.wire.portal cimport Portal
from foreshard.proxy.wire.segment cimport Segment
from foreshard.proxy.wire.session cimport WAIT_MERGE
from foreshard.proxy.wire.statement cimport Statement

from foreshard._core.errors import SqlError, not_built

cdef enum:
    QUEUE_HIGH_BYTES = 65536    # of one shard's rows before it is not read from; chosen, not measured
    QUEUE_LOW_BYTES = 32768
    OUT_BYTES = 32768           # of merged rows in one write
    OUTBOX_HIGH_BYTES = 262144  # a client that lags so far stops the merge, as it stops backends
    OUTBOX_LOW_BYTES = 65536
    CHUNK_ROWS_MAX = 256        # that a shard is asked for at once under a row limit


cdef class Merging(Segment):
    """The part of a frontend that merges shards' rows."""

    def __cinit__(self):
        self.merged = Buffer()
        self.describing = []

    cdef int check_encoding(self, MergePlan plan, Backend backend) except -1:
        """Strings are compared as the client gets them: in the server's encoding. Floats need all of their digits."""
        cdef object client
        if plan.is_float:
            texts = [*self.script, *[text for _, text, _ in self.history]]
            texts += [value.encode() for name, value in self.parameters if name == "options"]
            if any([b"float_digits" in text.lower() for text in texts]):
                raise not_built("merging floats whose digits the session has set", "Leave extra_float_digits as it is.")
        if not plan.is_text or plan.finish is not None:
            return 0
        client = backend.parameters.get("client_encoding")
        if (client != backend.parameters.get("server_encoding") and client != "SQL_ASCII") or (
                backend.changed is not None and "client_encoding" in backend.changed):
            raise not_built("sorting strings of several shards in another encoding than the database's",
                            "Leave client_encoding as the database has it.")
        return 0

    cdef tuple labels(self):
        """What stands above each shard's rows in an EXPLAIN."""
        return tuple([f"Shard {self.hub.shard_names[shard]}:".encode() for shard in self.shards])

    # -- the merge -----------------------------------------------------------------------------------------------

    cdef int begin_merge(self, list parts, Merger merger, list states) except -1:
        """The shards have been asked, as `states` says: merge what they answer."""
        cdef Backend backend
        cdef int index = 0
        self.parts = parts
        self.merger = merger
        self.part_states = states
        self.running = states.count(PART_RUNNING)
        self.parts_failed = False
        self.merged.clear()
        self.merge_state = MERGE_NEEDS
        self.active = parts[0]
        self.waiting = WAIT_MERGE
        self.is_corked = True
        for backend in parts:
            backend.part_index = index
            backend.part_rows = 0
            backend.part_suspended = False
            backend.filter = FILTER_MERGE
            index += 1
        for backend in parts:
            backend.flush()
        return 0

    cdef int on_merge_input(self, Backend backend, char type, const char* body, Py_ssize_t size) except -1:
        cdef Merger merger = self.merger
        cdef Portal portal
        cdef bytes shown
        cdef bint is_shown = True
        if type == b"E":
            if self.parts and backend is not self.parts[0] and not self.simple:
                self.push_bound(self.parts[0], backend.replies.peek() & REPLY_KIND_MASK)
            if backend.replies.peek() == REPLY_PARSE:      # the client's own text
                return self.push_bytes(b"E" + (size + 4).to_bytes(4, "big") + body[:size])
            return self.push_bytes(without_position(body[:size]))
        if type == b"T":
            if self.describing:
                portal, is_shown = self.describing.pop(0)
                merger = portal.merger
            elif merger is None or merger.described:
                return 0
            try:
                shown = merger.describe(body, size)
            except SqlError as error:
                return self.fail_merge(backend, error)
            return self.push_bytes(b"T" + (len(shown) + 4).to_bytes(4, "big") + shown) if is_shown else 0
        if merger is None:
            return 0
        merger.add(backend.part_index, body, size)
        if self.chunk == 0 and merger.queued(backend.part_index) > QUEUE_HIGH_BYTES:
            backend.set_hold(True)
        return 0

    cdef int push_bound(self, Backend first, int failed) except -1:
        """Another shard has failed at `failed` (ReplyKind): what the first one has not confirmed yet, and won't now."""
        cdef Replies owed = first.replies
        cdef Py_ssize_t index
        cdef int entry
        for index in range(owed.count):
            entry = owed.items[(owed.head + index) & (owed.capacity - 1)]
            if entry == REPLY_PARSE and failed != REPLY_PARSE:
                self.push_bytes(b"1\0\0\0\4")
            elif entry == REPLY_BIND and failed == REPLY_EXECUTE:
                self.push_bytes(b"2\0\0\0\4")
        return 0

    cdef int fail_merge(self, Backend current, object error) except -1:
        """The shards' rows cannot be merged after all: a type has changed since the catalog was read."""
        self.push_bytes(error.encode())
        if self.waiting == WAIT_MERGE:
            self.parts_failed = True
            return self.mute(current)
        self.skipping = not self.simple
        self.failed = self.explicit
        return 0

    cdef int on_merge_pause(self, Backend backend) except -1:
        if self.waiting != WAIT_MERGE:
            return 0
        return self.advance(backend)

    cdef int advance(self, Backend current) except -1:
        """Write the rows that can be told to come next. `current` is the backend that is being read from."""
        cdef Merger merger = self.merger
        self.has_news = True
        if self.is_advancing or merger is None:
            return 0
        self.is_advancing = True
        try:
            while self.has_news and not self.parts_failed and self.merge_state != MERGE_DONE and \
                    self.merge_state != MERGE_ROWS and self.fd >= 0:
                self.has_news = self.advance_once(current)
        except SqlError as error:
            self.fail_merge(current, error)
        finally:
            self.is_advancing = False
        return self.settle_merge(merger)

    cdef bint advance_once(self, Backend current) except -1:
        """One round; True when there may be more to do at once."""
        if self.outbox.end - self.outbox.start > OUTBOX_HIGH_BYTES:
            return False        # on_writable goes on
        self.merge_state = self.merger.step(self.merged, OUT_BYTES, self.rows_goal)
        if self.merged.end > self.merged.start:
            self.give_rows()
        if self.outbox.end - self.outbox.start > OUT_BYTES:
            self.can_ask_again = False
            self.flush()
        if self.merge_state == MERGE_FULL:
            return True
        self.has_news = False
        if self.merge_state == MERGE_DONE:
            self.mute(current)
        else:
            self.wake(current)
        return self.has_news

    cdef int give_rows(self) except -1:
        """The merged rows at hand are the client's."""
        self.push(self.merged.data + self.merged.start, self.merged.end - self.merged.start)
        self.merged.clear()
        return 0

    cdef int wake(self, Backend current) except -1:
        """Read on from shards whose queues have room, and ask the one whose rows are needed for more."""
        cdef Backend backend
        for backend in list(self.parts):
            if backend.hold and self.merger.queued(backend.part_index) < QUEUE_LOW_BYTES:
                release(backend, current)
        if self.merge_state == MERGE_NEEDS and self.merger.described and \
                self.part_states[self.merger.needed] == PART_SUSPENDED:
            backend = self.parts[self.merger.needed]
            self.part_states[self.merger.needed] = PART_RUNNING
            self.running += 1
            self.send_execute(backend, self.asked.name, self.chunk)
            backend.flush()
        return 0

    cdef int mute(self, Backend current) except -1:
        """Let what the shards still send go by."""
        cdef Backend backend
        for backend in list(self.parts):
            backend.filter = FILTER_MUTE
        for backend in list(self.parts):
            if backend.hold:
                release(backend, current)
        return 0

    cdef int on_part(self, Backend backend, bint suspended) except -1:
        cdef int index = backend.part_index
        if self.waiting != WAIT_MERGE:
            return Segment.on_part(self, backend, suspended)
        if self.part_states[index] == PART_RUNNING:
            self.running -= 1
        self.part_states[index] = PART_SUSPENDED if suspended else PART_ENDED
        if not suspended:
            self.merger.end(index)
        return self.advance(backend)

    cdef int on_failed(self, Backend backend) except -1:
        cdef Merger merger = self.merger
        self.describing.clear()
        if self.waiting != WAIT_MERGE:
            return Segment.on_failed(self, backend)
        self.parts_failed = True
        if not self.simple and self.part_states[backend.part_index] == PART_RUNNING:
            self.running -= 1       # in extended query nothing follows the error
            self.part_states[backend.part_index] = PART_ENDED
        self.mute(backend)
        return self.settle_merge(merger)

    cdef int settle_merge(self, Merger merger) except -1:
        """Finish when nothing is owed any more and nothing is left to write."""
        if self.is_advancing or self.merger is not merger or self.running:
            return 0
        if self.parts_failed or self.merge_state == MERGE_DONE or self.merge_state == MERGE_ROWS:
            return self.finish_merge()
        return 0

    cdef int finish_merge(self) except -1:
        """Nothing is owed any more, and all rows are written."""
        cdef long long rows = self.merger.emitted - self.rows_before
        cdef bint is_plan = self.merger.plan.is_plan
        self.merger = None
        self.chunk = 0
        if not self.simple and not self.parts_failed:
            self.asked.statement.has_merged = True
        return self.finish_result(self.merge_state == MERGE_ROWS and not self.parts_failed,
                                  b"EXPLAIN" if is_plan else b"SELECT %d" % rows)

    cdef int on_writable(self) except -1:
        Segment.on_writable(self)
        if self.waiting == WAIT_MERGE and self.outbox.end - self.outbox.start < OUTBOX_LOW_BYTES:
            return self.advance(None)
        return 0

    # -- extended query ------------------------------------------------------------------------------------------

    cdef MergePlan plan_for(self, MergePlan plan):
        """The plan for the session's DateStyle, as the shards have told it."""
        cdef Backend backend
        if plan.undated is None:
            return plan
        backend = self.find_link(self.shards[0])
        if backend.changed is not None and "DateStyle" in backend.changed:
            return plan.undated
        return plan if str(backend.parameters.get("DateStyle")).startswith("ISO") else plan.undated

    cdef Statement statement_for_shards(self, Statement statement, MergePlan plan):
        """The statement with the shards' text, made once."""
        if plan is not statement.template.merge:
            if statement.undated is None:
                self.hub.statement_ids += 1
                statement.undated = statement.with_text(self.hub.statement_ids, plan.text(statement.literals))
            return statement.undated
        if statement.merged is None:
            self.hub.statement_ids += 1
            statement.merged = statement.with_text(
                self.hub.statement_ids, statement.template.merge.text(statement.literals))
        return statement.merged

    cdef int bind_many(self, Portal portal, Statement statement, BindParts* parts) except -1:
        if statement.template.merge is not None:
            return self.bind_merged(portal, statement, parts)
        portal.merger = None
        return Segment.bind_many(self, portal, statement, parts)

    cdef int bind_merged(self, Portal portal, Statement statement, BindParts* parts) except -1:
        """Bind the shards' statement on the first of them; the client's own is only parsed there, for its errors."""
        cdef MergePlan plan = self.plan_for(statement.template.merge)
        cdef list backends = [self.find_link(shard) for shard in self.shards]
        self.check_encoding(plan, backends[0])
        portal.merger = Merger(
            plan, len(backends), plan.read_limit(statement.literals, self.hub.params),
            plan.read_offset(statement.literals, self.hub.params), self.labels())
        portal.states = None
        portal.texts = None
        portal.row_order = portal.row_marks = None
        portal.statement = self.statement_for_shards(statement, plan)
        portal.backend = None
        portal.part = 0
        portal.bound = 1
        portal.name = parts.portal[:parts.portal_size]
        portal.rest = widen_formats(parts, plan.hidden)
        portal.is_unnamed = parts.statement_size == 0
        portal.parts = backends
        self.active = backends[0]
        if self.settle_deferred() == RETRY:
            raise SqlError("XX000", "the active backend is attached already")
        self.ensure(self.active, portal.statement, portal.is_unnamed, False)
        parts.rest = <const char*> portal.rest
        parts.rest_size = len(portal.rest)
        return self.send_bind(self.active, portal.statement, parts, True)

    cdef int on_describe(self, const char* body, Py_ssize_t size) except -1:
        cdef Portal portal = None
        if size >= 2 and body[0] == b"P" and body[size - 1] == 0:
            portal = self.portals.get(body[1:size - 1]) if size > 2 else self.portal
        if portal is None or portal.statement is None or portal.parts is None or portal.merger is None:
            return Segment.on_describe(self, body, size)
        if self.settle_deferred() == RETRY:
            return RETRY
        return self.describe_merged(portal, True)

    cdef int describe_merged(self, Portal portal, bint is_shown) except -1:
        """Ask for the description of the shards' rows; the client's is made of it."""
        cdef Backend backend = portal.parts[0]
        cdef bytes message = b"P" + portal.name + b"\0"
        if self.attach(backend.shard, False, False) is not backend:
            return RETRY
        backend.write_message(b"D", <const char*> message, len(message))
        backend.replies.push(REPLY_DESCRIBE_MERGED)
        backend.unsynced = True
        self.describing.append((portal, is_shown))
        return HANDLED

    cdef int execute_many(self, Portal portal, long long rows) except -1:
        if portal.merger is None:
            return Segment.execute_many(self, portal, rows)
        return self.execute_merged(portal, rows)

    cdef bint waits_for_others(self, Portal portal) except -1:
        """True while something is owed to the client that comes before the portal's rows, but for its Bind and the
        like: the first shard answers those before its rows, and none is written without them. The error of a text
        that comes for the first time is the first shard's, which knows the client's own.
        """
        if portal.states is None and self.active is portal.parts[0] and \
                self.active.replies.is_binding(portal.statement.has_merged):
            return False
        return self.wait_until_drained()

    cdef int execute_merged(self, Portal portal, long long rows) except -1:
        """Run a merged portal, or go on with it."""
        cdef Merger merger = portal.merger
        cdef int index
        cdef bint is_first = portal.states is None
        if self.waits_for_others(portal):
            return RETRY
        if is_first and not merger.described:
            self.describe_merged(portal, False)
        self.asked = portal
        self.rows_before = merger.emitted
        self.rows_goal = merger.emitted + rows if rows else 0
        self.chunk = min(rows, <long long> CHUNK_ROWS_MAX)
        if is_first:
            portal.states = [PART_RUNNING] * len(portal.parts)
        if self.may_sync and is_first and merger.plan.finish is None and self.can_sync(portal.parts):
            self.syncs = True
            self.synced = <int> len(portal.parts)
        for index in range(len(portal.parts)):
            if is_first:
                self.execute_part(portal, index, self.chunk)
            elif rows == 0 and portal.states[index] == PART_SUSPENDED:
                portal.states[index] = PART_RUNNING
                self.send_execute(portal.parts[index], portal.name, 0)
        self.begin_merge(portal.parts, merger, portal.states)
        return self.advance(None)

    cdef int release_links(self) except -1:
        self.describing.clear()
        return Segment.release_links(self)


cdef int release(Backend backend, Backend current) except -1:
    """Read on from a backend; from the current one in its own on_input, which is under way."""
    if backend is not current:
        return backend.set_hold(False)
    backend.hold = False
    return backend.set_reading(True)


cdef bytes without_position(bytes body):
    """An ErrorResponse less the place in a text that the client does not know."""
    cdef list fields = [field for field in body.split(b"\0") if field and field[:1] != b"P"]
    cdef bytes shown = b"\0".join(fields) + b"\0\0"
    return b"E" + (len(shown) + 4).to_bytes(4, "big") + shown


cdef tuple split_formats(BindParts* parts):
    """A Bind from its parameter formats on, cut in two: parameters, and the formats of the results."""
    cdef Cursor cursor
    cdef int size
    cursor.at = parts.rest
    cursor.end = parts.rest + parts.rest_size
    cursor.is_bad = False
    read_bytes(&cursor, <Py_ssize_t> read_int16(&cursor) * 2)
    for _ in range(read_int16(&cursor) & 0xFFFF):
        size = read_int32(&cursor)
        if size > 0:
            read_bytes(&cursor, size)
    if cursor.is_bad:
        raise SqlError("08P01", "invalid Bind message")
    return parts.rest[:cursor.at - parts.rest], cursor.at[:cursor.end - cursor.at]


cdef bytes widen_formats(BindParts* parts, int hidden):
    """A Bind from its parameter formats on, with text as the result format of hidden columns."""
    cdef bytes values, formats
    cdef int count
    values, formats = split_formats(parts)
    count = int.from_bytes(formats[:2], "big")
    if count < 2:       # one for all columns, or none
        return values + formats
    return values + (count + hidden).to_bytes(2, "big") + bytes(2 * hidden) + formats[2:]
