"""Simple queries whose answers are merged, and statements that the shards keep for texts that come again.

A text that was merged before is prepared on the shards, so they neither parse nor plan it each time. Not in
transactions, whose error a statement gone stale would be, nor in pinned sessions, and not with strings in it, which
mean what the settings (DateStyle) and the day ('today') make of them. A shard that cannot run its statement any more,
because a column has another type now, gives an error that the client must not see: all are asked again with the text.
"""

from foreshard._core.merge cimport Merger
from foreshard._core.merge_plan cimport MergePlan
from foreshard._core.replies cimport REPLY_QUERY
from foreshard._core.template cimport Template
from foreshard.proxy.wire.backend cimport Backend
from foreshard.proxy.wire.parsing cimport RETRY
from foreshard.proxy.wire.finishing cimport Finishing
from foreshard.proxy.wire.merging cimport PART_RUNNING

cdef enum:
    TEXTS_MAX = 1000            # that are remembered; chosen, not measured

cdef bytes EXECUTE = b"E\0\0\0\x09\0\0\0\0\0S\0\0\0\4"         # the unnamed portal, and Sync
cdef bytes DESCRIBE = b"D\0\0\0\6P\0"


cdef class MergedQuery(Finishing):
    """The part of a frontend that runs merged simple queries."""

    cdef int query_merged(self, Template template, bytes client_text) except -1:
        """Ask the shards, and merge the answers."""
        cdef MergePlan plan = template.merge
        cdef Backend backend
        cdef list parts
        cdef bytes text
        if not self.attach_all(self.shards, template.is_write):
            return RETRY
        plan = self.plan_for(plan)
        text = plan.text(self.hub.literals)
        parts = [self.find_link(shard) for shard in self.shards]
        self.check_encoding(plan, parts[0])
        if template.is_write:
            for backend in parts:
                self.mark(backend, template)
        self.rows_goal = self.rows_before = self.chunk = 0
        self.limit = plan.read_limit(self.hub.literals, None)
        self.offset = plan.read_offset(self.hub.literals, None)
        self.can_ask_again = self.outbox.end == self.outbox.start
        self.kept_id = 0
        if self.can_ask_again and not self.explicit and self.pinned is None and not plan.is_plan:
            self.kept_id = self.id_of(text)
        self.merged_text = text
        self.client_text = client_text
        if plan.finish is not None:
            self.finish_head, self.finish_tail = plan.finish_texts(self.hub.literals)
        return self.ask_merged(plan, parts)

    cdef int ask_merged(self, MergePlan plan, list parts) except -1:
        """Send the text, or run the statement that the shards keep for it."""
        cdef Merger merger = Merger(
            plan, len(parts), self.limit, self.offset, self.labels() if plan.is_plan else ())
        cdef Backend backend
        cdef bint is_finished = plan.finish is not None
        if is_finished:
            merger.expect(<int> len(plan.types))
            self.gathered.clear()
            self.describes_next = True
            self.describe_client(parts[0])
        for backend in parts:
            if self.kept_id or is_finished:
                self.run_kept(backend, not is_finished and backend is parts[0])
            else:
                backend.write_query(self.merged_text, REPLY_QUERY)
        return self.begin_merge(parts, merger, [PART_RUNNING] * len(parts))

    cdef long long id_of(self, bytes text) except -1:
        """The number of the statement that the shards keep for a text; 0 for none: it comes for the first time."""
        cdef dict known = self.hub.merged_texts
        found = known.get(text)
        if found is None:
            if len(known) >= TEXTS_MAX:
                known.pop(next(iter(known)))
            known[text] = -1 if b"'" not in text and b"$" not in text else 0
            return 0
        if found < 0:
            self.hub.statement_ids += 1
            found = known[text] = self.hub.statement_ids
        return found

    cdef int describe_client(self, Backend backend) except -1:
        """Have a shard describe the client's own text, as a part of what follows up to Sync."""
        cdef bytes body = b"\0" + self.client_text + b"\0\0\0"
        backend.unnamed = None
        backend.write_message(b"P", <const char*> body, len(body))
        return backend.write_message(b"D", b"S\0", 2)

    cdef int run_kept(self, Backend backend, bint describes) except -1:
        """Bind, Execute and Sync, which are answered like a Query; before them Parse where there was none yet."""
        cdef bytes name = b"foreshard_%d\0" % self.kept_id if self.kept_id else b"\0"
        if not self.kept_id or <object> self.kept_id not in backend.prepared:
            if self.kept_id:        # it may be there: what it ran into last time was an error
                body = b"S" + name
                backend.write_message(b"C", <const char*> body, len(body))
            body = name + self.merged_text + b"\0\0\0"
            backend.unnamed = None
            backend.write_message(b"P", <const char*> body, len(body))
        body = b"\0" + name + b"\0\0\0\0\0\0"
        backend.write_message(b"B", <const char*> body, len(body))
        if describes:
            backend.outbox.append(<const char*> DESCRIBE, len(DESCRIBE))
        backend.outbox.append(<const char*> EXECUTE, len(EXECUTE))
        backend.replies.push(REPLY_QUERY)
        return 0

    cdef int on_merge_input(self, Backend backend, char type, const char* body, Py_ssize_t size) except -1:
        if type == b"E" and self.kept_id and self.stale_error is None and is_stale(body[:size]):
            self.stale_error = body[:size]
            return 0
        return Finishing.on_merge_input(self, backend, type, body, size)

    cdef int finish_merge(self) except -1:
        """Keep in mind what the shards have prepared, or ask again what they could not run any more."""
        cdef Backend backend
        cdef list parts = self.parts
        if self.kept_id == 0:
            return Finishing.finish_merge(self)
        if not self.parts_failed:
            for backend in parts:
                backend.prepared.add(self.kept_id)
        self.kept_id = 0
        if self.stale_error is None:
            return Finishing.finish_merge(self)
        error, self.stale_error = self.stale_error, None
        self.hub.merged_texts.pop(self.merged_text, None)
        if self.can_ask_again:
            self.outbox.clear()
            return self.ask_merged(self.merger.plan, parts)
        Finishing.on_merge_input(self, parts[0], b"E", <const char*> <bytes> error, len(error))
        return Finishing.finish_merge(self)


cdef bint is_stale(bytes error) except -1:
    """A statement that a shard has kept cannot be run any more."""
    return b"\0C26000\0" in error or (b"\0C0A000\0" in error and b"\0RRevalidateCachedQuery\0" in error)
