from foreshard._core.template cimport Template
from foreshard.proxy.wire.backend cimport Backend
from foreshard.proxy.wire.session cimport Session


cdef class Transaction(Session):
    cdef Backend last           # the speaker, whose COMMIT follows those of the other shards; None: no such wait
    cdef bint is_quiet          # and its answer is not shown either

    cdef int run_verb(self, Template template) except -1
    cdef int begin(self, Template template) except -1
    cdef int run_without_links(self, Template template) except -1
    cdef int run_on_links(self, Template template) except -1
    cdef int commit_readers(self, Template template, list targets, bint is_quiet) except -1
    cdef int finish_readers(self) except -1
    cdef int end_quietly(self, bint commits) except -1
    cdef int send_command(self, Template template, bytes text, list targets, Backend speaker) except -1
    cdef bint is_setting(self, Template template) noexcept
    cdef bint run_setting(self, Template template) except -1
    cdef int settle_setting(self, Template template) except -1
    cdef int finish_verb(self) except -1
    cdef int tell_muted_error(self, Backend backend, Template template) except -1
    cdef int settle_verb(self, Template template) except -1
    cdef int cut_savepoints(self, str name, bint keep) except -1
    cdef int warn(self, str sqlstate, str message) except -1


cdef Backend speaker_of(list targets)
cdef bint ends_failure(Template template) noexcept
