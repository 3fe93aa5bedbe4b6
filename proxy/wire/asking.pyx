"""Questions of ours to the shards of a session, in between the client's statements and in the same transaction.

A script is a coroutine that awaits nothing but answers of shards (proxy/control/inside.py): it yields a list of (shard,
SQL, whether it writes) and is resumed with the rows of each, or with the SqlError of the first that failed. No event
loop takes part, so what a script does is as much a part of the transaction as the statement before it.

    run_script --yields--> ask --all shards have answered--> take_answers --> step_script --returns--> on_script
"""

from foreshard._core.frames cimport read_uint32
from foreshard.proxy.wire.backend cimport FILTER_NONE, Backend
from foreshard.proxy.wire.commit cimport STEP_ASK
from foreshard.proxy.wire.transaction cimport Transaction

from foreshard._core.errors import SqlError, decode_error


cdef class Asking(Transaction):
    """The part of a frontend that asks shards on its own account."""

    cdef int run_script(self, object script) except -1:
        """Run a script; `on_script` follows, now or later. The shards that it asks are linked already."""
        self.coroutine = script
        self.script_verb = self.verb
        return self.step_script(None, None)

    cdef int step_script(self, object answer, object failure) except -1:
        """Go on with the script until its next question, or its end."""
        cdef object question, script = self.coroutine
        try:
            question = script.send(answer) if failure is None else script.throw(failure)
        except StopIteration as done:
            return self.end_script(done.value, None)
        except SqlError as error:
            return self.end_script(None, error)
        return self.ask(question)

    def end_script(self, result: object, failure: object) -> int:
        """The script has returned, or failed."""
        self.coroutine = None
        self.verb = self.script_verb
        self.script_verb = None
        return self.on_script(result, failure)

    cdef int ask(self, list question) except -1:
        """Send each shard its text; the answers are not shown to the client."""
        cdef Backend backend
        texts = []
        self.answerers = []
        for shard, sql, is_write in question:
            backend = self.find_link(shard)
            backend.collected = []
            backend.wrote = backend.wrote or is_write
            backend.is_unpreparable = backend.is_unpreparable or sql.startswith(b"NOTIFY")
            self.answerers.append(backend)
            texts.append((backend, sql))
        self.send_texts(None, texts, None)
        self.step = STEP_ASK
        return 0

    cdef int next_step(self) except -1:
        if self.step == STEP_ASK:
            self.step = 0
            return self.take_answers()
        return Transaction.next_step(self)

    cdef int take_answers(self) except -1:
        """Every shard has answered: the script hears it."""
        cdef Backend backend
        cdef object failure = None
        answers = []
        for backend in self.answerers:
            if backend.muted_error is not None:
                failure = failure or decode_error(backend.muted_error)
                backend.muted_error = None
            answers.append([decode_row(row) for row in backend.collected or ()])
            backend.collected = None
            backend.filter = FILTER_NONE
        self.answerers = None
        self.command_failed = False
        return self.step_script(answers, failure)

    cdef int on_script(self, object result, object failure) except -1:
        """The script is done: its result, or the SqlError that ended it. Overridden by whoever runs one."""
        return 0

    cdef int drop_script(self) except -1:
        """The session ends: nobody waits for the script any more."""
        if self.coroutine is not None:
            self.coroutine.close()
            self.coroutine = None
        return 0


cdef tuple decode_row(bytes body):
    """The values of a DataRow in text format; None for NULL."""
    cdef const char* data = body
    cdef Py_ssize_t at = 2, end = len(body)
    cdef int size, count = (<unsigned char> data[0] << 8) | <unsigned char> data[1]
    values = []
    for _ in range(count):
        if at + 4 > end:
            break
        size = <int> read_uint32(data + at)
        at += 4
        if size < 0:
            values.append(None)
            continue
        values.append(body[at:at + size].decode("utf-8", "replace"))
        at += size
    return tuple(values)
