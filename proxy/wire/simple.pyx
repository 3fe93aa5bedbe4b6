"""Simple Query: one statement, or a string of several.

A string goes whole to the one shard that all its statements need. Otherwise its statements are run one after the other,
each as a Query of ours whose ReadyForQuery is withheld, inside a transaction of our own (`is_implicit`), as PostgreSQL
runs a string. The client's message stays at the head of the inbox meanwhile: whatever a statement waits for resumes
there, and `several_at` says how far it is.
"""

from foreshard._core.replies cimport REPLY_QUERY
from foreshard._core.row_split cimport RowText, order_of
from foreshard._core.template cimport (
    ROUTE_ALONE,
    ROUTE_ANY,
    ROUTE_COPY,
    ROUTE_EMPTY,
    ROUTE_EXPLAIN,
    ROUTE_KEYED,
    ROUTE_MULTI,
    ROUTE_PLACE,
    ROUTE_QUERY,
    ROUTE_REFUSE,
    ROUTE_TRANSACTION,
    Template,
)
from foreshard.proxy.wire.backend cimport Backend
from foreshard.proxy.wire.away cimport ROUTE_OPEN, ROUTE_WAIT
from foreshard.proxy.wire.carrying cimport Carrying
from foreshard.proxy.wire.parsing cimport RETRY
from foreshard.proxy.wire.copy_out cimport copy_out_of
from foreshard.proxy.wire.gather cimport ROUTE_CARRIED, ROUTE_MANY, holds_rows, locks_rows
from foreshard.proxy.wire.session cimport WAIT_NOTHING, WAIT_SEGMENT
from foreshard.proxy.wire.transaction cimport ends_failure

from foreshard._core.errors import SqlError, not_built
from foreshard.proxy.wire.session import failed_transaction

cdef enum:
    PLACED_BYTES_MAX = 65536
    ROUTE_APART = -3        # the statements of a string need different shards, or all of them

cdef bytes SNAPSHOT_BEGIN = b"BEGIN ISOLATION LEVEL REPEATABLE READ"
cdef bytes NO_COPY = b"Foreshard does not support COPY FROM STDIN inside this string of statements; send it alone\0"


cdef class Simple(Carrying):
    """The part of a frontend that answers simple queries."""

    cdef int on_query(self, const char* body, Py_ssize_t size, const char* message, Py_ssize_t total) except -1:
        """One simple Query: route it and send the client's own bytes."""
        if size < 1 or body[size - 1] != 0:
            return self.protocol_error("invalid Query message")
        if self.several is not None:
            return self.run_several()
        if self.is_implicit and self.explicit:
            return self.fatal(not_built("a Query inside a pipeline that writes on several shards", "Sync first."))
        if self.deferred is not None and self.settle_deferred() == RETRY:
            return RETRY
        if self.active is not None and self.active.unsynced and self.wait_until_drained():
            return RETRY
        self.simple = True
        self.unnamed = None
        self.portal.statement = None
        return self.run_query(self.cache.get(body, size - 1, self.hub.literals), message, total)

    cdef int run_query(self, Template template, const char* message, Py_ssize_t total) except -1:
        """Answer a text whose template and literals (hub.literals) are known; `message` is its Query."""
        cdef int shard, kind = template.kind
        if self.carry is not None:
            return self.run_carry()
        if kind == ROUTE_TRANSACTION:
            if self.wait_until_drained():
                return RETRY
            self.queries += 1
            return self.run_verb(template)
        if kind == ROUTE_EMPTY:
            self.push(b"I\0\0\0\4", 5)
            return self.push_ready()
        if self.failed and not (kind == ROUTE_MULTI and ends_failure(template.parts[0])):
            if kind == ROUTE_REFUSE and template.refusal.sqlstate == "42601":
                raise template.refusal      # PostgreSQL reads a statement before it looks at the transaction
            raise failed_transaction()
        if template.text is not None and self.is_setting(template):
            self.queries += 1
            return 0 if self.run_setting(template) else RETRY
        if kind == ROUTE_MULTI:
            return self.query_several(template, message, total)
        if kind == ROUTE_EXPLAIN:
            return self.explain_query(template)
        if kind == ROUTE_ALONE:
            return self.run_alone(template, message[5:total - 1])
        self.hub.params.clear()
        shard = self.route(template, self.hub.literals, self.hub.params, -1)
        if shard == ROUTE_CARRIED:
            if not self.explicit:
                self.own_begin = b"BEGIN"
                return self.run_in_transaction(message[5:total - 1])
            self.queries += 1
            return self.query_carried(message[5:total - 1])
        if shard == ROUTE_WAIT:
            return RETRY
        if shard == ROUTE_OPEN or (
                shard != ROUTE_MANY and self.is_bare(template, shard, self.hub.literals, self.hub.params)):
            if not template.new_keys:
                self.decided_shard = -1
            self.own_begin = b"BEGIN"
            return self.run_in_transaction(message[5:total - 1])
        if shard == ROUTE_MANY:
            if kind == ROUTE_COPY:
                return self.query_copy(template, message[5:total - 1])
            if not self.explicit and (template.is_write or self.snapshot):
                self.own_begin = b"BEGIN" if template.is_write else SNAPSHOT_BEGIN
                return self.run_in_transaction(message[5:total - 1])
            if template.merge is not None:
                if self.query_merged(template, message[5:total - 1]) == RETRY:
                    return RETRY
                self.queries += 1
                return 0
            return self.query_many(template, message, total)
        if self.snapshot and not self.explicit and shard == self.hub.query_shard and self.hub.shard_count > 1:
            self.own_begin = SNAPSHOT_BEGIN
            return self.run_in_transaction(message[5:total - 1])
        if self.forward_query(template, shard, message, total) == RETRY:
            return RETRY
        return self.count_work(template) if kind == ROUTE_KEYED else 0

    cdef int query_copy(self, Template template, bytes text) except -1:
        """COPY FROM STDIN whose rows are told apart."""
        cdef int handled
        if self.several is not None:    # its data would stand behind the string
            raise not_built("COPY FROM STDIN inside a string of statements", "Send it alone.")
        handled = self.begin_copy(template, text)
        if handled != RETRY:
            self.queries += 1
        return handled

    cdef int run_in_transaction(self, bytes text) except -1:
        """A statement that writes on several shards: as a string of one."""
        self.several = (text,)
        self.several_at = 0
        self.several_failed = False
        self.is_implicit = False
        return self.run_several()

    cdef int forward_query(self, Template template, int shard, const char* message, Py_ssize_t total) except -1:
        """Send a Query to one shard."""
        cdef bint places = template.kind == ROUTE_PLACE or self.places(template)
        cdef Backend backend = self.attach(shard, template.is_write, places)
        if backend is None:
            return RETRY
        self.queries += 1
        if template.is_write or template.pin is not None or template.cursor is not None:
            self.mark(backend, template)
            self.charge(backend, template, self.hub.literals, self.hub.params)
        if self.several is not None:
            backend.holds_ready = True
            if self.ends_own():
                self.hold_end(backend, template)
        if backend.outbox.end == backend.outbox.start:
            backend.push(message, total)
        else:
            backend.outbox.append(message, total)
        if backend.unsynced:
            backend.is_spoiled = True
        backend.executed = False
        backend.unnamed = None
        backend.replies.push(REPLY_QUERY)
        self.pending = 1
        self.waiting = WAIT_SEGMENT
        return 0

    cdef int query_many(self, Template template, const char* message, Py_ssize_t total) except -1:
        """Send a Query to several shards and concatenate their rows."""
        cdef Backend backend
        cdef list parts
        cdef bytes text
        if not self.attach_all(self.shards, template.is_write):
            return RETRY
        self.queries += 1
        self.count_work(template)
        parts = self.completed_parts(template)
        self.completing = template if template.completion else None
        whole = None if self.split is None else RowText(message[5:total - 1])
        self.row_order = order_of(self.split) if template.returns else None
        self.row_marks = None
        if self.row_order is not None:
            self.row_marks = self.marks_of(template, self.hub.literals, self.hub.params, False)
        tail = b"" if self.row_marks is None else template.marks.text
        if self.row_order is None and holds_rows(template):
            self.row_order = []
        self.rows_left = 0
        self.copy_out = copy_out_of(template)
        self.lock = template.lock
        self.in_turn = locks_rows(template)
        if self.asks_in_turn():
            return self.query_same(template, parts, message[:total])
        for index, backend in enumerate(parts):
            if template.is_write:
                self.mark(backend, template)
                rows = 0 if self.split is None else len(self.split[index])
                self.charge(backend, template, self.hub.literals, self.hub.params, rows)
            if whole is None:
                backend.outbox.append(message, total)
            else:
                text, _ = whole.part(self.split[index], tail)
                backend.write_message(b"Q", <const char*> text, len(text) + 1)
            backend.unnamed = None
            backend.replies.push(REPLY_QUERY)
        self.start_parts(parts, 0, True)
        return 0

    cdef int query_same(self, Template template, list parts, bytes message) except -1:
        """Send a Query to every shard, to each when the one before has answered."""
        cdef Backend backend
        self.message = message
        for backend in parts:
            self.mark(backend, template)
        self.start_parts(parts, 0, False)
        return self.ask_part(parts[0])

    cdef int ask_part(self, Backend backend) except -1:
        if not self.simple:
            return Carrying.ask_part(self, backend)
        if self.lock is not None:
            self.lock_on(backend, self.lock)
        backend.outbox.append(<const char*> self.message, len(self.message))
        backend.unnamed = None
        backend.replies.push(REPLY_QUERY)
        return backend.flush()

    cdef int explain_query(self, Template template) except -1:
        """EXPLAIN (FORESHARD): answered here."""
        if self.wait_until_drained():
            return RETRY
        self.hub.params.clear()
        if not self.look_up(template.parts[0], self.hub.literals, self.hub.params):
            return RETRY
        rows = self.hub.services.explain(self, template.parts[0], self.hub.literals, self.hub.params)
        self.push_bytes(self.hub.services.explain_description())
        self.push_bytes(rows)
        return self.push_ready()

    # -- strings of several statements ---------------------------------------------------------------------------

    cdef int query_several(self, Template template, const char* message, Py_ssize_t total) except -1:
        """A string of several statements: whole to one shard, or one after the other."""
        cdef Template part
        cdef Template writer = template
        cdef list works = []
        cdef int shard = self.shard_of_all(template, works)
        if shard == ROUTE_WAIT:
            return RETRY
        if shard == ROUTE_APART or (template.owes_claims and self.hub.shard_count > 1):
            self.decided_shard = -1
            self.several = texts_in_place(message[5:total - 1], template.parts)
            self.several_at = 0
            self.several_failed = False
            self.is_implicit = False
            self.own_begin = SNAPSHOT_BEGIN if self.snapshot else b"BEGIN"
            return self.run_several()
        for part in template.parts:
            if part.is_write:
                writer = part
        if self.forward_query(writer, shard, message, total) == RETRY:
            return RETRY
        for part, self.work_bucket, self.work_buckets in works:
            self.count_work(part)
        return 0

    cdef int shard_of_all(self, Template template, list works) except -8:
        """The one shard that can run the whole string; ROUTE_APART when there is none. Raises a part's refusal.

        `works` gets those of its parts that have keys, with their buckets.
        """
        cdef Template part
        cdef int shard = -1, found, only
        for part in template.parts:
            if part.completion or part.kind == ROUTE_ALONE:
                return ROUTE_APART
        if not self.hub.is_sharded or self.hub.shard_count == 1:
            return self.hub.default_shard
        for part in template.parts:
            if part.kind == ROUTE_TRANSACTION or part.kind == ROUTE_QUERY or part.kind == ROUTE_REFUSE:
                return ROUTE_APART      # its error comes when the statements before it ran
            if part.is_claimed or part.arbiters or (part.can_query and self.written_shard() >= 0):
                return ROUTE_APART
            if self.is_setting(part) and (self.links or self.pinned is not None or not template.is_reset):
                return ROUTE_APART
        only = self.written_shard()
        for part in template.parts:
            if part.kind == ROUTE_ANY or part.kind == ROUTE_EMPTY:
                continue
            try:
                found = self.route(part, self.hub.literals, self.hub.params, shard if shard >= 0 else only)
            except SqlError as error:
                if error.sqlstate == "0A000":
                    raise
                return ROUTE_APART
            if found == ROUTE_WAIT:
                return ROUTE_WAIT
            if found < 0 or found == self.hub.query_shard or (shard >= 0 and found != shard):
                return ROUTE_APART
            shard = found
            if part.kind == ROUTE_KEYED:
                works.append((part, self.work_bucket, self.work_buckets))
        return shard if shard >= 0 else self.hub.default_shard

    cdef int run_several(self) except -1:
        """Go on with the string; RETRY while there is something to wait for."""
        while self.several_at < len(self.several) and not self.several_failed:
            self.is_last = self.several_at == <Py_ssize_t> len(self.several) - 1
            if self.several_at and (self.failed or self.command_failed):
                break
            if self.run_next(self.several[self.several_at]) == RETRY:
                return RETRY
            self.several_at += 1
            if self.claimed is not None:
                self.forget_claimed()
            if self.waiting != WAIT_NOTHING:
                return RETRY
        return self.finish_several()

    cdef int run_next(self, bytes text) except -1:
        """Start one statement of the string."""
        cdef Template template = self.cache.get(<const char*> text, len(text), self.hub.literals)
        cdef bytes message = b"Q" + (len(text) + 5).to_bytes(4, "big") + text + b"\0"
        if self.wait_until_drained():
            return RETRY
        self.command_failed = False
        if template.kind != ROUTE_EMPTY and template.kind != ROUTE_TRANSACTION and not self.explicit:
            self.open_implicit(self.own_begin)
        return self.run_query(template, <const char*> message, len(message))

    cdef bint ends_own(self) noexcept:
        if self.several is None:
            return Carrying.ends_own(self)
        return self.is_last and self.is_implicit and self.explicit and self.carry is None

    cdef int finish_several(self) except -1:
        """End the string: its own transaction first, then ReadyForQuery."""
        if self.is_implicit and self.explicit:
            self.take_held()
            self.is_implicit = False
            self.several_at = len(self.several)
            self.end_quietly(not self.failed)
            if self.waiting != WAIT_NOTHING:
                return RETRY
        self.take_held()
        self.give_held()
        self.several = None
        self.push_ready()
        if not self.explicit and self.links:
            self.release_links()
        return 0

    cdef int push_ready(self) except -1:
        if self.several is not None:
            return 0        # a statement of the string is done: ReadyForQuery follows the last one
        return Carrying.push_ready(self)

    cdef int answer_error(self, object error) except -1:
        if self.several is None:
            return Carrying.answer_error(self, error)
        self.several_failed = True
        if self.explicit:
            self.failed = True
        return self.push_bytes(error.encode())

    cdef int on_copy_in(self, Backend backend) except -1:
        if self.several is None:
            return Carrying.on_copy_in(self, backend)
        backend.write_message(b"f", <const char*> NO_COPY, len(NO_COPY))    # the data would stand behind the string
        backend.flush()
        return 0


cdef tuple texts_in_place(bytes string, tuple parts):
    """The texts of a string's statements, each behind as many spaces as it has characters before it.

    So the position in an error is the one in the client's string; without the spaces where they would be too many.
    """
    cdef Template part
    cdef Py_ssize_t at = 0, found, spaces = 0
    if len(string) > PLACED_BYTES_MAX:
        return tuple([part.text for part in parts])
    texts = []
    for part in parts:
        found = string.find(part.text, at)
        spaces += len(string[at:found].decode("utf-8", "replace"))
        texts.append(b" " * spaces + part.text)
        spaces += len(part.text.decode("utf-8", "replace"))
        at = found + len(part.text)
    return tuple(texts)
