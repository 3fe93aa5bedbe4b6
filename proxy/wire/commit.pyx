"""COMMIT over several shards: one writer commits plainly, several by two-phase commit.

    VOTE: readers COMMIT, writers but one PREPARE TRANSACTION
      --all did--> DECIDE: the decision shard inserts (id, commit) and commits, in one transaction
        --committed--> FINISH: COMMIT PREPARED on the others, then the client's answer
      --one failed--> UNDO: ROLLBACK, ROLLBACK PREPARED

Snapshots of several shards are not opened in between: one participant, the *gate shard*, holds a lock on
foreshard.gate from before its PREPARE until it has committed, which keeps them out (proxy/control/shard_gate.py).
The decision row is the commit point. Whatever dies in between, recovery (proxy/control) reads the row, or inserts
(id, abort) on the same primary key, and finishes or undoes what is prepared; the global ids say where to look. Readers
commit first, for a reader may fail, too. With one writer there is no decision: its COMMIT follows the readers'.

Before all that, a single writer of tables with columns that are unique over all shards commits at once unless it owes
claims to other shards, which a function in front of its COMMIT tells (TRY). Otherwise they are asked what they owe, and
the homes of those claims take part in the transaction (ARCHITECTURE.md, "Claims").
"""

from foreshard._core.replies cimport REPLY_NOTIFY, REPLY_QUERY
from foreshard._core.template cimport ROUTE_TRANSACTION, VERB_COMMIT, VERB_ROLLBACK, Template
from foreshard.proxy.wire.backend cimport BACKEND_READY, FILTER_MUTE, FILTER_NONE, Backend
from foreshard.proxy.wire.session cimport WAIT_COMMANDS, WAIT_POOL, Session

import os
import signal

from foreshard._core.errors import SqlError, not_built
from foreshard._core.two_phase import make_gid, new_id

CONTROL_POINTS = (
    "away-asked", "away-reserved", "claims-met", "claims-trying", "claims-asked", "claims-taken",
    "commit-voting", "commit-prepared", "commit-deciding", "commit-decided", "commit-finished", "commit-undoing",
)
SNAPSHOT_POINTS = ("snapshots-opening", "snapshots-opened")
CRASH_AT = os.environ.get("FORESHARD_CRASH_AT", "")
STOP_AT = os.environ.get("FORESHARD_STOP_AT", "")

# A decision must not be lost by a crash of its shard, whatever the client has set.
cdef bytes DECIDE = (
    b"SELECT pg_catalog.set_config('synchronous_commit', 'local', true)"
    b" WHERE pg_catalog.current_setting('synchronous_commit') = 'off'; "
    b"INSERT INTO foreshard.decision (id, outcome) VALUES ('%s', 'commit'); COMMIT"
)

# The prepared transaction keeps the lock, whatever becomes of this process, until somebody has ended it.
cdef bytes PREPARE_AT_GATE = b"LOCK TABLE foreshard.gate IN ROW EXCLUSIVE MODE; PREPARE TRANSACTION '%s'"

cdef bytes CLAIMS_DUE = b"SELECT home, command FROM foreshard.claims_due()"
# One message for who owes nothing, as most do whose values have their homes where the row is.
cdef bytes COMMIT_UNLESS_OWING = b"SAVEPOINT foreshard_claims; SELECT foreshard.claims_none(); COMMIT"
cdef bytes AFTER_ALL = b"ROLLBACK TO foreshard_claims; RELEASE foreshard_claims; "
cdef bytes CLAIMS_OWED = b"\0CFSC01\0"

COMMIT = Template(ROUTE_TRANSACTION, verb=VERB_COMMIT, text=b"COMMIT")
ROLLBACK = Template(ROUTE_TRANSACTION, verb=VERB_ROLLBACK, text=b"ROLLBACK")


cdef int control_point(str name) except -1:
    """A place that a test has armed: end this process as by kill -9, or (once) stop it until SIGCONT."""
    global STOP_AT
    if name == CRASH_AT:
        os.kill(os.getpid(), signal.SIGKILL)
    if name == STOP_AT:
        STOP_AT = ""
        os.kill(os.getpid(), signal.SIGSTOP)
    return 0


cdef bint owe_claims(list backends) except -1:
    """Whether one of the backends may owe claims to other shards."""
    cdef Backend backend
    for backend in backends:
        if backend.owes_claims:
            return True
    return False


cdef class Commit(Session):
    """The part of a frontend that sends commands to several shards and commits on them."""

    cdef int send_command(self, Template template, bytes text, list targets, Backend speaker) except -1:
        """Send one command to several backends."""
        return self.send_texts(template, [(backend, text) for backend in targets], speaker)

    cdef int send_texts(self, Template template, list texts, Backend speaker) except -1:
        """Send each backend its command: the speaker's answer is the client's, less its ReadyForQuery.

        The others' answers are not shown; `conclude` (or `next_step`) looks at their errors.
        """
        cdef Backend backend
        self.verb = template
        self.command_failed = False
        self.waiting = WAIT_COMMANDS
        self.pending = len(texts)
        if speaker is not None:
            self.active = speaker
            speaker.holds_ready = True
        for backend, text in texts:
            backend.filter = FILTER_NONE if backend is speaker else FILTER_MUTE
            backend.muted_error = None
            backend.unsynced = False
            backend.executed = False
            backend.write_query(text, REPLY_QUERY if backend is speaker else REPLY_QUERY | REPLY_NOTIFY)
        for backend, _ in texts:
            backend.flush()
        return 0

    cdef int start_commit(self, Template template, list targets, bint is_quiet) except -1:
        """COMMIT on several backends; `conclude` follows when it is done or undone."""
        cdef Backend backend
        if owe_claims(targets) and not self.is_read_only():
            if len(targets) == 1 and (<Backend> targets[0]).begun and not template.chain:
                return self.try_commit(template, targets[0], is_quiet)
            return self.ask_claims(template, targets, b"", is_quiet)
        cdef list writers = [] if self.is_read_only() else [each for each in targets if (<Backend> each).wrote]
        self.is_quiet = is_quiet
        self.decider = targets[0] if not writers else writers[0]
        for backend in writers:     # a row goes before its claim does: else another could have its value meanwhile
            if self.claims and backend.shard not in self.claims:
                self.decider = backend
                break
        self.claims = None
        for backend in writers:
            if backend.is_unpreparable:
                self.decider = backend
        self.participants = [each for each in writers if each is not self.decider]
        for backend in self.participants:
            if backend.is_unpreparable:
                raise not_built(
                    "committing on two shards when both hold what PREPARE TRANSACTION refuses",
                    "Keep NOTIFY, temporary tables and held cursors to transactions that write one shard.")
        if self.participants:
            self.commit_id = new_id()
            control_point("commit-voting")
        # One participant at the gate is enough, and two could wait for snapshots that wait for each other's end.
        texts = [
            (each, (b"PREPARE TRANSACTION '%s'" if index else PREPARE_AT_GATE) % self.gid(each))
            for index, each in enumerate(self.participants)
        ]
        # AND CHAIN begins anew on each shard; after a distributed commit the next statement does.
        text = b"COMMIT" if self.participants else template.text
        texts += [(each, text) for each in targets if each is not self.decider and each not in self.participants]
        self.send_texts(template, texts, None)
        self.step = STEP_VOTE
        if not texts:
            return self.next_step()
        return 0

    # -- claims --------------------------------------------------------------------------------------------------

    cdef int try_commit(self, Template template, Backend writer, bint is_quiet) except -1:
        """COMMIT on the only writer, unless it owes other shards something."""
        self.is_quiet = is_quiet
        self.participants = []
        self.send_texts(template, [(writer, COMMIT_UNLESS_OWING)], None)
        self.step = STEP_TRY_COMMIT
        return control_point("claims-trying")

    cdef int finish_try(self) except -1:
        """It has committed, failed, or has to be asked."""
        cdef Backend backend
        for backend in self.links:
            if backend.muted_error is not None and CLAIMS_OWED in backend.muted_error:
                return self.ask_claims(self.verb, [backend], AFTER_ALL, self.is_quiet)
        if self.tell_failures():
            return self.undo()
        if not self.is_quiet:
            self.push_complete(b"COMMIT")
        return self.conclude(self.verb)

    cdef int ask_claims(self, Template template, list targets, bytes before, bint is_quiet) except -1:
        """Ask writers what they owe other shards; the commit follows when it is settled."""
        cdef Backend backend
        cdef list owing = [each for each in targets if (<Backend> each).owes_claims]
        self.is_quiet = is_quiet
        self.participants = []
        for backend in owing:
            backend.owes_claims = False
            backend.collected = []
        self.send_texts(template, [(each, before + CLAIMS_DUE) for each in owing], None)
        self.step = STEP_ASK_CLAIMS
        return 0

    cdef int settle_claims(self, int step) except -1:
        """What is owed is known, or has been settled."""
        if step == STEP_ASK_CLAIMS:
            control_point("claims-asked")
            self.sort_claims()
            if self.claims:
                return self.take_claims()
        else:
            control_point("claims-taken")
        targets = [each for each in self.links if (<Backend> each).begun or (<Backend> each).unsynced]
        try:
            return self.start_commit(self.verb, targets, self.is_quiet)
        except SqlError as error:
            self.push_bytes(error.encode())
            return self.undo()

    cdef int sort_claims(self) except -1:
        """Commands by shard: releases before claims (as their names sort), in the order of their keys."""
        cdef Backend backend
        self.claims = {}
        for backend in self.links:
            rows, backend.collected = backend.collected, None
            for row in rows or ():
                home_size = int.from_bytes(row[2:6], "big")
                shard = self.hub.state.shard_of_bucket(int(row[6:6 + home_size]))
                self.claims.setdefault(shard, []).append(row[10 + home_size:])
        for commands in self.claims.values():
            commands.sort()
        return 0

    cdef int take_claims(self) except -1:
        """Send the homes' shards their commands, once there is a backend on each."""
        cdef Backend backend
        self.step = STEP_WAIT_CLAIMS
        try:
            for shard in self.claims:
                if self.find_link(shard) is None:
                    self.check_second(None, shard, True)
                    backend = self.pool(shard).take(self, True)
                    if backend is None:
                        self.waiting = WAIT_POOL
                        return 0
                    self.links.append(backend)
        except SqlError as error:
            return self.on_denied(error)
        texts = []
        for shard, commands in self.claims.items():
            backend = self.find_link(shard)
            self.join(backend, False)
            backend.wrote = True
            texts.append((backend, b"; ".join(commands)))
        self.send_texts(self.verb, texts, None)
        self.step = STEP_TAKE_CLAIMS
        return 0

    cdef int on_granted(self, Backend backend) except -1:
        if self.step != STEP_WAIT_CLAIMS:
            return Session.on_granted(self, backend)
        self.links.append(backend)
        return self.take_claims()

    cdef int on_denied(self, object error) except -1:
        self.gate_place = GATE_OUTSIDE
        if self.step != STEP_WAIT_CLAIMS:
            return Session.on_denied(self, error)
        self.push_bytes(error.encode())
        return self.undo()

    cdef bint is_read_only(self) except -1:
        """The transaction was begun READ ONLY, and stayed so: what it tried to write failed."""
        if b"READ ONLY" not in b" ".join(self.begin_text.upper().split()):
            return False
        texts = [text.upper() for _, text, _ in self.history]
        return not any(b"WRITE" in text or b"READ_ONLY" in text for text in texts)

    cdef bytes gid(self, Backend backend):
        """What a participant's prepared transaction is called."""
        names = self.hub.shard_names
        return make_gid(self.hub.cluster, names[self.decider.shard], self.commit_id, names[backend.shard]).encode()

    cdef int next_step(self) except -1:
        """Every backend has answered the step at hand."""
        cdef Template template = self.verb
        cdef int step = self.step
        self.step = STEP_NONE
        if step == STEP_SNAPSHOT:
            return self.finish_snapshots()
        if step == STEP_TRY_COMMIT:
            return self.finish_try()
        if step == STEP_EXPORT:
            return self.import_snapshots()
        if step == STEP_UNDO:
            self.command_failed = True
            return self.conclude(ROLLBACK)
        if step == STEP_FINISH:
            return self.finish_participants()
        if self.tell_failures():
            return self.undo()
        if step >= STEP_ASK_CLAIMS:
            return self.settle_claims(step)
        if step == STEP_DECIDE:
            control_point("commit-decided")
            self.send_texts(template, [
                (each, b"COMMIT PREPARED '%s'" % self.gid(each))
                for each in self.participants if (<Backend> each).phase == BACKEND_READY
            ], None)
            self.step = STEP_FINISH
            return self.next_step() if self.pending == 0 else 0
        if self.participants:
            return self.decide()
        return self.send_command(template, template.text, [self.decider], None if self.is_quiet else self.decider)

    cdef int decide(self) except -1:
        """All participants have prepared: the decision shard commits for all."""
        control_point("commit-prepared")
        self.send_command(self.verb, DECIDE % self.commit_id.encode(), [self.decider], None)
        self.step = STEP_DECIDE
        return control_point("commit-deciding")

    cdef int finish_participants(self) except -1:
        """The transaction is committed; what a participant has not confirmed, recovery commits."""
        cdef Backend backend
        control_point("commit-finished")
        for backend in self.participants:
            if backend.muted_error is not None and b"\0C42704\0" in backend.muted_error:
                backend.muted_error = None      # recovery was faster
            if backend.phase != BACKEND_READY or backend.muted_error is not None:
                name = self.hub.shard_names[backend.shard]
                self.warn("01000", f"the transaction is committed, but shard {name} has not confirmed it yet",
                          "Recovery commits it there; until then its rows are locked. SHOW TWO_PHASE shows it.")
                backend.muted_error = None
        if not self.is_quiet:
            self.push_complete(b"COMMIT")
        self.participants = []
        return self.conclude(self.verb)

    cdef int undo(self) except -1:
        """Roll back what has not ended; the error has been told."""
        cdef Backend backend
        control_point("commit-undoing")
        texts = []
        for backend in self.links:
            failed, backend.muted_error = backend.muted_error is not None, None
            backend.collected = None
            if backend.status != b"I":
                texts.append((backend, ROLLBACK.text))
            elif backend in self.participants and not failed:
                texts.append((backend, b"ROLLBACK PREPARED '%s'" % self.gid(backend)))
        self.participants = []
        self.send_texts(self.verb, texts, None)
        self.step = STEP_UNDO
        return self.next_step() if self.pending == 0 else 0

    cdef bint tell_failures(self) except -1:
        """Tell the client the first error of this step; whether there was one."""
        cdef Backend backend
        for backend in self.links:
            if backend.muted_error is not None:
                if b"\0C23505\0" in backend.muted_error and b"decision_pkey" in backend.muted_error:
                    self.push_bytes(SqlError(
                        "40001", "the transaction was rolled back by recovery",
                        "COMMIT over several shards took so long that it counted as given up", "Run it again.",
                    ).encode())
                else:
                    self.push_bytes(b"E" + (len(backend.muted_error) + 4).to_bytes(4, "big") + backend.muted_error)
                return True
        return False

    # -- snapshots of several shards -----------------------------------------------------------------------------

    cdef int on_gate(self) except -1:
        """No commit over several shards passes now; or none has passed while the snapshots were opened."""
        if self.gate_place == GATE_DONE:
            self.gate_place = GATE_OUTSIDE
            return self.resume()
        self.gate_place = GATE_INSIDE
        control_point("snapshots-opening")
        return self.take_snapshots()

    cdef int leave_gate(self) except -1:
        """Want no snapshots any more."""
        if self.gate_place != GATE_OUTSIDE:
            self.gate_place = GATE_OUTSIDE
            self.hub.gate.forget(self)
        return 0

    cdef int take_snapshots(self) except -1:
        """Inside the gate, to open snapshots (snapshots.pyx)."""
        return 0

    cdef int import_snapshots(self) except -1:
        """The query node has told what its snapshots are called (snapshots.pyx)."""
        return 0

    cdef int finish_snapshots(self) except -1:
        """Every shard has its snapshot, or said why not (snapshots.pyx)."""
        return 0

    cdef bint survives(self, Backend backend) noexcept:
        """The connection to a participant broke once it had prepared: recovery ends what is left there."""
        return (self.step == STEP_DECIDE or self.step == STEP_FINISH) and backend is not self.decider

    cdef int lose_participant(self, Backend backend) except -1:
        """Go on without a participant."""
        self.links.remove(backend)
        if self.step == STEP_FINISH and backend.replies.count:
            self.pending -= 1
            if self.pending == 0:
                return self.next_step()
        return 0

    cdef int conclude(self, Template template) except -1:
        """The command is done: draw the conclusion. Overridden by the transaction."""
        return 0

    cdef int warn(self, str sqlstate, str message, str hint="") except -1:
        """NoticeResponse with severity WARNING."""
        return self.push_bytes(b"N" + SqlError(sqlstate, message, "", hint).encode("WARNING")[1:])
