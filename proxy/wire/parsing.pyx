"""The client's prepared statements: Parse, and what it takes for a shard to have them.

A client's prepared statement is known to backends under a name of our own and prepared there when first needed, so it
survives a change of backend. Parse is held back until the shard is known (Bind) or an answer is due (Describe, Flush,
Sync); a named statement that some backend has parsed before is confirmed at once. The unnamed statement is sent each
time the client parses it, so that it sees today's schema.
"""

from libc.string cimport memcmp

from foreshard._core.frames cimport Cursor, read_bytes, read_cstring, read_int16
from foreshard._core.replies cimport (
    REPLY_PARSE,
    REPLY_SWALLOW,
    SYNTHETIC_BIND,
    SYNTHETIC_PARSE,
)
from foreshard._core.template cimport (
    ROUTE_ALONE,
    ROUTE_CARRY,
    ROUTE_DEFAULT,
    ROUTE_EXPLAIN,
    ROUTE_MULTI,
    ROUTE_QUERY,
    ROUTE_REFUSE,
    ROUTE_TRANSACTION,
    Template,
)
from foreshard.proxy.wire.backend cimport Backend
from foreshard.proxy.wire.completing cimport Completing
from foreshard.proxy.wire.statement cimport Statement
from foreshard.proxy.wire.transaction cimport ends_failure

from foreshard._core.errors import SqlError
from foreshard.proxy.wire.session import failed_transaction

cdef enum:
    STATEMENTS_MAX = 10000      # that the router remembers for clients to come; chosen, not measured


cdef class Parsing(Completing):
    """The part of a frontend that knows the client's prepared statements."""

    def __cinit__(self):
        self.prepared = {}
        self.unconfirmed = []

    cdef int on_parse(self, const char* body, Py_ssize_t size) except -1:
        """Remember the statement; the shard hears of it when it is bound."""
        cdef Cursor cursor
        cdef Py_ssize_t name_size, query_size
        cdef const char* name
        cdef const char* query
        cdef Statement statement
        cursor.at = body
        cursor.end = body + size
        cursor.is_bad = False
        name = read_cstring(&cursor, &name_size)
        query = read_cstring(&cursor, &query_size)
        read_bytes(&cursor, <Py_ssize_t> read_int16(&cursor) * 4)
        if cursor.is_bad or cursor.at != cursor.end:
            return self.protocol_error("invalid Parse message")
        if self.deferred is not None and self.settle_deferred() == RETRY:
            return RETRY
        if name_size and self.owes_unsynced() and self.wait_until_drained():
            return RETRY    # an error before it would undo it
        statement = self.unnamed
        if name_size or statement is None or len(statement.body) != cursor.end - query or \
                memcmp(<const char*> statement.body, query, cursor.end - query) != 0:
            statement = self.intern_statement(query[:cursor.end - query], query_size)
        if statement.template.kind == ROUTE_REFUSE and (
                not self.failed or statement.template.refusal.sqlstate == "42601"):
            raise statement.template.refusal    # PostgreSQL reads a statement before it looks at the transaction
        if self.failed and not ends_failure(statement.template):
            raise failed_transaction()
        if name_size:
            key = name[:name_size]
            if key in self.prepared:
                raise SqlError("42P05", f'prepared statement "{key.decode("utf-8", "replace")}" already exists')
            self.prepared[key] = statement
            if not statement.is_validated:
                self.unconfirmed.append(key)
        else:
            self.unnamed = statement
        if self.is_own(statement.template) or (name_size and statement.is_validated):
            return self.answer(SYNTHETIC_PARSE)
        self.deferred = statement
        self.deferred_unnamed = name_size == 0
        return HANDLED

    cdef Statement intern_statement(self, bytes body, Py_ssize_t query_size):
        """The router's one Statement for this text and these types."""
        cdef Statement statement = self.hub.statements.get(body)
        if statement is None:
            if len(self.hub.statements) >= STATEMENTS_MAX:
                self.hub.statements.pop(next(iter(self.hub.statements)))
            self.hub.statement_ids += 1
            statement = Statement(self.hub.statement_ids, body, query_size, self.cache)
            self.hub.statements[body] = statement
        elif statement.version != self.cache.catalog_version:
            statement.plan(self.cache)
        return statement

    cdef Statement find_statement(self, const char* name, Py_ssize_t size):
        """A prepared statement by name, planned by the catalog as it is now; SqlError 26000."""
        cdef Statement statement
        if size == 0:
            if self.unnamed is None:
                raise SqlError("26000", "unnamed prepared statement does not exist")
            statement = self.unnamed
        elif self.recent is not None and len(self.recent_name) == size and \
                memcmp(<const char*> self.recent_name, name, size) == 0:
            statement = self.recent
        else:
            key = name[:size]
            statement = self.prepared.get(key)
            if statement is None:
                raise SqlError("26000", f'prepared statement "{key.decode("utf-8", "replace")}" does not exist')
            self.recent = statement
            self.recent_name = key
        if statement.version != self.cache.catalog_version:
            statement.plan(self.cache)
        return statement

    cdef bint is_own(self, Template template) noexcept:
        """What Foreshard answers, or carries out on several shards, itself."""
        return template.kind == ROUTE_TRANSACTION or template.kind == ROUTE_EXPLAIN or template.kind == ROUTE_ALONE or (
            template.text is not None and self.is_setting(template))

    cdef int home_shard(self, Statement statement) except -2:
        """Where a statement can be parsed and described."""
        cdef int kind = statement.template.kind
        if kind == ROUTE_QUERY:
            return self.hub.query_shard
        if kind == ROUTE_DEFAULT or kind == ROUTE_MULTI or kind == ROUTE_CARRY or self.active is None or \
                self.active.shard == self.hub.query_shard:
            return self.hub.default_shard
        return self.active.shard

    cdef int settle_deferred(self) except -1:
        """The client wants an answer to its Parse: send it to a shard that can tell."""
        cdef Statement statement = self.deferred
        cdef Backend backend
        if statement is None:
            return HANDLED
        backend = self.attach(self.home_shard(statement), False, False)
        if backend is None:
            return RETRY
        self.ensure(backend, statement, self.deferred_unnamed, True)
        return HANDLED

    cdef int settle_other(self, Statement statement, bint is_unnamed) except -1:
        """The same, unless the message at hand is for that very statement and brings the Parse along."""
        if self.deferred is None or (self.deferred is statement and self.deferred_unnamed == is_unnamed):
            return HANDLED
        return self.settle_deferred()

    cdef int ensure(self, Backend backend, Statement statement, bint is_unnamed, bint is_shown) except -1:
        """See that the backend has the statement; a deferred Parse is answered by this one if it is to be shown."""
        cdef bint is_due = is_shown and self.deferred is statement and self.deferred_unnamed == is_unnamed
        cdef int entry = REPLY_PARSE if is_due else REPLY_PARSE | REPLY_SWALLOW
        cdef bytes body = statement.body if backend.types is None else statement.body_with(self.hub.query_types)
        if is_due:
            self.deferred = None
        if is_unnamed:
            if is_due or backend.unnamed is not statement:
                backend.write_parse(statement, b"", <const char*> body, len(body), entry)
                backend.unnamed = statement
        elif statement.id not in backend.prepared:
            backend.write_parse(statement, statement.server_name, <const char*> body, len(body), entry)
        elif is_due:
            self.answer(SYNTHETIC_PARSE)
        return 0

    cdef int answer(self, int synthetic) except -1:
        """Give an answer of our own, behind what the active backend still owes."""
        cdef Backend backend = self.active
        if backend is not None and backend.replies.count:
            backend.replies.push(synthetic)
            return 0
        if synthetic == SYNTHETIC_PARSE:
            return self.push(b"1\0\0\0\4", 5)
        if synthetic == SYNTHETIC_BIND:
            return self.push(b"2\0\0\0\4", 5)
        return self.push(b"3\0\0\0\4", 5)

    cdef bint owes_unsynced(self) noexcept:
        """The shard may still answer an earlier message of this pipeline with an error."""
        return self.active is not None and self.active.unsynced and self.active.replies.count > 0

    cdef int forget_statements(self) except -1:
        self.prepared.clear()
        self.recent = None
        return 0

    cdef int forget_unconfirmed(self) except -1:
        """Named statements of this segment that no shard has accepted do not exist."""
        cdef Statement statement
        for key in self.unconfirmed:
            statement = self.prepared.get(key)
            if statement is not None and not statement.is_validated and not self.is_own(statement.template):
                del self.prepared[key]
                self.recent = None
        self.unconfirmed.clear()
        return 0

    cdef int protocol_error(self, str message) except -1:
        """The client broke the protocol: tell it and close. Overridden by the frontend."""
        return 0
