from foreshard.proxy.wire.simple cimport Simple


cdef enum FrontendPhase:
    FRONTEND_STARTUP = 0        # the StartupMessage has not come yet
    FRONTEND_LOGIN = 1          # waits for the first backend of its pool
    FRONTEND_READY = 2
    FRONTEND_CONSOLE = 3
    FRONTEND_CLOSED = 4


cdef class Frontend(Simple):
    cdef int phase                      # FrontendPhase
    cdef readonly object address         # of the client
    cdef readonly double connected_at    # loop time
    cdef readonly object connected_time  # seconds since the epoch
    cdef readonly object pid            # cancel key given to the client
    cdef readonly bytes secret
    cdef bint reading_paused
    cdef double node_deadline           # loop time: how long the message at hand waits for the query node

    cdef int on_startup(self, const char* data, Py_ssize_t size) except -1
    cdef int on_startup_message(self, const char* body, Py_ssize_t size) except -1
    cdef int check_parameters(self, dict parameters) except -1
    cdef int login(self) except -1
    cdef int finish_login(self) except -1
    cdef int handle(self, char type, const char* body, Py_ssize_t size, const char* message, Py_ssize_t total) except -1
    cdef bint begins(self, char type) noexcept
    cdef bint wait_for_node(self) except -1
    cdef int on_message(
        self, char type, const char* body, Py_ssize_t size, const char* message, Py_ssize_t total) except -1
    cdef int on_copy_message(self, char type, const char* message, Py_ssize_t total) except -1
    cdef int throttle(self) except -1
    cdef int finish(self) except -1
