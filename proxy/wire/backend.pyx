"""A backend: one connection to a shard, and the relay of its replies.

Rules:
1. Headers are looked at, bodies are not, but for the few short messages that change state; rows stream through in
   pieces of whatever size arrives.
2. Every request sent pushes an entry on `replies`; the head decides whether a reply goes to the client. Nothing is
   relayed that nobody asked for, except NoticeResponse, ParameterStatus and NotificationResponse.
3. Consecutive messages for the client leave in one write, straight from the receive buffer.
4. An error in extended query drops the entries up to the next Sync, because the shard skips those messages.

    CONNECTING --writable--> STARTUP --ReadyForQuery--> READY --(failure, close)--> CLOSED
"""

cimport cython

from foreshard._core.descriptions cimport translate_oids
from foreshard._core.frames cimport FRAME_MALFORMED, FRAME_NONE, FRAME_PARTIAL, read_uint32, scan_frame
from foreshard._core.replies cimport (
    REPLY_BIND,
    REPLY_CLOSE,
    REPLY_DESCRIBE,
    REPLY_DESCRIBE_MERGED,
    REPLY_EXECUTE,
    REPLY_KIND_MASK,
    REPLY_NONE,
    REPLY_NOTIFY,
    REPLY_PARSE,
    REPLY_POISON,
    REPLY_QUERY,
    REPLY_SWALLOW,
    REPLY_SYNC,
    SYNTHETIC_BIND,
    SYNTHETIC_CLOSE,
    SYNTHETIC_PARSE,
)
from foreshard.proxy.wire.copy_out cimport shows_copy
from foreshard.proxy.wire.endpoint cimport Endpoint
from foreshard.proxy.wire.requests cimport Requests

from foreshard._core.errors import SqlError, decode_error, without_own_context

cdef enum:
    REPLY_BYTES_MAX = 0x7FFFFFF0    # PostgreSQL itself sends no message above 1 GB
    OUTBOX_LOW_BYTES = 65536        # COPY goes on when a shard has taken all but this
    OUTBOX_HIGH_BYTES = 262144      # a client that lags so far stops its backend; chosen, not measured
    COPY_TRAILER_SIZE = 7           # of the message with the binary format's trailer

cdef enum Action:               # odd: not for the client
    ACTION_RELAY = 0
    ACTION_DROP = 1
    ACTION_READY = 2            # relay, then tell the owner
    ACTION_READY_DROP = 3       # tell the owner only
    ACTION_ERROR = 4            # relay, then tell the owner
    ACTION_ERROR_DROP = 5
    ACTION_COPY_IN = 6          # relay, then tell the owner
    ACTION_PART = 7             # a shard's part of a concatenation ended: tell the owner only
    ACTION_FATAL = 8            # relay, then close: a statement of ours failed
    ACTION_MERGE = 9            # for the owner to merge

cdef enum Class:
    CLASS_OTHER = 0
    CLASS_ROW = 1               # DataRow, CopyData, CopyDone: streams through
    CLASS_COMPLETE = 2          # ParseComplete, BindComplete, CloseComplete
    CLASS_DESCRIPTION = 3       # RowDescription, NoData
    CLASS_END = 4               # CommandComplete, EmptyQueryResponse, PortalSuspended
    CLASS_ERROR = 5
    CLASS_READY = 6
    CLASS_ASYNC = 7             # notices, parameters, notifications
    CLASS_COPY_IN = 8
    CLASS_PARAMETERS = 9        # ParameterDescription


cdef unsigned char CLASSES[256]
for _type, _class in (
    (b"D", CLASS_ROW), (b"d", CLASS_ROW), (b"c", CLASS_ROW), (b"H", CLASS_ROW), (b"V", CLASS_ROW),
    (b"1", CLASS_COMPLETE), (b"2", CLASS_COMPLETE), (b"3", CLASS_COMPLETE),
    (b"T", CLASS_DESCRIPTION), (b"n", CLASS_DESCRIPTION), (b"t", CLASS_PARAMETERS),
    (b"C", CLASS_END), (b"I", CLASS_END), (b"s", CLASS_END),
    (b"E", CLASS_ERROR), (b"Z", CLASS_READY), (b"G", CLASS_COPY_IN),
    (b"N", CLASS_ASYNC), (b"S", CLASS_ASYNC), (b"A", CLASS_ASYNC),
):
    CLASSES[<int> _type[0]] = _class


cdef class Owner(Endpoint):
    """Whoever a backend's replies go to: a frontend. The calls come after the bytes have been pushed."""

    cdef int on_ready(self, Backend backend) except -1:
        """ReadyForQuery of a request of the owner's."""
        return 0

    cdef int on_drained(self, Backend backend) except -1:
        """No reply is owed any more (asked for by notify_drained)."""
        return 0

    cdef int on_copy_in(self, Backend backend) except -1:
        """The shard waits for COPY data."""
        return 0

    cdef int on_failed(self, Backend backend) except -1:
        """An ErrorResponse went by."""
        return 0

    cdef bint keeps_error(self, Backend backend, bytes body) except -1:
        """Whether the owner tells the client of an ErrorResponse, or does not, when it has heard of all shards."""
        return False

    cdef int on_part(self, Backend backend, bint suspended) except -1:
        """The backend's part of a concatenated result is complete (or its row limit was reached)."""
        return 0

    cdef int on_merge_input(self, Backend backend, char type, const char* body, Py_ssize_t size) except -1:
        """A row to be merged, or the description of such rows."""
        return 0

    cdef int on_kept(self, Backend backend, Py_ssize_t size) except -1:
        """A row was added to what is kept of the backend's part."""
        return 0

    cdef int on_merge_pause(self, Backend backend) except -1:
        """What was received has been handed over; asked again when `hold` is lifted meanwhile."""
        return 0

    cdef int on_backend_lost(self, Backend backend, object error) except -1:
        """The connection is gone; `error` is the SqlError for the client."""
        return 0

    cdef int on_flushed(self, Backend backend) except -1:
        """The shard has taken most of what was sent (asked for by notify_flushed)."""
        return 0

    cdef int on_granted(self, Backend backend) except -1:
        """A pool gives what it could not give at once."""
        return 0

    cdef int on_gate(self) except -1:
        """The gate lets the owner in that had to wait for it."""
        return 0

    cdef int on_denied(self, object error) except -1:
        """A pool gives up; `error` is the SqlError for the client."""
        return 0


cdef class BackendHome:
    """What a pool is to its backends."""

    cdef int on_backend_ready(self, Backend backend) except -1:
        """Start-up is complete."""
        return 0

    cdef int on_backend_gone(self, Backend backend, object error) except -1:
        """The backend is closed for good."""
        return 0

    cdef int on_cancel_done(self, Backend backend) except -1:
        """No cancel request is on its way any more."""
        return 0


@cython.final
cdef class Backend(Requests):
    """Made and ended by its pool; lent to one owner at a time."""

    def __cinit__(self):
        self.parameters = {}
        self.status = b"I"
        self.bucket = -1
        self.secret = b""

    cdef int set_hold(self, bint hold) except -1:
        """Let this backend's replies wait in the socket, or look at them (again)."""
        self.hold = hold
        if self.fd >= 0:
            self.set_reading(not hold)
            if not hold:
                self.look()
        return 0

    cdef int disown(self) except -1:
        """It is nobody's now: what the owner asked to be told is forgotten, and whatever comes is looked at."""
        self.owner = None
        self.notify_drained = False
        self.notify_flushed = False
        self.holds_tag = False
        self.kept = None
        self.is_echo = False
        self.collected = None
        self.filter = FILTER_NONE
        self.hold = False
        return self.set_reading(True)

    # -- replies -------------------------------------------------------------------------------------------------

    cdef Py_ssize_t on_input(self, const char* data, Py_ssize_t size) except -1:
        """Relay what belongs to the owner; returns the bytes dealt with."""
        cdef Py_ssize_t at = self.relay(data, size)
        cdef bint was_held
        while self.filter == FILTER_MERGE and self.owner is not None:
            was_held = self.hold
            self.owner.on_merge_pause(self)
            if not was_held or self.hold or self.phase != BACKEND_READY:
                break
            at += self.relay(data + at, size - at)
        return at

    cdef Py_ssize_t relay(self, const char* data, Py_ssize_t size) except -1:
        """The same, but for what a merge must be told."""
        cdef Py_ssize_t at = 0, run = 0, total = 0, take
        cdef int result, action
        if self.phase != BACKEND_READY:
            return self.on_startup_input(data, size)
        while at < size and not self.hold:
            if self.streaming:
                take = min(self.streaming, size - at)
                at += take
                self.streaming -= take
                if self.streaming_dropped:
                    run = at
                continue
            result = scan_frame(data + at, size - at, REPLY_BYTES_MAX, &total)
            if result == FRAME_NONE:
                break
            if result == FRAME_MALFORMED:
                self.lose(SqlError("08P01", "a shard sent a malformed message"))
                return size
            if result == FRAME_PARTIAL and (
                    CLASSES[<unsigned char> data[at]] != CLASS_ROW or self.filter == FILTER_MERGE
                    or self.kept is not None or self.collected is not None
                    or (self.copy_out and (not self.copy_begun or total <= COPY_TRAILER_SIZE))):
                self.inbox_goal = total
                break
            if self.types is not None and (data[at] == b"T" or data[at] == b"t"):
                translate_oids(data[at], <char*> data + at + 5, total - 5, self.types.query_types)
            action = self.on_reply(data[at], data + at + 5, total - 5)
            if action & 1 and run < at:
                self.owner_push(data + run, at - run)
            if action == ACTION_MERGE:
                self.owner.on_merge_input(self, data[at], data + at + 5, total - 5)
            if result == FRAME_PARTIAL:
                self.streaming = total - (size - at)
                self.streaming_dropped = action == ACTION_DROP
                total = size - at
            at += total
            if action & 1:
                run = at
            elif action > ACTION_DROP:
                self.owner_push(data + run, at - run)
                run = at
            if action > ACTION_DROP and action != ACTION_MERGE:
                self.after(action)
                if self.phase != BACKEND_READY:
                    return size
            if self.replies.count and self.replies.items[self.replies.head] & REPLY_KIND_MASK >= SYNTHETIC_PARSE:
                self.owner_push(data + run, at - run)
                run = at
                self.push_synthetic()
            if self.notify_drained and self.replies.count == 0 and self.owner is not None:
                self.owner_push(data + run, at - run)
                run = at
                self.notify_drained = False
                self.owner.on_drained(self)
        if run < at:
            self.owner_push(data + run, at - run)
        return at

    cdef int owner_push(self, const char* data, Py_ssize_t size) except -1:
        """Bytes for the client; a client that lags stops this backend until it has caught up."""
        cdef Owner owner = self.owner
        if owner is None or size <= 0:
            return 0
        owner.push(data, size)
        if owner.outbox.end - owner.outbox.start > OUTBOX_HIGH_BYTES:
            self.set_reading(False)
        return 0

    cdef int push_synthetic(self) except -1:
        """Give the synthetic answers whose turn it is."""
        cdef int kind
        while self.replies.count:
            kind = self.replies.peek() & REPLY_KIND_MASK
            if kind == SYNTHETIC_PARSE:
                self.owner_push(b"1\0\0\0\4", 5)
            elif kind == SYNTHETIC_BIND:
                self.owner_push(b"2\0\0\0\4", 5)
            elif kind == SYNTHETIC_CLOSE:
                self.owner_push(b"3\0\0\0\4", 5)
            else:
                break
            self.replies.pop()
        return 0

    cdef int on_reply(self, char type, const char* body, Py_ssize_t size) except -1:
        """Account for one reply; returns what to do with its bytes (an Action)."""
        cdef int head = self.replies.peek(), kind = head & REPLY_KIND_MASK
        cdef bint is_ours = head & (REPLY_SWALLOW | REPLY_NOTIFY) != 0
        cdef int class_ = CLASSES[<unsigned char> type]
        if class_ == CLASS_ROW or (type == b"T" and self.kept is not None and kind == REPLY_QUERY):
            if self.collected is not None and type == b"D" and is_ours:
                self.collected.append(body[:size])
            return row_action(self, type, body, size) if not is_ours and self.owner is not None else ACTION_DROP
        if class_ == CLASS_READY:
            self.deadlock = None
            self.status = body[0]
            self.is_skipping = False
            if kind == REPLY_QUERY or kind == REPLY_SYNC:
                self.replies.pop()
            if self.filter != FILTER_NONE and kind == REPLY_QUERY and not is_ours:
                return ACTION_PART
            if head & REPLY_NOTIFY or (self.holds_ready and not is_ours):
                self.holds_ready = self.holds_tag = False
                self.was_muted = True
                return ACTION_READY_DROP
            self.was_muted = False
            return ACTION_DROP if is_ours else ACTION_READY
        if class_ == CLASS_END:
            if (self.filter != FILTER_NONE or self.holds_tag) and not is_ours:
                return self.on_part_end(type, body, size)
            if kind == REPLY_EXECUTE:
                self.replies.pop()
        elif class_ == CLASS_ERROR:
            return self.on_error(head, is_ours, body[:size])
        elif class_ == CLASS_COMPLETE:
            if kind == REPLY_PARSE and self.parsing:
                statement = self.parsing.pop(0)
                if statement is not None:
                    statement.is_validated = True
            if kind == REPLY_PARSE or kind == REPLY_BIND or kind == REPLY_CLOSE:
                self.replies.pop()
        elif class_ == CLASS_DESCRIPTION:
            if kind == REPLY_DESCRIBE or kind == REPLY_DESCRIBE_MERGED:
                self.replies.pop()
            if (kind == REPLY_DESCRIBE_MERGED or (kind == REPLY_QUERY and self.filter == FILTER_MERGE)) and \
                    type == b"T" and self.owner is not None:
                return ACTION_MERGE
        elif class_ == CLASS_COPY_IN:
            return ACTION_DROP if self.filter == FILTER_COPY or self.filter == FILTER_MUTE else ACTION_COPY_IN
        elif class_ == CLASS_ASYNC:
            if type == b"S":
                self.note_parameter(body[:size])
            if (self.is_echo and type == b"N") or (type == b"S" and kind == REPLY_QUERY and head & REPLY_SWALLOW):
                return ACTION_DROP      # the shards do the same, or are told what another was: the first has said it
            return ACTION_DROP if self.owner is None or self.filter == FILTER_MUTE else ACTION_RELAY
        # All but rows of a kept statement that is merged is hidden: it is run like a Query.
        return ACTION_DROP if is_ours or self.filter == FILTER_REST or self.filter == FILTER_MUTE or \
            kind == REPLY_DESCRIBE_MERGED or (self.filter == FILTER_MERGE and kind == REPLY_QUERY) else ACTION_RELAY

    cdef int note_parameter(self, bytes body) except -1:
        """ParameterStatus: a function may set what no statement tells; the next client must not inherit it."""
        name, _, value = body.rstrip(b"\0").decode("utf-8", "replace").partition("\0")
        if self.owner is None:
            self.parameters[name] = value
        elif self.parameters.get(name) != value:
            self.changed = (self.changed or set()) | {name}
        elif self.changed is not None:
            self.changed.discard(name)
        return 0

    cdef int on_part_end(self, char type, const char* body, Py_ssize_t size) except -1:
        """CommandComplete or PortalSuspended of one shard's part: keep the count."""
        cdef int kind = self.replies.peek() & REPLY_KIND_MASK
        if type == b"C" and self.filter != FILTER_MUTE:
            self.part_tag = body[:size - 1]
            words = self.part_tag.rsplit(b" ", 1)
            self.part_rows += int(words[1]) if len(words) == 2 and words[1].isdigit() else 0
        if kind == REPLY_EXECUTE:
            self.replies.pop()
            self.part_suspended = type == b"s"
            return ACTION_PART
        return ACTION_DROP

    cdef int on_error_reply(self, int head) except -1:
        """ErrorResponse: in extended query the shard now skips to Sync, and so do the entries."""
        cdef int kind = head & REPLY_KIND_MASK
        if self.is_resetting:
            self.is_spoiled = True      # it may still carry what it should have forgotten
        if kind == REPLY_QUERY and head & REPLY_SWALLOW:
            return ACTION_FATAL
        if kind != REPLY_QUERY and kind != REPLY_SYNC:
            while self.replies.count and self.replies.peek() & REPLY_KIND_MASK != REPLY_SYNC:
                self.replies.pop()
            for statement in self.parsing:
                if statement is not None:
                    self.prepared.discard(statement.id)
            self.parsing.clear()
            self.unnamed = None
            self.is_skipping = self.replies.count == 0
        if self.owner is None:
            return ACTION_FATAL if self.is_resetting else ACTION_DROP
        if kind == REPLY_POISON or kind == REPLY_NONE:
            return ACTION_DROP      # unasked: it ends the connection, not a statement
        return ACTION_ERROR_DROP if self.filter == FILTER_MUTE else ACTION_ERROR

    cdef int on_error(self, int head, bint is_ours, bytes given) except -1:
        """ErrorResponse."""
        cdef int kind = head & REPLY_KIND_MASK
        cdef bytes body = without_own_context(given)
        if kind == REPLY_NONE:
            self.last_words = decode_error(body)
        elif self.filter == FILTER_MUTE and head & REPLY_NOTIFY:
            self.muted_error = body
        elif self.filter >= FILTER_MERGE and self.owner is not None and not is_ours:
            self.owner.on_merge_input(self, b"E", body, len(body))
            return ACTION_ERROR_DROP if self.on_error_reply(head) == ACTION_ERROR else ACTION_DROP
        elif self.collected is not None and head & REPLY_SWALLOW:
            return self.on_question_failed(head, body)
        return self.on_statement_failed(head, body, body is not given)

    cdef int on_statement_failed(self, int head, bytes body, bint is_changed) except -1:
        """The same to a statement: the owner may want to hear of other shards' first."""
        cdef int action = self.on_error_reply(head) if self.deadlock is None else self.on_deadlock(head, body)
        if action == ACTION_FATAL and not self.has_begun:
            self.last_words = decode_error(body)    # it was to enlist: whoever waits for it hears why
        cdef bint is_told = action == ACTION_ERROR or action == ACTION_ERROR_DROP
        if is_told and self.owner.keeps_error(self, body):
            return ACTION_ERROR_DROP
        if action == ACTION_ERROR and is_changed:
            self.told_instead = b"E" + (len(body) + 4).to_bytes(4, "big") + body
            return ACTION_ERROR_DROP
        return action

    cdef int on_question_failed(self, int head, bytes body) except -1:
        """ErrorResponse to a question of the owner's, who tells the client."""
        self.muted_error = self.deadlock.encode()[5:] if self.deadlock is not None else body
        return ACTION_FATAL if self.on_error_reply(head) == ACTION_FATAL else ACTION_DROP

    cdef int on_deadlock(self, int head, bytes body) except -1:
        """ErrorResponse to a statement that was cancelled to break a deadlock: the client hears of that instead."""
        cdef int action = self.on_error_reply(head)
        if b"\0C57014\0" not in body:
            return action
        told = self.deadlock.encode()
        if self.muted_error is not None:
            self.muted_error = told[5:]
        if action != ACTION_ERROR:
            return action
        self.told_instead = told
        return ACTION_ERROR_DROP

    cdef int after(self, int action) except -1:
        """What follows once the bytes are with the client."""
        cdef Owner owner = self.owner
        if self.told_instead is not None:
            told, self.told_instead = self.told_instead, None
            self.owner_push(<const char*> told, len(told))
        if owner is None:
            if action == ACTION_FATAL:
                self.lose(self.last_words or SqlError(
                    "08006", "the shard did not end the session of a client that has left"))
            elif self.is_resetting and self.replies.count == 0:
                self.is_resetting = False
                self.home.on_backend_ready(self)
            return 0
        if action == ACTION_READY or action == ACTION_READY_DROP:
            owner.on_ready(self)
        elif action == ACTION_ERROR or action == ACTION_ERROR_DROP:
            owner.on_failed(self)
        elif action == ACTION_COPY_IN:
            if self.replies.peek() & REPLY_KIND_MASK == REPLY_EXECUTE and self.replies.count > 1:
                self.replies.drop_last()    # the shard ignores the Sync that lies behind the Execute
            owner.on_copy_in(self)
        elif action == ACTION_PART:
            owner.on_part(self, self.part_suspended)
        elif action == ACTION_FATAL:
            self.lose(SqlError("08006", "the shard refused to begin the transaction", hint="See the error before."))
        return 0

    # -- connecting ----------------------------------------------------------------------------------------------

    cdef int on_writable(self) except -1:
        """Connected: send the StartupMessage; later: more room."""
        if self.phase == BACKEND_CONNECTING:
            self.phase = BACKEND_STARTUP
            self.outbox.append(<const char*> self.startup, len(self.startup))
        self.flush()
        if self.notify_flushed and self.outbox.end - self.outbox.start < OUTBOX_LOW_BYTES:
            self.notify_flushed = False
            if self.owner is not None:
                return self.owner.on_flushed(self)
        return 0

    cdef Py_ssize_t on_startup_input(self, const char* data, Py_ssize_t size) except -1:
        """Messages up to the first ReadyForQuery."""
        cdef Py_ssize_t at = 0, total = 0
        cdef int result
        while self.phase == BACKEND_STARTUP:
            result = scan_frame(data + at, size - at, REPLY_BYTES_MAX, &total)
            if result == FRAME_MALFORMED:
                self.lose(SqlError("08P01", "a shard sent a malformed message at start-up"))
                return size
            if result == FRAME_NONE or result == FRAME_PARTIAL:
                break
            self.on_startup_message(data[at], data + at + 5, total - 5)
            at += total
        return at

    cdef int on_startup_message(self, char type, const char* body, Py_ssize_t size) except -1:
        """Authentication, parameters, key, errors."""
        if type == b"R":
            if size < 4 or read_uint32(body) != 0:
                self.lose(SqlError(
                    "28000", "a shard asks for a password, which Foreshard cannot give it yet",
                    hint="Let the shard trust the address Foreshard connects from (pg_hba.conf).",
                ))
        elif type == b"S":
            name, _, value = body[:size - 1].decode("utf-8", "replace").partition("\0")
            self.parameters[name] = value
        elif type == b"K":
            if size >= 8:
                self.pid = <int> read_uint32(body)
                self.secret = body[4:size]
        elif type == b"E":
            self.lose(decode_error(body[:size]))
        elif type == b"Z":
            self.phase = BACKEND_READY
            self.status = body[0]
            self.home.on_backend_ready(self)
        return 0

    # -- looking inside ------------------------------------------------------------------------------------------

    def has_owner(self) -> bool:
        """Lent to a session."""
        return self.owner is not None

    def owner_id(self) -> int | None:
        """The pid that the session it is lent to was told; None when idle."""
        return self.owner.pid if self.owner is not None else None

    def is_starting(self) -> bool:
        """Has not completed its start-up."""
        return self.phase < BACKEND_READY

    def prepared_count(self) -> int:
        """Server-side prepared statements."""
        return len(self.prepared)

    def break_deadlock(self, error: SqlError) -> None:
        """Its statement is about to be cancelled: the client hears this error then."""
        self.deadlock = error

    def begin_cancel(self) -> None:
        """A cancel request is on its way: the backend goes to nobody else meanwhile."""
        self.cancels += 1

    def end_cancel(self, is_delivered: bool) -> None:
        """The cancel request was taken, or (not delivered) it may still come."""
        self.cancels -= 1
        self.is_spoiled = self.is_spoiled or not is_delivered
        if self.cancels == 0 and self.owner is None and self.phase == BACKEND_READY:
            self.home.on_cancel_done(self)

    # -- the end -------------------------------------------------------------------------------------------------

    def fail(self, error: SqlError) -> None:
        """Foreshard failed while it looked at this backend's replies."""
        self.lose(error)

    cdef int lose(self, object error) except -1:
        """Close for good and tell owner and pool."""
        cdef Owner owner = self.owner
        if self.phase == BACKEND_CLOSED:
            return 0
        self.phase = BACKEND_CLOSED
        self.owner = None
        self.close()
        if owner is not None:
            owner.on_backend_lost(self, error)
        self.home.on_backend_gone(self, error)
        return 0

    cdef int on_closed(self, str reason) except -1:
        """The shard closed the connection."""
        what = f": {reason}" if reason else ""
        return self.lose(self.last_words or SqlError(
            "08006", f"the connection to the shard was lost{what}",
            hint="The outcome of the statement that was running is unknown; look before trying again.",
        ))


cdef int row_action(Backend backend, char type, const char* body, Py_ssize_t size) except -1:
    """What to do with a row, or a message of COPY, that somebody waits for."""
    if backend.filter == FILTER_MERGE or (backend.filter == FILTER_NONE and backend.kept is None):
        return ACTION_RELAY if backend.filter == FILTER_NONE else ACTION_MERGE
    if type == b"c" or (type == b"H" and backend.filter >= FILTER_REST):
        return ACTION_DROP      # one CopyOutResponse and one CopyDone for the parts of all shards
    if backend.is_echo or backend.filter == FILTER_MUTE:
        return ACTION_DROP
    if backend.kept is not None:
        if type != b"T" or backend.filter < FILTER_REST:
            backend.kept.append((body - 5)[:size + 5])
            backend.owner.on_kept(backend, size)
        return ACTION_DROP
    if type == b"d" and backend.copy_out and not shows_copy(backend, body, size):
        return ACTION_DROP
    return ACTION_RELAY
