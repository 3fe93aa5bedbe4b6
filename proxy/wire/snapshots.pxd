from foreshard.proxy.wire.commit cimport Commit


cdef class Snapshots(Commit):
    cdef bint with_node             # the query node has part in the transaction's snapshots

    cdef bint wants_node(self, bint is_asked) except -1
