"""Transaction commands: BEGIN, COMMIT, ROLLBACK and savepoints over however many shards take part.

With no shard in the transaction yet, the answer is ours and costs no round trip. With shards, the command goes to every
shard that takes part; the answer of the one that was written (the speaker) is the client's, the others' are not shown.
COMMIT over several shards has a file of its own (commit.pyx).

    I --BEGIN--> T --(error)--> E          COMMIT in E is ROLLBACK, as in PostgreSQL
    T, E --COMMIT, ROLLBACK--> I           E --ROLLBACK TO--> T
"""

from foreshard._core.buckets cimport SHARDS_MAX
from foreshard._core.replies cimport REPLY_SWALLOW, REPLY_SYNC
from foreshard._core.template cimport (
    ROUTE_DEFAULT,
    ROUTE_TRANSACTION,
    VERB_BEGIN,
    VERB_COMMIT,
    VERB_NONE,
    VERB_RELEASE,
    VERB_ROLLBACK,
    VERB_ROLLBACK_TO,
    VERB_SAVEPOINT,
    Template,
)
from foreshard.proxy.wire.backend cimport FILTER_NONE, Backend
from foreshard.proxy.wire.commit cimport COMMIT, ROLLBACK, owe_claims
from foreshard.proxy.wire.pool cimport Pool
from foreshard.proxy.wire.snapshots cimport Snapshots

from foreshard._core.errors import SqlError, not_built
from foreshard.proxy.wire.session import failed_transaction

PLAIN_BEGINS = (b"BEGIN", b"BEGIN WORK", b"BEGIN TRANSACTION", b"START TRANSACTION")


cdef class Transaction(Snapshots):
    """The part of a frontend that knows transaction commands."""

    cdef int run_verb(self, Template template) except -1:
        """Carry out one transaction command. The active backend has answered everything before.

        Afterwards `waiting` is WAIT_COMMANDS or the command is done and, for a simple Query, ReadyForQuery given.
        """
        cdef Backend backend
        cdef bint joined = False
        if self.is_implicit and self.explicit:
            self.leave_implicit(template)
        for backend in self.links:
            if backend.begun:
                joined = True
            elif backend.unsynced:
                if template.verb != VERB_BEGIN:
                    joined = True
                elif backend.executed:
                    raise not_built("BEGIN behind other statements of a pipeline", "Send it first.")
                else:  # only prepared, with Flush in place of Sync: no transaction to join
                    backend.unsynced = False
                    backend.write_empty(b"S", REPLY_SYNC | REPLY_SWALLOW)
                    backend.flush()
        if template.verb == VERB_BEGIN and not self.explicit:
            self.begin(template)
        elif joined:
            return self.run_on_links(template)
        else:
            self.run_without_links(template)
        if self.simple:
            self.push_ready()
        return 0

    cdef int leave_implicit(self, Template template) except -1:
        """A command inside a transaction of ours: BEGIN makes it the client's, COMMIT and ROLLBACK end it."""
        if template.verb == VERB_BEGIN:
            if self.links and b" ".join(template.text.rstrip(b"; ").upper().split()) not in PLAIN_BEGINS:
                raise not_built("BEGIN with options behind other statements", "Send it first.")
            self.is_implicit = self.explicit = False
            return 0
        if template.verb != VERB_COMMIT and template.verb != VERB_ROLLBACK:
            raise no_transaction_block(template)
        if template.chain:
            raise no_transaction_block(template)
        self.is_implicit = False
        return self.warn("25P01", "there is no transaction in progress")

    cdef int begin(self, Template template) except -1:
        """BEGIN: answered here, sent with the first statement."""
        cdef bytes text = template.text
        self.explicit = True
        self.failed = False
        if self.snapshot and b"ISOLATION" not in text.upper():
            text = text.rstrip(b"; ") + b" ISOLATION LEVEL REPEATABLE READ"
        self.begin_text = text
        self.is_repeatable = False
        self.has_snapshots = False
        self.note_isolation(text)
        return self.push_complete(b"START TRANSACTION" if b"START" in template.text[:40].upper() else b"BEGIN")

    cdef int run_without_links(self, Template template) except -1:
        """No shard takes part: answer what PostgreSQL would."""
        cdef int verb = template.verb
        known = any(name == template.name for name, _, _ in self.history if name is not None)
        self.command_failed = False
        if verb == VERB_BEGIN:
            if self.failed:
                raise failed_transaction()
            self.warn("25001", "there is already a transaction in progress")
            return self.push_complete(b"BEGIN")
        if verb == VERB_COMMIT or verb == VERB_ROLLBACK:
            if not self.explicit:
                if template.chain:
                    raise no_transaction_block(template)
                self.warn("25P01", "there is no transaction in progress")
            tag = b"COMMIT" if verb == VERB_COMMIT and not self.failed else b"ROLLBACK"
            self.settle_verb(template)
            return self.push_complete(tag)
        if not self.explicit:
            raise no_transaction_block(template)
        if self.failed and verb != VERB_ROLLBACK_TO:
            raise failed_transaction()
        if verb != VERB_SAVEPOINT and not known:
            raise SqlError("3B001", f'savepoint "{template.name}" does not exist')
        self.settle_verb(template)
        tags = {VERB_SAVEPOINT: b"SAVEPOINT", VERB_RELEASE: b"RELEASE"}
        return self.push_complete(tags.get(verb, b"ROLLBACK"))

    cdef int run_on_links(self, Template template) except -1:
        """Send the command to every shard that takes part; the written one answers the client."""
        cdef bytes text = template.text
        cdef list targets
        if self.failed:
            if template.verb == VERB_COMMIT:
                text = b"ROLLBACK AND CHAIN" if template.chain else b"ROLLBACK"
            elif template.verb != VERB_ROLLBACK and template.verb != VERB_ROLLBACK_TO:
                raise failed_transaction()
        targets = [each for each in self.links if (<Backend> each).begun or (<Backend> each).unsynced]
        if template.verb == VERB_COMMIT and not self.failed and (len(targets) > 1 or owe_claims(targets)):
            return self.start_commit(template, targets, False)
        return self.send_command(template, text, targets, speaker_of(targets))

    cdef int end_quietly(self, bint commits) except -1:
        """End a transaction that the client knows nothing of: only an error is shown. Waits with WAIT_COMMANDS."""
        cdef list targets = [each for each in self.links if (<Backend> each).begun]
        cdef Template template = COMMIT if commits else ROLLBACK
        if not targets:
            self.command_failed = False
            return self.settle_verb(template)
        if commits:
            return self.start_commit(template, targets, True)
        return self.send_command(template, template.text, targets, None)

    cdef bint is_setting(self, Template template) noexcept:
        """A SET, RESET or DISCARD that every shard of the session has to hear, also those that are added later."""
        cdef Backend backend
        if template.kind != ROUTE_DEFAULT or template.text is None or (template.name is None and not template.is_reset):
            return False
        if self.hub.shard_count > 1 or template.name == "foreshard.snapshot":
            return True
        for backend in self.links:
            if backend.unsynced and backend.wrote and not self.explicit:
                return False        # the one shard takes it as it comes
        return self.hub.is_sharded

    cdef bint run_setting(self, Template template) except -1:
        """Carry out a setting on every backend of the session; False: the message has to wait.

        What outlives the transaction pins the session and is replayed on backends that it gets later; what ends with
        the transaction is replayed on shards that join it later.
        """
        cdef Backend backend
        if self.failed:
            raise failed_transaction()
        if self.wait_until_drained():
            return False
        if template.name == "foreshard.snapshot":
            return self.set_snapshot(template)
        for backend in self.links:
            if backend.unsynced and backend.wrote and not self.explicit:
                # As a simple Query of ours it would commit them.
                raise not_built("settings behind writes of a pipeline", "Send them first, or Sync between.")
        had, self.has_snapshots = self.has_snapshots, True      # SET TRANSACTION must come before them
        backend = None
        if template.pin != "LISTEN" or self.link_all(range(self.hub.shard_count)):     # any shard may notify
            backend = self.attach(self.hub.default_shard, False, False)
        self.has_snapshots = had
        if backend is None:
            return False
        if template.pin is not None and not (template.is_reset and self.pinned is None):
            self.pinned = self.pinned or template.pin
        for backend in self.links:
            self.join(backend, False)
            if template.is_reset:
                self.mark_reset(backend, template)
            if self.pinned is not None:
                backend.is_tainted = True
            if template.name == "LISTEN" or template.name == "UNLISTEN":
                backend.is_unpreparable = True
        self.send_command(template, template.text, list(self.links), self.active)
        return True

    def has_settled(self) -> bool:
        """It has made settings that only the backend knows."""
        return self.is_settled and self.pinned is not None

    def is_listening(self) -> bool:
        """Its backends listen for notifications."""
        return self.pinned is not None and any([text.lstrip()[:6].upper() == b"LISTEN" for text in self.script])

    def leave_shards(self, int count) -> None:
        """Listen on these shards only."""
        cdef Backend backend
        if self.is_listening() and self.is_idle():
            for backend in [backend for backend in self.links if count <= (<Backend> backend).shard < SHARDS_MAX]:
                self.links.remove(backend)
                (<Pool> backend.home).discard(backend)

    def listen_everywhere(self) -> bool:
        """Listen on shards that were added, between two transactions; False when that is to be tried again."""
        cdef Backend backend
        if self.fd < 0 or not self.is_listening():
            return True
        if not self.is_idle():
            return False
        for shard in range(self.hub.shard_count):
            backend = self.link(shard)
            if backend is None:
                return False
            if not backend.is_tainted:
                self.attach(shard, False, False)
                return False
        return True

    cdef bint set_snapshot(self, Template template) except -1:
        """SET foreshard.snapshot: ours alone, and between transactions."""
        if self.explicit or self.is_unsynced():
            raise SqlError("25001", "foreshard.snapshot cannot be changed inside a transaction block")
        self.snapshot = template.text == b"on"
        self.push_complete(b"RESET" if template.is_reset else b"SET")
        if self.simple:
            self.push_ready()
        return True

    cdef int conclude(self, Template template) except -1:
        """Every shard has answered the command: draw the conclusion and go on."""
        cdef Backend backend
        cdef bint failed = False, open_ = False
        self.verb = None
        for backend in self.links:
            backend.filter = FILTER_NONE
            self.tell_muted_error(backend, template)
            if backend.begun:
                if backend.status == b"E":
                    failed = True
                open_ = open_ or backend.status != b"I"
        if template.verb == VERB_COMMIT or template.verb == VERB_ROLLBACK:
            self.settle_verb(template)
        elif template.verb == VERB_NONE:
            self.failed = failed
            if not self.command_failed:
                self.settle_setting(template)
        elif open_:
            if not failed:
                self.settle_verb(template)
            self.failed = failed
        if self.command_failed and not self.simple:
            self.skipping = True
        if self.simple:
            self.push_ready()
        if not self.explicit:
            self.release_links()
        return self.resume()

    cdef int tell_muted_error(self, Backend backend, Template template) except -1:
        """A shard whose answer was not shown refused the command: an error, too, unless it was to roll back."""
        if backend.muted_error is None:
            return 0
        if not self.command_failed and template.verb != VERB_ROLLBACK and not (
                template.verb == VERB_COMMIT and self.failed):
            self.command_failed = True
            self.push_bytes(b"E" + (len(backend.muted_error) + 4).to_bytes(4, "big") + backend.muted_error)
        backend.muted_error = None
        return 0

    cdef int settle_verb(self, Template template) except -1:
        """The command has succeeded: what holds now."""
        cdef Backend backend
        cdef int verb = template.verb
        if verb == VERB_COMMIT or verb == VERB_ROLLBACK:
            if verb == VERB_COMMIT and not self.failed and not self.command_failed:
                self.script += [text for _, text, lasts in self.history if lasts]
            self.explicit = template.chain
            self.has_snapshots = False
            self.is_repeatable = self.is_repeatable and template.chain
            self.failed = False
            self.history = []
            for backend in self.links:
                backend.begun = template.chain and backend.status != b"I"
                if template.chain:
                    backend.wrote = backend.owes_claims = False
                    if backend.captured:
                        backend.captured = False
                        self.hub.waker.touch(backend.shard)
                    if backend.bucket_tentative:
                        backend.bucket = -1
        elif verb == VERB_SAVEPOINT:
            self.history.append((template.name, template.text, False))
        elif verb == VERB_RELEASE:
            self.cut_savepoints(template.name, False)
        elif verb == VERB_ROLLBACK_TO:
            self.cut_savepoints(template.name, True)
            self.failed = False
            for backend in self.links:
                if backend.bucket_tentative:
                    backend.bucket = -1
        return 0

    cdef int cut_savepoints(self, str name, bint keep) except -1:
        """ROLLBACK TO (keep): forget what came after the savepoint. RELEASE: forget it and those after it."""
        for index in range(len(self.history) - 1, -1, -1):
            if self.history[index][0] == name:
                if keep:
                    del self.history[index + 1:]
                else:
                    self.history[index:] = [each for each in self.history[index:] if each[0] is None]
                break
        return 0

    cdef int settle_setting(self, Template template) except -1:
        """The setting has been made: what later backends must hear."""
        if template.name == "DISCARD ALL":     # nothing is left of the session's state
            self.script.clear()
            self.pinned = None
            self.has_temporary = False
        elif template.name is None or template.name == "DEALLOCATE ALL":
            return 0                            # nothing that a fresh backend lacks
        elif self.explicit:
            self.note_isolation(template.text)
            self.history.append((None, template.text, template.pin is not None))
        elif self.pinned is not None and template.pin is not None:
            self.script.append(template.text)
        return 0


cdef object no_transaction_block(Template template):
    """The SqlError for a command that only a transaction block takes."""
    words = {
        VERB_COMMIT: "COMMIT AND CHAIN",
        VERB_ROLLBACK: "ROLLBACK AND CHAIN",
        VERB_SAVEPOINT: "SAVEPOINT",
        VERB_RELEASE: "RELEASE SAVEPOINT",
        VERB_ROLLBACK_TO: "ROLLBACK TO SAVEPOINT",
    }
    return SqlError("25P01", f"{words[template.verb]} can only be used in transaction blocks")


cdef Backend speaker_of(list targets):
    """The backend that was written, or else the first."""
    cdef Backend backend
    for backend in targets:
        if backend.wrote:
            return backend
    return targets[0]


cdef bint ends_failure(Template template) noexcept:
    """COMMIT, ROLLBACK, ROLLBACK TO: what a failed transaction still takes."""
    return template.kind == ROUTE_TRANSACTION and (
        template.verb == VERB_COMMIT or template.verb == VERB_ROLLBACK or template.verb == VERB_ROLLBACK_TO)
