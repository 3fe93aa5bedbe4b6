"""Statements that write in WITH: where everything they read and write is surely on one shard, it runs there as it is.

Keys are known from conditions and new rows; a row that is made of another's columns (INSERT ... SELECT from a CTE that
returns them) lives where that one does. New roots whose keys the shard generates are placed, and what is made of their
keys goes with them.

Otherwise each shard runs the statement by itself (`ApartWrites`), if that is the same: every write's rows live with its
target's, no write reads what another one has returned, and the outermost query shows rows of one of them, or merges
them as `merge` knows to.
"""

from __future__ import annotations

from foreshard._core.merge_plan import MergePlan
from foreshard._core.template import KeyFlag, Operation, RouteKind, Template
from foreshard.proxy.catalog import Table, TableKind
from foreshard.proxy.catalog.model import key_family
from foreshard.proxy.errors import SqlError, not_built
from foreshard.proxy.routing.collect import Collector, InnerWrite, trace
from foreshard.proxy.routing.functions import Effects, check_shard_local
from foreshard.proxy.routing.locate import Located, Locator, distinct, key_uses, same_domain
from foreshard.proxy.routing.merge import plan_merge
from foreshard.proxy.routing.reads import check_no_plain
from foreshard.proxy.routing.rows import assignments, fired_profiles, insert_columns, value_rows
from foreshard.proxy.routing.scope import Place, Reference, ReferenceKind
from foreshard.proxy.routing.selected import Selected, given_columns, query_values
from foreshard.proxy.routing.tree import Node, unwrap
from foreshard.proxy.routing.wide import differs

HINT = "Name the key in every part of the statement, or send the parts one after the other in a transaction."
FIRED = {"InsertStmt": "insert", "UpdateStmt": "update", "DeleteStmt": "delete"}


def plan_cte_writes(
    collector: Collector, effects: Effects, node: Node, outer: InnerWrite | None, operation: Operation
) -> Template:
    """The route of a statement with writes in WITH; `outer` is the statement itself if it writes, too."""
    check_no_plain(collector)
    check_shard_local(collector)
    writes = [*collector.inner_writes, *([outer] if outer is not None else [])]
    for write in writes:
        check_write(write)
    whereabouts = Whereabouts(collector, effects, writes)
    located, placed = whereabouts.find()
    sharded = [one for one in collector.references if one.kind is ReferenceKind.SHARDED]
    problem, merge = apart(ApartWrites(collector, whereabouts), node, outer)
    is_located = all(one in located or one in placed for one in sharded)
    if (not is_located and (problem is not None or placed)) or (located and placed):
        raise problem or not_built("writes in WITH of placed rows and others", HINT)
    profiles = {
        index for write in writes for index in fired_profiles(table_of(write), FIRED[write.kind]) if write.kind in FIRED
    }
    return Template(
        RouteKind.ROUTE_PLACE if placed else RouteKind.ROUTE_KEYED if is_located else RouteKind.ROUTE_SCATTER,
        operation=operation,
        is_write=True,
        pin=effects.pin,
        table=table_of(writes[0]).qualified,
        keys=() if placed or not is_located else distinct([located[one] for one in sharded]),
        one_shard_refusal=None if placed else problem,
        merge=None if placed else merge,
        profiles=tuple(sorted(profiles)),
        values=query_values(table_of(writes[0])),
        returns="returningList" in node or operation == Operation.OPERATION_SELECT,
        writes_within=True,
        owes_away=any(table_of(write).by_cost for write in writes),
        owes_claims=any(collector.catalog.owes_claims(table_of(write)) for write in writes),
        is_exact=collector.text.is_exact,
        reason="new rows are placed, and the rest follows"
        if placed
        else "every part is restricted to keys"
        if is_located
        else "every shard does its part",
    )


def apart(judge: ApartWrites, node: Node, outer: InnerWrite | None) -> tuple[SqlError | None, MergePlan | None]:
    """Why the shards may not each run the whole statement, None when they may; and how its rows are then merged."""
    problem = judge.problem(node, outer)
    if problem is None and outer is None and judge.collector.levels[0].merges:
        try:
            return None, plan_merge(judge.collector)
        except SqlError as refusal:
            problem = refusal
    return problem, None


class ApartWrites:
    """Judges whether a statement with writes in WITH does on all shards together what it does on each."""

    def __init__(self, collector: Collector, whereabouts: Whereabouts) -> None:
        self.collector = collector
        self.writes = whereabouts.writes
        self.follows = whereabouts.follows
        self.locator = Locator(collector)

    def problem(self, node: Node, outer: InnerWrite | None) -> SqlError | None:
        """Why it does not."""
        seen: set[Reference] = set()
        for write in self.writes:
            own = self.collector.references[write.level.first : write.stop or None]
            seen.update(own)
            found = self.problem_of(write, own)
            if found is not None:
                return found
        if outer is None:
            shown = self.collector.references[self.collector.levels[0].first :]
            seen.update(shown)
            if len(shown) != 1 or not shown[0].cte or "writes" not in self.kind_of(node, shown[0].cte):
                return alone("what they return together with other rows")
        if any(one not in seen for one in self.locator.sharded):
            return alone("reads in WITH beside them")
        return differs(self.collector, node, [self.collector.levels[0], *(write.level for write in self.writes)])

    def problem_of(self, write: InnerWrite, own: list[Reference]) -> SqlError | None:
        """Why one write's rows are not the union of what the shards write."""
        if write.kind == "InsertStmt":
            return None if self.is_made_of_one(write, own) else alone("new rows")
        if write.kind not in ("UpdateStmt", "DeleteStmt"):
            return alone("MERGE")
        if any(one.cte for one in own):
            return alone("what they return in another write")
        tied = self.locator.tied(write.target)
        if any(one.kind is ReferenceKind.SHARDED and one not in tied for one in own):
            return alone("rows of several declared tables")
        return None

    def is_made_of_one(self, write: InnerWrite, own: list[Reference]) -> bool:
        """Whether each new row is made of one that another write has returned, and lives where that one does."""
        source = unwrap(write.node.get("selectStmt"))[1]
        level = next((one for one in self.collector.levels if one.node is source), None)
        targets = [one.target for one in self.writes if one is not write]
        return (
            level is not None
            and not set(level.merges) - {"ORDER BY"}
            and [one for one in own if one is not write.target] == level.references
            and len(level.references) == 1
            and bool(level.references[0].cte)
            and bool(self.follows.get(write.target))
            and all(place[0] in targets for place in self.follows[write.target])
        )

    def kind_of(self, node: Node, name: str) -> str:
        """What a CTE of the outermost query does."""
        for item in node.get("withClause", {}).get("ctes", []):
            fields = unwrap(item)[1]
            if fields.get("ctename") == name:
                return "reads" if unwrap(fields.get("ctequery"))[0] == "SelectStmt" else "writes"
        return ""


def alone(what: str) -> SqlError:
    """The refusal of what one shard must do."""
    return not_built(f"writes in WITH on several shards with {what}", HINT, "One shard must have all of their rows.")


def table_of(write: InnerWrite) -> Table:
    """The sharded table that a write changes."""
    table = write.target.declared
    if table is None or not table.is_sharded:
        raise not_built("writes in WITH of sharded tables beside those of others", HINT)
    return table


def check_write(write: InnerWrite) -> None:
    """Refuse what no write of one shard may do."""
    table = table_of(write)
    if write.kind not in FIRED:
        raise not_built("MERGE with writes in WITH", HINT)
    if write.kind == "UpdateStmt":
        for column, _ in assignments(write.node.get("targetList", [])):
            if column in (*table.key_columns, *table.via_columns):
                raise not_built(f'changing "{column}" of "{table.name}" beside writes in WITH', HINT)


class Whereabouts:
    """Finds where the rows of every part are."""

    def __init__(self, collector: Collector, effects: Effects, writes: list[InnerWrite]) -> None:
        self.collector = collector
        self.effects = effects
        self.writes = writes
        self.inserts = [write for write in writes if write.kind == "InsertStmt"]
        self.keys: Located = {}  # of new rows that give them
        self.placed: set[Reference] = set()
        self.follows: dict[Reference, list[Place]] = {}

    def find(self) -> tuple[Located, set[Reference]]:
        """References with known keys, and those whose new rows are placed together."""
        for write in self.inserts:
            self.read(write)
        locator = Locator(self.collector)
        self.check_params(locator)
        seeds = {target: uses for target, uses in self.keys.items() if target not in self.follows}
        while True:
            located = locator.locate(seeds)
            before = len(seeds) + len(self.placed)
            for target, places in self.follows.items():
                sources = [place[0] for place in places]
                if all(one in self.placed for one in sources) and target not in self.keys:
                    self.placed.add(target)
                elif all(one in located for one in sources):
                    found = (use for one in sources for use in located[one])
                    seeds[target] = (*self.keys.get(target, ()), *found)
            if len(seeds) + len(self.placed) == before:
                return located, self.placed

    def read(self, write: InnerWrite) -> None:
        """Note where the rows of an INSERT live."""
        table = table_of(write)
        columns = insert_columns(table, write.node)
        rows = value_rows(write.node)
        routing = table.routing_column
        source = unwrap(write.node.get("selectStmt"))[1]
        level = next((one for one in self.collector.levels if one.node is source), write.level)
        values: list[Node | Place | None]
        if rows is None:
            given = given_columns(Selected(self.collector, write.node, write.target, table, columns, self.effects))
            values = [given[routing]] if routing in given else []
        else:
            position = columns.index(routing) if routing in columns else len(columns)
            values = [row[position] for row in rows if position < len(row)]
        is_generated = all(isinstance(value, dict) and unwrap(value)[0] == "SetToDefault" for value in values)
        if is_generated and table.kind is TableKind.ROOT and table.generates_key:
            self.placed.add(write.target)
            return
        for value in values:
            self.note(write.target, table, value if isinstance(value, tuple) else trace(level, value), value)

    def note(self, target: Reference, table: Table, place: Place | None, value: Node | Place | None) -> None:
        """Note where one row, or all rows of a query, live."""
        routing = table.routing_column
        if place is not None and same_domain(place, (target, routing)):
            self.follows.setdefault(target, []).append(place)
            return
        key_type = table.type_of(routing)
        keys = None
        if isinstance(value, dict) and key_type is not None:
            keys = self.collector.text.read_keys(value, key_family(key_type))
        if not keys:
            raise not_built(f'"{routing}" of "{table.name}" that is no key, beside writes in WITH', HINT)
        uses = key_uses(self.collector.catalog, table, routing, keys, KeyFlag.KEY_INSERTED)
        self.keys[target] = (*self.keys.get(target, ()), *uses)

    def check_params(self, locator: Locator) -> None:
        """Refuse a parameter that is a new row's key and may be of another type elsewhere."""
        for target, uses in self.keys.items():
            table = target.declared
            key_type = table.type_of(table.routing_column) if table is not None else None
            for use in uses:
                usable = locator.usable.get(use.index)
                if use.flags & KeyFlag.KEY_PARAM and (key_type is None or usable != key_family(key_type)):
                    raise SqlError(
                        "0A000",
                        f"Foreshard does not support ${use.index + 1} both as a key and otherwise yet",
                        hint=f"Write ${use.index + 1}::bigint wherever it stands, or use two parameters.",
                    )
