"""A frontend: one client connection, from its StartupMessage to its end.

    STARTUP --SSLRequest, GSSENCRequest: 'N'--> STARTUP
    STARTUP --CancelRequest--> LOGIN --passed on--> CLOSED
    STARTUP --StartupMessage--> LOGIN --first backend's parameters known--> READY
    STARTUP --StartupMessage, database foreshard--> CONSOLE
    any     --Terminate, end of input, protocol error--> CLOSED

Rules: a message is looked at only when it is whole and its length is within the limit; a malformed one ends the
connection with a FATAL ErrorResponse and touches nobody else's; input that cannot be handled yet stays in the inbox.
"""

cimport cython

from foreshard._core.frames cimport FRAME_MALFORMED, FRAME_NONE, FRAME_PARTIAL, read_uint32, scan_frame
from foreshard.proxy.wire.backend cimport Backend
from foreshard.proxy.wire.commit cimport GATE_IN_LINE, STEP_DECIDE
from foreshard.proxy.wire.parsing cimport RETRY
from foreshard.proxy.wire.pool cimport Hub, Pool
from foreshard.proxy.wire.session cimport (
    WAIT_ANSWER,
    WAIT_CLIENT,
    WAIT_COMMANDS,
    WAIT_FROZEN,
    WAIT_NOTHING,
    WAIT_POOL,
    WAIT_SCHEMA,
    WAIT_SEGMENT,
    WAIT_SHARD,
)
from foreshard.proxy.wire.simple cimport Simple

import secrets
import time

from foreshard._core.errors import SqlError, not_built

cdef enum:
    EPOLL_IN = 1
    SSL_REQUEST = 80877103
    GSSENC_REQUEST = 80877104
    CANCEL_REQUEST = 80877102
    PROTOCOL_3_0 = 196608
    INBOX_HIGH_BYTES = 262144       # a client that sends on while it waits is not read beyond; chosen, not measured
    OUTBOX_HIGH_BYTES = 1048576     # what a shard, or the client, has not taken; chosen, not measured

# What changes how texts read, and whether triggers fire: the values that may be set at start-up.
CHANGES_MEANING = {"standard_conforming_strings": ("on", "true", "1"), "session_replication_role": ("origin", "local")}
ENCODINGS = ("utf8", "utf-8", "unicode", "sql_ascii")     # what is read as the shards read it
CONSOLE_DATABASE = "foreshard"
NODE_WAIT_S = 5.0   # for the query node to follow a change of the schema, which takes tenths of a second; chosen
GRACE_S = 1.0       # what a client has sent is still done for so long after it left; chosen, not measured


@cython.final
cdef class Frontend(Simple):
    """Made by the listener for each connection; keeps itself alive through the reactor until it is closed."""

    def __init__(self, Hub hub, int fd, object address):
        self.hub = hub
        self.cache = hub.cache
        self.address = address
        self.connected_at = hub.loop.time()
        self.connected_time = time.time()
        self.pid = 0
        self.secret = b""
        self.open(hub.reactor, fd, EPOLL_IN)

    # -- start-up ------------------------------------------------------------------------------------------------

    cdef int on_startup(self, const char* data, Py_ssize_t size) except -1:
        """Requests that come before the StartupMessage, and that one; returns the bytes dealt with."""
        cdef Py_ssize_t at = 0
        cdef unsigned int length
        while self.phase == FRONTEND_STARTUP and size - at >= 4:
            length = read_uint32(data + at)
            if length < 8 or length > <unsigned int> self.hub.config.limits.startup_bytes_max:
                self.fatal(SqlError("08P01", "invalid length of startup packet"))
                return size
            if size - at < length:
                break
            self.on_startup_message(data + at + 4, length - 4)
            at += length
        return at

    cdef int on_startup_message(self, const char* body, Py_ssize_t size) except -1:
        """One packet of the start-up phase."""
        cdef unsigned int code = read_uint32(body)
        if code == SSL_REQUEST or code == GSSENC_REQUEST:
            return self.push(b"N", 1)
        if code == CANCEL_REQUEST:
            if size < 8:
                return self.finish()
            self.phase = FRONTEND_LOGIN
            self.waiting = WAIT_ANSWER
            self.hub.services.cancel(int(read_uint32(body + 4)), body[8:size], self)
            return 0
        if code >> 16 != 3:
            return self.fatal(SqlError(
                "0A000", f"unsupported frontend protocol {code >> 16}.{code & 0xFFFF}: Foreshard supports 3.0"))
        words = body[4:size].split(b"\0")
        if len(words) < 2 or words[-1] != b"" or words[-2] != b"" or len(words) % 2 != 0:
            return self.fatal(SqlError("08P01", "invalid startup packet layout: expected terminator as last byte"))
        try:
            texts = [word.decode() for word in words[:-2]]
        except UnicodeDecodeError:
            return self.fatal(SqlError("08P01", "invalid startup packet: not UTF-8"))
        parameters = dict(zip(texts[::2], texts[1::2], strict=True))
        unknown = [name for name in parameters if name.startswith("_pq_.")]
        if code != PROTOCOL_3_0 or unknown:
            names = b"".join(name.encode() + b"\0" for name in unknown)
            answer = PROTOCOL_3_0.to_bytes(4, "big") + len(unknown).to_bytes(4, "big") + names
            self.push_bytes(b"v" + (len(answer) + 4).to_bytes(4, "big") + answer)
            for name in unknown:
                del parameters[name]
        return self.check_parameters(parameters)

    cdef int check_parameters(self, dict parameters) except -1:
        """Who is it, and what database do they want?"""
        user = parameters.pop("user", "")
        database = parameters.pop("database", "") or user
        if not user:
            return self.fatal(SqlError("28000", "no PostgreSQL user name specified in startup packet"))
        if parameters.pop("replication", "off").lower() not in ("off", "false", "no", "0"):
            return self.fatal(not_built("replication connections", "Connect to the shard itself."))
        if len(self.hub.sessions) >= self.hub.config.limits.clients_max:
            return self.fatal(SqlError(
                "53300", "sorry, too many clients already", hint="limits.clients_max is the bound."))
        # PostgreSQL takes search-path and sea\\rch_path, too, and either in any case.
        settings = " ".join([*parameters, parameters.get("options", "")]).lower().replace("-", "_").replace("\\", "")
        if self.hub.is_sharded and ("search_path" in settings or "foreshard" in settings):
            return self.fatal(not_built("setting search_path or foreshard.* at start-up", "Qualify the names instead."))
        for name in CHANGES_MEANING:
            if self.hub.is_sharded and name in settings and parameters.get(name) not in CHANGES_MEANING[name]:
                return self.fatal(not_built(f"setting {name} at start-up", "Leave it at its default."))
        encoding = parameters.get("client_encoding", "utf8").lower().strip("'\"")
        told = settings.count("client_encoding") - ("client_encoding" in parameters)    # in the options
        if self.hub.is_sharded and (encoding not in ENCODINGS or told):
            return self.fatal(not_built(f"client_encoding {encoding} at start-up", "Use client_encoding UTF8."))
        self.pid = secrets.randbits(31)
        self.secret = secrets.token_bytes(4)
        self.hub.sessions[self.pid, self.secret] = self
        self.parameters = (("user", user), ("database", database), *sorted(parameters.items()))
        if database == CONSOLE_DATABASE:
            self.phase = FRONTEND_CONSOLE
            self.push_bytes(self.hub.services.console_greeting())
            self.push_login()
            return 0
        if database != self.hub.database:
            return self.fatal(SqlError(
                "3D000", f'database "{database}" does not exist',
                hint=f'Foreshard serves database "{self.hub.database}", and its console as "{CONSOLE_DATABASE}".'))
        self.phase = FRONTEND_LOGIN
        return self.login()

    cdef int login(self) except -1:
        """The client's parameters are what a backend with the same StartupMessage was given."""
        cdef Pool pool = self.pool(self.hub.default_shard)
        cdef Backend backend
        if pool.server_parameters is None:
            backend = pool.take(self, False)
            if backend is None:
                self.waiting = WAIT_POOL
                return 0
            pool.put(backend)
        return self.finish_login()

    cdef int finish_login(self) except -1:
        """AuthenticationOk, parameters, cancel key, ReadyForQuery."""
        cdef Pool pool = self.pool(self.hub.default_shard)
        answer = bytearray(b"R\0\0\0\x08\0\0\0\0")
        for name, value in pool.server_parameters.items():
            body = name.encode() + b"\0" + value.encode() + b"\0"
            answer += b"S" + (len(body) + 4).to_bytes(4, "big") + body
        self.push_bytes(bytes(answer))
        self.phase = FRONTEND_READY
        return self.push_login()

    def push_login(self) -> int:
        """BackendKeyData and ReadyForQuery."""
        self.push_bytes(b"K\0\0\0\x0c" + self.pid.to_bytes(4, "big") + self.secret)
        return self.push_ready()

    # -- input ---------------------------------------------------------------------------------------------------

    cdef Py_ssize_t on_input(self, const char* data, Py_ssize_t size) except -1:
        """Handle whole messages until one has to wait; returns the bytes dealt with."""
        cdef Py_ssize_t at = 0, total = 0
        cdef int result
        if self.phase == FRONTEND_STARTUP:
            at = self.on_startup(data, size)
        if self.is_looking:
            return at
        self.is_looking = True
        self.input_end = data + size
        try:
            while self.waiting == WAIT_NOTHING and self.phase >= FRONTEND_READY and self.fd >= 0:
                result = scan_frame(data + at, size - at, self.hub.message_bytes_max, &total)
                if result == FRAME_NONE:
                    break
                if result == FRAME_MALFORMED or not is_frontend_type(data[at]):
                    self.fatal(bad_message(data[at], read_uint32(data + at + 1), self.hub.message_bytes_max))
                    return size
                if result == FRAME_PARTIAL:
                    self.inbox_goal = total
                    break
                if self.handle(data[at], data + at + 5, total - 5, data + at, total) == RETRY:
                    break
                at += total
                if self.outbox.end - self.outbox.start > OUTBOX_HIGH_BYTES or (
                        self.active is not None
                        and self.active.outbox.end - self.active.outbox.start > OUTBOX_HIGH_BYTES):
                    self.throttle()
        finally:
            self.is_looking = False
        if self.fd < 0:
            return size
        if self.active is not None and self.active.outbox.end > self.active.outbox.start:
            self.active.flush()
        if self.copying and self.splitter is not None and self.waiting == WAIT_NOTHING:
            self.end_batch()
        if self.waiting != WAIT_NOTHING and size - at > INBOX_HIGH_BYTES and not self.reading_paused:
            self.reading_paused = True
            self.set_reading(False)
        elif self.at_end and self.waiting == WAIT_NOTHING:
            self.finish()
            return size
        return at

    cdef int resume(self) except -1:
        """Go on with the client's next message."""
        self.waiting = WAIT_NOTHING
        if self.carry is not None:
            self.skipping = self.failed = False     # its reader has the error
        if self.phase == FRONTEND_LOGIN:
            return self.resume_login()
        if self.reading_paused:
            self.reading_paused = False
            self.set_reading(True)
        if self.is_looking or self.fd < 0:
            return 0
        if self.inbox.end > self.inbox.start:
            return self.look()
        if self.at_end:
            return self.finish()
        return 0

    def resume_login(self) -> int:
        """A backend was granted (or denied) while the client logs in."""
        error, self.denied = self.denied, None
        if error is not None:
            return self.fatal(error)
        self.release_links()
        self.finish_login()
        return self.look()

    cdef int handle(
        self, char type, const char* body, Py_ssize_t size, const char* message, Py_ssize_t total
    ) except -1:
        """One whole message; SqlErrors become its answer."""
        try:
            if self.denied is not None and self.carry is None:
                error, self.denied = self.denied, None
                raise error
            if self.hub.is_held and self.begins(type):
                self.waiting = WAIT_SCHEMA
                self.decided_shard = -1
                self.hub.held.append(self)
                return RETRY
            if self.on_message(type, body, size, message, total) == RETRY:
                return RETRY
            self.node_deadline = 0.0
            if self.claimed is not None:
                self.forget_claimed()
            return 0
        except SqlError as error:
            self.decided_shard = -1
            if error.is_passing and self.wait_for_node():
                return RETRY
            if self.wait_until_drained():
                return RETRY
            self.forget_claimed()
            self.answer_error(error)
            return 0 if self.several is None else self.run_several()
        except Exception as error:      # a mistake of ours ends this client's session, and nobody else's
            self.hub.services.report_failure(self, error)
            return 0

    cdef bint begins(self, char type) noexcept:
        """A message with which something is sent to shards that wait for nothing of this client's."""
        return (type in (b"Q", b"P", b"B", b"D", b"E") and self.phase == FRONTEND_READY and not self.copying
                and not self.skipping and self.carry is None and not self.is_unsynced())

    cdef bint wait_for_node(self) except -1:
        """Whether the message is to be handled again, when the query node may have followed a change of the schema."""
        now = self.hub.loop.time()
        if self.node_deadline == 0.0:
            self.node_deadline = now + NODE_WAIT_S
        if self.several is not None or self.alters or self.hub.is_stopping or now >= self.node_deadline:
            self.node_deadline = 0.0
            return False
        self.waiting = WAIT_SCHEMA
        self.hub.behind.append(self)
        return True

    def go_on_planning(self) -> None:
        """Nothing holds statements back any more."""
        if self.fd >= 0 and self.waiting == WAIT_SCHEMA:
            self.resume()

    cdef int on_message(
        self, char type, const char* body, Py_ssize_t size, const char* message, Py_ssize_t total
    ) except -1:
        """Dispatch by type."""
        if type == b"Q" and not self.skipping and not self.copying:
            if self.phase == FRONTEND_CONSOLE:
                return self.ask_console(body[:max(size - 1, 0)])
            return self.on_query(body, size, message, total)
        if type == b"X":
            return self.finish()
        if self.phase == FRONTEND_CONSOLE:
            self.simple = False
            if type == b"S":
                self.skipping = False
                return self.push_ready()
            if self.skipping:
                return 0
            raise self.hub.services.refuse_extended()
        if (type == b"S" or type == b"H") and size:
            return self.protocol_error("invalid message format")
        if type == b"S":
            return self.on_sync() if not self.copying else 0
        if type == b"d" or type == b"c" or type == b"f":
            return self.on_copy_message(type, message, total)
        if self.copying:
            if type == b"H":
                return 0
            return self.fatal(SqlError("08P01", f"unexpected message type 0x{type:02X} during COPY from stdin"))
        if self.skipping:
            return 0
        self.simple = False
        if type == b"B":
            return self.on_bind(body, size)
        if type == b"E":
            return self.on_execute(body, size)
        if type == b"P":
            return self.on_parse(body, size)
        if type == b"D":
            return self.on_describe(body, size)
        if type == b"C":
            return self.on_close(body, size)
        if type == b"H":
            return self.on_flush()
        self.simple = True
        raise not_built("the function call protocol", "Call the function with SELECT.")

    cdef int on_copy_message(self, char type, const char* message, Py_ssize_t total) except -1:
        """CopyData, CopyDone, CopyFail: to the shard that waits for them; late ones are ignored, as PostgreSQL does."""
        cdef Backend backend = self.active
        if backend is None:
            return 0
        if not self.copying:
            return RETRY if not self.skipping and self.owes_unsynced() and self.wait_until_drained() else 0
        if self.splitter is not None:
            return self.feed_copy(type, message + 5, total - 5)
        backend.outbox.append(message, total)
        if type != b"d":
            self.copying = False
            if self.simple:
                self.waiting = WAIT_SEGMENT
        return 0

    cdef int throttle(self) except -1:
        """Handle no more before a shard has taken what it was sent, or the client its answers."""
        cdef Backend backend = self.active
        if self.waiting != WAIT_NOTHING:
            return 0
        if backend is not None and backend.outbox.end - backend.outbox.start > OUTBOX_HIGH_BYTES:
            backend.flush()
            if backend.outbox.end - backend.outbox.start > OUTBOX_HIGH_BYTES:
                self.waiting = WAIT_SHARD
                backend.notify_flushed = True
                return 0
        if self.outbox.end - self.outbox.start > OUTBOX_HIGH_BYTES:
            self.waiting = WAIT_CLIENT
        return 0

    # -- the console ---------------------------------------------------------------------------------------------

    def ask_console(self, bytes sql) -> int:
        """Hand a console command to the router; `give_answer` follows."""
        self.waiting = WAIT_ANSWER
        self.hub.services.ask_console(self, sql.decode("utf-8", "replace"))
        return 0

    def give_answer(self, bytes data) -> None:
        """The console's whole answer, without ReadyForQuery."""
        if self.fd >= 0 and self.waiting == WAIT_ANSWER:
            self.push_bytes(data)
            self.push_ready()
            self.resume()

    # -- what backends report ------------------------------------------------------------------------------------

    cdef int on_ready(self, Backend backend) except -1:
        """ReadyForQuery of a shard: of the client's own request, or of a command on several shards."""
        if self.synced:
            self.synced -= 1
            return self.finish_sync() if self.synced == 0 and self.waiting == WAIT_SEGMENT else 0
        self.pending -= 1
        if self.waiting == WAIT_COMMANDS:
            if self.pending:
                return 0
            return self.next_step() if self.step else self.conclude(self.verb)
        if self.pending > 0:
            return 0
        if self.unconfirmed:
            self.forget_unconfirmed()
        if backend.was_muted:
            self.settle_status()
            self.push_ready()
        return self.end_segment()

    cdef int on_backend_lost(self, Backend backend, object error) except -1:
        """A shard's connection broke under the session: say so and end, for its transaction is gone."""
        if self.survives(backend):
            return self.lose_participant(backend)
        if self.step == STEP_DECIDE:
            error = SqlError(
                "08007", f"the connection to shard {self.hub.shard_names[backend.shard]} was lost at COMMIT",
                error.message, "Whether the transaction is committed is unknown; recovery ends it either way.")
        return self.fatal(error)

    # -- the end -------------------------------------------------------------------------------------------------

    cdef int protocol_error(self, str message) except -1:
        return self.fatal(SqlError("08P01", message))

    cdef int fatal(self, object error) except -1:
        """Tell the client and close."""
        self.carry = None
        self.push_bytes(error.encode("FATAL"))
        return self.finish()

    cdef int finish(self) except -1:
        """Close for good; idempotent."""
        if self.phase == FRONTEND_CLOSED:
            return 0
        self.phase = FRONTEND_CLOSED
        self.flush()
        self.leave_gate()
        self.hub.sessions.pop((self.pid, self.secret), None)
        self.close()
        self.abandon()
        return self.leave_pools()

    cdef int on_closed(self, str reason) except -1:
        """The client's last byte has come: what it asked for is still done, as PostgreSQL would."""
        if reason or self.at_end or self.phase != FRONTEND_READY:
            return self.finish()    # at_end: nobody reads the answers any more
        if self.waiting == WAIT_NOTHING or self.waiting == WAIT_POOL:
            return self.finish()
        self.at_end = True
        self.reading_paused = False
        self.hub.loop.call_later(GRACE_S, self.give_up)
        return self.set_reading(False)

    def give_up(self) -> None:
        """The client left some time ago and its statement still runs: nobody waits for it."""
        if self.phase == FRONTEND_READY:
            self.hub.services.cancel(self.pid, self.secret)
            self.finish()

    def end_request(self) -> None:
        """The cancel request that this connection was made for has been passed on."""
        self.finish()

    def terminate(self, error: SqlError) -> None:
        """End the session from outside (shutdown, limits)."""
        self.fatal(error)

    # -- looking inside ------------------------------------------------------------------------------------------

    def is_idle(self) -> bool:
        """Between transactions, with nothing under way."""
        return self.waiting == WAIT_NOTHING and not self.explicit and (not self.links or self.pinned is not None)

    def is_starting(self) -> bool:
        """Has not completed its start-up."""
        return self.phase < FRONTEND_READY

    def state_name(self) -> str:
        """active, waiting or idle, as PgBouncer's SHOW CLIENTS has it."""
        if self.waiting == WAIT_NOTHING and not (self.links and (self.explicit or self.copying)):
            return "idle"
        return "waiting" if self.waiting == WAIT_POOL else "active"

    def prepared_count(self) -> int:
        """Named prepared statements of this client."""
        return len(self.prepared)

    def only_shard(self) -> int:
        """The shard that the transaction has written on, which a new row must follow; -1: none."""
        return self.written_shard()

    def cancel_wait(self) -> None:
        """A cancel request, and the statement waits for a backend, or for a bucket that moves: it fails."""
        if self.waiting == WAIT_POOL and self.phase == FRONTEND_READY:
            for pool in self.pools:
                if pool is not None:
                    (<Pool> pool).leave(self)
            self.on_denied(SqlError("57014", "canceling statement due to user request"))
        elif self.waiting == WAIT_FROZEN:
            self.on_denied(SqlError("57014", "canceling statement due to user request"))
        elif self.gate_place == GATE_IN_LINE:
            self.leave_gate()
            self.on_denied(SqlError("57014", "canceling statement due to user request"))

    def busy_backends(self) -> list[Backend]:
        """Backends that work for this session now: where a cancel request must go."""
        cdef Backend backend
        return [backend for backend in self.links if backend.replies.count]


cdef bint is_frontend_type(char type) noexcept:
    """A type byte that a client may send after start-up."""
    return type in (b"Q", b"P", b"B", b"E", b"D", b"C", b"S", b"H", b"d", b"c", b"f", b"F", b"X")


def bad_message(int type, unsigned int length, Py_ssize_t bytes_max) -> SqlError:
    """Why a header cannot be taken."""
    if not is_frontend_type(<char> type):
        return SqlError("08P01", f"invalid frontend message type {type & 0xFF}")
    if length < 4:
        return SqlError("08P01", f"invalid message length {length}")
    return SqlError(
        "08P01", f"invalid message length {length}", f"limits.message_size_max is {bytes_max}",
        "Raise the limit if the client means it.",
    )
