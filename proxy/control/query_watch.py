"""Keeps what is known of the query node true: what routers may ask it, and what the controller makes anew.

Plain tables change while Foreshard runs. A foreign table that is not as its table is would answer wrongly, so a router
asks the node only about relations whose SQL, made now from the default shard, has the digest that the node was made
with. Both sides are looked at each second, by one cheap query as long as nothing changes; what a client of the router
itself changes is in doubt from that moment on. Routers and controllers tell each other on NODE_CHANNEL of the first
shard when the node is behind and when it has been made anew, so that statements need not wait for the next second.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from foreshard.proxy.catalog import Catalog, QueryNode
from foreshard.proxy.config import Config
from foreshard.proxy.control.derive import build_catalog
from foreshard.proxy.control.introspect import Connection, introspect
from foreshard.proxy.control.query_node import database_of, left_out, make_query_node, plan_query_node, query_node_dsn
from foreshard.proxy.control.query_schema import query_node_steps, read_function_names
from foreshard.proxy.control.retry import LOST, connect
from foreshard.proxy.control.spread_facts import read_plain, without
from foreshard.proxy.control.steps import read_applied
from foreshard.proxy.errors import ForeshardError

NODE_CHANNEL = "foreshard_node"
LOOK_INTERVAL_S = 1.0
BEHIND_MAX_S = 5.0  # a node that has not followed by then will not soon: nobody waits for it; chosen, not measured
DOUBT_INTERVAL_S = 0.05  # at least between a doubt and the look that follows it; chosen, not measured
SHOWN_MAX = 5  # objects named when the node was made anew
USER_OID_MIN = 16384  # PostgreSQL's FirstNormalObjectId
CATALOGS = {
    "pg_class": "oid",
    "pg_attribute": "attrelid",
    "pg_type": "oid",
    "pg_proc": "oid",
    "pg_rewrite": "oid",
    "pg_constraint": "oid",
    "pg_enum": "oid",
    "pg_namespace": "oid",
    "pg_collation": "oid",
    "pg_extension": "oid",
    "pg_db_role_setting": "16384 + setdatabase",
}
# Another text whenever a row of these catalogs was added, changed or removed.
STATE = "SELECT concat_ws(' ', {})".format(
    ", ".join(
        f"(SELECT count(*) || '/' || sum(xmin::text::bigint) FROM {name} WHERE {column}::bigint >= {USER_OID_MIN})"
        for name, column in CATALOGS.items()
    )
)
NODE_STATE = "SELECT count(*) || ' ' || max(applied_at) FROM foreshard.applied"
PRESENT = """
SELECT n.nspname || '.' || c.relname AS name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'f', 'v') AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'foreshard')
"""
TYPES = f"""
SELECT n.nspname || '.' || t.typname AS name, t.oid::bigint AS oid
FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
WHERE t.oid >= {USER_OID_MIN} AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'foreshard')
"""


@dataclass
class Seen:
    """What one look has found."""

    node: QueryNode | None = None
    types: dict[int, int] = field(default_factory=dict)  # of users' types: oid on the node -> on the default shard


class QueryWatch:
    """Looks at node and default shard for one router, and tells it of every change. Owns two connections."""

    def __init__(self, config: Config, catalog: Catalog, tell: Callable[[Seen], None]) -> None:
        self.config = config
        self.catalog = catalog
        self.dsn = query_node_dsn(config)
        self._tell = tell
        self._seen = Seen()
        self._state: tuple[str, str] | None = None
        self._doubts = 0
        self._is_doubted = asyncio.Event()
        self._behind_since: float | None = None
        self._shard: Connection | None = None
        self._node: Connection | None = None

    async def run(self) -> None:
        """Look until cancelled: each second, and soon after somebody here has changed the schema."""
        while True:
            interval_s = None if self.dsn is None else LOOK_INTERVAL_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(interval_s):  # wait_for may lose a cancellation that meets the event
                    await self._is_doubted.wait()
                await asyncio.sleep(DOUBT_INTERVAL_S)
            self._is_doubted.clear()
            await self.look()

    def doubt(self) -> None:
        """Someone changes the schema: until the next look, only declared tables are sure to be as they were."""
        self._doubts += 1
        self._is_doubted.set()
        self._state = None
        if self._seen.node is not None and not self._seen.node.is_only_shard:
            sure = self._seen.node.relations & self.catalog.tables.keys()
            self._report(Seen(QueryNode(relations=sure, is_behind=True), self._seen.types))

    def follow(self, catalog: Catalog) -> None:
        """Declared tables have changed: nothing on the node is sure to be as it was before the next look."""
        self.catalog = catalog
        self._doubts += 1
        self._is_doubted.set()
        self._state = None
        if self._seen.node is not None and not self._seen.node.is_only_shard:
            self._report(Seen(QueryNode(is_behind=True), self._seen.types))

    def follow_shards(self, config: Config) -> None:
        """The shards are these from now on: the node has to be made for them."""
        self.config, self.dsn = config, query_node_dsn(config)
        self.close()
        self._doubts += 1
        self._is_doubted.set()
        self._state = self._behind_since = None
        self._report(Seen(QueryNode(is_behind=True), self._seen.types) if self.dsn is not None else Seen())

    async def look(self) -> None:
        """Look once. What cannot be reached is not there."""
        if len(self.config.shards) == 1:
            return self._report(Seen(QueryNode(is_only_shard=True)))
        if self.dsn is None:
            return None
        doubts = self._doubts
        try:
            found = await self._read(self.dsn)
        except LOST:
            self.close()
            self._state, found = None, Seen()
        if doubts != self._doubts:
            self._state = None  # the schema has changed meanwhile: the next look shall not take it for known
        elif found is not None:
            self._report(found)
        return None

    def close(self) -> None:
        """Give the connections up."""
        for connection in (self._shard, self._node):
            if connection is not None:
                connection.terminate()
        self._shard = self._node = None

    def _report(self, found: Seen) -> None:
        if found != self._seen:
            self._seen = found
            self._tell(found)

    async def _read(self, dsn: str) -> Seen | None:
        """What is there; None when nothing has changed since the last look."""
        if self._shard is None or self._node is None:
            self.close()
            self._shard = await connect(self.config.shards[0].dsn)
            await self._shard.add_listener(NODE_CHANNEL, lambda *_: self._is_doubted.set())
            self._node = await connect(dsn)
        state = await self._shard.fetchval(STATE), await self._node.fetchval(NODE_STATE)
        if state == self._state:
            return self._give_up()
        async with self._shard.transaction(readonly=True, isolation="repeatable_read"):
            steps = await query_node_steps(self.config, self.catalog, self._shard, database_of(dsn))
            functions = await read_function_names(self._shard)
            types = {row["name"]: row["oid"] for row in await self._shard.fetch(TYPES)}
        async with self._node.transaction(readonly=True, isolation="repeatable_read"):
            applied = await read_applied(self._node)
            present = {row["name"] for row in await self._node.fetch(PRESENT)}
            oids = {row["oid"]: types[row["name"]] for row in await self._node.fetch(TYPES) if row["name"] in types}
        self._state = state
        current = {step.object for step in steps if applied.get(step.object) == step.digest}
        relations = frozenset(name for name in present if f"relation {name}" in current)
        if len(current) < len(steps):  # what a view or function reads may have changed, although it did not itself
            self._behind_since = asyncio.get_running_loop().time()
            await self._shard.execute(f"NOTIFY {NODE_CHANNEL}")
            return Seen(QueryNode(relations=relations - self.catalog.views.keys(), is_behind=True), oids)
        self._behind_since = None
        made = current - set(left_out(applied))
        safe = frozenset(name for name, labels in functions.items() if labels <= made)
        return Seen(QueryNode(relations=relations, functions=safe), oids)

    def _give_up(self) -> Seen | None:
        """The node stays as it is for too long: it is not behind any more, but without what it lacks."""
        node, since = self._seen.node, self._behind_since
        if node is None or since is None or asyncio.get_running_loop().time() < since + BEHIND_MAX_S:
            return None
        self._behind_since = None
        return Seen(msgspec.structs.replace(node, is_behind=False), self._seen.types)


class QueryKeeper:
    """Makes the query node anew when the default shard has changed. Run by the controller; makes no database."""

    def __init__(self, config: Config, report: Callable[[str], None]) -> None:
        self.config = config
        self.dsn = query_node_dsn(config)
        self._report = report
        self._state = ""
        self._said = ""
        self._is_wanted = asyncio.Event()
        self._shard: Connection | None = None

    async def run(self, stopping: asyncio.Event) -> None:
        """Keep it current until `stopping` is set."""
        while self.dsn is not None and not stopping.is_set():
            try:
                await self._keep()
                self._said = ""
            except (*LOST, ForeshardError) as error:
                self._lose()
                if str(error) != self._said:
                    self._said = str(error)
                    self._report(f"the query node is not kept current: {self._said}")
            await self._pause(stopping)
        self._lose()

    async def _pause(self, stopping: asyncio.Event) -> None:
        """Until the next look, which is at once when a router tells that the node is behind."""
        waiting = [asyncio.ensure_future(event.wait()) for event in (stopping, self._is_wanted)]
        try:
            await asyncio.wait(waiting, timeout=LOOK_INTERVAL_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
        self._is_wanted.clear()

    def _lose(self) -> None:
        if self._shard is not None:
            self._shard.terminate()
        self._shard, self._state = None, ""

    async def _keep(self) -> None:
        if self._shard is None:
            self._shard = await connect(self.config.shards[0].dsn)
            await self._shard.add_listener(NODE_CHANNEL, lambda *_: self._is_wanted.set())
        state = await self._shard.fetchval(STATE)
        if state == self._state:
            return
        async with self._shard.transaction(readonly=True, isolation="repeatable_read"):
            config = without(self.config, await read_plain(self._shard, self.config))
            catalog = build_catalog(config, await introspect(self._shard, config, config.shards[0].name))
            work, _ = await plan_query_node(config, catalog, self._shard)
        if work is not None and work.creation is None and work.all_lacking:
            await make_query_node(work, self._report)
            changed = [step.object for step in work.all_lacking]
            more = f" and {len(changed) - SHOWN_MAX} more" if len(changed) > SHOWN_MAX else ""
            await self._shard.execute(f"NOTIFY {NODE_CHANNEL}")
            self._report(f"the query node has been made anew: {', '.join(changed[:SHOWN_MAX])}{more}")
        self._state = state
