from foreshard.proxy.wire.backend cimport Backend
from foreshard.proxy.wire.transaction cimport Transaction


cdef class Asking(Transaction):
    cdef object coroutine           # one that asks this session's shards; None: none is running
    cdef list answerers             # the backends that its last question went to, in its order
    cdef object script_verb         # the command that was under way when it began

    cdef int run_script(self, object script) except -1
    cdef int step_script(self, object answer, object failure) except -1
    cdef int ask(self, list question) except -1
    cdef int take_answers(self) except -1
    cdef int on_script(self, object result, object failure) except -1
    cdef int drop_script(self) except -1
