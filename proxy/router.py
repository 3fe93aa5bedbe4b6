"""The router process: listens, relays, routes (`foreshard router`, started by `foreshard serve`).

Everything per message is in proxy/wire; this is the shell around it: sockets to listen on, timers, signals, the console
and what it asks, cancel requests.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec
import uvloop

from foreshard._core.placement import Placer
from foreshard._core.shared import SharedState
from foreshard._core.statement_cache import StatementCache
from foreshard._core.template import Completion, Template
from foreshard.proxy.admin import (
    Console,
    console_greeting,
    encode_results,
    explain_result,
    refuse_extended,
)
from foreshard.proxy.admin.results import Column, encode_row_description
from foreshard.proxy.catalog import Catalog
from foreshard.proxy.config import Config, load_config
from foreshard.proxy.control import TwoPhase, query_node_dsn, read_catalog, read_owners, read_two_phase
from foreshard.proxy.control.absent import UNCHECKED_HELP, Arrivals
from foreshard.proxy.control.counters import raise_counters
from foreshard.proxy.control.deadlock import DeadlockWatch, explain_deadlock
from foreshard.proxy.control.outcome import copy_outcome
from foreshard.proxy.control.parents import Parents
from foreshard.proxy.control.placing import Placing
from foreshard.proxy.control.query_watch import QueryWatch, Seen
from foreshard.proxy.control.retry import LOST, end_tasks
from foreshard.proxy.control.schema_barrier import STALE, Place, is_milder, take_barrier
from foreshard.proxy.control.schema_change import complete_schema, run_alone
from foreshard.proxy.control.schema_watch import SchemaWatch
from foreshard.proxy.control.shard_gate import ShardGate
from foreshard.proxy.control.shard_list import current
from foreshard.proxy.control.waits import Cycle, OpenTransaction
from foreshard.proxy.embedded import served
from foreshard.proxy.errors import ForeshardError, SqlError
from foreshard.proxy.placement import open_state
from foreshard.proxy.profiles import profile_keys
from foreshard.proxy.router_views import RouterViews
from foreshard.proxy.routing import Planner
from foreshard.proxy.routing.session import SETVAL
from foreshard.proxy.triggers.points import control_point
from foreshard.proxy.wire.backend import Backend
from foreshard.proxy.wire.endpoint import Endpoint, Listener, Reactor
from foreshard.proxy.wire.explain import explain_route
from foreshard.proxy.wire.frontend import Frontend
from foreshard.proxy.wire.pool import Hub

HOUSEKEEPING_S = 0.25
DRAIN_S = 10.0  # how long open transactions may go on after SIGTERM
ACCEPT_PAUSE_S = 0.25  # after running out of descriptors
BACKLOG = 1024

log = logging.getLogger("foreshard.router")


@dataclass(frozen=True)
class ShardAddress:
    """Where a shard listens, resolved once at start."""

    family: int
    address: Any
    host: str
    port: int
    database: str
    user: str


def resolve_address(name: str, dsn: str) -> ShardAddress:
    """The address in a postgresql:// DSN. ForeshardError when it cannot be resolved."""
    parts = urlsplit(dsn)
    query = parse_qs(parts.query)
    host = unquote(parts.hostname or query.get("host", ["127.0.0.1"])[0])
    port = parts.port or int(query.get("port", ["5432"])[0])
    user = unquote(parts.username or query.get("user", ["postgres"])[0])
    database = unquote(parts.path.lstrip("/")) or user
    if host.startswith("/"):
        return ShardAddress(socket.AF_UNIX, f"{host}/.s.PGSQL.{port}", host, port, database, user)
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ForeshardError(f"shard {name}: cannot resolve {host}: {error.strerror or error}") from error
    return ShardAddress(family, address, host, port, database, user)


def resolve_addresses(config: Config, is_start: bool = True) -> tuple[list[ShardAddress], ShardAddress | None]:
    """Where the shards listen, and the query node. ForeshardError when that cannot be resolved at the start; later such
    a shard is down, and the others are served.
    """
    query_dsn = query_node_dsn(config)
    dsns = [(shard.name, shard.dsn) for shard in config.shards]
    found: list[ShardAddress] = []
    for name, dsn in [*dsns, *([("query", query_dsn)] if query_dsn is not None else [])]:
        try:
            found.append(resolve_address(name, dsn))
        except ForeshardError as error:
            if is_start:
                raise
            log.error("%s; it is taken for down until this proxy is started again", error)
            found.append(ShardAddress(socket.AF_INET, ("127.0.0.1", 0), "127.0.0.1", 0, "", ""))
    return found[: len(dsns)], found[len(dsns)] if query_dsn is not None else None


class Router:
    """One router: its reactor, hub and listeners; what proxy/wire asks for (`services`); the console's sources."""

    def __init__(
        self, config: Config, catalog: Catalog, loop: asyncio.AbstractEventLoop, two_phase: TwoPhase | None
    ) -> None:
        self.config = config
        self.catalog = catalog
        self.loop = loop
        self.state: SharedState = open_state(config)
        self.placer = Placer(self.state, config.placement.policy, config.placement.bound)
        self.cache = StatementCache(
            Planner(catalog).plan,
            config.limits.statement_cache_entries_max,
            seed=int.from_bytes(os.urandom(8), "big"),
        )
        self.reactor = Reactor(loop, self.report_failure)
        self.hub = Hub(
            self.reactor,
            loop,
            config,
            self.cache,
            self.state,
            self.placer,
            self,
            *resolve_addresses(config),
            bool(config.tables),
            two_phase.cluster if two_phase else "",
            two_phase is not None and len(two_phase.ready) == len(config.shards),
        )
        self.profile_names = [f"{key.function} on {key.operation}" for key in profile_keys(config)]
        self.views = RouterViews(config, catalog, self.hub, self.placer, loop)
        self.console = Console(self.views)
        self.starting: dict[Frontend, float] = {}
        self.listener: socket.socket | None = None
        self.reading: Listener | None = None
        self.tasks: set[asyncio.Task[None]] = set()
        self.deadlocks = DeadlockWatch(config, self.list_busy, self.break_deadlock)
        self.two_phase = two_phase
        self.shard_gate = ShardGate(config, two_phase.cluster if two_phase else "")
        self.parents = Parents(config.shards)
        self.placing = Placing(config, self.state, self.hub) if config.tables else None
        self.query_watch = QueryWatch(config, catalog, self.follow_query_node)
        self.schema_watch = SchemaWatch(config, catalog, self.follow_schema, self)
        self.arrivals = Arrivals(config, self.state, self.hub.unchecked, self._take_in)
        self.versions = itertools.count(catalog.version + 1)
        self.is_ending = False  # no statement begins any more

    # -- life ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Listen."""
        listener = socket.socket(socket.AF_INET6 if ":" in self.config.listen_host else socket.AF_INET)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setblocking(False)
        try:
            listener.bind((self.config.listen_host, self.config.listen_port))
        except OSError as error:
            where = f"{self.config.listen_host}:{self.config.listen_port}"
            raise ForeshardError(f"cannot listen on {where}: {error.strerror}") from error
        listener.listen(BACKLOG)
        self.listener = listener
        self.reading = Listener(self.reactor, os.dup(listener.fileno()), self.accept)
        self.loop.call_later(HOUSEKEEPING_S, self.keep_house)
        for work in (self.deadlocks.run, self.schema_watch.run) if self.config.tables else ():
            self._keep(work())
        if self.placing is not None:
            self._keep(self.placing.run())
        self._keep(self.query_watch.run())
        self._keep(self.arrivals.run())

    def accept(self) -> None:
        """Take every connection that waits."""
        assert self.listener is not None
        while True:
            try:
                connection, address = self.listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:
                log.warning("cannot accept connections for %g s: %s", ACCEPT_PAUSE_S, error.strerror)
                self.pause_accepting(True)
                self.loop.call_later(ACCEPT_PAUSE_S, self.pause_accepting, False)
                return
            try:
                connection.setblocking(False)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                frontend = Frontend(self.hub, connection.detach(), address)
            except OSError as error:  # of this connection: the next may be better
                log.warning("cannot take a connection: %s", error.strerror)
                connection.close()
                continue
            self.starting[frontend] = self.loop.time() + self.config.limits.startup_timeout_s

    def pause_accepting(self, paused: bool) -> None:
        """Leave new connections waiting until descriptors may have become free."""
        if self.reading is not None and self.reading.fd >= 0:
            self.reading.pause(paused)

    def keep_house(self) -> None:
        """Deadlines: pools, start-ups, idle backends."""
        self.loop.call_later(HOUSEKEEPING_S, self.keep_house)
        self.hub.run_housekeeping()
        self.hub.waker.list_workers()
        now = self.loop.time()
        for frontend, deadline in list(self.starting.items()):
            if not frontend.is_starting() or frontend.fd < 0:
                del self.starting[frontend]
            elif now > deadline:
                del self.starting[frontend]
                frontend.terminate(SqlError("08P01", "start-up took too long", "", "limits.startup_timeout bounds it."))

    def _take_in(self, can_prepare: bool) -> None:
        """A shard that was down at the start is in use."""
        self.hub.two_phase = can_prepare
        self.doubt_schema()

    async def stop(self) -> None:
        """Accept no more, let transactions end within DRAIN_S, close everything."""
        if self.listener is not None:
            self.listener.close()
        if self.reading is not None:
            self.reading.stop()
        self.hub.drain()
        gone = SqlError("57P01", "terminating connection due to administrator command")
        deadline = self.loop.time() + DRAIN_S
        while self.hub.sessions and self.loop.time() < deadline:
            for session in list(self.hub.sessions.values()):
                if session.is_idle():
                    session.terminate(gone)
            await asyncio.sleep(0.02)
        for session in list(self.hub.sessions.values()):
            session.terminate(gone)
        for part in (self.deadlocks, self.shard_gate, self.parents, self.query_watch, self.schema_watch, self.placing):
            if part is not None:
                part.close()
        self.reactor.stop()
        self.hub.waker.stop()

    def report_failure(self, endpoint: Endpoint, error: Exception) -> None:
        """A mistake of ours: that connection ends, the others go on."""
        log.error("a connection failed inside Foreshard and is closed", exc_info=error)
        told = SqlError("XX000", "Foreshard failed on this connection; its log has the details")
        if isinstance(endpoint, Frontend):
            endpoint.terminate(told)
        elif isinstance(endpoint, Backend):
            endpoint.fail(told)

    # -- services for proxy/wire -----------------------------------------------------------------------------------

    def cancel(self, pid: int, secret: bytes, asker: Frontend | None = None) -> None:
        """Pass a cancel request on to the backends that work for that client now.

        The connection that asked ends when the shards have taken the request, so that it hits nothing sent after that.
        """
        session = self.hub.sessions.get((pid, secret))
        backends = []
        if session is not None:
            session.cancel_wait()
            backends = session.busy_backends()
        for backend in backends:
            backend.begin_cancel()
        self._keep(self._cancel_all(backends, asker))

    async def _cancel_all(self, backends: list[Backend], asker: Frontend | None) -> None:
        await asyncio.gather(*map(self._cancel, backends))
        if asker is not None:
            asker.end_request()

    async def _cancel(self, backend: Backend) -> None:
        """One CancelRequest; the backend goes to nobody else until the shard has taken it."""
        address = self.hub.addresses[backend.shard]
        packet = (12 + len(backend.secret)).to_bytes(4, "big") + (80877102).to_bytes(4, "big")
        packet += backend.pid.to_bytes(4, "big") + backend.secret
        is_delivered = False
        try:
            async with asyncio.timeout(self.config.pool.connect_timeout_s):
                if address.family == socket.AF_UNIX:
                    reader, writer = await asyncio.open_unix_connection(address.address)
                else:
                    reader, writer = await asyncio.open_connection(address.host, address.port)
                try:
                    writer.write(packet)
                    await reader.read(1)
                    is_delivered = True
                finally:
                    writer.close()
        except (OSError, TimeoutError) as error:
            name = self.hub.shard_names[backend.shard]
            log.warning("a cancel request may not have reached shard %s: %s", name, error or "no answer in time")
        finally:
            backend.end_cancel(is_delivered)

    def hold_gate(self) -> None:
        """Somebody wants snapshots of all shards."""
        self._keep(self.shard_gate.serve(self.hub.gate))

    def release_gate(self) -> None:
        """Whoever was let in has them."""
        self.shard_gate.note_opened()

    def list_busy(self) -> list[OpenTransaction]:
        """Transactions on several shards of which a statement is under way."""
        return [
            OpenTransaction(
                session.pid,
                frozenset((backend.shard, backend.pid) for backend in session.links),
                session.commit_id or "",
            )
            for session in self.hub.sessions.values()
            if len(session.links) > 1 and session.busy_backends()
        ]

    def break_deadlock(self, victim: OpenTransaction, cycle: Cycle) -> None:
        """Cancel what a transaction waits for in a deadlock over several shards."""
        told = explain_deadlock(victim, cycle, [shard.name for shard in self.config.shards])
        log.warning("%s: %s", told.message, told.detail)
        waiting = {wait.place for wait in cycle.waits} & victim.places
        for session in self.hub.sessions.values():
            if session.pid == victim.client:
                for backend in session.busy_backends():
                    if (backend.shard, backend.pid) in waiting:
                        backend.break_deadlock(told)
                        backend.begin_cancel()
                        self._keep(self._cancel(backend))

    console_greeting = staticmethod(console_greeting)
    refuse_extended = staticmethod(refuse_extended)

    def ask_console(self, frontend: Frontend, sql: str) -> None:
        """Answer a console command when its answer is known."""
        self._keep(self._ask_console(frontend, sql))

    async def _ask_console(self, frontend: Frontend, sql: str) -> None:
        try:
            answer = encode_results(await self.console.execute(sql))
        except SqlError as error:
            answer = error.encode()
        except Exception:
            log.exception("the console failed on %r", sql)
            answer = SqlError("XX000", "Foreshard failed on this command; its log has the details").encode()
        frontend.give_answer(answer)

    def explain(self, frontend: Frontend, template: Any, literals: Any, params: Any) -> bytes:
        """The rows and CommandComplete of EXPLAIN (FORESHARD)."""
        claims = frontend.claimed, frontend.key_homes
        told = explain_route(self.hub, template, literals, params, frontend.only_shard(), *claims)
        told["functions"] = [self.profile_names[index] for index in told.pop("profiles")]
        table = self.catalog.tables.get(str(told["table"]))
        decision: Any = told["decision"]
        if decision and told["operation"] == "insert" and decision["reason"] == "key" and table and table.parent:
            decision["reason"] = "parent"
        result = explain_result(told, self.hub.shard_names)  # type: ignore[arg-type]
        whole = encode_results([result])
        return whole[len(encode_row_description(result.columns)) :]

    def explain_description(self) -> bytes:
        """The RowDescription of EXPLAIN (FORESHARD)."""
        return encode_row_description((Column("QUERY PLAN"),))

    def find_parents(self, frontend: Frontend, splitter: Any, *asked: Any) -> None:
        """Tell where the parents of copied rows live (control/parents.Parents.find)."""
        self._keep(self._find_parents(frontend, splitter, asked))

    async def _find_parents(self, frontend: Frontend, splitter: Any, asked: tuple[Any, ...]) -> None:
        try:
            frontend.take_parents(splitter, await self.parents.find(*asked), None)
        except SqlError as error:
            frontend.take_parents(splitter, {}, error)
        except Exception as error:
            self.report_failure(frontend, error)

    def follow_query_node(self, seen: Seen) -> None:
        """From now on the query node is asked what it has now."""
        self._take_catalog(msgspec.structs.replace(self.catalog, query_node=seen.node))
        self.hub.query_types, self.hub.has_query_node = seen.types, seen.node is not None
        self.hub.retry_behind()

    def doubt_schema(self) -> None:
        """A client changes the schema, or has just done so."""
        self.query_watch.doubt()
        self.schema_watch.doubt()

    def follow_schema(self, catalog: Catalog) -> None:
        """The declared tables are now these, by a transaction of a client's here, or of somebody else's."""
        control_point("schema-followed")
        self._take_catalog(msgspec.structs.replace(catalog, query_node=self.catalog.query_node))
        self.query_watch.follow(self.catalog)
        self.schema_watch.catalog = self.catalog

    def _take_catalog(self, catalog: Catalog) -> None:
        self.catalog = self.views.catalog = msgspec.structs.replace(catalog, version=next(self.versions))
        self.cache.invalidate(Planner(self.catalog).plan, self.catalog.version)
        self.hub.statements.clear()

    def announce_schema(self, catalog: Catalog) -> Any:
        """The script in front of the COMMIT of another catalog."""
        shard_count = len(self.config.shards)
        return take_barrier(shard_count, is_milder(self.catalog, catalog), self.schema_watch.announce)

    def follow_shards(self, config: Config) -> None:
        """The shards are these from now on: no statement is under way, but some that have begun before."""
        was_alone, names = len(self.config.shards) == 1, [shard.name for shard in self.config.shards]
        self.config = self.views.config = config
        found = [shard.name for shard in config.shards]
        if found == names:
            return  # weights
        control_point("shards-noticed")
        both = min(len(found), len(names))
        if found[:both] != names[:both] or any(self.hub.uses_place(index) for index in range(both, len(found))):
            return self.begin_anew()
        self.hub.follow_shards(config, *resolve_addresses(config, is_start=False))
        self.hub.two_phase = self.hub.two_phase or was_alone  # none is taken in that cannot prepare
        for part in (self.deadlocks, self.shard_gate, self.query_watch, *([self.placing] if self.placing else ())):
            part.follow_shards(config)
        self.parents.follow_shards(config.shards)
        self.arrivals.config = config
        self._take_catalog(self.catalog)
        log.info("the shards are %s from now on", ", ".join(shard.name for shard in config.shards))

    def begin_anew(self) -> None:
        """Shards have taken others' places: what is open goes by the old ones. Statements are held until the end."""
        log.warning("the places of shards have changed: this router ends, and its clients have to connect again")
        self.hub.hold()
        self.is_ending = True
        gone = SqlError(
            "57P01", "terminating connection: the list of shards has changed", hint="Connect again; nothing is wrong."
        )
        for session in list(self.hub.sessions.values()):
            session.terminate(gone)
        os.kill(os.getpid(), signal.SIGTERM)

    def hold_statements(self) -> None:
        """Begin none from now on: a change of the schema is being committed."""
        self.hub.hold()

    def release_statements(self) -> None:
        """Go on with those that were held back."""
        if not self.is_ending:
            self.hub.release()

    def list_working(self) -> set[Place]:
        """Backends that owe clients answers."""
        busy = (session.busy_backends() for session in self.hub.sessions.values())
        return {(backend.shard, backend.pid) for backends in busy for backend in backends}

    def cancel_stale(self, places: Iterable[Place]) -> None:
        """Cancel statements that were planned by a catalog that is about to be another's."""
        stale = set(places)
        for session in self.hub.sessions.values():
            for backend in session.busy_backends():
                if (backend.shard, backend.pid) in stale:
                    backend.break_deadlock(STALE)
                    backend.begin_cancel()
                    self._keep(self._cancel(backend))

    def plan_by(self, cache: StatementCache, catalog: Catalog) -> None:
        """A cache of its own for a transaction that has changed the schema: the query node is not asked in it."""
        node = self.catalog.query_node if len(self.config.shards) == 1 else None
        own = msgspec.structs.replace(catalog, query_node=node, version=next(self.versions))
        cache.invalidate(Planner(own).plan, own.version)

    def complete_alone(self, text: bytes) -> Any:
        """The script of a statement that every shard runs by itself; its result is the catalog from then on."""
        return run_alone(self.config, self.catalog, text)

    def complete(self, template: Template, schema: Catalog | None) -> Any:
        """The script that follows a statement (Template.completion)."""
        assert self.two_phase is not None
        if template.name == SETVAL:
            return raise_counters(self.catalog, str(template.table), len(self.config.shards))
        if template.completion == Completion.COMPLETE_ROWS:
            return copy_outcome(len(self.config.shards))
        cluster = self.two_phase.cluster, self.two_phase.first_count
        return complete_schema(self.config, schema or self.catalog, cluster)

    def _keep(self, work: Any) -> None:
        task = self.loop.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


async def serve(config: Config, unchecked: Collection[str] = ()) -> int:
    """Route until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    config = await current(config) if config.tables else config  # the supervisor may not have heard of a change yet
    catalog = await read_catalog(config)
    router = Router(config, catalog, loop, await read_two_phase(config) if config.tables else None)
    router.arrivals.leave_out(unchecked)
    if router.placing is not None:
        # The map of the shards themselves follows; this one may name a shard that was let go just now.
        owners = [owner if owner < len(config.shards) else 0 for owner in await read_owners(config)]
        router.state.set_bucket_map(owners, router.state.epoch)
        await router.placing.begin(router.hub.unchecked)
    await router.query_watch.look()
    if config.tables:
        with contextlib.suppress(*LOST):  # it looks again soon
            await router.schema_watch.look()
    router.start()
    finished = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, finished.set)
    log.info("listening on %s:%d, %d shards", config.listen_host, config.listen_port, len(config.shards))
    await finished.wait()
    await router.stop()
    await end_tasks()
    return 0


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `foreshard router`."""
    parser.add_argument("-c", "--config", required=True, type=Path, metavar="FILE", help="configuration (YAML)")
    parser.add_argument("--unchecked", action="append", default=[], metavar="NAME", help=UNCHECKED_HELP)


def run(arguments: argparse.Namespace) -> int:
    """Run the router in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard if hard != resource.RLIM_INFINITY else soft, hard))
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    config = served(load_config(arguments.config, os.environ))
    return uvloop.run(serve(config, arguments.unchecked))
