cdef enum ReplyKind:
    REPLY_NONE = 0
    REPLY_QUERY = 1             # everything until ReadyForQuery
    REPLY_PARSE = 2             # ParseComplete
    REPLY_BIND = 3              # BindComplete
    REPLY_CLOSE = 4             # CloseComplete
    REPLY_DESCRIBE = 5          # [ParameterDescription] RowDescription or NoData
    REPLY_EXECUTE = 6           # rows, then CommandComplete, EmptyQueryResponse or PortalSuspended
    REPLY_SYNC = 7              # ReadyForQuery
    SYNTHETIC_PARSE = 8         # ParseComplete that Foreshard itself gives when its turn comes
    SYNTHETIC_BIND = 9
    SYNTHETIC_CLOSE = 10
    REPLY_POISON = 11           # an error that Foreshard provoked to make an implicit transaction roll back
    REPLY_DESCRIBE_MERGED = 12  # RowDescription with hidden columns, for the owner
    REPLY_KIND_MASK = 0x3F
    REPLY_SWALLOW = 0x40        # not for the client
    REPLY_NOTIFY = 0x80         # not for the client, but its ReadyForQuery is told to the owner


cdef class Replies:
    cdef unsigned char* items
    cdef Py_ssize_t head
    cdef Py_ssize_t count
    cdef Py_ssize_t capacity    # a power of two

    cdef int push(self, int entry) except -1
    cdef int peek(self) noexcept
    cdef int pop(self) noexcept
    cdef int drop_last(self) noexcept
    # Nothing is owed that runs for the client: Bind, Describe, Parse (if it may be) and what the client does not see.
    cdef bint is_binding(self, bint may_parse) noexcept
    cdef void clear(self) noexcept
