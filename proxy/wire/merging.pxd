from foreshard._core.buffer cimport Buffer
from foreshard._core.frames cimport BindParts
from foreshard._core.merge cimport Merger
from foreshard._core.merge_plan cimport MergePlan
from foreshard.proxy.wire.backend cimport Backend
from foreshard.proxy.wire.portal cimport Portal
from foreshard.proxy.wire.segment cimport Segment
from foreshard.proxy.wire.statement cimport Statement


cdef enum PartState:
    PART_RUNNING = 1                # was asked, and has not answered all of it
    PART_SUSPENDED = 2              # has more rows, and waits to be asked
    PART_ENDED = 3


cdef tuple split_formats(BindParts* parts)


cdef class Merging(Segment):
    cdef Merger merger              # of the result under way; None: none is
    cdef Buffer merged              # its rows on their way to the client
    cdef list part_states           # PartState of each shard
    cdef int running                # shards that owe an answer
    cdef int merge_state            # MergeState of the last step
    cdef long long rows_goal        # Merger.emitted that ends this Execute; 0: none
    cdef long long rows_before      # Merger.emitted when it began
    cdef long long chunk            # row limit of the shards' own Executes; 0: none
    cdef bint is_advancing          # inside advance()
    cdef bint has_news              # something came meanwhile
    cdef bint can_ask_again         # the client has seen nothing of the result yet
    cdef list describing            # (portal, whether the client asked) of RowDescriptions to come

    cdef int check_encoding(self, MergePlan plan, Backend backend) except -1
    cdef int begin_merge(self, list parts, Merger merger, list states) except -1
    cdef tuple labels(self)
    cdef int fail_merge(self, Backend current, object error) except -1
    cdef int advance(self, Backend current) except -1
    cdef bint advance_once(self, Backend current) except -1
    cdef int give_rows(self) except -1
    cdef int wake(self, Backend current) except -1
    cdef int mute(self, Backend current) except -1
    cdef int settle_merge(self, Merger merger) except -1
    cdef int finish_merge(self) except -1
    cdef MergePlan plan_for(self, MergePlan plan)
    cdef Statement statement_for_shards(self, Statement statement, MergePlan plan)
    cdef int bind_merged(self, Portal portal, Statement statement, BindParts* parts) except -1
    cdef int push_bound(self, Backend first, int failed) except -1
    cdef bint waits_for_others(self, Portal portal) except -1
    cdef int execute_merged(self, Portal portal, long long rows) except -1
    cdef int describe_merged(self, Portal portal, bint is_shown) except -1
