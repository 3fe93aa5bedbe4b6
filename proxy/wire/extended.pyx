"""Extended query: Bind, Describe, Execute, Close and Flush. Parse is in parsing.pyx, Sync in segment.pyx."""

from foreshard._core.frames cimport (
    BindParts,
    Cursor,
    decode_bind,
    decode_bind_params,
    read_cstring,
    read_int32,
    read_uint32,
)
from foreshard._core.replies cimport (
    REPLY_BIND,
    REPLY_CLOSE,
    REPLY_DESCRIBE,
    REPLY_EXECUTE,
    REPLY_NOTIFY,
    REPLY_PARSE,
    REPLY_SWALLOW,
    REPLY_SYNC,
    SYNTHETIC_BIND,
    SYNTHETIC_CLOSE,
)
from foreshard._core.row_split cimport RowText, bind_rest, marks_are_binary, order_of, parse_rest
from foreshard._core.template cimport (
    ROUTE_ALONE,
    ROUTE_DEFAULT,
    ROUTE_EXPLAIN,
    ROUTE_MULTI,
    ROUTE_PLACE,
    ROUTE_TRANSACTION,
    Template,
)
from foreshard.proxy.wire.backend cimport Backend
from foreshard.proxy.wire.away cimport ROUTE_WAIT
from foreshard.proxy.wire.copy_out cimport copy_out_of
from foreshard.proxy.wire.gather cimport ROUTE_CARRIED, ROUTE_MANY, holds_rows, locks_rows, owes
from foreshard.proxy.wire.parsing cimport HANDLED, RETRY, Parsing
from foreshard.proxy.wire.portal cimport Portal
from foreshard.proxy.wire.statement cimport Statement
from foreshard.proxy.wire.transaction cimport ends_failure

from foreshard._core.errors import SqlError, not_built
from foreshard.proxy.wire.session import failed_transaction

cdef enum:
    SYNC_SIZE = 5

cdef bytes DESCRIBED = b"foreshard described"       # name of a portal of ours


cdef class Extended(Parsing):
    """The part of a frontend that knows extended query."""

    def __cinit__(self):
        self.portal = Portal()

    # -- Bind ----------------------------------------------------------------------------------------------------

    cdef Portal make_portal(self, const char* name, Py_ssize_t size):
        """A fresh portal under that name."""
        cdef Portal portal = self.portal
        if size:
            key = name[:size]
            if key in self.portals:
                raise SqlError("42P03", f'cursor "{key.decode("utf-8", "replace")}" already exists')
            portal = Portal()
            self.portals[key] = portal
        return portal

    cdef int on_bind(self, const char* body, Py_ssize_t size) except -1:
        """Find the shard by the statement's keys or cost, and bind there."""
        cdef BindParts parts
        cdef Statement statement
        cdef Template template
        cdef Backend backend
        cdef Portal portal
        cdef int shard
        if not decode_bind(body, size, &parts):
            return self.protocol_error("invalid Bind message")
        statement = self.find_statement(parts.statement, parts.statement_size)
        template = statement.template
        if self.failed and not ends_failure(template):
            raise failed_transaction()
        if self.deferred is not None and self.settle_other(statement, parts.statement_size == 0) == RETRY:
            return RETRY
        if self.is_own(template):
            return self.bind_own(statement, &parts)
        shard = self.hub.default_shard
        if (template.kind != ROUTE_DEFAULT or template.cursor is not None or template.is_wide) and \
                template.kind != ROUTE_MULTI:
            if decode_bind_params(&parts, self.hub.params):
                return self.protocol_error("invalid Bind message")
            if statement.text_parameters:
                statement.read_texts(self.hub.params)
            shard = self.route(template, statement.literals, self.hub.params, -1)
        if shard == ROUTE_WAIT:
            return RETRY
        if shard == ROUTE_CARRIED:
            return self.bind_carried(statement, &parts)
        self.open_read(shard, template)
        if shard == ROUTE_MANY:
            if not self.attach_all(self.shards, template.is_write):
                return RETRY
            self.count_work(template)
            if template.is_write:
                for index, backend in enumerate(self.completed_parts(template)):
                    self.mark(backend, template)
                    rows = 0 if self.split is None else len(self.split[index])
                    self.charge(backend, template, statement.literals, self.hub.params, rows)
            portal = self.make_portal(parts.portal, parts.portal_size)
            self.forget_claimed()
            return self.bind_many(portal, statement, &parts)
        if self.is_bare(template, shard, statement.literals, self.hub.params):
            self.open_implicit()
        backend = self.attach(shard, template.is_write, template.kind == ROUTE_PLACE or self.places(template))
        if backend is None:
            return RETRY
        portal = self.make_portal(parts.portal, parts.portal_size)
        portal.statement = statement
        portal.backend = backend
        portal.parts = None
        self.ensure(backend, statement, parts.statement_size == 0, True)
        self.send_bind(backend, statement, &parts, True)
        self.count_work(template)
        if template.is_write or template.pin is not None or template.cursor is not None:
            self.mark(backend, template)
            self.charge(backend, template, statement.literals, self.hub.params)
        if self.claimed is not None:
            self.forget_claimed()
        return HANDLED

    cdef int bind_own(self, Statement statement, BindParts* parts) except -1:
        """Bind what Foreshard answers itself."""
        cdef Portal portal
        if statement.template.kind == ROUTE_EXPLAIN and decode_bind_params(parts, self.hub.params) == 0:
            if not self.look_up(statement.template.parts[0], statement.literals, self.hub.params):
                return RETRY
            self.explain_bound(statement)
        portal = self.make_portal(parts.portal, parts.portal_size)
        portal.statement = statement
        portal.backend = None
        portal.parts = None
        return self.answer(SYNTHETIC_BIND)

    cdef int send_bind(self, Backend backend, Statement statement, BindParts* parts, bint is_shown) except -1:
        """Bind under the backend's name for the statement."""
        cdef bytes name = b"" if parts.statement_size == 0 else statement.server_name
        cdef Py_ssize_t name_size = len(name)
        backend.outbox.append_byte(b"B")
        backend.outbox.append_int32(<int> (4 + parts.portal_size + 1 + name_size + 1 + parts.rest_size))
        backend.outbox.append(parts.portal, parts.portal_size + 1)
        backend.outbox.append(<const char*> name, name_size + 1)
        backend.outbox.append(parts.rest, parts.rest_size)
        backend.replies.push(REPLY_BIND if is_shown else REPLY_BIND | REPLY_SWALLOW)
        backend.unsynced = True
        return 0

    cdef int bind_many(self, Portal portal, Statement statement, BindParts* parts) except -1:
        """Bind a concatenated read on its first shard, whose answer is the client's; the others hear it at Execute."""
        portal.statement = statement
        portal.backend = None
        portal.part = 0
        portal.bound = 1
        portal.name = parts.portal[:parts.portal_size]
        portal.rest = parts.rest[:parts.rest_size]
        portal.is_unnamed = parts.statement_size == 0
        portal.parts = self.completed_parts(statement.template)
        self.active = portal.parts[0]
        portal.texts = None
        portal.row_order = portal.row_marks = None
        if self.split is not None:
            return self.split_bind(portal, statement, parts)
        self.ensure(self.active, statement, portal.is_unnamed, True)
        return self.send_bind(self.active, statement, parts, True)

    cdef int split_bind(self, Portal portal, Statement statement, BindParts* parts) except -1:
        """Bind an INSERT of which each shard gets some rows: every part has a text of its own."""
        cdef RowText whole = RowText(statement.body[:statement.query_size])
        cdef bytes declared = statement.body[statement.query_size + 1:]
        cdef Template template = statement.template
        portal.texts = []
        if template.returns:
            portal.row_order = order_of(self.split)
            portal.row_marks = self.marks_of(
                template, statement.literals, self.hub.params, marks_are_binary(parts))
        has_marks = portal.row_marks is not None
        for rows in self.split:
            text, used = whole.part(rows, template.marks.text if has_marks else b"")
            portal.texts.append((parse_rest(text, declared, used), bind_rest(parts, self.hub.params, used, has_marks)))
        if self.deferred is statement and self.deferred_unnamed == portal.is_unnamed:
            self.ensure(self.active, statement, portal.is_unnamed, True)    # the client's own Parse has its answer
        return self.bind_split(portal, 0, True)

    cdef int bind_split(self, Portal portal, int index, bint is_shown) except -1:
        """Parse and Bind one part of a split INSERT."""
        cdef Backend backend = portal.parts[index]
        cdef bytes parse, body
        parse, rest = portal.texts[index]
        backend.write_parse(None, b"", <const char*> parse, len(parse), REPLY_PARSE | REPLY_SWALLOW)
        backend.unnamed = None
        body = portal.name + b"\0\0" + rest
        backend.write_message(b"B", <const char*> body, len(body))
        backend.replies.push(REPLY_BIND if is_shown else REPLY_BIND | REPLY_SWALLOW)
        return 0

    # -- Describe, Execute, Close --------------------------------------------------------------------------------

    cdef Portal find_portal(self, const char* name, Py_ssize_t size):
        """A portal by name, of Bind or of DECLARE; SqlError 34000. None: the message has to wait."""
        cdef Portal portal = self.portals.get(name[:size]) if size else self.portal
        if portal is not None and portal.statement is not None:
            return portal
        word = name[:size].decode("utf-8", "replace")
        if word not in self.cursors:
            raise SqlError("34000", f'portal "{word}" does not exist')
        portal = Portal()
        portal.backend = self.attach(self.cursors[word], False, False)
        return portal if portal.backend is not None else None

    cdef int on_describe(self, const char* body, Py_ssize_t size) except -1:
        """Describe a statement on any shard that can, a portal where it is."""
        cdef Statement statement
        cdef Portal portal
        cdef Backend backend
        cdef bytes message
        if size < 2 or body[size - 1] != 0 or (body[0] != b"S" and body[0] != b"P"):
            return self.protocol_error("invalid DESCRIBE message")
        if body[0] == b"P":
            portal = self.find_portal(body + 1, size - 2)
            if portal is None or self.settle_deferred() == RETRY:
                return RETRY
            if portal.backend is None and portal.parts is None:
                return RETRY if self.wait_until_drained() else self.describe_own(portal.statement, False)
            backend = portal.backend if portal.backend is not None else portal.parts[0]
            if self.attach(backend.shard, False, False) is not backend:
                return RETRY
            if portal.row_marks is not None and portal.parts is not None:
                return self.describe_unmarked(portal, backend)
            backend.write_message(b"D", body, size)
        else:
            statement = self.find_statement(body + 1, size - 2)
            if self.settle_other(statement, size == 2) == RETRY:
                return RETRY
            if self.is_own(statement.template):
                return RETRY if self.wait_until_drained() else self.describe_own(statement, True)
            backend = self.attach(self.home_shard(statement), False, False)
            if backend is None:
                return RETRY
            self.ensure(backend, statement, size == 2, True)
            message = b"S" + (b"" if size == 2 else statement.server_name) + b"\0"
            backend.write_message(b"D", <const char*> message, len(message))
        backend.replies.push(REPLY_DESCRIBE)
        backend.unsynced = True
        return HANDLED

    cdef int describe_unmarked(self, Portal portal, Backend backend) except -1:
        """Describe a split portal whose rows have marks as the client's own text, bound for that, would be."""
        cdef bytes name = b"" if portal.is_unnamed else portal.statement.server_name
        cdef bytes body = DESCRIBED + b"\0" + name + b"\0" + portal.rest
        self.ensure(backend, portal.statement, portal.is_unnamed, False)
        backend.write_message(b"B", <const char*> body, len(body))
        backend.replies.push(REPLY_BIND | REPLY_SWALLOW)
        body = b"P" + DESCRIBED + b"\0"
        backend.write_message(b"D", <const char*> body, len(body))
        backend.replies.push(REPLY_DESCRIBE)
        backend.write_message(b"C", <const char*> body, len(body))
        backend.replies.push(REPLY_CLOSE | REPLY_SWALLOW)
        backend.unsynced = True
        return HANDLED

    cdef int describe_own(self, Statement statement, bint with_parameters) except -1:
        """Describe what Foreshard answers itself."""
        if with_parameters:
            self.push_bytes(statement.describe_parameters())
        if statement.template.kind == ROUTE_EXPLAIN:
            self.push_bytes(self.hub.services.explain_description())
            return HANDLED
        self.push(b"n\0\0\0\4", 5)
        return HANDLED

    cdef int on_execute(self, const char* body, Py_ssize_t size) except -1:
        """Run a portal where it is."""
        cdef Cursor cursor
        cdef Py_ssize_t name_size
        cdef const char* name
        cdef Portal portal
        cdef Backend backend
        cdef long long rows
        cursor.at = body
        cursor.end = body + size
        cursor.is_bad = False
        name = read_cstring(&cursor, &name_size)
        rows = read_int32(&cursor)
        if cursor.is_bad or cursor.at != cursor.end:
            return self.protocol_error("invalid Execute message")
        portal = self.find_portal(name, name_size)
        if portal is None or (self.deferred is not None and self.settle_deferred() == RETRY):
            return RETRY
        if portal.parts is not None:
            if rows > 0:
                self.keep_reading()
            self.may_sync = rows <= 0 and self.is_sync_next(body + size)
            self.ends_segment = self.may_sync and (owes(portal.statement.template) or portal.carry is not None)
            return self.execute_many(portal, max(rows, 0))
        if portal.backend is None:
            if self.wait_until_drained():
                return RETRY
            return self.execute_own(portal.statement)
        if rows > 0:
            self.keep_reading()
        backend = portal.backend
        if self.attach(backend.shard, False, False) is not backend:
            return RETRY
        if self.is_implicit and rows <= 0 and portal.statement is not None and \
                owes(portal.statement.template) and self.is_sync_next(body + size):
            if backend.executed and self.wait_until_drained():
                return RETRY        # what it owes for statements before is not held
            self.hold_end(backend, portal.statement.template)
        backend.write_message(b"E", body, size)
        backend.replies.push(REPLY_EXECUTE)
        backend.unsynced = True
        backend.executed = True
        return HANDLED

    cdef bint ends_own(self) noexcept:
        return self.ends_segment and self.is_implicit and self.explicit and not self.simple

    cdef bint is_sync_next(self, const char* next) noexcept:
        """The client's next message is here already, and is Sync."""
        return self.input_end != NULL and self.input_end - next >= SYNC_SIZE and next[0] == b"S" and \
            read_uint32(next + 1) == SYNC_SIZE - 1

    cdef int execute_own(self, Statement statement) except -1:
        """Run a transaction command, or give an EXPLAIN (FORESHARD) that was made at Bind."""
        if statement.template.kind == ROUTE_EXPLAIN:
            self.push_bytes(self.explained)
            return HANDLED
        if statement.template.kind == ROUTE_TRANSACTION:
            return self.run_verb(statement.template)
        if statement.template.kind == ROUTE_ALONE:
            return self.run_alone(statement.template, statement.body[:statement.query_size])
        return HANDLED if self.run_setting(statement.template) else RETRY

    cdef int execute_many(self, Portal portal, long long rows) except -1:
        """Run a portal of several shards: all at once, or with a row limit one after the other."""
        cdef int index
        if self.wait_until_drained():
            return RETRY
        if rows and portal.statement.template.is_write and len(portal.parts) > 1:
            if portal.statement.template.returns:
                raise not_built("a row limit on a write of several shards", "Fetch all its rows at once.")
            rows = 0        # there are none to limit
        self.asked = portal
        self.row_order, self.row_marks = portal.row_order, portal.row_marks
        self.rows_left = rows
        self.copy_out = copy_out_of(portal.statement.template)
        self.lock = portal.statement.template.lock
        self.in_turn = locks_rows(portal.statement.template)
        self.completing = portal.statement.template if portal.statement.template.completion else None
        if self.row_order is None and holds_rows(portal.statement.template):
            self.row_order = []
        if self.lock is not None:
            self.lock_on(self.active, self.lock)
        for index in range(portal.part, portal.part + 1 if self.asks_in_turn() else len(portal.parts)):
            self.execute_part(portal, index, rows)
        self.start_parts(portal.parts, portal.part, not self.asks_in_turn())
        return HANDLED

    cdef int bind_carried(self, Statement statement, BindParts* parts) except -1:
        """Bind an INSERT whose rows the router carries (carrying.pyx)."""
        return HANDLED

    cdef int bind_part(self, Portal portal, int index) except -1:
        """See that one shard has its part bound."""
        cdef BindParts parts
        cdef Backend backend = portal.parts[index]
        if index >= portal.bound:
            portal.bound = index + 1
            if portal.texts is not None:
                return self.bind_split(portal, index, False)
            parts.portal = <const char*> portal.name
            parts.portal_size = len(portal.name)
            parts.statement_size = 0 if portal.is_unnamed else 1
            parts.rest = <const char*> portal.rest
            parts.rest_size = len(portal.rest)
            self.ensure(backend, portal.statement, portal.is_unnamed, False)
            self.send_bind(backend, portal.statement, &parts, False)
        return 0

    cdef int execute_part(self, Portal portal, int index, long long rows) except -1:
        """Run one shard's part, bound there before if it was not yet."""
        self.bind_part(portal, index)
        return self.send_execute(portal.parts[index], portal.name, rows)

    cdef int send_execute(self, Backend backend, bytes name, long long rows) except -1:
        """Execute and Flush, or Sync."""
        cdef bytes body = name + b"\0" + int(rows).to_bytes(4, "big")
        backend.write_message(b"E", <const char*> body, len(body))
        backend.replies.push(REPLY_EXECUTE)
        backend.unsynced = backend.executed = not self.syncs
        return backend.write_empty(b"S", REPLY_SYNC | REPLY_NOTIFY) if self.syncs else backend.write_empty(b"H", 0)

    cdef int ask_part(self, Backend backend) except -1:
        """The next shard of a limited Execute."""
        self.asked.part = self.part
        if self.lock is not None:
            self.lock_on(backend, self.lock)
        self.execute_part(self.asked, self.part, self.rows_left)
        return backend.flush()

    cdef int on_close(self, const char* body, Py_ssize_t size) except -1:
        """Close: statements stay on the backends for others; portals are closed where they are."""
        cdef Portal portal
        cdef Backend backend
        if size < 2 or body[size - 1] != 0 or (body[0] != b"S" and body[0] != b"P"):
            return self.protocol_error("invalid CLOSE message")
        if body[0] == b"S":
            if self.settle_deferred() == RETRY:
                return RETRY
            if self.owes_unsynced() and self.wait_until_drained():
                return RETRY    # an error before it would undo it
            if size == 2:
                self.unnamed = None
            else:
                self.prepared.pop(body[1:size - 1], None)
                self.recent = None
            return self.answer(SYNTHETIC_CLOSE)
        if self.settle_deferred() == RETRY:
            return RETRY
        portal = self.portal if size == 2 else self.portals.get(body[1:size - 1])
        if portal is None and body[1:size - 1].decode("utf-8", "replace") in self.cursors:
            portal = self.find_portal(body + 1, size - 2)
            if portal is None:
                return RETRY
            self.cursors.pop(body[1:size - 1].decode("utf-8", "replace"))
        elif portal is None or portal.statement is None or portal.backend is None:
            if portal is not None:
                self.close_many(portal, body, size)
            self.portals.pop(body[1:size - 1], None)
            return self.answer(SYNTHETIC_CLOSE)
        backend = portal.backend
        if self.attach(backend.shard, False, False) is not backend:
            return RETRY
        backend.write_message(b"C", body, size)
        backend.replies.push(REPLY_CLOSE)
        backend.unsynced = True
        portal.statement = None
        self.portals.pop(body[1:size - 1], None)
        return HANDLED

    cdef bint has_unbound_parts(self) noexcept:
        return self.portal.statement is not None and self.portal.parts is not None and \
            self.portal.bound < len(self.portal.parts)

    cdef int close_many(self, Portal portal, const char* body, Py_ssize_t size) except -1:
        """Close a portal that has no single shard: on every one that has heard of it."""
        cdef Backend backend
        if portal.statement is not None and portal.parts is not None:
            for backend in portal.parts[:portal.bound]:
                backend.write_message(b"C", body, size)
                backend.replies.push(REPLY_CLOSE | REPLY_SWALLOW)
                backend.unsynced = True
        portal.statement = None
        return 0

    # -- Flush, Sync ---------------------------------------------------------------------------------------------

    cdef int on_flush(self) except -1:
        """Have the shards answer what they owe."""
        cdef Backend backend
        if self.settle_deferred() == RETRY:
            return RETRY
        for backend in self.links:
            if backend.unsynced:
                backend.write_empty(b"H", 0)
                backend.flush()
        return HANDLED

    cdef int release_links(self) except -1:
        self.forget_portals()
        return Parsing.release_links(self)

    cdef int forget_portals(self) except -1:
        """Portals end with their transaction."""
        self.portal.statement = None
        if self.portals:
            self.portals.clear()
        return 0

    cdef int explain_bound(self, Statement statement) except -1:
        """Make the answer of an EXPLAIN (FORESHARD) while its parameters are at hand."""
        self.explained = self.hub.services.explain(
            self, statement.template.parts[0], statement.literals, self.hub.params)
        return 0

    cdef int fatal(self, object error) except -1:
        """Tell the client and close. Overridden by the frontend."""
        return 0
