"""COPY FROM STDIN through several shards: each row to the shard it belongs to, all in one transaction.

The first shard hears the statement at once, for what is wrong with it, and its CopyInResponse is the client's; every
other one when the first row for it has come. Each runs the client's own text as a Query inside the transaction, which
is the client's or one of our own. CopyData goes through the splitter into one message per shard and batch; a shard
that lags stops the client, and so do the pools. CommandComplete, with the sum, waits for our own COMMIT.

Rows that follow parents placed by cost wait until those parents' claims have been asked (proxy/control/parents): what
the client has sent so far is looked through at once.

    begin_copy --CopyInResponse--> feed_copy ... --CopyDone--> end_parts --ReadyForQuery of all--> finish_copy
                                      +--error of a shard or of ours, CopyFail--> mute_parts ----------^
"""

from libc.stdint cimport int64_t

from foreshard._core.buckets cimport BUCKET_COUNT
from foreshard._core.copy_split cimport CopyPart, CopySplitter
from foreshard._core.replies cimport REPLY_QUERY
from foreshard._core.shared cimport SharedState
from foreshard._core.template cimport KEY_LIMIT_UNIT, ROUTE_COPY, Template, type_of
from foreshard.proxy.wire.backend cimport FILTER_COPY, FILTER_MERGE, FILTER_MUTE, FILTER_NONE, Backend
from foreshard.proxy.wire.commit cimport owe_claims
from foreshard.proxy.wire.freezing cimport BUCKET_ANY
from foreshard.proxy.wire.shadowing cimport Shadowing
from foreshard.proxy.wire.parsing cimport HANDLED, RETRY
from foreshard.proxy.wire.pool cimport Pool
from foreshard.proxy.wire.session cimport WAIT_COPY, WAIT_FOUND, WAIT_NOTHING, WAIT_POOL, WAIT_SHARD
from foreshard.proxy.wire.statement cimport Statement

import re

from foreshard._core.errors import SqlError, not_built

cdef enum:
    PART_BYTES = 32768          # of one shard's rows that go out in the middle of a batch; chosen, not measured
    OUTBOX_HIGH_BYTES = 262144  # a shard that lags so far stops the client; chosen, not measured
    CSV_MARKER_VERSION = 18     # from here on a line \. is data in CSV

LINE = re.compile(rb"(\0W(?:[^\0]*\n)?COPY [^\0\n]*?, line )(\d+)")
cdef bytes ENDED = b"another shard has failed\0"


cdef class Copying(Shadowing):
    """The part of a frontend that splits COPY FROM STDIN by shard."""

    # -- the beginning -------------------------------------------------------------------------------------------

    cdef int begin_copy(self, Template template, bytes text) except -1:
        """Send the statement to its first shard, inside a transaction."""
        cdef Backend backend
        if template.is_claimed and self.has_away and owe_claims(self.links):
            raise not_built("COPY FROM STDIN into a table placed by cost behind writes of rows away from home",
                            "COMMIT first, or INSERT the rows.", "Their claims are settled at COMMIT.")
        if self.hub.shard_count > 1 and not self.touch(BUCKET_ANY, True):
            return RETRY
        if self.wait_until_drained():
            return RETRY
        if self.simple and not self.explicit:
            for backend in self.links:
                if backend.unsynced and backend.executed:
                    raise not_built("COPY FROM STDIN inside a pipeline of extended query", "Sync first.")
            self.settle_pipeline()      # only prepared, with Flush in place of Sync
        if template.completion:     # the outcome goes to all of them
            self.check_two_phase(0, 1)
            if not self.attach_all(list(range(self.hub.shard_count)), False):
                return RETRY
        backend = self.attach(self.choose_first(template), False, False)
        if backend is None:
            return RETRY
        if not self.explicit:
            self.open_implicit()
        if template.completion:
            for other in self.links:
                if not (<Backend> other).begun:
                    self.join(other, False)
        self.settle_pipeline()
        self.copied = template
        self.copy_text = text
        self.splitter = self.make_splitter(template, backend)
        self.copy_parts = [None] * self.hub.shard_count
        self.copy_running = 0
        self.copy_failed = self.copy_ending = self.copy_ended = False
        self.copy_refusal = None
        self.copy_first = backend
        self.start_part(backend, True)
        self.waiting = WAIT_COPY
        backend.flush()
        return HANDLED

    cdef int choose_first(self, Template template) except -1:
        """A shard that takes part already, else each in its turn; of reference tables the first, as all writers do."""
        cdef Backend backend
        cdef int shard = self.written_shard()
        if template.copy.is_everywhere:
            return 0
        if template.copy.is_placed:
            if self.decided_shard < 0:
                self.decided_shard = self.place_rows(template)
            return self.decided_shard
        if shard >= 0:
            return shard
        for backend in ([] if self.active is None else [self.active]) + self.links:
            if backend.shard != self.hub.query_shard:
                return backend.shard
        return self.next_any()

    cdef int place_rows(self, Template template) except -1:
        """The shard for all rows whose keys are generated."""
        cdef double features[4]
        cdef int shard
        features[0], features[1], features[2], features[3] = 1, 0, 0, 1
        shard = self.hub.placer.place(
            features, template.profile_indexes, template.profile_count, self.written_shard())
        if shard < 0:
            raise SqlError("57P03", "no shard is up to take the rows", hint="SHOW SHARDS tells which are down.")
        return shard

    cdef CopySplitter make_splitter(self, Template template, Backend backend):
        """The splitter, with the bucket map as it is now."""
        cdef CopySplitter splitter
        cdef int bucket, placed = self.decided_shard
        self.decided_shard = -1
        version = (<bytes> (backend.parameters.get("server_version") or "").encode()).split(b".")[0]
        if template.copy.generates and template.copy.default is not None:
            placed = self.place_rows(template)
        splitter = CopySplitter(
            template, template.copy, 1 if template.completion else self.hub.shard_count, backend.shard, placed=placed,
            ends_csv=version.isdigit() and int(version) < CSV_MARKER_VERSION,
            record_bytes_max=self.hub.message_bytes_max)
        for bucket in range(BUCKET_COUNT):
            splitter.owners[bucket] = self.hub.state.shard_of_bucket(bucket)
        return splitter

    # -- one shard's part ----------------------------------------------------------------------------------------

    cdef int start_part(self, Backend backend, bint is_first) except -1:
        """Send the statement to a shard; its data may follow at once."""
        cdef bint places = self.splitter.placed == backend.shard
        if places or self.pinned is not None or not backend.begun:
            self.join(backend, places)
        if self.copied.lock is not None:
            self.lock_on(backend, self.copied.lock)
            self.settle_pipeline()
        backend.filter = FILTER_MERGE if is_first else FILTER_COPY
        backend.part_rows = 0
        backend.write_query(self.copy_text, REPLY_QUERY)
        self.copy_parts[backend.shard] = backend
        self.copy_running += 1
        return 0

    cdef Backend join_part(self, int shard):
        """A backend for the first rows of a shard; None: it has to be waited for. SqlError when it must not be."""
        cdef Backend backend = self.find_link(shard)
        self.check_second(backend, shard, True)
        if backend is None:
            backend = self.pool(shard).take(self, True)
            if backend is None:
                self.waiting = WAIT_POOL
                return None
            self.links.append(backend)
        return backend

    cdef int send_part(self, Backend backend, CopyPart part) except -1:
        """Queue what the splitter has for a shard, as one CopyData."""
        cdef Py_ssize_t size = part.data.end - part.data.start
        if part.rows and not part.is_marked:
            part.is_marked = True
            self.mark(backend, self.copied)
        if not part.has_head and self.splitter.head is not None:
            part.has_head = True
            if self.splitter.head:
                backend.write_message(b"d", <const char*> self.splitter.head, len(self.splitter.head))
        if size:
            backend.write_message(b"d", part.data.data + part.data.start, size)
            part.data.clear()
        return 0

    cdef bint pump(self, Py_ssize_t least) except -1:
        """Hand the shards' rows over where there are that many bytes; False: it goes on when a pool gives a backend."""
        cdef Backend backend
        cdef CopyPart part
        cdef int shard
        for shard in range(len(self.splitter.parts)):
            part = self.splitter.parts[shard]
            if part.data.end - part.data.start < least:
                continue
            backend = self.copy_parts[shard]
            if backend is None:
                backend = self.join_part(shard)
                if backend is None:
                    return False
                self.start_part(backend, False)
            self.send_part(backend, part)
        return True

    cdef int push_parts(self) except -1:
        """Send what is queued; a shard that lags stops the client."""
        cdef Backend backend
        for backend in self.copy_parts:
            if backend is None or backend.outbox.end == backend.outbox.start:
                continue
            backend.flush()
            if backend.outbox.end - backend.outbox.start > OUTBOX_HIGH_BYTES and self.waiting == WAIT_NOTHING:
                self.waiting = WAIT_SHARD
                backend.notify_flushed = True
        return 0

    # -- the client's data ---------------------------------------------------------------------------------------

    cdef int feed_copy(self, char type, const char* body, Py_ssize_t size) except -1:
        """CopyData, CopyDone or CopyFail."""
        if type == b"f":
            return self.give_up_copy(body, size)
        if self.splitter.plan.follows:
            if type == b"d":
                return self.splitter.hold(body, size)
            self.copy_ending = True
            return self.follow_parents()
        try:
            if type == b"d":
                self.splitter.feed(body, size)
            else:
                self.copy_ending = True
                self.splitter.finish()
        except SqlError as error:
            self.refuse_row(error)
        return self.go_on(PART_BYTES)

    cdef int refuse_row(self, object error) except -1:
        """A row is wrong: what is wrong before it comes first."""
        self.copy_refusal = self.located(error)
        self.copy_ending = True
        return 0

    cdef int follow_parents(self) except -1:
        """See that the places of the parents of what is held are known, then take it."""
        cdef Template template = self.copied
        cdef int flags = template.key_sources[0].flags
        try:
            wanted = self.splitter.look_ahead(self.copy_ending)
        except SqlError as error:
            self.refuse_row(error)
            return self.go_on(1)
        if wanted is None:
            return 0
        if not wanted:
            return self.take_followed()
        self.waiting = WAIT_FOUND
        self.hub.services.find_parents(
            self, self.splitter, template.claims[0], type_of(flags), flags // KEY_LIMIT_UNIT, wanted,
            {home: self.splitter.owners[<int> home] for home in wanted.values()})
        return 0

    def take_parents(self, CopySplitter splitter, dict found, object error) -> None:
        """The parents' buckets, or (SqlError) why they are not known."""
        if self.splitter is not splitter or self.waiting != WAIT_FOUND or self.fd < 0:
            return
        self.waiting = WAIT_NOTHING
        try:
            if error is not None:
                self.fail_copy((<object> error).encode())
            else:
                splitter.followed.update(found)
                self.take_followed()
            if self.waiting == WAIT_NOTHING:
                self.resume()
        except Exception as mistake:
            self.hub.services.report_failure(self, mistake)

    cdef int take_followed(self) except -1:
        """Take the rows that are held, whose parents' places are known."""
        try:
            self.splitter.take_held()
            if self.copy_ending:
                self.splitter.finish()
        except SqlError as error:
            self.refuse_row(error)
        return self.go_on(1)

    cdef int go_on(self, Py_ssize_t least) except -1:
        """Hand over what there is to hand over, and end it when CopyDone has come."""
        try:
            if self.pump(1 if self.copy_ending else least):
                if self.copy_ending:
                    return self.end_parts()
                if least > 1:
                    return 0        # the end of the batch sends it
        except SqlError as error:
            return self.fail_copy(error.encode())
        return self.push_parts()

    cdef int end_batch(self) except -1:
        """The client's data at hand has been read."""
        return self.follow_parents() if self.splitter.plan.follows and not self.copy_ending else self.go_on(1)

    cdef int end_parts(self) except -1:
        """CopyDone to every shard that takes part."""
        cdef Backend backend
        self.copying = False
        self.copy_ended = True
        self.waiting = WAIT_COPY
        self.send_part(self.copy_first, self.splitter.parts[self.copy_first.shard])
        for backend in self.copy_parts:
            if backend is not None:
                backend.write_empty(b"c", 0)
                backend.flush()
        return 0

    cdef int give_up_copy(self, const char* reason, Py_ssize_t size) except -1:
        """CopyFail: the first shard's error is the client's."""
        cdef Backend backend
        self.send_part(self.copy_first, self.splitter.parts[self.copy_first.shard])
        self.copying = False
        self.copy_ended = True
        self.waiting = WAIT_COPY
        for backend in self.copy_parts:
            if backend is not None:
                if backend is not self.copy_first:
                    backend.filter = FILTER_MUTE
                backend.write_message(b"f", reason, size)
                backend.flush()
        return 0

    cdef int fail_copy(self, bytes message) except -1:
        """An error of ours ends the COPY."""
        self.push_bytes(message)
        self.copy_failed = True
        return self.mute_parts(None)

    cdef int mute_parts(self, Backend current) except -1:
        """The COPY has failed, and the client was told: the shards give up, and what they say goes by."""
        cdef Backend backend
        cdef Pool pool
        if self.waiting == WAIT_POOL:
            for pool in self.pools:
                if pool is not None:
                    pool.leave(self)
        self.copying = False
        self.waiting = WAIT_COPY
        for backend in self.copy_parts:
            if backend is None:
                continue
            backend.filter = FILTER_MUTE
            if backend is not current and not self.copy_ended:
                backend.write_message(b"f", <const char*> ENDED, len(ENDED))
                backend.flush()
        return 0

    # -- what shards and pools report ----------------------------------------------------------------------------

    cdef int on_copy_in(self, Backend backend) except -1:
        if self.splitter is None:
            return Shadowing.on_copy_in(self, backend)
        if backend is self.copy_first and not self.copy_failed:
            self.copying = True
            return self.resume()
        return 0

    cdef int on_granted(self, Backend backend) except -1:
        if self.splitter is None:
            return Shadowing.on_granted(self, backend)
        self.links.append(backend)
        self.waiting = WAIT_NOTHING
        self.go_on(1)
        return self.resume() if self.waiting == WAIT_NOTHING else 0

    cdef int on_denied(self, object error) except -1:
        if self.splitter is None:
            return Shadowing.on_denied(self, error)
        self.waiting = WAIT_NOTHING
        return self.fail_copy(error.encode())

    cdef int on_merge_input(self, Backend backend, char type, const char* body, Py_ssize_t size) except -1:
        if self.splitter is None:
            return Shadowing.on_merge_input(self, backend, type, body, size)
        if type == b"E" and not self.copy_failed:
            if backend.deadlock is not None and b"\0C57014\0" in body[:size]:
                return self.push_bytes(backend.deadlock.encode())
            return self.push_bytes(self.translate_error(backend, body[:size]))
        return 0

    cdef int on_failed(self, Backend backend) except -1:
        if self.splitter is None:
            return Shadowing.on_failed(self, backend)
        if backend.filter == FILTER_MUTE:
            return 0
        self.copy_failed = True
        return self.mute_parts(backend)

    cdef int on_part(self, Backend backend, bint suspended) except -1:
        if self.splitter is None:
            return Shadowing.on_part(self, backend, suspended)
        self.copy_running -= 1
        return self.finish_copy() if self.copy_running == 0 else 0

    cdef bytes translate_error(self, Backend backend, bytes body):
        """A shard's ErrorResponse that names the client's line where it named the shard's."""
        cdef CopyPart part = self.splitter.parts[backend.shard]
        found = LINE.search(body)
        if found is not None:
            line = int(found[2])
            client = part.map.find(line)
            if client == 0 and line > part.map.lines:
                client = self.splitter.lines + line - part.map.lines
            shown = b"%d" % client if client else b"%d of shard %s" % (
                line, self.hub.shard_names[backend.shard].encode())
            body = body[:found.start(2)] + shown + body[found.end(2):]
        return b"E" + (len(body) + 4).to_bytes(4, "big") + body

    cdef bytes located(self, object error):
        """An ErrorResponse of our own that names the client's line."""
        cdef bytes name = self.copied.table.rpartition(".")[2].encode()
        body = error.encode()[5:-1] + b"WCOPY %s, line %d\0\0" % (name, self.splitter.lines)
        return b"E" + (len(body) + 4).to_bytes(4, "big") + body

    # -- the end -------------------------------------------------------------------------------------------------

    cdef int finish_copy(self) except -1:
        """Every shard has answered: CommandComplete with the sum, and the end of our own transaction."""
        cdef Template template = self.copied
        cdef bytes tag = self.sum_parts()
        self.splitter = None
        self.copied = None
        self.copy_parts = []
        self.copying = False
        if tag is not None and template.completion:
            self.outcome_tag = tag
            return self.run_script(self.hub.services.complete(template, None))
        return self.end_copy(tag)

    cdef int on_script(self, object result, object failure) except -1:
        cdef bytes tag = self.outcome_tag
        if tag is None:
            return Shadowing.on_script(self, result, failure)
        self.outcome_tag = None
        if failure is not None:
            self.push_bytes(failure.encode())
            tag = None
        return self.end_copy(tag)

    cdef int end_copy(self, bytes tag) except -1:
        """The rows are where they belong, or (no tag) the client was told why not."""
        self.waiting = WAIT_NOTHING
        if tag is None and self.explicit:
            self.failed = True
        if not self.simple:
            if tag is None:
                self.skipping = True
            else:
                self.push_complete(tag)
            return self.resume()
        if not self.is_implicit:
            if tag is not None:
                self.push_complete(tag)
            self.settle_status()
            self.push_ready()
            return self.end_segment()
        self.is_implicit = False
        self.copy_tag = tag
        return self.end_own(tag is not None)

    cdef int end_own(self, bint commits) except -1:
        """Commit the transaction of our own, or roll it back; ReadyForQuery follows."""
        self.command_failed = False
        try:
            self.end_quietly(commits)
        except SqlError as error:
            self.push_bytes(error.encode())
            self.copy_tag = None
            self.end_quietly(False)
        if self.waiting == WAIT_NOTHING:
            self.push_ready()
            self.release_links()
            return self.resume()
        return 0

    cdef bytes sum_parts(self):
        """The tag of the whole; None when it has failed. The shards are whole backends again."""
        cdef Backend backend
        cdef long long rows = 0
        for backend in self.copy_parts:
            if backend is None:
                continue
            if not self.splitter.plan.is_everywhere:
                rows += backend.part_rows
            elif backend.part_rows != self.copy_first.part_rows and not self.copy_failed:
                self.copy_failed = True
                self.push_bytes(SqlError(
                    "XX001", "the shards have not taken the same rows of the reference table",
                    f"{self.hub.shard_names[self.copy_first.shard]} took {self.copy_first.part_rows} rows, "
                    f"{self.hub.shard_names[backend.shard]} {backend.part_rows}").encode())
        if self.copy_refusal is not None and not self.copy_failed:
            self.copy_failed = True
            self.push_bytes(self.copy_refusal)
        rows += self.copy_first.part_rows if self.splitter.plan.is_everywhere else 0
        if not self.copy_failed:
            self.charge_parts()
        for backend in self.copy_parts:
            if backend is not None:
                backend.filter = FILTER_NONE
                backend.part_rows = 0
        return None if self.copy_failed else b"COPY %d" % rows

    cdef int charge_parts(self) except -1:
        """Account for the predicted cost of each shard's rows: a function fires once per shard and sees them all."""
        cdef double features[4]
        cdef CopyPart part
        cdef int shard
        self.count_rows()
        if self.copied.profile_count == 0:
            return 0
        for shard in range(len(self.splitter.parts)):
            part = self.splitter.parts[shard]
            if part.rows:
                features[0] = part.rows
                features[1] = part.sent
                features[2] = part.rows * (self.splitter.plan.last + 1)
                features[3] = <double> part.rows * part.rows
                self.hub.placer.charge(
                    shard, features, self.copied.profile_indexes, self.copied.profile_count)
                self.spread_charge(shard, part.rows)
        return 0

    cdef int count_rows(self) except -1:
        """Count the rows in their buckets."""
        cdef SharedState state = self.hub.state
        cdef CopySplitter splitter = self.splitter
        cdef CopyPart part
        cdef int bucket
        cdef int64_t found = 0
        for bucket in range(BUCKET_COUNT):
            if splitter.landed[bucket]:
                state.count_statement(bucket, splitter.landed[bucket])
                if splitter.owners[bucket] == splitter.placed:
                    found += splitter.landed[bucket]
        if splitter.placed >= 0:
            part = splitter.parts[splitter.placed]
            bucket = (<Backend> self.copy_parts[splitter.placed]).bucket if part.rows > found else -1
            if bucket >= 0:
                splitter.landed[bucket] += part.rows - found
                state.count_statement(bucket, part.rows - found)
        return 0

    cdef int spread_charge(self, int shard, int64_t rows) except -1:
        """What was charged for a shard's rows is that of their buckets."""
        cdef CopySplitter splitter = self.splitter
        cdef double shares[4]
        cdef int bucket, index
        for bucket in range(BUCKET_COUNT):
            if splitter.landed[bucket] and splitter.owners[bucket] == shard:
                for index in range(4):
                    shares[index] = self.hub.placer.charged[index] * splitter.landed[bucket] / rows
                self.hub.state.add_demand(bucket, shares)
        return 0

    cdef int push_ready(self) except -1:
        if self.copy_tag is not None:
            tag, self.copy_tag = self.copy_tag, None
            if not self.command_failed:
                self.push_complete(tag)
        return Shadowing.push_ready(self)

    # -- extended query ------------------------------------------------------------------------------------------

    cdef bint is_own(self, Template template) noexcept:
        return Shadowing.is_own(self, template) or (template.kind == ROUTE_COPY and self.hub.shard_count > 1)

    cdef int execute_own(self, Statement statement) except -1:
        if statement.template.kind == ROUTE_COPY:
            return self.begin_copy(statement.template, statement.body[:statement.query_size])
        if statement.template.pin is not None and statement.template.text[:6].upper() == b"SELECT":
            raise not_built("this call of set_config by extended query", "Use SET, or send it as a simple Query.")
        return Shadowing.execute_own(self, statement)
