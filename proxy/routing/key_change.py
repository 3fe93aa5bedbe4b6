"""UPDATE of the columns that say where a row lives.

As far as a row stays on its shard, PostgreSQL does all of it there: its primary key and foreign keys hold, for the new
key's home is on this shard as well. Where the row, or what lives with it, is known by its bucket (`Change.KEEPS`), it
has to stay in its bucket. Other rows move: deleted on one shard, inserted on the other (moving.py).
"""

from __future__ import annotations

import enum
from dataclasses import replace
from typing import Any

from foreshard._core.carry_plan import CarryPlan
from foreshard._core.template import KeyFlag, RouteKind, Template
from foreshard.proxy.catalog import Catalog, Table, TableKind
from foreshard.proxy.catalog.model import key_family
from foreshard.proxy.errors import SqlError, not_built
from foreshard.proxy.routing.collect import Collector
from foreshard.proxy.routing.functions import Effects
from foreshard.proxy.routing.locate import KeyUse, Locator, chained, distinct, key_uses, locate_all
from foreshard.proxy.routing.moving import plan_move
from foreshard.proxy.routing.rows import Pairs, write_template
from foreshard.proxy.routing.scope import Reference
from foreshard.proxy.routing.tree import Node

HINT = "Insert a new row and delete the old one."
ONLY_SHARD = "Rows that live with it are known by the bucket of its key: a second shard would not find them."


class Change(enum.Enum):
    """What an UPDATE may do to the place of its rows."""

    NONE = enum.auto()
    HOME = enum.auto()  # keys change; a row may stay on its shard whatever its bucket
    KEEPS = enum.auto()  # a row may stay only if it stays in its bucket, else it moves
    FIXED = enum.auto()  # a row has to stay in its bucket: its own key names that


def check_changed(catalog: Catalog, table: Table, columns: list[str]) -> Change:
    """Whether an UPDATE sets columns by which rows are found; SqlError when that cannot be."""
    found = Change.NONE
    for column in columns:
        if column in table.routing_columns:
            found = change_of(catalog, table)
        elif column in table.key_columns:
            is_domain = any(child.domain_of_via == table.qualified for child in catalog.tables.values())
            if not table.takes_keys or is_domain:
                raise refused(table, column, "Rows are found by it.")
    return found


def change_of(catalog: Catalog, table: Table) -> Change:
    """The same for one of the routing columns."""
    if table.kind is TableKind.CHILD:
        return Change.KEEPS if table.takes_keys else Change.FIXED
    if table.by_cost or any(child.is_placeable for child in descendants(catalog, table)):
        return Change.KEEPS
    return Change.HOME


def is_referenced(catalog: Catalog, table: Table) -> bool:
    """Whether rows of other tables live with rows of this one."""
    return any(table.qualified in (child.parent, child.domain_of_via) for child in catalog.tables.values())


def descendants(catalog: Catalog, table: Table) -> list[Table]:
    """The tables whose rows live with a table's rows."""
    found = [child for child in catalog.tables.values() if child.parent == table.qualified]
    return [*found, *(below for child in found for below in descendants(catalog, child))]


class KeyChange:
    """An UPDATE of columns that say where rows live, while it is planned."""

    def __init__(self, collector: Collector, node: Node, target: Reference, pairs: Pairs, change: Change) -> None:
        assert target.declared is not None
        self.collector = collector
        self.node = node
        self.target = target
        self.table = target.declared
        self.pairs = pairs
        self.change = change
        self.problem_column = next(column for column, _ in pairs if column in self.table.routing_columns)
        self.problem = elsewhere(self.table, self.problem_column)
        known = collector.catalog.query_node
        self.is_only_shard = known is not None and known.is_only_shard

    def plan(self, effects: Effects) -> Template:
        """By keys where all of them are known, else over the router; SqlError when neither can be."""
        if self.is_only_shard and self.change is not Change.HOME:
            raise refused(self.table, self.problem_column, ONLY_SHARD)
        locator = Locator(self.collector)
        try:
            keys = self.keys(locator)
        except SqlError as problem:
            # A row whose key stays what it was could not be told from one that others may not refer to any more.
            if self.is_bound or is_referenced(self.collector.catalog, self.table):
                raise
            carry = plan_move(self.collector.text, self.node, self.table, problem)
            return self.template(effects, RouteKind.ROUTE_CARRY, carry=carry, reason="rows move to other shards")
        return self.template(
            effects,
            RouteKind.ROUTE_KEYED,
            keys=keys,
            keeps_bucket=self.change is not Change.HOME,
            one_shard_refusal=self.problem,
            carry=self.carry(locator),
            reason="restricted to keys",
        )

    @property
    def is_bound(self) -> bool:
        """Whether the rows have to stay on their shard."""
        return self.is_only_shard or self.change is Change.FIXED

    def keys(self, locator: Locator) -> tuple[tuple[int, int, str], ...]:
        """The keys that the rows have, and those that they will have."""
        locate_all(locator, self.target, self.table, self.problem)
        found = new_keys(locator, self.target, self.table, self.pairs)
        return distinct([*locator.locate().values(), found])

    def carry(self, locator: Locator) -> CarryPlan | None:
        """How the rows move when the keys lie apart; None when they cannot."""
        uses = locator.locate()[self.target]
        is_one = len(uses) == 1 and not uses[0].flags & KeyFlag.KEY_ARRAY
        if self.is_bound or not (is_one or not is_referenced(self.collector.catalog, self.table)):
            return None
        try:
            return plan_move(self.collector.text, self.node, self.table, self.problem)
        except SqlError:
            return None

    def template(self, effects: Effects, route: RouteKind, carry: CarryPlan | None, **fields: Any) -> Template:
        """The Template; with texts of the router's own it is one of this very text."""
        return write_template(
            self.collector,
            effects,
            "UpdateStmt",
            self.node,
            self.table,
            self.pairs,
            route,
            carry=carry,
            is_exact=self.collector.text.is_exact or carry is not None,
            **fields,
        )


def new_keys(locator: Locator, target: Reference, table: Table, pairs: Pairs) -> tuple[KeyUse, ...]:
    """The keys that the rows will have: of several columns, those that are not set keep their values."""
    given = dict(pairs)
    columns = [
        assigned(locator, table, column, given[column]) if column in given else kept(locator, target, table, column)
        for column in table.routing_columns
    ]
    uses = columns[0] if len(columns) == 1 else chained(columns)
    if uses is None:
        raise refused(table, table.routing_columns[0], "There are too many keys.")
    return uses


def assigned(locator: Locator, table: Table, column: str, value: Node | None) -> tuple[KeyUse, ...]:
    """The new value of a column, which has to be a constant or a parameter; none for NULL."""
    key_type = table.type_of(column)
    family = key_family(key_type) if key_type is not None else None
    keys = locator.collector.text.read_keys(value, family) if family is not None else None
    if keys is None:
        raise refused(table, column, "The new value is an expression.")
    usable = Locator(locator.collector).usable
    for key in keys:
        if key.flags & KeyFlag.KEY_PARAM and usable.get(key.index) != family:
            raise refused(table, column, f"The type of ${key.index + 1} is not certain.")
    uses = key_uses(locator.catalog, table, column, keys, int(KeyFlag.KEY_INSERTED))
    # NULL is not this row's only if there is a row: PostgreSQL will tell.
    return tuple(replace(use, flags=use.flags & ~KeyFlag.KEY_INSERTED) for use in uses)


def kept(locator: Locator, target: Reference, table: Table, column: str) -> tuple[KeyUse, ...]:
    """The old value of a column, as the conditions say."""
    keys = locator.bound.get((target, column))
    if keys is None:
        raise refused(table, column, "The old value is not known.")
    return key_uses(locator.catalog, table, column, keys)


def elsewhere(table: Table, named: str) -> SqlError:
    """The refusal of a change to a key that lives on another shard."""
    if table.kind is TableKind.CHILD and not table.takes_keys:
        return refused(table, named, f'"{table.key}" of the row carries the bucket of its parent.')
    return refused(table, named, "The row would live on another shard.")


def refused(table: Table, column: str, detail: str) -> SqlError:
    """The refusal of a change."""
    return not_built(f'changing "{column}" of "{table.name}"', HINT, detail)
