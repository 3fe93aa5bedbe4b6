from foreshard._core.merge cimport Merger
from foreshard.proxy.wire.backend cimport Backend
from foreshard.proxy.wire.carry cimport Carry
from foreshard.proxy.wire.statement cimport Statement


cdef class Portal:
    cdef Statement statement        # None: no such portal
    cdef Backend backend            # where it is; None for what Foreshard answers itself
    cdef list parts                 # backends of a concatenation; None otherwise
    cdef int part                   # where a row limit has stopped
    cdef int bound                  # how many of the parts have been sent the Bind
    cdef bytes name                 # of a concatenation: what Bind said, for the parts that hear it later
    cdef bytes rest
    cdef list texts                 # of a split INSERT: each part's own (Parse, Bind) behind the names; None otherwise
    cdef list row_order             # of a split INSERT with RETURNING: Gather.row_order
    cdef list row_marks             # and the marks of its rows: Gather.row_marks
    cdef bint is_unnamed            # its statement is the unnamed one
    cdef Carry carry                # of a portal with parts whose rows are carried, or held back; None otherwise
    cdef Merger merger              # of a merged result; None for a plain concatenation
    cdef list states                # PartState of each part of a merged result; None before its first Execute
    cdef Statement client           # of a result that a shard finishes: the client's own statement; None otherwise
    cdef tuple finish               # and its second text, before and behind the rows
    cdef bytes formats              # and the result formats of the client's Bind
    cdef int columns                # and how many it has; -1: not known yet
