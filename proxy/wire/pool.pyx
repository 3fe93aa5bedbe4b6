"""Pools of backends, and the hub that every session of a router shares.

A pool holds the backends of one (shard, StartupMessage): clients that connect with the same user and parameters share
it, so a backend needs no SET before it changes hands. Rules:

1. A backend in `idle` is in transaction status I, owes nothing, has no owner and no session state (invariant 2); one
   that comes back otherwise is closed.
2. `pool.size` bounds the backends of a shard over all its pools; when it is reached, an idle backend of another pool
   makes room, else the client waits in line, first come first served, until its deadline (53300).
3. A pool without backends whose client has waited STARVING_S gets the next backend that comes back to a larger one.
4. A pool that no session, backend or waiter needs is dropped: clients choose their parameters, and so their number.
"""

cimport cython
from libc.stdlib cimport calloc, free

from foreshard._core.buckets cimport SHARDS_MAX
from foreshard._core.placement cimport Placer
from foreshard._core.replies cimport REPLY_NOTIFY, REPLY_QUERY
from foreshard._core.shared cimport SharedState
from foreshard._core.statement_cache cimport StatementCache
from foreshard._core.template cimport Buckets
from foreshard._core.values cimport Values
from foreshard.proxy.wire.backend cimport BACKEND_CLOSED, BACKEND_READY, Backend, BackendHome, Owner
from foreshard.proxy.wire.endpoint cimport Reactor, monotonic
from foreshard.proxy.wire.gate cimport Gate
from foreshard.proxy.wire.waker cimport Waker

import socket
import time
from collections import deque

from foreshard._core.errors import SqlError

cdef enum:
    EPOLL_IN = 1
    EPOLL_OUT = 4
    PREPARED_MAX = 1000         # server-side statements a backend keeps; chosen, not measured

STARVING_S = 1.0                # chosen, not measured


def encode_startup(tuple parameters) -> bytes:
    """A StartupMessage of protocol 3.0."""
    body = b"\x00\x03\x00\x00"
    for name, value in parameters:
        body += name.encode() + b"\0" + value.encode() + b"\0"
    body += b"\0"
    return (len(body) + 4).to_bytes(4, "big") + body


@cython.final
cdef class Hub:
    """Everything the sessions of one router share. Made by the router process; ends with it."""

    def __cinit__(self):
        self.backend_counts = NULL
        self.idle_counts = NULL

    def __init__(self, Reactor reactor, object loop, object config, StatementCache cache, SharedState state,
                 Placer placer, object services, list addresses, object query_address, bint is_sharded, str cluster,
                 bint two_phase):
        self.reactor = reactor
        self.waker = Waker(reactor, config.run_directory)
        self.gate = Gate(services)
        self.loop = loop
        self.config = config
        self.cache = cache
        self.state = state
        self.placer = placer
        self.services = services
        self.default_shard = 0
        self.sessions = {}
        self.pools = {}
        self.addresses = self.shard_names = []
        self.deaf = set()
        self.follow_shards(config, addresses, query_address)
        self.database = addresses[0].database
        self.two_phase = two_phase
        self.cluster = cluster
        self.is_sharded = is_sharded
        self.message_bytes_max = config.limits.message_bytes_max
        self.query_types = {}
        self.unchecked = set()
        self.held = []
        self.behind = []
        self.frozen_bucket = -1
        self.frozen = []
        self.exempt = []
        self.away = set()
        self.lost = [set() for _ in range(SHARDS_MAX + 1)]
        self.pool_size = config.pool.size
        self.wait_timeout_s = config.pool.wait_timeout_s
        self.statements = {}
        self.merged_texts = {}
        self.params = Values()
        self.literals = Values()
        self.buckets = Buckets()
        self.backend_counts = <int*> calloc(SHARDS_MAX + 1, sizeof(int))
        self.idle_counts = <int*> calloc(SHARDS_MAX + 1, sizeof(int))
        if self.backend_counts == NULL or self.idle_counts == NULL:
            raise MemoryError()

    def __dealloc__(self):
        free(self.backend_counts)
        free(self.idle_counts)

    def follow_shards(self, object config, list addresses, object query_address) -> None:
        """The shards are these from now on: others behind those there were, or fewer. No statement is under way, but
        some that have begun and go on where they are.

        Transactions that are open have all of them in view: no bucket moves before they have ended.
        """
        cdef Pool pool
        cdef int known = self.shard_count
        self.config = config
        for pool in list(self.pools.values()):
            if len(addresses) <= pool.shard < known:
                pool.close_idle()
        self.shard_count = len(addresses)
        self.query_shard = SHARDS_MAX if self.shard_count > 1 else 0
        # Transactions that are open go on on shards that are gone.
        gone_addresses, gone_names = self.addresses[self.shard_count:-1], self.shard_names[self.shard_count:-1]
        unused = [None] * (SHARDS_MAX - self.shard_count - len(gone_names))
        self.addresses = [*addresses, *gone_addresses, *unused, query_address]
        self.shard_names = [*(shard.name for shard in config.shards), *gone_names, *unused, "query"]
        self.state.resize(self.shard_count)
        for pool in self.pools.values():
            if known <= pool.shard < self.shard_count:      # left of a shard that had the place before
                pool.take_address()
        for session in list(self.sessions.values()):
            if session.has_settled():
                session.terminate(SqlError(
                    "57P01", "terminating connection: the list of shards has changed",
                    "A setting of this session is known to one shard alone.", "Connect again; nothing is wrong."))
                continue
            session.note_shards()
            session.leave_shards(self.shard_count)
            if session.is_listening():
                self.deaf.add(session)

    cdef Pool pool(self, int shard, tuple parameters):
        """The pool for a shard and a client's StartupMessage."""
        cdef tuple key = (shard, parameters)
        cdef Pool pool = self.pools.get(key)
        if pool is None:
            pool = Pool(self, shard, parameters)
            self.pools[key] = pool
        return pool

    def run_housekeeping(self) -> None:
        """Deadlines of waiting clients and idle backends; called every second or oftener."""
        cdef Pool pool
        now = self.loop.time()
        self.retry_behind()
        self.expire_frozen(now)
        self.deaf = {session for session in self.deaf if not session.listen_everywhere()}
        for key, pool in list(self.pools.items()):
            pool.expire(now)
            if pool.session_count == 0 and not pool.backends and not pool.waiters and not pool.joiners:
                del self.pools[key]

    def hold(self) -> None:
        """Begin no statement from now on."""
        self.is_held = True

    def release(self) -> None:
        """Go on with the statements that were held back."""
        self.is_held = False
        held, self.held = self.held, []
        for session in held:
            session.go_on_planning()

    def hasten(self, bint is_hasty) -> None:
        """A bucket is to be frozen soon: what ends that comes through the event loop. Or it is not, after all."""
        self.reactor.is_hasty = is_hasty or self.frozen_bucket >= 0

    def freeze(self, int bucket) -> list:
        """Begin nothing in the bucket; the sessions that have it open."""
        self.frozen_bucket = bucket
        self.frozen_at = monotonic()
        self.placer.frozen_bucket = bucket
        self.reactor.is_hasty = True
        self.exempt = [session for session in self.sessions.values() if session.has_open(bucket)]
        for session in self.exempt:
            session.let_go_on(True)
        return list(self.exempt)

    def leave_bucket(self, int shard) -> None:
        """No session has the frozen bucket open: no backend of the shard is to place rows in it any more."""
        cdef Pool pool
        cdef Backend backend
        for pool in self.pools.values():
            if pool.shard != shard:
                continue
            for backend in list(pool.backends):
                if backend.bucket != self.frozen_bucket:
                    continue
                if backend in pool.idle:
                    pool.idle.remove(backend)
                    self.idle_counts[shard] -= 1
                    pool.discard(backend)
                else:       # its setting still names the bucket: for no other session
                    backend.bucket = -1
                    backend.is_spoiled = True

    def thaw(self) -> None:
        """Go on with the messages that waited for the bucket."""
        self.frozen_bucket = self.placer.frozen_bucket = -1
        self.reactor.is_hasty = False
        exempt, self.exempt = self.exempt, []
        for session in exempt:
            session.let_go_on(False)
        frozen, self.frozen = self.frozen, []
        for session in frozen:
            try:
                session.go_on_thawed()
            except Exception as mistake:        # of ours: ends that session only
                self.services.report_failure(session, mistake)

    def expire_frozen(self, double now) -> None:
        """Tell who waits that the shard which the bucket leaves does not answer."""
        if self.frozen_bucket < 0 or not self.frozen or now - self.frozen_at < self.wait_timeout_s:
            return
        frozen, self.frozen = self.frozen, []
        for session in frozen:
            session.give_up_frozen(SqlError(
                "57P03", f"bucket {self.frozen_bucket} is being moved, and its shard does not tell whether it has been",
                f"waited {self.wait_timeout_s:g} s", "SHOW MOVES and SHOW SHARDS tell more."))

    def take_lost(self, int shard) -> list:
        """The server processes of backends that were closed, and may still be at work; they are the caller's then."""
        cdef Pool pool
        cdef Backend backend
        lost, self.lost[shard] = self.lost[shard], set()
        for pool in self.pools.values():
            if pool.shard == shard:
                lost.difference_update([backend.pid for backend in pool.backends])
        return list(lost)

    def note_lost(self, int shard, pids) -> None:
        """These may still be at work."""
        self.lost[shard].update(pids)

    def leave_shard(self, int shard) -> None:
        """Connect no backend to the shard; clients wait."""
        self.away.add(shard)

    def return_to_shard(self, int shard) -> None:
        """Connect again."""
        cdef Pool pool
        self.away.discard(shard)
        for pool in list(self.pools.values()):
            if pool.shard == shard and (pool.waiters or pool.joiners):
                pool.grow()

    def uses_place(self, int shard) -> bool:
        """Some backend is of the shard that has, or had, this place."""
        cdef Pool pool
        for pool in self.pools.values():
            if pool.shard == shard and pool.backends:
                return True
        return False

    def retry_behind(self) -> None:
        """The query node may have followed a change of the schema, or those who waited for it have waited enough."""
        behind, self.behind = self.behind, []
        for session in behind:
            session.go_on_planning()

    def drain(self) -> None:
        """Take no more clients into transactions: idle backends are closed, sessions end as they fall idle."""
        cdef Pool pool
        self.is_stopping = True
        for pool in self.pools.values():
            pool.close_idle()


@cython.final
cdef class Pool(BackendHome):
    """Backends of one shard and StartupMessage. Made by the hub on first use."""

    def __init__(self, Hub hub, int shard, tuple parameters):
        self.hub = hub
        self.shard = shard
        self.parameters = parameters
        self.take_address()
        self.idle = []
        self.backends = set()
        self.waiters = deque()
        self.joiners = deque()

    def take_address(self) -> None:
        """The shard's database is the one that the hub knows now."""
        self.startup = encode_startup(tuple({
            **dict(self.parameters), "database": self.hub.addresses[self.shard].database}.items()))
        self.server_parameters = None

    cdef Backend take(self, Owner owner, bint is_joining):
        """An idle backend, or None when the owner was put in line (on_granted or on_denied follows).

        Who has backends of other shards already (is_joining) is served first, and beyond the pool's size if need be:
        two that each wait in line for what the other has would wait for ever.
        """
        cdef Backend backend
        if is_joining and not self.idle:
            owner.wait_deadline = monotonic() + self.hub.wait_timeout_s
            self.joiners.append(owner)
            self.hub.waiting_count += 1
            self.grow()
            return None
        if self.idle and (is_joining or self.hub.waiting_count == 0 or not self.waiters):
            backend = self.pop_idle(-1)
            backend.owner = owner
            return backend
        owner.wait_deadline = monotonic() + self.hub.wait_timeout_s
        self.waiters.append(owner)
        self.hub.waiting_count += 1
        if self.hub.backend_counts[self.shard] < self.hub.pool_size or self.hub.idle_counts[self.shard]:
            self.grow()
        return None

    cdef Backend pop_idle(self, int index):
        """Take a backend out of the idle ones: -1 the most recently used, 0 the longest idle."""
        self.hub.idle_counts[self.shard] -= 1
        return self.idle.pop(index)

    cdef Owner next_waiter(self):
        """The owner first in line that is still there; None when nobody is."""
        cdef Owner owner
        while self.joiners or self.waiters:
            owner = self.joiners.popleft() if self.joiners else self.waiters.popleft()
            self.hub.waiting_count -= 1
            if owner.fd >= 0:
                return owner
        return None

    cdef int put(self, Backend backend) except -1:
        """Take a backend back: to the next in line, or idle; with session state, only after DISCARD ALL."""
        backend.disown()
        if backend.phase != BACKEND_READY:
            return 0
        if backend.bucket >= 0 and backend.bucket == self.hub.frozen_bucket:
            return self.discard(backend)
        if self.hub.is_stopping or backend.status != b"I" or backend.replies.count or backend.is_spoiled:
            return self.discard(backend)
        if backend.cancels:
            return 0        # on_cancel_done() calls again
        if self.hub.shard_count <= self.shard < SHARDS_MAX:
            return self.discard(backend)    # of a shard that is gone
        if backend.is_tainted or backend.changed is not None or len(backend.prepared) > PREPARED_MAX:
            if not backend.is_tainted and not backend.changed and len(backend.prepared) <= PREPARED_MAX:
                return self.offer(backend)      # changed and changed back
            backend.is_tainted = False
            backend.changed = None
            backend.prepared.clear()
            return self.reset(backend, b"DISCARD ALL")
        return self.offer(backend)

    cdef int reset(self, Backend backend, bytes sql) except -1:
        """Clean a backend that nobody owns; on_backend_ready follows, or it is closed."""
        backend.is_resetting = True
        backend.is_enlisted = backend.is_enlisted and backend.types is None     # a lock that DISCARD ALL gives back
        backend.bucket = -1
        backend.idle_since = monotonic()
        backend.write_query(sql, REPLY_QUERY | REPLY_NOTIFY)
        return backend.flush()

    cdef int offer(self, Backend backend) except -1:
        """Give a clean backend to the next in line, or keep it; beyond the pool's size only for who joins."""
        if self.hub.backend_counts[self.shard] > self.hub.pool_size and not self.joiners:
            return self.discard(backend)
        backend.idle_since = monotonic()
        self.idle.append(backend)
        self.hub.idle_counts[self.shard] += 1
        if self.hub.waiting_count:
            return self.serve()
        return 0

    cdef int serve(self) except -1:
        """Give idle backends to those in line; what they give back meanwhile too, here, not deeper in the stack."""
        cdef Owner owner
        cdef Backend backend
        if self.is_serving:
            return 0
        self.is_serving = True
        try:
            if self.gives_way:
                self.make_room_for_others()
            while self.idle:
                owner = self.next_waiter()
                if owner is None:
                    break
                backend = self.pop_idle(-1)
                backend.owner = owner
                owner.on_granted(backend)
        finally:
            self.is_serving = False
        if self.idle and self.hub.waiting_count:
            self.make_room_for_others()
        return 0

    cdef int leave(self, Owner owner) except -1:
        """The owner waits no more."""
        for line in (self.waiters, self.joiners):
            if owner in line:
                line.remove(owner)
                self.hub.waiting_count -= 1
        return 0

    cdef int deny(self, object error) except -1:
        """Tell everybody in line that there will be no backend."""
        cdef Owner owner
        for _ in range(len(self.waiters) + len(self.joiners)):
            owner = self.next_waiter()
            if owner is not None:
                owner.on_denied(error)
        return 0

    cdef int discard(self, Backend backend) except -1:
        """Close a backend that nobody should get."""
        backend.disown()
        if backend.phase != BACKEND_CLOSED:
            if backend.phase == BACKEND_READY and backend.replies.count == 0:
                backend.write_empty(b"X", 0)
                backend.flush()
            backend.phase = BACKEND_CLOSED
            backend.close()
            self.on_backend_gone(backend, None)
        return 0

    cdef int on_cancel_done(self, Backend backend) except -1:
        """A cancel request for a backend that was given back has been delivered."""
        if backend not in self.idle and not backend.is_resetting:
            return self.put(backend)
        return 0

    def grow(self) -> None:
        """Connect one more backend for whoever waits, if the shard's bound allows."""
        connecting = sum(1 for each in self.backends if (<Backend> each).phase < BACKEND_READY)
        if connecting >= len(self.waiters) + len(self.joiners):
            return
        is_within = connecting < len(self.joiners) or self.hub.backend_counts[self.shard] < self.hub.pool_size
        if is_within or self.evict_elsewhere():
            self.connect()

    def evict_elsewhere(self) -> bool:
        """Close the longest idle backend of the shard's other pools."""
        cdef Pool pool
        for pool in self.hub.pools.values():
            if pool is not self and pool.shard == self.shard and pool.idle:
                pool.discard(pool.pop_idle(0))
                return True
        return False

    def make_room_for_others(self) -> None:
        """When clients of another pool of this shard wait and this one is idle, give way."""
        cdef Pool pool
        for pool in self.hub.pools.values():
            if self.hub.backend_counts[self.shard] < self.hub.pool_size or not self.idle:
                break
            if pool is not self and pool.shard == self.shard and pool.waiters:
                self.discard(self.pop_idle(0))
                pool.grow()
        self.gives_way = False

    def connect(self) -> None:
        """Begin one connection."""
        cdef Backend backend = Backend()
        address = self.hub.addresses[self.shard]
        if self.shard in self.hub.unchecked:
            self.hub.loop.call_soon(self.refuse_unchecked)
            return
        if self.shard in self.hub.away:
            return      # return_to_shard
        try:
            connection = socket.socket(address.family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        except OSError as error:    # out of descriptors: whoever waits is told when no other backend can come
            self.hub.loop.call_soon(self.refuse, error.strerror)
            return
        if address.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.connect_ex(address.address)
        backend.home = self
        backend.shard = self.shard
        backend.startup = self.startup
        if self.shard == self.hub.query_shard and self.hub.shard_count > 1:
            backend.types = self.hub
        backend.connected_at = time.time()
        backend.idle_since = monotonic()
        self.backends.add(backend)
        self.hub.backend_counts[self.shard] += 1
        backend.open(self.hub.reactor, connection.detach(), EPOLL_IN | EPOLL_OUT)

    def refuse(self, str reason) -> None:
        """No connection could be begun: with no other backend to wait for, say so."""
        if not self.backends:
            name = self.hub.shard_names[self.shard]
            self.deny(SqlError("53000", f"cannot connect to shard {name}: {reason}"))

    def refuse_unchecked(self) -> None:
        """The shard was down at the start: nobody has seen yet that it has what it must have."""
        name = self.hub.shard_names[self.shard]
        self.deny(SqlError(
            "08006", f"cannot connect to shard {name}: it was down when Foreshard started, and is not in use yet",
            "", "Is it running and reachable? `foreshard check` looks at shards, `foreshard plan` at what they lack.",
        ))

    cdef int on_backend_ready(self, Backend backend) except -1:
        """Start-up, enlisting or DISCARD ALL is complete."""
        cdef bytes text = self.hub.enlist if backend.types is None else self.hub.enlist_at_node
        if text is not None and not backend.is_enlisted:
            self.reset(backend, text)
            backend.is_enlisted = True
            return 0
        backend.has_begun = True
        if self.server_parameters is None:
            self.server_parameters = dict(backend.parameters)
        return self.put(backend)

    cdef int on_backend_gone(self, Backend backend, object error) except -1:
        """Forget a closed backend; when none could connect, tell whoever waits why."""
        if backend not in self.backends:
            return 0
        self.backends.discard(backend)
        self.hub.backend_counts[self.shard] -= 1
        if backend.pid:
            self.hub.lost[self.shard].add(backend.pid)
        if backend in self.idle:
            self.idle.remove(backend)
            self.hub.idle_counts[self.shard] -= 1
        never_ready = not backend.has_begun
        if error is not None and never_ready and not self.backends:
            name = self.hub.shard_names[self.shard]
            message = f"cannot connect to shard {name}: {error.message}"
            told = SqlError(error.sqlstate, message, error.detail, error.hint)
            if error.sqlstate == "08006":
                told.hint = "Is it running and reachable? `foreshard check` looks at every shard."
            self.deny(told)
        elif (self.waiters or self.joiners) and not never_ready and not self.gives_way:
            self.grow()
        return 0

    def expire(self, double now) -> None:
        """Deny who has waited too long; close what has been idle or connecting too long."""
        cdef Owner owner
        cdef Backend backend
        config = self.hub.config.pool
        for line in (self.waiters, self.joiners):
            while line and (<Owner> line[0]).wait_deadline <= now:
                owner = line.popleft()
                self.hub.waiting_count -= 1
                if owner.fd >= 0:
                    owner.on_denied(SqlError(
                        "53300", f"no backend of shard {self.hub.shard_names[self.shard]} became free in time",
                        f"waited {config.wait_timeout_s:g} s; pool.size is {config.size}",
                        "Raise pool.size, or look for long transactions with SHOW CLIENTS.",
                    ))
        while self.idle and now - (<Backend> self.idle[0]).idle_since > config.idle_timeout_s:
            self.discard(self.pop_idle(0))
        for backend in list(self.backends):
            if backend.phase < BACKEND_READY or backend.is_resetting:
                if now - backend.idle_since > config.connect_timeout_s:
                    backend.lose(SqlError("08006", f"no answer within {config.connect_timeout_s:g} s"))
        if self.waiters or self.joiners:
            self.grow()
            starved_at = now + config.wait_timeout_s - STARVING_S
            if self.waiters and not self.backends and starved_at > (<Owner> self.waiters[0]).wait_deadline:
                self.ask_for_room()

    def ask_for_room(self) -> None:
        """Every backend of the shard is another pool's and busy: the largest one gives the next away."""
        cdef Pool pool
        cdef Pool largest = None
        for pool in self.hub.pools.values():
            if pool.shard == self.shard and (largest is None or len(pool.backends) > len(largest.backends)):
                largest = pool
        largest.gives_way = True

    def close_idle(self) -> None:
        """Close every idle backend."""
        while self.idle:
            self.discard(self.pop_idle(-1))
