"""Reads through the query node in a transaction that has written.

The node's own sessions do not see what the transaction has not committed, so its tables are copied first: the shards
give their rows, in the client's transaction and each in one statement (one snapshot), and the node takes them into
temporary tables that hide its foreign tables (proxy/routing/shadow.py). The message waits meanwhile, and is handled
again when the tables are there.

    route_shadow --> begin_shadow --rows--> ... --all shards have answered--> end_shadow_rows --> finish_shadow
                         +--error of a shard, of the node, or too many rows: fail_shadow ------------^

1. Rows are relayed as they are: a DataRow of text values is a row of binary COPY. A shard waits while the node lags.
2. The tables go with the node's part of the transaction, which begins anew with each statement, or give up their names
   to the next statement's where a cursor is open.
"""

from foreshard._core.replies cimport REPLY_QUERY, REPLY_SWALLOW, REPLY_SYNC
from foreshard._core.template cimport Template
from foreshard.proxy.wire.away cimport ROUTE_WAIT
from foreshard.proxy.wire.backend cimport FILTER_COPY, FILTER_MERGE, FILTER_MUTE, FILTER_NONE, Backend
from foreshard.proxy.wire.merged_query cimport MergedQuery
from foreshard.proxy.wire.session cimport WAIT_SHADOW

from foreshard._core.errors import SqlError, decode_error, not_built
from foreshard.proxy.routing.shadow import ROWS_MAX

cdef enum:
    OUTBOX_HIGH_BYTES = 262144      # a node that lags so far stops the shards; chosen, not measured

cdef bytes COPY_HEAD = b"PGCOPY\n\xff\r\n\0" + bytes(8)
cdef bytes COPY_TRAILER = b"\xff\xff"
cdef bytes GIVEN_UP = b"the rows are not wanted any more\0"
cdef tuple TOLD_AS_IT_IS = ("40", "53", "57", "58", "XX")     # classes of the node's errors that are not about the copy


cdef class Shadowing(MergedQuery):
    """The part of a frontend that shows the query node what the transaction has written."""

    cdef int route_shadow(self, Template template, object refusal) except -3:
        cdef Backend node
        cdef object plan = template.shadow
        cdef list shards
        if self.is_shadowed:
            self.is_shadowed = False
            return self.hub.query_shard
        if plan is None or not self.explicit or self.schema is not None or self.alters:
            raise refusal
        shards = list(range(self.hub.shard_count)) if plan.sharded else [self.hub.default_shard]
        if not self.attach_all(shards, False):
            return ROUTE_WAIT
        check_styles(self.find_link(shards[0]), [*self.script, *[text for _, text, _ in self.history]])
        node = self.link(self.hub.query_shard)
        if node is None:
            return ROUTE_WAIT
        self.settle_pipeline()
        if node.begun:
            self.refresh(node)
        else:
            self.join(node, False)
        self.shadow_node = node
        self.begin_shadow(plan, shards)
        return ROUTE_WAIT

    cdef int begin_shadow(self, object plan, list shards) except -1:
        """Have the shards give their rows, and the node take them."""
        cdef Backend backend, node = self.shadow_node
        self.shadow = plan
        self.shadow_error = None
        self.shadow_bytes = self.shadow_rows = 0
        self.shadow_running = <int> len(shards)
        self.shadow_due = 2
        self.waiting = WAIT_SHADOW
        self.active = node
        node.prepared.clear()
        node.filter = FILTER_COPY
        node.write_query(plan.create, REPLY_QUERY)
        node.write_query(plan.copy, REPLY_QUERY)
        node.write_message(b"d", <const char*> COPY_HEAD, len(COPY_HEAD))
        backends = [self.find_link(shard) for shard in shards]
        for backend in backends:
            backend.filter = FILTER_MERGE
            backend.write_query(plan.default if backend.shard == self.hub.default_shard else plan.sharded, REPLY_QUERY)
        node.flush()
        for backend in backends:
            backend.flush()
        return 0

    cdef int settle_pipeline(self) except -1:
        """What the pipeline has sent is the transaction's by now: the shards may have their Sync."""
        cdef Backend backend
        for backend in self.links:
            if backend.unsynced:
                backend.unsynced = False
                backend.executed = False
                backend.write_empty(b"S", REPLY_SYNC | REPLY_SWALLOW)
                backend.flush()
        return 0

    cdef int on_merge_input(self, Backend backend, char type, const char* body, Py_ssize_t size) except -1:
        cdef Backend node = self.shadow_node
        if self.waiting != WAIT_SHADOW:
            return MergedQuery.on_merge_input(self, backend, type, body, size)
        if type == b"E":
            return self.fail_shadow(told_error(backend, body[:size], backend is node))
        if type == b"D" and self.shadow_error is None:
            self.shadow_bytes += size
            self.shadow_rows += 1
            if self.shadow_bytes > self.hub.config.limits.shadow_bytes_max or self.shadow_rows > ROWS_MAX:
                return self.fail_shadow(too_large(self.hub.config.limits.shadow_bytes_max))
            node.write_message(b"d", body, size)
        return 0

    cdef int on_merge_pause(self, Backend backend) except -1:
        cdef Backend node = self.shadow_node
        if self.waiting != WAIT_SHADOW:
            return MergedQuery.on_merge_pause(self, backend)
        node.flush()
        if node.outbox.end - node.outbox.start > OUTBOX_HIGH_BYTES and self.shadow_error is None:
            node.notify_flushed = True
            backend.set_hold(True)
        return 0

    cdef int on_flushed(self, Backend backend) except -1:
        if self.waiting != WAIT_SHADOW:
            return MergedQuery.on_flushed(self, backend)
        return self.let_go()

    cdef int let_go(self) except -1:
        """Read on from the shards that were waiting."""
        cdef Backend backend
        for backend in list(self.links):
            if backend.hold:
                backend.set_hold(False)
        return 0

    cdef int fail_shadow(self, object error) except -1:
        """The first error counts; what the shards still send goes by."""
        cdef Backend backend
        if self.shadow_error is not None:
            return 0
        self.shadow_error = error
        for backend in self.links:
            if backend.filter == FILTER_MERGE:
                backend.filter = FILTER_MUTE
        self.shadow_node.notify_flushed = True
        return 0

    cdef int on_failed(self, Backend backend) except -1:
        if self.waiting != WAIT_SHADOW:
            return MergedQuery.on_failed(self, backend)
        return 0        # ReadyForQuery follows

    cdef int on_part(self, Backend backend, bint suspended) except -1:
        if self.waiting != WAIT_SHADOW:
            return MergedQuery.on_part(self, backend, suspended)
        if backend is self.shadow_node:
            self.shadow_due -= 1
        else:
            self.shadow_running -= 1
            if self.shadow_running == 0:
                self.end_shadow_rows()
        if self.shadow_error is not None:
            self.let_go()
        if self.shadow_running == 0 and self.shadow_due == 0 and self.waiting == WAIT_SHADOW:
            return self.finish_shadow()
        return 0

    cdef int end_shadow_rows(self) except -1:
        """All rows are on their way: the node may share them out."""
        cdef Backend node = self.shadow_node
        if self.shadow_error is not None:
            node.write_message(b"f", <const char*> GIVEN_UP, len(GIVEN_UP))
        else:
            node.write_message(b"d", <const char*> COPY_TRAILER, len(COPY_TRAILER))
            node.write_empty(b"c", 0)
            node.write_query(self.shadow.fill, REPLY_QUERY)
            self.shadow_due += 1
        return node.flush()

    cdef int finish_shadow(self) except -1:
        """The statement may go to the node, or its client hears why not."""
        cdef Backend backend
        for backend in self.links:
            backend.filter = FILTER_NONE
            backend.part_rows = 0
        self.shadow = self.shadow_node = None
        self.is_shadowed = self.shadow_error is None
        self.denied, self.shadow_error = self.shadow_error, None
        return self.resume()

    cdef int release_links(self) except -1:
        self.is_shadowed = False
        return MergedQuery.release_links(self)


cdef object told_error(Backend backend, bytes body, bint is_of_node):
    """The SqlError for an ErrorResponse of a shard or of the node. None tells a place in a text of the client's."""
    error = decode_error(body)
    if backend.deadlock is not None and error.sqlstate == "57014":
        return backend.deadlock
    if is_of_node and not error.sqlstate.startswith(TOLD_AS_IT_IS):
        return not_built(
            "this read through the query node in a transaction that has written", "Commit first.",
            f"The query node cannot hold a copy of what the transaction sees: {error.message}")
    return SqlError(error.sqlstate, error.message, error.detail, error.hint)


cdef object too_large(long long bytes_max):
    """The tables are too large to be copied."""
    return not_built(
        "a read through the query node of large tables in a transaction that has written",
        "Commit first, restrict the statement to fewer tables, or raise limits.shadow_size_max.",
        f"The query node sees what the transaction has written by a copy of the tables that the statement names, "
        f"which may have {ROWS_MAX} rows and {bytes_max} bytes.")


cdef int check_styles(Backend backend, list settings) except -1:
    """Values travel as text, which must mean the same on both sides, to the last digit."""
    cdef set changed = backend.changed or set()
    if not str(backend.parameters.get("DateStyle")).startswith("ISO") or "DateStyle" in changed or \
            backend.parameters.get("IntervalStyle") != "postgres" or "IntervalStyle" in changed or \
            any([b"float_digits" in text.lower() for text in settings]):
        raise not_built(
            "reads through the query node in a transaction that has written, under settings of a session's own",
            "Leave DateStyle, IntervalStyle and extra_float_digits as they are.")
    return 0
