from libc.stdint cimport int64_t

from foreshard._core.merge_plan cimport MergePlan
from foreshard._core.template cimport Template
from foreshard.proxy.wire.backend cimport Backend
from foreshard.proxy.wire.finishing cimport Finishing


cdef class MergedQuery(Finishing):
    cdef bytes merged_text          # of the shards, for the query under way
    cdef bytes client_text          # the query's own
    cdef int64_t limit              # of its rows; -1: none
    cdef int64_t offset
    cdef long long kept_id          # number of the statement that the shards run in its place; 0: none
    cdef bytes stale_error          # what a shard said that could not; None: all could

    cdef int query_merged(self, Template template, bytes client_text) except -1
    cdef int describe_client(self, Backend backend) except -1
    cdef int ask_merged(self, MergePlan plan, list parts) except -1
    cdef long long id_of(self, bytes text) except -1
    cdef int run_kept(self, Backend backend, bint describes) except -1
