from foreshard._core.template cimport Template
from foreshard.proxy.wire.backend cimport Backend


cdef int copy_out_of(Template template) noexcept
cdef bint shows_copy(Backend backend, const char* body, Py_ssize_t size) except -1
