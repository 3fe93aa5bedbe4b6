from foreshard._core.buffer cimport Buffer
from foreshard.proxy.wire.backend cimport Backend
from foreshard.proxy.wire.merging cimport Merging
from foreshard.proxy.wire.portal cimport Portal


cdef class Finishing(Merging):
    cdef Buffer gathered            # DataRows of the shards, to be put together
    cdef bytes finish_head          # of the text that puts them together: before the rows
    cdef bytes finish_tail          # and behind them
    cdef int finish_columns         # of its rows
    cdef long long finish_rows      # row limit of the client's Execute; 0: none
    cdef bint describes_next        # the next RowDescription is the client's

    cdef int finish_parts_there(self) except -1
    cdef int bind_finish(self, Backend backend, Portal portal, bytes text) except -1
