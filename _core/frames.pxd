from libc.stdint cimport int32_t, uint32_t

from foreshard._core.values cimport Values


cdef enum FrameResult:
    FRAME_WHOLE = 0         # a whole message lies at the start
    FRAME_PARTIAL = 1       # its header does, the rest has not come yet
    FRAME_NONE = 2          # not even a header
    FRAME_MALFORMED = 3     # a length that no message can have


cdef struct Cursor:
    const char* at
    const char* end
    bint is_bad             # a read went past the end; every later read fails too


cdef struct BindParts:
    const char* portal
    Py_ssize_t portal_size
    const char* statement
    Py_ssize_t statement_size
    const char* rest            # from the parameter format codes to the end of the message
    Py_ssize_t rest_size


cdef uint32_t read_uint32(const char* at) noexcept nogil
cdef int scan_frame(const char* data, Py_ssize_t size, Py_ssize_t bytes_max, Py_ssize_t* total) noexcept nogil
cdef int read_int16(Cursor* cursor) noexcept nogil
cdef int32_t read_int32(Cursor* cursor) noexcept nogil
cdef const char* read_bytes(Cursor* cursor, Py_ssize_t size) noexcept nogil
cdef const char* read_cstring(Cursor* cursor, Py_ssize_t* size) noexcept nogil
cdef bint decode_bind(const char* body, Py_ssize_t size, BindParts* parts) noexcept nogil
cdef int decode_bind_params(BindParts* parts, Values params) except -1
