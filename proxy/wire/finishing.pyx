"""Merged reads that a shard finishes: the shards' partial results become rows of a second text (MergePlan.finish).

    parts: all shards --rows--> gathered --(all ended)--> finish: the text around them, on the first shard --> client

The second text's rows go through a merge of one input, so row limits, portals and back-pressure are those of merges.
What the client is told of the columns is what its own text has on the first shard. The parts are kept up to
PARTS_BYTES_MAX: beyond that the answer is an error, no guess.
"""

from foreshard._core.buffer cimport Buffer
from foreshard._core.finish_text cimport parts_text
from foreshard._core.frames cimport BindParts
from foreshard._core.merge cimport MERGE_DONE, Merger
from foreshard._core.merge_plan cimport MergePlan
from foreshard._core.replies cimport (
    REPLY_BIND,
    REPLY_CLOSE,
    REPLY_DESCRIBE_MERGED,
    REPLY_PARSE,
    REPLY_QUERY,
    REPLY_SWALLOW,
)
from foreshard.proxy.wire.backend cimport FILTER_NONE, Backend
from foreshard.proxy.wire.merging cimport PART_RUNNING, Merging, split_formats
from foreshard.proxy.wire.parsing cimport HANDLED, RETRY
from foreshard.proxy.wire.portal cimport Portal
from foreshard.proxy.wire.statement cimport Statement

from foreshard._core.errors import SqlError

cdef enum:
    PARTS_BYTES_MAX = 67108864      # chosen, not measured
    CHUNK_ROWS_MAX = 256            # that the shard is asked for at once under a row limit

cdef MergePlan PASSING = MergePlan(())


cdef class Finishing(Merging):
    """The part of a frontend that has a shard finish a merged read."""

    def __cinit__(self):
        self.gathered = Buffer()

    cdef int give_rows(self) except -1:
        """Keep the parts; everything else goes to the client."""
        if self.merger.plan.finish is None:
            return Merging.give_rows(self)
        self.gathered.append(self.merged.data + self.merged.start, self.merged.end - self.merged.start)
        self.merged.clear()
        if self.gathered.end - self.gathered.start > PARTS_BYTES_MAX:
            raise SqlError(
                "53200", "too many groups of several shards for an expression of aggregates",
                f"more than {PARTS_BYTES_MAX} bytes", "Restrict the rows, or select the aggregates themselves.")
        return 0

    cdef int finish_merge(self) except -1:
        if self.merger.plan.finish is None or self.parts_failed or self.merge_state != MERGE_DONE:
            self.gathered.clear()
            return Merging.finish_merge(self)
        return self.finish_parts_there()

    cdef int finish_parts_there(self) except -1:
        """All parts are here: the first shard puts them together."""
        cdef MergePlan plan = self.merger.plan
        cdef Merger merger = Merger(PASSING, 1)
        cdef Backend backend
        cdef Portal portal = self.asked
        cdef bytes text = self.finish_head + parts_text(self.gathered, plan.types) + self.finish_tail
        for backend in self.parts:
            backend.filter = FILTER_NONE
            backend.part_rows = 0
        backend = self.parts[0]
        self.gathered.clear()
        merger.expect(self.finish_columns)
        if self.simple:
            backend.write_query(text, REPLY_QUERY)
            return self.begin_merge([backend], merger, [PART_RUNNING])
        portal.merger = merger
        portal.parts = [backend]
        portal.states = [PART_RUNNING]
        portal.bound = 1
        self.rows_before = 0
        self.rows_goal = self.finish_rows
        self.chunk = min(self.finish_rows, <long long> CHUNK_ROWS_MAX)
        self.bind_finish(backend, portal, text)
        self.send_execute(backend, portal.name, self.chunk)
        return self.begin_merge(portal.parts, merger, portal.states)

    cdef int bind_finish(self, Backend backend, Portal portal, bytes text) except -1:
        """The second text takes over the portal's name on the shard."""
        cdef bytes parse = text + b"\0\0\0"
        cdef bytes close = b"P" + portal.name + b"\0"
        cdef bytes bind = portal.name + b"\0\0\0\0\0\0" + portal.formats
        backend.write_message(b"C", <const char*> close, len(close))
        backend.replies.push(REPLY_CLOSE | REPLY_SWALLOW)
        backend.write_parse(None, b"", <const char*> parse, len(parse), REPLY_PARSE | REPLY_SWALLOW)
        backend.unnamed = None
        backend.write_message(b"B", <const char*> bind, len(bind))
        backend.replies.push(REPLY_BIND | REPLY_SWALLOW)
        return 0

    cdef int on_merge_input(self, Backend backend, char type, const char* body, Py_ssize_t size) except -1:
        cdef Portal portal
        if type == b"T":
            if self.describes_next:
                self.describes_next = False
                self.finish_columns = (<unsigned char> body[0] << 8) | <unsigned char> body[1]
                return self.push_bytes(b"T" + (size + 4).to_bytes(4, "big") + body[:size])
            if self.describing and (<Portal> self.describing[0][0]).client is not None:
                portal, is_shown = self.describing.pop(0)
                self.finish_columns = (<unsigned char> body[0] << 8) | <unsigned char> body[1]
                portal.columns = self.finish_columns
                return self.push_bytes(with_formats(body[:size], portal.formats)) if is_shown else 0
        return Merging.on_merge_input(self, backend, type, body, size)

    # -- extended query ------------------------------------------------------------------------------------------

    cdef int bind_merged(self, Portal portal, Statement statement, BindParts* parts) except -1:
        """The shards' rows are text whatever the client wants; the formats are for the second text."""
        cdef bytes rest
        cdef MergePlan plan = self.plan_for(statement.template.merge)
        portal.client = None
        if plan.finish is None:
            return Merging.bind_merged(self, portal, statement, parts)
        rest, portal.formats = split_formats(parts)
        rest += b"\0\0"        # text for all columns
        parts.rest = <const char*> rest
        parts.rest_size = len(rest)
        Merging.bind_merged(self, portal, statement, parts)
        portal.merger.expect(<int> len(plan.types))
        portal.client = statement
        portal.columns = -1
        portal.finish = plan.finish_texts(statement.literals)
        return 0

    cdef int describe_merged(self, Portal portal, bint is_shown) except -1:
        """Ask for the description of the client's own text."""
        cdef Backend backend
        cdef bytes message
        if portal.client is None:
            return Merging.describe_merged(self, portal, is_shown)
        backend = portal.parts[0]
        if self.attach(backend.shard, False, False) is not backend:
            return RETRY
        self.ensure(backend, portal.client, portal.is_unnamed, False)
        message = b"S" + (b"" if portal.is_unnamed else portal.client.server_name) + b"\0"
        backend.write_message(b"D", <const char*> message, len(message))
        backend.replies.push(REPLY_DESCRIBE_MERGED)
        backend.unsynced = True
        self.describing.append((portal, is_shown))
        return HANDLED

    cdef int execute_merged(self, Portal portal, long long rows) except -1:
        """All parts are asked for at once; a row limit counts the rows that are made of them."""
        if portal.client is None or portal.merger.plan.finish is None:
            return Merging.execute_merged(self, portal, rows)
        if self.waits_for_others(portal):
            return RETRY
        if portal.columns < 0:
            self.describe_merged(portal, False)
        else:
            self.finish_columns = portal.columns
        self.finish_head, self.finish_tail = portal.finish
        self.finish_rows = rows
        self.gathered.clear()
        return Merging.execute_merged(self, portal, 0)


cdef bytes with_formats(bytes body, bytes formats):
    """A RowDescription of a statement as that of a portal with these result formats."""
    cdef int count = int.from_bytes(formats[:2], "big"), at = 2, index = 0
    cdef object made = bytearray(body)
    while at < len(body):
        at = body.index(b"\0", at) + 19
        if count:
            given = formats[2:4] if count == 1 else formats[2 + 2 * index:4 + 2 * index]
            made[at - 2:at] = given
        index += 1
    return b"T" + (len(body) + 4).to_bytes(4, "big") + bytes(made)
