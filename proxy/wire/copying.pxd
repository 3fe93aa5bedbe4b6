from libc.stdint cimport int64_t

from foreshard._core.copy_split cimport CopyPart, CopySplitter
from foreshard._core.template cimport Template
from foreshard.proxy.wire.backend cimport Backend
from foreshard.proxy.wire.shadowing cimport Shadowing


cdef class Copying(Shadowing):
    cdef CopySplitter splitter      # of the COPY FROM STDIN under way; None: none is, or one shard has it all
    cdef Template copied            # its statement
    cdef bytes copy_text
    cdef list copy_parts            # Backend by shard; None where no row has come for it
    cdef Backend copy_first         # whose CopyInResponse is the client's
    cdef int copy_running           # backends that have not answered all of it
    cdef bint copy_failed
    cdef bint copy_ending           # CopyDone has come
    cdef bint copy_ended            # and was sent to the shards
    cdef bytes copy_refusal         # ErrorResponse of our own to a row, told when those before it were taken
    cdef bytes outcome_tag          # of a COPY whose rows the other shards are being given; None: none is
    cdef bytes copy_tag             # CommandComplete that waits for COMMIT; None: none does

    cdef int begin_copy(self, Template template, bytes text) except -1
    cdef int choose_first(self, Template template) except -1
    cdef int place_rows(self, Template template) except -1
    cdef CopySplitter make_splitter(self, Template template, Backend backend)
    cdef int start_part(self, Backend backend, bint is_first) except -1
    cdef Backend join_part(self, int shard)
    cdef int send_part(self, Backend backend, CopyPart part) except -1
    cdef bint pump(self, Py_ssize_t least) except -1
    cdef int push_parts(self) except -1
    cdef int feed_copy(self, char type, const char* body, Py_ssize_t size) except -1
    cdef int refuse_row(self, object error) except -1
    cdef int follow_parents(self) except -1
    cdef int take_followed(self) except -1
    cdef int go_on(self, Py_ssize_t least) except -1
    cdef int end_batch(self) except -1
    cdef int end_parts(self) except -1
    cdef int give_up_copy(self, const char* reason, Py_ssize_t size) except -1
    cdef int fail_copy(self, bytes message) except -1
    cdef int mute_parts(self, Backend current) except -1
    cdef bytes translate_error(self, Backend backend, bytes body)
    cdef bytes located(self, object error)
    cdef int finish_copy(self) except -1
    cdef int end_copy(self, bytes tag) except -1
    cdef int end_own(self, bint commits) except -1
    cdef bytes sum_parts(self)
    cdef int charge_parts(self) except -1
    cdef int count_rows(self) except -1
    cdef int spread_charge(self, int shard, int64_t rows) except -1
