"""Statements by keys whose rows may live away from home: the key's home shard is asked for its claim first.

The message waits until the answer is here and is handled again, as for everything else it waits for: `claimed` holds
what the home shards said, until the message is done. Rules (ARCHITECTURE.md, "Away rows"):

1. The claim says where the row is. A key without one has no row; what is sent for it goes to its home.
2. A new row goes home without a question, where its trigger claims the key, unless cost sends it away, ON CONFLICT
   has to find the row that is there, or the transaction may have deleted it before. Then the key is reserved at home,
   in the same transaction: nobody else can claim it before that ends.
3. A row never changes its bucket within a transaction: after writes other than INSERT new rows stay at home (or where
   a claim still says), so between two places there is always a moment without the row, and a miss is an answer.
4. What a transaction has made away from home has no claim before its end: the shards where it owes claims are asked
   first.
5. An INSERT or DELETE away from home owes the claim to another shard: it needs a transaction, settled by commit.pyx.
"""

from libc.stdint cimport int64_t, uint64_t

from foreshard._core.key_values cimport read_key
from foreshard._core.replies cimport REPLY_BIND, REPLY_CLOSE, REPLY_EXECUTE, REPLY_PARSE, REPLY_SWALLOW, REPLY_SYNC
from foreshard._core.template cimport (
    KEY_ARRAY,
    KEY_INSERTED,
    KEY_LIMIT_UNIT,
    KEY_NEGATIVE,
    KEY_QUOTED,
    OPERATION_INSERT,
    ROUTE_SCATTER,
    Buckets,
    Template,
    type_of,
)
from foreshard._core.typed_keys cimport TYPE_INT2, TYPE_INT8
from foreshard._core.values cimport VALUE_BINARY, Value, Values
from foreshard.proxy.wire.backend cimport Backend
from foreshard.proxy.wire.commit cimport control_point
from foreshard.proxy.wire.gather cimport ROUTE_CARRIED, ROUTE_MANY, Gather
from foreshard.proxy.wire.statement cimport Statement

from foreshard._core.errors import SqlError, decode_error
from foreshard._core.typed_keys import SCALAR_OIDS

cdef enum:
    NO_ROW = -1             # the answer for a key without a claim
    NOT_ASKED = -2
    NEW_KEYS_CONFLICT = 2   # NewKeys.ON_CONFLICT of proxy/routing/away
    TEXT_OID = 25
    INT4_OID = 23

cdef bytes PORTAL = b"foreshard"
cdef Buckets SCRATCH = Buckets()
cdef enum Question:
    QUESTION_CLAIM = 0      # where its claim says that the row is
    QUESTION_RESERVE = 1    # the same, or nobody else can claim the key before the transaction ends
    QUESTION_OWN = 2        # where a row of this transaction is whose claim is not settled

cdef dict QUESTIONS = {}    # (Question, key type) -> Statement
cdef tuple QUESTION_WORDS = (
    (b"claim", b"SELECT foreshard.claimed_bucket($1, $2)"),
    (b"reserve", b"SELECT foreshard.reserve_key($1, $2, $3)"),
    (b"own", b"SELECT foreshard.own_bucket($1, $2)"),
)


cdef class Away(Gather):
    """The part of a frontend that finds rows away from home."""

    # -- where a statement goes ----------------------------------------------------------------------------------

    cdef int route_keyed(self, Template template, Values literals, Values params) except -3:
        if not template.is_claimed or self.hub.shard_count == 1:
            return Gather.route_keyed(self, template, literals, params)
        self.begin_claimed()
        self.take_claimed()
        if not self.ask_own(template, literals, params):
            return ROUTE_WAIT
        if template.new_keys and template.key_count == 1 and template.rows == 1:
            return self.route_new(template, literals, params)
        if not self.resolve(template, literals, params):
            return ROUTE_WAIT
        return self.route_found(template, literals, params)

    cdef int begin_claimed(self) except -1:
        """The first look at a message: nothing is known."""
        if self.claimed is None:
            self.claimed = {}
            self.key_homes = {}
            self.goal = -1
            self.is_reserved = self.is_away = False
        return 0

    cdef int route_new(self, Template template, Values literals, Values params) except -3:
        """The shard of one new row: by cost, unless its key is there already."""
        cdef int home = home_of(template, 0, literals, params)
        cdef int home_shard = self.hub.state.shard_of_bucket(home)
        cdef int found = self.claimed.get(0, NOT_ASKED)
        cdef int shard
        cdef bint reserves
        self.key_homes[0] = home
        self.hub.buckets.clear()
        self.hub.buckets.add(home)
        if self.goal < 0:
            self.goal = self.choose(template, literals, params, home)
        reserves = self.goal != home_shard or template.new_keys == NEW_KEYS_CONFLICT
        if found == NOT_ASKED and not reserves and not self.has_changed:
            return home_shard
        if found == NOT_ASKED and not (reserves and (self.explicit or template.new_keys != NEW_KEYS_CONFLICT)):
            self.ask_home(template, literals, params, home_shard, [0], QUESTION_CLAIM)
            return ROUTE_WAIT
        if found < 0 and reserves and not self.is_reserved:
            if self.open_for_reservation() == ROUTE_OPEN:
                return ROUTE_OPEN
            self.ask_home(template, literals, params, home_shard, [0], QUESTION_RESERVE)
            return ROUTE_WAIT
        shard = self.goal if found < 0 else self.hub.state.shard_of_bucket(found)
        self.is_away = shard != home_shard
        return shard

    cdef int choose(self, Template template, Values literals, Values params, int home) except -1:
        """Place a new row, and charge it: where it may be nowhere else, at home."""
        cdef double features[4]
        cdef int home_shard = self.hub.state.shard_of_bucket(home)
        cdef Backend backend = self.find_link(home_shard)
        cdef int only = -1
        if not self.hub.two_phase or self.has_changed or self.is_serializable() or (
                backend is not None and backend.wrote):
            only = home_shard
        template.read_features(literals, params, features)
        self.decided_shard = self.hub.placer.place_key(
            <uint64_t> home, features, template.profile_indexes, template.profile_count, only)
        if self.decided_shard < 0:
            raise SqlError("57P03", "no shard is up to take the row", hint="SHOW SHARDS tells which are down.")
        self.decided_rows = 0 if self.decided_shard == home_shard else 1
        self.decided_cost = self.hub.placer.decision.cost if self.decided_rows else 0.0
        return self.decided_shard

    cdef bint ask_own(self, Template template, Values literals, Values params) except -1:
        """Learn of the rows that this transaction has made away from home; False: the message has to wait."""
        cdef Backend backend
        cdef int position
        if not self.has_away:
            return True
        for backend in self.links:
            if not backend.owes_claims or (self.own_shards is not None and backend.shard in self.own_shards):
                continue
            positions = []
            for position in range(template.key_count):
                if template.claims[position] is None or template.key_sources[position].flags & KEY_ARRAY or \
                        position in self.claimed:
                    continue
                home = home_of(template, position, literals, params)
                if home >= 0:
                    self.key_homes[position] = home
                    positions.append(position)
            if positions:
                self.ask_home(template, literals, params, backend.shard, positions, QUESTION_OWN)
                return False
        return True

    cdef int open_for_reservation(self) except -1:
        """A reservation holds until the transaction's end: see that there is one. ROUTE_OPEN: run in one, and again."""
        if not self.explicit:
            if self.simple:
                return ROUTE_OPEN
            self.open_implicit()
        return 0

    cdef bint resolve(self, Template template, Values literals, Values params) except -1:
        """Learn where the rows of all claimed keys are; False: the message has to wait."""
        cdef int position, home, flags
        cdef bint reserves = template.new_keys == NEW_KEYS_CONFLICT
        shards = {}
        for position in range(template.key_count):
            flags = template.key_sources[position].flags
            if template.claims[position] is None or flags & KEY_ARRAY or position in self.claimed:
                continue
            if template.new_keys and flags & KEY_INSERTED and not reserves and not self.has_changed:
                continue
            home = home_of(template, position, literals, params)
            if home >= 0:
                self.key_homes[position] = home
                shards.setdefault(self.hub.state.shard_of_bucket(home), []).append(position)
        for shard, positions in sorted(shards.items()):
            if reserves and self.open_for_reservation() == ROUTE_OPEN:
                reserves = False    # what is there already is found as well; a race with another INSERT is an error
            self.ask_home(
                template, literals, params, shard, positions, QUESTION_RESERVE if reserves else QUESTION_CLAIM)
            return False
        return True

    cdef int route_found(self, Template template, Values literals, Values params) except -3:
        """The shards of the buckets that keys and claims say."""
        cdef Buckets buckets = self.hub.buckets
        cdef int position = 0, found, shard
        buckets.clear()
        while position < template.key_count:
            found = self.claimed.get(position, NOT_ASKED)
            if found >= 0:
                buckets.add(found)
                if self.hub.state.shard_of_bucket(found) != self.hub.state.shard_of_bucket(self.key_homes[position]):
                    self.is_away = True
            elif template.claims[position] is not None and template.key_sources[position].flags & KEY_ARRAY:
                template.locate_at(position, literals, params, SCRATCH)     # for what is wrong with its elements
                SCRATCH.clear()
                buckets.every = True
            else:
                position = template.locate_at(position, literals, params, buckets)
            position += 1
        if buckets.count == 0 and not buckets.every:
            buckets.add(0)
        shard = self.route_buckets(template, literals, params)
        if shard == ROUTE_MANY:
            self.is_away = True
        elif shard == ROUTE_CARRIED:
            self.forget_claimed()       # the router's own statements follow within the message
        return shard

    cdef list row_buckets(self, Template template, Values literals, Values params):
        cdef list found = Gather.row_buckets(self, template, literals, params)
        if not self.claimed:
            return found
        answers = [self.claimed.get(position, NOT_ASKED) for position in template.row_keys]
        return [bucket if answer < 0 else answer for bucket, answer in zip(found, answers)]

    # -- what the rest of the session asks -----------------------------------------------------------------------

    cdef bint is_bare(self, Template template, int shard, Values literals, Values params) except -1:
        """A write of one shard that may owe claims to others, and has no transaction yet."""
        if self.explicit or not template.is_write or self.hub.shard_count == 1:
            return False
        return (template.owes_away and self.is_away) or (
            template.owes_claims and self.owes_elsewhere(template, shard, literals, params))

    cdef bint owes_elsewhere(self, Template template, int shard, Values literals, Values params) except -1:
        """Whether claims of a write on a shard may have their homes on others, as far as its text tells."""
        cdef Template homes = template.claim_homes
        cdef int index, position = 0
        cdef bint found = False
        if homes is None:
            return True
        SCRATCH.clear()
        try:
            while position < homes.key_count:
                position = homes.locate_at(position, literals, params, SCRATCH) + 1
            found = SCRATCH.every
        except SqlError:
            found = True        # the shard says what is wrong with the value
        for index in range(SCRATCH.count):
            found = found or self.hub.state.shard_of_bucket(SCRATCH.items[index]) != shard
        SCRATCH.clear()
        return found

    cdef int charge(self, Backend backend, Template template, Values literals, Values params, int rows=0) except -1:
        if template.claim_homes is not None and self.hub.shard_count > 1 and not backend.owes_claims:
            backend.owes_claims = self.owes_elsewhere(template, backend.shard, literals, params)
        return Gather.charge(self, backend, template, literals, params, rows)

    cdef bint places(self, Template template) noexcept:
        """An INSERT away from home: its row is in the bucket that the backend is set to."""
        return self.is_away and template.new_keys != 0

    cdef bint look_up(self, Template template, Values literals, Values params) except -1:
        """For EXPLAIN (FORESHARD): learn what claims say, changing nothing; False: the message has to wait."""
        cdef int position, home, shard
        if not template.is_claimed or self.hub.shard_count == 1:
            return True
        if self.claimed is None:
            self.claimed = {}
            self.key_homes = {}
        self.take_claimed()
        for position in range(template.key_count):
            if template.claims[position] is None or template.key_sources[position].flags & KEY_ARRAY:
                continue
            home = home_of(template, position, literals, params)
            if home >= 0 and position not in self.claimed:
                self.key_homes[position] = home
                shard = self.hub.state.shard_of_bucket(home)
                self.ask_home(template, literals, params, shard, [position], QUESTION_CLAIM)
                return False
        return True

    cdef int mark(self, Backend backend, Template template) except -1:
        Gather.mark(self, backend, template)
        if template.is_write and template.operation != OPERATION_INSERT:
            self.has_changed = True
        if template.owes_away and (self.is_away or template.kind == ROUTE_SCATTER):
            backend.owes_claims = self.has_away = self.hub.shard_count > 1
        return 0

    cdef int release_links(self) except -1:
        self.has_changed = self.has_away = False
        return Gather.release_links(self)

    # -- asking --------------------------------------------------------------------------------------------------

    cdef int ask_home(
        self, Template template, Values literals, Values params, int shard, list positions, int what
    ) except -1:
        """Ask a shard about some keys. The message has to wait, for that or for a backend."""
        cdef Backend backend = self.attach(shard, False, False)
        cdef Statement statement
        cdef bint was_unsynced
        cdef int position
        if backend is None or self.wait_until_drained():
            return 0
        was_unsynced = backend.unsynced
        backend.collected = []
        for position in positions:
            statement = question(what, type_of(template.key_sources[position].flags))
            value, is_binary = key_of(template, position, literals, params)
            values = [(<str> template.claims[position]).encode(), value]
            if what == QUESTION_RESERVE:
                values.append(b"%d" % <int> self.key_homes[position])
            formats = b"".join([b"\0\1" if is_binary and each is value else b"\0\0" for each in values])
            self.send_question(backend, statement, values, len(values).to_bytes(2, "big") + formats)
        self.end_question(backend, was_unsynced)
        self.asked_keys = positions
        self.asked_home = backend
        self.is_reserved = self.is_reserved or what == QUESTION_RESERVE
        self.asks_own = what == QUESTION_OWN
        backend.flush()
        control_point("away-asked")
        self.wait_until_drained()
        return 0

    cdef int send_question(self, Backend backend, Statement statement, list values, bytes formats) except -1:
        """Parse where it is new, Bind, Execute, Close, in a portal of our own."""
        cdef bytes body
        if statement.id not in backend.prepared:
            backend.write_parse(
                statement, statement.server_name, <const char*> statement.body, len(statement.body),
                REPLY_PARSE | REPLY_SWALLOW)
        body = PORTAL + b"\0" + statement.server_name + b"\0" + formats + len(values).to_bytes(2, "big")
        body += b"".join([len(value).to_bytes(4, "big") + value for value in values]) + b"\0\0"
        backend.write_message(b"B", <const char*> body, len(body))
        backend.replies.push(REPLY_BIND | REPLY_SWALLOW)
        backend.write_message(b"E", b"foreshard\0\0\0\0\0", 14)
        backend.replies.push(REPLY_EXECUTE | REPLY_SWALLOW)
        backend.write_message(b"C", b"Pforeshard\0", 11)
        backend.replies.push(REPLY_CLOSE | REPLY_SWALLOW)
        backend.unsynced = True
        return 0

    cdef int end_question(self, Backend backend, bint was_unsynced) except -1:
        """Sync, unless that would end a segment of the client's."""
        if not was_unsynced:
            backend.unsynced = False
            backend.executed = False
            backend.write_empty(b"S", REPLY_SYNC | REPLY_SWALLOW)
        return 0

    cdef int take_claimed(self) except -1:
        """Note what a home shard has said; SqlError when it failed."""
        cdef Backend backend = self.asked_home
        cdef list positions = self.asked_keys
        if positions is None:
            return 0
        self.asked_keys = None
        self.asked_home = None
        rows, backend.collected = backend.collected, None
        if backend.muted_error is not None:
            error, backend.muted_error = decode_error(backend.muted_error), None
            raise error
        if self.is_reserved:
            control_point("away-reserved")
        if self.asks_own:
            self.own_shards = (self.own_shards or set()) | {backend.shard}
        for position, row in zip(positions, rows, strict=True):
            size = int.from_bytes(row[2:6], "big", signed=True)
            if size >= 0 or not self.asks_own:
                self.claimed[position] = NO_ROW if size < 0 else int(row[6:6 + size])
        return 0

    cdef int forget_claimed(self) except -1:
        """The message, or the statement of a string, is done: the next one asks anew."""
        self.claimed = self.own_shards = None
        self.is_away = False
        if self.asked_keys is not None:
            self.asked_keys = None
            self.asked_home.collected = None
            self.asked_home = None
        return 0


cdef int home_of(Template template, int position, Values literals, Values params) except -2:
    """The home bucket of a key; -1 when it has none that is known, or no row can have it. Raises for malformed ones."""
    cdef int home = -1
    SCRATCH.clear()
    template.locate_at(position, literals, params, SCRATCH)
    if SCRATCH.count == 1 and not SCRATCH.every:
        home = SCRATCH.items[0]
    SCRATCH.clear()
    return home


cdef tuple key_of(Template template, int position, Values literals, Values params):
    """A key as a parameter of our question: its bytes, and whether they are in binary format."""
    cdef int flags = template.key_sources[position].flags
    cdef const Value* value = template.read_source(position, literals, params)
    cdef int limit = flags // KEY_LIMIT_UNIT
    cdef int64_t number
    cdef bytes data
    if TYPE_INT8 <= type_of(flags) <= TYPE_INT2:
        read_key(value, flags & KEY_NEGATIVE, &number)      # home_of has read it without error
        return b"%d" % number, False
    data = value.data[:value.size]
    if value.format == VALUE_BINARY:
        return data, True
    if flags & KEY_QUOTED:
        data = data.replace(b"''", b"'")
    if limit:
        text = data.decode()
        data = data if text[limit:].strip(" ") else text[:limit].encode()
    return data, False


cdef Statement question(int what, int key_type):
    """Our statement that asks for a key of a type."""
    cdef Statement statement = QUESTIONS.get((what, key_type))
    if statement is not None:
        return statement
    statement = Statement.__new__(Statement)
    word, text = QUESTION_WORDS[what]
    oids = [TEXT_OID, SCALAR_OIDS[key_type][0], INT4_OID][:3 if what == QUESTION_RESERVE else 2]
    statement.body = text + b"\0" + len(oids).to_bytes(2, "big") + b"".join([oid.to_bytes(4, "big") for oid in oids])
    statement.query_size = len(text)
    statement.id = f"{word.decode()} {key_type}"
    statement.server_name = b"foreshard_%s_%d" % (word, key_type)
    QUESTIONS[what, key_type] = statement
    return statement
