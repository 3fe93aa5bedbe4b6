"""INSERT ... ON CONFLICT on columns that are unique over all shards: it goes to the row that it may meet.

Its Template's `arbiters` say which values may be on another row. The homes of their claims are asked first, in the
transaction of the statement, and so are the shards on which that has claims to settle (proxy/control/arbiters.py). A
row that is there stays until the transaction ends: the statement is sent to its shard, whose own index finds the
conflict. Where none is, nobody else can make one, and the INSERT goes where any new row goes. Several rows are asked
about shard by shard, in one order for all, and each goes to the row that it meets; two that have one value go together.
"""

from foreshard._core.buckets cimport home_seed
from foreshard._core.key_values cimport READ_KEY
from foreshard._core.template cimport (
    KEY_LIMIT_UNIT, KEY_NEGATIVE, KEY_PART, KEY_QUOTED, ROUTE_PLACE, Template, type_of,
)
from foreshard._core.typed_keys cimport TypedKey, read_typed
from foreshard._core.values cimport Values
from foreshard.proxy.wire.away cimport ROUTE_OPEN, ROUTE_WAIT, Away, home_of, key_of
from foreshard.proxy.wire.backend cimport Backend
from foreshard.proxy.wire.commit cimport control_point
from foreshard.proxy.wire.gather cimport ROUTE_MANY
from foreshard.proxy.wire.statement cimport Statement

from foreshard._core.errors import SqlError, decode_error
from foreshard._core.typed_keys import SCALAR_OIDS

cdef enum:
    ROUTE_FREE = -7         # no other row has the values
    NO_ROW = -1
    RELEASED = -2           # of proxy/control/arbiters.py
    PENDING = 4096          # added to the bucket of a row of this transaction whose claim is not settled
    TEXT_OID = 25
    TEXTS_OID = 1009
    INT4_OID = 23
    SEVERAL = 255           # the key type of values of several columns

cdef dict QUESTIONS = {}    # (key type, whether it asks for the row) -> Statement


cdef class Arbiter(Away):
    """The part of a frontend that finds the rows which new ones may meet."""

    cdef int route(self, Template template, Values literals, Values params, int only) except -3:
        cdef int shard
        self.places_parts = False
        if template.arbiters and self.hub.shard_count > 1:
            shard = self.arbitrate(template, literals, params)
            if shard != ROUTE_FREE:
                return shard
        return Away.route(self, template, literals, params, only)

    cdef int arbitrate(self, Template template, Values literals, Values params) except -3:
        """The shard of a row that is there, or ROUTE_FREE; ROUTE_WAIT, ROUTE_OPEN: not known yet."""
        self.split = None
        if self.open_for_reservation() == ROUTE_OPEN:
            return ROUTE_OPEN
        self.begin_claimed()
        if self.arbiters is None:
            self.arbiters = {}
            self.meetings = {}
        self.take_arbiter()
        if self.ask_arbiters(template, literals, params) == ROUTE_WAIT or \
                self.ask_meetings(template, literals, params) == ROUTE_WAIT:
            return ROUTE_WAIT
        met = self.met_shards(template)
        if template.rows > 1:
            return self.spread_rows(template, literals, params, met)
        return self.go_to_row(template, met[0]) if met else ROUTE_FREE

    cdef int go_to_row(self, Template template, int shard) except -1:
        """All rows meet rows of one shard."""
        if template.kind == ROUTE_PLACE:
            self.decided_shard = shard
            self.decided_rows = 0
            self.decided_cost = 0.0
        return shard

    cdef dict met_shards(self, Template template):
        """By row the shard of the row that it meets."""
        cdef Template value
        cdef int index
        found = {}
        for index, value in enumerate(template.arbiters):
            answers = self.arbiters.get(index, {})
            bucket = met_bucket(answers)
            if bucket == NO_ROW:
                continue
            shard = self.hub.state.shard_of_bucket(bucket % PENDING)
            if value.owes_away:     # the transaction's own is where it is pending
                shard = next((shard for shard, answer in answers.items() if answer == bucket), NO_ROW)
                if bucket < PENDING:
                    shard = next(shard for shard, has_row in self.meetings[index].items() if has_row)
            found.setdefault(value.row_keys[0], shard)
        return found

    cdef int spread_rows(self, Template template, Values literals, Values params, dict met) except -3:
        """Each row goes to the row that it meets, the others where new rows go: `split` says which."""
        cdef int shard, row
        if template.kind == ROUTE_PLACE:
            shard = Away.route(self, template, literals, params, -1) if len(met) < template.rows else NO_ROW
            goals = [met.get(row, shard) for row in range(template.rows)]
        else:
            if template.is_claimed:     # keys that may be away from home, too
                self.take_claimed()
                if not self.ask_own(template, literals, params) or not self.resolve(template, literals, params):
                    return ROUTE_WAIT
                self.is_away = True
            homes = self.row_buckets(template, literals, params)
            goals = [met.get(row, self.hub.state.shard_of_bucket(bucket)) for row, bucket in enumerate(homes)]
            self.keep_together(template, literals, params, goals)
        self.shards = sorted(set(goals))
        if len(self.shards) == 1:
            return self.shards[0] if len(met) < template.rows else self.go_to_row(template, self.shards[0])
        self.split = [[row for row, shard in enumerate(goals) if shard == each] for each in self.shards]
        self.places_parts = template.kind == ROUTE_PLACE
        return ROUTE_MANY

    cdef int keep_together(self, Template template, Values literals, Values params, list goals) except -1:
        """Rows of one value go where the first of them goes, whose row the others meet."""
        cdef Template value
        firsts = {}
        for value in template.arbiters:
            hash = hash_of(value, literals, params)
            if hash is None:
                continue
            row = value.row_keys[0]
            goal = firsts.setdefault((value.claims[0], hash), goals[row])
            if goal != goals[row]:
                if value.keeps_bucket:
                    raise value.one_shard_refusal
                goals[row] = goal
        return 0

    cdef bint attach_all(self, list shards, bint is_write) except -1:
        cdef Backend backend
        if not Away.attach_all(self, shards, is_write):
            return False
        if self.places_parts:       # a row that meets another makes a key, too, before it does
            for shard in shards:
                backend = self.find_link(shard)
                self.join(backend, True)
        return True

    # -- asking --------------------------------------------------------------------------------------------------

    cdef int ask_arbiters(self, Template template, Values literals, Values params) except -3:
        """Ask for the values whoever may know of them, shard by shard; ROUTE_WAIT until all have answered."""
        cdef Backend backend
        cdef Template value
        cdef int index, home
        owing = [backend.shard for backend in self.links if backend.owes_claims]
        due = {}
        for index, value in enumerate(template.arbiters):
            home = home_of(value, 0, literals, params)
            if home < 0 or (value.can_query and value.key_count > 1 and home_of(value, 1, literals, params) >= 0):
                continue        # NULL, or a key that says where its row is: what it meets is there
            answers = self.arbiters.setdefault(index, {})
            for shard in {self.hub.state.shard_of_bucket(home), *owing}:
                if shard not in answers:
                    due.setdefault(shard, []).append((home, index))
        if not due:
            return 0
        self.ask_shard(template, literals, params, min(due), sorted(due[min(due)]), False)
        return ROUTE_WAIT

    cdef int ask_meetings(self, Template template, Values literals, Values params) except -3:
        """Ask where rows are that may be away from the bucket of their claims, that bucket's shard first."""
        cdef Template value
        cdef int index, bucket, shard
        due = {}
        for index, value in enumerate(template.arbiters):
            bucket = met_bucket(self.arbiters.get(index, {}))
            if not value.owes_away or bucket == NO_ROW or bucket >= PENDING:
                continue
            known = self.meetings.setdefault(index, {})
            if True in known.values():
                continue
            first = self.hub.state.shard_of_bucket(bucket)
            left = [shard for shard in (first, *range(self.hub.shard_count)) if shard not in known]
            if not left:
                raise SqlError(
                    "40001", "the row that the new one meets is being moved, or is newer than the snapshot",
                    hint="Run the transaction again.")
            due.setdefault(left[0], []).append((bucket, index))
        if not due:
            return 0
        self.ask_shard(template, literals, params, min(due), sorted(due[min(due)]), True)
        return ROUTE_WAIT

    cdef int ask_shard(
        self, Template template, Values literals, Values params, int shard, list due, bint meets
    ) except -1:
        """Ask one shard about values with these homes. The message has to wait, for that or for a backend."""
        cdef Backend backend = self.attach(shard, False, False)
        cdef Template value
        cdef bint was_unsynced
        if backend is None or self.wait_until_drained():
            return 0
        was_unsynced = backend.unsynced
        backend.collected = []
        for home, index in due:
            value = template.arbiters[index]
            key, is_binary = value_of(value, literals, params)
            values = [(<str> value.claims[0]).encode(), key]
            formats = b"\0\0" + (b"\0\1" if is_binary else b"\0\0")
            if not meets:
                values.append(b"%d" % home)
                formats += b"\0\0"
            formats = len(values).to_bytes(2, "big") + formats
            self.send_question(backend, question(value.key_sources[0].flags, meets), values, formats)
        self.end_question(backend, was_unsynced)
        self.asks_meetings = meets
        self.asked_arbiters = (shard, [index for _, index in due])
        backend.flush()
        self.wait_until_drained()
        return 0

    cdef int take_arbiter(self) except -1:
        """Note what a shard has said; SqlError when it failed."""
        cdef Backend backend
        if self.asked_arbiters is None:
            return 0
        shard, asked = self.asked_arbiters
        self.asked_arbiters = None
        backend = self.find_link(shard)
        rows, backend.collected = backend.collected, None
        if backend.muted_error is not None:
            error, backend.muted_error = decode_error(backend.muted_error), None
            raise error
        control_point("claims-met")
        for index, row in zip(asked, rows, strict=True):
            size = int.from_bytes(row[2:6], "big", signed=True)
            if self.asks_meetings:
                self.meetings[index][shard] = row[6:] == b"t"
            else:
                self.arbiters[index][shard] = NO_ROW if size < 0 else int(row[6:6 + size])
        return 0

    cdef int forget_claimed(self) except -1:
        cdef Backend backend
        if self.asked_arbiters is not None:
            backend = self.find_link(self.asked_arbiters[0])
            if backend is not None:
                backend.collected = None
            self.asked_arbiters = None
        self.arbiters = self.meetings = None
        return Away.forget_claimed(self)


cdef int met_bucket(dict answers) except -2:
    """The bucket of the row that a value is on, and PENDING more for one of this transaction's; NO_ROW for none."""
    bucket = max(answers.values(), default=NO_ROW)
    return NO_ROW if bucket < 0 or (bucket < PENDING and RELEASED in answers.values()) else bucket


cdef tuple value_of(Template value, Values literals, Values params):
    """A value as a parameter of our question, and whether it is in binary format: of several columns, a text array."""
    cdef int position = 0
    if not value.key_sources[0].flags & KEY_PART:
        return key_of(value, 0, literals, params)
    pieces = []
    while True:
        part, _ = key_of(value, position, literals, params)     # texts and integers only: routing/arbiters.py
        pieces.append(b'"' + part.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"')
        if not value.key_sources[position].flags & KEY_PART:
            return b"{" + b",".join(pieces) + b"}", False
        position += 1


cdef object hash_of(Template value, Values literals, Values params):
    """What equal values have in common, and others do not; None for one with a NULL in it."""
    cdef TypedKey key
    cdef int flags, position = 0
    key.hash = home_seed()
    while True:
        flags = value.key_sources[position].flags
        if read_typed(
                value.read_source(position, literals, params), type_of(flags), flags & KEY_QUOTED,
                flags & KEY_NEGATIVE, flags // KEY_LIMIT_UNIT, key.hash, &key) != READ_KEY:
            return None
        if not flags & KEY_PART:
            return key.hash
        position += 1


cdef Statement question(int flags, bint meets):
    """Our statement that asks for a value of a type: who has it, or whether its row is there."""
    cdef int key_type = SEVERAL if flags & KEY_PART else type_of(flags)
    cdef Statement statement = QUESTIONS.get((key_type, meets))
    if statement is not None:
        return statement
    statement = Statement.__new__(Statement)
    text = b"SELECT foreshard.meets($1, $2)" if meets else b"SELECT foreshard.arbitrate($1, $2, $3)"
    oids = [TEXT_OID, TEXTS_OID if key_type == SEVERAL else SCALAR_OIDS[key_type][0], INT4_OID][:2 if meets else 3]
    statement.body = text + b"\0" + len(oids).to_bytes(2, "big") + b"".join([oid.to_bytes(4, "big") for oid in oids])
    statement.query_size = len(text)
    word = "meets" if meets else "arbiter"
    statement.id = f"{word} {key_type}"
    statement.server_name = b"foreshard_%s_%d" % (word.encode(), key_type)
    QUESTIONS[key_type, meets] = statement
    return statement
