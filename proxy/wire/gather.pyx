"""Where a statement goes, and reads of several shards: their rows one shard after the other.

The client sees what one PostgreSQL would have answered. All shards run the statement at once; the replies of the later
ones wait in their sockets (hold) until the earlier ones have been relayed, so memory stays bounded and order is kept.
The first shard describes the result, every shard gives its rows, CommandComplete carries the sum. A row limit (Execute)
asks one shard after the other instead, each for what is left. When a shard fails, its error is the client's, and what
the others still say is dropped.
"""

from libc.stdint cimport uint64_t

from foreshard._core.template cimport (
    COMPLETE_NONE,
    COMPLETE_ROWS,
    OPERATION_SELECT,
    ROUTE_ANY,
    ROUTE_CARRY,
    ROUTE_COPY,
    ROUTE_DEFAULT,
    ROUTE_KEYED,
    ROUTE_PLACE,
    ROUTE_QUERY,
    ROUTE_REFUSE,
    ROUTE_SCATTER,
    Buckets,
    Template,
)
from foreshard._core.row_split cimport unmark_rows
from foreshard._core.shared cimport SharedState
from foreshard._core.values cimport Values
from foreshard.proxy.wire.backend cimport (
    BACKEND_READY,
    COPY_OUT_BINARY,
    COPY_OUT_PLAIN,
    FILTER_FIRST,
    FILTER_MUTE,
    FILTER_NONE,
    FILTER_REST,
    Backend,
)
from foreshard.proxy.wire.pool cimport Hub
from foreshard.proxy.wire.session cimport WAIT_COMMANDS, WAIT_PARTS, WAIT_SHARD
from foreshard.proxy.wire.asking cimport Asking

from foreshard._core.errors import SqlError, not_built
from foreshard.proxy.wire.snapshots import late_for_node

cdef enum:
    KEPT_BYTES_MAX = 67108864       # of rows that are held until a write has succeeded; chosen, not measured

cdef bytes LATE = b"\0C23503\0"


cdef class Gather(Asking):
    """The part of a frontend that finds shards and concatenates their rows."""

    cdef int route(self, Template template, Values literals, Values params, int only) except -3:
        """The shard of a statement; ROUTE_MANY with `shards` set for a read of several; SqlError when refused.

        only >= 0 holds a placement to that shard. A placement is decided (and charged) once per message.
        """
        cdef Hub hub = self.hub
        cdef double features[4]
        cdef int kind = template.kind
        self.split = None
        if template.cursor is not None and template.text is not None and template.cursor in self.cursors:
            return self.cursors[template.cursor]
        if kind == ROUTE_DEFAULT:
            return hub.default_shard
        if kind == ROUTE_KEYED:
            return self.route_keyed(template, literals, params)
        if kind == ROUTE_PLACE:
            if self.decided_shard < 0:
                if only < 0:
                    only = self.written_shard()
                template.read_features(literals, params, features)
                self.decided_shard = hub.placer.place(
                    features, template.profile_indexes, template.profile_count, only)
                self.decided_rows = <int> features[0]
                self.decided_cost = hub.placer.decision.cost
                if self.decided_shard < 0:
                    raise SqlError("57P03", "no shard is up to take the row", hint="SHOW SHARDS tells which are down.")
            return self.decided_shard
        if kind == ROUTE_ANY:
            if self.active is not None and self.active.shard != hub.query_shard:
                return self.active.shard
            if self.links and (<Backend> self.links[0]).shard != hub.query_shard:      # granted while this waited
                return (<Backend> self.links[0]).shard
            return hub.default_shard if hub.shard_count == 1 else self.next_any()
        if kind == ROUTE_SCATTER:
            if hub.shard_count == 1 and (template.completion == COMPLETE_NONE or template.completion == COMPLETE_ROWS):
                return 0
            self.shards = list(range(hub.shard_count))
            return ROUTE_MANY
        if kind == ROUTE_QUERY:
            return self.route_query(template, template.refusal)
        if kind == ROUTE_CARRY:
            return 0 if hub.shard_count == 1 else ROUTE_CARRIED
        if kind == ROUTE_REFUSE:
            raise template.refusal
        if kind == ROUTE_COPY:
            return ROUTE_MANY if hub.shard_count > 1 else 0
        return hub.default_shard

    cdef int route_query(self, Template template, object refusal) except -3:
        """The query node, made to see what is committed by now."""
        cdef Backend backend
        if self.hub.shard_count == 1:
            return 0
        if self.has_temporary:
            raise not_built("reads over several groups in a session with temporary tables",
                            "Send them in another session, or DISCARD ALL before.", "One might hide a table.")
        if self.is_serializable():
            raise not_built(
                "SERIALIZABLE transactions on several shards", "Use REPEATABLE READ.",
                "each shard would be serializable by itself, the transaction not")
        for backend in self.links:
            if backend.wrote:
                return self.route_shadow(template, refusal)
        if self.is_repeatable and self.explicit and self.has_snapshots and not self.with_node:
            raise late_for_node()
        backend = self.find_link(self.hub.query_shard)
        if backend is not None:
            self.refresh(backend)
        return self.hub.query_shard

    cdef int route_shadow(self, Template template, object refusal) except -3:
        """The query node, made to see what the transaction has written (shadowing.pyx)."""
        raise refusal

    cdef int open_read(self, int shard, Template template) except -1:
        """Put a read that foreshard.snapshot is on for into a transaction of our own. Extended query."""
        cdef Backend backend
        if not self.snapshot or self.explicit or template.is_write or self.hub.shard_count == 1 or \
                (shard != ROUTE_MANY and shard != self.hub.query_shard):
            return 0
        for backend in self.links:
            if backend.unsynced and backend.executed:
                raise not_built(
                    "foreshard.snapshot for a read behind other statements of a pipeline", "Sync before it, or BEGIN.")
        return self.open_implicit(b"BEGIN ISOLATION LEVEL REPEATABLE READ")

    cdef int route_keyed(self, Template template, Values literals, Values params) except -3:
        """The shard that owns the buckets of the keys, or several."""
        if self.hub.shard_count == 1:   # it has every bucket, and the rows whose keys name none
            return 0
        self.hub.buckets.clear()
        template.locate(literals, params, self.hub.buckets)
        return self.route_buckets(template, literals, params)

    cdef int route_buckets(self, Template template, Values literals, Values params) except -3:
        """The same for the buckets that have been found."""
        cdef Hub hub = self.hub
        cdef Buckets buckets = hub.buckets
        cdef Py_ssize_t index
        cdef int shard, first
        first = hub.state.shard_of_bucket(buckets.items[0])
        if not buckets.every:
            for index in range(1, buckets.count):
                shard = hub.state.shard_of_bucket(buckets.items[index])
                if shard != first:
                    break
            else:
                if buckets.count == 1 or not template.keeps_bucket:
                    return first
        if template.row_keys:
            return self.route_rows(template, literals, params)
        if template.can_query:
            return self.route_query(template, template.one_shard_refusal)
        if template.carry is not None:
            return ROUTE_CARRIED
        if template.one_shard_refusal is not None:
            raise template.one_shard_refusal
        if buckets.every:
            self.shards = list(range(hub.shard_count))
        else:
            found = {hub.state.shard_of_bucket(buckets.items[index]) for index in range(buckets.count)}
            self.shards = sorted(found)
        return ROUTE_MANY

    cdef int route_rows(self, Template template, Values literals, Values params) except -3:
        """Several shards, each for some of the rows of an INSERT: `split` says which."""
        cdef list buckets = self.row_buckets(template, literals, params)
        cdef list found = [self.hub.state.shard_of_bucket(each) for each in buckets]
        self.shards = sorted(set(found))
        self.split = [[row for row, shard in enumerate(found) if shard == each] for each in self.shards]
        self.work_buckets = buckets
        return ROUTE_MANY

    cdef list row_buckets(self, Template template, Values literals, Values params):
        """The bucket of each row of an INSERT."""
        return template.locate_rows(literals, params)

    cdef int written_shard(self) noexcept:
        """The shard that the transaction has written on; -1: none."""
        cdef Backend backend
        for backend in self.links:
            if backend.wrote:
                return backend.shard
        return -1

    cdef int next_any(self) noexcept:
        """Shards in turn, for what any of them can answer."""
        self.any_turn = (self.any_turn + 1) % self.hub.shard_count
        return self.any_turn

    cdef int charge(self, Backend backend, Template template, Values literals, Values params, int rows=0) except -1:
        """Account for the statement just sent: bucket share of a placement, predicted cost of any other write.

        `rows` is how many of an INSERT's rows were sent there; 0 means all.
        """
        cdef Hub hub = self.hub
        cdef double features[4]
        cdef int index
        if self.decided_shard >= 0:
            backend.bucket_rows += self.decided_rows
            backend.bucket_cost += self.decided_cost
            self.decided_shard = -1
            if self.decided_rows and self.work_bucket >= 0:
                hub.state.count_statement(self.work_bucket, self.decided_rows)
            if template.profile_count and self.work_bucket >= 0:
                template.read_features(literals, params, features)
                hub.placer.predict(
                    features, template.profile_indexes, template.profile_count, hub.placer.charged)
                hub.state.add_demand(self.work_bucket, hub.placer.charged)
        elif template.profile_count and template.is_write:
            template.read_features(literals, params, features)
            if rows:        # n rows of a statement fire a function once, which sees n rows
                for index in range(3):
                    features[index] *= <double> rows / template.rows
                features[3] = <double> rows * rows
            hub.placer.charge(backend.shard, features, template.profile_indexes, template.profile_count)
            if self.work_bucket >= 0:
                hub.state.add_demand(self.work_bucket, hub.placer.charged)
            elif self.work_buckets is not None:
                self.spread_demand(backend.shard)
        return 0

    cdef int count_work(self, Template template) except -1:
        """Count what is asked of the buckets of the statement that was just sent; its rows in equal shares, where it
        is not known which are whose. A read counts in each.
        """
        cdef SharedState state = self.hub.state
        cdef uint64_t rows
        cdef Py_ssize_t index, count
        if template.kind != ROUTE_KEYED:
            return 0
        if self.work_bucket >= 0:
            state.count_statement(self.work_bucket, template.rows if template.is_write else 0)
        elif self.work_buckets is not None:
            count = len(self.work_buckets)
            rows = max(template.rows, count) if template.is_write else 0
            for index in range(count):
                state.count_statement(
                    <int> self.work_buckets[index], rows * (index + 1) // count - rows * index // count)
        return 0

    cdef int spread_demand(self, int shard) except -1:
        """What was charged for a shard's part is that of its buckets, in equal shares."""
        cdef list found = [each for each in self.work_buckets if self.hub.state.shard_of_bucket(each) == shard]
        cdef double shares[4]
        cdef int index
        for index in range(4):
            shares[index] = self.hub.placer.charged[index] / max(len(found), 1)
        for bucket in found:
            self.hub.state.add_demand(bucket, shares)
        return 0

    cdef bint attach_all(self, list shards, bint is_write) except -1:
        """Link a backend of each shard; False: the message has to wait."""
        cdef Backend backend
        if self.is_repeatable and self.explicit and not self.has_snapshots and not self.open_snapshots(False):
            return False
        if self.wait_until_drained():
            return False
        if is_write:
            if len(shards) > 1:
                self.check_two_phase(shards[0], shards[1])
            if not self.explicit:
                self.open_implicit()
        if (len(shards) > 1 or self.links) and self.is_serializable():
            self.check_second(None, shards[-1], False)
        if not self.link_all(shards):
            return False
        for shard in shards:
            backend = self.find_link(shard)
            if self.pinned is not None or (self.explicit and not backend.begun):
                self.join(backend, False)
        return True

    cdef int start_parts(self, list parts, int first, bint parallel) except -1:
        """The statement was sent to `parts` (in parallel) or to parts[first] alone: relay from there on."""
        cdef Backend backend
        cdef int index
        self.parts = parts
        self.part = first
        self.parts_failed = False
        self.late_error = None
        self.kept_size = 0
        self.waiting = WAIT_PARTS
        for index in range(len(parts)):
            backend = parts[index]
            backend.part_rows = 0
            backend.part_suspended = False
            backend.copy_out = self.copy_out
            backend.copy_begun = False
            backend.filter = FILTER_FIRST if index == 0 else FILTER_REST
            # The shards' rows are the same where there is a lock: the first's are enough.
            backend.is_echo = self.lock is not None and index > 0
            backend.kept = None if self.row_order is None or backend.is_echo else []
            if parallel and index > first:
                backend.set_hold(True)
        self.active = parts[first]
        for backend in parts:
            backend.flush()
        return 0

    cdef int on_part(self, Backend backend, bint suspended) except -1:
        """One shard has given its part, or the row limit was reached."""
        if self.waiting != WAIT_PARTS or backend is not self.parts[self.part]:
            return 0
        if suspended:
            return self.finish_parts(True)
        return self.next_part()

    cdef int next_part(self) except -1:
        """Go on with the next shard, or finish."""
        cdef Backend backend = self.parts[self.part]
        if self.rows_left:
            self.rows_left -= backend.part_rows
        self.part += 1
        if self.part >= len(self.parts) or (self.parts_failed and self.asks_in_turn()):
            return self.finish_parts(False)
        backend = self.parts[self.part]
        if backend.phase != BACKEND_READY:
            return self.next_part()
        if self.parts_failed:
            backend.filter = FILTER_MUTE
        self.active = backend
        if self.asks_in_turn():
            return self.ask_part(backend)
        return backend.set_hold(False)

    cdef bint asks_in_turn(self) noexcept:
        """Each shard is asked when the one before has answered."""
        return self.rows_left > 0 or self.lock is not None or self.in_turn

    cdef int ask_part(self, Backend backend) except -1:
        """Execute with what is left of the row limit; the frontend knows the portal."""
        return 0

    cdef int finish_parts(self, bint suspended) except -1:
        """Every shard has given its part, or the row limit was reached."""
        cdef Backend backend
        cdef long long rows = 0
        cdef bytes word = b"SELECT"
        cdef bint is_counted = True
        if self.late_error is not None:
            body, self.late_error = self.late_error, None
            self.push_bytes(b"E" + (len(body) + 4).to_bytes(4, "big") + body)
        if self.lock is not None:
            self.settle_same()
        if self.row_order is not None:
            self.push_kept()
        for backend in self.parts:
            rows += backend.part_rows
            if backend.part_tag:
                words = backend.part_tag.rsplit(b" ", 1)
                is_counted = words[-1].isdigit()
                word = words[0] if is_counted else backend.part_tag
        if word == b"COPY" and not suspended and not self.parts_failed:
            if self.copy_out == COPY_OUT_BINARY:
                self.push(b"d\x00\x00\x00\x06\xff\xff", 7)
            self.push(b"c\x00\x00\x00\x04", 5)
        return self.finish_result(suspended, word + b" %d" % rows if is_counted else word)  # EXPLAIN has no count

    cdef int finish_result(self, bint suspended, bytes tag) except -1:
        """Complete the client's result of several shards, and go on."""
        cdef Backend backend
        for backend in self.parts:
            backend.filter = FILTER_NONE
            backend.is_echo = False
            backend.part_rows = 0
            backend.copy_out = COPY_OUT_PLAIN
            if backend.hold:
                backend.set_hold(False)
        if self.parts_failed and self.explicit:
            self.failed = True
        self.is_corked = True
        if suspended:
            self.push_bytes(b"s\0\0\0\4")
        elif not self.parts_failed:
            self.push_complete(tag)
        self.rows_left = 0
        self.copy_out = COPY_OUT_PLAIN
        if self.simple:
            self.parts = []
            self.settle_status()
            self.push_ready()
        if not self.holds_result():
            self.is_corked = False
            self.flush()
        if self.simple:
            return self.end_segment()
        if self.parts_failed:
            self.skipping = True
        return self.resume()

    cdef bint holds_result(self) noexcept:
        """The end of a result leaves with what follows at once."""
        return False

    # -- the end of a transaction of our own ---------------------------------------------------------------------

    cdef bint ends_own(self) noexcept:
        """The statement at hand is the last of a transaction of our own: it is done when that has committed."""
        return False

    cdef int push_complete(self, bytes tag) except -1:
        if self.ends_own():
            self.held_tag = tag
            return 0
        return Asking.push_complete(self, tag)

    cdef int hold_end(self, Backend backend, Template template) except -1:
        """Hold what the shard answers to that statement; rows, too, of one that may fail by claims of other shards."""
        backend.holds_tag = True
        backend.part_tag = None
        backend.kept = [] if template.returns and owes(template) else None
        self.kept_size = 0
        self.last_asked = backend
        return 0

    cdef int take_held(self) except -1:
        """The statement has been answered: what was held."""
        cdef Backend backend = self.last_asked
        if backend is None:
            return 0
        self.last_asked = None
        self.held_tag, backend.part_tag = backend.part_tag, None
        self.held_rows, backend.kept = backend.kept, None
        backend.holds_tag = False
        return 0

    cdef int give_held(self) except -1:
        """Its transaction has ended: the answer, unless that failed."""
        tag, self.held_tag = self.held_tag, None
        rows, self.held_rows = self.held_rows, None
        if tag is not None and not self.command_failed:
            for row in rows or ():
                self.push_bytes(row)
            Asking.push_complete(self, tag)
        return 0

    cdef int settle_same(self) except -1:
        """Every shard has done the same: the client hears the first's answer; another count of rows is an error."""
        cdef Backend backend
        cdef Backend first = self.parts[0]
        for backend in self.parts:
            if backend.part_rows != first.part_rows and not self.parts_failed:
                self.parts_failed = True
                self.push_bytes(SqlError(
                    "XX001", "the shards do not have the same rows of the reference table",
                    f"{self.hub.shard_names[first.shard]} changed {first.part_rows} rows, "
                    f"{self.hub.shard_names[backend.shard]} {backend.part_rows}",
                    "`foreshard verify` tells which rows differ.").encode())
            if backend is not first:
                backend.part_rows = 0
        self.lock = None
        return 0

    cdef int push_kept(self) except -1:
        """Give the rows that a write returned, those of an INSERT in the order in which the client gave them.

        Where a shard returned fewer (ON CONFLICT leaves some out), their marks tell whose are missing; without, nobody
        can: shard by shard.
        """
        cdef Backend backend
        cdef list rows, kept = [(<Backend> each).kept for each in self.parts if (<Backend> each).kept is not None]
        if not self.parts_failed:
            if self.row_marks is not None:
                rows = unmark_rows(kept, self.row_marks, self.row_order)
            else:
                rows = [kept[0].pop(0)] if kept[0] and kept[0][0][:1] == b"T" else []
                if all(len(given) == self.row_order.count(part) for part, given in enumerate(kept)):
                    turns = [iter(given) for given in kept]
                    rows += [next(turns[part]) for part in self.row_order]
                else:
                    for given in kept:
                        rows += given
            if self.ends_own():
                self.held_rows = rows
            else:
                for row in rows:
                    self.push_bytes(row)
        for backend in self.parts:
            backend.kept = None
        self.row_order = self.row_marks = None
        return 0

    cdef int on_kept(self, Backend backend, Py_ssize_t size) except -1:
        """Rows in no certain order leave when they are more than are held: it is not certain then that all succeeds."""
        cdef list parts
        self.kept_size += size
        if self.kept_size <= KEPT_BYTES_MAX:
            return 0
        if backend is self.last_asked:
            parts = [backend]
        elif self.waiting == WAIT_PARTS and self.row_order is not None and not self.row_order:
            parts = self.parts
            self.row_order = None
        else:
            return 0
        for backend in parts:
            for row in backend.kept or ():
                self.push_bytes(row)
            backend.kept = None
        return 0

    cdef list marks_of(self, Template template, Values literals, Values params, bint is_binary):
        """The marks of the rows of a split INSERT, by part; None where they are not needed, or not certain."""
        hashes = [] if template.marks is None else template.marks.hash_rows(literals, params)
        if not hashes:
            return None
        shown = [None if each is None else each.to_bytes(8, "big", signed=True) if is_binary else b"%d" % each
                 for each in hashes]
        return [[shown[row] for row in rows] for rows in self.split]

    cdef bint keeps_error(self, Backend backend, bytes body) except -1:
        """Foreign keys are looked at when all rows are written: what fails before that on any shard is told instead."""
        if self.waiting != WAIT_PARTS or (self.parts_failed and self.late_error is None):
            return False
        if self.late_error is None and (LATE not in body or self.asks_in_turn()):
            return False
        if self.late_error is None or LATE in self.late_error:
            self.late_error = body
        return True

    cdef int on_failed(self, Backend backend) except -1:
        """A shard answered with an error."""
        if self.waiting == WAIT_PARTS:
            self.parts_failed = True
            backend.filter = FILTER_MUTE
            if not self.simple and backend is self.parts[self.part]:
                return self.next_part()
            return 0
        self.copying = False
        if self.waiting == WAIT_COMMANDS:
            # What is not shown, `conclude` tells.
            self.command_failed = self.command_failed or (backend is self.active and backend.filter != FILTER_MUTE)
        elif self.simple:
            if not self.explicit and len(self.links) > 1:
                return self.abort_segment(backend)
        elif backend.unsynced:
            self.skipping = True
            if self.waiting == WAIT_SHARD:
                return self.resume()
        return 0


cdef bint locks_rows(Template template) noexcept:
    """A SELECT that locks: shards are asked in their order, so that two such statements do not wait for each other."""
    return template.is_write and template.operation == OPERATION_SELECT and not template.writes_within


cdef bint holds_rows(Template template) noexcept:
    """A write whose rows come when it has succeeded, as PostgreSQL gives them."""
    return template.returns and not locks_rows(template)


cdef bint owes(Template template) noexcept:
    """A write that may fail when its claims are settled."""
    return template.owes_claims or template.owes_away
