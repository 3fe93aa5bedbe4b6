from foreshard._core.template cimport Template
from foreshard.proxy.wire.backend cimport Backend
from foreshard.proxy.wire.snapshots cimport Snapshots


cdef class Transaction(Snapshots):
    cdef int run_verb(self, Template template) except -1
    cdef int leave_implicit(self, Template template) except -1
    cdef int begin(self, Template template) except -1
    cdef int run_without_links(self, Template template) except -1
    cdef int run_on_links(self, Template template) except -1
    cdef int end_quietly(self, bint commits) except -1
    cdef bint is_setting(self, Template template) noexcept
    cdef bint run_setting(self, Template template) except -1
    cdef bint set_snapshot(self, Template template) except -1
    cdef int settle_setting(self, Template template) except -1
    cdef int tell_muted_error(self, Backend backend, Template template) except -1
    cdef int settle_verb(self, Template template) except -1
    cdef int cut_savepoints(self, str name, bint keep) except -1


cdef Backend speaker_of(list targets)
cdef bint ends_failure(Template template) noexcept
